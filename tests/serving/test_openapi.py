"""What the OpenAPI document allows is accepted, and what is refused it does not allow, but for what JSON Schema cannot say."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import test_api
import test_kserve
from clients import HOST, IMAGES, URLS
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, Settings, create_app

CANNOT_BE_SAID = {
    "what an image holds": {"not an image", "truncated", "bomb", "compare with a bad image"},
    "characters that are none": {"half a character", "a bad prompt of a matrix"},
    "two lists of one length": {"unequal lists", "unequal"},
    "a product": {"too large a matrix", "another shape", "too few pixels", "ragged pixels"},
}
NOT_SAID = set().union(*CANNOT_BE_SAID.values())


def allows(app: FastAPI, path: str, body: Any) -> bool:
    place = path.replace("/", "~1")
    document = app.openapi() | {"$ref": f"#/paths/{place}/post/requestBody/content/application~1json/schema"}
    return Draft202012Validator(document).is_valid(body)


@pytest.mark.parametrize("case", test_api.REFUSED)
def test_what_is_refused_is_not_allowed(case: str, client: TestClient) -> None:
    path, body, *_ = test_api.REFUSED[case]
    if isinstance(body, dict):  # as much as is above all limits
        body = {name: value[:2001] if isinstance(value, list) else value for name, value in body.items()}
    assert allows(client.app, path, body) == (case in NOT_SAID)


@pytest.mark.parametrize("case", test_kserve.REFUSED)
def test_what_kserve_refuses_is_not_allowed(case: str, client: TestClient) -> None:
    body = test_kserve.REFUSED[case][0]
    assert allows(client.app, "/v2/models/{name}/infer", body) == (case in NOT_SAID)


PART = {"type": "image_url", "image_url": {"url": URLS[0], "detail": "auto"}}
PIXELS = [0, 255] * 6
NULLS = {"model": None}
ACCEPTED: list[tuple[str, Any]] = [
    ("/v1/score", {"prompt": "", "images": URLS, "models": None} | NULLS),
    ("/v1/score", {"prompt": ["a", "b"], "images": URLS[:2], "models": ["tiny", "tiny"]} | NULLS),
    ("/v1/score", {"prompt": "a" * 10_000, "images": [f"data:;base64,\n{base64.encodebytes(IMAGES[0]).decode()}"], "model": "tiny"}),
    ("/v1/rank", {"prompt": "a", "images": [URLS[0].split(",")[1]]}),
    ("/v1/compare", {"prompt": "a", "a": URLS[0], "b": URLS[1], "model": None}),
    ("/v1/matrix", {"prompts": [""], "images": URLS[:1]}),
    ("/rerank", {"query": "a", "documents": [URLS[0], {"content": [PART]}, PART, {"image": {"url": URLS[0]}, "text": 3}], "texts": None}),
    ("/rerank", {"query": "a", "documents": {"content": [PART, URLS[0]]}, "top_n": 1.0, "other": {}}),
    ("/rerank", {"query": "a", "documents": {"content": None, "image": URLS[0]}, "top_n": None}),
    ("/rerank", {"query": "a", "texts": [{"content": [{"url": URLS[0]}]}], "documents": None, "return_text": True}),
    ("/v2/models/{name}/infer", test_kserve.inputs() | {"id": None}),
    (
        "/v2/models/{name}/infer",
        {"inputs": test_kserve.inputs(prompt=test_kserve.tensor("prompt", ["a", "b"], shape=[2.0, 1]))["inputs"][::-1]},
    ),
    (
        "/v2/models/{name}/infer",
        test_kserve.inputs(
            prompt=test_kserve.tensor("prompt", ["a"]),
            image=test_kserve.tensor("image", [[[PIXELS[:6], PIXELS[6:]]]], "UINT8", [1, 2, 2, 3]),
        ),
    ),
]


@pytest.mark.parametrize("number", range(len(ACCEPTED)))
def test_what_is_allowed_is_accepted(number: int, client: TestClient) -> None:
    path, body = ACCEPTED[number]
    assert allows(client.app, path, body)
    answer = client.post(path.format(name="tiny"), content=json.dumps(body))
    assert answer.status_code == 200, answer.text


BAD_DOCUMENTS: list[Any] = [
    {"documents": None, "texts": None},
    {"documents": {}},
    {"documents": [{"content": [PART, PART]}]},
    {"documents": [{"content": "", "image": URLS[0]}]},
    {"documents": [{"image_url": {}, "image": URLS[0]}]},
    {"documents": [{"image": {"image": URLS[0]}}]},
    {"documents": URLS, "top_n": "1"},
    {"documents": URLS, "top_n": 1.5},
    {"documents": URLS, "return_documents": "yes"},
]


@pytest.mark.parametrize("number", range(len(BAD_DOCUMENTS)))
def test_documents_that_are_not_allowed(number: int, client: TestClient) -> None:
    body = {"query": "a"} | BAD_DOCUMENTS[number]
    assert not allows(client.app, "/rerank", body)
    assert client.post("/rerank", json=body).status_code == 422


def test_the_limits_are_those_of_the_service(scorer: ImageRewardScorer) -> None:
    app = create_app([scorer], Settings(limits=Limits(max_images=2, max_queue=3, max_prompt=5)))
    with TestClient(app, base_url=HOST) as client:
        for path, small, large in (
            ("/v1/score", {"prompt": "a", "images": URLS[:2]}, {"prompt": "a", "images": URLS[:3]}),
            ("/v1/score", {"prompt": "a" * 5, "images": URLS[:1]}, {"prompt": "a" * 6, "images": URLS[:1]}),
            (
                "/v1/score",
                {"prompt": "a", "images": URLS[:1], "models": ["tiny"] * 3},
                {"prompt": "a", "images": URLS[:1], "models": ["tiny"] * 4},
            ),
            ("/v1/matrix", {"prompts": ["a"] * 3, "images": URLS[:1]}, {"prompts": ["a"] * 4, "images": URLS[:1]}),
            ("/rerank", {"query": "a", "documents": URLS[:2]}, {"query": "a", "documents": URLS[:3]}),
            ("/rerank", {"query": "a", "documents": {"content": [PART] * 2}}, {"query": "a", "documents": {"content": [PART] * 3}}),
        ):
            assert (allows(app, path, small), allows(app, path, large)) == (True, False)
            assert client.post(path, json=small).status_code == 200
            assert client.post(path, json=large).status_code in (413, 422)
    assert "x-service" not in json.dumps(app.openapi())


def test_addresses_are_allowed_where_they_are_fetched(scorer: ImageRewardScorer) -> None:
    body = {"prompt": "a", "images": ["https://example.org/a.png"]}
    assert not allows(create_app([scorer]), "/v1/score", body)
    assert allows(create_app([scorer], Settings(allow_fetch=("example.org",))), "/v1/score", body)


def test_a_form_of_as_many_prompts_as_images(client: TestClient) -> None:
    files = [("images", ("a.png", IMAGES[0]))] * 1000
    assert client.post("/v1/score", data={"prompt": list(map(str, range(1000)))}, files=files).status_code == 200
