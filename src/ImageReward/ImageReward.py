"""``from ImageReward.ImageReward import ImageReward`` of image-reward 1.5."""

from PIL import Image

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15 import ImageReward
from image_reward.scorers.compat_v15_parts import MLP, BLIP_Pretrain, _convert_image_to_rgb, _transform

BICUBIC = Image.Resampling.BICUBIC
