"""``ImageReward.models.BLIPScore`` of image-reward 1.5."""

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15 import BLIPScore
from image_reward.scorers.compat_v15_parts import BLIP_Pretrain, _convert_image_to_rgb, _transform, load_checkpoint
