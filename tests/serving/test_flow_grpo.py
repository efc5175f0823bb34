"""The requests of flow_grpo's clients, made as they make them."""

from __future__ import annotations

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from clients import HOST, Gate, until
from fastapi.testclient import TestClient
from PIL import Image

import seeded
from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, create_app

PROMPTS = ["a cat", "a larger dog", "ein Café, 猫"]
TENSOR = np.stack([np.array(seeded.image("rings", 48, 40, number)) for number in range(3)])  # NHWC, uint8


def jpegs(images: Any) -> list[bytes]:
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG")
        encoded.append(buffer.getvalue())
    return encoded


def request(images: Any = TENSOR, prompts: Any = PROMPTS, **others: Any) -> bytes:
    """As ``unifiedreward_score_remote`` makes one: ``array_split`` makes an array of text of the prompts."""
    (prompt_batch,) = np.array_split(prompts, 1)
    return pickle.dumps({"images": jpegs(images), "prompts": prompt_batch} | others)


def test_its_own_request(client: TestClient, scorer: ImageRewardScorer) -> None:
    answer = client.post("/", content=request())
    assert answer.status_code == 200
    outputs = pickle.loads(answer.content)["outputs"]
    assert [type(output) for output in outputs] == [float] * 3
    assert outputs == pytest.approx(scorer.score(PROMPTS, jpegs(TENSOR)), abs=1e-5)


def test_metadata_is_ignored(client: TestClient) -> None:
    metadata = [{"tag": "counting", "include": [{"class": "cat", "count": 2}]}] * 3
    assert client.post("/", content=request(meta_datas=metadata, only_strict=False)).status_code == 200


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


BAD: dict[str, bytes] = {
    "another global": pickle.dumps({"images": [Evil()], "prompts": PROMPTS}),
    "an array of objects": pickle.dumps({"images": [b"x"], "prompts": np.array(["a", None], dtype=object)}),
    "not a pickle": b"hello",
    "nothing": b"",
    "a list": pickle.dumps([1]),
    "no images": pickle.dumps({"prompts": PROMPTS}),
    "no prompts": pickle.dumps({"images": jpegs(TENSOR)}),
    "pixels": pickle.dumps({"images": TENSOR, "prompts": PROMPTS}),
    "numbers": pickle.dumps({"images": jpegs(TENSOR), "prompts": np.arange(3)}),
    "not numbers": pickle.dumps({"images": jpegs(TENSOR), "prompts": np.array([np.nan] * 3)}),
    "unequal": request(prompts=PROMPTS[:2]),
    "not an image": pickle.dumps({"images": [b"hello"], "prompts": ["a"]}),
    "empty": pickle.dumps({"images": [], "prompts": []}),
    "prompts without a shape": pickle.dumps({"images": jpegs(TENSOR)[:1], "prompts": np.array("a")}),
    "prompts in a square": pickle.dumps({"images": jpegs(TENSOR)[:1], "prompts": np.array([["a"]])}),
    "too many": pickle.dumps({"images": [b"a"] * 1001, "prompts": ["a"] * 1001}),
}


@pytest.mark.parametrize("case", BAD)
def test_permanent_faults_are_4xx(case: str, client: TestClient) -> None:
    """Its clients try again a thousand times after a 500."""
    answer = client.post("/", content=BAD[case])
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["remedy"]
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(answer.content)  # and so the trainer stops, rather than take it for rewards


class TestBusy:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_images=3, max_queue=3)

    def test_a_full_queue_is_500_which_its_clients_wait_for(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        service = client.app.state.service
        with ThreadPoolExecutor() as pool:
            held = pool.submit(client.post, "/", content=request())
            until(lambda: service.batcher.num_rows == 3)
            refused = client.post("/", content=request())
            gate.open()
            assert refused.status_code == 500
            assert "retry-after" in refused.headers
            assert held.result().status_code == 200
        assert client.post("/", content=request()).status_code == 200


class TestManyRequests:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_requests=1)

    def test_too_many_requests_are_500_which_its_clients_wait_for(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        with ThreadPoolExecutor() as pool:
            held = pool.submit(client.post, "/", content=request())
            gate.wait()
            refused = client.post("/", content=request())
            elsewhere = client.get("/v1/models")
            gate.open()
            assert (refused.status_code, refused.json()["error"]["status"]) == (500, 500)
            assert elsewhere.status_code == 429
            assert held.result().status_code == 200


class TestTime:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_seconds=0.01)

    def test_a_request_that_always_takes_too_long_stops_the_trainer(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        answer = client.post("/", content=request())
        gate.open()
        assert answer.status_code == 503


def test_a_defect_stops_the_trainer(client: TestClient, scorer: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("it is broken")

    monkeypatch.setattr(scorer, "encode_images", fail)
    answer = client.post("/", content=request())
    assert (answer.status_code, answer.json()["error"]["status"]) == (503, 503)


def test_it_is_off_unless_asked_for(scorer: ImageRewardScorer) -> None:
    with TestClient(create_app([scorer]), base_url=HOST) as client:
        assert client.post("/", content=request()).status_code == 405
