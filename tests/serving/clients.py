"""What the tests of the service share: images as clients send them, a scorer that can be held up, and a server in a thread."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

import seeded
from image_reward.scorers import Scorer
from image_reward.serving.server import Server, listen, run

HOST = "http://127.0.0.1:8000"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    seeded.image("rings", 40, 30 + number, number).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [png(number) for number in range(6)]


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


URLS = [data_url(image) for image in IMAGES]


class Gate:
    """Holds the scoring thread before each batch until it is opened, and notes how many images each batch has."""

    def __init__(self, scorer: Scorer[Any]) -> None:
        self.sizes: list[int] = []
        self.entered = threading.Semaphore(0)
        self._opened = threading.Semaphore(0)
        self._is_open = False
        encode = scorer.encode_images

        def gated(pixels: Any) -> Any:
            self.sizes.append(len(pixels))
            self.entered.release()
            if not self._is_open:
                assert self._opened.acquire(timeout=60)
            return encode(pixels)

        scorer.encode_images = gated

    def wait(self) -> None:
        """Until a batch is at the gate."""
        assert self.entered.acquire(timeout=60)

    def open(self) -> None:
        """For the batch that waits, and all others."""
        self._is_open = True
        self._opened.release()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of the application on a real socket."""
    sock = listen("127.0.0.1", 0)
    started = threading.Event()
    servers: list[Server] = []
    thread = threading.Thread(target=run, args=(app, sock, lambda server: (servers.append(server), started.set())))
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1] if sock.fileno() >= 0 else servers[0].servers[0].sockets[0].getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(60)
        assert not thread.is_alive()
