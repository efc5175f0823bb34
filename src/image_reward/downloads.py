"""Files of the model hub and the web: located on this machine, or downloaded, resumed and verified. No path comes from a server."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from image_reward.errors import CheckpointError, DownloadError, InputError
from image_reward.files import read_json, written_whole


@dataclass(frozen=True)
class HubFile:
    """One file of a model hub repository, with its published size and sha256.

    A download is checked against the hub's own where one of these is None.
    """

    repo: str
    name: str
    size: int | None = None
    sha256: str | None = None
    original_cache: str | None = None
    """The folder where the original package keeps this file, if it has one."""

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repo) or ".." in self.repo:
            raise InputError(f"{self.repo!r:.60} is not the name of a repository, which has the form OWNER/NAME")
        _check_name(self.name, self.name.split("/"))

    @property
    def original_name(self) -> str:
        return self.name

    @property
    def source(self) -> str:
        return self.repo

    @property
    def url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.name)

    @property
    def place(self) -> Path:
        """Where a copy fetched by hand belongs."""
        return _own_folder() / self.repo / self.name


@dataclass(frozen=True)
class WebFile:
    """One file published outside the hub, with its size and sha256.

    Where the size is None, the server's is taken. Where the sha256 is None, only the size is checked.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    original_cache: str | None = None
    """The folder where the original package keeps this file, if it has one."""

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not re.fullmatch(r"[\w-][\w.:-]*", self.source, re.ASCII):
            raise ValueError(f"{self.url!r:.100} is not the address of a file on the web")
        _check_name(self.url, [self.name])

    @property
    def name(self) -> str:
        return unquote(self.original_name)

    @property
    def original_name(self) -> str:
        """What the original package calls its copy: the end of the address as it is written, "%2B" and all."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]

    @property
    def source(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def place(self) -> Path:
        """Where it is kept, and where a copy fetched by hand belongs."""
        return _own_folder() / self.source.replace(":", "-") / hashlib.sha256(self.url.encode()).hexdigest()[:8] / self.name


_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def _check_name(name: str, parts: Sequence[str]) -> None:
    """Raise ``ValueError`` unless the parts of a name make a path that stays where it is put."""
    if any(part in ("", ".", "..") or len(part) > 200 or re.search(r"[\x00-\x1f\\/]", part) for part in parts):
        raise ValueError(f"{name!r:.100} does not end in the name of a file")


def _own_folder() -> Path:
    """Beside the hub's repositories, so that ``HF_HUB_CACHE`` moves all downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / "image-reward"


def _places(file: HubFile | WebFile, cache_dir: Path | None) -> list[Path]:
    """The existing copies of a file on this machine: in ``cache_dir``, the cache of downloads, and the original package's cache."""
    from huggingface_hub import try_to_load_from_cache

    names = dict.fromkeys([file.name, file.original_name])
    places = [cache_dir / name for name in names] if cache_dir else []
    if isinstance(file, HubFile) and isinstance(cached := try_to_load_from_cache(file.repo, file.name), str):
        places.append(Path(cached))
    places.append(file.place)
    if file.original_cache:
        places += [Path(file.original_cache).expanduser() / name for name in names]
    return [place for place in places if place.is_file()]


_SHARD = re.compile(r"[^/\\\0]+\.(safetensors|bin)")


def shards_of(index: Path) -> list[str]:
    """The files of weights that an index of transformers' format names, beside it. Raises ``CheckpointError``."""
    values = read_json(index)
    shards = values.get("weight_map") if isinstance(values, dict) else None
    names = shards.values() if isinstance(shards, dict) else ()
    if not names or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in names):
        raise CheckpointError(f"{index} does not name the files of weights beside it; download it again")
    return sorted(set(names))


INDEX_SUFFIX = ".index.json"
"""Of the name of an index, after that of the weights that are in several files."""


def find_local(file: HubFile | WebFile, cache_dir: Path | None = None) -> Path | None:
    """The copy of a file on this machine, if there is one: in ``cache_dir``, the cache of downloads, or the original package's cache.

    Only size is checked, where it is published.
    """
    return next((place for place in _places(file, cache_dir) if file.size in (None, place.stat().st_size)), None)


def fetch(file: HubFile | WebFile, cache_dir: Path | None = None) -> Path:
    """The verified local path of a file, downloading it if need be.

    Looks into ``cache_dir`` (if given), the cache of downloads (``HF_HUB_CACHE``) and the original package's cache before the network. A
    broken download is resumed by the next call. Offline mode (``HF_HUB_OFFLINE=1``) and mirrors (``HF_ENDPOINT``) are honoured.

    Raises ``DownloadError`` when there is neither the file nor a way to get it, ``CheckpointError`` when its content is wrong.
    """
    path = find_local(file, cache_dir) or _download(file, _by_hand(file, cache_dir))
    verify(path, file)
    return path


def fetch_newest(file: HubFile) -> Path | None:
    """The verified newest version of a file; offline, the local one. None if the repository has no such file.

    Raises as ``fetch``, except for a missing connection where an older version is on this machine.
    """
    import huggingface_hub

    try:
        path = find_local(file) if huggingface_hub.is_offline_mode() else _download(file, _by_hand(file, None))
    except _MissingError:
        return None
    except DownloadError:
        path = find_local(file)
        if path is None:
            raise
    if path:
        verify(path, file)
    return path


def verify(path: Path, file: HubFile | WebFile) -> None:
    """Check a file's size and sha256; one that passed is remembered until it changes.

    A file in the hub cache whose sha256 is not published here must have the one that the hub gave, which is the name of its blob.
    """
    size = path.stat().st_size
    sha256 = file.sha256 or (path.resolve().name if _SHA256.fullmatch(path.resolve().name) else None)
    right_size = file.size in (None, size)
    actual = _remembered(path) if right_size else None
    if actual is None and right_size and sha256:
        actual = _sha256(path)
        _remember(path, actual)
    if not right_size or (sha256 and actual != sha256):
        what = f"sha256 {actual} instead of {sha256}" if right_size else f"{size:,} bytes instead of {file.size:,}"
        # The hub cache holds links; deleting one would leave the bad file behind it.
        raise CheckpointError(f"{path} is not {file.name} of {file.source}: it has {what}; delete {path.resolve()} and download it again")


_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST_DOWNLOAD = 1 << 37  # bytes, of a file whose size nobody says


def is_copy(path: Path, file: HubFile | WebFile) -> bool:
    """Whether a file has the published size and sha256 of another, so far as both are published."""
    if file.size is None or file.sha256 is None or path.stat().st_size != file.size:
        return False
    try:
        verify(path, file)
    except CheckpointError:
        return False
    return True


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _verified_list() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "image-reward" / "verified.json"


def _fingerprint(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"


def _known() -> dict[str, str]:
    try:
        known = read_json(_verified_list())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remembered(path: Path) -> str | None:
    return _known().get(_fingerprint(path))


def _remember(path: Path, sha256: str) -> None:
    try:
        _verified_list().parent.mkdir(parents=True, exist_ok=True)
        with written_whole(_verified_list()) as temporary:
            temporary.write_text(json.dumps(_known() | {_fingerprint(path): sha256}, indent=1), encoding="utf-8")
    except OSError:
        pass  # a read-only home costs a few seconds at the next load, nothing else


def _by_hand(file: HubFile | WebFile, cache_dir: Path | None) -> str:
    place = Path(file.original_cache).expanduser() / file.name if file.original_cache else file.place
    size = "" if file.size is None else f" ({file.size:,} bytes)"
    wrong = "".join(f" ({path} has {path.stat().st_size:,} bytes.)" for path in _places(file, cache_dir))
    return f"By hand: fetch {file.url}{size} on another machine and put it at {place}{wrong}"


class _Offer(NamedTuple):
    """A server's description of a file, before the download. Nothing in it is used as a path unless checked or hashed."""

    location: str
    headers: dict[str, str]
    """For the request."""
    size: int | None
    sha256: str | None
    place: Path
    """Where the complete file belongs."""
    version: str
    """Identifies this content, so that a partial download is resumed only with its own remainder."""
    commit: str | None = None
    """The hub's name for the file's snapshot."""


class _MissingError(DownloadError):
    """The repository has no such file."""


def _offer_of_hub(file: HubFile, by_hand: str) -> _Offer:
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    metadata = get_hf_file_metadata(file.url)
    if metadata.etag is None or metadata.commit_hash is None:
        raise DownloadError(f"{file.url} was not answered by a model hub: check HF_ENDPOINT. {by_hand}")
    location = urljoin(file.url, metadata.location)
    headers = build_hf_headers()
    if urlsplit(location)[:2] != urlsplit(file.url)[:2]:
        headers.pop("authorization", None)  # the hub's token is not for the host it redirects to
    sha256 = metadata.etag if _SHA256.fullmatch(metadata.etag) else None  # small files have git's hash instead
    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type="model")
    # A blob whose name is a sha256 has it. What else a server calls a version says nothing of the content, so it is this file's alone.
    blob = sha256 or f"etag-{_short_hash(file.name, metadata.etag)}"
    commit = metadata.commit_hash if _COMMIT.fullmatch(metadata.commit_hash) else _short_hash(metadata.commit_hash)
    size = metadata.size if metadata.size is not None and metadata.size >= 0 else None
    return _Offer(location, headers, size, sha256, repo / "blobs" / blob, file.sha256 or blob, commit)


def _offer_of_web(file: WebFile) -> _Offer:
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

    headers = {"Accept-Encoding": "identity"}  # a length and ranges are those of the file
    response = get_session().head(file.url, headers=headers, follow_redirects=True, timeout=30)
    hf_raise_for_status(response)
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    version = _short_hash(str(response.headers.get("ETag")), str(size))[:16]
    return _Offer(file.url, headers, size, None, file.place, f"{file.name}.{version}")


def _short_hash(*texts: str) -> str:
    """40 hex digits"""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:40]


def _download(file: HubFile | WebFile, by_hand: str) -> Path:
    """Download into the cache, keeping what has arrived when the connection breaks.

    huggingface_hub 2 deletes a partial file when a download fails, and takes what a server says for names of files. So this keeps its own
    partial file, and lays blob, snapshot and reference out as the hub's library does, which finds them there.
    """
    import huggingface_hub
    from filelock import FileLock
    from huggingface_hub import constants
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.file_download import http_get

    if huggingface_hub.is_offline_mode():
        raise DownloadError(f"{file.name} of {file.source} is not on this machine and offline mode (HF_HUB_OFFLINE) is on. {by_hand}")
    try:
        offer = _offer_of_hub(file, by_hand) if isinstance(file, HubFile) else _offer_of_web(file)
        if file.size is not None and offer.size not in (None, file.size):
            remedy = "the server is not the hub or is out of date: check HF_ENDPOINT"
            if isinstance(file, WebFile):
                remedy = f"what is published there has changed. {by_hand}"
            raise CheckpointError(f"{file.url} offers {offer.size:,} bytes instead of {file.size:,}; {remedy}")
        size, sha256 = file.size or offer.size, file.sha256 or offer.sha256
        if size is None and sha256 is None:
            raise DownloadError(f"{file.url} does not state its length, so a broken download could pass for a complete one. {by_hand}")
        place = offer.place
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.parent / f"{offer.version}.partial"
        with FileLock(f"{partial}.lock"):
            if not place.is_file() or size not in (None, place.stat().st_size):
                with _Partial(partial, _LARGEST_DOWNLOAD if size is None else size) as stream:
                    have = stream.tell()
                    if have and (size is None or have > size):  # nothing says how much is missing
                        have = stream.seek(stream.truncate(0))
                    _check_free_space(place.parent, (size or 0) - have, file)
                    http_get(
                        offer.location,
                        stream,
                        resume_size=have,
                        headers=offer.headers,
                        expected_size=size,
                        displayed_filename=file.name,
                    )
                if sha256 and (actual := _sha256(partial)) != sha256:
                    partial.unlink()
                    raise CheckpointError(f"what {file.url} sent has sha256 {actual} instead of {sha256}; it was deleted, try again")
                partial.replace(place)
                if sha256:
                    _remember(place, sha256)
        return _in_snapshot(place, offer.commit, file.name) if offer.commit else place
    except (CheckpointError, DownloadError):
        raise
    except RemoteEntryNotFoundError as error:
        raise _MissingError(f"{file.name} could not be downloaded from {file.url}: {_reason(error, False)}. {by_hand}") from error
    except Exception as error:  # httpx and hub errors share no base class
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(Path(constants.HF_HUB_CACHE), file, str(error.strerror)) from None
        reason = _reason(error, wants_token=isinstance(file, HubFile))
        raise DownloadError(f"{file.name} could not be downloaded from {file.url}: {reason}. {by_hand}") from error


class _Partial(io.FileIO):
    """What has arrived of a file, to be appended to, but never through a link and never beyond what the file may have.

    A server that sends without end would fill the disk; what it sent is not the file, and is dropped.
    """

    def __init__(self, path: Path, limit: int) -> None:
        flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        super().__init__(path, "ab", opener=lambda name, others: os.open(name, others | flags, 0o666))
        self.limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.limit:
            self.truncate(0)
            raise ValueError(f"the server sends more than the {self.limit:,} bytes that the file has")
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)


def _in_snapshot(blob: Path, commit: str, name: str) -> Path:
    """Lay a blob where the hub's library looks for it: in the snapshot of the commit, as a link, or a copy where there are no links."""
    repo = blob.parent.parent
    place = repo / "snapshots" / commit / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_file() or not place.samefile(blob):
        link = place.with_name(f".{uuid.uuid4().hex}")
        try:
            link.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:
            shutil.copyfile(blob, link)
        link.replace(place)
    (repo / "refs").mkdir(exist_ok=True)
    with written_whole(repo / "refs" / "main") as temporary:
        temporary.write_text(commit, encoding="utf-8")
    return place


def _reason(error: Exception, wants_token: bool) -> str:
    """What an HTTP or hub error says, in one line without its advice."""
    text = " ".join(str(error).split()).split(" For more information")[0].rstrip(".") or type(error).__name__
    wants_token = wants_token and getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
    return text + (" (if it asks for a token: `hf auth login`, or set HF_TOKEN)" if wants_token else "")


def _check_free_space(folder: Path, needed: int, file: HubFile | WebFile) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _disk_full(folder, file, f"{free:,} bytes are free and {needed:,} are needed")


def _disk_full(folder: Path, file: HubFile | WebFile, detail: str) -> DownloadError:
    return DownloadError(
        f"the disk is too full for {file.name} at {folder}: {detail}. Free space there or set HF_HUB_CACHE to a folder on "
        "another disk; the partial download is kept, and the next attempt resumes it."
    )
