"""The scorer that a run starts from: a trained one, BLIP's pretrained towers with a fresh head, or random weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from image_reward.checkpoints import blip_pretraining_weights, read_checkpoint
from image_reward.config import RewardConfig, ScorerConfig, TransformConfig
from image_reward.errors import InputError
from image_reward.models.blip_config import BlipConfig
from image_reward.models.heads import LinearHead
from image_reward.models.initial import new_head, new_network
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.scorers.loading import locate
from image_reward.training.config import SCRATCH, RewardTraining


def initial_scorer(config: RewardTraining) -> ImageRewardScorer:
    """The scorer that a run starts from, in float32 on the CPU and on the raw scale of its head."""
    raw = RewardConfig(mean=0.0, std=1.0, reference=None)
    own = ScorerConfig(
        network=config.network, image=TransformConfig(size=config.network.image_size), max_tokens=config.max_tokens, reward=raw
    )
    if config.start == SCRATCH:
        scorer = ImageRewardScorer(new_network(config.network, config.seed), own)
        scorer.network.requires_grad_(True)
        return scorer
    path, name, registered = locate(config.start)
    tensors, stored = read_checkpoint(path)
    generator = torch.Generator().manual_seed(config.seed)
    hint = "; give the sizes of its network in [network]" if stored is None and registered is None else ""
    if (towers := blip_pretraining_weights(tensors)) is not None:
        head = LinearHead(config.network.text_width, config.network.head_widths)
        tensors, known = towers | {f"mlp.{k}": v for k, v in head.state_dict().items()}, own
    else:
        known = replace(stored or registered or own, reward=raw)
        if config.network not in (BlipConfig(), known.network):
            raise InputError(f"{config.start} has a network of its own sizes, so [network] must be left out or be the same")
        if config.max_tokens not in (RewardTraining.max_tokens, known.max_tokens):
            raise InputError(
                f"{config.start} reads {known.max_tokens} tokens of a prompt, so max_tokens must be left out or be the same, not "
                f"{config.max_tokens}"
            )
    # Copies: the file is memory-mapped, and training writes.
    tensors = {k: v.float().clone() if v.is_floating_point() else v for k, v in tensors.items()}
    scorer = ImageRewardScorer.from_tensors(tensors, known, str(path), hint, name=name)
    if towers is not None or config.new_head:
        new_head(scorer.network.mlp, generator)
    return scorer.requires_grad_(True)
