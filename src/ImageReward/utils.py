"""``ImageReward.utils`` of image-reward 1.5."""

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15 import (
    _MODELS,
    _SCORES,
    AestheticScore,
    BLIPScore,
    CLIPScore,
    ImageReward,
    ImageReward_download,
    _download,
    available_models,
    available_scores,
    load,
    load_score,
)
