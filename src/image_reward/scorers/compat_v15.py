"""image-reward 1.5 (``import ImageReward as reward``): its functions, and its model with every part that programs reach into.

What a program assigns to such a part takes effect on every score, as in 1.5.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from image_reward.config import ScorerConfig
from image_reward.downloads import HubFile, WebFile, fetch
from image_reward.errors import CheckpointError, ImageReadError, RewardError, UnknownModelError
from image_reward.files import read_json, written_whole
from image_reward.images import ImageLike, ImageTransform
from image_reward.models.blip import Blip, BlipConfig, ImageRewardNetwork, KeysValues
from image_reward.models.heads import LinearHead
from image_reward.prompts import LongPrompts, Tokens, check_prompts, report_long_prompts
from image_reward.scorers.base import Scorer
from image_reward.scorers.blip import MAX_TOKENS, BlipScorer
from image_reward.scorers.build import build_imagereward, checkpoint_of
from image_reward.scorers.clip import AestheticScorer
from image_reward.scorers.compat_v15_parts import (
    MLP,
    TOWERS,
    BLIP_Pretrain,
    Preprocess,
    is_plain,
    med_config_of,
    med_key,
    random_weights,
    text_sizes,
)
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.scorers.loading import choose_device, find
from image_reward.scorers.registry import MODELS, spec_of
from image_reward.scorers.spec import LoadOptions
from image_reward.scorers.two_tower import TwoTowerProcessor, TwoTowerScorer
from image_reward.types import Ranking

if TYPE_CHECKING:
    from transformers import CLIPModel

# --- the model -----------------------------------------------------------------------------------------------------------------------


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

    def encode_images(self, pixels: Tensor) -> list[KeysValues]:
        if is_plain(self.blip.text_encoder):
            return super().encode_images(pixels)
        tokens = self.blip.visual_encoder(pixels)
        return [(tokens, tokens)]  # another text encoder makes keys and values of them itself

    def score_pairs(self, images: list[KeysValues], ids: Tensor, mask: Tensor | None = None) -> Tensor:
        if is_plain(self.blip.text_encoder):
            return super().score_pairs(images, ids, mask)
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
    """``ImageRewardScorer`` with the methods, the parts and the names of weights of image-reward 1.5.

    A model that a program builds has random weights. It scores when they have been loaded or trained.
    """

    blip: Blip
    """Both towers, with a ``tokenizer`` beside them."""
    mlp: LinearHead
    """Features of the first token [N, W] -> raw rewards [N, 1]."""

    @torch.inference_mode(False)
    def __init__(self, med_config: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> None:
        """``med_config``: the JSON file of the text tower, or the config.json of a whole model; without it, the released sizes."""
        config = ScorerConfig() if med_config is None else _config(Path(med_config))
        blip, mlp = BLIP_Pretrain.of(config.network, "ImageReward", config.vocabulary), MLP.of(config.network)
        blip.start_at_random(0.02)
        mlp.start_at_random(1 / (config.network.text_width + 1))
        ImageRewardScorer.__init__(self, ImageRewardNetwork(config.network, blip, mlp), config)
        for module in self.modules():
            if isinstance(module, nn.Dropout):  # until train() is called: programs score with what they built and loaded
                module.eval()
        self.to(device)

    @classmethod
    def of(cls, network: ImageRewardNetwork, config: ScorerConfig, **options: Any) -> Any:
        """Around a network that exists."""
        model = cls.__new__(cls)
        ImageRewardScorer.__init__(model, network, config, **options)
        return model

    @classmethod
    def new_network(cls, config: ScorerConfig, name: str) -> ImageRewardNetwork:
        """The network with its parts under their names of 1.5."""
        return ImageRewardNetwork(config.network, BLIP_Pretrain.of(config.network, name, config.vocabulary), MLP.of(config.network))

    @property  # type: ignore[override]
    def network(self) -> ImageRewardNetwork:
        """A view of the parts, which are modules of the model itself, so that weights have the released names."""
        return NetworkOfParts.of(self)

    @network.setter
    def network(self, network: ImageRewardNetwork) -> None:
        self.blip, self.mlp = network.blip, network.mlp

    @property  # type: ignore[override]
    def prepare(self) -> TwoTowerProcessor:
        """Prompts and images -> a batch, with the tokenizer that a program may have assigned to ``blip``."""
        tokenizer = vars(self.blip).get("tokenizer")
        return self._prepare if tokenizer is None else _reading_with(tokenizer, self._prepare, self.config.max_tokens)

    @prepare.setter
    def prepare(self, prepare: TwoTowerProcessor) -> None:
        self._prepare = _with_steps(prepare)

    @property
    def preprocess(self) -> ImageTransform:
        """An image -> normalised pixels [3, S, S]."""
        return self.prepare.transform

    @preprocess.setter
    def preprocess(self, function: Callable[[Image.Image], Tensor]) -> None:
        self._prepare = replace(self._prepare, transform=_transform(function, self._prepare.transform))

    @property
    def device(self) -> torch.device:
        """Where the weights are; assigning it moves them."""
        return super().device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self.to(device)

    @property
    def mean(self) -> float:
        """Subtracted from what the head gives."""
        return self.config.reward.mean

    @mean.setter
    def mean(self, mean: float) -> None:
        self._rescale(mean, self.std)

    @property
    def std(self) -> float:
        """By which it is then divided."""
        return self.config.reward.std

    @std.setter
    def std(self, std: float) -> None:
        self._rescale(self.mean, std)

    def _rescale(self, mean: float, std: float) -> None:
        """A scale of its own, with which no published distribution can be compared."""
        self.config = replace(self.config, reward=replace(self.config.reward, mean=float(mean), std=float(std), reference=None))

    def check_evaluating(self) -> None:
        super().check_evaluating()
        self._check_weights()

    def _check_weights(self) -> None:
        """Raise ``RewardError`` where weights that a reward depends on are those that they were drawn with."""
        unread = ("blip.vision_proj.", "blip.text_proj.")
        if names := [name for name in random_weights(self) if not name.startswith(unread)]:
            raise RewardError(
                f"{len(names)} tensors of the model were never loaded, such as {names[0]}: they are random, and so would the reward be; "
                "load_state_dict() a checkpoint with the names of state_dict(), or train the model first"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module, with a warning where ``strict=False`` leaves weights random or fits nothing."""
        outcome = super().load_state_dict(state_dict, strict=strict, assign=assign)
        names = list(self.state_dict())
        if len(outcome.missing_keys) == len(names) and not random_weights(self):
            first = next(iter(state_dict), "nothing")
            warnings.warn(f"load_state_dict() changed nothing: it was given {first} and the model has {names[0]}", stacklevel=2)
        return outcome

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
        """As ``TwoTowerScorer.rewards``; with weights that are still random in training mode alone."""
        if not self.training:
            self._check_weights()
        return super().rewards(prompts, pixels)

    def score(self, prompt: Any, image: Any) -> Any:
        """As ``Scorer.score``, except that a list of one image gives a bare float, as 1.5 does."""
        return _bare(super().score(prompt, image))

    def inference_rank(self, prompt: str | list[str], generations_list: list[ImageLike]) -> tuple[Any, Any]:
        """Ranks and rewards of images: see ``_inference_rank``."""
        return _inference_rank(self, prompt, generations_list)

    def score_gard(self, prompt_ids: Tensor, prompt_attention_mask: Tensor, image: Tensor) -> Tensor:
        """Token ids and mask [B, L] and normalised pixels [B, 3, S, S] -> rewards [B, 1] with gradients (the name is 1.5's).

        One prompt [1, L] may meet any number of images, and one image any number of prompts. Weights that are still random give rewards
        in training mode alone.
        """
        if not self.training:
            self._check_weights()
        if not prompt_attention_mask.any(dim=1).all():
            raise ValueError("prompt_attention_mask hides every token of a prompt; even an empty prompt has [CLS] and [SEP]")
        if len(prompt_ids) == 1:  # one prompt for all images, such as the frames of a video
            prompt_ids, prompt_attention_mask = (x.expand(len(image), -1) for x in (prompt_ids, prompt_attention_mask))
        length = int(prompt_attention_mask.sum(dim=1).max())
        if not prompt_attention_mask[:, :length].any(dim=0).all() or prompt_attention_mask[:, length:].any():
            length = prompt_ids.shape[1]  # padded on the left or in the middle: keep every column
        network = self.network
        raw = network.score_pairs(network.encode_images(image.to(network.dtype)), prompt_ids[:, :length], prompt_attention_mask[:, :length])
        return ((raw - self.mean) / self.std)[:, None]


def _reading_with(tokenizer: Any, prepare: TwoTowerProcessor, max_tokens: int) -> TwoTowerProcessor:
    """Once a program has its hands on the tokenizer, what it does to it counts, as in 1.5."""
    long_prompts: LongPrompts = getattr(prepare.tokenizer, "long_prompts", "truncate")
    return replace(prepare, tokenizer=AssignedTokenizer(tokenizer, max_tokens, long_prompts))


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
    return AssignedTransform(**_fields(before), function=function)


def _fields(transform: ImageTransform) -> dict[str, Any]:
    return {f.name: getattr(transform, f.name) for f in fields(ImageTransform)}


def _with_steps(prepare: TwoTowerProcessor) -> TwoTowerProcessor:
    """With a transform whose steps programs can take apart."""
    transform = prepare.transform
    return replace(prepare, transform=Preprocess(**_fields(transform))) if type(transform) is ImageTransform else prepare


def _config(path: Path) -> ScorerConfig:
    """The config of a whole model, or of the released one with the text tower of a med_config."""
    values = read_json(path)
    if isinstance(values, dict) and "network" in values:
        return ScorerConfig.from_values(values, str(path))
    return ScorerConfig(network=text_sizes(values, str(path), BlipConfig(**TOWERS["large"])))


# --- the scores that 1.5 compares it with ----------------------------------------------------------------------------------------------


class Score(nn.Module):
    """One of the scores that 1.5 compares ImageReward with: ``score`` and ``inference_rank`` are those of an ImageReward model."""

    scorer: Any

    def __init__(self, scorer: TwoTowerScorer[Any], device: str | torch.device = "cpu") -> None:
        super().__init__()
        scorer.prepare = _with_steps(scorer.prepare)
        self.scorer = scorer
        self.to(device)

    @classmethod
    def of(cls, scorer: Any) -> Any:
        """Around a scorer of the package's own."""
        score = cls.__new__(cls)
        Score.__init__(score, scorer)
        return score

    def score(self, prompt: Any, image: Any) -> Any:
        return _bare(self._ready().score(self._read(prompt), image))

    def inference_rank(self, prompt: str | list[str], generations_list: list[ImageLike]) -> tuple[Any, Any]:
        return _inference_rank(self._ready(), self._read(prompt), generations_list)

    def _ready(self) -> TwoTowerScorer[Any]:
        """The scorer, as the parts are now. Raises ``RewardError`` where weights are random."""
        if names := random_weights(self):
            raise RewardError(
                f"{len(names)} tensors of the score were never loaded, such as {names[0].removeprefix('scorer.')}: they are random; "
                "load_state_dict() them, or take the score from load_score()"
            )
        return self.scorer

    def _read(self, prompt: Any) -> Any:
        return "" if prompt is None and not self.scorer.reads_prompt else prompt

    @property
    def device(self) -> torch.device:
        return self.scorer.device

    @device.setter
    def device(self, device: str | torch.device) -> None:
        self.to(device)

    @property
    def preprocess(self) -> ImageTransform:
        """An image -> normalised pixels [3, S, S]."""
        return self.scorer.prepare.transform

    @preprocess.setter
    def preprocess(self, function: Callable[[Image.Image], Tensor]) -> None:
        prepare = self.scorer.prepare
        self.scorer.prepare = replace(prepare, transform=_transform(function, prepare.transform))

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), property):  # which ``nn.Module`` would look past
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class ClipModel(nn.Module):
    """A transformers CLIP with the methods of OpenAI's, for programs that call ``clip_model`` of a score themselves."""

    def __init__(self, network: CLIPModel) -> None:
        super().__init__()
        self.network = network

    @property
    def logit_scale(self) -> Tensor:
        return self.network.logit_scale

    @property
    def dtype(self) -> torch.dtype:
        return self.network.visual_projection.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        """Normalised pixels [I, 3, S, S] -> features [I, D], of any length."""
        return self.network.visual_projection(self.network.vision_model(pixel_values=image.to(self.dtype)).pooler_output)

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids [N, 77], as ``clip.tokenize`` gives them -> features [N, D], of any length."""
        return self.network.text_projection(self.network.text_model(input_ids=text.long()).pooler_output)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """-> the logits of images by prompts [I, N] and of prompts by images [N, I]."""
        images, texts = (F.normalize(features, dim=-1) for features in (self.encode_image(image), self.encode_text(text)))
        logits = self.logit_scale.exp() * images @ texts.T
        return logits, logits.T


class _OnClip(Score):
    @property
    def clip_model(self) -> ClipModel:
        if "_clip_model" not in vars(self):
            vars(self)["_clip_model"] = ClipModel(self.scorer.network)  # not as a module, which would name its weights twice
        return vars(self)["_clip_model"]


class CLIPScore(_OnClip):
    """The cosine of OpenAI's CLIP."""

    def __init__(self, download_root: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(_registered("CLIP", download_root), device)


class AestheticScore(_OnClip):
    """A head on CLIP's image features; no prompt is read. One that a program builds has a random head, for ``mlp.load_state_dict``."""

    def __init__(self, download_root: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> None:
        clip = _registered("CLIP", download_root)
        head = MLP(clip.network.config.projection_dim)
        super().__init__(AestheticScorer(clip.network, head, clip.prepare.transform).eval(), device)

    @property
    def mlp(self) -> LinearHead:
        return self.scorer.head

    @mlp.setter
    def mlp(self, mlp: nn.Module) -> None:
        self.scorer.head = mlp


class BLIPScore(Score):
    """The cosine of BLIP's contrastive features. One that a program builds has random weights, for ``blip.load_state_dict``."""

    def __init__(self, med_config: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> None:
        blip = BLIP_Pretrain(med_config, vit="large")
        super().__init__(BlipScorer(blip, blip.sizes).eval(), device)

    @classmethod
    def of(cls, scorer: BlipScorer) -> Any:
        with torch.device("meta"):
            blip = BLIP_Pretrain.of(scorer.config, scorer.name)
        blip.load_state_dict(scorer.blip.state_dict(), assign=True)
        scorer.blip = blip.eval()
        return super().of(scorer)

    @property
    def blip(self) -> Blip:
        return self.scorer.blip

    @blip.setter
    def blip(self, blip: Blip) -> None:
        self.scorer.blip = blip

    def _ready(self) -> TwoTowerScorer[Any]:
        scorer, tokenizer = super()._ready(), vars(self.blip).get("tokenizer")
        if tokenizer is not None:
            scorer.prepare = _reading_with(tokenizer, scorer.prepare, MAX_TOKENS)
        return scorer


# --- the functions -------------------------------------------------------------------------------------------------------------------


_MODELS = {"ImageReward-v1.0": "https://huggingface.co/THUDM/ImageReward/blob/main/ImageReward.pt"}
_CLIP_FILE = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt"
_SCORES = {
    "CLIP": f"https://openaipublic.azureedge.net/clip/models/{_CLIP_FILE}",
    **{
        name: file.url
        for name, part in (("BLIP", "weights"), ("Aesthetic", "head"))
        if isinstance(file := MODELS[name].files[part], WebFile)
    },
}
"""Where 1.5 has its files from, for programs that download them themselves."""


def available_models() -> list[str]:
    """Names of the models that 1.5 knows; ``load`` takes all that ``image_reward.load`` does."""
    return list(_MODELS)


def available_scores() -> list[str]:
    """Names of the scores that ``load_score`` knows."""
    return list(_SCORES)


def ImageReward_download(url: str, root: str | os.PathLike[str]) -> str:  # noqa: N802 - the name in 1.5
    """The path of a file of the hub repository THUDM/ImageReward in the folder ``root``, into which it is downloaded if need be.

    Raises what ``downloads.fetch`` raises. ``med_config.json`` is made here and needs no network.
    """
    target = Path(root) / _file_name(url)
    name = target.name
    if name == "med_config.json":
        if not target.is_file():
            _write(target, json.dumps(med_config_of(BlipConfig()), indent=2).encode())
        return str(target)
    files = [file for file in MODELS["ImageReward-v1.0"].files.values() if file.name == name]
    return _fetched(files[0] if files else HubFile("THUDM/ImageReward", name), target)


def _download(url: str, root: str | os.PathLike[str]) -> str:
    """The path of a file of the web in the folder ``root``, into which it is downloaded if it is not there."""
    target = Path(root) / _file_name(url)
    if target.is_file():
        return str(target)
    known = [file for spec in MODELS.values() for file in spec.files.values() if isinstance(file, WebFile) and file.url == url]
    return _fetched(known[0] if known else WebFile(url), target)


def _file_name(url: str) -> str:
    """What 1.5 calls a downloaded file: the end of its address, as it is written."""
    return urlsplit(url).path.rsplit("/", 1)[-1]


def _fetched(file: HubFile | WebFile, target: Path) -> str:
    """A verified file at the place where 1.5 has it: the caches of this package have other ones."""
    path = fetch(file, target.parent)
    if not target.is_file() or not target.samefile(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as temporary:
            shutil.copyfile(path, temporary)
    return str(target)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


@torch.inference_mode(False)
def load_score(name: str = "CLIP", device: str | torch.device | None = None, download_root: str | os.PathLike[str] | None = None) -> Score:
    """One of ``available_scores()``. ``download_root`` is a folder that may hold its files already; the caches are searched too."""
    if name not in available_scores():
        raise UnknownModelError(f"no score is called {name!r}; available are {', '.join(available_scores())}. load() loads models")
    kind: type[Score] = {"CLIP": CLIPScore, "BLIP": BLIPScore, "Aesthetic": AestheticScore}[name]
    return kind.of(_registered(name, download_root)).to(choose_device(device))


def _registered(name: str, download_root: str | os.PathLike[str] | None) -> Any:
    return find(name, download_root).built(LoadOptions(name))


@torch.inference_mode(False)
def load(
    name: str = "ImageReward-v1.0",
    device: str | torch.device | None = None,
    download_root: str | os.PathLike[str] | None = None,
    med_config: str | os.PathLike[str] | None = None,
) -> ImageReward:
    """The ImageReward model with the methods of image-reward 1.5.

    ``name`` is a registered name or a path. ``download_root`` is a folder that may hold ``ImageReward.pt`` already; the hub cache is
    searched too. ``med_config``, the JSON file of the text tower, need not be given for the released sizes; one that describes another
    network than the checkpoint is an error.
    """
    if (spec := spec_of(name)) and spec.build is not build_imagereward:  # before it is downloaded
        raise UnknownModelError(f"{name} is not an ImageReward model; load_score() or image_reward.load() loads it")
    paths, shown, registered, build = find(name, download_root)
    if build is not build_imagereward:
        raise UnknownModelError(f"{name} is not an ImageReward model; image_reward.load() loads it")
    if registered is None and med_config is not None and checkpoint_of(paths).suffix in (".pt", ".pth"):  # weights that carry none
        registered = _config(Path(med_config))
    model: ImageReward = build_imagereward(paths, LoadOptions(shown, registered=registered), ImageReward)
    if med_config is not None:
        _check_med_config(Path(med_config), model.config.network)
    return model.to(choose_device(device))


def _check_med_config(path: Path, network: BlipConfig) -> None:
    values = read_json(path)
    whole = isinstance(values, dict) and "network" in values
    described = _config(path).network if whole else text_sizes(values, str(path), network)
    for size, value in vars(described).items():
        if value != getattr(network, size):
            raise CheckpointError(f"{path} says {med_key(size)} = {value}, but the checkpoint's network has {getattr(network, size)}")
