"""One process that listens: uvicorn with one worker, so that a kill leaves no orphan, and an end that waits for the work in hand."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from image_reward.errors import InputError
from image_reward.serving.errors import RequestError

_HEAD_SECONDS = 10.0  # that a client may take to send the head of a request
_WRITE_SECONDS = 30.0  # that a client may take to read what does not fit into the buffers of the connection
_IDLE_SECONDS = 75  # that a connection is kept open between two requests: longer than the load balancers' minute


class _Protocol(H11Protocol):
    """Closes connections whose client does not finish the head of a request, or does not read the answer, which uvicorn waits for
    without end. What is not HTTP is refused as everything else is.
    """

    head_seconds = _HEAD_SECONDS
    write_seconds = _WRITE_SECONDS
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

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
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun: nothing else can be said
            self.transport.close()
            return
        remedy = "let an HTTP library write the request, with a head of less than 64 KiB"
        body = RequestError(400, "request", "it is not HTTP/1.1, or its head is too large", remedy).body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _unwatch_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_head(self) -> None:
        is_waiting = self.cycle is None or self.cycle.response_complete
        if not is_waiting:
            self._unwatch_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
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
    sock = socket.socket(family, socket.SOCK_STREAM)
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
        http=_Protocol,
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
