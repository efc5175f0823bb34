"""What jobs read and write: images wherever they are, and a folder of whole files."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Union

from image_reward.addresses import Address, PathLike, scheme
from image_reward.errors import AddressError, ImageReadError, InputError, JobError
from image_reward.image_files import LARGEST_FILE, read_image_file

LARGEST_TEXT = 1 << 24
"""Bytes of a line, a prompt's file or a tar's header: what is larger is an error instead of being read."""


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

    def address(self, path: PathLike) -> Address:
        """Raises ``AddressError`` for a scheme that is not read."""
        text = os.fsdecode(path)
        if scheme(text) == "https" and not self.allow_https:
            raise AddressError(
                f"{text:.200} is on the web, and fetching was not allowed; pass --allow-https (allow_https=True) if you mean it"
            )
        return Address.parse(path, self.allow_https)

    def open(self, path: str) -> IO[bytes]:
        return self.address(path).open()

    def stamp(self, path: str) -> str:
        return self.address(path).stamp()

    def read(self, source: ImageSource) -> bytes:
        """The bytes of an image file.

        Raises ``FileNotFoundError``, ``ImageReadError``, ``OSError``, or ``StoreError`` where no image of its object store can be read.
        """
        if isinstance(source, bytes):
            return source
        if isinstance(source, Member):
            if source.size > LARGEST_FILE:
                raise ImageReadError(f"{source.path}: an image of {source.size:,} bytes; at most {LARGEST_FILE:,} are read")
            return self.address(source.path).read_part(source.offset, source.size)
        try:
            address = self.address(source)
        except AddressError as error:
            raise ImageReadError(str(error)) from None
        return read_image_file(address)


def digest(data: bytes) -> bytes:
    """16 bytes that stand for a content."""
    return hashlib.blake2b(data, digest_size=16).digest()


# --- writing -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A folder that is written to, here or in an object store. Every file in it is whole: it appears with its last byte, or not at all."""

    address: Address

    @classmethod
    def at(cls, path: PathLike) -> Folder:
        """Raises ``InputError`` for an empty text, which would become the root of the file system or the folder one is in."""
        if path == "":
            raise InputError("the path of the job's folder is empty; is a variable of the shell unset?")
        return cls(Address.parse(path.rstrip("/") or "/" if isinstance(path, str) else path))

    @property
    def path(self) -> str:
        return str(self.address)

    @property
    def remote(self) -> bool:
        return not self.address.is_local

    def exists(self) -> bool:
        return self.address.kind() == "folder"

    def create(self) -> None:
        with writing(self.path):
            self.address.make_folder()

    def names(self) -> list[str]:
        """The files in it, hidden ones left out; none where there is no folder."""
        return [entry.name for entry in self.address.entries()] if self.exists() else []

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        try:
            with self.open(name) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, name: str) -> IO[bytes]:
        return self.address.join(name).open()

    def write(self, name: str, data: bytes) -> None:
        """Raises ``JobError`` where it cannot be written; nothing half-written stays."""
        with self.writer(name) as file:
            file.write(data)

    @contextmanager
    def writer(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write to, which takes its name when the block succeeds."""
        target = self.address.join(name)
        with writing(str(target)), target.writer() as file:
            yield file

    def remove(self, name: str) -> None:
        target = self.address.join(name)
        with writing(str(target)):
            target.remove()


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
