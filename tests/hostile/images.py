"""Malformed images, each used by ``score``, by the command, and as a row of a job."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageSequence

from hostile import (
    CLOSE,
    MODEL,
    PROMPTS,
    SPECIAL,
    Case,
    FaultError,
    attempt,
    command,
    command_refuses,
    encoded,
    flips,
    pictures,
    refused,
    rewards,
    scorer,
    sparse,
    write,
    zeros,
)
from hostile.rows import run_job

GROUP = "images"

Outcome = Literal["right", "refused", "right or refused", "as decoded or refused", "finite or refused"]
"""``right``: the reward of the original. ``as decoded``: that of the pixels which Pillow alone makes of the file."""


def cases() -> Iterator[Case]:
    yield from truncated()
    yield from flipped()
    yield from other_files()
    yield from chunks()
    yield from large()
    yield from variants()
    yield from special_files()
    yield from names()
    yield from objects()


def image(
    name: str,
    content: bytes | str | Callable[[Path], None],
    outcome: Outcome = "refused",
    file: str = "hostile.png",
    says: tuple[str, ...] = (),
    **options: Any,
) -> Case:
    thorough = bool(options or says or zlib.crc32(name.encode()) % 4 == 0)  # the command takes longest, and is asked of some
    return Case(GROUP, name, functools.partial(_use, content, outcome, file, says, thorough, options))


def _use(
    content: bytes | str | Callable[[Path], None],
    outcome: Outcome,
    file: str,
    says: tuple[str, ...],
    thorough: bool,
    options: dict[str, Any],
    folder: Path,
) -> None:
    path = str(write(folder / file, content))
    reward = attempt(lambda: scorer(**options).score(PROMPTS[0], path))
    shown = file if file.isprintable() and file.isascii() else file.split("\n")[0][:3]
    _check(reward, outcome, path, (shown, *says))
    if thorough:
        flags = [f"--{name.replace('_', '-')}" for name in options]
        arguments = ["score", PROMPTS[0], path, "--model", MODEL, *flags]
        if isinstance(reward, Exception):
            command_refuses(*arguments, names=shown)
        else:
            ended = command(*arguments, "--json")
            if ended.code or abs(json.loads(ended.output)["images"][0]["reward"] - reward) > CLOSE:
                raise FaultError(f"the command gives another reward than {reward}: {ended}")
    if not options and file.isprintable():
        _check_in_job(folder, file, reward, shown)


def _check(reward: Any, outcome: Outcome, path: str, says: tuple[str, ...]) -> None:
    if isinstance(reward, Exception):
        if "refused" not in outcome:
            raise FaultError(f"it is refused, and should be scored: {type(reward).__name__}: {reward}")
        return refused(reward, *says)
    if not math.isfinite(reward):
        raise FaultError(f"the reward is {reward}")
    if outcome == "refused":
        raise FaultError(f"it is scored: {reward}")
    if outcome != "finite or refused":
        expected = rewards()[0] if outcome.startswith("right") else _decoded(path)
        if abs(reward - expected) > CLOSE:
            raise FaultError(f"the reward is {reward}, and should be {expected}")
    return None


def _decoded(path: str) -> float:
    with Image.open(path) as opened:
        opened.load()
        plain = opened.convert("RGBA" if "transparency" in opened.info else opened.mode)
    return float(scorer().score(PROMPTS[0], plain))


def _check_in_job(folder: Path, file: str, reward: Any, shown: str) -> None:
    """Beside a good row, which must be scored, the image does as it did alone."""
    pictures()[1].save(folder / "good.png")
    lines = [{"prompt": PROMPTS[0], "image": file}, {"prompt": PROMPTS[1], "image": "good.png"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    row, good = run_job(folder / "rows.jsonl", folder / "job").rows
    if good["reward"] is None or abs(good["reward"] - rewards()[1]) > CLOSE:
        raise FaultError(f"a good row beside it has {good}")
    if isinstance(reward, Exception) != (row["reward"] is None) or (row["reward"] is None) == (row["error"] is None):
        raise FaultError(f"alone it gives {reward!r}, and in a job {row}")
    if row["reward"] is None and shown not in row["error"]:
        raise FaultError(f"the row's error does not name {shown}: {row['error']}")
    if row["reward"] is not None and abs(row["reward"] - reward) > CLOSE:
        raise FaultError(f"alone it gives {reward}, and in a job {row}")


# --- damage --------------------------------------------------------------------------------------------------------------------------


def whole() -> dict[str, bytes]:
    """The first picture in many formats; those that lose something are as Pillow decodes them."""
    Image.init()
    return {
        "PNG": encoded("PNG"),
        "JPEG": encoded("JPEG", quality=95),
        "WebP": encoded("WebP", lossless=True),
        "GIF": encoded("GIF"),
        "BMP": encoded("BMP"),
        "TIFF": encoded("TIFF"),
        "TIFF, deflated": encoded("TIFF", compression="tiff_adobe_deflate"),
        "PPM": encoded("PPM"),
        **({"AVIF": encoded("AVIF", quality=90)} if "AVIF" in Image.SAVE else {}),  # which Pillow has from 11.3 on
    }


def truncated() -> Iterator[Case]:
    for form, data in whole().items():
        for part in (1, 12, len(data) // 4, len(data) // 2, len(data) * 9 // 10, len(data) - 1):
            yield _cut(form, data, part)


def _cut(form: str, data: bytes, part: int) -> Case:
    """What is missing at the very end may be no pixel; what is missing elsewhere must never become a score."""

    def use(folder: Path) -> None:
        path = str(write(folder / "cut.img", data[:part]))
        entire = float(scorer().score(PROMPTS[0], Image.open(io.BytesIO(data))))
        reward = attempt(lambda: scorer().score(PROMPTS[0], path))
        if isinstance(reward, Exception):
            refused(reward, "cut.img")
        elif part <= 12 or abs(reward - entire) > CLOSE:
            raise FaultError(f"it is scored {reward}, and the whole file {entire}")
        _check_in_job(folder, "cut.img", reward, "cut.img")
        lenient = attempt(lambda: scorer(allow_truncated=True).score(PROMPTS[0], path))
        _check(lenient, "finite or refused", path, ("cut.img",))

    return Case(GROUP, f"{form} of {len(data)} bytes cut after {part}", use)


def flipped() -> Iterator[Case]:
    for form, data in whole().items():
        for number, copy in enumerate([*flips(data, 2, stop=64), *flips(data, 2)]):
            yield image(f"{form} with a bit turned, {number}", copy, "as decoded or refused", "flipped.img")
    for form in ("PNG", "JPEG", "WebP", "GIF"):
        data = whole()[form]
        middle = len(data) // 2
        yield image(f"{form} with zeros in the middle", data[:middle] + bytes(64) + data[middle + 64 :], "as decoded or refused")


MAGIC = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "MP4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
    "JPEG XL": b"\xff\x0a\xfa\x1f",
    "JPEG XL in a container": b"\0\0\0\x0cJXL \r\n\x87\n",
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "PSD": b"8BPS\0\1\0\0\0\0\0\0\0\3",
    "EMF": b"\1\0\0\0" + bytes(36) + b" EMF",
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(18),
    "FITS": b"SIMPLE  =                    T",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "GRIB": b"GRIB\0\0\0\1",
    "an OLE file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a cursor": b"\0\0\2\0\1\0",
    "ICNS": b"icns\0\0\1\0",
    "DDS": b"DDS |\0\0\0",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "SGI": b"\x01\xda\1\1\0\3\0\x10\0\x10\0\3",
    "FLI": b"\0\0\0\0\x11\xaf\1\0",
    "PCX": b"\x0a\5\1\x08\0\0\0\0\xff\xff\xff\xff",
    "BigTIFF": b"II\x2b\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    "numpy": b"\x93NUMPY\1\0v\0{'descr': '<f4'",
    "an ELF program": b"\x7fELF\2\1\1",
    "a pickle": b"\x80\4\x95",
}


def other_files() -> Iterator[Case]:
    png = encoded("PNG")
    for form, start in MAGIC.items():
        yield image(f"the beginning of {form}", start + bytes(300), "refused", "other.png")
    for name, content, says in (
        ("an HTML page", "<!DOCTYPE html><html><body>404 Not Found</body></html>", ()),
        ("a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", ("LFS",)),
        ("an XML error of a store", "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", ()),
        ("an SVG drawing", "<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>", ()),
        ("JSON", '{"error": "rate limited"}', ()),
        ("its own base64", base64.b64encode(png), ()),
        ("a data address", b"data:image/png;base64," + base64.b64encode(png), ()),
        ("gzip of it", gzip.compress(png), ()),
        ("a PostScript program", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n", ()),
        ("zeros", bytes(4096), ()),
        ("letters", "a" * 4096, ()),
        ("noise", np.random.RandomState(0).bytes(4096), ()),
        ("white space", " \n" * 100, ()),
        ("text of 400 digits", "9" * 400, ()),
    ):
        yield image(f"{name} instead", content, "refused", "other.jpg", says)
    yield image("an icon of several sizes", encoded("ICO"), "refused", "other.png")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", png)
    yield image("a zip archive", archive.getvalue(), "refused")
    yield image("line ends changed as in a text", png.replace(b"\n", b"\r\n"))
    yield image("read as Latin-1 and written as UTF-8", png.decode("latin-1").encode())
    yield image("only seven bits of each byte", bytes(byte & 127 for byte in png))
    yield image("a byte order mark before it", b"\xef\xbb\xbf" + png)
    yield image("a line before it", b"\n" + png)
    yield image("an HTTP header before it", b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + png)
    yield image("a page after it", png + b"<html></html>", "right")
    yield image("a megabyte of zeros after it", png + bytes(1 << 20), "right")
    yield image("an archive after it", png + archive.getvalue(), "right")
    yield image("a BMP called JPEG", encoded("BMP"), "right", "other.jpg")
    yield image("a PNG called TIFF", png, "right", "other.tiff")
    yield image("a PNG without a suffix", png, "right", "other")
    yield image("a GIF called CSV", encoded("GIF", pictures()[0].quantize(200)), "as decoded or refused", "other.csv")


# --- PNG and its chunks --------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes = b"", crc: int | None = None) -> bytes:
    check = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_with(*extra: bytes) -> bytes:
    """The original with chunks after its header."""
    data = encoded("PNG")
    return data[:33] + b"".join(extra) + data[33:]


def png_of(
    width: int, height: int, depth: int = 8, color: int = 2, rest: tuple[int, int, int] = (0, 0, 0), pixels: bytes | None = None
) -> bytes:
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, color, *rest)
    body = zlib.compress(bytes(1000) if pixels is None else pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND")


def raw_pixels() -> bytes:
    picture = np.asarray(pictures()[0])
    return b"".join(b"\0" + row.tobytes() for row in picture)


def chunks() -> Iterator[Case]:
    png = encoded("PNG")
    idat = chunk(b"IDAT", zlib.compress(raw_pixels()))
    start, end = png[:33], chunk(b"IEND")
    text = b"workflow\0"
    for name, data, outcome in (
        ("a comment of 2 MiB, packed", png_with(chunk(b"zTXt", text + b"\0" + zlib.compress(b"x" * (2 << 20)))), "right"),
        ("a comment of 4 GiB, packed", png_with(chunk(b"zTXt", text + b"\0" + zeros(4 << 30))), "right"),
        ("an international comment of 2 MiB", png_with(chunk(b"iTXt", text + b"\1\0\0\0" + zlib.compress(b"x" * (2 << 20)))), "right"),
        ("70 comments of a MiB", png_with(*[chunk(b"tEXt", text + b"x" * (1 << 20))] * 70), "right"),
        ("a comment that is not packed as it says", png_with(chunk(b"zTXt", text + b"\0junk")), "right or refused"),
        ("a comment with lone surrogates", png_with(chunk(b"iTXt", text + b"\0\0\0\0" + b"\xed\xa0\x80")), "right"),
        ("a colour profile of 2 MiB", png_with(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2 << 20)))), "right"),
        ("a colour profile of 4 GiB, packed", png_with(chunk(b"iCCP", b"p\0\0" + zeros(4 << 30))), "right"),
        ("a colour profile of junk", png_with(chunk(b"iCCP", b"p\0\0junk")), "right"),
        ("EXIF of junk", png_with(chunk(b"eXIf", b"junkjunk")), "right"),
        ("a chunk that nobody knows", png_with(chunk(b"juNk", bytes(1000))), "right"),
        ("an animation of no frames", png_with(chunk(b"acTL", struct.pack(">II", 0, 0))), "right or refused"),
        ("an animation of 4,000 million frames", png_with(chunk(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0))), "right or refused"),
        ("a chunk that says it has 4 GB", start + b"\xff\xff\xff\xffIDAT" + png[41:], "right or refused"),
        ("a header with a wrong checksum", png[:29] + b"\0\0\0\0" + png[33:], "refused"),
        ("a palette of a thousand colours", png_with(chunk(b"PLTE", bytes(3000))), "right or refused"),
        ("a second header", png_with(chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 8, 2, 0, 0, 0))), "as decoded or refused"),
        ("no pixels", start + end, "refused"),
        ("no end", start + idat, "right or refused"),
        ("ten thousand empty chunks", start + chunk(b"IDAT") * 10_000 + idat + end, "right"),
        ("pixels in chunks of a byte", start + b"".join(chunk(b"IDAT", bytes([b])) for b in zlib.compress(raw_pixels())) + end, "right"),
        ("half of its rows", png_of(96, 80, pixels=raw_pixels()[: 289 * 40]), "as decoded or refused"),
        ("4 GiB of pixels too many", start + chunk(b"IDAT", zeros(4 << 30)) + end, "finite or refused"),
        ("rows filtered in a way that does not exist", png_of(96, 80, pixels=raw_pixels().replace(b"\0", b"\5", 1)), "refused"),
        ("nothing but its signature", png[:8], "refused"),
        ("no sides", png_of(0, 0), "refused"),
        ("no width", png_of(0, 50), "refused"),
        ("sides beyond any number", png_of(-1, -1), "refused"),
        ("a depth of three bits", png_of(96, 80, depth=3), "refused"),
        ("colours of a kind that does not exist", png_of(96, 80, color=5), "refused"),
        ("another way of packing", png_of(96, 80, rest=(9, 0, 0), pixels=raw_pixels()), "right or refused"),
        ("another way of interlacing", png_of(96, 80, rest=(0, 0, 7), pixels=raw_pixels()), "refused"),
        ("a palette that is missing", png_of(96, 80, color=3), "as decoded or refused"),
    ):
        yield image(f"PNG with {name}", data, outcome)  # type: ignore[arg-type]
    for name, orientation in (("none", 0), ("nine", 9), ("much", 65535)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield image(f"an orientation of {name}", encoded("PNG", exif=exif), "right", orient=True)
    yield image("EXIF of junk where it matters", png_with(chunk(b"eXIf", b"junkjunk")), "right", orient=True)
    yield image("WebP with EXIF of junk where it matters", encoded("WebP", lossless=True, exif=b"junkjunk"), "right", orient=True)
    yield image(
        "a comment of 2 MiB in a truncated reading", png_with(chunk(b"zTXt", text + b"\0" + zeros(2 << 20))), "right", allow_truncated=True
    )


# --- sizes ---------------------------------------------------------------------------------------------------------------------------


def with_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that says it has another size."""
    place = data.index(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def tiff_with(tag: int, count: int, value: int, kind: int = 4) -> bytes:
    """A TIFF in which one entry of the directory is another."""
    data = bytearray(encoded("TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == tag:
            struct.pack_into("<HHII", data, entry, tag, kind, count & 0xFFFFFFFF, value & 0xFFFFFFFF)
    return bytes(data)


def next_directory(data: bytes, offset: int) -> bytes:
    """A TIFF whose last directory is followed by one at ``offset``."""
    changed = bytearray(data)
    place = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", changed, place + 2 + 12 * struct.unpack_from("<H", data, place)[0], offset)
    return bytes(changed)


def animation(form: str, frames: int) -> bytes:
    other = [Image.new("RGB", pictures()[0].size, (number % 256, 0, 0)) for number in range(frames)]
    return encoded(form, save_all=True, append_images=other, **({"lossless": True} if form == "WebP" else {}))


def large() -> Iterator[Case]:
    jpeg, bmp, gif = encoded("JPEG", quality=95), encoded("BMP"), encoded("GIF", pictures()[0].quantize(200))
    offset = struct.unpack_from("<I", encoded("TIFF"), 4)[0]
    for name, data, outcome in (
        ("a PNG of 50,000 x 50,000", png_of(50_000, 50_000, depth=1, color=0), "refused"),
        ("a PNG of 2,147,483,647 x 2,147,483,647", png_of(2**31 - 1, 2**31 - 1), "refused"),
        ("a PNG of 2,147,483,647 x 1", png_of(2**31 - 1, 1), "refused"),
        ("a PNG of 12,000 x 12,000 without its rows", png_of(12_000, 12_000), "refused"),
        ("a PNG of 12,000 x 12,000, deflated", lambda p: p.write_bytes(_black(12_000)), "finite or refused"),
        ("a JPEG of 65,500 x 65,500", with_size(jpeg, 65_500, 65_500), "refused"),
        ("a JPEG of 4,000 x 4,000 without its rows", with_size(jpeg, 4_000, 4_000), "as decoded or refused"),
        ("a JPEG without sides", with_size(jpeg, 0, 0), "refused"),
        ("a GIF with a screen of 65,535 x 65,535", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], "refused"),
        ("a BMP of 2,147,483,647 x 2,147,483,647", bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:], "refused"),
        ("a BMP of a negative width", bmp[:18] + struct.pack("<ii", -96, 80) + bmp[26:], "refused"),
        ("a BMP from top to bottom", bmp[:22] + struct.pack("<i", -80) + bmp[26:], "as decoded or refused"),
        ("a BMP whose pixels begin beyond it", bmp[:10] + struct.pack("<I", 0xFFFFFFF0) + bmp[14:], "refused"),
        ("a TIFF of 2,147,483,647 columns", tiff_with(256, 1, 2**31 - 1), "refused"),
        ("a TIFF of negative rows", tiff_with(257, 1, -80, 9), "refused"),
        ("a TIFF whose strips are 4,000 million", tiff_with(273, 0xFFFFFFFF, 8), "refused"),
        ("a TIFF whose strips are beyond it", tiff_with(273, 1, 0xFFFFFFF0), "refused"),
        ("a TIFF of 65,535 samples", tiff_with(277, 1, 65535), "refused"),
        ("a TIFF whose directory leads to itself", next_directory(encoded("TIFF"), offset), "right or refused"),
        ("a TIFF whose next directory is beyond it", next_directory(encoded("TIFF"), 0xFFFFFFF0), "right or refused"),
        ("a TIFF whose first directory is beyond it", encoded("TIFF")[:4] + b"\xf0\xff\xff\xff" + encoded("TIFF")[8:], "refused"),
        ("a PPM of 400 digits", b"P6\n" + b"9" * 400 + b" 1\n255\n", "refused"),
        ("a PPM of a million spaces", b"P6" + b" " * (1 << 20), "refused"),
        ("a PPM of 99,999 x 99,999", b"P6\n99999 99999\n255\n", "refused"),
        ("a PPM with a negative side", b"P6\n-5 5\n255\n" + bytes(75), "refused"),
        ("a PPM without colours", b"P6\n5 5\n0\n" + bytes(75), "refused"),
        ("an XBM of 50,000 x 50,000", "#define a_width 50000\n#define a_height 50000\nstatic char a_bits[] = {\n", "refused"),
        ("a WebP of 16,383 x 16,383", _webp_screen(), "refused"),
        ("a strip of 30,000 x 2", encoded("PNG", Image.new("RGB", (30_000, 2), "red")), "as decoded or refused"),
        ("one pixel", encoded("PNG", Image.new("RGB", (1, 1))), "refused"),
        ("one row", encoded("PNG", Image.new("RGB", (5_000, 1))), "refused"),
        ("four pixels", encoded("PNG", pictures()[0].crop((6, 6, 8, 8))), "as decoded or refused"),
    ):
        yield image(name, data, outcome)  # type: ignore[arg-type]
    for form in ("GIF", "WebP", "PNG", "TIFF"):
        yield Case(GROUP, f"{form} of 300 frames", functools.partial(_use_animation, form))
    yield image("a sparse file that begins as a PNG", sparse(50 << 30, encoded("PNG")[:100]))
    yield image("a sparse file after a whole PNG", sparse(50 << 30, encoded("PNG")), "right or refused")
    yield image("a sparse BMP", sparse(50 << 30, bmp[:54]), "finite or refused")


def _use_animation(form: str, folder: Path) -> None:
    data = animation(form, 300)
    with Image.open(io.BytesIO(data)) as opened:
        first = next(iter(ImageSequence.Iterator(opened))).convert("RGB")
    if abs(scorer().score(PROMPTS[0], data) - scorer().score(PROMPTS[0], first)) > CLOSE:
        raise FaultError("the reward is not that of the first frame")
    _use(data, "as decoded or refused", "many.img", (), False, {}, folder)


def _black(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes((side // 8 + 1) * side))) + chunk(b"IEND")


def _webp_screen() -> bytes:
    """An extended WebP with the largest screen, and the original as its only content."""
    plain = encoded("WebP", lossless=True)
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\0\xfe\x3f\0" + plain[12:]
    return b"RIFF" + struct.pack("<I", len(extended) + 4) + b"WEBP" + extended


# --- right, if odd -------------------------------------------------------------------------------------------------------------------


def variants() -> Iterator[Case]:
    first = pictures()[0]
    grey = first.convert("L")
    values = np.asarray(grey, dtype=np.float32) / 255
    values[3, 3] = np.nan
    clear = first.convert("RGBA")
    clear.putalpha(0)
    for name, data, outcome in (
        ("CMYK", encoded("JPEG", first.convert("CMYK")), "as decoded or refused"),
        ("a palette", encoded("PNG", first.quantize(16)), "finite or refused"),
        ("a palette with clear colours", encoded("PNG", first.quantize(16), transparency=b"\0\x80\xff"), "finite or refused"),
        ("one bit", encoded("PNG", first.convert("1")), "finite or refused"),
        ("16 bits", encoded("PNG", Image.fromarray(np.asarray(grey).astype(np.uint16) * 256)), "finite or refused"),
        ("floats with NaN", encoded("TIFF", Image.fromarray(values)), "finite or refused"),
        ("floats beyond white", encoded("TIFF", Image.fromarray(values * 1e30)), "finite or refused"),
        ("32 bits", encoded("TIFF", Image.fromarray(np.asarray(grey).astype(np.int32) << 20)), "finite or refused"),
        ("nothing visible", encoded("PNG", clear), "finite or refused"),
        ("a clear colour", encoded("PNG", first, transparency=(1, 2, 3)), "right"),
        ("LAB", encoded("TIFF", Image.new("LAB", (96, 80), (50, 0, 0))), "finite or refused"),
    ):
        yield image(f"an image in {name}", data, outcome)  # type: ignore[arg-type]


# --- names -----------------------------------------------------------------------------------------------------------------------------


def special_files() -> Iterator[Case]:
    for name, make in SPECIAL.items():
        yield image(f"{name} for an image", make, "refused", "special.png")
    if os.getuid() != 0:
        yield image("an image that may not be read", lambda p: (p.write_bytes(encoded("PNG")), p.chmod(0)), file="special.png")  # type: ignore[arg-type,return-value]
    yield Case(GROUP, "a folder for an image", _use_folder)
    yield Case(GROUP, "a file in place of a folder", functools.partial(_use_missing, "plain.txt/cat.png", "cat.png"))
    yield Case(GROUP, "a folder that leads to itself", functools.partial(_use_missing, "loop/cat.png", "cat.png"))


def _use_folder(folder: Path) -> None:
    (folder / "special.png").mkdir()
    reward = attempt(lambda: scorer().score(PROMPTS[0], str(folder / "special.png")))
    _check(reward, "refused", "", ("special.png",))
    command_refuses("score", PROMPTS[0], str(folder / "special.png"), "--model", MODEL, names="special.png")
    _check_in_job(folder, "special.png", reward, "special.png")


def _use_missing(name: str, names: str, folder: Path) -> None:
    (folder / "plain.txt").write_text("text")
    (folder / "loop").symlink_to("loop")
    reward = attempt(lambda: scorer().score(PROMPTS[0], os.path.join(folder, name)))  # noqa: PTH118 - not every name is a path
    _check(reward, "refused", "", (names,))
    command_refuses("score", PROMPTS[0], str(folder / name), "--model", MODEL, names=names)
    _check_in_job(folder, name, reward, names)


def names() -> Iterator[Case]:
    png = encoded("PNG")
    for name, file in (
        ("bytes that are not UTF-8", "hostile\udce9.png"),
        ("a line end", "hos\ntile.png"),
        ("an escape", "hos\x1b]0;title\x07.png"),
        ("every sign of the shell", "hos $(x) `y` & | ; * ? [z] ' \" \\.png"),
        ("255 bytes", "h" * 251 + ".png"),
        ("text from right to left", "hos\u202egnp.png"),
        ("markup", "hos[bold red]%s{0}.png"),
        ("a dash", "-hos.png"),
        ("a hash", "hos.tar#1.png"),
        ("a scheme", "s3:hos.png"),
    ):
        yield image(f"a name of {name}", png, "right", file)
        yield image(f"a name of {name}, cut", png[:200], "refused", file)
    for name, path in (
        ("an address of the web", "https://example.org/cat.png"),
        ("a file address", "file:///etc/cat.png"),
        ("a data address as a name", "data:image/png;base64,iVBORw0KGgo=/cat.png"),
        ("a name of Windows", "C:\\Users\\me\\cat.png"),
        ("a home that nobody has", "~nobody-here/cat.png"),
        ("a wildcard that matches nothing", "none*cat.png"),
        ("a name of 5,000 letters", "cat.png" + "x" * 5000),
        ("a name of 50,000 folders", "x/" * 50_000 + "cat.png"),
    ):
        yield Case(GROUP, name, functools.partial(_use_missing, path, "cat.png" if len(path) < 200 else path[:40]))


# --- in memory -----------------------------------------------------------------------------------------------------------------------


def objects() -> Iterator[Case]:
    ones = np.ones((5, 5, 3), dtype=np.float32)
    for name, make in (
        ("None", lambda: None),
        ("a number", lambda: 7),
        ("a set", lambda: {1, 2}),
        ("an object of object()", object),
        ("no bytes", lambda: b""),
        ("bytes of text", lambda: b"cat.png"),
        ("an array of NaN", lambda: ones * np.nan),
        ("an array of infinity", lambda: ones * np.inf),
        ("an array up to 255 in floats", lambda: ones * 255),
        ("a negative array", lambda: -ones),
        ("an array of complex numbers", lambda: ones.astype(complex)),
        ("an array of objects", lambda: ones.astype(object)),
        ("an array of words", lambda: np.array([["a", "b"]])),
        ("an empty array", lambda: np.zeros((0, 0, 3))),
        ("an array of five dimensions", lambda: np.zeros((1, 1, 5, 5, 3))),
        ("an array of two channels", lambda: np.zeros((5, 5, 2))),
        ("channels first", lambda: np.zeros((3, 50, 50), dtype=np.uint8)),
        ("an array of signed integers", lambda: np.full((5, 5, 3), -7)),
        ("a tensor of NaN", lambda: torch.full((3, 5, 5), torch.nan)),
        ("a tensor on meta", lambda: torch.zeros(3, 5, 5, device="meta")),
        ("a sparse tensor", lambda: torch.zeros(3, 5, 5).to_sparse()),
        ("a complex tensor", lambda: torch.zeros(3, 5, 5, dtype=torch.complex64)),
        ("a tensor of a batch of two", lambda: torch.zeros(2, 3, 5, 5)),
        ("a closed image", _closed),
        ("a function that returns None", lambda: lambda: None),
        ("a function that returns itself", lambda: _itself),
    ):
        yield Case(GROUP, f"in memory: {name}", functools.partial(_use_object, make))


def _closed() -> Image.Image:
    opened = Image.open(io.BytesIO(encoded("PNG")))
    opened.close()
    return opened


def _itself() -> Any:
    return _itself


def _use_object(make: Callable[[], Any], folder: Path) -> None:
    del folder
    given = make()
    reward = attempt(lambda: scorer().score(PROMPTS[0], [given]))
    if not isinstance(reward, Exception):
        raise FaultError(f"it is scored: {reward}")
    refused(reward)
