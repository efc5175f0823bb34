"""Files on this machine: opened so that nothing hangs, read so that nothing fills the memory, and written whole or not at all."""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints, overload

from image_reward.errors import CheckpointError, FileKindError, FileSizeError, ImageRewardError, InputError

try:
    import fcntl
except ImportError:  # Windows; what killed writers leave there stays
    fcntl = None  # type: ignore[assignment]

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
    except ValueError:  # a zero byte, which no path has
        raise FileNotFoundError(f"no such file: {os.fspath(path)!r:.200}") from None
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
    """The content of a regular file of at most ``limit`` bytes. Raises as ``open_regular``, and ``FileSizeError``.

    A file of /proc has no size, and reading some of them waits or does not end; it is taken for empty.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileSizeError(f"{Path(path)} is larger than {limit:,} bytes, the most that is read of such a file")
        return file.read(size)


# --- JSON ----------------------------------------------------------------------------------------------------------------------------

LARGEST_JSON = 16 << 20  # bytes; the largest configs hold a vocabulary, about 1 MB


def read_json(path: Path, limit: int = LARGEST_JSON, error: type[Exception] = CheckpointError) -> Any:
    """What a JSON file of at most ``limit`` bytes holds. Raises as ``read_regular``, and ``error`` for all else."""
    try:
        content = read_regular(path, limit)
    except (FileNotFoundError, ImageRewardError):
        raise
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}; look at its permissions, or copy it again") from None
    return parse_json(content, str(path), error)


def parse_json(text: str | bytes, source: str, error: type[Exception] = CheckpointError) -> Any:
    """What a JSON text holds, strictly: UTF-8, numbers that a float can hold, no key twice, no half characters.

    Every fault is an ``error`` that names ``source``.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        values = json.loads(decoded, parse_int=_int, parse_float=_float, parse_constant=_constant, object_pairs_hook=distinct_keys)
        if "\\u" in decoded:
            json.dumps(values, ensure_ascii=False).encode()  # fails for half of a surrogate pair, wherever it is
    except RecursionError:
        raise error(f"{source} is not JSON that can be read: its brackets are nested too deeply") from None
    except ValueError as fault:
        raise error(f"{source} is not JSON: {fault}") from None
    return values


def _int(text: str) -> int:
    if len(text) > 300:  # beyond the range of a float
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text:.40} is beyond the range of a float")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON has")


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json``'s ``object_pairs_hook``: raise ``ValueError`` for a key that is there twice, of which ``json`` would keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated!r:.60} occurs twice in one object")
    return values


# --- dataclasses from plain values ---------------------------------------------------------------------------------------------------

Record = TypeVar("Record")


@overload
def fill(record: type[Record], values: Mapping[str, Any], source: str, error: type[ValueError] = ...) -> Record: ...
@overload
def fill(record: Record, values: Mapping[str, Any], source: str, error: type[ValueError] = ...) -> Record: ...
def fill(record: Any, values: Mapping[str, Any], source: str, error: type[ValueError] = CheckpointError) -> Any:
    """A dataclass from the plain values of a JSON or TOML file, strictly.

    Of a class every field must be there; an instance keeps what the values do not say. An unknown or missing key, a value of another type,
    or one that the dataclass itself refuses with an ``InputError`` or ``CheckpointError``, is an ``error`` that names ``source`` and the
    key.
    """
    whole = isinstance(record, type)
    kind: Any = record if whole else type(record)
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise error(f"{source}: unknown key {key!r:.60} for {kind.__name__}; {hint}")
    if whole and (missing := [name for name in known if name not in values]):
        raise error(f"{source}: {kind.__name__} lacks {missing[0]!r}")
    types = get_type_hints(kind)
    checked = {}
    for name, value in values.items():
        if is_dataclass(types[name]) and isinstance(value, Mapping):
            checked[name] = fill(types[name] if whole else getattr(record, name), value, source, error)
        else:
            checked[name] = _checked(types[name], value, f"{source}: {name} of {kind.__name__}", source, error)
    try:
        return kind(**checked) if whole else replace(record, **checked)
    except (InputError, CheckpointError) as fault:
        raise error(f"{source}: {fault}") from None


def _checked(kind: Any, value: Any, name: str, source: str, error: type[ValueError]) -> Any:
    """A value of the annotated type ``kind``: a tuple, ``X | None``, a literal, a plain type, or a dataclass inside one of these."""
    kinds = get_args(kind)
    if get_origin(kind) is Literal:
        if value in kinds:
            return value
        raise error(f"{name} must be one of {', '.join(map(repr, kinds))}, not {value!r:.60}")
    if type(None) in kinds:
        return None if value is None else _checked(kinds[0], value, name, source, error)
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        if len(kinds) == len(value):
            return tuple(_checked(k, v, name, source, error) for k, v in zip(kinds, value, strict=True))
    elif is_dataclass(kind) and isinstance(value, Mapping):
        return fill(cast(type, kind), value, source, error)
    elif kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    elif type(value) is kind:
        return value
    raise error(f"{name} must be {_described(kind)}, not {value!r:.60}")


def _described(kind: Any) -> str:
    """
    >>> _described(tuple[float, float]), _described(tuple[int, ...]), _described(str)
    ('a list of 2 numbers', 'a list of whole numbers', 'of type str')
    """
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        many = {float: "numbers", int: "whole numbers", str: "texts"}.get(first, "objects" if is_dataclass(first) else "names")
        return f"a list of {many if ... in rest else f'{1 + len(rest)} {many}'}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return "an object" if is_dataclass(kind) else f"of type {kind.__name__}"


# --- writing -------------------------------------------------------------------------------------------------------------------------

_UNFINISHED = ".unfinished"
_LOCK = "lock"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` if the block succeeds and vanishes if it fails.

    It has the same name, in a folder of its own below ``.unfinished`` beside ``path``. Whatever else the block leaves in that folder
    vanishes too. What writers that were killed left there is removed by the next one.
    """
    if path.is_dir():
        raise FileKindError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: the folder {path.parent} does not exist")
    remove_unfinished(path.parent)
    with _own_folder(path.parent / _UNFINISHED) as folder:
        temporary = folder / path.name
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        temporary.replace(path)


@contextmanager
def synced_whole(path: Path) -> Iterator[IO[bytes]]:
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
def _own_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` that holds a lock which ends with this process, however it ends. Both folders are removed at the end."""
    while True:
        folder = parent / uuid.uuid4().hex
        with suppress(FileExistsError):  # a file, or a folder that another writer is removing, which the next step tells apart
            parent.mkdir(exist_ok=True)  # FileNotFoundError: the folder above has gone, or takes no folders, such as /proc
        try:
            folder.mkdir()
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            if not parent.parent.is_dir():
                raise
            if parent.exists() and not parent.is_dir():
                raise FileKindError(
                    f"{parent} is not a folder, and unfinished files are kept in a folder of that name; move it away"
                ) from None
            continue  # another writer, who is done, removed what it took for an empty folder
        with suppress(OSError):  # a file system without locks
            _lock(lock, wait=True)
        if (folder / _LOCK).exists():
            break
        os.close(lock)  # another writer had it before us, and took us for dead
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        with suppress(OSError):  # another writer is at work
            parent.rmdir()


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed, and only they, left in a folder."""
    try:
        left = list((folder / _UNFINISHED).iterdir())
    except OSError:  # mostly: there is none
        return
    for place in left:
        try:
            lock = os.open(place / _LOCK, os.O_RDWR)
        except OSError:
            with suppress(OSError):  # it is empty if its writer was killed, or is about to make its lock, for which it will try again
                place.rmdir()
            continue
        try:
            _lock(lock, wait=False)
        except OSError:
            pass  # its writer lives, or the file system cannot tell
        else:
            with suppress(OSError):  # another writer is at this too
                for file in place.iterdir():
                    if file.name != _LOCK:  # last, so that who is killed here leaves what the next one recognises
                        file.unlink(missing_ok=True)
                shutil.rmtree(place)
        finally:
            os.close(lock)
    with suppress(OSError):
        (folder / _UNFINISHED).rmdir()


def is_only_writer(stream: IO[Any]) -> bool:
    """Lock an open file until it is closed. False where another process has; True as well where files cannot be locked."""
    try:
        _lock(stream.fileno(), wait=False)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _lock(descriptor: int, wait: bool) -> None:
    """Raises ``OSError`` where another holds it, or nobody can."""
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
