"""``ImageReward.models.BLIP.med`` of image-reward 1.5."""

from transformers import BertConfig

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15_parts import BertAttention, BertEmbeddings, BertEncoder, BertLayer, BertModel, BertSelfAttention
