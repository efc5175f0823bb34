"""image-reward 1.5 (``import ImageReward as reward``): its functions, and its model with every part that programs reach into.

What a program assigns to such a part takes effect on every score, as in 1.5.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from image_reward.config import ScorerConfig
from image_reward.errors import CheckpointError, ImageReadError, PromptError, UnknownModelError
from image_reward.files import read_json
from image_reward.images import ImageLike, ImageTransform
from image_reward.models.blip import Blip, BlipConfig, ImageRewardNetwork, KeysValues, TextTransformer
from image_reward.models.heads import LinearHead, is_changed
from image_reward.prompts import LongPrompts, Tokens, check_prompts, report_long_prompts, transformers_tokenizer
from image_reward.scorers.base import Scorer
from image_reward.scorers.build import build_imagereward
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.scorers.loading import choose_device, find
from image_reward.scorers.registry import spec_of
from image_reward.scorers.spec import LoadOptions
from image_reward.scorers.two_tower import TwoTowerProcessor, TwoTowerScorer
from image_reward.types import Ranking

# --- the model -----------------------------------------------------------------------------------------------------------------------


class BlipWithTokenizer(Blip):
    """``Blip`` with a transformers tokenizer beside its towers, made when a program asks for it."""

    def __init__(self, config: BlipConfig, name: str, vocabulary: tuple[str, ...] | None) -> None:
        super().__init__(config)
        self.name, self.vocabulary = name, vocabulary

    @property
    def tokenizer(self) -> Any:
        if "tokenizer" not in vars(self):
            if self.vocabulary is not None:
                raise PromptError(
                    f"{self.name} has a vocabulary of its own, which has no tokenizer of image-reward 1.5; use score() or rewards()"
                )
            vars(self)["tokenizer"] = transformers_tokenizer()
        return vars(self)["tokenizer"]

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        vars(self)["tokenizer"] = tokenizer


class NetworkOfParts(ImageRewardNetwork):
    """The network of whatever parts a program has put in place, which it calls as 1.5 does where they are not this package's.

    A part that is assigned here becomes a part of the model.
    """

    @classmethod
    def of(cls, model: ImageReward) -> NetworkOfParts:
        network = cls(model.config.network, model.blip, model.mlp)
        vars(network)["model"] = model  # not as a module, which would make the model a part of itself
        return network

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("blip", "mlp") and "model" in vars(self):
            setattr(vars(self)["model"], name, value)

    @property
    def _reads_as_this_package(self) -> bool:
        """Whether nobody can tell ``read_image`` and ``encode`` of the text encoder, which save work, from calling it."""
        encoder = self.blip.text_encoder
        return isinstance(encoder, TextTransformer) and type(encoder).forward is TextTransformer.forward and not is_changed(encoder)

    def encode_images(self, pixels: Tensor) -> list[KeysValues]:
        if self._reads_as_this_package:
            return super().encode_images(pixels)
        tokens = self.blip.visual_encoder(pixels)
        return [(tokens, tokens)]  # another text encoder makes keys and values of them itself

    def read(self, images: list[KeysValues], ids: Tensor, mask: Tensor | None = None) -> Tensor:
        if self._reads_as_this_package:
            return super().read(images, ids, mask)
        tokens = images[0][0]
        tokens = tokens.repeat_interleave(len(ids) // max(1, len(tokens)), dim=0)
        output = self.blip.text_encoder(
            ids,
            attention_mask=None if mask is None else mask.long(),
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device),
            return_dict=True,
        )
        return self.head(output.last_hidden_state[:, 0])


@dataclass
class AssignedTokenizer:
    """A transformers tokenizer in place of this package's, called as 1.5 calls it."""

    tokenizer: Any
    max_tokens: int
    long_prompts: LongPrompts

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        check_prompts(prompts)
        texts = list(prompts) or [""]
        whole = self.tokenizer(texts).input_ids
        report_long_prompts({p: len(ids) for p, ids in zip(texts, whole, strict=True)}, self.max_tokens, self.long_prompts)
        text = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt")
        ids, mask = text.input_ids[: len(prompts)], text.attention_mask[: len(prompts)].bool()
        length = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else 0  # padding on the right is not computed
        return Tokens(ids[:, :length], mask[:, :length])


@dataclass(frozen=True)
class AssignedTransform(ImageTransform):
    """A function from a PIL image to normalised pixels [3, size, size] in place of ``ImageTransform``."""

    function: Callable[[Image.Image], Tensor] = field(kw_only=True)

    def crop_opened(self, image: Image.Image) -> Tensor:
        return self.function(image)

    def normalize(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return pixels.to(dtype)

    def crop_tensor(self, pixels: Tensor) -> Tensor:  # noqa: ARG002 - part of the convention
        raise ImageReadError("preprocess was assigned, and works on PIL images alone; give what it makes of an image to score_gard()")


class ImageReward(ImageRewardScorer):
    """``ImageRewardScorer`` with the methods, the parts and the names of weights of image-reward 1.5."""

    blip: Blip
    """Both towers, with a ``tokenizer`` beside them."""
    mlp: LinearHead
    """Features of the first token [N, W] -> raw rewards [N, 1]."""

    @classmethod
    def new_network(cls, config: ScorerConfig, name: str) -> ImageRewardNetwork:
        return ImageRewardNetwork(config.network, BlipWithTokenizer(config.network, name, config.vocabulary))

    @property  # type: ignore[override]
    def network(self) -> ImageRewardNetwork:
        """A view of the parts, which are modules of the model itself, so that weights have the released names."""
        return NetworkOfParts.of(self)

    @network.setter
    def network(self, network: ImageRewardNetwork) -> None:
        self.blip, self.mlp = network.blip, network.mlp

    @property  # type: ignore[override]
    def prepare(self) -> TwoTowerProcessor:
        tokenizer = vars(self.blip).get("tokenizer")
        if tokenizer is None:
            return self._prepare
        # Once a program has its hands on the tokenizer, what it does to it counts, as in 1.5.
        long_prompts: LongPrompts = getattr(self._prepare.tokenizer, "long_prompts", "truncate")
        return replace(self._prepare, tokenizer=AssignedTokenizer(tokenizer, self.config.max_tokens, long_prompts))

    @prepare.setter
    def prepare(self, prepare: TwoTowerProcessor) -> None:
        self._prepare = prepare

    @property
    def preprocess(self) -> ImageTransform:
        """An image -> normalised pixels [3, S, S]."""
        return self.prepare.transform

    @preprocess.setter
    def preprocess(self, function: Callable[[Image.Image], Tensor]) -> None:
        self._prepare = replace(self._prepare, transform=_transform(function, self._prepare.transform))

    @property
    def device(self) -> torch.device:
        return super().device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self.to(device)

    @property
    def mean(self) -> float:
        return self.config.reward.mean

    @mean.setter
    def mean(self, mean: float) -> None:
        self._rescale(mean, self.std)

    @property
    def std(self) -> float:
        return self.config.reward.std

    @std.setter
    def std(self, std: float) -> None:
        self._rescale(self.mean, std)

    def _rescale(self, mean: float, std: float) -> None:
        """A scale of its own, with which no published distribution can be compared."""
        self.config = replace(self.config, reward=replace(self.config.reward, mean=float(mean), std=float(std), reference=None))

    def score(self, prompt: Any, image: Any) -> Any:
        """As ``Scorer.score``, except that a list of one image gives a bare float, as 1.5 does."""
        return _bare(super().score(prompt, image))

    def inference_rank(self, prompt: str | list[str], generations_list: list[ImageLike]) -> tuple[Any, Any]:
        """Ranks and rewards of images: see ``_inference_rank``."""
        return _inference_rank(self, prompt, generations_list)

    def score_gard(self, prompt_ids: Tensor, prompt_attention_mask: Tensor, image: Tensor) -> Tensor:
        """Token ids and mask [B, L] and normalised pixels [B, 3, S, S] -> rewards [B, 1] with gradients (the name is 1.5's).

        One prompt [1, L] may meet any number of images, and one image any number of prompts.
        """
        if not prompt_attention_mask.any(dim=1).all():
            raise ValueError("prompt_attention_mask hides every token of a prompt; even an empty prompt has [CLS] and [SEP]")
        if len(prompt_ids) == 1:  # one prompt for all images, such as the frames of a video
            prompt_ids, prompt_attention_mask = (x.expand(len(image), -1) for x in (prompt_ids, prompt_attention_mask))
        length = int(prompt_attention_mask.sum(dim=1).max())
        if not prompt_attention_mask[:, :length].any(dim=0).all() or prompt_attention_mask[:, length:].any():
            length = prompt_ids.shape[1]  # padded on the left or in the middle: keep every column
        network = self.network
        raw = network.read(network.encode_images(image.to(network.dtype)), prompt_ids[:, :length], prompt_attention_mask[:, :length])
        return ((raw - self.mean) / self.std)[:, None]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}blip.text_encoder.embeddings.position_ids", None)  # a buffer of the original that holds 0..511
        super()._load_from_state_dict(state_dict, prefix, *args)


def _bare(rewards: Any) -> Any:
    return rewards[0] if isinstance(rewards, list) and len(rewards) == 1 else rewards


def _inference_rank(scorer: Scorer[Any], prompt: str | list[str], images: list[ImageLike]) -> tuple[Any, Any]:
    """Ranks and rewards of images as two flat lists, or two bare numbers for one image.

    N prompts with M images give N * M ranks and rewards, image by image: all prompts with the first image come first. A score that
    does not read the prompt gives M.
    """
    if not isinstance(images, list | tuple) or not images:
        raise ValueError("inference_rank() takes a list of at least one image")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not scorer.reads_prompt:
        prompts = prompts[:1]
    rewards = scorer.matrix(prompts, images).T.flatten().tolist()
    if not rewards:
        raise ValueError("inference_rank() takes at least one prompt")
    ranking = Ranking.from_rewards(rewards).ranking
    return _bare(ranking), _bare(rewards)


def _transform(function: Callable[[Image.Image], Tensor], before: ImageTransform) -> ImageTransform:
    if isinstance(function, ImageTransform):
        return function
    if not callable(function):
        raise TypeError(f"preprocess is a function from a PIL image to normalised pixels [3, S, S], not {type(function).__name__}")
    kept = {f.name: getattr(before, f.name) for f in fields(ImageTransform)}
    return AssignedTransform(**kept, function=function)


# --- the scores that 1.5 compares it with ----------------------------------------------------------------------------------------------


class Score(nn.Module):
    """One of the scores that 1.5 compares ImageReward with: ``score`` and ``inference_rank`` are those of an ImageReward model."""

    def __init__(self, scorer: TwoTowerScorer[Any]) -> None:
        super().__init__()
        self.scorer = scorer

    def score(self, prompt: Any, image: Any) -> Any:
        return _bare(self.scorer.score(prompt, image))

    def inference_rank(self, prompt: str | list[str], generations_list: list[ImageLike]) -> tuple[Any, Any]:
        return _inference_rank(self.scorer, prompt, generations_list)

    @property
    def device(self) -> torch.device:
        return self.scorer.device

    @property
    def preprocess(self) -> ImageTransform:
        """An image -> normalised pixels [3, S, S]."""
        return self.scorer.prepare.transform

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device":
            self.to(value)
        elif name == "preprocess":
            prepare = self.scorer.prepare
            self.scorer.prepare = replace(prepare, transform=_transform(value, prepare.transform))
        else:
            super().__setattr__(name, value)


# --- the functions -------------------------------------------------------------------------------------------------------------------


def available_models() -> list[str]:
    """Names of the models that 1.5 knows; ``load`` takes all that ``image_reward.load`` does."""
    return ["ImageReward-v1.0"]


def available_scores() -> list[str]:
    """Names of the scores that ``load_score`` knows."""
    return ["CLIP", "BLIP", "Aesthetic"]


@torch.inference_mode(False)
def load_score(name: str = "CLIP", device: str | torch.device | None = None, download_root: str | os.PathLike[str] | None = None) -> Score:
    """One of ``available_scores()``. ``download_root`` is a folder that may hold its files already; the caches are searched too."""
    if name not in available_scores():
        raise UnknownModelError(f"no score is called {name!r}; available are {', '.join(available_scores())}. load() loads models")
    scorer: Any = find(name, download_root).built(LoadOptions(name))
    return Score(scorer).to(choose_device(device))


@torch.inference_mode(False)
def load(
    name: str = "ImageReward-v1.0",
    device: str | torch.device | None = None,
    download_root: str | os.PathLike[str] | None = None,
    med_config: str | os.PathLike[str] | None = None,
) -> ImageReward:
    """The ImageReward model with the methods of image-reward 1.5.

    ``name`` is a registered name or a path. ``download_root`` is a folder that may hold ``ImageReward.pt`` already; the hub cache is
    searched too. ``med_config``, the JSON of the text tower, need not be given; one that describes another network is an error.
    """
    if (spec := spec_of(name)) and spec.build is not build_imagereward:  # before it is downloaded
        raise UnknownModelError(f"{name} is not an ImageReward model; load_score() or image_reward.load() loads it")
    paths, shown, registered, build = find(name, download_root)
    if build is not build_imagereward:
        raise UnknownModelError(f"{name} is not an ImageReward model; image_reward.load() loads it")
    model: ImageReward = build_imagereward(paths, LoadOptions(shown, registered=registered), ImageReward)
    if med_config is not None:
        _check_med_config(Path(med_config), model.config.network)
    return model.to(choose_device(device))


def _check_med_config(path: Path, network: BlipConfig) -> None:
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object with the text tower's sizes; med_config need not be given")
    sizes = {
        "hidden_size": network.text_width,
        "num_hidden_layers": network.text_layers,
        "num_attention_heads": network.text_heads,
        "intermediate_size": network.text_hidden,
        "vocab_size": network.vocab_size,
        "max_position_embeddings": network.max_positions,
    }
    for key, size in sizes.items():
        if values.get(key, size) != size:
            raise CheckpointError(f"{path} says {key} = {values[key]}, but the checkpoint's text tower has {size}")
