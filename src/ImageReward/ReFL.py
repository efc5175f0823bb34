"""``ImageReward.ReFL`` of image-reward 1.5."""

raise ImportError(
    "this release of image-reward has no ReFL, the tuning of a diffusion model from the reward; image-reward 1.5 has it. "
    "The reward's gradients are here: load(...).score_gard() and image_reward.load(...).rewards()"
)
