"""``ImageReward.models.BLIP.blip`` of image-reward 1.5.

Programs may assign another ``init_tokenizer``, which the original needed to run with newer libraries or without a network. It is not
called: the tokenizer comes with this package.
"""

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15_parts import VisionTransformer, create_vit, init_tokenizer, interpolate_pos_embed, load_checkpoint
