"""Files of millions of rows, cut into shards, scored on one machine or on a Ray cluster."""

from image_reward.jobs.driver import Progress
from image_reward.jobs.score import JobResult, score_files

__all__ = ["JobResult", "Progress", "score_files"]
