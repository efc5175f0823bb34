"""The client against a real server: what it returns and raises is what the scorer itself returns and raises."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from clients import IMAGES, Gate, serving, until
from PIL import Image

import image_reward
from conftest import tiny
from image_reward.client import AsyncClient, Client, encoded
from image_reward.errors import ImageReadError, InputError, LongPromptWarning, PromptError, ServiceError, UnknownModelError
from image_reward.images import open_image
from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, Settings, create_app

TOKEN = "a-token-of-some-length"
PROMPTS = [f"prompt {number} & <b>" for number in range(6)]


@pytest.fixture(scope="module")
def local() -> ImageRewardScorer:
    return tiny(ImageRewardScorer)


@pytest.fixture(scope="module")
def url(local: ImageRewardScorer) -> Iterator[str]:
    other = tiny(ImageRewardScorer, seed=8)
    other.name = "other"
    limits = Limits(max_images=4, max_queue=8, max_body=2_000_000)  # so that long lists are divided
    with serving(create_app([local, other], Settings(token=TOKEN, limits=limits))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, TOKEN) as client:
        yield client


def close_to(expected: Any) -> Any:
    return pytest.approx(expected, abs=1e-5)


# --- as a scorer ---


def test_score(client: Client, local: ImageRewardScorer) -> None:
    assert client.name == local.name
    one = client.score("a cat", IMAGES[0])
    assert type(one) is float
    assert one == close_to(local.score("a cat", IMAGES[0]))
    assert client.score("a cat", IMAGES) == close_to(local.score("a cat", IMAGES))
    assert client.score(PROMPTS, IMAGES) == close_to(local.score(PROMPTS, IMAGES))
    assert client.score("a cat", IMAGES[:1]) == close_to(local.score("a cat", IMAGES[:1]))
    assert client.score("a cat", []) == local.score("a cat", []) == []


def test_rank(client: Client, local: ImageRewardScorer) -> None:
    ranking, expected = client.rank("a cat", IMAGES), local.rank("a cat", IMAGES)
    assert ranking.ranking == expected.ranking
    assert ranking.rewards == close_to(expected.rewards)
    assert ranking[0].image is IMAGES[ranking.order[0]]


def test_compare(client: Client, local: ImageRewardScorer) -> None:
    preference, expected = client.compare("a cat", *IMAGES[:2]), local.compare("a cat", *IMAGES[:2])
    assert type(preference) is type(expected)
    assert preference.as_dict() == {name: close_to(value) for name, value in expected.as_dict().items()}
    assert type(preference.rewards) is tuple


@pytest.mark.parametrize(("num_prompts", "num_images"), [(1, 6), (6, 6), (3, 1), (0, 2), (2, 0)])
def test_matrix(num_prompts: int, num_images: int, client: Client, local: ImageRewardScorer) -> None:
    rewards = client.matrix(PROMPTS[:num_prompts], IMAGES[:num_images])
    expected = local.matrix(PROMPTS[:num_prompts], IMAGES[:num_images])
    assert rewards.dtype == expected.dtype
    np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-5)


def test_other_models(url: str) -> None:
    client = Client(url, TOKEN, model="other")
    assert client.models() == ["tiny", "other"]
    assert client.name == "other"
    assert client.score("a", IMAGES[0]) == close_to(tiny(ImageRewardScorer, seed=8).score("a", IMAGES[0]))
    with pytest.raises(UnknownModelError, match="third"):
        Client(url, TOKEN, model="third").score("a", IMAGES[0])
    client.close()


def test_any_image(client: Client, local: ImageRewardScorer, image_folder: Path) -> None:
    path = image_folder / "a.png"
    picture = Image.open(path)
    array = np.asarray(picture.convert("RGB"))
    images: list[Any] = [
        path, str(path), path.read_bytes(), bytearray(path.read_bytes()), picture, array, array.astype(np.float32) / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1), array[..., 0], {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)}, io.BytesIO(path.read_bytes()), lambda: path, picture.convert("RGBA"), picture.convert("P"),
        picture.convert("CMYK"), picture.convert("1"),
    ]  # fmt: skip
    assert client.score("a cat", images) == close_to(local.score("a cat", images))
    picture.close()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_pixels_are_sent_without_loss(mode: str) -> None:
    picture = Image.frombytes(
        mode, (7, 5), np.random.default_rng(0).integers(0, 256, 7 * 5 * len(Image.new(mode, (1, 1)).getbands()), dtype=np.uint8).tobytes()
    )
    received = open_image(encoded(picture))
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        mode, picture = "RGB", picture.convert("RGB")  # this Pillow does not read such a TIFF file that it writes
    assert received.mode == mode
    assert received.tobytes() == picture.tobytes()


# --- what goes wrong ---


def both(client: Client, local: ImageRewardScorer, method: str, *arguments: Any) -> tuple[Exception, Exception]:
    raised = []
    for scorer in (local, client):
        with pytest.raises(Exception) as error:
            getattr(scorer, method)(*arguments)
        raised.append(error.value)
    return raised[0], raised[1]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("score", ("a", b"not an image")),
        ("score", ("a", [*IMAGES[:5], b"not an image"])),
        ("score", ("a", "/no/such/file.png")),
        ("score", ("a", [IMAGES[0][:-100]])),
        ("score", (["a"], IMAGES[:2])),
        ("score", (["a"], IMAGES[0])),
        ("score", (3, IMAGES[0])),
        ("score", ("\ud800", IMAGES[0])),
        ("score", ("a", np.full((2, 2, 3), np.nan))),
        ("score", ("a", 3)),
        ("rank", ("a", [])),
        ("compare", ("a", IMAGES[0], b"not an image")),
        ("matrix", ("a", IMAGES)),
        ("matrix", (["a"], [b"not an image"])),
    ],
)
def test_errors_are_those_of_the_scorer(method: str, arguments: Any, client: Client, local: ImageRewardScorer) -> None:
    expected, error = both(client, local, method, *arguments)
    assert type(error) is type(expected)


def test_an_image_is_named_by_its_place_in_the_whole_list(client: Client) -> None:
    with pytest.raises(ImageReadError, match=r"^images\[5\] is"):
        client.score("a", [*IMAGES[:5], b"not an image"])


def test_long_prompts_warn(client: Client) -> None:
    with pytest.warns(LongPromptWarning, match="are not read"):
        client.score("word " * 60, IMAGES[0])
    with pytest.raises(PromptError, match="shorten"):
        client.score("word " * 5000, IMAGES[0])


def test_a_wrong_token(url: str) -> None:
    with pytest.raises(ServiceError, match="401: authorization: it holds a wrong token"):
        Client(url, "wrong").models()
    with pytest.raises(ServiceError, match="missing"):
        Client(url).models()
    assert Client(url, f"{TOKEN}\n").models()
    for token in ("two words", "tökén", "a\r\nX-Header: b"):
        with pytest.raises(InputError, match="--token-file") as error:
            Client(url, token)
        assert token not in str(error.value)


def test_addresses_that_are_no_service(url: str) -> None:
    for address, message in {
        "127.0.0.1:8000": "http://",
        "http://127.0.0.1:x": "not an address",
        "http://127.0.0.1:99999": "not an address",
        "http://[::1": "not an address",
        "http://user:secret@127.0.0.1": "token=",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            Client(address)
        assert "secret" not in str(error.value)
    with pytest.raises(ServiceError, match="404: path"):
        Client(f"{url}/elsewhere", TOKEN).models()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ServiceError, match="is it started"):
        Client(f"http://127.0.0.1:{port}").models()


def test_too_large_a_request(client: Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    with pytest.raises(ServiceError, match="413"):
        client.score("a", noise)


# --- load ---


def test_load_returns_a_client(url: str, local: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_REWARD_TOKEN", TOKEN)
    remote = image_reward.load(url)
    assert isinstance(remote, Client)
    assert remote.score("a", IMAGES[0]) == close_to(local.score("a", IMAGES[0]))
    with pytest.raises(InputError, match="leave them out"):
        image_reward.load(url, device="cpu")
    remote.close()


def test_it_loads_no_torch(image_folder: Path) -> None:
    code = (
        "import sys, image_reward; from image_reward.client import encoded; image_reward.Client('http://127.0.0.1:1');"
        f"encoded({str(image_folder / 'a.png')!r}); print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# --- another service ---


@pytest.fixture
def another() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a service, and what it answers to each path."""
    answers: dict[str, bytes] = {"/v1/models": json.dumps({"models": [{"name": "m"}], "limits": LIMITS}).encode()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("retry-after", "\xb2")
            self.end_headers()
            self.wfile.write(answers[self.path])

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


LIMITS = {"max_images": 10, "max_queue": 10, "max_body": 1 << 20}


@pytest.mark.parametrize(
    "answer",
    [b"<html>", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"rewards": [1.0, 2.0]}', b'{"rewards": ["1"]}', b'{"rewards": [[1.0, 2.0]]}',
     b'{"rewards": [null]}', b'{"rewards": [1.0], "warnings": 3}', b'{"a_better": 1}'],
)  # fmt: skip
def test_a_service_of_another_version(answer: bytes, another: tuple[str, dict[str, bytes]]) -> None:
    url, answers = another
    answers |= {"/v1/score": answer, "/v1/matrix": answer, "/v1/compare": answer}
    client = Client(url)
    for call in (
        lambda: client.score("a", IMAGES[0]),
        lambda: client.rank("a", IMAGES[:1]),
        lambda: client.matrix(["a"], IMAGES[:1]),
        lambda: client.compare("a", *IMAGES[:2]),
    ):
        with pytest.raises(ServiceError, match="same version"):
            call()


@pytest.mark.parametrize(
    "answer",
    [b"{}", b'{"models": [], "limits": {}}', json.dumps({"models": [{"name": "m"}], "limits": LIMITS | {"max_queue": 0}}).encode()],
)
def test_a_description_of_another_version(answer: bytes, another: tuple[str, dict[str, bytes]]) -> None:
    url, answers = another
    answers["/v1/models"] = answer
    with pytest.raises(ServiceError, match="same version"):
        Client(url).score("a", IMAGES[0])


def test_an_answer_without_end(another: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, answers = another
    answers["/v1/score"] = b'{"rewards": [1.0]}' + b" " * 2000
    assert Client(url).score("a", IMAGES[0]) == 1.0
    monkeypatch.setattr("image_reward.client._LARGEST_ANSWER", 1000)
    with pytest.raises(ServiceError, match="same version"):
        Client(url).score("a", IMAGES[0])


# --- a busy service ---


def test_a_busy_service_is_asked_again_and_nothing_else_is(scorer: ImageRewardScorer) -> None:
    app = create_app([scorer], Settings(limits=Limits(max_images=1, max_queue=1)))
    metrics = app.state.service.metrics
    with serving(app) as url, ThreadPoolExecutor() as pool:
        gate = Gate(scorer)
        held = pool.submit(Client(url).score, "a", IMAGES[0])
        gate.wait()
        with pytest.raises(ServiceError, match="429"):
            Client(url, retries=0).score("a", IMAGES[1])
        waits = pool.submit(Client(url).score, "a", IMAGES[1])
        until(lambda: metrics.rejected.labels("busy")._value.get() >= 2)
        gate.open()
        assert held.result() == close_to(scorer.score("a", IMAGES[0]))
        assert waits.result() == close_to(scorer.score("a", IMAGES[1]))
        rejected = metrics.rejected.labels("invalid")._value.get()
        with pytest.raises(ImageReadError):
            Client(url).score("a", b"not an image")
        assert metrics.rejected.labels("invalid")._value.get() == rejected + 1


def test_connections_are_kept_and_replaced(scorer: ImageRewardScorer) -> None:
    app = create_app([scorer])
    with serving(app) as url:
        client = Client(url)
        client.models()
        (connection,) = client._idle
        first = connection.sock
        client.score("a", IMAGES[0])
        assert client._idle[0].sock is first
        first.shutdown(socket.SHUT_RDWR)  # as if the service had closed it
        client.score("a", IMAGES[0])
        assert client._idle[0].sock is not first
        client.close()


# --- asynchronous ---


def test_async(url: str, local: ImageRewardScorer) -> None:
    async def main() -> None:
        async with AsyncClient(url, TOKEN) as client:
            assert await client.name() == "tiny"
            each = await asyncio.gather(*(client.score("a", image) for image in IMAGES))
            assert each == close_to(local.score("a", IMAGES))
            assert (await client.rank("a", IMAGES)).ranking == local.rank("a", IMAGES).ranking
            assert (await client.compare("a", *IMAGES[:2])).a_better == close_to(local.compare("a", *IMAGES[:2]).a_better)
            np.testing.assert_allclose(await client.matrix(PROMPTS, IMAGES), local.matrix(PROMPTS, IMAGES), rtol=0, atol=1e-5)
            with pytest.raises(ImageReadError):
                await client.score("a", b"not an image")
        async with Client(url, TOKEN, model="other").aio as client:
            assert await client.name() == "other"

    asyncio.run(main())


def test_a_call_that_is_cancelled_leaves_the_queue(scorer: ImageRewardScorer) -> None:
    app = create_app([scorer])
    batcher = app.state.service.batcher

    async def main(url: str) -> float:
        async with AsyncClient(url) as client:
            await client.models()
            first = asyncio.ensure_future(client.score("a", IMAGES[0]))
            await asyncio.to_thread(gate.wait)
            leaver, stayer = (asyncio.ensure_future(client.score("a", images)) for images in (IMAGES[1:4], IMAGES[4:5]))
            await asyncio.to_thread(until, lambda: batcher.num_rows == 5)
            leaver.cancel()
            await asyncio.to_thread(until, lambda: batcher.num_rows == 2)
            gate.open()
            await first
            return (await stayer)[0]

    with serving(app) as url:
        gate = Gate(scorer)
        assert asyncio.run(main(url)) == close_to(scorer.score("a", IMAGES[4]))
    assert gate.sizes[:2] == [1, 1]
    assert batcher.metrics.gone._value.get() == 1
