"""Anything image-like -> RGB -> pixels, by one transform, and the same transform for tensors that need gradients.

The transform is CLIP's and BLIP's: the shorter side is resized to S with Pillow's bicubic filter, the centre S x S is cut out, colours
become RGB in [0, 1] and are normalised per channel. As in the original, resizing comes before the conversion to RGB: transparent
images are resized with premultiplied alpha and then lose it.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from image_reward.errors import ImageReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ImageLike = Union[str, os.PathLike[str], bytes, Image.Image, "NDArray[Any]", Tensor, Callable[[], Any]]

# Pillow resizes only the mode's own channels in these; the others are converted first (see `_resizable`).
_RESIZED_AS_THEY_ARE = {"RGB", "L", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"}
_pillow_globals = threading.RLock()
_LONGEST_RESIZED_WHOLE = 8192  # px; longer strips are resized only where the centre crop will look


@dataclass(frozen=True)
class ImageOptions:
    """How strictly images are opened."""

    orient: bool = False
    """Apply the EXIF orientation. The original ignores it, and so do published scores."""
    allow_truncated: bool = False
    """Accept a file whose end is missing; the missing part is grey or black."""
    max_pixels: int | None = 178_956_970
    """Refuse images with more pixels (a decompression bomb fills the memory); None accepts any size."""
    min_side: int = 2
    """Refuse images with a shorter side, such as 1 x 1 tracking pixels: there is nothing in them to judge."""


def describe(source: object) -> str:
    """A short name of an image for messages.

    >>> describe("cat.png"), describe(b"abc")
    ('cat.png', '<3 bytes>')
    """
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or f"<PIL image {source.mode} {source.width}x{source.height}>")
    if isinstance(source, np.ndarray | Tensor):
        return f"<{type(source).__name__} {source.dtype} {tuple(source.shape)}>"
    return f"<{type(source).__name__}>"


# --- opening -----------------------------------------------------------------------------------------------------------------------


def open_image(source: ImageLike, options: ImageOptions | None = None) -> Image.Image:
    """Open, check and decode an image; the result is fully in memory and in a mode that can be resized.

    ``source``: a path; the bytes of an image file; a PIL image; a numpy array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; a torch tensor
    [H, W], [1, H, W], [3, H, W] or [4, H, W]; or a function of no arguments that returns one of these. Arrays and tensors hold uint8, or
    floats in [0, 1].

    Animated images give their first frame. 16-bit greyscale keeps its upper 8 bits. Palettes are resolved before resizing (the original
    resizes the indices with the nearest-neighbour filter).

    Raises ``FileNotFoundError``, or ``ImageReadError`` that names the image and says what is wrong with it.
    """
    options = options or ImageOptions()
    if callable(source):
        source = source()
    name = describe(source)
    if isinstance(source, np.ndarray):
        image = _from_array(source, name)
    elif isinstance(source, Tensor):
        image = _from_tensor(source, name)
    elif isinstance(source, Image.Image):
        image = source
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"no such image: {name}")
        if path.is_dir():
            raise ImageReadError(f"{name} is a folder; give the image files in it")
        image = _open_lazily(path, name)
    elif isinstance(source, bytes):
        image = _open_lazily(io.BytesIO(source), name)
    else:
        raise ImageReadError(f"an image is a path, bytes, a PIL image, a numpy array or a torch tensor, not {type(source).__name__}")
    _check_size(image, name, options)
    with _readable(name), _truncated_files_allowed(options.allow_truncated):
        image.load()
        if options.orient:
            image = ImageOps.exif_transpose(image)
        return _resizable(image, name)


def _open_lazily(file: Path | io.BytesIO, name: str) -> Image.Image:
    """Read the header only. Pillow's own size limit is a global that cannot be raised per call, so it stands aside for ``max_pixels``."""
    with _readable(name), _pillow_globals:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what Pillow raises on damaged files, which can be nearly anything, into one error that names the file."""
    try:
        yield
    except (ImageReadError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageReadError(f"{name} is not an image that Pillow can read (its content, not its name, decides)") from None
    except PermissionError as error:
        raise ImageReadError(f"{name} may not be read: {error.strerror}") from None
    except Exception as error:
        hint = "; pass allow_truncated=True to accept it as it is" if "truncated" in str(error).lower() else ""
        raise ImageReadError(f"{name} is damaged: {error or type(error).__name__}{hint}") from error


@contextmanager
def _truncated_files_allowed(allowed: bool) -> Iterator[None]:
    """Pillow knows only a global for this; threads that agree with it, nearly always all of them, need not wait for each other."""
    if allowed == ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _pillow_globals:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, allowed
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check_size(image: Image.Image, name: str, options: ImageOptions) -> None:
    width, height = image.size
    if options.max_pixels is not None and width * height > options.max_pixels:
        raise ImageReadError(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than the limit of {options.max_pixels:,}; "
            "raise max_pixels if you trust it"
        )
    if min(width, height) < max(options.min_side, 1):
        raise ImageReadError(
            f"{name} is {width} x {height} pixels; the shorter side must have at least {max(options.min_side, 1)}"
            + ("" if min(width, height) == 0 else " (lower min_side to score it anyway)")
        )


def _resizable(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _RESIZED_AS_THEY_ARE:
        return image
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageReadError(
                f"{name} holds integers from {values.min()} to {values.max()}, not 16-bit greys; save it with 8 bits a channel"
            )
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ImageReadError(f"{name} holds floats of unknown range; pass a numpy array scaled to [0, 1], or save it with 8 bits a channel")
    return image.convert("RGB")


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise ImageReadError(
            f"{name}: a numpy image is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; transpose it, or give one image at a time"
        )
    if array.size and np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
        _check_unit_range(bool(np.isfinite(array).all()), float(np.nanmin(array)), float(np.nanmax(array)), name)
        array = (array * 255.0).round().astype(np.uint8)
    elif array.dtype != np.uint8 and array.size:
        raise ImageReadError(f"{name}: values must be uint8, or floats in [0, 1]")
    if 0 in array.shape:
        raise ImageReadError(f"{name} has no pixels")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_tensor(tensor: Tensor, name: str) -> Image.Image:
    if (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)) or tensor.ndim not in (2, 3):
        raise ImageReadError(
            f"{name}: a tensor image is [H, W], [1, H, W], [3, H, W] or [4, H, W]; permute it, or give one image at a time"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    if tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    return _from_array(tensor.numpy(), name)


def _check_unit_range(finite: bool, low: float, high: float, name: str) -> None:
    if not finite:
        raise ImageReadError(f"{name} holds NaN or infinite values")
    if low < -1e-3 or high > 1 + 1e-3:  # the slack is for what half precision rounds to
        raise ImageReadError(
            f"{name} holds values from {low:.4g} to {high:.4g}; floats must be in [0, 1] (divide by 255, or undo a normalisation)"
        )


# --- the transform -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageTransform:
    """Resize the shorter side, crop the centre, normalise: what a scorer does to every image.

    Constants are OpenAI CLIP's, which BLIP and ImageReward share.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    options: ImageOptions = field(default_factory=ImageOptions)

    def crop(self, source: ImageLike) -> Tensor:
        """An image -> RGB values [3, size, size], uint8: all that the network will see of it."""
        image = open_image(source, self.options)
        rgb = _resize_and_crop(image, self.size).convert("RGB")
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()

    def normalize(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 in [0, 255], or floats in [0, 1], [..., 3, H, W] -> normalised pixels of the same shape."""
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).to(dtype)

    def __call__(self, source: ImageLike) -> Tensor:
        """An image -> normalised pixels [3, size, size], float32."""
        return self.normalize(self.crop(source))

    def crop_tensor(self, pixels: Tensor) -> Tensor:
        """The transform for tensors, with gradients: floats in [0, 1] [B, 3, H, W] -> [B, 3, size, size] in [0, 1].

        Within 2/255 of the Pillow path, and not equal to it, because Pillow rounds to 8 bits after each of its two passes, which has no
        gradient. The two passes and the clipping after each are the same.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise ImageReadError(f"pixels must be floats of shape [B, 3, H, W], not {pixels.dtype} {tuple(pixels.shape)}")
        if 0 in pixels.shape[2:]:
            raise ImageReadError(f"pixels of shape {tuple(pixels.shape)} hold no image")
        if pixels.numel():
            values = pixels.detach()
            _check_unit_range(bool(values.isfinite().all()), float(values.min()), float(values.max()), "pixels")
        height, width = pixels.shape[2:]
        new_width, new_height = _resized(width, height, self.size)
        pixels = pixels.float()
        if new_width != width:
            pixels = F.interpolate(pixels, (height, new_width), mode="bicubic", antialias=True).clamp(0, 1)
        if new_height != height:
            pixels = F.interpolate(pixels, (new_height, new_width), mode="bicubic", antialias=True).clamp(0, 1)
        left, top = _centre(new_width, self.size), _centre(new_height, self.size)
        return pixels[:, :, top : top + self.size, left : left + self.size]


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    """The shorter side becomes ``size``; the longer is truncated to an integer, as torchvision does."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _centre(side: int, size: int) -> int:
    return round((side - size) / 2)  # half to even, as torchvision does


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    new_width, new_height = _resized(width, height, size)
    left, top = _centre(new_width, size), _centre(new_height, size)
    if max(new_width, new_height) > _LONGEST_RESIZED_WHOLE:
        x, y = width / new_width, height / new_height
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if (new_width, new_height) != image.size:
        image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def unique_images(images: Sequence[ImageLike]) -> tuple[list[ImageLike], list[int]]:
    """The distinct images and, for each image given, which of them it is. The same path, bytes or object counts as one image.

    >>> unique_images(["a.png", "b.png", "a.png"])
    (['a.png', 'b.png'], [0, 1, 0])
    """
    seen: dict[object, int] = {}
    unique: list[ImageLike] = []
    index: list[int] = []
    for image in images:
        key: object = id(image)
        if isinstance(image, bytes):
            key = image
        elif isinstance(image, str | os.PathLike):
            key = os.fspath(image)
        if key not in seen:
            seen[key] = len(unique)
            unique.append(image)
        index.append(seen[key])
    return unique, index
