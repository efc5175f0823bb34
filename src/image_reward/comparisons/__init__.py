"""Human rankings of images: readers of published forms, an auditor, splits that share no prompt; and a drawn world (``shapes``)."""

from image_reward.comparisons.audit import Audit, Finding, audit
from image_reward.comparisons.forms import Record
from image_reward.comparisons.readers import read, records, write
from image_reward.comparisons.split import normalized_prompt, shared_prompts, split
from image_reward.rows import ParquetImage

__all__ = [
    "Audit",
    "Finding",
    "ParquetImage",
    "Record",
    "audit",
    "normalized_prompt",
    "read",
    "records",
    "shared_prompts",
    "split",
    "write",
]
