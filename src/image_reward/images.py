"""Anything image-like -> RGB -> pixels, by one transform, and the same transform for tensors that need gradients.

The transform is CLIP's and BLIP's: the shorter side is resized to S with Pillow's bicubic filter, the centre S x S is cut out, colours
become RGB in [0, 1] and are normalised per channel. As in the original, resizing comes before the conversion to RGB: transparent
images are resized with premultiplied alpha, which is then dropped. Other scorers fit images into S x S differently: ``ImageTransform.fit``.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal, Union, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from image_reward.errors import ImageReadError
from image_reward.image_files import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from image_reward.image_files import LARGEST_FILE, being_read, foreign_format, read_image_file
from image_reward.types import CLIP_MEAN, CLIP_STD, Convention, ImageOptions, check_convention

if TYPE_CHECKING:
    from numpy.typing import NDArray

Fit = Literal["crop", "pad", "stretch"]
ImageLike = Union[
    str,
    os.PathLike[str],
    bytes,
    bytearray,
    memoryview,
    IO[bytes],
    Mapping[str, Any],
    Image.Image,
    "NDArray[Any]",
    Tensor,
    Callable[[], Any],
]

# Pillow resizes these channel by channel (with alpha: premultiplied); other modes are converted first (see `_resizable`).
_RESIZED_AS_THEY_ARE = {"RGB", "L", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"}
_REFUSED = {  # formats whose header does not bound the cost of decoding, or that Pillow recognises and cannot decode
    "EPS": "a PostScript program, which only an interpreter can draw",
    "ICO": "an icon, which holds several images",
    "ICNS": "an icon, which holds several images",
    "WMF": "a drawing for Windows",
    "MPEG": "a video",
    "BUFR": "a file of measurements",
    "GRIB": "a file of measurements",
    "HDF5": "a file of measurements",
}
_LONGEST_RESIZED_WHOLE = 8192  # px; longer strips are resized only where the centre crop will look


def describe(source: object) -> str:
    """A short name of an image for messages.

    >>> describe("cat.png"), describe(b"abc")
    ('cat.png', '<3 bytes>')
    """
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{memoryview(source).nbytes} bytes>"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or f"<PIL image {source.mode} {source.width}x{source.height}>")
    if isinstance(source, np.ndarray | Tensor):
        shape = "nested" if isinstance(source, Tensor) and source.is_nested else tuple(source.shape)
        return f"<{type(source).__name__} {source.dtype} {shape}>"
    if isinstance(source, Mapping):
        return describe(source.get("path") or source.get("bytes"))
    if _has_own_name(source):
        return str(source)
    name = getattr(source, "name", None)  # of an open file
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


def _has_own_name(source: object) -> bool:
    """Whether it is a function that knows where its image is, as a ``ParquetImage`` does."""
    return callable(source) and type(source).__str__ is not object.__str__


# --- opening -----------------------------------------------------------------------------------------------------------------------


def open_image(source: ImageLike, options: ImageOptions | None = None) -> Image.Image:
    """Open, check and decode an image; the result is fully in memory and in a mode that can be resized.

    ``source``: a path; the bytes of an image file; a binary file, which is read from its beginning; {"bytes": …, "path": …} as Hugging
    Face data sets have it; a PIL image; a numpy array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; a torch tensor [H, W], [1, H, W],
    [3, H, W] or [4, H, W]; or a function of no arguments that returns one of these. Arrays and tensors hold uint8, or floats in [0, 1].

    Animated images give their first frame. 16-bit greyscale keeps its upper 8 bits. Palettes and 1-bit images get their colours before
    resizing (the original resizes their indices with the nearest-neighbour filter). EPS, ICO and ICNS are refused. Unreadable metadata
    is ignored. Files are read only where they are regular files of at most ``image_files.LARGEST_FILE`` bytes.

    Raises ``FileNotFoundError``, or ``ImageReadError`` that names the image and says what is wrong with it.
    """
    options = options or ImageOptions()
    place = ""
    if callable(source):
        place = describe(source) if _has_own_name(source) else ""
        source = source()
    name = place or describe(source)
    if isinstance(source, np.ndarray):
        source = _from_array(source, name)
    elif isinstance(source, Tensor):
        source = _from_tensor(source, name)
    if isinstance(source, Image.Image):
        if getattr(source, "tile", None) and getattr(source, "fp", None) is None:
            raise ImageReadError(f"{name} is a closed image; open it again, or pass its path")
        with _readable(name, options):
            # Only the bytes of a JPEG can be given the end that makes its decoder hand out what it has.
            return _decoded(source, name, options, options.allow_truncated and source.format not in ("JPEG", "MPO"), from_file=False)
    content = _content(source, name)
    with _readable(name, options, content), _Source(_pixels_only(content, options)) as file, _identified(file, name) as image:
        file.exhausted = False
        picture = _decoded(image, name, options, options.allow_truncated, from_file=True)
        if ImageFile.LOAD_TRUNCATED_IMAGES and file.exhausted and not options.allow_truncated:
            raise OSError("image file is truncated")  # Pillow does not say so where the program has set its switch
        return picture


def _content(source: object, name: str) -> bytes:
    """The bytes of an image file."""
    if isinstance(source, Mapping):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, str | os.PathLike):
        return read_image_file(source)
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
    elif hasattr(source, "read"):
        content = _read_open_file(source, name)
    else:
        several = "; give several images as a list" if isinstance(source, Iterable) else ""
        raise ImageReadError(
            f"an image is a path, bytes, a binary file, a PIL image, a numpy array or a torch tensor, not {type(source).__name__}{several}"
        )
    if not content:
        raise ImageReadError(f"{name} is empty; save or download it again")
    return content


def _read_open_file(file: Any, name: str) -> bytes:
    try:
        size = LARGEST_FILE + 1
        if file.seekable():
            size = min(size, file.seek(0, os.SEEK_END))  # 0 for a device that never ends
            file.seek(0)
        content = file.read(size)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise ImageReadError(f"{name} cannot be read: {error}; open it again, or pass its path") from None
    if not isinstance(content, bytes):
        raise ImageReadError(f"{name} is open for text; open it in binary mode, or pass its path")
    if len(content) > LARGEST_FILE:
        raise ImageReadError(f"{name} has more than the {LARGEST_FILE:,} bytes that are read as an image")
    return content


class _Source(io.BytesIO):
    """A file that records whether anything was read beyond its end."""

    exhausted = False

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.exhausted |= not content and size != 0
        return content


_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"


def _pixels_only(content: bytes, options: ImageOptions) -> bytes:
    """A PNG, JPEG or TIFF file without metadata that no reward depends on; any other file as it is.

    Pillow refuses a whole PNG for the size of its texts or colour profile, and warns of, or trips over, much else that is only metadata.
    The EXIF block is left where the orientation is asked for. Malformed parts are kept, so that the decoder reports them.
    """
    if content.startswith(_PNG):
        return _png_pixels(content, options.orient)
    if content.startswith(b"\xff\xd8"):
        # Given an end-of-image marker, the decoder returns the rows that a truncated file has.
        return _jpeg_pixels(content, options.orient) + (b"\xff\xd9" if options.allow_truncated else b"")
    return _tiff_pixels(content)


def _png_pixels(content: bytes, exif: bool) -> bytes:
    """Critical chunks and transparency; of an animation this is the first frame."""
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(content):
        kind, end = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4], "big")
        if end > len(content):
            break
        is_critical = not kind[0] & 0x20
        if is_critical or kind == b"tRNS" or (exif and kind == b"eXIf" and _has_checksum(content[at + 4 : end])):
            parts.append(content[at:end])
        at = len(content) if kind == b"IEND" else end
    return b"".join(parts) + content[at:]


def _has_checksum(chunk: bytes) -> bool:
    return zlib.crc32(chunk[:-4]).to_bytes(4, "big") == chunk[-4:]


def _jpeg_pixels(content: bytes, exif: bool) -> bytes:
    """Without comments and application data, but for those that say what the colours are: JFIF (APP0) and Adobe (APP14)."""
    dropped = {0xFE, *range(0xE1, 0xF0)} - {0xEE}
    parts, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF and 0xC0 <= content[at + 1] <= 0xFE and content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if end > len(content):
            break
        if content[at + 1] not in dropped:
            parts.append(content[at:end])
        elif exif and content[at + 1] == 0xE1 and (orientation := _exif_orientation(content[at + 4 : end])) in _TRANSPOSITIONS:
            block = _EXIF + b"II*\0" + struct.pack("<IHHHIII", 8, 1, ExifTags.Base.Orientation, 3, 1, orientation, 0)
            parts.append(b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block)
        at = end
    return b"".join(parts) + content[at:]


# What decides pixels and orientation: sizes, depth, compression, colours, strips and tiles, and tables of JPEG and LERC.
_TIFF_PIXEL_TAGS = frozenset((254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325))
_TIFF_PIXEL_TAGS |= {338, 339, 347, *range(512, 522), 529, 530, 531, 532, 37439, 50674}


def _tiff_pixels(content: bytes) -> bytes:
    """A TIFF file with its first directory alone, and in it what decides pixels and orientation; any other file as it is."""
    if (parsed := _tiff_directory(content)) is None:
        return content
    order, start, entries = parsed
    end = start + 2 + 12 * len(entries)
    kept = [entry for tag, entry in entries if tag in _TIFF_PIXEL_TAGS]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)  # no directory follows
    return content[:start] + directory.ljust(end + 4 - start, b"\0") + content[end + 4 :]


def _tiff_directory(content: bytes) -> tuple[str, int, list[tuple[int, bytes]]] | None:
    """The byte order, the place of the first directory, and its entries [(tag, 12 bytes)] as far as they are there; None for no TIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if order is None or len(content) < 10:
        return None
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    if start + 2 > len(content):
        return None
    (num,) = struct.unpack_from(f"{order}H", content, start)
    end = start + 2 + 12 * min(num, (len(content) - start - 2) // 12)
    entries = [content[at : at + 12] for at in range(start + 2, end, 12)]
    return order, start, [(struct.unpack_from(f"{order}H", entry)[0], entry) for entry in entries]


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in an EXIF block, which is a TIFF file without pixels; None where that cannot be read.

    Pillow's reader looks at all tags, and warns of those that are broken.
    """
    if (parsed := _tiff_directory(exif.removeprefix(_EXIF))) is None:
        return None
    order, _, entries = parsed
    entry = dict(entries).get(ExifTags.Base.Orientation, b"")
    kinds = {3: "H", 4: "I"}
    kind = kinds.get(struct.unpack_from(f"{order}H", entry, 2)[0]) if entry else None
    return int(struct.unpack_from(f"{order}{kind}", entry, 8)[0]) if kind else None


def _identified(file: _Source, name: str) -> Image.Image:
    """As ``Image.open``, without its limit of pixels: that is one for the whole program, and ``max_pixels`` replaces it."""
    prefix = file.read(16)
    for load_formats in (Image.preinit, Image.init):
        load_formats()
        for kind in Image.ID:
            factory, accept = Image.OPEN[kind]
            try:
                accepted = accept(prefix) if accept else True
                if isinstance(accepted, str):  # a format that this Pillow was built without
                    raise ImageReadError(f"{name}: {accepted}; convert it to PNG or JPEG")
                if accepted:
                    file.seek(0)
                    return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # raised by plugins for other formats
                continue
    raise UnidentifiedImageError


def _decoded(image: Image.Image, name: str, options: ImageOptions, allow_truncated: bool, from_file: bool) -> Image.Image:
    if image.format in _REFUSED:
        raise ImageReadError(f"{name} is {_REFUSED[image.format]}; save it as PNG")
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0) == 1:
        raise ImageReadError(f"{name} begins with a thumbnail, as raw photographs do; convert it to PNG or JPEG")
    _check_size(image, name, options)
    try:
        image.load()
    except OSError as error:
        if not allow_truncated or not _is_truncated(error):
            raise
        image.tile = []  # type: ignore[attr-defined] # skip the missing rows and keep the decoded ones
        image.load()
    if options.orient:
        image = _upright(image, from_file)
    return _resizable(image, name)


def _is_truncated(error: Exception) -> bool:
    return any(words in str(error) for words in ("truncated", "broken data stream"))


_NEW_SUBFILE_TYPE = 254
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, from_file: bool) -> Image.Image:
    """The image turned as its EXIF orientation says, which programs can change in images of their own; as it is where it cannot be read."""
    try:
        stored = image.info.get("exif") if from_file else None
        orientation = _exif_orientation(stored) if isinstance(stored, bytes) else image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises errors of many kinds for junk
        return image
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


@contextmanager
def _readable(name: str, options: ImageOptions, content: bytes = b"") -> Iterator[None]:
    """Turn Pillow's errors, of many kinds for damaged files, into one that names the file."""
    token = being_read.set(name)
    try:
        yield
    except (ImageReadError, FileNotFoundError):
        raise
    except UnidentifiedImageError:
        other = foreign_format(content) or "is not an image that Pillow can read (its content decides, not its name), or it is damaged"
        raise ImageReadError(f"{name} {other}") from None
    except MemoryError:
        raise ImageReadError(f"{name} does not fit into memory, or is damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageReadError(f"{name} is refused by Pillow: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust it") from None
    except Exception as error:
        if not content and "closed" in str(error):
            raise ImageReadError(f"{name} is a closed image; open it again, or pass its path") from None
        cut = not options.allow_truncated and _is_truncated(error)
        remedy = "; pass allow_truncated=True to accept it as it is" if cut else "; save or download it again"
        raise ImageReadError(f"{name} is damaged: {error or type(error).__name__}{remedy}") from error
    finally:
        being_read.reset(token)


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
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageReadError(
                f"{name} holds integers from {values.min()} to {values.max()}, not 16-bit greys; save it with 8 bits a channel"
            )
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ImageReadError(f"{name} holds floats of unknown range; pass a numpy array scaled to [0, 1], or save it with 8 bits a channel")
    return image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    if array.dtype.kind in "OSU":  # of paths or images, as tables have them
        raise ImageReadError(f"{name} is an array of objects or texts, not an image; give several images as a list, such as array.tolist()")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise ImageReadError(
            f"{name}: a numpy image is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; transpose it, or give several as a list: list(array)"
        )
    if 0 in array.shape:
        raise ImageReadError(f"{name} has no pixels")
    if np.issubdtype(array.dtype, np.floating):
        _check_unit_range(bool(np.isfinite(array).all()), float(array.min()), float(array.max()), name)
        array = (array.astype(np.float32) * 255.0).round().clip(0, 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageReadError(f"{name}: values must be uint8, or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_tensor(tensor: Tensor, name: str) -> Image.Image:
    if tensor.is_nested:
        raise ImageReadError(f"{name} holds several images; give them as a list: list(tensor.unbind())")
    if tensor.is_quantized:
        raise ImageReadError(f"{name} is quantized; pass tensor.dequantize()")
    if (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)) or tensor.ndim not in (2, 3):
        raise ImageReadError(
            f"{name}: a tensor image is [H, W], [1, H, W], [3, H, W] or [4, H, W]; permute it, or give several as a list: list(tensor)"
        )
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise ImageReadError(f"{name} is sparse, or has no values; pass a dense tensor")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    if tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    return _from_array(tensor.numpy(), name)


def _check_unit_range(finite: bool, low: float, high: float, name: str) -> None:
    if not finite:
        raise ImageReadError(f"{name} holds NaN or infinite values; look for what produced them")
    if low < -1e-3 or high > 1 + 1e-3:  # tolerates rounding in half precision
        raise ImageReadError(
            f"{name} holds values from {low:.4g} to {high:.4g}; floats must be in [0, 1] (divide by 255, or undo a normalisation)"
        )


# --- the transform -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop or pad, normalise: how images are prepared. The default is OpenAI CLIP's, which BLIP and ImageReward share."""

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    options: ImageOptions = field(default_factory=ImageOptions)
    fit: Fit = "crop"
    """How an image of any shape becomes a square.

    "crop": the shorter side is resized and the centre cut out. "pad": the longer side is resized, and what is missing is filled evenly,
    with an odd pixel at the right or the bottom, by zeros in the image's own mode, which are black except in CMYK (white), YCbCr and LAB;
    this is OpenCLIP's ``resize_longest_max``, with which HPSv2 scores. "stretch": both sides are resized, after the conversion to RGB, as
    BLIP's retrieval and its demo do.
    """
    convention: Convention = "openai"
    """"transformers" converts to RGB before it resizes (dropping alpha, as its version 4 does; later ones lay it on white), and rounds the
    margins of the crop down where "openai" (torchvision) rounds a half to even."""

    def __post_init__(self) -> None:
        check_convention(self.convention)
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit must be one of {get_args(Fit)}, not {self.fit!r}")

    def crop(self, source: ImageLike) -> Tensor:
        """An image -> RGB values [3, size, size], uint8."""
        return self.crop_opened(open_image(source, self.options))

    def crop_opened(self, image: Image.Image) -> Tensor:
        """As ``crop``, for what ``open_image`` returned, so that several transforms can share one decoded image."""
        if self.convention == "transformers" or self.fit == "stretch":
            image = image.convert("RGB")
        rgb = _resize_and_crop(image, self.size, *self._geometry(*image.size)).convert("RGB")
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()

    def normalize(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 in [0, 255], or floats in [0, 1], [..., 3, H, W] -> normalised pixels of the same shape."""
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        mean, std = (torch.tensor(v, dtype=torch.float32, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).to(dtype)

    def __call__(self, source: ImageLike) -> Tensor:
        """An image -> normalised pixels [3, size, size], float32."""
        return self.normalize(self.crop(source))

    def crop_tensor(self, pixels: Tensor) -> Tensor:
        """The transform for tensors, with gradients: floats in [0, 1] [B, 3, H, W] -> [B, 3, size, size] in [0, 1].

        See ``resize_tensor`` for how this relates to files. Raises ``ImageReadError``.
        """
        check_pixels(pixels)
        height, width = pixels.shape[2:]
        new_width, new_height, left, top = self._geometry(width, height)
        pixels = resize_tensor(pixels, new_width, new_height)
        right, bottom = left + self.size - new_width, top + self.size - new_height
        return F.pad(pixels, (-left, right, -top, bottom))  # negative padding crops

    def _geometry(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The width and height that an image is resized to, and where in it the square begins: left and top, negative to pad."""
        size = self.size
        if self.fit == "stretch":
            return size, size, 0, 0
        if self.fit == "pad":
            scale = size / max(width, height)
            new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
            return new_width, new_height, -((size - new_width) // 2), -((size - new_height) // 2)
        new_width, new_height = _resized(width, height, size)
        if self.convention == "transformers":
            return new_width, new_height, (new_width - size) // 2, (new_height - size) // 2
        return new_width, new_height, _centre(new_width, size), _centre(new_height, size)


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    """The shorter side becomes ``size``; the longer is truncated to an integer, as torchvision does."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _centre(side: int, size: int) -> int:
    return round((side - size) / 2)  # half to even, as torchvision does


def _rows_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether the pass that changes the height comes first: it does for images more than twice as tall as wide that are made smaller.

    The order shows where a bicubic overshoot is clipped between the passes. This is the order of Pillow 13, with which the reference
    values were computed. Earlier versions resize the width first always; fixing the order makes scores the same with all of them.
    """
    return old[1] - new[1] > max(0, 2 * (old[0] - new[0]))


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """A whole RGB image in another size, by Pillow's bicubic filter."""
    rows_first = _rows_first(image.size, (width, height))
    return _in_two_passes(image, width, height, rows_first, (0.0, float(image.width)), (0.0, float(image.height)))


def _in_two_passes(
    image: Image.Image, width: int, height: int, rows_first: bool, columns: tuple[float, float], rows: tuple[float, float]
) -> Image.Image:
    """The part of an image in these columns and rows, resized."""
    for is_rows in (rows_first, not rows_first):
        box = (0, rows[0], image.width, rows[1]) if is_rows else (columns[0], 0, columns[1], image.height)
        new_size = (image.width, height) if is_rows else (width, image.height)
        image = image.resize(new_size, Image.Resampling.BICUBIC, box)
    return image


def resize_tensor(pixels: Tensor, width: int, height: int) -> Tensor:
    """``resize`` for tensors, with gradients: floats in [0, 1] [B, 3, H, W] -> [B, 3, height, width] in [0, 1].

    Within 2/255 of the Pillow path, and not equal to it, because Pillow rounds to 8 bits after each of its two passes, which has no
    gradient. The two passes, their order and the clipping after each are the same. Raises ``ImageReadError``.
    """
    if max(width, height) > _LONGEST_RESIZED_WHOLE:
        raise ImageReadError(f"pixels of shape {tuple(pixels.shape)} are too long a strip to resize with gradients; crop it first")
    pixels = pixels.float().clamp(0, 1)
    old_height, old_width = pixels.shape[2:]
    halfway = (height, old_width) if _rows_first((old_width, old_height), (width, height)) else (old_height, width)
    for size in (halfway, (height, width)):
        if size != tuple(pixels.shape[2:]):
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
    return pixels


def check_pixels(pixels: Tensor) -> None:
    """Raise ``ImageReadError`` unless these are floats in [0, 1] of shape [B, 3, H, W]."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise ImageReadError(f"pixels must be floats of shape [B, 3, H, W], not {pixels.dtype} {tuple(pixels.shape)}")
    if 0 in pixels.shape[2:]:
        raise ImageReadError(f"pixels of shape {tuple(pixels.shape)} have no pixels")
    if pixels.numel():
        values = pixels.detach()
        _check_unit_range(bool(values.isfinite().all()), float(values.min()), float(values.max()), "pixels")


def _resize_and_crop(image: Image.Image, size: int, new_width: int, new_height: int, left: int, top: int) -> Image.Image:
    """Resize, and cut out a square of ``size``; where it begins outside the image it is padded with zeros."""
    mode, width, height = image.mode, image.width, image.height
    if (new_width, new_height) == image.size:
        return image.crop((left, top, left + size, top + size))
    rows_first = _rows_first(image.size, (new_width, new_height))
    columns, rows = (0.0, float(width)), (0.0, float(height))
    if max(new_width, new_height) > max(_LONGEST_RESIZED_WHOLE, size):
        x, y = width / new_width, height / new_height
        columns, rows = (left * x, (left + size) * x), (top * y, (top + size) * y)
        new_width, new_height, left, top = size, size, 0, 0
    premultiplied = {"RGBA": "RGBa", "LA": "La"}.get(mode)
    if premultiplied:  # once for both passes, as Pillow does
        image = image.convert(premultiplied)
    image = _in_two_passes(image, new_width, new_height, rows_first, columns, rows)
    if premultiplied:
        image = image.convert(mode)
    return image.crop((left, top, left + size, top + size))


def unique_images(images: Sequence[ImageLike]) -> tuple[list[ImageLike], list[int]]:
    """The distinct images and, for each image, its index among them. The same path, bytes or object counts as one image.

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
