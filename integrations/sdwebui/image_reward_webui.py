"""What the Stable Diffusion WebUI extension does, apart from the host: prompts, limits, and the order of a job's images.

Written for Python 3.10 with the host's PyTorch, Pillow 9.5 and NumPy 1.26.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import image_reward as ir
from image_reward.downloads import HubFile, find_local
from image_reward.scorers import MODELS, Scorer
from image_reward.types import Ranking

REWARD_KEY, MODEL_KEY = "ImageReward", "ImageReward model"
"""In the infotext of an image."""

_EXTRA_NETWORK = re.compile(r"<\w+:[^>]+>")
_WEIGHTED = re.compile(r"(?<!\\)\(([^()]*):\s*[+-]?[\d.]+\s*\)")
_SCHEDULED = re.compile(
    r"(?<!\\)\[(?:(?:\\.|[^\[\]:\\])*:)?((?:\\.|[^\[\]:\\])*):\s*[\d.]+\s*\]"
)  # [from:to:when], [to:when], [from::when]
_ALTERNATED = re.compile(r"(?<!\\)\[((?:\\.|[^\[\]|\\])*(?:\|(?:\\.|[^\[\]|\\])*)+)\]")  # [a|b|c], a step each
_COMPOSED = re.compile(r"\s*(?::\s*[+-]?[\d.]+\s*)?\bAND\b\s*")
_BRACKET = re.compile(r"\\([()\[\]\\])|[()\[\]]")


def plain_prompt(prompt: str) -> str:
    """A prompt as a person would read it: without LoRA tags, brackets and weights of attention, and BREAK.

    Where it changes while the image is made, it is that of the last step; alternating parts and those joined by AND are all kept.

    >>> plain_prompt("a (red:1.3) cat, ((sharp)) <lora:detail:0.8>, smile \\\\(happy\\\\)")
    'a red cat, sharp, smile (happy)'
    >>> plain_prompt("a [sketch:photo:0.5] of a [cow|horse], [fog::8] AND a [barn:0.3] :1.2")
    'a photo of a cow horse, a barn'
    """
    prompt = _EXTRA_NETWORK.sub("", prompt)
    changed = True
    while changed:  # innermost first
        plain = _WEIGHTED.sub(r"\1", prompt)
        plain = _SCHEDULED.sub(r"\1", plain)
        plain = _ALTERNATED.sub(lambda match: match[1].replace("|", " "), plain)
        changed, prompt = plain != prompt, plain
    if _COMPOSED.search(prompt):
        prompt = ", ".join(re.sub(r":\s*[+-]?[\d.]+\s*$", "", part).strip(" ,") for part in _COMPOSED.split(prompt))
    prompt = _BRACKET.sub(lambda match: match[1] or "", prompt)
    prompt = re.sub(r"\s+", " ", re.sub(r"\bBREAK\b", " ", prompt))
    return re.sub(r"\s+,", ",", prompt).strip(" ,")


def parse_limit(text: str | float | None) -> float | None:
    """The least reward of the images that are kept; None for an empty field, which keeps all. Raises ``InputError``.

    >>> parse_limit(" "), parse_limit("0,5"), parse_limit(-1)
    (None, 0.5, -1.0)
    """
    if text is None or not str(text).strip():
        return None
    try:
        limit = float(str(text).strip().replace(",", "."))
    except ValueError:
        limit = math.nan
    if math.isnan(limit):
        raise ir.InputError(f"the limit {str(text)!r} is not a number; leave it empty to keep all images")
    return limit


def load(model: str, device: Any) -> Scorer[Any]:
    """A registered name or a path -> a scorer. Files of the hub are fetched by the host's own version of its library, however old."""
    model = model.strip()
    if model in MODELS:
        from huggingface_hub import hf_hub_download

        for file in MODELS[model].files.values():
            if isinstance(file, HubFile) and find_local(file) is None:
                hf_hub_download(file.repo, file.name)
    return ir.load(model, device)


@dataclass(frozen=True)
class Scored:
    """One image of a job, as the host made it."""

    reward: float
    seed: Any
    subseed: Any
    prompt: str
    negative_prompt: str


@dataclass
class Job:
    """The images of one run of the host, in the order in which they were made."""

    sort: bool = False
    limit: float | None = None
    best: int = 0
    """The number of best images to keep; 0 for all."""
    messages: list[str] = field(default_factory=list)
    """For the person at the page."""
    failed: bool = False
    """Whether an image could not be scored; the others are made all the same, and all are shown."""
    images: list[Scored] = field(default_factory=list)
    seen: Any = None
    """The image that was scored last."""

    def fail(self, error: Exception) -> None:
        self.failed = True
        self.messages.append(f"ImageReward: {error}")

    def add(self, image: Any, scored: Scored, again: bool = False) -> None:
        """Record an image; ``again`` where the host has changed the image that was recorded last."""
        if again:
            self.images.pop()
        self.images.append(scored)
        self.seen = image

    def kept(self) -> list[int]:
        """Where the images that are shown are among those made, in the order in which they are shown."""
        rewards = [image.reward for image in self.images]
        order = Ranking.from_rewards(rewards).order
        kept = {place for place in order if self.limit is None or rewards[place] >= self.limit}
        if self.best:
            kept &= set([place for place in order if place in kept][: self.best])
        return [place for place in (order if self.sort or self.best else range(len(rewards))) if place in kept]

    def summary(self, places: Sequence[int]) -> str:
        """One line for each image that is shown, and how many are not."""
        lines = [f"ImageReward {self.images[place].reward:+.4f}, seed {self.images[place].seed}" for place in places]
        if dropped := len(self.images) - len(places):
            lines.append(f"ImageReward: {dropped} of {len(self.images)} images are not shown; their files stay where they were saved")
        return "\n".join(lines)


def places_of_images(processed: Any, num_scored: int) -> list[int] | None:
    """Where the scored images are in ``processed.images``, which may begin with a grid and hold masks and control images between or behind.

    None where that cannot be known: another script has changed their number.
    """
    first = processed.index_of_first_image
    places = list(range(first, len(processed.images)))
    if len(places) != num_scored:
        texts = set(processed.infotexts[first : first + num_scored])
        places = [place for place in places if getattr(processed.images[place], "info", {}).get("parameters") in texts]
    return places if len(places) == num_scored else None


def arrange(processed: Any, job: Job) -> None:
    """Put the images of a job in their order, and leave out those that are not kept, with all that the host lists for each image.

    A grid stays first, and shows all images. Masks and control images follow the images.
    """
    processed.comments = getattr(processed, "comments", "") or ""
    kept = job.kept()
    places = places_of_images(processed, len(job.images))
    if places is None and not job.failed:
        job.messages.append("ImageReward: another script has changed the number of images, so they were scored but not sorted or filtered")
    elif places and not job.failed:
        first, images, texts = processed.index_of_first_image, processed.images, processed.infotexts
        others = [images[place] for place in range(first, len(images)) if place not in places]
        processed.images = [*images[:first], *(images[places[place]] for place in kept), *others]
        processed.infotexts = [*texts[:first], *(texts[first + place] for place in kept), *texts[first + len(places) :]]
        shown = [job.images[place] for place in kept]
        processed.all_seeds = [image.seed for image in shown]
        processed.all_subseeds = [image.subseed for image in shown]
        processed.all_prompts = [image.prompt for image in shown]
        processed.all_negative_prompts = [image.negative_prompt for image in shown]
        job.messages.append(job.summary(kept))
    processed.comments += "".join(f"{message}\n" for message in job.messages)
