"""MPS: CLIP-H, and a cross model by which an image is read with a prompt in mind (Zhang et al., CVPR 2024).

The published weights are of the overall preference. Of a prompt's 77 tokens, padding included, the cross model sees those that resemble a
token of a fixed list of aspects, the condition; the score is exp(logit_scale) times the cosine of the prompt and what the image's first
token has become. The original divides resemblances by their largest in the batch, here by the prompt's own, as with one prompt at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from image_reward.checkpoints import load_strictly, read_checkpoint
from image_reward.config import CONFIG_NAME, MPS_NAME, PREPROCESSOR_NAME, TOKENIZER_NAME
from image_reward.errors import CheckpointError
from image_reward.images import ImageOptions
from image_reward.models.linear import make_fast
from image_reward.models.mps import CrossModel
from image_reward.prompts import ClipTokenizer, LongPrompts
from image_reward.scorers.clip import ClipFiles, ClipScorer, ClipSettings, clip_from_files
from image_reward.scorers.two_tower import TwoTowerProcessor, TwoTowerScorer, distinct_prompts

if TYPE_CHECKING:
    from transformers import CLIPModel

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, texture, quantity, "
    "attributes, position, number, location, word, things."
)
"""What the overall preference looks at, as the model was trained with it."""
THRESHOLD = 0.01
"""Of a token's resemblance to the condition, relative to that of the prompt's most similar token: at or below it, it is not seen."""

# Of an image with a prompt: bounds the memory that the cross model takes.
_MOST_PAIRS = 64
_MOST_PROMPTS = 128


class Prompts(NamedTuple):
    """What the text tower makes of prompts: of one list for all images or of one list for each [I or 1, P, ...]."""

    tokens: Tensor
    """[..., L, D]: those that the cross model looks at"""
    seen: Tensor
    """[..., L], bool"""
    ends: Tensor
    """[..., D], float32, of length 1"""


class MPSScorer(TwoTowerScorer[Tensor]):
    """Which image people would prefer for the prompt. The softmax of the scores of several images is the probability of each."""

    network: CLIPModel
    condition: Tensor
    kept_as = f"{MPS_NAME} (or model.safetensors of RE-N-Y/mpsv1 under that name) and the files of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    def __init__(self, network: CLIPModel, cross_model: CrossModel, prepare: TwoTowerProcessor, name: str = "MPS") -> None:
        super().__init__()
        if not isinstance(prepare.tokenizer, ClipTokenizer):
            raise ValueError("MPS takes a ClipTokenizer")
        self.network = network
        self.cross_model = cross_model
        self.prepare = prepare
        self.name = name
        self.num_tokens = prepare.tokenizer.max_tokens
        self.end = prepare.tokenizer.token_id(prepare.tokenizer.last)
        tokens = prepare.tokenizer([CONDITION])
        self.register_buffer("condition", self._padded(tokens.ids, tokens.mask), persistent=False)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Every image token, in CLIP's common space: [I, T, D], the class token first."""
        pixels = self.prepare.transform.normalize(pixels, self.network.visual_projection.weight.dtype)
        projected: Tensor = self.network.visual_projection(self.network.vision_model(pixel_values=pixels).last_hidden_state)
        return projected

    def encode_prompts(self, ids: Tensor, mask: Tensor) -> Prompts:
        """Token ids and mask [N, L] -> what the cross model and the cosine need to know of the prompts [N, ...]."""
        parts = [self._encoded(torch.cat([self.condition, part])) for part in self._padded(ids, mask).split(_MOST_PROMPTS)]
        return Prompts(*(torch.cat(kind) for kind in zip(*parts, strict=True)))

    def _padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """With the end token, to the length that the original always has: padding is read and seen."""
        return F.pad(ids.masked_fill(~mask, self.end), (0, self.num_tokens - ids.shape[1]), value=self.end)

    def _encoded(self, ids: Tensor) -> Prompts:
        """The condition's ids and those of prompts [1 + N, L] -> what is made of the prompts."""
        network = self.network
        read = network.text_model(input_ids=ids)
        tokens: Tensor = network.text_projection(read.last_hidden_state)
        ends = F.normalize(network.text_projection(read.pooler_output[1:]).float(), dim=-1)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            condition, each = tokens[0].float(), tokens[1:].float()
            resemblance = (each @ condition.T).amax(dim=-1)
            seen = resemblance / resemblance.amax(dim=-1, keepdim=True) > THRESHOLD
        return Prompts(tokens[1:], seen, ends)

    def score_pairs(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        each, its_mask, place = distinct_prompts(ids.flatten(0, 1), mask.flatten(0, 1))
        prompts = self.encode_prompts(each, its_mask)
        return self._scored(features, Prompts(*(part[place].unflatten(0, ids.shape[:2]) for part in prompts)))

    def for_prompts(self, ids: Tensor, mask: Tensor) -> Callable[[Tensor, int], Tensor]:
        prompts = Prompts(*(part[None] for part in self.encode_prompts(ids[0], mask[0])))
        return lambda features, _: self._scored(features, prompts)

    def _scored(self, features: Tensor, prompts: Prompts) -> Tensor:
        """Features of images [I, T, D] and prompts [I or 1, P, ...] -> scores [I, P], some pairs at a time."""
        num_images = min(len(features), _MOST_PAIRS)
        num_prompts = max(1, _MOST_PAIRS // max(1, num_images))
        rows = []
        for start in range(0, len(features), num_images):
            images = slice(start, start + num_images)
            own = prompts if len(prompts.ends) == 1 else Prompts(*(part[images] for part in prompts))
            parts = zip(*(part.split(num_prompts, dim=1) for part in own), strict=True)
            rows.append(torch.cat([self._of_pairs(features[images], Prompts(*part)) for part in parts], dim=1))
        return torch.cat(rows)

    def _of_pairs(self, features: Tensor, prompts: Prompts) -> Tensor:
        images = self.cross_model(features, prompts.tokens, prompts.seen)
        # Not a matrix product, which autocast would round.
        cosine = (F.normalize(images.float(), dim=-1) * prompts.ends).sum(dim=-1)
        return self.network.logit_scale.float().exp() * cosine

    @property
    def config(self) -> dict[str, Any]:
        """What its rewards depend on besides weights and processor."""
        return {"architecture": "MPS", "condition": CONDITION, "threshold": THRESHOLD}

    def cast(self, dtype: torch.dtype) -> None:
        """Let towers and cross model compute in ``dtype``; cosine, scale and frequencies of positions stay in float32."""
        network = self.network
        for part in (network.vision_model, network.text_model, network.visual_projection, network.text_projection):
            part.to(dtype)
        network.logit_scale.data = network.logit_scale.data.float()
        for weight in self.cross_model.parameters():
            weight.data = weight.data.to(dtype)


# --- loading -------------------------------------------------------------------------------------------------------------------------


class MPSFiles(NamedTuple):
    """The files of an MPS."""

    weights: Path
    """``model.safetensors`` of RE-N-Y/mpsv1, or ``MPS_overall_checkpoint.pth``, which is a whole module, read as data."""
    config: Path
    preprocessor: Path
    tokenizer: Path
    """The last three are of laion/CLIP-ViT-H-14-laion2B-s32B-b79K."""

    @classmethod
    def in_folder(cls, folder: Path) -> MPSFiles:
        """All beside each other. ``mps_from_files`` says which are missing."""
        return cls(folder / MPS_NAME, folder / CONFIG_NAME, folder / PREPROCESSOR_NAME, folder / TOKENIZER_NAME)


def mps_from_files(
    files: MPSFiles, *, name: str = "MPS", options: ImageOptions | None = None, long_prompts: LongPrompts = "truncate"
) -> MPSScorer:
    """A scorer from its files. Raises ``CheckpointError`` where one is missing or damaged, or they do not belong together."""
    source = str(files.weights)
    own, cross = parts_of(read_checkpoint(files.weights, whole_module=True)[0], source)
    clip = clip_from_files(
        ClipFiles(files.config, files.weights, files.preprocessor, files.tokenizer),
        ClipSettings(),
        options=options,
        long_prompts=long_prompts,
        tensors=own,
    )
    assert isinstance(clip, ClipScorer)
    cross_model = empty_cross_model(clip.network.config.projection_dim, cross)
    load_strictly(cross_model, cross, source, f". The width is that of {files.config}: is it of another base?")
    cross_model.float()
    return MPSScorer(clip.network, cross_model, clip.prepare, name).eval()


_OWN, _CROSS = "model.", "cross_model."


def parts_of(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's tensors, under the names of the original or of imscore -> those of its CLIP and of its cross model."""
    prefix = "mps." if any(name.startswith("mps.") for name in tensors) else ""
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    unknown = []
    for name, tensor in tensors.items():
        plain = name.removeprefix(prefix)
        for part, start in zip(parts, (_OWN, _CROSS), strict=True):
            if plain.startswith(start):
                part[plain.removeprefix(start)] = tensor
        if not plain.startswith((_OWN, _CROSS)):
            unknown.append(name)
    if unknown or not all(parts):
        what = f"unknown is {unknown[0]}" if unknown else "it has no cross model beside a CLIP" if parts[0] else "it has no CLIP"
        raise CheckpointError(f"{source} is not an MPS checkpoint: {what}; use model.safetensors of RE-N-Y/mpsv1, or {MPS_NAME}")
    return parts


def empty_cross_model(width: int, names: Mapping[str, Any]) -> CrossModel:
    """The cross model without storage for its weights, of as many layers as the names have."""
    layers = {int(layer[1]) for layer in map(re.compile(r"layers\.(\d{1,3})\.").match, names) if layer}
    with torch.device("meta"):
        cross_model = CrossModel(width, len(layers))
    make_fast(cross_model)
    return cross_model.eval()
