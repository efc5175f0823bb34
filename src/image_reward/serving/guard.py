"""What every request passes before anything looks into it: who sends it, how much of it there is, and how long it takes.

The body is read here, counted while it arrives, and handed on whole. While the request is in work its client is watched: when the client
leaves, the work is cancelled. Every refusal has a JSON body. What is logged of a request is sizes and seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from image_reward.serving.errors import BusyError, RequestError, of_package
from image_reward.serving.page import OPEN_PATHS
from image_reward.serving.service import Service

logger = logging.getLogger("image_reward.serving")

_HEALTH = ("/health/", "/v2/health/")
_LINGER = 5.0  # seconds in which what a refused client still sends is read and dropped, so that it gets to read the answer


class _ClientGoneError(Exception):
    """Nobody waits for the answer."""


class _Exchange:
    """A request and the answer to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.size = 0
        self.is_whole = False
        self.status = 0
        self.is_answered = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif not message.get("more_body", False):
            self.is_answered = True
        await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        body = error.body()
        headers = {"content-type": "application/json", "content-length": str(len(body))} | error.headers
        if not self.is_whole:
            headers["connection"] = "close"
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body, "more_body": not self.is_whole})
        if not self.is_whole:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drop_rest(), _LINGER)
            await self.send({"type": "http.response.body", "body": b""})

    async def _drop_rest(self) -> None:
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service, statuses: Mapping[tuple[str, str], Mapping[int, int]]) -> None:
        """``statuses``: of a method and path, what replaces some statuses that its clients take for something else."""
        self.app, self.service, self.statuses = app, service, statuses
        settings = service.settings
        self.token = None if settings.token is None else _digest(settings.token)
        self.memory = 0
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        exchange = _Exchange(scope, receive, send)
        started = time.perf_counter()
        self.num_requests += 1
        try:
            await self._answer(exchange)
        except _ClientGoneError:
            self.service.metrics.gone.inc()
        except RequestError as error:
            self.service.metrics.rejected.labels(_reason(error.status)).inc()
            error.status = self.statuses.get((scope["method"], scope["path"]), {}).get(error.status, error.status)
            await exchange.refuse(error)
        finally:
            self.num_requests -= 1
            self.memory -= exchange.size
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            if exchange.status:
                self.service.metrics.answered(route, exchange.status, seconds)
            logger.info("%s %s %s %d bytes %.3f s", scope["method"], route, exchange.status or "client left", exchange.size, seconds)

    async def _answer(self, exchange: _Exchange) -> None:
        self._check_sender(exchange)
        limits = self.service.limits
        # Whoever asks for the health of a busy service would start it again.
        if self.num_requests > limits.max_requests and not exchange.scope["path"].startswith(_HEALTH):
            raise BusyError(f"{limits.max_requests} requests are in work", self.service.batcher.retry_after())
        slow = RequestError(408, "body", f"it did not arrive within {limits.read_seconds:g} s", "send it faster, or in parts")
        late = RequestError(503, "request", f"it took longer than {limits.max_seconds:g} s", "send fewer images at once", 5)
        leaving: asyncio.Task[Message] | None = None

        def out_of_time() -> None:
            if exchange.status:  # the answer is on its way, if the client reads it
                watch.end_in(limits.read_seconds, lambda: watch.end(_ClientGoneError()))
            else:
                watch.end(late)

        try:
            with _Watch() as watch:
                watch.end_in(limits.read_seconds, lambda: watch.end(slow))
                body = await self._read(exchange)
                watch.end_in(limits.max_seconds, out_of_time)
                leaving = asyncio.ensure_future(exchange.receive())
                leaving.add_done_callback(lambda _: None if exchange.is_answered else watch.end(_ClientGoneError()))
                replay = _Replay(body, leaving)
                del body
                await self.app(exchange.scope, replay, exchange.send)
        except (_ClientGoneError, RequestError):
            raise
        except Exception as error:
            if exchange.status:
                raise
            refused = of_package(error, "request")
            if refused is None:
                self.service.metrics.errors.inc()
                _log_defect(error)
                refused = RequestError(500, "request", "the service has a defect", "report it with the lines that the service printed")
            raise refused from None
        finally:
            if leaving is not None:
                leaving.cancel()

    def _check_sender(self, exchange: _Exchange) -> None:
        settings, headers = self.service.settings, exchange.headers
        if self.token is not None:
            kind, _, token = headers.get("authorization", "").partition(" ")
            matches = hmac.compare_digest(_digest(token.strip()), self.token)
            path = exchange.scope["path"]
            is_open = path.startswith(_HEALTH) or (exchange.scope["method"] in ("GET", "HEAD") and path in OPEN_PATHS)
            if is_open or (kind.lower() == "bearer" and matches):
                return
            problem = "it holds a wrong token" if token else "it is missing"
            raise RequestError(
                401, "authorization", problem, "send Authorization: Bearer TOKEN, with the token the service was started with"
            )
        host = _name(headers.get("host", ""))
        if settings.local_names is not None and host not in settings.local_names:
            remedy = "use http://127.0.0.1, or start the service with --token-file"
            raise RequestError(
                403, "host", f"without a token this service answers only this machine, not as {headers.get('host', '')!r:.100}", remedy
            )
        # Browsers send Origin with what a page's script asks for, and say of all else, such as the images of a page, whose it is.
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        follows_link = headers.get("sec-fetch-mode") == "navigate" and exchange.scope["method"] == "GET"
        is_foreign = site not in ("none", "same-origin") and not follows_link
        if is_foreign or (origin is not None and _netloc(origin) != headers.get("host", "").lower()):
            remedy = "start the service with --token-file, and send the token"
            raise RequestError(403, "origin", "without a token this service does not answer pages of other sites", remedy)

    async def _read(self, exchange: _Exchange) -> bytes:
        limits = self.service.limits
        too_large = RequestError(413, "body", f"it has more than {limits.max_body:,} bytes", "send fewer or smaller images at once")
        declared = exchange.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limits.max_body:  # of at most 20 digits: h11 refuses longer numbers
            raise too_large
        chunks = []
        while True:
            message = await exchange.receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            chunk = message.get("body", b"")
            exchange.size += len(chunk)
            self.memory += len(chunk)
            if exchange.size > limits.max_body:
                raise too_large
            if self.memory > limits.max_memory:
                raise BusyError("the memory for requests is used up", self.service.batcher.retry_after())
            chunks.append(chunk)
            if not message.get("more_body", False):
                exchange.is_whole = True
                return b"".join(chunks)


class _Watch:
    """Ends the block that a task is in, for a reason, which the block then raises. One task where ``asyncio.wait`` would need three."""

    def __enter__(self) -> _Watch:
        self._task = asyncio.current_task()
        self._reason: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        return self

    def end(self, reason: Exception) -> None:
        if self._task is not None and self._reason is None:
            self._reason = reason
            self._task.cancel()

    def end_in(self, seconds: float, end: Callable[[], None]) -> None:
        """Call ``end`` after this time, and no longer what was to be called before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, end)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
        if self._reason is not None and kind is asyncio.CancelledError:
            if sys.version_info >= (3, 11):
                assert task is not None
                task.uncancel()
            raise self._reason from None


class _Replay:
    """Hands on a body that has been read, and then whether the client has left."""

    def __init__(self, body: bytes, leaving: asyncio.Future[Any]) -> None:
        self.body: bytes | None = body
        self.leaving = leaving

    async def __call__(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.shield(self.leaving)


def _digest(token: str) -> bytes:
    """Of equal length for all tokens, so that comparing them takes equally long."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/]+))(?::\d+)?", re.IGNORECASE)


def _name(host: str) -> str:
    """The name in a Host header; empty where that is malformed.

    >>> _name("localhost:8000"), _name("[::1]:8000"), _name("Example.org"), _name("localhost:80@example.org")
    ('localhost', '::1', 'example.org', '')
    """
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else ""


def _reason(status: int) -> str:
    return {401: "token", 403: "origin", 408: "slow", 413: "size", 429: "busy", 503: "timeout", 500: "defect"}.get(status, "invalid")


def _log_defect(error: BaseException) -> None:
    """Where it happened, without its message, which may quote a request."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("defect: %s\n%s", type(error).__name__, frames)
