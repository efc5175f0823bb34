"""Files on this machine and in object stores, read and written in the few ways that jobs need."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Union

from image_reward.errors import ImageReadError, JobError
from image_reward.files import open_regular, written_whole
from image_reward.image_files import LARGEST_FILE, read_image_file

OBJECT_STORES = ("s3", "gs", "gcs", "az", "abfs", "hdfs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "https": "aiohttp"}
LARGEST_TEXT = 1 << 24
"""Bytes of a line, a prompt's file or a tar's header: what is larger is an error instead of being read."""


class PackageError(JobError):
    """A package that reading needs is not installed. The job ends instead of giving every row an error that another try would not undo."""


def scheme(path: str) -> str:
    """``s3`` for ``s3://…``; empty for a path of this machine.

    >>> scheme("s3://bucket/rows.csv"), scheme("rows.csv")
    ('s3', '')
    """
    found = _SCHEME.match(path)
    return found[1].lower() if found else ""


def join(folder: str, name: str) -> str:
    """``name`` relative to ``folder``, unless it is absolute or remote itself."""
    if scheme(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if scheme(folder) else os.path.join(folder, name)  # noqa: PTH118 - strings, a million of them


def parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] if scheme(path) else str(Path(path).parent)


@dataclass(frozen=True)
class Member:
    """An image inside another file, such as a tar; read when it is needed. Small and picklable."""

    path: str
    offset: int
    size: int


ImageSource = Union[str, bytes, Member]


@dataclass(frozen=True)
class Access:
    """What may be opened. Object stores are allowed as the user's own credentials allow; the web only on request."""

    allow_https: bool = False

    def file_system(self, path: str) -> tuple[Any, str]:
        """The fsspec file system of a remote path, and the path in it. Raises ``JobError``."""
        kind = scheme(path)
        if kind == "https" and not self.allow_https:
            raise JobError(f"{path:.200} is on the web, and fetching was not allowed; pass --allow-https (allow_https=True) if you mean it")
        if kind not in (*OBJECT_STORES, "https"):
            raise JobError(f"{path:.200}: {kind}:// is not read here; known are {', '.join(OBJECT_STORES)} and https")
        from fsspec.core import url_to_fs

        try:
            return url_to_fs(path)
        except ImportError as error:
            package = _PACKAGES.get(kind, "its fsspec package")
            raise PackageError(f"{kind}:// needs a package that is not installed: pip install {package} ({error})") from None

    def open(self, path: str) -> IO[bytes]:
        if not scheme(path):
            return open_regular(path)
        files, name = self.file_system(path)
        return io.BufferedReader(files.open(name, "rb"))  # fsspec's files cannot read part of a line

    def stamp(self, path: str) -> str:
        """What changes when a file does: its size and time of modification, or what an object store says in their place.

        Raises ``FileNotFoundError``, or ``FileKindError`` for a pipe or a device.
        """
        if not scheme(path):
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
            return f"{status.st_size} bytes, {status.st_mtime_ns} ns"
        files, name = self.file_system(path)
        info = files.info(name)
        seen = (str(info[key]) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated") if info.get(key))
        return f"{info.get('size')} bytes, {next(seen, 'no date')}"

    def read(self, source: ImageSource) -> bytes:
        """The bytes of an image file. Raises ``FileNotFoundError``, ``ImageReadError``, ``JobError`` or ``OSError``.

        What the library of an object store raises beyond these, it raises of this image or its server, and is an ``ImageReadError``.
        """
        if isinstance(source, bytes):
            return source
        if isinstance(source, Member):
            _check_size(source.path, source.size)
            with self.open(source.path) as file:
                file.seek(source.offset)
                return file.read(source.size)
        if scheme(source):
            files, name = self.file_system(source)
            try:
                return _read_remote(files, name, source)
            except (OSError, ImageReadError, MemoryError):
                raise
            except Exception as error:
                raise ImageReadError(f"{source:.200} cannot be fetched: {type(error).__name__}: {error}") from error
        return read_image_file(source)

    def listing(self, pattern: str) -> list[str]:
        """The files that a path, a folder or a glob stands for, sorted: of a folder those directly in it, without hidden ones."""
        if not scheme(pattern):
            if Path(pattern).is_dir():
                return sorted(str(path) for path in Path(pattern).iterdir() if not path.is_dir() and not path.name.startswith("."))
            if Path(pattern).exists() or not glob.has_magic(pattern):
                return [pattern] if Path(pattern).exists() else []
            return sorted(path for path in glob.glob(pattern, recursive=True) if not Path(path).is_dir())  # noqa: PTH207 - may be absolute
        files, name = self.file_system(pattern)
        if scheme(pattern) == "https":
            return [pattern]
        if glob.has_magic(name):
            found = files.glob(name)
        elif files.isdir(name):
            found = [path for path in files.ls(name, detail=False) if not files.isdir(path)]
        else:
            found = [name] if files.exists(name) else []
        return sorted(f"{scheme(pattern)}://{path.lstrip('/')}" for path in found if not PurePosixPath(path).name.startswith("."))


def _read_remote(files: Any, name: str, source: str) -> bytes:
    size = files.size(name)
    _check_size(source, size or 0)
    if size is None:  # a server that does not say how much it will send
        with files.open(name, "rb") as file:
            data: bytes = file.read(LARGEST_FILE + 1)
        _check_size(source, len(data))
    else:
        data = files.cat_file(name)
    return data


def _check_size(name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise ImageReadError(f"{name}: an image of {size:,} bytes; at most {LARGEST_FILE:,} are read")


def digest(data: bytes) -> bytes:
    """16 bytes that stand for a content."""
    return hashlib.blake2b(data, digest_size=16).digest()


# --- writing -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A folder that is written to, here or in an object store. Every file in it is whole: it appears with its last byte, or not at all."""

    path: str

    @property
    def remote(self) -> bool:
        return bool(scheme(self.path))

    def _files(self, name: str = "") -> tuple[Any, str]:
        return Access().file_system(join(self.path, name) if name else self.path)

    def create(self) -> None:
        with writing(self.path):
            if not self.remote:
                Path(self.path).mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """The files in it, hidden ones left out; none where there is no folder."""
        if not self.remote:
            path = Path(self.path)
            return sorted(p.name for p in path.iterdir() if not p.name.startswith(".")) if path.exists() else []
        files, name = self._files()
        files.invalidate_cache()
        return sorted(PurePosixPath(p).name for p in files.ls(name, detail=False)) if files.exists(name) else []

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        if not self.remote:
            if not Path(self.path, name).exists():
                return None
            with self.open(name) as file:
                return file.read()
        files, path_in_store = self._files(name)
        return files.cat_file(path_in_store) if files.exists(path_in_store) else None

    def open(self, name: str) -> IO[bytes]:
        if not self.remote:
            return open_regular(Path(self.path, name))
        files, path_in_store = self._files(name)
        return files.open(path_in_store, "rb")

    def write(self, name: str, data: bytes) -> None:
        """Raises ``JobError`` where it cannot be written; nothing half-written stays."""
        with self.writer(name) as file:
            file.write(data)

    @contextmanager
    def writer(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write to, which takes its name when the block succeeds."""
        target = join(self.path, name)
        with writing(target):
            if self.remote:
                files, path_in_store = self._files(name)
                with files.transaction, files.open(path_in_store, "wb") as file:
                    yield file
                return
            with whole_file(Path(target)) as file:
                yield file

    def remove(self, name: str) -> None:
        with writing(join(self.path, name)):
            if self.remote:
                files, path_in_store = self._files(name)
                files.rm_file(path_in_store)
            else:
                Path(self.path, name).unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """As ``written_whole``, and it survives a loss of power once it has its name."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Let the new name survive a loss of power too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems have no such thing
    finally:
        os.close(descriptor)


@contextmanager
def writing(target: str) -> Iterator[None]:
    """Turn what the system says when it cannot write into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise JobError(f"the disk is full: {target} could not be written; free some space and run the same command again") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise JobError(f"{target} may not be written ({error.strerror}); change its permissions, or give another folder") from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise JobError(f"{target} cannot be made: a file with that name exists; give another folder") from None
        raise JobError(f"{target} could not be written: {error}") from error
