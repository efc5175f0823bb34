from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

import seeded
from image_reward import images
from image_reward.errors import ImageReadError
from image_reward.images import ImageOptions, ImageTransform, open_image, unique_images
from image_reward.scorers import ImageRewardScorer
from upstream import assert_pixels

DATA = Path(__file__).parent / "data"
HANGS = 600  # s: only what hangs takes as long
LENIENT = ImageOptions(allow_truncated=True)
RINGS = seeded.image("rings", 96, 64, 3)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises ``width`` x ``height`` grey pixels and whose data is a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 40)) + chunk(b"IEND", b"")


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, channels)).astype(np.uint8)


def resized_in_own_mode(image: Image.Image, size: int) -> np.ndarray:
    """What the original does, written anew: resize, cut out the centre, convert to RGB."""
    width, height = image.size
    scale = size / min(width, height)
    new = (size, int(scale * height + 1e-9)) if width <= height else (int(scale * width + 1e-9), size)
    image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))


def cropped(source: Any, size: int = 32, options: ImageOptions | None = None) -> np.ndarray:
    return ImageTransform(size, options=options or ImageOptions()).crop(source).permute(1, 2, 0).numpy()


# --- values --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "file"), [(64, "scores_tiny.json"), (224, "pixels_224.json")])
def test_transform_gives_the_originals_pixels(size: int, file: str) -> None:
    recorded = json.loads((DATA / file).read_text())
    recorded = recorded["pixels"] if isinstance(recorded, dict) else recorded
    transform = ImageTransform(size)
    assert transform(seeded.images()[0]).dtype == torch.float32
    assert_pixels(transform, seeded.images(), recorded)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_are_resized_before_they_become_rgb(mode: str) -> None:
    channels = noise(61, 47, len(Image.new(mode, (1, 1)).getbands()), seed=1)
    image = Image.merge(mode, [Image.fromarray(channels[..., i]) for i in range(channels.shape[-1])])
    np.testing.assert_array_equal(cropped(image), resized_in_own_mode(image, 32))


@pytest.mark.parametrize("size", [(100, 300), (100, 200), (100, 201), (300, 100), (50, 300), (120, 119), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_passes_are_pillows(size: tuple[int, int], mode: str) -> None:
    """Hard edges overshoot, and clipping that between the passes shows their order, which is Pillow 13's, whatever Pillow is installed."""
    image = Image.fromarray(noise(*size, channels=len(mode)) // 128 * 255)
    if int(PIL.__version__.split(".")[0]) < 13 and size[1] > 2 * size[0]:
        pytest.skip("this Pillow resizes tall images in another order")
    np.testing.assert_array_equal(cropped(image, 64), resized_in_own_mode(image, 64))


def test_alpha_is_premultiplied_and_then_dropped() -> None:
    """The colour under fully transparent pixels does not leak into their neighbours."""
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, :32] = (200, 100, 50, 255)
    pixels[:, 32:] = (255, 255, 255, 0)
    found = cropped(Image.fromarray(pixels), 16)
    np.testing.assert_allclose(found[:, :7].astype(int), np.broadcast_to([200, 100, 50], (16, 7, 3)), atol=3)
    np.testing.assert_array_equal(found, resized_in_own_mode(Image.fromarray(pixels), 16))


def test_other_modes_get_their_colours_before_resizing() -> None:
    palette = RINGS.quantize(16)
    np.testing.assert_array_equal(cropped(palette), cropped(palette.convert("RGB")))
    np.testing.assert_array_equal(cropped(encoded(palette, "PNG")), cropped(palette.convert("RGB")))
    transparent = Image.open(io.BytesIO(encoded(palette, "PNG", transparency=3)))
    np.testing.assert_array_equal(cropped(transparent), cropped(transparent.convert("RGBA")))
    assert not np.array_equal(cropped(transparent), cropped(palette))
    bits = RINGS.convert("1")
    np.testing.assert_array_equal(cropped(bits), cropped(bits.convert("L")))
    assert len(np.unique(cropped(bits))) > 2  # resampled, not picked
    for premultiplied, plain in [("RGBa", "RGBA"), ("La", "LA")]:
        image = RINGS.convert(plain)
        image.putalpha(128)
        np.testing.assert_array_equal(cropped(image.convert(premultiplied)), cropped(image.convert(premultiplied).convert(plain)))


def test_16_bits_keep_their_upper_8() -> None:
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    expected = cropped((grey >> 8).astype(np.uint8))
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(cropped(encoded(Image.fromarray(grey), kind)), expected)
    np.testing.assert_array_equal(cropped(Image.fromarray(grey.astype(np.int32))), expected)
    with pytest.raises(ImageReadError, match="integers from 0 to 70000, not 16-bit greys; save it with 8 bits a channel"):
        open_image(Image.fromarray(np.array([[0, 1], [2, 70000]], dtype=np.int32)))
    with pytest.raises(ImageReadError, match="holds floats of unknown range; pass a numpy array scaled to"):
        open_image(Image.fromarray(np.zeros((4, 4), dtype=np.float32)))


def test_16_bit_rgb_png() -> None:
    rgb = noise(8, 6, seed=2).astype(np.uint16) * 257

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0))
    file += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(np.asarray(open_image(file)), rgb >> 8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    path = tmp_path / "moving"
    path.write_bytes(encoded(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {})))
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(cropped(source), np.broadcast_to([255, 0, 0], (32, 32, 3)))


def test_exif_orientation_only_when_asked() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top row is on the right
    photo = encoded(RINGS, "PNG", exif=exif)
    turn = RINGS.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(cropped(photo), cropped(RINGS))
    np.testing.assert_array_equal(cropped(photo, options=ImageOptions(orient=True)), cropped(turn))
    assert not np.array_equal(cropped(turn), cropped(RINGS))
    np.testing.assert_array_equal(cropped(RINGS, options=ImageOptions(orient=True)), cropped(RINGS))


# --- sources -------------------------------------------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rings.png"
    RINGS.save(path)
    array = np.asarray(RINGS)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sources: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        memoryview(path.read_bytes()),
        io.BytesIO(path.read_bytes()),
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
        RINGS,
        Image.open(path),
        array,
        array[:, ::-1][:, ::-1],
        array / 255,
        (array / 255).astype(np.float32),
        tensor,
        (tensor / 255).requires_grad_(),
        tensor.double() / 255,
        lambda: path,
        lambda: RINGS,
    ]
    for source in sources:
        np.testing.assert_array_equal(cropped(source), cropped(RINGS), err_msg=repr(source))
    half = torch.tensor([0, 51, 102, 255]).view(1, 2, 2) / 255
    assert np.asarray(open_image(half.half())).flatten().tolist() == [0, 51, 102, 255]
    assert np.asarray(open_image((half + 0.0005).bfloat16().clamp(max=1.0009))).shape == (2, 2)


def test_greys_and_alpha_as_arrays_and_tensors() -> None:
    grey, alpha = noise(40, 36, 1), noise(40, 36, 4)
    expected = cropped(Image.fromarray(grey[..., 0]))
    for source in (grey, grey[..., 0], torch.from_numpy(grey[..., 0]), torch.from_numpy(grey[None, ..., 0])):
        np.testing.assert_array_equal(cropped(source), expected)
    expected = cropped(Image.fromarray(alpha))
    for source in (alpha, torch.from_numpy(alpha).permute(2, 0, 1)):
        np.testing.assert_array_equal(cropped(source), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"<ndarray uint8 \(3, 8, 8\)>: a numpy image is .* transpose it, or give several as a list"),
        (np.zeros((2, 8, 8, 3), np.uint8), "a numpy image is"),
        (np.zeros(8, np.uint8), "a numpy image is"),
        (np.zeros((8, 8, 3), np.int64), r"<ndarray int64 \(8, 8, 3\)>: values must be uint8, or floats in \[0, 1\]"),
        (np.zeros((8, 8), bool), "values must be uint8"),
        (np.zeros((8, 8), complex), "values must be uint8"),
        (np.zeros((8, 8), object), "is an array of objects or texts, not an image; give several images as a list"),
        (np.array(["a.png", "b.png"]), r"<ndarray <U5 \(2,\)> is an array of objects or texts, not an image"),
        (np.array([b"a.png"]), "is an array of objects or texts"),
        (np.zeros((8, 8), [("red", "u1")]), "values must be uint8"),
        (np.full((8, 8), np.nan), "holds NaN or infinite values"),
        (np.array([[0.5, np.nan], [0, 0]]), "holds NaN or infinite values"),
        (np.array([[0.5, np.inf], [0, 0]]), "holds NaN or infinite values"),
        (np.full((8, 8), 1e300), r"holds values from 1e\+300 to 1e\+300; floats must be in \[0, 1\]"),
        (np.array([[0.0, 255.0], [3, 4]]), r"holds values from 0 to 255; floats must be in \[0, 1\] \(divide by 255"),
        (np.array([[-1.0, 1.0], [0, 0]]), "holds values from -1 to 1"),
        (np.zeros((0, 8, 3), np.uint8), r"<ndarray uint8 \(0, 8, 3\)> has no pixels"),
        (np.zeros((8, 0)), "has no pixels"),
        (torch.zeros(8, 8, 3), r"<Tensor torch.float32 \(8, 8, 3\)>: a tensor image is .* permute it, or give several as a list"),
        (torch.zeros(1, 3, 8, 8), "a tensor image is"),
        (torch.zeros(()), "a tensor image is"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "values must be uint8"),
        (torch.zeros(3, 0, 8), "has no pixels"),
        (torch.full((3, 8, 8), float("nan")), "holds NaN or infinite values"),
        (torch.full((3, 8, 8), 2.0, dtype=torch.bfloat16), "holds values from 2 to 2"),
        (Image.new("RGB", (0, 5)), "is 0 x 5 pixels; the shorter side must have at least 2"),
        (Image.new("RGB", (1, 1)), r"<PIL image RGB 1x1> is 1 x 1 pixels; .* at least 2 \(lower min_side to score it anyway\)"),
        (Image.new("RGB", (1, 20000)), "is 1 x 20000 pixels"),
        (b"", "<0 bytes> is empty; save or download it again"),
        (b"hello, world", "<12 bytes> is text, perhaps a server's message, and not an image"),
        (b"\x01\x02\xff", "<3 bytes> is not an image that Pillow can read"),
        (None, "an image is a path, bytes, a binary file, a PIL image, a numpy array or a torch tensor, not NoneType$"),
        ((path for path in ("a.png", "b.png")), "not generator; give several images as a list"),
        ({"a.png"}, "not set; give several images as a list"),
        ({"a": 1}.values(), "not dict_values; give several images as a list"),
        (map(str, "ab"), "not map; give several images as a list"),
        (bytearray(b"\x80abc"), "<4 bytes> is not an image that Pillow can read"),
        ({"path": None}, "is a path, bytes, .* not NoneType"),
        (io.BytesIO(), "<BytesIO> is empty"),
        (io.StringIO("text"), "<StringIO> is open for text; open it in binary mode"),
        (torch.zeros(3, 8, 8, device="meta"), "is sparse, or has no values; pass a dense tensor"),
        (torch.zeros(3, 8, 8).to_sparse(), "is sparse, or has no values"),
        (lambda: 7, "not int"),
        (encoded(RINGS, "ICO"), "is an icon, which holds several images; save it as PNG"),
        (encoded(RINGS, "EPS"), "is a PostScript program, which only an interpreter can draw; save it as PNG"),
    ],
)
def test_what_is_no_image_is_named(source: Any, message: str) -> None:
    with pytest.raises(ImageReadError, match=message):
        ImageTransform(32).crop(source)


@pytest.mark.filterwarnings("ignore")  # PyTorch calls nested tensors a prototype, and quantized ones deprecated
def test_tensors_of_other_kinds_are_named() -> None:
    for source, message in [
        (torch.quantize_per_tensor(torch.zeros(3, 8, 8), 1.0, 0, torch.quint8), r"is quantized; pass tensor\.dequantize\(\)"),
        (torch.nested.nested_tensor([torch.zeros(3, 4, 4)]), r"<Tensor torch.float32 nested> holds several images; give them as a list"),
        (torch.nested.nested_tensor([torch.zeros(3, 4)], layout=torch.jagged), "nested> holds several images"),
    ]:
        with pytest.raises(ImageReadError, match=message):
            open_image(source)


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such image: .*missing\.png"):
        open_image(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError, match="no such image: a painting, a painting"):
        open_image("a painting, " * 400)  # prompt and image swapped: longer than a path may be
    with pytest.raises(FileNotFoundError, match="no such image"):
        open_image("nul\0byte.png")
    with pytest.raises(ImageReadError, match="is a folder, not a file; give the path of a file"):
        open_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageReadError, match=r"empty\.png is empty; save or download it again"):
        open_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("just text")
    with pytest.raises(ImageReadError, match=r"text\.png is text, perhaps a server's message, and not an image"):
        open_image(tmp_path / "text.png")
    with pytest.raises(ImageReadError, match="/dev/null is a device, not a file"):
        open_image("/dev/null")


def test_open_files_are_read_from_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "rings.png"
    RINGS.save(path)
    with path.open("rb") as file:
        file.seek(0, io.SEEK_END)
        assert open_image(file).size == open_image(file).size == RINGS.size
    with pytest.raises(ImageReadError, match=r"rings\.png cannot be read: .*closed.*; open it again, or pass its path"):
        open_image(file)
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream:
        with os.fdopen(write, "wb") as end:
            end.write(encoded(RINGS, "PPM"))
        assert open_image(stream).size == RINGS.size
    with Path("/dev/zero").open("rb") as endless, pytest.raises(ImageReadError, match="/dev/zero is empty"):
        open_image(endless)


def test_an_image_that_was_closed_is_not_called_damaged(tmp_path: Path) -> None:
    RINGS.save(tmp_path / "rings.png")
    with Image.open(tmp_path / "rings.png") as unloaded:
        pass
    closed = RINGS.copy()
    closed.close()
    for image in (unloaded, closed):
        with pytest.raises(ImageReadError, match="is a closed image; open it again, or pass its path"):
            open_image(image)


def test_other_formats_are_named(tmp_path: Path) -> None:
    for name, content, message in [
        ("photo.png", b"\0\0\0\x18ftypheic", "is a HEIC picture; convert it to PNG or JPEG"),
        (
            "a.jpg",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git LFS pointer, not the image; fetch the image with `git lfs pull`",
        ),
        ("b.webp", b"<svg></svg>", "is an SVG drawing"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageReadError, match=f"{name} {message}"):
            open_image(tmp_path / name)


def test_the_thumbnail_of_a_raw_photograph_is_not_scored() -> None:
    content = encoded(RINGS, "TIFF", tiffinfo={254: 1})
    with pytest.raises(ImageReadError, match="begins with a thumbnail, as raw photographs do; convert it"):
        open_image(content)


def test_a_missing_path_in_a_list_is_an_error(scorer: ImageRewardScorer, image_folder: Path) -> None:
    """The original gives it the score of the image before it."""
    paths = [image_folder / "a.png", image_folder / "gone.png", image_folder / "b.png"]
    for ask in (lambda: scorer.score("cat", paths), lambda: scorer.rank("cat", paths), lambda: scorer.matrix(["cat"], paths)):
        with pytest.raises(FileNotFoundError, match=r"no such image: .*gone\.png"):
            ask()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000"])
@pytest.mark.parametrize("share", [0.6, 0.97])
def test_truncated_files_are_refused_unless_allowed(kind: str, share: float, tmp_path: Path) -> None:
    whole = encoded(RINGS, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageReadError, match=rf"cut\.{kind.lower()} is damaged: .*; pass allow_truncated=True to accept it as it is"):
        open_image(path)
    assert open_image(path, LENIENT).size == RINGS.size


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_some_formats_need_the_whole_file(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    whole = encoded(RINGS, kind)
    for options in (ImageOptions(), LENIENT):
        with pytest.raises(ImageReadError, match="damaged"):
            open_image(whole[: int(len(whole) * 0.6)], options)
    assert open_image(whole).size == RINGS.size


# --- sizes ---------------------------------------------------------------------------------------------------------------------------


def test_decompression_bombs(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(60000, 60000))
    with pytest.raises(ImageReadError, match=r"bomb\.png has 60000 x 60000 = 3,600,000,000 pixels.*178,956,970; raise max_pixels if you"):
        open_image(path)
    with pytest.raises(ImageReadError, match="has 96 x 64 = 6,144 pixels, more than the limit of 6,143"):
        open_image(RINGS, ImageOptions(max_pixels=6143))
    assert open_image(RINGS, ImageOptions(max_pixels=6144)).size == (96, 64)


def test_max_pixels_stands_in_for_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for max_pixels in (None, 10_000):
        assert open_image(encoded(RINGS, "PNG"), ImageOptions(max_pixels=max_pixels)).size == (96, 64)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(("size", "min_side"), [((2, 20_000), 2), ((20_000, 2), 2), ((1, 20_000), 1), ((1, 1), 1)])
def test_strips_and_specks(size: tuple[int, int], min_side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resized: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def recorded(image: Image.Image, new: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        resized.append(new)
        return resize(image, new, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    pixels = noise(*size)
    found = cropped(pixels, 224, ImageOptions(min_side=min_side))
    assert found.shape == (224, 224, 3)
    assert found.std() > 1 or size == (1, 1)
    assert max(max(new) for new in resized) <= 20_000  # whole, the strip would become 2,240,000 px long


@given(st.integers(2, 20), st.integers(60, 700), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_strips_equal_resizing_all_and_cropping(short: int, long: int, upright: bool, seed: int) -> None:
    image = Image.fromarray(noise(*((short, long) if upright else (long, short)), seed=seed))
    whole = cropped(image, 32)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(images, "_LONGEST_RESIZED_WHOLE", 0)
        part = cropped(image, 32)
    # Pillow's boxes are single precision, which can turn one rounding over; the second pass can make that two levels.
    difference = np.abs(whole.astype(int) - part)
    assert difference.max() <= 2
    assert (difference > 1).mean() < 0.001


@given(st.integers(2, 600), st.integers(2, 600), st.sampled_from([16, 64, 224]))
@settings(max_examples=60, deadline=None)
def test_any_size_becomes_a_square(width: int, height: int, size: int) -> None:
    found = ImageTransform(size).crop(noise(width, height))
    assert found.shape == (3, size, size)
    assert found.dtype == torch.uint8


# --- damaged files and threads -------------------------------------------------------------------------------------------------------

WHOLE = [encoded(RINGS, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")]


@given(st.one_of(st.binary(max_size=200), st.tuples(st.sampled_from(WHOLE), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4))))))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_only_ever_an_image_read_error(source: bytes | tuple[bytes, list[tuple[float, bytes]]]) -> None:
    if not isinstance(source, bytes):
        source, edits = source
        for place, new in edits:
            at = int(place**4 * len(source))  # mostly in the header, where it hurts
            source = source[:at] + new + source[at + len(new) :]
    with warnings.catch_warnings(), contextlib.suppress(ImageReadError):
        warnings.simplefilter("ignore")  # Pillow's, about what it found
        open_image(source, ImageOptions(max_pixels=100_000, allow_truncated=len(source) % 2 == 0))


def test_threads_do_not_see_each_others_options() -> None:
    """Pillow's switch for truncated files is global: a lenient thread must not make a strict one accept half an image."""
    cut = encoded(seeded.image("noise", 300, 301, 4), "PNG")[:-2000]
    wrong: list[str] = []

    def work(options: ImageOptions) -> None:
        for _ in range(40):
            try:
                open_image(cut, options)
                accepted = True
            except ImageReadError:
                accepted = False
            if accepted != options.allow_truncated:
                wrong.append(f"allow_truncated={options.allow_truncated}, accepted: {accepted}")

    threads = [threading.Thread(target=work, args=(ImageOptions(allow_truncated=i % 2 == 0),), daemon=True) for i in range(6)]
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


@pytest.mark.parametrize("options", [ImageOptions(), ImageOptions(allow_truncated=True, max_pixels=None)])
def test_pillows_settings_stay_what_the_program_made_them(options: ImageOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one for the whole interpreter: another thread would see them change."""
    seen = []
    load = ImageFile.ImageFile.load

    def watched(image: ImageFile.ImageFile) -> Any:
        seen.append((ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS))
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_345)
    for content in WHOLE:
        open_image(content, options)
    assert set(seen) == {(False, 12_345)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "PPM", "TGA"])
def test_a_program_that_accepts_truncated_images_gets_no_truncated_reward(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some libraries turn Pillow's switch on when they are imported."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encoded(RINGS, kind)
    assert open_image(whole).size == RINGS.size
    with pytest.raises(ImageReadError, match="truncated; pass allow_truncated=True"):
        open_image(whole[: int(len(whole) * 0.6)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive JPEG", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98, 1])
def test_truncated_files_have_the_pixels_that_pillow_gives_them(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    image = seeded.image("noise", 120, 91, 4)
    whole = encoded(image, kind.split()[-1], **({"progressive": True} if " " in kind else {}))
    cut = whole[: int(len(whole) * share)]
    found = np.asarray(open_image(cut, LENIENT))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(io.BytesIO(cut)) as expected:
        np.testing.assert_array_equal(found, np.asarray(_as_opened(expected)))


def _as_opened(image: Image.Image) -> Image.Image:
    image.load()
    return image.convert("RGB") if image.mode == "P" else image


# --- metadata --------------------------------------------------------------------------------------------------------------------------


def png_with(*chunks: tuple[bytes, bytes], after: bool = False, crc: int | None = None) -> bytes:
    """RINGS as a PNG with more chunks, before its pixels or after them; ``crc`` to give them a wrong checksum."""
    whole = encoded(RINGS, "PNG")
    new = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
        for kind, body in chunks
    )
    at = len(whole) - 12 if after else 33
    return whole[:at] + new + whole[at:]


BOMB = zlib.compress(bytes(2 << 20))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"workflow\0\0" + BOMB),
        (b"iTXt", b"workflow\0\1\0\0\0" + BOMB),
        (b"tEXt", b"workflow\0" + bytes(65 << 20)),
        (b"iCCP", b"profile\0\0" + BOMB),
        (b"iCCP", b"profile\0\0not zlib"),
        (b"tEXt", b""),
        (b"acTL", struct.pack(">II", 0, 0)),
        (b"pHYs", b"\0"),
        (b"eXIf", b"junkjunk"),
    ],
)
def test_pixels_do_not_depend_on_the_metadata_of_a_png(chunk: tuple[bytes, bytes], after: bool) -> None:
    for options in (ImageOptions(), LENIENT, ImageOptions(orient=True)):
        np.testing.assert_array_equal(np.asarray(open_image(png_with(chunk, after=after), options)), np.asarray(RINGS))


def test_a_checksum_matters_where_pixels_do() -> None:
    assert open_image(png_with((b"tEXt", b"a\0b"), (b"eXIf", b"MM"), crc=7)).size == RINGS.size
    for kind in (b"tRNS", b"PLTE"):
        with pytest.raises(ImageReadError):
            open_image(png_with((kind, bytes(6)), crc=7))


def test_what_follows_the_end_of_a_png_is_not_read() -> None:
    assert open_image(encoded(RINGS, "PNG") + b"trailer" * 9).size == RINGS.size


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"junkjunk", b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_an_orientation_that_cannot_be_read_is_none(kind: str, exif: bytes) -> None:
    content = encoded(RINGS, kind, exif=exif)
    turned = open_image(content, ImageOptions(orient=True))
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(open_image(content)))


@pytest.mark.parametrize("orientation", range(1, 10))
def test_orientations_are_those_of_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(RINGS, "PNG", exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(np.asarray(open_image(content, ImageOptions(orient=True))), expected)


def with_broken_tags(content: bytes, *tags: int) -> bytes:
    """A little-endian TIFF whose entries of these tags point beyond its end, which Pillow warns of."""
    (start,) = struct.unpack_from("<I", content, 4)
    (num,) = struct.unpack_from("<H", content, start)
    broken = bytearray(content)
    for at in range(start + 2, start + 2 + 12 * num, 12):
        if struct.unpack_from("<H", content, at)[0] in tags:
            struct.pack_into("<HII", broken, at + 2, 2, 1 << 20, len(content) - 2)
    return bytes(broken)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "CMYK"])
def test_pixels_do_not_depend_on_the_metadata_of_a_tiff(mode: str, compression: str) -> None:
    if compression == "jpeg" and mode in ("RGBA", "P", "1", "I;16"):
        pytest.skip("not JPEG's")
    image = RINGS.convert("L").convert(mode) if mode == "I;16" else RINGS.convert(mode)
    tags = {270: "a description", 305: "a program", 315: "an artist"}
    content = encoded(image, "TIFF", compression=compression, tiffinfo=tags, dpi=(72, 72))
    expected = np.asarray(_resolved(content))
    np.testing.assert_array_equal(np.asarray(open_image(content)), expected)
    np.testing.assert_array_equal(np.asarray(open_image(with_broken_tags(content, *tags))), expected)  # warnings are errors here


def _resolved(content: bytes) -> Image.Image:
    """As Pillow reads it, in the mode that ``open_image`` gives."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return open_image(image)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tiff_is_turned_as_pillow_turns_it(orientation: int) -> None:
    content = encoded(RINGS, "TIFF", tiffinfo={274: orientation})
    np.testing.assert_array_equal(np.asarray(open_image(content)), np.asarray(_resolved(content)))


# --- tensors with gradients ----------------------------------------------------------------------------------------------------------


def assert_near_the_pillow_path(pixels: np.ndarray, size: int) -> None:
    transform = ImageTransform(size, options=ImageOptions(min_side=1))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    found = transform.crop_tensor(tensor)[0] * 255
    assert (found - transform.crop(pixels).float()).abs().max().item() <= 2.0


@pytest.mark.parametrize("size", [64, 224])
def test_crop_tensor_is_near_the_pillow_path(size: int) -> None:
    for image in seeded.images():
        assert_near_the_pillow_path(np.array(image), size)


@given(st.integers(1, 200), st.integers(1, 200), st.booleans(), st.integers(0, 99), st.sampled_from([16, 64]))
@settings(max_examples=60, deadline=None)
def test_crop_tensor_is_near_the_pillow_path_on_noise(width: int, height: int, hard: bool, seed: int, size: int) -> None:
    pixels = noise(width, height, seed=seed)
    assume(max(width, height) / min(width, height) * size <= 8192)  # longer strips are refused
    assert_near_the_pillow_path((pixels > 127).astype(np.uint8) * 255 if hard else pixels, size)


def test_crop_tensor_has_the_gradient_of_its_values() -> None:
    transform = ImageTransform(8)
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(2, 3, 13, 21, generator=generator) * 0.4 + 0.3).requires_grad_()  # away from the clipping
    weights = torch.randn(2, 3, 8, 8, generator=generator)
    (gradient,) = torch.autograd.grad((transform.crop_tensor(pixels) * weights).sum(), pixels)
    direction = torch.randn(pixels.shape, generator=generator)
    step = 0.01
    up, down = ((transform.crop_tensor(pixels.detach() + sign * step * direction) * weights).sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-3)
    assert gradient[:, :, :, 10].abs().max() > 0
    assert gradient[:, :, :, 0].abs().max() == 0  # cropped away
    edge = torch.ones(1, 3, 8, 8, requires_grad=True)
    assert torch.autograd.grad(transform.crop_tensor(edge).sum(), edge)[0].unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 8, 8), r"pixels must be floats of shape \[B, 3, H, W\], not torch.float32 \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), "pixels must be floats of shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "pixels must be floats of shape .* not torch.uint8"),
        (torch.zeros(1, 3, 0, 8), "have no pixels"),
        (torch.full((1, 3, 8, 8), float("nan")), "pixels holds NaN"),
        (torch.full((1, 3, 8, 8), -1.0), "pixels holds values from -1 to -1"),
        (torch.zeros(1, 3, 1, 5000), r"\(1, 3, 1, 5000\) are too long a strip to resize with gradients; crop it first"),
    ],
)
def test_crop_tensor_refuses(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(ImageReadError, match=message):
        ImageTransform(32).crop_tensor(pixels)


def test_crop_tensor_of_nothing() -> None:
    assert ImageTransform(32).crop_tensor(torch.zeros(0, 3, 50, 40)).shape == (0, 3, 32, 32)


# --- other ways to fit -----------------------------------------------------------------------------------------------------------------


def padded_in_own_mode(image: Image.Image, size: int) -> np.ndarray:
    """OpenCLIP's ``resize_longest_max``, written anew: resize, lay onto zeros of the image's mode, convert to RGB."""
    scale = size / max(image.size)
    new = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC)
    square = Image.new(image.mode, (size, size), tuple(0 for _ in image.getbands()) if len(image.getbands()) > 1 else 0)
    square.paste(new, ((size - new.width) // 2, (size - new.height) // 2))
    return np.asarray(square.convert("RGB"))


def fitted(source: Any, size: int = 32, **options: Any) -> np.ndarray:
    return ImageTransform(size, options=ImageOptions(min_side=1), **options).crop(source).permute(1, 2, 0).numpy()


SHAPES = [(100, 300), (100, 201), (300, 100), (97, 61), (61, 97), (120, 119), (64, 64), (32, 32), (32, 20), (9, 32), (20, 7), (400, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "CMYK"])
def test_padding_is_openclips(shape: tuple[int, int], mode: str) -> None:
    if int(PIL.__version__.split(".")[0]) < 13 and shape[1] > 2 * shape[0]:
        pytest.skip("this Pillow resizes tall images in another order")
    channels = noise(*shape, len(Image.new(mode, (1, 1)).getbands()), seed=3)
    image = Image.merge(mode, [Image.fromarray(channels[..., i]) for i in range(channels.shape[-1])])
    np.testing.assert_array_equal(fitted(image, fit="pad"), padded_in_own_mode(image, 32))


def test_padding_is_black_and_even() -> None:
    found = fitted(Image.new("RGB", (64, 42), "white"), fit="pad")  # 32 x 21: 5 rows above, 6 below
    assert (found[:5] == 0).all()
    assert (found[5:26] == 255).all()
    assert (found[26:] == 0).all()
    pixels = ImageTransform(32, fit="pad")(Image.new("RGB", (64, 42), "white"))
    np.testing.assert_allclose(pixels[:, 0, 0], [-m / s for m, s in zip(ImageTransform.mean, ImageTransform.std, strict=True)], rtol=1e-6)


def skip_tall_images_of_older_pillow(width: int, height: int) -> None:
    if int(PIL.__version__.split(".")[0]) < 13 and height - 32 > max(0, 2 * (width - 32)):
        pytest.skip("this Pillow resizes tall images in another order")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_stretching_is_plain_resizing_in_rgb(shape: tuple[int, int], mode: str) -> None:
    image = Image.merge(mode, [Image.fromarray(noise(*shape, 1, seed=i)[..., 0]) for i in range(len(mode))])
    width, height = shape
    skip_tall_images_of_older_pillow(width, height)
    expected = image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fitted(image, fit="stretch"), np.asarray(expected))


@pytest.mark.parametrize("shape", [(64, 71), (67, 64), (70, 64), (64, 200), (130, 97)])
def test_cropping_as_transformers_does(shape: tuple[int, int]) -> None:
    skip_tall_images_of_older_pillow(*shape)
    try:
        from transformers import CLIPImageProcessorPil
    except ImportError:  # its name before transformers 5.1
        from transformers import CLIPImageProcessor as CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False)
    for image in (Image.fromarray(noise(*shape)), Image.fromarray(noise(*shape, 4))):
        (expected,) = processor(image.convert("RGB"), return_tensors="np")["pixel_values"]  # later versions lay alpha on white
        expected = (expected * 255).round().astype(np.uint8).transpose(1, 2, 0)
        np.testing.assert_array_equal(fitted(image, convention="transformers"), expected)


def test_the_conventions_differ_by_a_pixel_and_under_transparency() -> None:
    image = Image.fromarray(noise(64, 70))  # 32 x 35: a margin of 3, of which 2 or 1 come off the top
    np.testing.assert_array_equal(fitted(image)[:-1], fitted(image, convention="transformers")[1:])
    veiled = np.full((64, 64, 4), 255, np.uint8)
    veiled[:, 32:] = (0, 200, 0, 0)
    assert not np.array_equal(fitted(veiled), fitted(veiled, convention="transformers"))


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 9), st.sampled_from(["pad", "stretch"]), st.sampled_from([16, 64]))
@settings(max_examples=60, deadline=None)
def test_tensors_are_fitted_as_files_are(width: int, height: int, seed: int, fit: Any, size: int) -> None:
    transform = ImageTransform(size, options=ImageOptions(min_side=1), fit=fit)
    pixels = noise(width, height, seed=seed)
    found = transform.crop_tensor(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0] * 255
    assert found.shape == (3, size, size)
    assert (found - transform.crop(pixels).float()).abs().max().item() <= 2.0


@pytest.mark.parametrize("shape", [(13, 21), (21, 13), (40, 9), (8, 5), (8, 8)])
@pytest.mark.parametrize("options", [{"fit": "pad"}, {"fit": "stretch"}, {"convention": "transformers"}])
def test_fitted_tensors_have_the_gradient_of_their_values(shape: tuple[int, int], options: dict[str, Any]) -> None:
    transform = ImageTransform(8, **options)
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(2, 3, *shape, generator=generator) * 0.4 + 0.3).requires_grad_()  # away from the clipping
    weights = torch.randn(2, 3, 8, 8, generator=generator)
    (gradient,) = torch.autograd.grad((transform.crop_tensor(pixels) * weights).sum(), pixels)
    direction = torch.randn(pixels.shape, generator=generator)
    up, down = ((transform.crop_tensor(pixels.detach() + sign * 0.01 * direction) * weights).double().sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) / 0.02).item(), rel=2e-3)
    if "fit" in options:
        assert (gradient.abs().sum(dim=(0, 1)) > 0).all()  # nothing is cropped away


def test_a_strip_that_is_padded_needs_no_part_of_it() -> None:
    strip = noise(20_000, 2)
    assert fitted(strip, fit="pad").shape == (32, 32, 3)
    assert ImageTransform(32, fit="pad").crop_tensor(torch.zeros(1, 3, 1, 5000)).shape == (1, 3, 32, 32)


def test_unknown_ways_to_fit() -> None:
    with pytest.raises(ValueError, match=r"fit must be one of \('crop', 'pad', 'stretch'\), not 'squash'"):
        ImageTransform(32, fit="squash")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"convention must be one of \('openai', 'transformers'\), not 'timm'"):
        ImageTransform(32, convention="timm")  # type: ignore[arg-type]


# --- the rest ------------------------------------------------------------------------------------------------------------------------


def test_unique_images() -> None:
    array = np.zeros((2, 2), np.uint8)
    make: Callable[[], Any] = lambda: "a.png"  # noqa: E731
    given_images = ["a.png", Path("a.png"), b"x", bytes([120]), array, array, array.copy(), make, make, "b.png"]
    unique, index = unique_images(given_images)
    assert index == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5]
    assert len(unique) == 6
    assert unique_images([]) == ([], [])


def test_transform_pickles_small() -> None:
    transform = ImageTransform(64, options=LENIENT)
    assert len(pickle.dumps(transform)) < 600
    assert pickle.loads(pickle.dumps(transform)) == transform
