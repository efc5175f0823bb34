"""One process that listens: uvicorn with one worker, so that a kill leaves no orphan, and an end that waits for the work in hand."""

from __future__ import annotations

import asyncio
import http
import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from image_reward.errors import InputError
from image_reward.serving.errors import BusyError, RequestError

_HEAD_SECONDS = 10.0  # that a client may take to send the head of a request
_WRITE_SECONDS = 30.0  # that a client may take to read what does not fit into the buffers of the connection
_IDLE_SECONDS = 75  # that a connection is kept open between two requests: longer than the load balancers' minute
_LINGER = 1.0  # seconds that a connection is kept on which the answer is that it is not wanted
_MOST_HEAD = 1 << 16  # bytes
_MOST_PIPELINED = 16  # requests of a connection that wait for the answer to an earlier one


class _Protocol(HttpToolsProtocol):
    """Bounds what uvicorn does not: connections, the size of a head and the time it takes to arrive, requests of a connection that wait,
    and the time that a client takes to read an answer. What is not HTTP is refused as everything else is.
    """

    head_seconds = _HEAD_SECONDS
    write_seconds = _WRITE_SECONDS
    most_connections = 0
    """Set by ``run``."""
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _head_size = 0
    """Bytes of the head, and then, while a body arrives, those since the last of its own: sizes of chunks and what follows the body."""
    _is_in_body = False
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > 2 * self.most_connections:  # those that are refused included
            transport.abort()
        elif len(self.connections) > self.most_connections:
            self._refuse(BusyError(f"{self.most_connections} connections are open", 1))
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._head_size += len(data)
        super().data_received(data)
        if self._is_refused or self.parser is None:
            return
        if self._head_size > _MOST_HEAD:
            self.send_400_response("")
        elif len(self.pipeline) > _MOST_PIPELINED:
            self.transport.abort()
        else:
            self._watch_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_body:  # what follows a body would pass for a header that has been checked, such as Host
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._head_size = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if size > _MOST_HEAD or num_hosts > 1 or (not num_hosts and self.parser.get_http_version() == "1.1"):
            raise ValueError  # which httptools makes an HttpParserError of
        self._head_size, self._is_in_body = 0, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_size, self._is_in_body = 0, False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch_head()
        self._unwatch_write()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch_write()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:  # nothing else can be said
            self._is_refused = True
            self.transport.close()
            return
        remedy = "let an HTTP library write the request, with a head of less than 64 KiB"
        self._refuse(RequestError(400, "request", "it is not HTTP/1.1, or its head is too large", remedy))

    def _refuse(self, error: RequestError) -> None:
        self._is_refused = True
        body = error.body()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"} | error.headers
        phrase = http.HTTPStatus(error.status).phrase
        head = f"HTTP/1.1 {error.status} {phrase}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(head.encode() + b"\r\n" + body)
        self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.close)  # closed at once, what the client still sends would make the answer unreadable

    def _unwatch_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch_head(self) -> None:
        if not self._is_idle:
            self._unwatch_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._is_idle:
            self.transport.close()


class Server(uvicorn.Server):
    """Says that it is stopping as soon as it is asked to, and ends with 0 once it has."""

    app: FastAPI
    on_started: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.on_started:
            self.on_started(self)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.service.is_draining = True
        if self.should_exit:  # asked twice
            self.force_exit = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # As uvicorn's, which raises SIGTERM once more after the end, so that the process would seem to have been killed.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, before models are loaded in vain. Raises ``InputError``."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"no address is called {host}: {error}; use 127.0.0.1") from None
    # With the protocol named: asyncio turns Nagle's algorithm off, which holds back the end of an answer for 40 ms, only where it is TCP's.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        remedy = "choose another --port, or end what uses it" if error.errno != 13 else "choose a --port above 1023"
        raise InputError(f"port {port} of {host} cannot be used: {error.strerror}; {remedy}") from None
    os.set_inheritable(sock.fileno(), False)
    return sock


def run(app: FastAPI, sock: socket.socket, on_started: Any = None) -> None:
    """Serve until SIGINT or SIGTERM; then finish the requests in work, for at most ``drain_seconds``. A second signal ends at once."""
    limits = app.state.service.limits
    config = uvicorn.Config(
        app,
        http=type("_Protocol", (_Protocol,), {"most_connections": limits.max_connections}),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
    )
    server = Server(config)
    server.app, server.on_started = app, on_started
    server.run([sock])
    if app.state.service.batcher.is_alive:  # a batch that takes longer than it may, in a thread that cannot be ended
        os._exit(0)
