"""``ImageReward.models.AestheticScore`` of image-reward 1.5."""

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15 import AestheticScore
from image_reward.scorers.compat_v15_parts import MLP
