"""CLIP and the scorers that have its shape: its cosine (CLIP, HPSv2), that times a learned scale (PickScore), a head on the image alone."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from image_reward.checkpoints import built, load_strictly, read_checkpoint, read_object, save_folder
from image_reward.config import (
    CARD_NAME,
    CONFIG_NAME,
    HEAD_NAME,
    PREPROCESSOR_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    TransformConfig,
    check_version,
)
from image_reward.errors import CheckpointError, InputError
from image_reward.files import fill
from image_reward.images import Fit, ImageOptions, ImageTransform
from image_reward.models.clip import Activation, clip_config, clip_config_from_json, clip_network, transformers_names
from image_reward.models.heads import LinearHead
from image_reward.prompts import ClipTokenizer, LongPrompts, UnreadPrompts
from image_reward.scorers.two_tower import ContrastiveScorer, TwoTowerProcessor, TwoTowerScorer
from image_reward.types import Convention

if TYPE_CHECKING:
    from transformers import CLIPModel

SETTINGS_KEY = "image_reward"
"""What transformers' config.json carries for us, beside what it has for transformers."""


@dataclass(frozen=True)
class ClipSettings:
    """What a CLIP-shaped score depends on that transformers' format does not say. The defaults are for a folder of that format."""

    architecture: Literal["CLIP", "Aesthetic"] = "CLIP"
    """"CLIP", which reads prompt and image, or "Aesthetic", which has a head on the image."""
    scaled: bool = False
    """Whether the reward is the cosine times exp(logit_scale), as PickScore's, or the cosine alone."""
    convention: Convention = "transformers"
    """Whose program's cleaning of prompts and cropping of images: see ``ClipTokenizer`` and ``ImageTransform.convention``."""
    max_tokens: int = 77
    fit: Fit = "crop"
    """See ``ImageTransform.fit``."""

    def __post_init__(self) -> None:
        if self.max_tokens < 3:
            raise InputError(f"max_tokens counts the two tokens around a prompt and must be at least 3, not {self.max_tokens}")


class _ClipImages(TwoTowerScorer[Tensor]):
    """What scorers with a CLIP have in common. Those with the same network share the image features that they read: [I, D], of length 1."""

    network: CLIPModel

    def encode_images(self, pixels: Tensor) -> Tensor:
        pixels = self.prepare.transform.normalize(pixels, self.network.visual_projection.weight.dtype)
        pooled = self.network.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.network.visual_projection(pooled).float(), dim=-1)

    @property
    def image_tower(self) -> object:
        return self.network

    def cast(self, dtype: torch.dtype) -> None:
        """Let the towers compute in ``dtype``; cosine, scale and head stay in float32."""
        network = self.network
        for part in (network.vision_model, network.text_model, network.visual_projection, network.text_projection):
            part.to(dtype)
        network.logit_scale.data = network.logit_scale.data.float()

    @property
    @abstractmethod
    def settings(self) -> ClipSettings:
        """What is saved beside weights, tokenizer and the pixels' mean and std."""

    @property
    def config(self) -> ClipSettings:
        return self.settings

    def _save(self, folder: Path, heads: dict[str, dict[str, Tensor]], texts: dict[str, str]) -> None:
        transform = self.prepare.transform
        config = json.loads(self.network.config.to_json_string(use_diff=False))
        config |= {"architectures": ["CLIPModel"], SETTINGS_KEY: {"version": 1} | asdict(self.settings)}
        preprocessor = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": transform.size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": transform.size, "width": transform.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(transform.mean),
            "image_std": list(transform.std),
        }
        shown = {CONFIG_NAME: config, PREPROCESSOR_NAME: preprocessor}
        pages = {name: json.dumps(values, indent=2) + "\n" for name, values in shown.items()}
        weights = {WEIGHTS_NAME: self.network.state_dict(), **heads}
        save_folder(folder, weights, pages | {CARD_NAME: self.model_card()} | texts, {"format": "pt"})

    def model_card(self) -> str:
        settings, vision, text = self.settings, self.network.config.vision_config, self.network.config.text_config
        dtype = str(self.network.visual_projection.weight.dtype).removeprefix("torch.")
        reward = "a linear head on the image embedding; the prompt is not read"
        if settings.architecture == "CLIP":
            factor = "exp(logit_scale) * " if settings.scaled else ""
            reward = f"{factor}cosine of the two embeddings; the prompt is cut to {settings.max_tokens} tokens"
        return f"""---
library_name: image-reward
pipeline_tag: image-to-text
tags: [text-to-image, reward-model, clip]
---
# {self.name}

A scorer for text-to-image generation on a CLIP in transformers' format, {dtype}. What transformers' files do not say stands under
`{SETTINGS_KEY}` in `{CONFIG_NAME}`; programs that do not read that key score otherwise.

| | |
|---|---|
| reward | {reward} |
| image tower | {vision.num_hidden_layers} x {vision.hidden_size}, {vision.image_size} px, patches of {vision.patch_size} px |
| text tower | {text.num_hidden_layers} x {text.hidden_size} |
| images | {settings.fit}; images and prompts handled as by {settings.convention} |

```python
import image_reward as ir

scorer = ir.load("path/of/this/folder")
scorer.rank("a prompt", ["one.png", "two.png"])
```
"""


class ClipScorer(_ClipImages, ContrastiveScorer):
    """The cosine of CLIP's embeddings of prompt and image, in [-1, 1]; with ``scaled`` times exp(logit_scale), about 100."""

    def __init__(self, network: CLIPModel, prepare: TwoTowerProcessor, name: str = "CLIP", scaled: bool = False) -> None:
        super().__init__()
        if not isinstance(prepare.tokenizer, ClipTokenizer) or prepare.tokenizer.convention != prepare.transform.convention:
            raise ValueError("a CLIP scorer takes a ClipTokenizer and an ImageTransform of the same convention")
        self.network = network
        self.prepare = prepare
        self.name = name
        self.scaled = scaled

    @property
    def scaled(self) -> bool:
        return self._scaled

    @scaled.setter
    def scaled(self, scaled: bool) -> None:
        self._scaled = scaled
        self.scale = 1.0 if scaled else self.network.logit_scale.detach().float().exp().item()

    def of_cosines(self, cosine: Tensor) -> Tensor:
        return self.network.logit_scale.float().exp() * cosine if self.scaled else cosine

    def encode_prompts(self, ids: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - the tower does not look beyond the end token
        pooled = self.network.text_model(input_ids=ids).pooler_output
        return F.normalize(self.network.text_projection(pooled).float(), dim=-1)

    @property
    def settings(self) -> ClipSettings:
        tokenizer, transform = self.prepare.tokenizer, self.prepare.transform
        assert isinstance(tokenizer, ClipTokenizer)
        return ClipSettings("CLIP", self.scaled, tokenizer.convention, tokenizer.max_tokens, transform.fit)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write transformers' own format: weights, configs and tokenizer. ``clip_from_folder(folder)`` gives this scorer again."""
        assert isinstance(self.prepare.tokenizer, ClipTokenizer)
        self._save(Path(folder), {}, {TOKENIZER_NAME: self.prepare.tokenizer.definition})


class AestheticScorer(_ClipImages):
    """A linear head on CLIP's image embedding of length 1: how well people like an image, whatever the prompt.

    The LAION-Aesthetics predictor (Schuhmann 2022, ``sac+logos+ava1-l14-linearMSE.pth``, trained on ratings from 1 to 10).
    """

    reads_prompt = False

    def __init__(self, network: CLIPModel, head: LinearHead, transform: ImageTransform, name: str = "Aesthetic") -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.prepare = TwoTowerProcessor(transform, UnreadPrompts())
        self.name = name

    @classmethod
    def on(cls, clip: ClipScorer, head: Mapping[str, Tensor], source: str, name: str = "Aesthetic") -> AestheticScorer:
        """A head (tensors ``layers.N.weight`` and ``.bias``) on the network of a CLIP scorer: together they encode each image once."""
        return cls(clip.network, _head(clip.network, head, source), clip.prepare.transform, name).eval()

    def score_pairs(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - the prompt plays no part
        return self.head(features).expand(-1, ids.shape[1])

    @property
    def settings(self) -> ClipSettings:
        return ClipSettings("Aesthetic", convention=self.prepare.transform.convention, fit=self.prepare.transform.fit)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the CLIP in transformers' format, and the head beside it. ``clip_from_folder(folder)`` gives this scorer again."""
        self._save(Path(folder), {HEAD_NAME: self.head.state_dict()}, {})


def _head(network: CLIPModel, tensors: Mapping[str, Tensor], source: str) -> LinearHead:
    with torch.device("meta"):
        head = LinearHead(network.config.projection_dim)
    load_strictly(head, tensors, source)
    return head.float()


# --- loading -------------------------------------------------------------------------------------------------------------------------


def clip_from_state_dict(
    tensors: Mapping[str, Tensor],
    tokenizer_folder: Path,
    settings: ClipSettings,
    source: str,
    *,
    activation: Activation,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    name: str = "CLIP",
    options: ImageOptions | None = None,
    long_prompts: LongPrompts = "truncate",
    dtype: torch.dtype = torch.float32,
) -> ClipScorer:
    """A scorer from tensors under the names of OpenAI or OpenCLIP. Strict: an unknown, missing or misshapen tensor is an error.

    Args:
        tokenizer_folder: holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``; such files carry no tokenizer.
        settings: how the scorer uses its CLIP.
        source: what messages call the tensors.
        activation: "quick_gelu" for OpenAI's, mostly "gelu" for OpenCLIP's.
        vision_heads, text_heads: for sizes that no published CLIP has.
        dtype: of the towers, whatever the tensors have.

    Raises:
        CheckpointError: the tensors are not those of a CLIP, or the tokenizer does not fit it.
    """
    if settings.architecture != "CLIP":
        raise InputError(f"{source}: {settings.architecture} is a head on a CLIP; load that, and use AestheticScorer.on")
    tokenizer = ClipTokenizer.from_folder(tokenizer_folder, settings.max_tokens, long_prompts, settings.convention)
    config = clip_config(tensors, activation, tokenizer.token_id(tokenizer.last), source, vision_heads, text_heads)
    network = clip_network(config)
    load_strictly(network, transformers_names(tensors, source), source)
    size = config.vision_config.image_size
    transform = ImageTransform(size, options=options or ImageOptions(), fit=settings.fit, convention=settings.convention)
    _check_fit(tokenizer, config.text_config, source)
    return _cast(ClipScorer(network, TwoTowerProcessor(transform, tokenizer), name, settings.scaled), dtype)


class ClipFiles(NamedTuple):
    """The files of a CLIP in transformers' format, which may lie in different folders."""

    config: Path
    weights: Path
    preprocessor: Path
    tokenizer: Path
    """``tokenizer.json``; where there is none, ``vocab.json`` and ``merges.txt`` beside it are read."""
    head: Path | None = None
    """Of an ``AestheticScorer``."""

    @classmethod
    def in_folder(cls, folder: Path) -> ClipFiles:
        """Where ``save_pretrained``, or another program, puts them. ``clip_from_files`` says which are missing."""
        weights, pickled = (folder / name for name in (WEIGHTS_NAME, "pytorch_model.bin"))
        weights = pickled if pickled.is_file() and not weights.is_file() else weights
        return cls(folder / CONFIG_NAME, weights, folder / PREPROCESSOR_NAME, folder / TOKENIZER_NAME, folder / HEAD_NAME)


def clip_from_folder(folder: Path, settings: ClipSettings | None = None, **options: Any) -> ClipScorer | AestheticScorer:
    """``clip_from_files`` of the files in one folder, whose name is the scorer's unless another is given."""
    return clip_from_files(ClipFiles.in_folder(folder), settings, **{"name": folder.name} | options)


def clip_from_files(
    files: ClipFiles,
    settings: ClipSettings | None = None,
    *,
    name: str = "CLIP",
    options: ImageOptions | None = None,
    long_prompts: LongPrompts = "truncate",
    dtype: torch.dtype = torch.float32,
    tensors: Mapping[str, Tensor] | None = None,
) -> ClipScorer | AestheticScorer:
    """A scorer from files of transformers' format.

    ``settings`` go before those that ``save_pretrained`` left in the config; one without any is the cosine of a CLIP, its prompts and
    images handled as transformers does. ``dtype`` is the towers', whatever the file has. ``tensors`` are those of the file of weights,
    where it has other names for them. Raises ``CheckpointError``.
    """
    values = read_object(files.config)
    if values.get("model_type") != "clip":
        raise CheckpointError(f"{files.config} is of model_type {values.get('model_type')!r:.60}, and not 'clip'")
    if SETTINGS_KEY in values:
        carried = values.pop(SETTINGS_KEY)
        check_version(carried.pop("version", None) if isinstance(carried, dict) else None, f"{files.config}: {SETTINGS_KEY} has")
        settings = settings or fill(ClipSettings, carried, str(files.config))
    settings = settings or ClipSettings()
    config = built(lambda: clip_config_from_json(values), files.config, "CLIP")
    network = built(lambda: clip_network(config), files.config, "CLIP")
    transform = _transform(files.preprocessor, config.vision_config.image_size, settings, options or ImageOptions())
    if not files.weights.is_file():
        raise CheckpointError(
            f"{files.weights.parent} lacks {WEIGHTS_NAME} and pytorch_model.bin (weights in several files are not read); download it again"
        )
    hint = "" if tensors is None else f". The sizes are those of {files.config}: is it of another base?"
    load_strictly(network, read_checkpoint(files.weights)[0] if tensors is None else tensors, str(files.weights), hint)
    if settings.architecture == "Aesthetic":
        if files.head is None:
            raise CheckpointError(f"{files.config} is of an Aesthetic scorer, which has a head beside its CLIP; give its file too")
        head = _head(network, read_checkpoint(files.head)[0], str(files.head))
        return _cast(AestheticScorer(network, head, transform, name), dtype)
    tokenizer = ClipTokenizer.from_folder(files.tokenizer.parent, settings.max_tokens, long_prompts, settings.convention)
    _check_fit(tokenizer, config.text_config, str(files.config.parent))
    return _cast(ClipScorer(network, TwoTowerProcessor(transform, tokenizer), name, settings.scaled), dtype)


def _cast(scorer: Any, dtype: torch.dtype) -> Any:
    scorer.cast(dtype)
    return scorer.eval()


def _check_fit(tokenizer: ClipTokenizer, text: Any, source: str) -> None:
    """Whether a tokenizer and the text tower with this config speak of the same tokens."""
    end = tokenizer.token_id(tokenizer.last)
    if tokenizer.max_tokens > text.max_position_embeddings:
        raise CheckpointError(f"{source} reads {text.max_position_embeddings} tokens, and not {tokenizer.max_tokens}; lower max_tokens")
    if tokenizer.vocab_size > text.vocab_size:
        raise CheckpointError(
            f"{source} knows {text.vocab_size} tokens, but its tokenizer has {tokenizer.vocab_size}: it belongs to another"
        )
    # With eos_token_id 2, which old configs have by mistake, transformers reads the embedding at the largest id of a prompt.
    if text.eos_token_id != end and not (text.eos_token_id == 2 and end == tokenizer.vocab_size - 1):
        raise CheckpointError(f"{source} reads prompts at token {text.eos_token_id}, but its tokenizer ends them with {end}")


def _transform(file: Path, image_size: int, settings: ClipSettings, options: ImageOptions) -> ImageTransform:
    """What a preprocessor_config.json asks for, which must be what ``ImageTransform`` does; OpenAI's values for what it leaves out."""
    asked = read_object(file)
    size, crop = asked.get("size", image_size), asked.get("crop_size", image_size)
    factor = asked.get("rescale_factor", 1 / 255)
    expected = {
        "do_resize": asked.get("do_resize", True) is True,
        "size": (size.get("shortest_edge") if isinstance(size, dict) else size) == image_size,
        "resample": asked.get("resample", 3) == 3,  # bicubic
        "do_center_crop": asked.get("do_center_crop", True) is True,
        "crop_size": crop in (image_size, {"height": image_size, "width": image_size}),
        "do_rescale": asked.get("do_rescale", True) is True,
        "rescale_factor": isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-6),
        "do_normalize": asked.get("do_normalize", True) is True,
        "do_convert_rgb": asked.get("do_convert_rgb", True) is True,
    }
    if wrong := [key for key, right in expected.items() if not right]:
        raise CheckpointError(
            f"{file}: {wrong[0]} is {asked[wrong[0]]!r}; what is done here is to convert to RGB, resize the shorter side to the network's "
            f"{image_size} px with the bicubic filter (3), crop the centre, scale to [0, 1] and normalise"
        )
    values = {"size": image_size, "mean": asked.get("image_mean", ImageTransform.mean), "std": asked.get("image_std", ImageTransform.std)}
    constants = fill(TransformConfig, {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}, str(file))
    return ImageTransform(constants.size, constants.mean, constants.std, options, settings.fit, settings.convention)
