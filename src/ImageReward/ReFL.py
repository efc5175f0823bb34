"""``from ImageReward import ReFL`` of image-reward 1.5: ``ReFL.Trainer(model, json, args=args).train(args=args)``."""

import ImageReward._implementation as _implementation
from image_reward.tuning.compat_v15 import Trainer, parse_args
