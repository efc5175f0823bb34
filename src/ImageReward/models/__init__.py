"""``ImageReward.models`` of image-reward 1.5."""

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15_parts import MLP
from ImageReward.models import BLIP
from ImageReward.models.AestheticScore import AestheticScore
from ImageReward.models.BLIP import BLIP_Pretrain
from ImageReward.models.BLIPScore import BLIPScore
from ImageReward.models.CLIPScore import CLIPScore
