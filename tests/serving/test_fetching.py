from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from clients import HOST, IMAGES, URLS
from fastapi.testclient import TestClient

from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, Settings, create_app, fetching
from image_reward.serving.errors import RequestError
from image_reward.serving.fetching import fetch, is_public

NAME = "images.example.org"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.headers["host"], self.path))  # type: ignore[attr-defined]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/large":
            self.send_response(200)
            self.end_headers()
            with pytest.raises(OSError):  # noqa: PT012 - of whichever write the client no longer reads
                while True:
                    self.wfile.write(bytes(100_000))
            return
        content = IMAGES[0] if self.path == "/a.png?x=1" else b""
        self.send_response(200 if content else 404)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def public(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server under a public name, as if its network were public."""
    monkeypatch.setattr(fetching, "resolve", lambda host, _: ["127.0.0.1"] if host == NAME else [])
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    return f"http://{NAME}:{server.server_port}"


def refusal(url: str, hosts: tuple[str, ...] = (NAME,), max_bytes: int = 1 << 20) -> RequestError:
    with pytest.raises(RequestError) as refused:
        fetch(url, "images[0]", hosts, max_bytes, 20)
    assert refused.value.field == "images[0]"
    assert refused.value.remedy
    return refused.value


def test_an_image_is_fetched(public: str, server: Any) -> None:
    assert fetch(f"{public}/a.png?x=1", "images[0]", (NAME,), 1 << 20, 20) == IMAGES[0]
    assert fetch(f"{public}/to/{public}/a.png?x=1", "images[0]", (NAME,), 1 << 20, 20) == IMAGES[0]
    assert server.seen[0] == (f"{NAME}:{server.server_port}", "/a.png?x=1")


def test_what_is_not_an_answer(public: str) -> None:
    assert "404" in refusal(f"{public}/nothing").message
    assert "redirects" in refusal(f"{public}/to//to//to//to//to//to/a").message
    assert refusal(f"{public}/large", max_bytes=1_000_000).status == 413


def test_hosts_that_were_not_named(public: str) -> None:
    assert "--allow-fetch" in refusal(public, hosts=()).remedy
    assert "not fetched" in refusal(f"http://sub.{NAME}/a.png").message
    assert "not fetched" in refusal(f"{public}/to/http://elsewhere.example/a.png").message


@pytest.mark.parametrize(
    "url", ["ftp://images.example.org/a", "http://", "http://[::1", "http://images.example.org:x/", "http://images.example.org/a\nb"]
)
def test_malformed_addresses(url: str) -> None:
    refusal(url)


def test_a_user_name_is_refused(public: str) -> None:
    assert "user name" in refusal(public.replace("http://", "http://user:password@")).message


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
                "::7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "fec0::1", "ff02::1",
                "::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "::"],
)  # fmt: skip
def test_private_addresses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_public(address)
    monkeypatch.setattr(fetching, "resolve", lambda *_: ["8.8.8.8", address])
    assert "private network" in refusal(f"http://{NAME}/a.png").message


def test_a_redirection_to_a_private_network(public: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = "metadata.internal"
    monkeypatch.setattr(fetching, "resolve", lambda host, _: ["127.0.0.1"] if host == NAME else ["169.254.169.254"])
    assert "private network" in refusal(f"{public}/to/http://{inner}/secret", hosts=(NAME, inner)).message


def test_a_name_that_changes_its_address_after_the_check(public: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to the address that was checked: nothing is resolved a second time."""

    connect = socket.create_connection
    connected = []

    def create_connection(address: Any, *arguments: Any) -> Any:
        connected.append(address[0])
        return connect(address, *arguments)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    fetch(f"{public}/a.png?x=1", "images[0]", (NAME,), 1 << 20, 20)
    assert connected == ["127.0.0.1"]


def test_hosts_that_do_not_exist_or_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise socket.gaierror

    monkeypatch.setattr(fetching, "resolve", fails)
    assert "not known" in refusal(f"http://{NAME}/").message
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(fetching, "resolve", lambda *_: ["127.0.0.1"])
    monkeypatch.setattr(fetching, "is_public", lambda _: True)
    assert "could not be read" in refusal(f"http://{NAME}:{port}/").message


def test_the_service_fetches_from_hosts_that_were_named(public: str, scorer: ImageRewardScorer) -> None:
    with TestClient(create_app([scorer], Settings(allow_fetch=(NAME,), limits=Limits())), base_url=HOST) as client:
        answer = client.post("/v1/score", json={"prompt": "a", "images": [f"{public}/a.png?x=1", URLS[0]]})
        assert answer.json()["rewards"] == pytest.approx(scorer.score("a", [IMAGES[0]] * 2), abs=1e-5)
        refused = client.post("/v1/score", json={"prompt": "a", "images": [URLS[0], "http://other.example/a.png"]})
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "images[1]")


def test_what_is_fetched_for_a_request_is_bounded(public: str, scorer: ImageRewardScorer) -> None:
    limits = Limits(max_body=len(IMAGES[0]) * 3 // 2)
    urls = [f"{public}/to/{public}/a.png?x=1", f"{public}/a.png?x=1", f"{public}/to//to/{public}/a.png?x=1"]
    with TestClient(create_app([scorer], Settings(allow_fetch=(NAME,), limits=limits)), base_url=HOST) as client:
        assert client.post("/v1/score", json={"prompt": "a", "images": urls[:1] * 2}).status_code == 200
        refused = client.post("/v1/score", json={"prompt": "a", "images": urls})
    assert (refused.status_code, refused.json()["error"]["field"]) == (413, "images[1]")
