"""Files that are, or look like, images: which of a folder are, what they hold, and their bytes, read without waiting or filling memory."""

from __future__ import annotations

import codecs
import os
import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from image_reward.addresses import Address, PathLike
from image_reward.errors import AddressError, FileKindError, FileSizeError, ImageReadError, StoreError
from image_reward.files import open_regular

being_read: ContextVar[str] = ContextVar("being_read", default="")
"""The image that is being decoded, so that whoever shows a warning of Pillow's, which names no file, can say of what it speaks."""

LARGEST_FILE = 1 << 30
"""Bytes. A file beyond this is not a picture, and would fill the memory before a decoder could say so."""

IMAGE_SUFFIXES = frozenset(
    ".apng .avif .avifs .bmp .bw .dds .dib .gif .icb .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .pbm .pcx .pfm .pgm .png "  # noqa: SIM905
    ".pnm .ppm .psd .qoi .ras .rgb .rgba .sgi .tga .tif .tiff .vda .vst .webp .xbm .xpm".split()
)
"""What marks a file of a folder as an image: the endings that Pillow's readable picture formats have."""

UNREADABLE_SUFFIXES = frozenset(
    ".3fr .ai .arw .avi .cr2 .cr3 .dcm .dng .emf .eps .exr .flif .hdr .heic .heics .heif .heifs .hif .icns .ico .jbig2 .jls .jxl .jxr "  # noqa: SIM905
    ".kra .m4v .mkv .mov .mp4 .mpeg .mpg .nef .nrw .orf .pef .ps .raf .raw .rw2 .srw .svg .svgz .webm .wmf .wmv .xcf".split()
)
"""Pictures and videos that are not read here, so that a folder which holds some says so."""

_COMPANIONS = frozenset((".txt", ".json"))  # lie beside images by the million: not opened to see whether they are images themselves

_READABLE = (
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|....ftypavi[fs]"
    rb"|\0\0\0\x0cjP  |\xffO\xffQ|qoif|8BPS"
)
_PICTURE, _VIDEO = "convert it to PNG or JPEG", "save frames of it as PNG or JPEG"
_FOREIGN_PICTURES = {
    rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)": ("a HEIC picture", _PICTURE),
    rb"....ftypavi[fs]": ("an AVIF picture, damaged or beyond this Pillow", _PICTURE),
    rb"....ftypcrx ": ("a raw photograph (CR3)", _PICTURE),
    rb"\xff\x0a|\0\0\0\x0cJXL ": ("a JPEG XL picture", _PICTURE),
    rb"II\xbc": ("a JPEG XR picture", _PICTURE),
    rb"v/1\x01": ("an OpenEXR picture", _PICTURE),
    rb"#\?(RADIANCE|RGBE)": ("a Radiance HDR picture", _PICTURE),
    rb"II\*\0.{4}CR|FUJIFILMCCD-RAW|IIR[OS]|IIU\0": ("a raw photograph", _PICTURE),
    rb".{128}DICM": ("a DICOM picture", _PICTURE),
    rb"gimp xcf": ("a GIMP drawing", _PICTURE),
    rb"(\xef\xbb\xbf)?(<\?xml[^>]*>|<!--(?:(?!-->).)*-->|<!doctype svg[^>]*>|\s)*<svg\b": ("an SVG drawing", _PICTURE),
    rb"....(ftyp|moov|mdat|wide|free|skip)": ("a video (MP4 or QuickTime)", _VIDEO),
    rb"\x1a\x45\xdf\xa3": ("a video (WebM or Matroska)", _VIDEO),
    rb"RIFF....AVI ": ("a video (AVI)", _VIDEO),
    rb"\0\0\x01[\xb3\xba]": ("a video (MPEG)", _VIDEO),
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11|FLV\x01": ("a video (Windows Media or Flash)", _VIDEO),
}
_CONTAINERS = {
    rb"%PDF-": ("a PDF document", "save its pages as PNG"),
    rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf\x27\x1c|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|Rar!": ("a compressed file", "unpack it"),
    rb".{257}ustar": ("a tar archive", "unpack it"),
}
"""What may hold pictures."""
_OTHER_FILES = {
    rb"\x93NUMPY": ("a NumPy array", "read it with numpy.load, and give the array"),
    rb"RIFF....WAVE|OggS|ID3|fLaC": ("a sound", "give an image"),
    rb"version https://git-lfs": ("a Git LFS pointer, not the image", "fetch the image with `git lfs pull`"),
    rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml)\b": (
        "a web page or a server's message, not an image",
        "download the image again",
    ),
}
_HEAD = 1024  # bytes that are enough to tell these


def foreign_format(content: bytes) -> str | None:
    """What a file is that is not an image Pillow can read, and what to do about it; None where that is not known.

    >>> foreign_format(b"\\0\\0\\0\\x18ftypheic")
    'is a HEIC picture; convert it to PNG or JPEG'
    """
    for pattern, (what, remedy) in (_FOREIGN_PICTURES | _CONTAINERS | _OTHER_FILES).items():
        if _begins(pattern, content):
            return f"is {what}; {remedy}"
    if content and not _CONTROL.search(content[:_HEAD]) and _is_utf8(content[:_HEAD]):
        return "is text, perhaps a server's message, and not an image; save or download the image again"
    return None


_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def _is_utf8(head: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()  # which takes a character that is cut at the end
    try:
        decoder.decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _begins(pattern: bytes, content: bytes) -> bool:
    return re.match(pattern, content[:_HEAD], re.DOTALL | re.IGNORECASE) is not None


_ENCODED = re.compile(r"(^|/)(data:[\w/.+-]*[;,]|(iVBORw0KGgo|9j/4|R0lGOD|UklGR)[\w+/=-]{64})")
"""The beginnings of PNG, JPEG, GIF and WebP files in base64."""


def no_such_image(name: str) -> FileNotFoundError:
    r"""What to raise for an image that is not there.

    >>> no_such_image("data:image/png;base64,iVBORw0KGgo")
    FileNotFoundError('no such image: data:image/png;base64,iVBORw0KGgo, which is an image as text; decode it, and name the file')
    >>> no_such_image("images\\1.png")
    FileNotFoundError('no such image: images\\1.png; here / separates folders')
    """
    hint = ""
    if _ENCODED.search(name):
        hint = ", which is an image as text; decode it, and name the file"
    elif "\\" in name and os.sep == "/":
        hint = "; here / separates folders"
    elif re.search(r"(^|/)~\w*/", name):
        hint = "; ~ is not expanded here: write the folder's whole name"
    return FileNotFoundError(f"no such image: {name:.200}{hint}")


def read_image_file(path: PathLike | Address) -> bytes:
    """The bytes of a file that should hold an image: a regular file, or one in an object store, of at most ``LARGEST_FILE`` bytes.

    Raises ``FileNotFoundError``, ``ImageReadError`` that says what is there instead, or ``StoreError`` where nothing of an object store can
    be read from here.
    """
    name = str(path) if isinstance(path, Address) else os.fsdecode(path)
    try:
        content = Address.parse(path).read(LARGEST_FILE)
    except StoreError:
        raise
    except (AddressError, FileKindError, FileSizeError) as error:
        raise ImageReadError(str(error)) from None
    except PermissionError as error:
        raise ImageReadError(f"{name} may not be read: {error.strerror}; change its permissions") from None
    except (FileNotFoundError, NotADirectoryError):
        raise no_such_image(name) from None
    except OSError as error:
        if not os.path.lexists(name):  # too long for a path, such as a prompt
            raise no_such_image(name) from None
        raise ImageReadError(f"{name} cannot be read: {error.strerror or error}; look at its disk, or copy it again") from None
    if not content:
        raise ImageReadError(f"{name} is empty; save or download it again")
    return content


# --- folders -----------------------------------------------------------------------------------------------------------------------------


@dataclass
class ImageListing:
    """What a folder holds."""

    names: list[str] = field(default_factory=list)
    """Of images, relative to the folder: by suffix, or by content where the suffix says nothing; sorted."""
    passed_over: list[str] = field(default_factory=list)
    """Pictures and videos that are not read, archives, files that could not be looked into, and folders not entered (``NAME/``)."""
    folders: list[str] = field(default_factory=list)
    """The folders that were entered, relative to the first, which is ""; with a slash at their end."""
    stamps: dict[str, str] = field(default_factory=dict)
    """What changes when an image of an object store does, which its listing says."""

    def note(self) -> str:
        """One line on what was passed over; empty where nothing was.

        >>> ImageListing([], ["a.heic", "b.mp4"]).note()
        '2 files were passed over: a.heic, b.mp4'
        >>> ImageListing([], ["a.heic", "b/"]).note()
        '1 file and 1 folder were passed over: a.heic, b/'
        """
        num = len(self.passed_over)
        if not num:
            return ""
        num_folders = sum(name.endswith("/") for name in self.passed_over)
        counts = [f"{count:,} {what}{'s' * (count > 1)}" for count, what in ((num - num_folders, "file"), (num_folders, "folder")) if count]
        shown = ", ".join(self.passed_over[:5]) + (", …" if num > 5 else "")
        return f"{' and '.join(counts)} {'was' if num == 1 else 'were'} passed over: {shown}"


def list_images(folder: PathLike | Address, recursive: bool = False) -> ImageListing:
    """The images in a folder, and what else looks like one. Hidden files, such as the ._NAME that macOS leaves, are left out.

    ``recursive``: also those in folders within it, links to folders included. What two links lead to is entered once, and a link to a
    folder that contains this one is passed over.

    A broken link or an unreadable file with an image's name is listed as an image, so that whoever opens it says what is wrong.
    Raises ``OSError`` where ``folder`` itself cannot be listed, or ``AddressError``.
    """
    address = Address.parse(folder)
    listing = ImageListing()
    if not address.is_local:
        return _list_store(address, recursive, listing)
    folder = address.local
    root = os.path.realpath(folder)
    entered = {root}
    folders, links = _list_one(folder, "", listing)
    if not recursive:
        listing.passed_over += (*folders, *links)
    while recursive and (folders or links):
        if not folders:  # real folders first, so that what a link leads to has its own name
            links.sort()
        name = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(Path(folder, name))
        if real in entered:
            continue
        entered.add(real)
        if Path(root).is_relative_to(real):
            listing.passed_over.append(name)
            continue
        try:
            more_folders, more_links = _list_one(Path(folder, name), name, listing)
        except OSError:
            listing.passed_over.append(name)
        else:
            folders += more_folders
            links += more_links
    listing.names.sort()
    listing.passed_over.sort()
    return listing


def _list_store(folder: Address, recursive: bool, listing: ImageListing) -> ImageListing:
    for entry in folder.files_within() if recursive else folder.entries():
        if entry.is_folder:
            listing.passed_over.append(f"{entry.name}/")
            continue
        is_image = _by_suffix(entry.name)
        if is_image == "perhaps":
            is_image = _by_content(folder.join(entry.name).read_part(0, _HEAD)) if entry.size else None
        if is_image:
            listing.names.append(entry.name)
            listing.stamps[entry.name] = entry.stamp
        elif is_image is not None:
            listing.passed_over.append(entry.name)
    return listing


def _list_one(folder: Path, prefix: str, listing: ImageListing) -> tuple[list[str], list[str]]:
    """Add the files directly in a folder to ``listing``; the folders in it, and the links to folders, as ``NAME/``."""
    folders: list[str] = []
    links: list[str] = []
    listing.folders.append(prefix)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_dir(entry):
                (links if entry.is_symlink() else folders).append(f"{prefix}{entry.name}/")
            elif (is_image := _is_image(entry)) is not None:
                if is_image:
                    listing.names.append(prefix + entry.name)
                else:
                    listing.passed_over.append(prefix + entry.name)
    return folders, links


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _is_image(entry: os.DirEntry[str]) -> bool | None:
    """Whether a file is an image that is read, by its suffix or else its content; None for a file that is not a picture at all."""
    if (is_image := _by_suffix(entry.name)) != "perhaps":
        return is_image
    try:
        if not entry.is_file():
            return None
        with open_regular(entry.path) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return _by_content(head)


def _by_suffix(name: str) -> bool | Literal["perhaps"] | None:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - strings, a million of them
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in UNREADABLE_SUFFIXES:
        return False
    return None if suffix in _COMPANIONS else "perhaps"


def _by_content(head: bytes) -> bool | None:
    if _begins(_READABLE, head):
        return True
    return False if any(_begins(pattern, head) for pattern in _FOREIGN_PICTURES | _CONTAINERS) else None
