from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clients import HOST, URLS, Gate, until
from fastapi.testclient import TestClient

from image_reward.errors import InputError
from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, Settings, create_app

ASK = {"prompt": "a", "images": URLS[:1]}
TOKEN = "a-token-of-some-length"


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["field"]


# --- who asks ---


@pytest.fixture
def locked(scorer: ImageRewardScorer) -> Iterator[TestClient]:
    with TestClient(create_app([scorer], Settings(token=TOKEN)), base_url="http://example.org") as client:
        yield client


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xff"])
@pytest.mark.parametrize("path", ["/v1/score", "/v1/models", "/metrics", "/docs", "/openapi.json", "/v2/models/tiny", "/nothing"])
def test_a_wrong_token_is_refused(path: str, header: str | None, locked: TestClient) -> None:
    headers = {} if header is None else {b"authorization": header.encode("latin-1")}
    answer = locked.get(path, headers=headers)
    assert refusal(answer) == (401, "authorization")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text


def test_the_token_opens_and_health_needs_none(locked: TestClient) -> None:
    assert locked.post("/v1/score", json=ASK, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert locked.get("/v1/models", headers={"authorization": f"bearer  {TOKEN}"}).status_code == 200
    assert locked.get("/health/live").status_code == locked.get("/v2/health/ready").status_code == 200


def test_a_local_service_is_not_reached_under_another_name(client: TestClient) -> None:
    """A web page could otherwise reach it by a name of its own that resolves to this machine."""
    assert refusal(client.get("/v1/models", headers={"host": "attacker.example"})) == (403, "host")
    assert client.get("/v1/models", headers={"host": "127.0.0.1:1234"}).status_code == 200
    for host in ("127.0.0.1:80@attacker.example", "[127.0.0.1", "127.0.0.1]", "127.0.0.1:", "[::1", "127.0.0.1/attacker.example"):
        assert refusal(client.get("/v1/models", headers={"host": host})) == (403, "host"), host


def test_pages_of_other_sites_are_not_answered(client: TestClient) -> None:
    assert refusal(client.post("/v1/score", json=ASK, headers={"origin": "https://attacker.example"})) == (403, "origin")
    assert refusal(client.post("/", content=b"", headers={"origin": "null"})) == (403, "origin")
    assert refusal(client.post("/v1/score", json=ASK, headers={"origin": "http://["})) == (403, "origin")
    assert client.post("/v1/score", json=ASK, headers={"origin": HOST}).status_code == 200
    for site in ("cross-site", "same-site", "nonsense"):
        assert refusal(client.get("/v1/models", headers={"sec-fetch-site": site, "sec-fetch-mode": "no-cors"})) == (403, "origin")
        assert refusal(client.post("/v1/score", json=ASK, headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate"})) == (
            403,
            "origin",
        )
        assert client.get("/", headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate"}).status_code == 200  # a link to the page
    for site in ("same-origin", "none"):
        assert client.get("/v1/models", headers={"sec-fetch-site": site}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready"])
def test_what_monitors_ask_by_head(path: str, client: TestClient, locked: TestClient) -> None:
    assert client.head(path).status_code == locked.head(path).status_code == 200


def test_a_limit_that_is_no_number_makes_no_sense() -> None:
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="drain_seconds must be a number above 0"):
            Limits(drain_seconds=value).check()


# --- how much ---


class TestSize:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_body=10_000, max_memory=15_000)

    def test_a_body_that_is_too_large_by_its_own_word(self, client: TestClient) -> None:
        assert refusal(client.post("/v1/score", content=bytes(10_001))) == (413, "body")

    def test_a_body_that_is_too_large_and_does_not_say_so(self, client: TestClient) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(100):
                yield bytes(1000)

        assert refusal(client.post("/v1/score", content=chunks())) == (413, "body")
        assert client.get("/health/live").status_code == 200

    def test_bytes_of_all_requests_are_bounded(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        padded = ASK | {"prompt": " " * 8000}
        with ThreadPoolExecutor() as pool:
            held = pool.submit(client.post, "/v1/score", json=padded)
            gate.wait()
            refused = client.post("/v1/score", json=padded)
            gate.open()
            assert refusal(refused) == (429, "request")
            assert int(refused.headers["retry-after"]) >= 1
            assert held.result().status_code == 200
        assert client.post("/v1/score", json=padded).status_code == 200


class TestBusy:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_images=1, max_queue=2)

    def test_a_full_queue_is_429_with_retry_after(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        service = client.app.state.service
        with ThreadPoolExecutor() as pool:
            held = [pool.submit(client.post, "/v1/score", json=ASK) for _ in range(2)]
            until(lambda: service.batcher.num_rows == 2)
            refused = client.post("/v1/score", json=ASK)
            assert client.get("/health/ready").status_code == 200
            gate.open()
            assert refusal(refused) == (429, "request")
            assert int(refused.headers["retry-after"]) >= 1
            assert [answer.result().status_code for answer in held] == [200, 200]
        assert 'image_reward_rejected_total{reason="busy"} 1.0' in client.get("/metrics").text


class TestTooManyRequests:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_requests=1)

    def test_requests_in_work_are_bounded(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        with ThreadPoolExecutor() as pool:
            held = pool.submit(client.post, "/v1/score", json=ASK)
            gate.wait()
            refused = client.post("/v1/score", json=ASK)
            health = client.get("/health/live")
            gate.open()
            assert refusal(refused) == (429, "request")
            assert health.status_code == 200  # or a service would be started again for being busy
            assert held.result().status_code == 200


# --- how long ---


class TestTime:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_seconds=0.01)

    def test_a_request_that_takes_too_long(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        answer = client.post("/v1/score", json=ASK)
        gate.open()
        assert refusal(answer) == (503, "request")
        assert answer.headers["retry-after"] == "5"
        assert client.app.state.service.batcher.num_rows == 0


def asgi_request(app: Any, receive: Any) -> list[dict[str, Any]]:
    """What an application sends for POST /v1/score whose body comes from ``receive``."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"", "headers": headers}
    scope |= {"http_version": "1.1", "scheme": "http", "client": None, "server": None, "root_path": "", "asgi": {"version": "3.0"}}
    asyncio.run(app(scope, receive, send))
    return sent


def test_a_body_that_comes_too_slowly(scorer: ImageRewardScorer) -> None:
    app = create_app([scorer], Settings(limits=Limits(read_seconds=0.01)))
    calls = 0

    async def receive() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 2:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"{", "more_body": calls < 3}

    sent = asgi_request(app, receive)
    assert sent[0]["status"] == 408
    assert dict(sent[0]["headers"])[b"connection"] == b"close"


def test_a_client_that_leaves_before_its_body_is_whole(scorer: ImageRewardScorer) -> None:
    app = create_app([scorer])
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    assert asgi_request(app, receive) == []
    assert "image_reward_disconnected_total 1.0" in app.state.service.metrics.text().decode()
