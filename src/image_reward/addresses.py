"""Where a file is: a path of this machine, or an address in an object store such as ``s3://bucket/rows.csv``, read and written alike.

An address never becomes a ``pathlib.Path``, which would make ``s3:/bucket`` of ``s3://bucket``. Object stores are reached through fsspec,
with the credentials, the endpoint and the retries that its packages are configured with, and with limits of time unless fsspec's
configuration sets them. Whatever they raise is an error of one line that names the address and the remedy.
"""

from __future__ import annotations

import glob
import io
import os
import posixpath
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, Union
from urllib.parse import urljoin

from image_reward.errors import AddressError, CheckpointError, FileSizeError, ImageRewardError, PackageError, StoreError
from image_reward.files import open_regular, parse_json, read_json, read_regular, synced_whole

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "hdfs")
"""Of the object stores that are read wherever a file is."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_OF_A_PATH = re.compile(rf"({'|'.join(SCHEMES)}|https?):/[^/]", re.IGNORECASE)
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hdfs": "pyarrow", "https": "aiohttp"}
_GOOGLE = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
_AZURE = "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "az": _AZURE,
    "abfs": _AZURE,
}
# What the libraries of the stores raise, by name, because they are imported only where they are installed and needed.
_WITHOUT_CREDENTIALS = frozenset(
    "NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError SSOTokenLoadError UnauthorizedSSOTokenError "  # noqa: SIM905
    "ProfileNotFound DefaultCredentialsError RefreshError ClientAuthenticationError".split()
)
_REFUSED_CREDENTIALS = frozenset(("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidClientTokenId"))
_NO_BUCKET = {"NoSuchBucket": "bucket", "ContainerNotFound": "container"}
_TIMEOUTS = frozenset(
    "ConnectTimeoutError ReadTimeoutError ServerTimeoutError ServiceRequestTimeoutError ServiceResponseTimeoutError FSTimeoutError "  # noqa: SIM905
    "SocketTimeoutError ConnectionTimeoutError TimeoutError".split()
)
_UNREACHABLE = _TIMEOUTS | frozenset(
    "EndpointConnectionError ConnectionClosedError ProxyConnectionError SSLError HTTPClientError ClientConnectorError "  # noqa: SIM905
    "ServerDisconnectedError ServiceRequestError ServiceResponseError ConnectionError ConnectionRefusedError".split()
)
# Seconds to accept a connection, and of silence; a transfer may take as long as it goes on. A server that works takes less than a second to
# its first byte, one that wakes up some seconds; a connection that broke unseen is silent for ever, and the second attempt is a new one.
# So a server that never answers costs two silences. Whatever a server does answer, "slow down" above all, is retried as often as ever.
_CONNECT_TIMEOUT, _READ_TIMEOUT = 5, 15
_SILENT_ATTEMPTS = 2
_S3_ATTEMPTS = 2  # each of which is as many as AWS_MAX_ATTEMPTS says, five by default; s3fs makes five of them
_MORE_TIME = {
    "s3": '{"config_kwargs": {"read_timeout": 60}}',
    "az": '{"read_timeout": 60}',
    "abfs": '{"read_timeout": 60}',
}  # in the variable of fsspec's configuration; the options of the other stores are not text
_BLOCK = 1 << 22  # bytes that are read ahead of a stream: a shard of rows is less, and s3fs would read 50 MiB

Kind = Literal["file", "folder"]
PathLike = Union[str, "os.PathLike[str]"]


def scheme(text: str) -> str:
    """``s3`` for ``s3://…``; empty for a path of this machine.

    >>> scheme("s3://bucket/rows.csv"), scheme("rows.csv")
    ('s3', '')
    """
    match = _SCHEME.match(text)
    return match[1].lower() if match else ""


def join(folder: str, name: str) -> str:
    """``name`` relative to ``folder``, unless it is absolute or an address itself. For texts, of which a job has millions.

    >>> join("s3://bucket/rows", "images/1.png"), join("s3://bucket/rows", "../images/1.png")
    ('s3://bucket/rows/images/1.png', 's3://bucket/images/1.png')
    """
    if scheme(name) or (folder == "." and name):
        return name
    if not scheme(folder) or os.path.isabs(name):  # noqa: PTH117
        return os.path.join(folder, name)  # noqa: PTH118
    joined = f"{folder.rstrip('/')}/{name}"
    if not re.search(r"(^|/)\.\.?(/|$)", name):
        return joined
    start, path = joined.split("://", 1)
    bucket, _, key = path.partition("/")  # an object store knows no ".."
    return f"{start}://{bucket}{posixpath.normpath('/' + key)}"


def parent(text: str) -> str:
    """The folder that holds a file; of a bucket the bucket itself."""
    return str(Address.parse(text, allow_https=True).parent)


@dataclass(frozen=True)
class Entry:
    """A file or a folder in a folder."""

    name: str
    """Relative to the folder."""
    is_folder: bool
    size: int
    """Bytes."""
    stamp: str
    """What changes when the file does."""


@dataclass(frozen=True)
class Address:
    """A file or a folder, here or in an object store. Small, picklable, and no ``os.PathLike``: nothing takes it for a path by mistake.

    >>> address = Address.parse("s3://bucket/images/a cat #1.png")
    >>> address.name, address.suffix, str(address.parent), str(address.parent.join("b.png"))
    ('a cat #1.png', '.png', 's3://bucket/images', 's3://bucket/images/b.png')
    >>> Address.parse("images/1.png").local.name
    '1.png'
    """

    scheme: str
    """Empty for a path of this machine."""
    path: str
    """The path, or what follows ``://``, without a slash at its end."""

    @classmethod
    def parse(cls, place: PathLike | Address, allow_https: bool = False) -> Address:
        """Raises ``AddressError`` for a scheme that is not read, the web included unless it is allowed."""
        if isinstance(place, Address):
            return place
        text = os.fsdecode(place)
        kind = scheme(text)
        if not kind:
            if not isinstance(place, str) and _OF_A_PATH.match(text) and not os.path.lexists(text):
                raise AddressError(
                    f"{text:.200} is an address as a Path: only a path of this machine will do here; programs pass addresses as text"
                )
            return cls("", text)
        if kind not in SCHEMES and not (kind == "https" and allow_https):
            known = ", ".join(f"{name}://" for name in SCHEMES)
            remedy = {"file": "give the path alone", "http": "download it first", "https": "download it first"}.get(
                kind, f"known are {known}"
            )
            raise AddressError(f"{text:.200}: {kind}:// is not read here; {remedy}")
        path = text[len(kind) + 3 :].rstrip("/")
        if not path or (path.startswith("/") and kind != "hdfs"):  # which has a default server
            raise AddressError(f"{text:.200} names no bucket; an address is {kind}://BUCKET/NAME")
        return cls(kind, path)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" if self.scheme else self.path

    # --- its parts ---

    @property
    def is_local(self) -> bool:
        return not self.scheme

    @property
    def local(self) -> Path:
        """The path of a file of this machine. Raises ``AddressError`` for an address."""
        if self.scheme:
            raise AddressError(f"{self} is an address, and only a path of this machine will do here; download it first")
        return Path(self.path)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2] if self.scheme else Path(self.path).name

    @property
    def suffix(self) -> str:
        """As it is written, with its dot; empty where there is none."""
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> Address:
        """The folder that holds it; of a bucket the bucket itself."""
        if not self.scheme:
            return Address("", str(Path(self.path).parent))
        above, slash, _ = self.path.rpartition("/")
        return Address(self.scheme, above) if slash and above else self

    def join(self, name: str) -> Address:
        """``name`` relative to this folder, unless it is absolute or an address itself."""
        joined = join(str(self), name)
        return Address.parse(joined, allow_https=True) if scheme(joined) else Address("", str(Path(joined)))

    # --- what is there ---

    def kind(self) -> Kind | None:
        """Whether it is a file (anything that is not a folder, a link to nothing included) or a folder; None where there is nothing."""
        if not self.scheme:
            if os.path.isdir(self.path):  # noqa: PTH112 - unlike Path.is_dir, False for what cannot be a path
                return "folder"
            return "file" if os.path.lexists(self.path) else None
        store, name = self._store()
        with _reported(self):
            try:
                return "folder" if store.info(name)["type"] == "directory" else "file"
            except FileNotFoundError as error:
                if _code(error) in _NO_BUCKET:
                    raise
                return None

    def exists(self) -> bool:
        """As ``kind``, but a link to nothing does not count."""
        return self.kind() is not None and (bool(self.scheme) or os.path.exists(self.path))  # noqa: PTH110

    def stamp(self) -> str:
        """What changes when a file does: its size and time of modification, or what an object store says in their place.

        Raises ``FileNotFoundError``, or ``FileKindError`` for a pipe or a device.
        """
        if not self.scheme:
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
            return f"{status.st_size} bytes, {status.st_mtime_ns} ns"
        store, name = self._store()
        with _reported(self):
            return _stamp(store.info(name))

    def entries(self) -> list[Entry]:
        """The files and folders in this folder, sorted, hidden ones left out."""
        if self.scheme:
            return self._entries(recursive=False)
        listed = []
        with os.scandir(self.path) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    status = None
                    with suppress(OSError):  # such as a link to nothing
                        status = entry.stat()
                    stamp = f"{status.st_size} bytes, {status.st_mtime_ns} ns" if status else "-"
                    listed.append(Entry(entry.name, os.path.isdir(entry.path), status.st_size if status else 0, stamp))  # noqa: PTH112
        return sorted(listed, key=lambda entry: entry.name)

    def files_within(self) -> list[Entry]:
        """The files in this folder of an object store and in folders within it, sorted, hidden ones left out: one listing for all."""
        return self._entries(recursive=True)

    def _entries(self, recursive: bool) -> list[Entry]:
        store, name = self._store()
        with _reported(self):
            infos = list(store.find(name, detail=True).values()) if recursive else store.ls(name, detail=True)
        prefix, listed = name.rstrip("/") + "/", []
        for info in infos:
            path = info["name"].rstrip("/")
            if not path.startswith(prefix):  # the mark that some programs leave for the folder itself
                continue
            inside = path.removeprefix(prefix)
            if not any(part.startswith(".") for part in inside.split("/")) and not (recursive and info["name"].endswith("/")):
                listed.append(Entry(inside, info["type"] == "directory", info.get("size") or 0, _stamp(info)))
        return sorted(listed, key=lambda entry: entry.name)

    def matches(self) -> list[Address]:
        """The files, not folders, that this glob matches, sorted, without hidden ones; a name that exists is not expanded.

        Leading folders that exist are literal, so that ``shots [v1]/*.png`` is found.
        """
        if self.scheme == "https":
            return [self]
        if not self.is_glob or self.kind():
            return [self] if self.exists() else []
        parts = self.path.split("/")
        literal = next((n for n in range(len(parts) - 1, 0, -1) if self._is_literal("/".join(parts[:n]))), 0)
        pattern = "/".join([*map(glob.escape, parts[:literal]), *parts[literal:]])
        if not self.scheme:
            paths = glob.glob(pattern, recursive=True)  # noqa: PTH207 - may be absolute
            return [Address("", path) for path in sorted(paths) if not os.path.isdir(path)]  # noqa: PTH112
        store, name = Address(self.scheme, pattern)._store()
        with _reported(self):
            infos = store.glob(name, detail=True)
        start = pattern.removesuffix(name.lstrip("/"))  # a host, which some names of stores do not have
        files = [path for path, info in infos.items() if info["type"] != "directory" and not posixpath.basename(path).startswith(".")]
        return [Address(self.scheme, start + path.lstrip("/")) for path in sorted(files)]

    def _is_literal(self, folder: str) -> bool:
        """Whether a folder with characters of a glob in its name exists; without them it does not matter."""
        return glob.has_magic(folder) and Address(self.scheme, folder).kind() == "folder"

    @property
    def is_glob(self) -> bool:
        return glob.has_magic(self.path)

    # --- reading ---

    def open(self) -> IO[bytes]:
        """Raises ``FileNotFoundError``, ``FileKindError`` for what is not a regular file, or ``AddressError``, while it is read too."""
        if not self.scheme:
            return open_regular(self.path)
        store, name = self._store()
        with _reported(self):
            return io.BufferedReader(_Reader(store.open(name, "rb", block_size=_BLOCK), self), 1 << 16)

    def read(self, limit: int) -> bytes:
        """The content of a file of at most ``limit`` bytes. Raises as ``open``, and ``FileSizeError``."""
        if not self.scheme:
            return read_regular(self.path, limit)
        store, name = self._store()
        with _reported(self):
            size = store.size(name)
            if size is None:  # a server of the web that does not say how much it will send
                with store.open(name, "rb") as file:
                    content: bytes = file.read(limit + 1)
                size = len(content)
            elif size <= limit:
                content = store.cat_file(name)
        if size > limit:
            raise FileSizeError(f"{self} is larger than {limit:,} bytes, the most that is read of such a file")
        return content

    def read_part(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``, fewer where the file ends before. Raises as ``open``."""
        if not self.scheme:
            with open_regular(self.path) as file:
                file.seek(start)
                return file.read(size)
        store, name = self._store()
        with _reported(self):
            part: bytes = store.cat_file(name, start=start, end=start + size)
        return part

    def read_json(self, limit: int, error: type[Exception] = CheckpointError) -> Any:
        """What a JSON file of at most ``limit`` bytes holds. Raises as ``read``, and ``error`` for all else."""
        if not self.scheme:
            return read_json(self.local, limit, error)
        return parse_json(self.read(limit), str(self), error)

    # --- writing ---

    @contextmanager
    def writer(self) -> Iterator[IO[bytes]]:
        """A file to write to, which takes its name when the block succeeds; what was there before stays until then."""
        if not self.scheme:
            with synced_whole(self.local) as file:
                yield file
            return
        store, name = self._store()
        with _reported(self, "written"):
            store.start_transaction()
            remote = store.open(name, "wb")
        try:
            yield _Writer(remote, self)  # type: ignore[misc]
        except BaseException:
            from fsspec.spec import AbstractBufferedFile

            with suppress(Exception):
                if isinstance(remote, AbstractBufferedFile):
                    remote.closed = True  # closing it would send what is left, and Azure then give it its name
                else:
                    remote.close()
                store.transaction.complete(commit=False)
            raise
        with _reported(self, "written"):
            remote.close()
            store.end_transaction()

    def write(self, content: bytes) -> None:
        with self.writer() as file:
            file.write(content)

    def remove(self) -> None:
        if not self.scheme:
            self.local.unlink(missing_ok=True)
            return
        store, name = self._store()
        with _reported(self, "removed"):
            store.rm_file(name)

    def make_folder(self) -> None:
        """An object store has no folders but those that its files are in."""
        if not self.scheme:
            self.local.mkdir(parents=True, exist_ok=True)

    # --- fsspec ---

    def file_system(self) -> Any:
        """fsspec's file system, for libraries that take one."""
        return self._store()[0]

    def _store(self) -> tuple[Any, str]:
        """fsspec's file system, and the name in it. Not by ``url_to_fs``, which takes ``::`` in a name for a chain of file systems."""
        text = str(self)
        with _reported(self):
            from fsspec import get_filesystem_class

            kind = get_filesystem_class(self.scheme)
            # Without its cache of listings, which would not see what another process has written.
            options = kind._get_kwargs_from_urls(text) | {"use_listings_cache": False}
            options.pop("version_aware", None)  # which would take the end of a name such as "out #1" for a version
            limits = _time_limits(kind, self.scheme)
            if self.scheme == "https":
                limits["client_kwargs"] |= {"trace_configs": [_encrypted_alone()]}
            store = kind(**limits | options)
            _limit_attempts(store, self.scheme)
            return store, kind._strip_protocol(text)


def _time_limits(kind: Any, scheme: str) -> dict[str, Any]:
    """What bounds the wait for a silent server, as options of a file system; what fsspec's configuration says of it is kept."""
    from fsspec.config import apply_config

    limits: dict[str, Any] = {}
    if scheme == "s3":
        limits = {"config_kwargs": {"connect_timeout": _CONNECT_TIMEOUT, "read_timeout": _READ_TIMEOUT}}
    elif scheme in ("az", "abfs"):
        limits = {"connection_timeout": _CONNECT_TIMEOUT, "read_timeout": _READ_TIMEOUT}
    elif scheme in ("gs", "gcs", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=_READ_TIMEOUT)
        if scheme == "https":
            limits = {"client_kwargs": {"timeout": timeout}}
        else:
            limits = {"requests_timeout": timeout, "session_kwargs": {"trace_configs": [_silences()]}}
    configured = apply_config(kind, {})
    return {
        name: limit | (configured.get(name) or {}) if isinstance(limit, dict) else configured.get(name, limit)
        for name, limit in limits.items()
    }


def _limit_attempts(store: Any, scheme: str) -> None:
    """How often a silent server is asked again, which no option of a file system says."""
    if scheme == "s3":
        store.retries = min(store.retries, _S3_ATTEMPTS)
        if store.session is None:
            from aiobotocore.session import AioSession

            store.session = AioSession(**store.kwargs)  # as s3fs makes it
            store.session.register("needs-retry.s3", _end_of_silence)
    elif scheme in ("az", "abfs"):
        with suppress(AttributeError, KeyError):  # these are not public; without them it takes minutes
            client, limits = store.service_client, store._timeout_kwargs  # which adlfs itself sets for transfers alone
            retries, connection = client._config.retry_policy, client._pipeline._transport.connection_config
            retries.connect_retries = retries.read_retries = _SILENT_ATTEMPTS - 1
            connection.timeout, connection.read_timeout = limits["connection_timeout"], limits["read_timeout"]
    elif scheme in ("gs", "gcs"):
        import logging

        logger = logging.getLogger("gcsfs")
        if not logger.handlers:  # it would write a traceback to standard error for what is reported here
            logger.addHandler(logging.NullHandler())


class _SilenceError(Exception):
    """A server has been silent for as often as it may. Not an error that s3fs and gcsfs know, so they do not try again."""


def _end_of_silence(attempts: int, caught_exception: Exception | None, **_: Any) -> None:
    """What botocore asks before it tries again."""
    if attempts >= _SILENT_ATTEMPTS and type(caught_exception).__name__ in _TIMEOUTS:
        raise _SilenceError from caught_exception


@cache  # one for all, since fsspec tells file systems apart by their options
def _silences() -> Any:
    """The same for gcsfs, which makes six attempts of whatever fails: what it has aiohttp call for each of them."""
    import asyncio

    from aiohttp import TraceConfig

    began: float | None = None

    async def answered(*_: Any) -> None:
        nonlocal began
        began = None

    async def failed(_: Any, __: Any, attempt: Any) -> None:
        nonlocal began
        if isinstance(attempt.exception, asyncio.TimeoutError):
            now = time.monotonic()
            if began is not None and now - began >= _READ_TIMEOUT:  # so this is the second attempt, not another request at the same time
                raise _SilenceError from attempt.exception
            began = began or now

    trace = TraceConfig()
    trace.on_request_end.append(answered)
    trace.on_request_exception.append(failed)
    return trace


@cache
def _encrypted_alone() -> Any:
    """Refuses redirections from https to anything else: a stranger's server could lead to what only this machine's network reaches.

    Services in private networks that speak https have no certificate for the name under which they would be asked.
    """
    from aiohttp import TraceConfig

    async def refuse(_session: Any, _context: Any, redirection: Any) -> None:
        headers = redirection.response.headers
        target = urljoin(str(redirection.url), headers.get("Location") or headers.get("URI") or "")
        if scheme(target) != "https":
            raise AddressError(f"{redirection.url} cannot be read: it redirects to {target:.200}, which is not https; download it first")

    trace = TraceConfig()
    trace.on_request_redirect.append(refuse)
    return trace


def _stamp(info: dict[str, Any]) -> str:
    dates = (str(info[key]) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated") if info.get(key))
    return f"{info.get('size')} bytes, {next(dates, 'no date')}"


class _Reader(io.RawIOBase):
    """A file of an object store, whose faults are ``AddressError`` whenever they come."""

    def __init__(self, file: Any, address: Address) -> None:
        self.file, self.address = file, address

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _reported(self.address):
            content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        with _reported(self.address):
            content: bytes = self.file.read()
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


class _Writer(io.RawIOBase):
    """The same for writing. Closing it does not give the file its name: that is for the end of the block."""

    def __init__(self, file: Any, address: Address) -> None:
        self.file, self.address, self.place = file, address, 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        with _reported(self.address, "written"):
            self.file.write(content)
        size = memoryview(content).nbytes
        self.place += size
        return size

    def tell(self) -> int:
        return self.place


# --- faults --------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _reported(address: Address, doing: str = "read") -> Iterator[None]:
    """Turn whatever the libraries of an object store raise into ``FileNotFoundError`` or ``AddressError``."""
    try:
        yield
    except (ImageRewardError, MemoryError):
        raise
    except Exception as error:
        raise _translated(address, doing, error) from None


def _translated(address: Address, doing: str, error: Exception) -> Exception:
    if (refused := next((link for link in _chain(error) if isinstance(link, AddressError)), None)) is not None:
        return refused
    names, code = {type(link).__name__ for link in _chain(error)}, _code(error)
    cause = next((link for link in _chain(error) if type(link).__name__ in _UNREACHABLE), error)
    said = " ".join(str(cause).split())[:300] or type(cause).__name__
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") if address.scheme == "s3" else None
    if isinstance(error, ImportError):
        package = _PACKAGES.get(address.scheme, "its fsspec package")
        return PackageError(f"{address}: {address.scheme}:// needs a package that is not installed: pip install {package}")
    if "libjvm" in said or "libhdfs" in said:
        return StoreError(f"{address} cannot be {doing}: hdfs:// needs Java and Hadoop; set JAVA_HOME, HADOOP_HOME and CLASSPATH")
    if code in _NO_BUCKET:
        bucket, place = address.path.partition("/")[0], f" at {endpoint}" if endpoint else ""
        return AddressError(
            f"{address} cannot be {doing}: there is no {_NO_BUCKET[code]} {bucket!r}{place}; create it, or correct the address"
        )
    if names & _WITHOUT_CREDENTIALS or code in _REFUSED_CREDENTIALS:
        problem = (
            f"its server refuses the credentials ({code})" if code in _REFUSED_CREDENTIALS else f"there are no credentials for it ({said})"
        )
        return StoreError(f"{address} cannot be {doing}: {problem}; {_CREDENTIALS.get(address.scheme, 'log in to its server')}")
    if names & _UNREACHABLE:
        remedy = f"check the network and the endpoint, {endpoint}" if endpoint else "check the network"
        if names & _TIMEOUTS and address.scheme in _MORE_TIME:
            remedy += f"; a slow server gets more time by FSSPEC_{address.scheme.upper()}='{_MORE_TIME[address.scheme]}'"
        kind = AddressError if address.scheme == "https" else StoreError  # the web has as many servers as addresses
        return kind(f"{address} cannot be {doing}: its server does not answer ({said}); {remedy}")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"no such file: {address}")
    if isinstance(error, PermissionError):
        return AddressError(f"{address} may not be {doing} ({said}); check the credentials and what they allow")
    return AddressError(f"{address} cannot be {doing}: {type(error).__name__}: {said}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str:
    """What a server of S3 or Azure called its error; empty where it did not."""
    for link in _chain(error):
        response, code = getattr(link, "response", None), getattr(link, "error_code", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        if code is not None:
            return str(getattr(code, "value", code))
    return ""
