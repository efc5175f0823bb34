"""A model hub on this machine: an HTTP server that speaks as much of the Hugging Face hub's protocol as downloads need, and plain HTTP."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Set the attributes to say how the server behaves; read ``requests`` for what was asked of it."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """``OWNER/NAME/FILE`` -> its content"""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(method, path, headers) of each request for a file, in order"""
    cut_after: int | None = None
    """Break the connection after this many bytes of the next content, and answer 503 from then on."""
    ranges: bool = True
    """Whether ``Range`` is honoured."""
    status: int = 200
    """What to answer instead, for 401, 404, 503."""
    claimed_size: int | None = None
    claimed_etag: str | None = None
    says_length: bool = True
    """Whether answers have a ``Content-Length``."""
    commit: str | None = COMMIT
    lies: dict[str, str] = field(default_factory=dict)
    """Headers of every answer, in place of the true ones, sent as they are."""
    methods: tuple[str, ...] = ("HEAD", "GET")
    """The requests whose answers have the ``lies``."""
    padding: int = 0
    """Bytes sent after the content."""
    elsewhere: str = ""
    """The base URL of another host to redirect to, as the hub does for large files."""

    def asked(self, method: str) -> list[dict[str, str]]:
        """The headers of each request with this method."""
        return [headers for verb, _, headers in self.requests if verb == method]


@contextmanager
def serve(**files: bytes) -> Iterator[Hub]:
    hub = Hub(files=dict(files))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            if not self.path.startswith("/api/"):  # the library also asks for lists of its own
                hub.requests.append((self.command, self.path, headers))
            content = hub.files.get(self.path.strip("/").replace("/resolve/main", ""))
            if content is None or hub.status != 200:
                return self.reply(
                    404 if hub.status == 200 else hub.status, b"", {"X-Error-Code": "EntryNotFound"} if hub.status == 200 else {}
                )
            etag = hub.claimed_etag or hashlib.sha256(content).hexdigest()
            facts = {"ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}
            facts["X-Linked-Size"] = str(len(content) if hub.claimed_size is None else hub.claimed_size)
            if hub.commit:
                facts["X-Repo-Commit"] = hub.commit
            if hub.elsewhere:
                return self.reply(302, b"", facts | {"Location": hub.elsewhere + self.path})
            start = int(headers["range"].removeprefix("bytes=").rstrip("-")) if hub.ranges and "range" in headers else 0
            if start:
                facts["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.reply(206 if start else 200, content[start:], facts)

        def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            length = {"Content-Length": str(len(body))} if hub.says_length else {}
            self.send_response(status)
            lies = hub.lies if self.command in hub.methods else {}
            for name, value in (headers | {"Connection": "close"} | length | lies).items():
                self.send_header(name, value.encode().decode("latin-1"))
            self.end_headers()
            self.close_connection = True  # a client that kept it open would be answered after the server is gone
            if self.command == "HEAD":
                return
            if hub.cut_after is not None:
                body, hub.cut_after, hub.status = body[: hub.cut_after], None, 503
            with suppress(ConnectionError):  # a client that was sent too much hangs up
                self.wfile.write(body)
                for _ in range(0, hub.padding, 1 << 16):
                    self.wfile.write(bytes(1 << 16))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
