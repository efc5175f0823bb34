"""The requests of cosmos-rl's client, made as its example makes them."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from clients import HOST, Gate, until
from fastapi.testclient import TestClient

from conftest import tiny
from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, create_app

PROMPTS = ["the camera follows a young explorer", "a girl with braided hair"]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
DATA: dict[str, Any] = {"media_type": "image", "prompts": PROMPTS, "reward_fn": {"image_reward": 1.0}}


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype == object)
    return buffer.getvalue()


def payload(data: dict[str, Any] = DATA, array: Any = IMAGES) -> bytes:
    return json.dumps(data).encode("utf-8") + b"\n" + npy(array)


def enqueue(client: TestClient, content: bytes) -> Any:
    return client.post("/api/reward/enqueue", content=content, headers={"Content-Type": "application/octet-stream"})


def pull(client: TestClient, name: str, kind: str = "image_reward") -> Any:
    answers = []

    def is_there() -> bool:
        answers.append(client.post("/api/reward/pull", data={"uuid": name, "type": kind}))
        return answers[-1].status_code != 400

    until(is_there)
    return answers[-1]


def test_its_own_requests(client: TestClient, scorer: ImageRewardScorer) -> None:
    ping = client.post("/api/reward/ping", data={"info_data": json.dumps(DATA)})
    assert (ping.status_code, ping.json()) == (200, {"message": "Ping request received"})
    enqueued = enqueue(client, payload())
    assert enqueued.status_code == 200
    answer = pull(client, enqueued.json()["uuid"]).json()
    assert answer["scores"]["image_reward"] == pytest.approx(scorer.score(PROMPTS, list(IMAGES)), abs=1e-5)
    assert answer["input_info"] == {"shape": [2, 48, 64, 3], "dtype": "torch.uint8", "min": "0.000", "max": "255.000"}
    assert answer["type"] == "image_reward"
    assert float(answer["duration"]) >= 0
    assert answer["decoded_duration"] == "0.00"
    assert pull(client, enqueued.json()["uuid"]).json() == answer


def test_rewards_that_are_not_there_yet_are_400(client: TestClient, scorer: ImageRewardScorer) -> None:
    gate = Gate(scorer)
    name = enqueue(client, payload()).json()["uuid"]
    gate.wait()
    early = client.post("/api/reward/pull", data={"uuid": name, "type": "image_reward"})
    assert early.status_code == 400
    assert early.json()["message"].startswith("Not found scores")
    gate.open()
    assert pull(client, name).status_code == 200


def test_models_have_their_own_names(scorer: ImageRewardScorer) -> None:
    other = tiny(ImageRewardScorer, seed=8)
    other.name = "other"
    with TestClient(create_app([scorer, other]), base_url=HOST) as client:
        name = enqueue(client, payload(DATA | {"reward_fn": {"other": 0.5, "image_reward": 1.0, "tiny": 1.0}})).json()["uuid"]
        rewards = {kind: pull(client, name, kind).json()["scores"][kind] for kind in ("other", "image_reward", "tiny")}
    assert rewards["other"] == pytest.approx(other.score(PROMPTS, list(IMAGES)), abs=1e-5)
    assert rewards["image_reward"] == rewards["tiny"] == pytest.approx(scorer.score(PROMPTS, list(IMAGES)), abs=1e-5)


def with_header(header: str) -> bytes:
    return json.dumps(DATA).encode() + b"\n\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n"


BAD: dict[str, tuple[bytes, int, str]] = {
    "one line": (b"{}", 400, "body"),
    "not JSON": (b"{\n", 400, "body"),
    "a list": (b"[]\n" + npy(IMAGES), 400, "body"),
    "no array": (json.dumps(DATA).encode() + b"\n", 400, "body"),
    "truncated": (payload()[:-1], 422, "body"),
    "pickled objects": (payload(array=np.array([{}], dtype=object)), 422, "body"),
    "floats": (payload(array=np.full((2, 4, 4, 3), np.nan, dtype=np.float32)), 422, "body"),
    "three dimensions": (payload(array=IMAGES[0]), 422, "body"),
    "no images": (payload(DATA | {"prompts": []}, IMAGES[:0]), 422, "body"),
    "a negative shape": (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -2, 1, 3)}") + bytes(12), 422, "body"),
    "a header that nests": (with_header("(" * 9000), 400, "body"),
    "a header that exhausts the parser": (with_header("-" * 9000 + "1"), 400, "body"),
    "a header that is no expression": (with_header("'''"), 400, "body"),
    "a huge shape": (json.dumps(DATA).encode() + b"\n" + npy(IMAGES).replace(b"(2, 48", b"(9, 48"), 422, "body"),
    "unequal": (payload(DATA | {"prompts": PROMPTS[:1]}), 422, "prompts"),
    "numbers for prompts": (payload(DATA | {"prompts": [1, 2]}), 422, "prompts"),
    "video": (payload(DATA | {"media_type": "video"}), 422, "media_type"),
    "no reward": (payload(DATA | {"reward_fn": {}}), 422, "reward_fn"),
    "a text for a weight": (payload(DATA | {"reward_fn": {"image_reward": "1"}}), 422, "reward_fn"),
    "another reward": (payload(DATA | {"reward_fn": {"hpsv2": 1.0}}), 404, "reward_fn.hpsv2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches(case: str, client: TestClient) -> None:
    content, status, field = BAD[case]
    answer = enqueue(client, content)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
    assert answer.json()["error"]["remedy"]


def test_bad_forms(client: TestClient) -> None:
    assert client.post("/api/reward/ping", data={"info": "{}"}).json()["error"]["field"] == "info_data"
    assert client.post("/api/reward/ping", data={"info_data": "{"}).json()["error"]["field"] == "info_data"
    assert client.post("/api/reward/pull", data={"type": "ocr"}).json()["error"]["field"] == "uuid"
    assert client.post("/api/reward/pull", data={"uuid": "no"}).status_code == 400
    name = enqueue(client, payload()).json()["uuid"]
    assert pull(client, name).status_code == 200
    assert client.post("/api/reward/pull", data={"uuid": name, "type": "ocr"}).json()["error"]["field"] == "type"


def test_an_image_that_is_refused_is_an_error_of_its_batch(client: TestClient) -> None:
    name = enqueue(client, payload(array=np.zeros((2, 1, 1, 3), dtype=np.uint8))).json()["uuid"]
    answer = pull(client, name)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "body[0]")


class TestBusy:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_images=2, max_queue=2)

    def test_a_full_queue_is_429(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        name = enqueue(client, payload()).json()["uuid"]
        gate.wait()
        refused = enqueue(client, payload())
        gate.open()
        assert refused.status_code == 429
        assert pull(client, name).status_code == 200


class TestMemory:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_memory=3 * IMAGES.nbytes // 2)

    def test_images_that_wait_count_although_their_request_is_answered(self, client: TestClient, scorer: ImageRewardScorer) -> None:
        gate = Gate(scorer)
        name = enqueue(client, payload()).json()["uuid"]
        gate.wait()
        refused = enqueue(client, payload())
        gate.open()
        assert (refused.status_code, refused.json()["error"]["message"]) == (429, "too many batches are in work")
        assert pull(client, name).status_code == 200
        until(lambda: enqueue(client, payload()).status_code == 200)
