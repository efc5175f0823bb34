"""Requests of the Open Inference Protocol, in JSON and with binary data as Triton's client sends them."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from clients import IMAGES, URLS
from fastapi.testclient import TestClient

from image_reward.scorers import ImageRewardScorer

PROMPTS = ["a cat", "a larger dog"]
ENCODED = [base64.b64encode(image).decode() for image in IMAGES[:2]]
INFER = "/v2/models/tiny/infer"


def tensor(name: str, data: Any, datatype: str = "BYTES", shape: Any = None) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)] if shape is None else shape, "datatype": datatype, "data": data}


def inputs(**changes: Any) -> dict[str, Any]:
    return {"inputs": [changes.get("prompt", tensor("prompt", PROMPTS)), changes.get("image", tensor("image", ENCODED))]}


def test_health_and_metadata(client: TestClient) -> None:
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert client.get("/v2/models/tiny/versions/1/ready").status_code == 200
    described = client.get("/v2/models/tiny").json()
    assert [tensor["name"] for tensor in described["inputs"]] == ["prompt", "image"]
    assert client.get("/v2/models/tiny/versions/1").json() == described


@pytest.mark.parametrize("path", [INFER, "/v2/models/tiny/versions/1/infer"])
@pytest.mark.parametrize("images", [ENCODED, URLS[:2]], ids=["base64", "data URLs"])
def test_infer(images: list[str], path: str, client: TestClient, scorer: ImageRewardScorer) -> None:
    answer = client.post(path, json=inputs(image=tensor("image", images)) | {"id": "7"}).json()
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": "tiny", "model_version": "1", "id": "7"}
    assert output["data"] == pytest.approx(scorer.score(PROMPTS, IMAGES[:2]), abs=1e-5)
    assert (output["name"], output["datatype"], output["shape"]) == ("reward", "FP32", [2])


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_infer_of_pixels(datatype: str, client: TestClient, scorer: ImageRewardScorer) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    sent = pixels if datatype == "UINT8" else pixels.astype(np.float32) / 255
    for data in (sent.tolist(), sent.ravel().tolist()):
        answer = client.post(INFER, json=inputs(image=tensor("image", data, datatype, [2, 8, 9, 3])))
        assert answer.json()["outputs"][0]["data"] == pytest.approx(scorer.score(PROMPTS, list(pixels)), abs=1e-5)


def test_infer_of_binary_data(client: TestClient, scorer: ImageRewardScorer) -> None:
    def elements(values: list[bytes]) -> bytes:
        return b"".join(struct.pack("<I", len(value)) + value for value in values)

    binary = [elements([prompt.encode() for prompt in PROMPTS]), elements(IMAGES[:2])]
    head = [
        {"name": name, "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        for name, data in zip(("prompt", "image"), binary, strict=True)
    ]
    encoded = json.dumps({"inputs": head, "outputs": [{"name": "reward", "parameters": {"binary_data": True}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(encoded))}
    answer = client.post(INFER, content=encoded + b"".join(binary), headers=headers)
    assert answer.json()["outputs"][0]["data"] == pytest.approx(scorer.score(PROMPTS, IMAGES[:2]), abs=1e-5)
    for broken in (encoded + binary[0], encoded + b"".join(binary) + b"x", encoded + b"\xff" * len(b"".join(binary))):
        assert client.post(INFER, content=broken, headers=headers).status_code == 422
    assert client.post(INFER, content=encoded, headers={"Inference-Header-Content-Length": "9999999"}).status_code == 400
    for length in ("-1", "", "\xb2", "0" * 5000 + "1"):
        refused = client.post(INFER, content=encoded, headers={b"Inference-Header-Content-Length": length.encode("latin-1")})
        assert (refused.status_code, refused.json()["details"]["field"]) == (400, "inference-header-content-length")


REFUSED: dict[str, tuple[Any, int, str]] = {
    "no inputs": ({}, 422, "inputs"),
    "one input": ({"inputs": [tensor("prompt", PROMPTS)]}, 422, "inputs"),
    "unequal": (inputs(prompt=tensor("prompt", ["a"])), 422, "inputs"),
    "another shape": (inputs(prompt=tensor("prompt", PROMPTS, shape=[3])), 422, "inputs[0].shape"),
    "a negative shape": (inputs(prompt=tensor("prompt", PROMPTS, shape=[-2])), 422, "inputs[0].shape"),
    "numbers for text": (inputs(prompt=tensor("prompt", [1, 2])), 422, "inputs[0].data"),
    "a wrong type": (inputs(image=tensor("image", [0.0] * 24, "FP64", [2, 2, 2, 3])), 422, "inputs[1].datatype"),
    "pixels for prompts": (inputs(prompt=tensor("prompt", [0] * 24, "UINT8", [2, 2, 2, 3])), 422, "inputs[0].datatype"),
    "floats for integers": (inputs(image=tensor("image", [0.5] * 24, "UINT8", [2, 2, 2, 3])), 422, "inputs[1].data"),
    "large integers": (inputs(image=tensor("image", [256] * 24, "UINT8", [2, 2, 2, 3])), 422, "inputs[1].data"),
    "too few pixels": (inputs(image=tensor("image", [0] * 23, "UINT8", [2, 2, 2, 3])), 422, "inputs[1].data"),
    "text for pixels": (inputs(image=tensor("image", ["a"] * 24, "FP32", [2, 2, 2, 3])), 422, "inputs[1].data"),
    "out of range": (inputs(image=tensor("image", [2.5] * 24, "FP32", [2, 2, 2, 3])), 422, "inputs[1].data[0]"),
    "not base64": (inputs(image=tensor("image", ["%", "%"])), 422, "inputs[1].data[0]"),
    "a text among pixels": (inputs(image=tensor("image", [0] * 23 + ["a" * 9], "UINT8", [2, 2, 2, 3])), 422, "inputs[1].data"),
    "truth for pixels": (inputs(image=tensor("image", [True] * 24, "UINT8", [2, 2, 2, 3])), 422, "inputs[1].data"),
    "pixels beyond range": (inputs(image=tensor("image", [10**4000] * 24, "FP32", [2, 2, 2, 3])), 422, "inputs[1].data"),
    "ragged pixels": (inputs(image=tensor("image", [[1, 2], [3]], "UINT8", [2, 2, 2, 3])), 422, "inputs[1].data"),
    "deep pixels": (inputs(image=tensor("image", [[[[[1]]]]], "UINT8", [1, 1, 1, 1])), 422, "inputs[1].data"),
    "no pixels": (inputs(image=tensor("image", [], "FP32", [2, 0, 0, 3])), 422, "inputs[1].shape"),
    "many images without pixels": (inputs(image=tensor("image", [], "FP32", [10**9, 0, 0, 3])), 413, "inputs[1]"),
    "no inputs' shape": (inputs(prompt=tensor("prompt", PROMPTS, shape=[])), 422, "inputs[0].shape"),
    "a long shape": (inputs(prompt=tensor("prompt", PROMPTS, shape=[2] * 9)), 422, "inputs[0].shape"),
    "a shape of huge numbers": (inputs(prompt=tensor("prompt", PROMPTS, shape=[10**4000] * 3)), 422, "inputs[0].shape"),
    "half a character": (inputs() | {"id": "\ud800"}, 422, "id"),
    "a long prompt": (inputs(prompt=tensor("prompt", ["a", "a" * 20_000])), 422, "inputs[0].data[1]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, client: TestClient) -> None:
    ask, status, field = REFUSED[case]
    answer = client.post(INFER, content=json.dumps(ask))
    assert (answer.status_code, answer.json()["details"]["field"]) == (status, field), answer.text
    assert answer.json()["error"].startswith(field)


def test_arrays_of_nan(client: TestClient) -> None:
    text = json.dumps(inputs(image=tensor("image", [float("nan")] * 24, "FP32", [2, 2, 2, 3])))
    assert client.post(INFER, content=text).status_code == 400
    nan = np.full((2, 2, 2, 3), np.nan, dtype="<f4").tobytes()
    image = {"name": "image", "shape": [2, 2, 2, 3], "datatype": "FP32", "parameters": {"binary_data_size": len(nan)}}
    head = json.dumps(inputs(image=image)).encode()
    answer = client.post(INFER, content=head + nan, headers={"Inference-Header-Content-Length": str(len(head))})
    assert (answer.status_code, answer.json()["details"]["field"]) == (422, "inputs[1].data[0]")


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/other/ready", "/v2/models/Tiny", "/v2/models/tiny/versions/2"])
def test_models_that_are_not_there(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert isinstance(answer.json()["error"], str)
    assert client.post("/v2/models/other/infer", json=inputs()).status_code == 404
