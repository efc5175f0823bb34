"""Files on this machine, opened so that nothing hangs and read so that nothing fills the memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

from image_reward.errors import FileKindError, FileSizeError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file, or a link to one, for reading.

    Opening a named pipe waits for a writer and a device may never end, so anything else is refused: ``FileKindError`` says what it is.
    Raises ``FileNotFoundError``, or what else the system says, such as ``PermissionError``.
    """
    try:
        # Without blocking, so that the check can follow the opening: between a check and an opening the file could be replaced.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a socket, or a device without a driver, answers so
            raise FileKindError(f"{os.fspath(path)} is a socket or a device, not a file; save its content to a file") from None
        raise
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise FileKindError(f"{os.fspath(path)} is {_KINDS.get(kind, 'not a file')}, not a file; give the path of a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. Raises as ``open_regular``, and ``FileSizeError``."""
    with open_regular(path) as file:
        try:
            data = file.read(limit + 1)
        except BlockingIOError:  # files of /proc that wait for events
            data = None
    if data is None:
        raise FileKindError(f"{Path(path)} waits for its content instead of holding it; save its content to a file")
    if len(data) > limit:
        raise FileSizeError(f"{Path(path)} is larger than {limit:,} bytes, the most that is read of such a file")
    return data
