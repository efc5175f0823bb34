"""Vision-language networks as scorers: a chat template with an image and a prompt in it is read as one sequence.

What Qwen2-VL, Qwen2.5-VL and Qwen3-VL have in common, whatever is made of their output. In the order of use:

- ``ImagePatches``: an image -> RGB pixels of about a number of pixels, its shape kept -> the patches that the network takes;
- ``ChatTemplate``: a prompt -> token ids; prompts that contain markers of the template are refused;
- ``VisionLanguageBatch``, ``VisionLanguageProcessor``: rows of ids, and each distinct image once, as pixels;
- ``empty_network`` and ``load_network``: a network without storage, then filled from its shards, on one device or several;
- ``VisionLanguageScorer``: a batch -> padded ids, image features, embeddings; subclasses say what reward comes of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from image_reward.checkpoints import Piece, load_pieces_strictly
from image_reward.config import WEIGHTS_NAME
from image_reward.downloads import INDEX_SUFFIX, shards_of
from image_reward.errors import CheckpointError, ImageReadError, PromptError
from image_reward.images import ImageLike, ImageOptions, check_pixels, describe, open_image, resize, resize_tensor, unique_images
from image_reward.prompts import check_prompts
from image_reward.scorers.base import Processor, Scorer, prompts_for
from image_reward.scorers.precision import without_torchao_notes
from image_reward.scorers.spec import Devices
from image_reward.types import CLIP_MEAN, CLIP_STD

Network = TypeVar("Network", bound=nn.Module)

# --- images --------------------------------------------------------------------------------------------------------------------------

LONGEST_STRIP = 200
"""Of an image, and of what it is resized to: Qwen's own code refuses longer strips."""


@dataclass(frozen=True)
class ImagePatches:
    """How an image becomes patches: as qwen-vl-utils resizes it, and as transformers' ``Qwen2VLImageProcessor`` cuts it up.

    An image keeps its shape, so images have different numbers of tokens: one for each square of ``merge_size`` by ``merge_size`` patches.
    """

    min_pixels: int
    max_pixels: int
    """Images of fewer or more pixels are enlarged or reduced; equal limits make all images about equally large."""
    patch_size: int = 14
    merge_size: int = 2
    num_frames: int = 2
    """Equal frames in a patch of a still image (``temporal_patch_size``)."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    options: ImageOptions = field(default_factory=ImageOptions)

    @property
    def unit(self) -> int:
        """The side, in pixels, of what becomes one token."""
        return self.patch_size * self.merge_size

    def size(self, width: int, height: int, name: str = "the image") -> tuple[int, int]:
        """The width and height that an image is resized to: multiples of ``unit``. Raises ``ImageReadError`` for long strips."""
        if max(width, height) > LONGEST_STRIP * min(width, height):
            raise ImageReadError(f"{name} is {width} x {height}, a strip of more than {LONGEST_STRIP} to 1, which is not read; crop it")
        # Rounding half to even, and which of floor and ceiling, are those of qwen-vl-utils.
        new = [max(self.unit, round(side / self.unit) * self.unit) for side in (width, height)]
        if math.prod(new) > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            new = [max(self.unit, math.floor(side / shrink / self.unit) * self.unit) for side in (width, height)]
        elif math.prod(new) < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            new = [math.ceil(side * grow / self.unit) * self.unit for side in (width, height)]
        if max(new) > LONGEST_STRIP * min(new):
            raise ImageReadError(
                f"{name} is {width} x {height} and would be read as {new[0]} x {new[1]}, a strip of more than {LONGEST_STRIP} to 1; crop it"
            )
        return new[0], new[1]

    def fit(self, source: ImageLike) -> Tensor:
        """An image -> RGB values [3, H, W], uint8. Raises what ``open_image`` raises, and ``ImageReadError`` for long strips."""
        image = open_image(source, self.options).convert("RGB")
        width, height = self.size(*image.size, describe(source))
        resized = image if image.size == (width, height) else resize(image, width, height)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    def fit_tensor(self, pixels: Tensor) -> Tensor:
        """``fit`` with gradients: floats in [0, 1] [B, 3, H, W] -> [B, 3, H', W'] in [0, 1]. See ``images.resize_tensor``."""
        check_pixels(pixels)
        return resize_tensor(pixels, *self.size(pixels.shape[3], pixels.shape[2], f"pixels of shape {tuple(pixels.shape)}"))

    def grid(self, pixels: Tensor) -> tuple[int, int, int]:
        """The frames, rows and columns of patches of pixels [3, H, W]: what transformers calls ``image_grid_thw``."""
        return 1, pixels.shape[1] // self.patch_size, pixels.shape[2] // self.patch_size

    def num_tokens(self, pixels: Tensor) -> int:
        """The tokens of pixels [3, H, W] in a sequence."""
        return math.prod(self.grid(pixels)) // self.merge_size**2

    def patches(self, pixels: Tensor) -> Tensor:
        """uint8, or floats in [0, 1], [3, H, W] -> normalised patches [T, 3 * frames * patch * patch], float32, differentiable.

        Patches that become one token follow each other, row by row of tokens.
        """
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        mean, std = (torch.tensor(v, dtype=torch.float32, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        patch, merge = self.patch_size, self.merge_size
        rows, columns = pixels.shape[1] // self.unit, pixels.shape[2] // self.unit
        parts = ((pixels - mean) / std).view(3, rows, merge, patch, columns, merge, patch).permute(1, 4, 2, 5, 0, 3, 6)
        return parts.flatten(0, 3)[:, :, None].expand(-1, -1, self.num_frames, -1, -1).flatten(1)


# --- text ----------------------------------------------------------------------------------------------------------------------------

PROMPT = "{prompt}"
"""Where the prompt goes in the text of a template."""


@dataclass(frozen=True)
class ChatTemplate:
    """The text around a prompt, and the tokenizer that reads it: a prompt -> token ids, one image token for each image.

    What a template is made of (``<|im_end|>``, ``<|image_pad|>``, …) are tokens of their own, and a prompt that contains one could end the
    question or add an image. The original programs read it so. Taken as plain text it would get a reward that no original gives; so such
    a prompt is refused.
    """

    text: str
    """With ``PROMPT`` in it, once, and ``image_token`` for each image."""
    definition: str = field(repr=False)
    """The tokenizer as the JSON of the tokenizers library (``tokenizer.json``)."""
    image_token: str = "<|image_pad|>"
    new_tokens: tuple[str, ...] = ()
    """Special tokens that the scorer adds to those of the tokenizer, in this order."""
    most_tokens: int = 32_768
    """Longer texts are refused: what ends a template must not be cut off."""
    last_token: str | None = None
    """The last one that the network needs; what follows it in the text has no effect on it, and is left out."""

    @classmethod
    def from_file(cls, file: Path, text: str, **others: Any) -> ChatTemplate:
        """With the tokenizer of a ``tokenizer.json``. Raises ``CheckpointError`` for an unusable one, or one that lacks a token."""
        if not file.is_file():
            raise CheckpointError(f"{file.parent} lacks {file.name}; download it again")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            raise CheckpointError(f"the tokenizer {file} cannot be read: {error}; download it again") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        template = cls(text, tokenizer.to_str(), **others)
        template.check_tokens(str(file))
        return template

    def check_tokens(self, source: str) -> None:
        """Raise ``CheckpointError`` if the tokenizer does not know a marker of the template as one token."""
        markers = [part.split("|>")[0] for part in self.text.split("<|")[1:] if "|>" in part]
        needed = dict.fromkeys([*(f"<|{marker}|>" for marker in markers), self.image_token])
        if missing := [token for token in needed if token not in self.markers]:
            raise CheckpointError(
                f"{source} is not the tokenizer of this model: it has no special token {missing[0]}; use the base model's tokenizer.json"
            )

    def check_image_token(self, tokenizer: Path, number: int, config: Path) -> None:
        """Raise ``CheckpointError`` unless the image token of the tokenizer, read from a file, has the ``number`` that a config says."""
        if (own := self.token_id(self.image_token)) != number:
            raise CheckpointError(
                f"{tokenizer} gives {self.image_token} the number {own}, and {config} {number}: they are of different models"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        return _tokenizer(self.definition, self.new_tokens)

    @property
    def markers(self) -> tuple[str, ...]:
        """All added tokens of the tokenizer, special ones among them: none of them may be in a prompt."""
        return _markers(self.definition, self.new_tokens)

    def _marker_in(self, prompt: str) -> str | None:
        """A marker that the tokenizer reads in a prompt, as it is written or once it is normalised.

        T5's tokenizer finds its ``</s>`` in "＜/s＞" as well, since it splits normalised text (NFKC, without control characters) into all
        pieces of its vocabulary.
        """
        normalizer = self.tokenizer.normalizer
        texts = (prompt, normalizer.normalize_str(prompt)) if normalizer else (prompt,)
        return next((marker for marker in self.markers if any(marker in text for text in texts)), None)

    def token_id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        assert number is not None, token
        return number

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def of(self, prompt: str) -> str:
        """The whole text for a prompt."""
        before, _, after = self.text.partition(PROMPT)
        return before + prompt + after

    def check(self, prompts: Sequence[str]) -> None:
        """Raise ``PromptError`` for what is not text, contains a marker, or makes the text longer than ``most_tokens``."""
        self(prompts)

    def __call__(self, prompts: Sequence[str]) -> list[list[int]]:
        """The ids of each prompt's text. Raises what ``check`` does."""
        check_prompts(prompts)
        distinct = list(dict.fromkeys(prompts))
        for prompt in distinct:
            if marker := self._marker_in(prompt):
                raise PromptError(
                    f"the prompt {prompt[:60]!r} contains {marker}, which the model reads as a part of its template and not as text, so "
                    "its reward would mean nothing; remove it from the prompt"
                )
        rows = {}
        end = self.token_id(self.last_token) if self.last_token else None
        encodings = self.tokenizer.encode_batch([self.of(prompt) for prompt in distinct], add_special_tokens=False)
        for prompt, encoding in zip(distinct, encodings, strict=True):
            ids = encoding.ids if end is None else encoding.ids[: encoding.ids.index(end) + 1]
            if len(ids) > self.most_tokens:
                raise PromptError(
                    f"the prompt {prompt[:60]!r}… makes a text of {len(ids):,} tokens, and the model reads {self.most_tokens:,}; shorten it"
                )
            rows[prompt] = ids
        return [rows[prompt] for prompt in prompts]


@lru_cache(maxsize=8)
def _tokenizer(definition: str, new_tokens: tuple[str, ...]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.add_special_tokens(list(new_tokens))
    return tokenizer


@lru_cache(maxsize=8)
def _markers(definition: str, new_tokens: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(token.content for token in _tokenizer(definition, new_tokens).get_added_tokens_decoder().values())


# --- batches -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VisionLanguageBatch:
    """Rows as sequences of their own lengths, and each distinct image once. Row ``n`` shows ``images[n]`` at its image tokens, in order."""

    ids: tuple[Tensor, ...]
    """Of each row [L], int64: an image has as many image tokens as it has tokens"""
    pixels: tuple[Tensor, ...]
    """Of each image [3, H, W]: uint8, or floats in [0, 1] for gradients"""
    images: tuple[tuple[int, ...], ...]
    """Of each row: mostly one image; several where they are compared in one question."""
    digests: tuple[bytes, ...] = ()
    """Of the pixels of each image; none for a batch of tensors that were never files."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> VisionLanguageBatch:
        """The same batch with its tensors on a device."""
        ids, pixels = (tuple(tensor.to(device) for tensor in tensors) for tensors in (self.ids, self.pixels))
        return replace(self, ids=ids, pixels=pixels)

    def select(self, rows: Sequence[int]) -> VisionLanguageBatch:
        """These rows, in this order, and the images that they need."""
        place: dict[int, int] = {}
        images = tuple(tuple(place.setdefault(image, len(place)) for image in self.images[row]) for row in rows)
        digests = tuple(self.digests[image] for image in place) if self.digests else ()
        return VisionLanguageBatch(tuple(self.ids[row] for row in rows), tuple(self.pixels[image] for image in place), images, digests)

    def join(self, others: Sequence[VisionLanguageBatch]) -> VisionLanguageBatch:
        """The rows of this batch and then those of others from the same processor; images of equal digests become one."""
        ids: list[Tensor] = []
        images: list[tuple[int, ...]] = []
        pixels: dict[Hashable, Tensor] = {}
        for number, part in enumerate((self, *others)):
            keys = part.digests or [(number, image) for image in range(len(part.pixels))]
            for key, image in zip(keys, part.pixels, strict=True):
                pixels.setdefault(key, image)
            place = {key: index for index, key in enumerate(pixels)}
            ids += part.ids
            images += [tuple(place[keys[image]] for image in row) for row in part.images]
        digests = tuple(key for key in pixels if isinstance(key, bytes))
        known = digests if len(digests) == len(pixels) else ()
        return VisionLanguageBatch(tuple(ids), tuple(pixels.values()), tuple(images), known)

    def keys(self) -> list[Hashable]:
        """Of each row: equal for rows of equal tokens and equal pixels."""
        names: Sequence[Hashable] = self.digests or range(len(self.pixels))
        return [
            (ids.cpu().numpy().tobytes(), *(names[image] for image in images)) for ids, images in zip(self.ids, self.images, strict=True)
        ]


@dataclass
class VisionLanguageProcessor(Processor[VisionLanguageBatch]):
    """Prompts and images -> ``VisionLanguageBatch``. The same path, bytes or object is opened once, and equal pixels are one image."""

    patches: ImagePatches
    template: ChatTemplate

    @property
    def options(self) -> ImageOptions:
        """How strictly images are opened."""
        return self.patches.options

    def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> VisionLanguageBatch:
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts and {len(images)} images: aligned lists must have the same length")
        return self.of_rows(self.template(prompts), [[image] for image in images])

    def check(self, prompts: Sequence[str]) -> None:
        self.template.check(prompts)

    def of_rows(self, rows: Sequence[Sequence[int]], images: Sequence[Sequence[ImageLike]]) -> VisionLanguageBatch:
        """Token ids with one image token for each image, and the images of each row -> a batch."""
        opened, index = unique_images([image for row in images for image in row])
        pixels: dict[bytes, Tensor] = {}
        digests = []
        for image in opened:
            fitted = self.patches.fit(image)
            digest = hashlib.blake2b(fitted.numpy().data, digest_size=16)
            digest.update(repr(tuple(fitted.shape)).encode())
            digests.append(digest.digest())
            pixels.setdefault(digests[-1], fitted)
        place = {key: number for number, key in enumerate(pixels)}
        shown = iter(place[digests[image]] for image in index)
        return self._batch(rows, list(pixels.values()), [tuple(next(shown) for _ in row) for row in images], tuple(pixels))

    def of_tensors(self, prompts: Sequence[str], pixels: Tensor) -> VisionLanguageBatch:
        """Prompts and floats in [0, 1] [B, 3, H, W] -> a batch that carries gradients to them."""
        fitted = list(self.patches.fit_tensor(pixels))
        return self._batch(self.template(prompts), fitted, [(image,) for image in range(len(fitted))], ())

    def _batch(
        self, rows: Sequence[Sequence[int]], pixels: Sequence[Tensor], images: Sequence[tuple[int, ...]], digests: tuple[bytes, ...]
    ) -> VisionLanguageBatch:
        token = self.template.token_id(self.template.image_token)
        ids = []
        for row, shown in zip(rows, images, strict=True):
            nums = [self.patches.num_tokens(pixels[image]) if pixels else 0 for image in shown]
            counts = iter(nums)
            expanded = [number for own in row for number in ([token] * next(counts) if own == token else [own])]
            ids.append(torch.tensor(expanded, dtype=torch.int64, device="cpu"))
        return VisionLanguageBatch(tuple(ids), tuple(pixels), tuple(images), digests)


# --- networks ------------------------------------------------------------------------------------------------------------------------


def empty_network(make: Callable[[], Network]) -> Network:
    """A network of transformers whose weights have no storage yet; what no file contains (the frequencies of rotary positions) has.

    Those stay in float32 whatever the weights are cast to, as transformers keeps them.
    """
    with torch.device("meta"), without_torchao_notes():
        network = make()
    for name, module in list(network.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            if not hasattr(module, "config"):
                raise TypeError(f"{name} ({type(module).__name__}) has values that no file contains, and no config to make them again from")
            with torch.device("cpu"):
                network.set_submodule(name, type(module)(module.config))
    return network.eval().requires_grad_(False)


def check_not_quantized(values: Mapping[str, Any], file: Path) -> None:
    """Raise ``CheckpointError`` for the config of a checkpoint whose weights are integers or 8-bit floats, read from ``file``."""
    if asked := values.get("quantization_config"):
        method = asked.get("quant_method") if isinstance(asked, dict) else asked
        raise CheckpointError(
            f"{file} is of quantized weights (quantization_config, {method!r:.40}), which are not read; use the checkpoint in bfloat16 "
            "that they were made from"
        )


_MROPE_SECTION = [16, 24, 24]
"""Transformers' for a config without one; for Qwen3-VL another of the same sum."""


def longest_text(config: Any, file: Path, for_image: int) -> int:
    """The tokens of a text, one for its image, that the language model of a Qwen's ``config`` reads. ``for_image``: an image's at most.

    Raises ``CheckpointError`` for a config, read from ``file``, whose positions leave no room, or do not fit its attention heads.
    """
    text = config.text_config
    longest: int = text.max_position_embeddings - for_image
    if longest < 1:
        raise CheckpointError(
            f"{file}: max_position_embeddings is {text.max_position_embeddings:,}, and images and answer alone may have "
            f"{for_image:,} tokens; use the base model's config.json"
        )
    half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
    sections = (text.rope_parameters or {}).get("mrope_section", _MROPE_SECTION)
    if not isinstance(sections, list) or not all(isinstance(part, int) for part in sections) or sum(sections) != half:
        raise CheckpointError(
            f"{file}: mrope_section is {sections!r:.60}, which does not add up to {half}, half the width of an attention head; "
            "use the base model's config.json"
        )
    return longest


def load_network(
    network: nn.Module,
    pieces: Mapping[str, Piece],
    source: str,
    *,
    dtype: torch.dtype,
    devices: Devices = None,
    float32: Iterable[str] = (),
    hint: str = "",
) -> None:
    """Fill an ``empty_network`` from its files, strictly, in ``dtype``, where its parts are to be.

    Args:
        pieces: what the files hold, by the network's names: ``checkpoints.pieces_of``, renamed.
        source: what messages call the files.
        devices: one device (the CPU by default), or "auto": over all CUDA devices, and what does not fit there on the CPU.
        float32: beginnings of the names of what stays in float32, whatever ``dtype`` is.
    """
    kept = tuple(float32)
    places = spread(network, dtype) if devices == "auto" else {"": devices or torch.device("cpu")}

    def device_of(name: str) -> torch.device:
        return places[max((unit for unit in places if name == unit or name.startswith(unit + ".") or not unit), key=len)]

    load_pieces_strictly(
        network,
        pieces,
        source,
        dtype_of=lambda name: torch.float32 if name.startswith(kept) and kept else dtype,
        device_of=device_of,
        hint=hint,
    )
    if devices == "auto":
        for name, device in buffer_places(network, places).items():
            module, _, leaf = name.rpartition(".")
            owner = network.get_submodule(module)
            setattr(owner, leaf, getattr(owner, leaf).to(device))
        move_inputs(network, places)
    elif devices is not None:
        network.to(devices)  # the buffers


def units_of(network: nn.Module) -> dict[str, int]:
    """The parts of a network that stay on one device, by name, in the order of their use, and the number of weights of each.

    Those are the blocks that transformers must not split, and what is outside of blocks.
    """
    whole = {kind for module in network.modules() for kind in getattr(module, "_no_split_modules", None) or ()}
    units: dict[str, int] = {}
    covered: list[str] = []
    for name, module in network.named_modules():
        if any(name.startswith(f"{unit}.") for unit in covered):
            continue
        if type(module).__name__ in whole:
            covered.append(name)
            units[name] = sum(weight.numel() for weight in module.parameters())
        elif own := sum(weight.numel() for weight in module.parameters(recurse=False)):
            units[name] = own
    return units


_LEFT_FREE = 0.2
"""Of a device's free memory, for what is computed there."""


def spread(network: nn.Module, dtype: torch.dtype, free: Mapping[torch.device, int] | None = None) -> dict[str, torch.device]:
    """A device for each of ``units_of(network)``, in order: each is filled before the next begins, and the CPU takes what is left.

    ``free``: bytes of each device; by default those of all CUDA devices that are free now.
    """
    if free is None:
        free = {
            torch.device("cuda", index): int((1 - _LEFT_FREE) * torch.cuda.mem_get_info(index)[0])
            for index in range(torch.cuda.device_count())
        }
    left = list(free.items())
    places: dict[str, torch.device] = {}
    for unit, num_weights in units_of(network).items():
        size = num_weights * dtype.itemsize
        while left and left[0][1] < size:
            left.pop(0)
        places[unit] = left[0][0] if left else torch.device("cpu")
        if left:
            left[0] = (left[0][0], left[0][1] - size)
    return places


def buffer_places(network: nn.Module, places: Mapping[str, torch.device]) -> dict[str, torch.device]:
    """A device for each buffer: that of the part it is in, or else of the first part beside it, which it is likely computed with."""
    devices: dict[str, torch.device] = {}
    for name, _ in network.named_buffers():
        around = [unit for unit in places if name.startswith(f"{unit}.")]
        parent = name
        while not around:
            parent = parent.rpartition(".")[0]
            around = [unit for unit in places if unit.startswith(f"{parent}.") or not parent]
        devices[name] = places[around[0]]
    return devices


def move_inputs(network: nn.Module, places: Mapping[str, torch.device]) -> None:
    """Let each part of a network that is spread over devices take its inputs to its own before it computes."""

    def hook(device: torch.device) -> Callable[..., Any]:
        def move(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return _moved(args, device), _moved(kwargs, device)

        return move

    for unit, device in places.items():
        network.get_submodule(unit).register_forward_pre_hook(hook(device), with_kwargs=True)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (list, tuple):
        return type(value)(_moved(part, device) for part in value)
    if type(value) is dict:
        return {key: _moved(part, device) for key, part in value.items()}
    return value


def read_shards(folder: Path, names: Sequence[str] = (WEIGHTS_NAME,)) -> list[Path]:
    """The weights in a folder of transformers' format: one file of these names, or those that an index names, as ``NAME.index.json``."""
    if whole := next((folder / name for name in names if (folder / name).is_file()), None):
        return [whole]
    indices = [f"{name}{INDEX_SUFFIX}" for name in names]
    index = next((folder / name for name in indices if (folder / name).is_file()), None)
    if index is None:
        raise CheckpointError(f"{folder} lacks {' and '.join(names)}, and {' and '.join(indices)}; download it again")
    return [folder / name for name in shards_of(index)]


# --- scorers -------------------------------------------------------------------------------------------------------------------------


class Padded(NamedTuple):
    """The sequences of a batch as one tensor."""

    ids: Tensor
    """[N, L], int64"""
    mask: Tensor
    """[N, L], bool: False for padding"""


class VisionLanguageScorer(Scorer[VisionLanguageBatch]):
    """A kind of scorer says what reward comes of a batch (``forward``); this holds what a batch is for the network."""

    prepare: VisionLanguageProcessor
    network: nn.Module

    def padded(self, batch: VisionLanguageBatch, side: Literal["left", "right"] = "right") -> Padded:
        """Token ids, filled up with zeros at one side: at the right to be read, at the left to be continued."""
        lengths = torch.tensor([len(row) for row in batch.ids], device=self.device)
        ids = nn.utils.rnn.pad_sequence([row.to(self.device) for row in batch.ids], batch_first=True, padding_side=side)
        place = torch.arange(ids.shape[1], device=self.device)
        mask = place < lengths[:, None] if side == "right" else place >= ids.shape[1] - lengths[:, None]
        return Padded(ids, mask)

    def vision_inputs(self, batch: VisionLanguageBatch) -> tuple[Tensor, Tensor]:
        """The patches of all distinct images [T, D], one image after the other, and their grids [I, 3]."""
        patches = self.prepare.patches
        grids = torch.tensor([patches.grid(image) for image in batch.pixels], dtype=torch.int64, device=self.device)
        return torch.cat([patches.patches(image.to(self.device)) for image in batch.pixels]), grids

    def chat_inputs(self, batch: VisionLanguageBatch, side: Literal["left", "right"] = "right") -> dict[str, Tensor]:
        """What transformers' networks take, by the names of their arguments, with the 3-D positions of images that they make of it.

        An image that several rows show is encoded once for each, because transformers wants it so.
        """
        ids, mask = self.padded(batch, side)
        every = replace(batch, pixels=tuple(batch.pixels[image] for row in batch.images for image in row))
        patches, grids = self.vision_inputs(every)
        kinds = (ids == self.prepare.template.token_id(self.prepare.template.image_token)).int()
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": patches, "image_grid_thw": grids}
        return inputs | {"mm_token_type_ids": kinds}

    def features(self, batch: VisionLanguageBatch, visual: nn.Module) -> list[Tensor]:
        """What the image tower makes of all distinct images, one after the other: their tokens [T, D], and with DeepStack (Qwen3-VL) what
        each of the text model's first layers is to add to them [T, D].
        """
        patches, grids = self.vision_inputs(batch)
        read = visual(patches, grid_thw=grids)
        return [read.pooler_output, *(getattr(read, "deepstack_features", None) or ())]

    def image_rows(self, batch: VisionLanguageBatch, ids: Tensor) -> Tensor:
        """The row of ``features`` that each token of padded ids [N, L] shows, int64; -1 for text."""
        starts = [0]
        for image in batch.pixels:
            starts.append(starts[-1] + self.prepare.patches.num_tokens(image))
        shown = [torch.arange(starts[image], starts[image + 1], device=ids.device) for row in batch.images for image in row]
        places = ids == self.prepare.template.token_id(self.prepare.template.image_token)
        return torch.full_like(ids, -1).masked_scatter(places, torch.cat(shown))

    def positions(self, batch: VisionLanguageBatch, ids: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - for networks with others
        """Of padded ids [N, L], int64 [3, N, L]: time, row and column. By default 0, 1, 2, … for all, as if there were no images."""
        return torch.arange(ids.shape[1], device=ids.device).expand(3, len(ids), -1)

    def last_states(self, batch: VisionLanguageBatch, visual: nn.Module, text: nn.Module, num_last: int = 1) -> Tensor:
        """The text model's states [N, num_last, D] at the last tokens of each row, differentiable.

        A distinct image passes the image tower once. Rows of one image begin alike: with the image and whatever comes before the prompt.
        Where several rows of the batch do, that beginning is computed once, and each row goes on from there.
        """
        ids, mask = self.padded(batch)
        features, *deeper = self.features(batch, visual)
        shown = self.image_rows(batch, ids)
        embeddings = text.get_submodule("embed_tokens")(ids)
        device = embeddings.device
        shown, mask, positions = shown.to(device), mask.to(device), self.positions(batch, ids, mask).to(device)
        embeddings = embeddings.masked_scatter((shown >= 0)[..., None], features.to(embeddings)[shown[shown >= 0]])

        def read(rows: Tensor, places: Tensor, **options: Any) -> Any:
            """The text model's output for these places [R, P] of rows [R, 1]. Padding is at the right, where it is seen by nothing before
            it: without a mask, attention is computed faster.
            """
            images = shown[rows, places]
            if deeper and bool((images >= 0).any()):
                added = [layer.to(device)[images[images >= 0]] for layer in deeper]
                options |= {"visual_pos_masks": images >= 0, "deepstack_visual_embeds": added}
            return text(inputs_embeds=embeddings[rows, places], position_ids=positions[:, rows, places], **options)

        lengths = mask.sum(dim=1)
        rows = torch.arange(len(batch), device=device)[:, None]
        ends = torch.arange(-num_last, 0, device=device)
        first, group, shared = (numbers.to(device) for numbers in _common_beginnings(batch, num_last))
        if len(first) == len(batch) or getattr(text, "has_sliding_layers", False):
            whole = read(rows, torch.arange(ids.shape[1], device=device)[None], use_cache=False)
            return _taken(whole.last_hidden_state, lengths[:, None] + ends)
        begins = torch.arange(int(shared.max()), device=device) < shared[:, None]
        begun = read(first[:, None], torch.arange(begins.shape[1], device=device)[None], use_cache=True).past_key_values
        begun.reorder_cache(group)  # a copy for each row
        left = lengths - shared[group]
        place = torch.arange(int(left.max()), device=device)
        own = (shared[group][:, None] + place).clamp(max=ids.shape[1] - 1)
        seen = torch.cat([begins[group], place < left[:, None]], dim=1).long()
        rest = read(rows, own, attention_mask=seen, past_key_values=begun, use_cache=True)
        return _taken(rest.last_hidden_state, left[:, None] + ends)

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in ``dtype``. The frequencies of rotary positions stay in float32."""
        cast_weights(self.network, dtype)

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
        """Rewards [B] of images as float tensors [B, 3, H, W] in [0, 1], with gradients to the pixels.

        One prompt serves all images; a list is aligned with them. See ``images.resize_tensor`` for how this relates to files.
        """
        aligned = prompts_for(pixels, prompts)
        return self(self.prepare.of_tensors(aligned, pixels.to(self.device)))


def _taken(states: Tensor, places: Tensor) -> Tensor:
    """States [N, L, D] -> [N, A, D], of places [N, A] of each row."""
    rows = torch.arange(len(states), device=states.device)
    return states[rows[:, None], places.to(states.device)]


def _common_beginnings(batch: VisionLanguageBatch, num_own: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with the same images: the first of each group [G], the group of each row [N], the tokens that a group's rows share [G].

    Every row keeps ``num_own`` tokens of its own.
    """
    place: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    shared: list[int] = []
    group: list[int] = []
    for row, (ids, images) in enumerate(zip(batch.ids, batch.images, strict=True)):
        number = place.setdefault(images, len(place))
        group.append(number)
        if number == len(first):
            first.append(row)
            shared.append(len(ids) - num_own)
            continue
        length = min(shared[number], len(ids) - num_own)
        differ = (batch.ids[first[number]][:length] != ids[:length]).nonzero()
        shared[number] = int(differ[0]) if len(differ) else length
    made = (torch.tensor(numbers, dtype=torch.int64, device="cpu") for numbers in (first, group, shared))
    return next(made), next(made), next(made)


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters alone: buffers hold positions, which half types would round."""
    for weight in network.parameters():
        weight.data = weight.data.to(dtype)
