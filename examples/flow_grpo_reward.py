"""Rewards for flow_grpo: put these into ``score_functions`` and ``multi_score`` of its rewards.py."""

from image_reward.tuning import multi_reward_function, reward_function


def imagereward_score(device):
    """``f(images, prompts, metadata) -> (scores, {})``, as the functions in ``score_functions`` are made."""
    return reward_function("ImageReward-v1.0", device)


def multi_score(device, score_dict):
    """``f(images, prompts, metadata, only_strict=True) -> ({name: scores, "avg": weighted sums}, {})``.

    ``score_dict`` names scorers of image-reward: {"ImageReward-v1.0": 1.0, "HPSv2.1": 4.0}
    """
    return multi_reward_function(score_dict, device)
