"""The service as a process of its own: signals, kills, slow clients, sockets."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from clients import IMAGES, URLS, Gate, serving, until

from conftest import tiny
from image_reward.client import Client
from image_reward.errors import InputError
from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, Settings, create_app, server
from image_reward.serving.server import listen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny(ImageRewardScorer).save_pretrained(folder)
    return folder


class Process:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}"

    def wait(self) -> tuple[int, str]:
        """The exit code, and what was printed after the start."""
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@contextmanager
def started(model: Path, *options: str, port: int = 0) -> Iterator[Process]:
    command = [sys.executable, "-m", "image_reward.cli", "serve", "--model", str(model), "--port", str(port), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            match = re.fullmatch(r"serving .+ at http://127\.0\.0\.1:(\d+)\n", line)
            assert match, line + process.stderr.read()
            yield Process(process, int(match[1]))
        finally:
            process.kill()


def raw_request(port: int, head: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=120)
    sock.sendall(head)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Until the other side closes."""
    content = b""
    while block := sock.recv(65536):
        content += block
    return content


HEAD = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_it_serves_and_stops_when_it_is_asked_to(model: Path) -> None:
    with started(model) as service:
        client = Client(service.url)
        assert client.score("a", IMAGES) == pytest.approx(tiny(ImageRewardScorer).score("a", IMAGES), abs=1e-5)
        service.process.send_signal(signal.SIGTERM)
        code, errors = service.wait()
        assert code == 0, errors
        assert "Traceback" not in errors
        assert "POST /v1/score 200" in errors
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port))


def test_kill_leaves_no_orphan_and_the_port_is_free_at_once(model: Path) -> None:
    with started(model) as service:
        Client(service.url).score("a", IMAGES)
        children = subprocess.run(
            ["ps", "--ppid", str(service.process.pid), "-o", "pid="], capture_output=True, text=True, check=False
        ).stdout
        assert children.split() == []
        kept = raw_request(service.port, HEAD)  # a connection that is open when it dies
        service.process.kill()
        service.process.wait(60)
        kept.close()
        listen("127.0.0.1", service.port).close()
        with started(model, port=service.port) as again:
            assert again.port == service.port
            Client(again.url).models()


def test_a_request_in_work_is_finished_after_sigterm(model: Path) -> None:
    """Its body is still arriving when the signal comes."""
    with started(model) as service:
        body = ('{"prompt": "a", "images": ["' + URLS[0] + '"]}').encode()
        sock = raw_request(service.port, HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:100])
        until(lambda: is_in_work(service))
        service.process.send_signal(signal.SIGTERM)
        until(lambda: is_refused(service.port))
        sock.sendall(body[100:])
        assert b"200 OK" in read_all(sock)
        sock.close()
        assert service.wait()[0] == 0


def is_in_work(service: Process) -> bool:
    """Whether a request that was sent earlier is: connections are accepted in turn, so it is once a later one has been answered."""
    with socket.create_connection(("127.0.0.1", service.port)) as sock:
        sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return b"200" in read_all(sock)


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except OSError:
        return True
    return False


def test_a_client_that_never_finishes_does_not_hold_up_the_end(model: Path) -> None:
    with started(model, "--drain-seconds", "1") as service:
        sock = raw_request(service.port, HEAD + b"Content-Length: 1000\r\n\r\n{")
        until(lambda: is_in_work(service))
        service.process.send_signal(signal.SIGTERM)
        assert service.wait()[0] == 0
        sock.close()


def test_a_taken_port_is_refused_before_a_model_is_loaded(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be used"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="no address is called"):
        listen("no such host", 1)
    assert model.exists()


# --- in this process, on a real socket ---


@pytest.fixture
def limits() -> Limits:
    return Limits(max_body=100_000, read_seconds=0.2)


@pytest.fixture
def port(scorer: ImageRewardScorer, limits: Limits, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(server._Protocol, "head_seconds", 0.2)
    with serving(create_app([scorer], Settings(limits=limits))) as url:
        yield int(url.rpartition(":")[2])


def test_200_mb_without_a_content_length(port: int) -> None:
    """The answer can be read, although most of what was to be sent never is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    blocks = (bytes(1 << 20) for _ in range(200))
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/v1/score", blocks, {"content-type": "application/json"}, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"100,000 bytes" in answer.read()
    connection.close()


def test_a_head_that_comes_slowly(port: int) -> None:
    with raw_request(port, b"POST /v1/score HTTP/1.1\r\nX: ") as sock:
        assert read_all(sock) == b""
    with raw_request(port, b"") as sock:
        assert read_all(sock) == b""


def test_a_second_head_that_comes_slowly(port: int) -> None:
    with raw_request(port, b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as sock:
        content = b""
        while b"live" not in content:
            content += sock.recv(65536)
        sock.sendall(b"GET")
        assert b"HTTP" not in read_all(sock)


def test_a_body_that_comes_slowly(port: int) -> None:
    with raw_request(port, HEAD + b"Content-Length: 1000\r\n\r\n{") as sock:
        assert b"408 Request Timeout" in sock.recv(65536)
    assert Client(f"http://127.0.0.1:{port}").models() == ["tiny"]


def test_what_is_not_http(port: int) -> None:
    for data in (
        b"\x16\x03\x01 hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        HEAD + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + bytes([120]) * 70_000 + b"\r\n\r\n",
        b"GET /" + bytes([120]) * 1_000_000,
    ):
        with raw_request(port, data) as sock:
            head, _, body = read_all(sock).partition(b"\r\n\r\n")
        assert b"400 Bad Request" in head
        assert json.loads(body)["error"]["remedy"]


def test_a_head_without_end_behind_another_request(port: int) -> None:
    with raw_request(port, HEAD + b"Content-Length: 1\r\n\r\n1GET /" + bytes([120]) * 1_000_000) as sock, suppress(ConnectionResetError):
        assert b"200 OK" not in read_all(sock)


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"


def test_what_follows_a_body_is_no_header(port: int) -> None:
    """It would take the place of one that a proxy has checked."""
    with raw_request(port, HEAD + CHUNKED + b"Host: attacker.example\r\nOrigin: http://attacker.example\r\n\r\n") as sock:
        assert b" 422 " in sock.recv(65536)


@pytest.mark.parametrize("part", [b"a", b"\r\nX: y"])
def test_what_follows_a_body_is_bounded(part: bytes, port: int) -> None:
    with raw_request(port, HEAD + CHUNKED + b"X: ") as sock, suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(part * (1_000_000 // len(part)))  # more than the bound and what is read at once
        assert b" 400 " in read_all(sock)


def test_a_size_of_a_chunk_without_end(port: int) -> None:
    with raw_request(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;") as sock, suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(b"a" * 1_000_000)
        assert b" 400 " in read_all(sock)


def test_a_head_of_many_small_parts(port: int) -> None:
    with raw_request(port, b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n") as sock:
        for number in range(100):
            sock.sendall(f"X-{number}: {number}\r\n".encode())
        sock.sendall(b"\r\n")
        assert b"200 OK" in read_all(sock)


def test_requests_that_are_sent_before_the_answer_to_the_first(port: int) -> None:
    one = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with raw_request(port, one * 9 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as sock:
        assert read_all(sock).count(b"200 OK") == 10
    with raw_request(port, one * 1000) as sock, suppress(ConnectionResetError):
        assert read_all(sock).count(b"200 OK") < 1000


class TestConnections:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_connections=3)

    def test_they_are_bounded(self, port: int) -> None:
        idle = [raw_request(port, b"") for _ in range(3)]
        with raw_request(port, HEAD + b"Content-Length: 2\r\n\r\n{}") as sock:
            head, _, body = read_all(sock).partition(b"\r\n\r\n")
        assert b"429 Too Many Requests" in head
        assert b"retry-after: 1" in head
        assert json.loads(body)["error"]["field"] == "request"
        for sock in idle:
            sock.close()
        assert Client(f"http://127.0.0.1:{port}").models() == ["tiny"]


def test_a_client_that_does_not_read_the_answer(scorer: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._Protocol, "write_seconds", 0.05)
    app = create_app([scorer])
    documents = [{"image": URLS[0], "text": "x" * (1 << 24)}]
    content = json.dumps({"query": "a", "documents": documents, "return_documents": True}).encode()
    with serving(app) as url:
        head = HEAD.replace(b"/v1/score", b"/rerank") + f"Content-Length: {len(content)}\r\n\r\n".encode()
        with raw_request(int(url.rpartition(":")[2]), head + content):
            until(lambda: "image_reward_request_seconds_count" in app.state.service.metrics.text().decode())


def test_web_sockets_are_not_served(port: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    with raw_request(port, head) as sock:
        assert b"101" not in sock.recv(65536)


def test_a_client_that_vanishes_takes_its_rows_along(scorer: ImageRewardScorer) -> None:
    app = create_app([scorer])
    batcher = app.state.service.batcher
    with serving(app) as url, ThreadPoolExecutor() as pool:
        port = int(url.rpartition(":")[2])
        gate = Gate(scorer)
        first = pool.submit(Client(url).score, "a", IMAGES[0])
        gate.wait()
        body = ('{"prompt": "a", "images": ["' + '", "'.join(URLS[1:4]) + '"]}').encode()
        leaver = raw_request(port, HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        stayer = pool.submit(Client(url).score, "a", IMAGES[4])
        until(lambda: batcher.num_rows == 5)
        leaver.close()
        until(lambda: batcher.num_rows == 2)
        gate.open()
        assert first.result() == pytest.approx(scorer.score("a", IMAGES[0]), abs=1e-5)
        assert stayer.result() == pytest.approx(scorer.score("a", IMAGES[4]), abs=1e-5)
    assert gate.sizes[:2] == [1, 1]


def test_no_file_is_left_behind(scorer: ImageRewardScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with serving(create_app([scorer])) as url:
        client = Client(url)
        client.score("a", IMAGES * 20)
        with pytest.raises(Exception, match="is not an image"):
            client.score("a", bytes(3_000_000))
    assert list(tmp_path.iterdir()) == []
