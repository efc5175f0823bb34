"""The scorers of a run: those that it is tuned with, and those that are watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from image_reward.errors import RewardError
from image_reward.scorers.base import Scorer
from image_reward.scorers.ensemble import Ensemble, Reference
from image_reward.scorers.loading import load_all, without_gradients
from image_reward.scorers.together import CompositeScorer, score_together, single_scorers
from image_reward.scorers.two_tower import TwoTowerScorer
from image_reward.tuning.config import Tuning
from image_reward.tuning.noise import check_gives_gradients, no_gradients


class Rewarding:
    """Loaded scorers, frozen. Raises ``InputError`` for one without gradients where the method needs them."""

    def __init__(self, config: Tuning, scorers: Mapping[str, Scorer[Any]], device: torch.device) -> None:
        self.config = config
        names = [*config.reward, *config.watch]
        missing = [name for name in names if name not in scorers]
        loaded = dict(scorers) | dict(zip(missing, load_all(missing, device), strict=True))
        for scorer in loaded.values():
            scorer.requires_grad_(False)
        check_reward(config, loaded)
        self.members = {name: loaded[name] for name in config.reward}
        self.watched = {name: loaded[name] for name in config.watch}
        self.notes: list[str] = []
        self.trusted = self._trusted()
        """The watched scorers that see images through towers of their own."""

    def _trusted(self) -> list[str]:
        towers = {_tower(single) for scorer in self.members.values() for single in single_scorers([scorer])}
        trusted = []
        for name, scorer in self.watched.items():
            if any(_tower(single) in towers for single in single_scorers([scorer])):
                self.notes.append(
                    f"warning: {name} is watched but shares the image tower of the reward: what fools one fools the other, so it is shown "
                    "and does not decide when to stop"
                )
            else:
                trusted.append(name)
        return trusted

    @property
    def has_margin(self) -> bool:
        return any(scorer.reads_prompt for scorer in self.members.values())

    def on_scale(self, references: Sequence[tuple[float, float]], num_images: int) -> Scorer[Any]:
        """One scorer of all. Several are brought to the scale of the untuned generator's images: mean and standard deviation of each."""
        members = list(self.members.values())
        if len(members) == 1:
            return members[0]
        scales = {
            name: Reference(center, spread, num_images, "images of the untuned generator")
            for name, (center, spread) in zip(self.members, references, strict=True)
        }
        return Ensemble(self.members, references=scales, reward=self.config.combine)


def check_reward(config: Tuning, scorers: Mapping[str, Scorer[Any]]) -> None:
    """Raise ``InputError`` where the method needs gradients that the reward does not give; scorers that are not loaded are not loaded."""
    if config.method == "best-of":
        return
    otherwise = "--method best-of, which needs none"
    for model in config.reward:
        if model in scorers:
            check_gives_gradients(scorers[model], otherwise)
        elif names := without_gradients(model):
            raise no_gradients(names[0], otherwise)


def rewards_of_images(scorer: Scorer[Any], prompts: Sequence[str], images: Sequence[Tensor]) -> list[float]:
    """The rewards of generated images for aligned prompts. Raises ``RewardError`` that names the prompt of an image that has none."""
    reasons: dict[int, RewardError] = {}
    (rewards,) = score_together([scorer], prompts, images, reasons)
    if reasons:
        row = min(reasons)
        raise type(reasons[row])(f"{scorer.name} gives an image for {prompts[row]!r:.200} no reward: {reasons[row]}")
    return rewards


def rewards_of_prompts(scorer: Scorer[Any], prompts: Sequence[Sequence[str]], pixels: Tensor) -> Tensor:
    """Rewards [B, P] of images [B, 3, H, W] for P lists of B prompts, with gradients; a scorer of two towers encodes each image once."""
    if isinstance(scorer, CompositeScorer):
        members = torch.stack([rewards_of_prompts(member, prompts, pixels) for member in scorer.scorers])
        return scorer.combine(members.flatten(1)).view_as(members[0])
    if not isinstance(scorer, TwoTowerScorer) or len(prompts) == 1:
        return torch.stack([scorer.rewards(list(each), pixels) for each in prompts], dim=1)
    batch = scorer.prepare.of_tensors([text for each in prompts for text in each], pixels.to(scorer.device))
    features = scorer.encode(batch.pixels)
    ids, mask = (tensor.to(scorer.device).view(len(prompts), len(pixels), -1).transpose(0, 1) for tensor in (batch.ids, batch.mask))
    return scorer.score_pairs(features, ids, mask)


def _tower(scorer: Scorer[Any]) -> Any:
    return scorer.image_tower if isinstance(scorer, TwoTowerScorer) else scorer
