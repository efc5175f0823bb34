"""A scorer that is elsewhere: the methods of a scorer, answered by the service that ``image-reward serve`` starts. Loads no PyTorch."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import random
import re
import secrets
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, overload
from urllib.parse import urlsplit

from image_reward.errors import ImageReadError, InputError, LongPromptWarning, PromptError, ServiceError, UnknownModelError
from image_reward.image_files import read_image_file
from image_reward.types import Preference, Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from image_reward.images import ImageLike

_RETRIED = (429, 503)
_LONGEST_WAIT = 60.0  # seconds between two tries
_MOST_CONNECTIONS = 64  # of an asynchronous client
_LARGEST_ANSWER = 1 << 28  # bytes
_LIMITS = ("max_images", "max_queue", "max_body")
_FIELDS = {"images": ImageReadError, "a": ImageReadError, "b": ImageReadError, "prompt": PromptError, "prompts": PromptError}

T = TypeVar("T")


def is_service(model: str) -> bool:
    """Whether this is the address of a service, and not of a file.

    >>> is_service("http://127.0.0.1:8000"), is_service("https://example.org/model.pt"), is_service("ImageReward-v1.0")
    (True, False, False)
    """
    try:
        parts = urlsplit(model)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and parts.path in ("", "/")


class _Call:
    """A call that another thread can end."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.connection: http.client.HTTPConnection | None = None

    def cancel(self) -> None:
        self.ended.set()
        if (connection := self.connection) is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)  # unlike closing, this wakes the thread that reads


class Client:
    """Scores with the model of a service. Threads may share a client; an ``AsyncClient`` has the same methods as coroutines.

    Lists of any length are sent in as many requests as the limits of the service ask for. What the service refuses raises what a scorer
    raises (``ImageReadError``, ``PromptError``, ``UnknownModelError``); all else is a ``ServiceError``.
    """

    def __init__(self, url: str, token: str | None = None, *, model: str | None = None, timeout: float = 180.0, retries: int = 8) -> None:
        """
        Args:
            url: such as "http://127.0.0.1:8000".
            token: by default the environment variable IMAGE_REWARD_TOKEN, if it is set.
            model: a model of the service, by default its first.
            timeout: seconds to wait for an answer.
            retries: how often a request is sent again, at growing intervals, while the service is busy (429, 503). Nothing else is.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"{url!r:.100} is not an address: {error}; write it as http://127.0.0.1:8000") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"the address of a service begins with http:// or https://, not {url!r:.100}")
        if parts.username is not None or parts.query or parts.fragment:
            raise InputError("the address of a service has no user name, ? or #; pass the token as token=")
        self.url = url.rstrip("/")
        self._host, self._port, self._is_encrypted = parts.hostname, port, parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        self._token = (token if token is not None else os.environ.get("IMAGE_REWARD_TOKEN", "")).strip()
        if not self._token.isascii() or any(character.isspace() for character in self._token):
            raise InputError("the token holds a space, or a character beyond ASCII; pass what the service's --token-file holds")
        self.model, self.timeout, self.retries = model, timeout, retries
        self._idle: list[http.client.HTTPConnection] = []
        self._described: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}{f', model={self.model!r}' if self.model else ''})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_idle"):  # the address made sense
            self.close()

    def close(self) -> None:
        """Close the connections that are kept for the next request."""
        while self._idle:
            self._idle.pop().close()

    @property
    def aio(self) -> AsyncClient:
        """An asynchronous client of the same service."""
        return AsyncClient(self.url, self._token, model=self.model, timeout=self.timeout, retries=self.retries)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.model or self.models()[0]

    def models(self) -> list[str]:
        """The names of the service's models."""
        return _names(self._description(_Call()))

    @overload
    def score(self, prompt: str, image: ImageLike) -> float: ...
    @overload
    def score(self, prompt: str, image: list[Any] | tuple[Any, ...]) -> list[float]: ...
    @overload
    def score(self, prompt: list[str] | tuple[str, ...], image: list[Any] | tuple[Any, ...]) -> list[float]: ...

    def score(self, prompt: Any, image: Any) -> float | list[float]:
        """As ``Scorer.score``."""
        return self._score(_Call(), prompt, image)

    def matrix(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> NDArray[Any]:
        """As ``Scorer.matrix``."""
        return self._matrix(_Call(), prompts, images)

    def rank(self, prompt: str, images: Sequence[ImageLike]) -> Ranking:
        """As ``Scorer.rank``."""
        return self._rank(_Call(), prompt, images)

    def compare(self, prompt: str, a: ImageLike, b: ImageLike) -> Preference:
        """As ``Scorer.compare``."""
        return self._compare(_Call(), prompt, a, b)

    # --- requests --------------------------------------------------------------------------------------------------------------------

    def _score(self, call: _Call, prompt: Any, image: Any) -> float | list[float]:
        if not isinstance(image, list | tuple):
            if isinstance(prompt, list | tuple):
                raise ValueError("a list of prompts needs a list of images; use matrix() for all prompts against all images")
            return self._pairs(call, [prompt], [image])[0]
        prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt] * len(image)
        if len(prompts) != len(image):
            raise ValueError(
                f"{len(prompts)} prompts and {len(image)} images: aligned lists must have the same length; "
                "use matrix() for all prompts against all images"
            )
        return self._pairs(call, prompts, image)

    def _pairs(self, call: _Call, prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
        _check_prompts(prompts)
        rewards: list[float] = []
        for start, files in self._parts(call, images, 1):
            own = prompts[start : start + len(files)]
            fields: list[tuple[str, str | bytes]] = [("prompt", prompt) for prompt in (own if len(set(own)) > 1 else own[:1])]
            answer = self._post(call, "/v1/score", [*fields, *(("images", file) for file in files)], start)
            rewards += self._numbers("/v1/score", answer.get("rewards"), len(files))
        return rewards

    def _matrix(self, call: _Call, prompts: Sequence[str], images: Sequence[Any]) -> NDArray[Any]:
        import numpy as np

        if not isinstance(prompts, list | tuple) or not isinstance(images, list | tuple):
            raise ValueError("matrix() takes a list of prompts and a list of images")
        _check_prompts(prompts)
        whole = np.empty((len(prompts), len(images)), dtype=np.float32)
        if not whole.size:
            return whole
        step = max(1, self._description(call)["limits"]["max_queue"] // 4)
        for first in range(0, len(prompts), step):
            own = prompts[first : first + step]
            for start, files in self._parts(call, images, len(own)):
                fields: list[tuple[str, str | bytes]] = [("prompts", prompt) for prompt in own]
                answer = self._post(call, "/v1/matrix", [*fields, *(("images", file) for file in files)], start)
                rows = answer.get("rewards")
                if not isinstance(rows, list) or len(rows) != len(own):
                    raise self._is_another("/v1/matrix")
                numbers = [self._numbers("/v1/matrix", row, len(files)) for row in rows]
                whole[first : first + len(own), start : start + len(files)] = numbers
        return whole

    def _rank(self, call: _Call, prompt: str, images: Sequence[Any]) -> Ranking:
        if not isinstance(images, list | tuple) or not images:
            raise ValueError("rank() takes a list of at least one image")
        return Ranking.from_rewards(self._pairs(call, [prompt] * len(images), images), images)

    def _compare(self, call: _Call, prompt: str, a: Any, b: Any) -> Preference:
        _check_prompts([prompt])
        answer = self._post(call, "/v1/compare", [("prompt", prompt), ("a", encoded(a)), ("b", encoded(b))])
        probabilities = [answer.get(name) for name in ("a_better", "tie", "b_better")]
        a_better, tie, b_better = self._numbers("/v1/compare", probabilities, 3)
        reward_a, reward_b = self._numbers("/v1/compare", answer.get("rewards"), 2)
        spreads = None
        if (deviations := answer.get("spreads")) is not None:
            spread_a, spread_b = self._numbers("/v1/compare", deviations, 2)
            spreads = spread_a, spread_b
        return Preference(a_better, tie, b_better, (reward_a, reward_b), (a, b), spreads)

    def _description(self, call: _Call) -> dict[str, Any]:
        if self._described is None:
            described = self._request(call, "GET", "/v1/models", b"", {})
            limits, models = described.get("limits"), described.get("models")
            if not isinstance(limits, dict) or not all(isinstance(limits.get(name), int) and limits[name] > 0 for name in _LIMITS):
                raise self._is_another("/v1/models")
            if not isinstance(models, list) or not models or not all(isinstance(model, dict) and "name" in model for model in models):
                raise self._is_another("/v1/models")
            self._described = described
        return self._described

    def _parts(self, call: _Call, images: Sequence[Any], rows_each: int) -> Iterator[tuple[int, list[bytes]]]:
        """The files of images in as many parts as the limits of the service ask for, and the number of the first of each part."""
        if not images:
            return
        limits = self._description(call)["limits"]
        most = max(1, min(limits["max_images"], limits["max_queue"] // rows_each))
        room = limits["max_body"] * 9 // 10  # the rest is for prompts and for what encloses the files
        part: list[bytes] = []
        start = size = 0
        for number, image in enumerate(images):
            file = encoded(image)
            if part and (len(part) == most or size + len(file) > room):
                yield start, part
                part, start, size = [], number, 0
            part.append(file)
            size += len(file) + 200
        yield start, part

    def _post(self, call: _Call, path: str, fields: Sequence[tuple[str, str | bytes]], first_image: int = 0) -> dict[str, Any]:
        """The answer to a form. ``first_image``: the number of its first image among those of the caller, for messages."""
        if self.model is not None:
            fields = [("model", self.model), *fields]
        boundary = secrets.token_hex(16)
        body = io.BytesIO()
        for name, value in fields:
            is_file = isinstance(value, bytes)
            kind = '; filename="image"\r\nContent-Type: application/octet-stream' if is_file else ""
            body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{kind}\r\n\r\n'.encode())
            body.write(value if isinstance(value, bytes) else value.encode())
            body.write(b"\r\n")
        body.write(f"--{boundary}--\r\n".encode())
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return self._request(call, "POST", path, body.getvalue(), headers, first_image)

    def _request(self, call: _Call, method: str, path: str, body: bytes, headers: dict[str, str], first_image: int = 0) -> dict[str, Any]:
        if self._token:
            headers = headers | {"authorization": f"Bearer {self._token}"}
        for attempt in range(self.retries + 1):
            status, retry_after, content = self._exchange(call, method, self._path + path, body, headers)
            if status == 200:
                try:
                    answer = json.loads(content)
                except (ValueError, RecursionError):
                    answer = None
                if not isinstance(answer, dict) or not isinstance(answer.get("warnings", []), list):
                    raise self._is_another(path)
                for warning in answer.get("warnings", ()):
                    warnings.warn(str(warning), LongPromptWarning, stacklevel=2)
                return answer
            if status not in _RETRIED or attempt == self.retries:
                break
            wait = min(_LONGEST_WAIT, max(retry_after, 0.25 * 2**attempt) * random.uniform(1.0, 1.5))
            if call.ended.wait(wait):
                raise ServiceError(f"{self.url}{path}: the call was cancelled")
        raise self._error(path, status, content, first_image)

    def _exchange(self, call: _Call, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, float, bytes]:
        """Status, seconds after which to try again, and body. A kept connection that the service has closed by now is replaced."""
        while True:
            connection, is_new = (self._idle.pop(), False) if self._idle else (self._connection(), True)
            call.connection = connection
            try:
                if call.ended.is_set():
                    raise ServiceError(f"{self.url}{path}: the call was cancelled")
                try:
                    connection.request(method, path, body, headers)
                except (BrokenPipeError, ConnectionResetError):
                    if is_new is False:
                        raise
                    # A request that is too large is answered before all of it has been sent.
                if call.ended.is_set():  # while it was connecting, when there was nothing to shut down
                    raise ServiceError(f"{self.url}{path}: the call was cancelled")
                response = connection.getresponse()
                content = response.read(_LARGEST_ANSWER + 1)
                if len(content) > _LARGEST_ANSWER:
                    raise self._is_another(path)
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                if isinstance(error, ServiceError) or call.ended.is_set():
                    raise
                if not is_new and isinstance(error, http.client.RemoteDisconnected | BrokenPipeError | ConnectionResetError):
                    continue
                raise ServiceError(
                    f"{self.url} does not answer: {error or type(error).__name__}; is it started, and is the address right?"
                ) from error
            finally:
                call.connection = None
            self._idle.append(connection)
            wait = response.getheader("retry-after") or ""
            return response.status, float(wait) if re.fullmatch("[0-9]{1,9}", wait) else 0.0, content

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._is_encrypted else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self.timeout)

    def _numbers(self, path: str, values: Any, number: int) -> list[float]:
        """Values of an answer. Raises ``ServiceError`` unless they are that many numbers."""
        if not isinstance(values, list) or len(values) != number or not all(type(value) in (int, float) for value in values):
            raise self._is_another(path)
        return values

    def _is_another(self, path: str) -> ServiceError:
        return ServiceError(
            f"{self.url}{path} does not answer as the service of this version of image-reward does; is the address right, "
            "and is the same version installed there?"
        )

    def _error(self, path: str, status: int, content: bytes, first_image: int) -> Exception:
        try:
            error = json.loads(content)["error"]
            field, message = str(error["field"]), f"{error['message']}; {error['remedy']}"
        except (ValueError, KeyError, TypeError, RecursionError):
            return ServiceError(f"{self.url}{path} answered with {status}, and not as this service does; is the address right?")
        name, _, rest = field.partition("[")
        if name == "images" and first_image and rest.removesuffix("]").isdigit():
            moved = f"images[{int(rest.removesuffix(']')) + first_image}]"
            field, message = moved, message.replace(field, moved)
        message = message if message.startswith(field) else f"{field}: {message}"
        if status == 422 and name in _FIELDS:
            return _FIELDS[name](message)
        if status == 404 and name == "model":
            return UnknownModelError(message)
        if status == 422:
            return InputError(message)
        return ServiceError(f"{self.url}{path} answered with {status}: {message}")


class AsyncClient:
    """``Client`` for asyncio: ``await client.score(prompt, image)``. A call that is cancelled leaves the queue of the service."""

    def __init__(self, url: str, token: str | None = None, *, model: str | None = None, timeout: float = 180.0, retries: int = 8) -> None:
        """Arguments are those of ``Client``."""
        self._client = Client(url, token, model=model, timeout=timeout, retries=retries)
        self._threads = ThreadPoolExecutor(_MOST_CONNECTIONS, "image-reward-client")

    def __repr__(self) -> str:
        return f"Async{self._client!r}"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept for the next request."""
        self._threads.shutdown(wait=False)
        self._client.close()

    @property
    def model(self) -> str | None:
        """The name of the model, if one was chosen."""
        return self._client.model

    async def name(self) -> str:
        """The name of the model."""
        return self.model or (await self.models())[0]

    async def models(self) -> list[str]:
        """The names of the service's models."""
        described = await self._run(self._client._description)
        return _names(described)

    @overload
    async def score(self, prompt: str, image: ImageLike) -> float: ...
    @overload
    async def score(self, prompt: str, image: list[Any] | tuple[Any, ...]) -> list[float]: ...
    @overload
    async def score(self, prompt: list[str] | tuple[str, ...], image: list[Any] | tuple[Any, ...]) -> list[float]: ...

    async def score(self, prompt: Any, image: Any) -> float | list[float]:
        """As ``Scorer.score``."""
        return await self._run(self._client._score, prompt, image)

    async def matrix(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> NDArray[Any]:
        """As ``Scorer.matrix``."""
        return await self._run(self._client._matrix, prompts, images)

    async def rank(self, prompt: str, images: Sequence[ImageLike]) -> Ranking:
        """As ``Scorer.rank``."""
        return await self._run(self._client._rank, prompt, images)

    async def compare(self, prompt: str, a: ImageLike, b: ImageLike) -> Preference:
        """As ``Scorer.compare``."""
        return await self._run(self._client._compare, prompt, a, b)

    async def _run(self, method: Callable[..., T], *arguments: Any) -> T:
        call = _Call()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, method, call, *arguments)
        except asyncio.CancelledError:
            call.cancel()
            raise


def encoded(image: Any) -> bytes:
    """Anything that ``open_image`` takes -> the bytes of an image file with the same pixels; files are sent as they are. Modes that no
    format keeps are converted to RGB.

    Raises what ``open_image`` raises.
    """
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, str | os.PathLike):
        return read_image_file(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    from image_reward.images import open_image

    picture = open_image(image)
    buffer = io.BytesIO()
    if picture.mode in ("L", "LA", "RGB", "RGBA"):
        picture.save(buffer, "PNG", compress_level=1)
    elif picture.mode in ("CMYK", "LAB") or (picture.mode == "YCbCr" and _reads_ycbcr()):
        picture.save(buffer, "TIFF")
    else:
        picture.convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _reads_ycbcr() -> bool:
    """Whether this Pillow reads the TIFF files of YCbCr that it writes; before 13 it does not, and RGB is within rounding."""
    from PIL import __version__

    return int(__version__.split(".")[0]) >= 13


def _names(described: Mapping[str, Any]) -> list[str]:
    return [str(model["name"]) for model in described["models"]]


def _check_prompts(prompts: Sequence[object]) -> None:
    """Raise ``PromptError`` for what is not text; the service checks the rest."""
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt is a string, not {type(prompt).__name__}: {prompt!r:.60}")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise PromptError(f"the prompt {prompt!r:.60} contains half of a surrogate pair, which is not a character") from None
