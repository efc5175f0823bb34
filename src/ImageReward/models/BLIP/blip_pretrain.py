"""``ImageReward.models.BLIP.blip_pretrain`` of image-reward 1.5. Of ``init_tokenizer`` see ``blip``."""

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15_parts import BertModel, BLIP_Pretrain, create_vit, init_tokenizer
