"""Image generators against each other: the rewards of the images that they made for the same prompts.

Images are of a generator and a prompt; several images of one prompt are told apart by a number. What is compared is like with like: the
same prompts, and of each prompt as many images of every generator.
"""

from image_reward.evaluation.generators.human import HumanRanking, published_ranking, read_ranking
from image_reward.evaluation.generators.images import Images, Selection, find_images, read_manifest, select
from image_reward.evaluation.generators.results import Rewards, has_results, read_results
from image_reward.evaluation.generators.scoring import score_images
from image_reward.evaluation.generators.statistics import Benchmark, GeneratorResult, ScorerResult, benchmark

__all__ = [
    "Benchmark",
    "GeneratorResult",
    "HumanRanking",
    "Images",
    "Rewards",
    "ScorerResult",
    "Selection",
    "benchmark",
    "find_images",
    "has_results",
    "published_ranking",
    "read_manifest",
    "read_ranking",
    "read_results",
    "score_images",
    "select",
]
