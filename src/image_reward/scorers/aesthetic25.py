"""Aesthetic Predictor V2.5: a head on SigLIP's pooled image features (discus0434 2024): how good an image looks, whatever the prompt.

Its weights are under the AGPL-3.0. They are downloaded and no part of this package, nor is any of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from image_reward.checkpoints import built, load_strictly, read_checkpoint, read_object
from image_reward.config import AESTHETIC_25_NAME, CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME
from image_reward.errors import CheckpointError
from image_reward.images import ImageOptions, ImageTransform
from image_reward.models.heads import LinearHead
from image_reward.models.linear import make_fast
from image_reward.prompts import UnreadPrompts
from image_reward.scorers.two_tower import TwoTowerProcessor, TwoTowerScorer

if TYPE_CHECKING:
    from torch import nn

_TOWER, _LAYERS = "vision_model.", "scoring_head."
_GREY = (0.5, 0.5, 0.5)
"""The mean and standard deviation of pixels that SigLIP was trained with: they become values in [-1, 1]."""
_BICUBIC = 3


class SiglipHead(LinearHead):
    """Five linear layers, as Aesthetic's, with dropout after each but the last."""

    dropouts = (0.5, 0.5, 0.5, 0.2)  # type: ignore[assignment]


class Aesthetic25Scorer(TwoTowerScorer[Tensor]):
    """How good an image looks, trained on ratings from 1 to 10; the author calls 5.5 and more very good. The prompt plays no part."""

    reads_prompt = False
    kept_as = f"{AESTHETIC_25_NAME}, whose licence is the AGPL-3.0, and the files of google/siglip-so400m-patch14-384"

    def __init__(self, network: nn.Module, head: LinearHead, transform: ImageTransform, name: str = "Aesthetic-v2.5") -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.prepare = TwoTowerProcessor(transform, UnreadPrompts())
        self.name = name

    def encode_images(self, pixels: Tensor) -> Tensor:
        """SigLIP's pooled features of length 1, [I, D]."""
        dtype = next(self.network.parameters()).dtype
        pooled: Tensor = self.network(pixel_values=self.prepare.transform.normalize(pixels, dtype)).pooler_output
        return F.normalize(pooled.float(), dim=-1)

    def score_pairs(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - the prompt plays no part
        scores: Tensor = self.head(features)
        return scores.expand(-1, ids.shape[1])

    @property
    def image_tower(self) -> object:
        return self.network

    @property
    def config(self) -> dict[str, Any]:
        """What its rewards depend on besides weights and processor."""
        return {"architecture": "Aesthetic-v2.5"}

    def cast(self, dtype: torch.dtype) -> None:
        """Let the tower compute in ``dtype``; the head stays in float32."""
        self.network.to(dtype)


# --- loading -------------------------------------------------------------------------------------------------------------------------


class Aesthetic25Files(NamedTuple):
    """The files of an Aesthetic Predictor V2.5."""

    head: Path
    """``aesthetic_predictor_v2_5.pth``"""
    config: Path
    weights: Path
    preprocessor: Path
    """The last three are of google/siglip-so400m-patch14-384."""

    @classmethod
    def in_folder(cls, folder: Path) -> Aesthetic25Files:
        """All beside each other. ``aesthetic25_from_files`` says which are missing."""
        return cls(folder / AESTHETIC_25_NAME, folder / CONFIG_NAME, folder / WEIGHTS_NAME, folder / PREPROCESSOR_NAME)


def aesthetic25_from_files(
    files: Aesthetic25Files, *, name: str = "Aesthetic-v2.5", options: ImageOptions | None = None
) -> Aesthetic25Scorer:
    """A scorer from its files. Raises ``CheckpointError`` where one is missing or damaged, or they do not belong together."""
    if not files.head.is_file():
        raise CheckpointError(
            f"{files.head.parent} lacks {files.head.name}: a SigLIP alone is not a scorer here; put the head of Aesthetic Predictor V2.5 "
            "beside it, or load Aesthetic-v2.5 by its name"
        )
    network = empty_siglip(read_object(files.config), files.config)
    transform = _transform(files.preprocessor, network.config.image_size, options or ImageOptions())
    source = f"{files.weights}"
    tensors = read_checkpoint(files.weights)[0]
    # The text tower, and the scale and bias of its products with images, are not read.
    own = {key.removeprefix(_TOWER): tensor for key, tensor in tensors.items() if key.startswith(_TOWER)}
    if not own:
        raise CheckpointError(f"{source} has no image tower ({_TOWER}…): it is not a SigLIP; use google/siglip-so400m-patch14-384")
    load_strictly(network, own, source, f". The sizes are those of {files.config}")
    head = _head(read_checkpoint(files.head)[0], network.config.hidden_size, str(files.head))
    scorer = Aesthetic25Scorer(network, head, transform, name)
    scorer.cast(torch.float32)
    return scorer.eval()


def empty_siglip(values: Mapping[str, Any], source: Path) -> Any:
    """The image tower that a SigLIP's config describes, without storage for its weights."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    vision = values.get("vision_config") if values.get("model_type") == "siglip" else None
    if not isinstance(vision, dict):
        raise CheckpointError(
            f"{source} is of model_type {values.get('model_type')!r:.60}, and Aesthetic-v2.5 is built on 'siglip' with a vision_config; "
            "use that of google/siglip-so400m-patch14-384"
        )
    with torch.device("meta"):
        network = built(lambda: SiglipVisionModel(SiglipVisionConfig(**vision)), source, "SigLIP")
    network = getattr(network, "vision_model", network)  # some versions of transformers have the tower a level deeper
    embeddings = network.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_embedding.num_embeddings, device="cpu")[None]
    make_fast(network)
    return network.eval()


def _head(tensors: Mapping[str, Tensor], width: int, source: str) -> LinearHead:
    with torch.device("meta"):
        head = SiglipHead(width)
    renamed = {f"layers.{name.removeprefix(_LAYERS)}" if name.startswith(_LAYERS) else name: tensor for name, tensor in tensors.items()}
    load_strictly(head, renamed, source, f". It belongs on a SigLIP of width 1152, and this one has {width}" if width != 1152 else "")
    return head.float()


def _transform(file: Path, size: int, options: ImageOptions) -> ImageTransform:
    """What a preprocessor_config.json asks for, which must be what SigLIP's does."""
    asked = read_object(file)
    expected: dict[str, Any] = {
        "size": {"height": size, "width": size},
        "resample": _BICUBIC,
        "image_mean": list(_GREY),
        "image_std": list(_GREY),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
    }
    if wrong := [key for key, value in expected.items() if asked.get(key, value) != value]:
        raise CheckpointError(
            f"{file}: {wrong[0]} is {asked[wrong[0]]!r:.80}, and should be {expected[wrong[0]]!r}; use the file of "
            "google/siglip-so400m-patch14-384"
        )
    return ImageTransform(size, _GREY, _GREY, options, "stretch", "transformers")
