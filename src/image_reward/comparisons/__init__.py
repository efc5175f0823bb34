"""Human rankings of images: read, converted, audited, and split so that no prompt is shared; and a drawn world (``shapes``)
with a judge (``shapes_judge``)."""

from image_reward.comparisons.audit import Audit, Finding, audit
from image_reward.comparisons.convert import Conversion, convert, images_folder
from image_reward.comparisons.forms import Record
from image_reward.comparisons.readers import read, records, splits, write, write_pick_a_pic
from image_reward.comparisons.split import normalized_prompt, shared_prompts, split
from image_reward.rows import ParquetImage

__all__ = [
    "Audit",
    "Conversion",
    "Finding",
    "ParquetImage",
    "Record",
    "audit",
    "convert",
    "images_folder",
    "normalized_prompt",
    "read",
    "records",
    "shared_prompts",
    "split",
    "splits",
    "write",
    "write_pick_a_pic",
]
