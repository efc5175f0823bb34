"""``ImageReward.models.BLIP.vit`` of image-reward 1.5."""

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15_parts import Attention, Block, VisionTransformer, interpolate_pos_embed
