from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import HOST, IMAGES, URLS, data_url
from fastapi.testclient import TestClient
from PIL import Image

import judges
from conftest import tiny
from image_reward import load
from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, Settings, create_app

FILES = [("images", (f"{number}.png", image)) for number, image in enumerate(IMAGES)]


def close_to(expected: Any) -> Any:
    return pytest.approx(expected, abs=1e-5)


# --- answers ---


@pytest.mark.parametrize("images", [URLS, [url.split(",")[1] for url in URLS]], ids=["data URLs", "base64"])
def test_score_of_json(images: list[str], client: TestClient, scorer: ImageRewardScorer) -> None:
    answer = client.post("/v1/score", json={"prompt": "a cat", "images": images})
    assert answer.status_code == 200
    assert answer.json()["rewards"] == close_to(scorer.score("a cat", IMAGES))
    assert answer.json()["model"] == "tiny"
    assert answer.json()["rewards_by_model"] == {"tiny": answer.json()["rewards"]}


def test_score_of_files(client: TestClient, scorer: ImageRewardScorer) -> None:
    one = client.post("/v1/score", data={"prompt": "ein Café, 猫"}, files=FILES)
    assert one.json()["rewards"] == close_to(scorer.score("ein Café, 猫", IMAGES))
    prompts = list("abcdef")
    aligned = client.post("/v1/score", data={"prompt": prompts}, files=FILES)
    assert aligned.json()["rewards"] == close_to(scorer.score(prompts, IMAGES))
    assert client.post("/v1/score", data={"prompt": "a"}, files=FILES[:1]).json()["rewards"] == close_to(scorer.score("a", IMAGES[:1]))


def test_rank(client: TestClient, scorer: ImageRewardScorer) -> None:
    ranking = scorer.rank("a cat", IMAGES)
    for answer in (
        client.post("/v1/rank", json={"prompt": "a cat", "images": URLS}),
        client.post("/v1/rank", data={"prompt": "a cat"}, files=FILES),
    ):
        assert answer.json()["ranking"] == ranking.ranking
        assert answer.json()["rewards"] == close_to(ranking.rewards)


def test_compare(client: TestClient, scorer: ImageRewardScorer) -> None:
    preference = scorer.compare("a cat", *IMAGES[:2]).as_dict()
    for answer in (
        client.post("/v1/compare", json={"prompt": "a cat", "a": URLS[0], "b": URLS[1]}),
        client.post("/v1/compare", data={"prompt": "a cat"}, files={"a": IMAGES[0], "b": IMAGES[1]}),
    ):
        assert answer.json()["a_better"] == close_to(preference["a_better"])
        assert answer.json()["rewards"] == close_to(list(preference["rewards"]))
        assert answer.json()["tie"] == 0


def test_a_judge_is_not_asked_about_pairs(tmp_path: Path) -> None:
    judge = load(judges.write(tmp_path / "judge"), "cpu", "float32")
    with TestClient(create_app([judge], Settings()), base_url=HOST) as client:
        answer = client.post("/v1/compare", json={"prompt": "a cat", "a": URLS[0], "b": URLS[1]})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["field"], error["message"]) == ("model", "judge compares two images in one question, which this service does not ask")
    assert "use `image-reward compare` or the scorer's compare(), or order the images by their rewards with /v1/rank" in error["remedy"]


def test_matrix(client: TestClient, scorer: ImageRewardScorer) -> None:
    prompts = ["a cat", "a larger dog", "a cat"]
    expected = scorer.matrix(prompts, IMAGES)
    for answer in (
        client.post("/v1/matrix", json={"prompts": prompts, "images": URLS}),
        client.post("/v1/matrix", data={"prompts": prompts}, files=FILES),
    ):
        np.testing.assert_allclose(answer.json()["rewards"], expected, rtol=0, atol=1e-5)


def test_several_models(scorer: ImageRewardScorer) -> None:
    other = tiny(ImageRewardScorer, seed=8)
    other.name = "other"
    with TestClient(create_app([scorer, other]), base_url=HOST) as client:
        assert [model["name"] for model in client.get("/v1/models").json()["models"]] == ["tiny", "other"]
        ask = {"prompt": "a", "images": URLS}
        assert client.post("/v1/score", json=ask).json()["rewards"] == close_to(scorer.score("a", IMAGES))
        assert client.post("/v1/score", json=ask | {"model": "other"}).json()["rewards"] == close_to(other.score("a", IMAGES))
        both = client.post("/v1/score", json=ask | {"models": ["other", "tiny"]}).json()
        assert both["model"] == "other"
        assert list(both["rewards_by_model"]) == ["other", "tiny"]
        assert both["rewards_by_model"]["tiny"] == close_to(scorer.score("a", IMAGES))
        refused = client.post("/v1/score", json=ask | {"models": ["tiny", "third"]})
        assert (refused.status_code, refused.json()["error"]["field"]) == (404, "models[1]")


def test_prompts_that_are_cut_are_warned_of(client: TestClient) -> None:
    (warning,) = client.post("/v1/score", json={"prompt": "word " * 50, "images": URLS[:1]}).json()["warnings"]
    assert "are not read" in warning


def test_markup_in_a_prompt_is_text(client: TestClient, scorer: ImageRewardScorer) -> None:
    prompt = "'; DROP TABLE images; -- <script>alert(1)</script>"
    assert client.post("/v1/score", json={"prompt": prompt, "images": URLS[:1]}).json()["rewards"] == close_to(
        scorer.score(prompt, IMAGES[:1])
    )


def test_health_metrics_and_documents(client: TestClient) -> None:
    client.post("/v1/score", json={"prompt": "a", "images": URLS})
    client.post("/v1/score", json={"prompt": "a", "images": []})
    assert client.get("/health/live").json() == {"live": True}
    assert client.get("/health/ready").json() == {"ready": True}
    text = client.get("/metrics").text
    for line in (
        'image_reward_requests_total{route="/v1/score",status="200"} 1.0',
        'image_reward_requests_total{route="/v1/score",status="422"} 1.0',
        'image_reward_request_seconds_count{route="/v1/score"} 2.0',
        "image_reward_batch_rows_sum 6.0",
        "image_reward_queue_rows 0.0",
        'image_reward_rejected_total{reason="invalid"} 1.0',
        "image_reward_errors_total 0.0",
    ):
        assert line in text
    document = client.get("/openapi.json").json()
    assert {"/v1/score", "/v1/rank", "/v1/compare", "/v1/matrix", "/v1/models", "/v2/models/{name}/infer", "/rerank"} <= set(
        document["paths"]
    )
    page = client.get("/docs")
    assert "POST /v1/score" in page.text
    assert page.headers["content-security-policy"] == "default-src 'none'"


def test_a_service_that_is_stopping_is_not_ready(client: TestClient) -> None:
    client.app.state.service.is_draining = True
    assert client.get("/health/ready").status_code == client.get("/v2/health/ready").status_code == 503
    assert client.get("/health/live").status_code == 200


# --- refusals ---


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


def nested(depth: int) -> Any:
    document: Any = URLS[0]
    for _ in range(depth):
        document = {"image": document}
    return document


NOT_AN_IMAGE = data_url(b"hello")
ASK: dict[str, Any] = {"prompt": "a", "images": URLS[:2]}
REFUSED: dict[str, tuple[str, Any, int, str, str]] = {
    "not an image": ("/v1/score", ASK | {"images": [URLS[0], NOT_AN_IMAGE]}, 422, "images[1]", "save or download"),
    "truncated": ("/v1/score", ASK | {"images": [data_url(IMAGES[0][:-100])]}, 422, "images[0]", "whole file"),
    "bomb": ("/v1/score", ASK | {"images": [data_url(bomb())]}, 422, "images[0]", "smaller image"),
    "not base64": ("/v1/score", ASK | {"images": ["data:image/png;base64,%%%"]}, 422, "images[0]", "base64"),
    "percent-encoded": ("/v1/score", ASK | {"images": ["data:image/png,abc"]}, 422, "images[0]", "base64"),
    "malformed data URL": ("/v1/score", ASK | {"images": ["data:;;,"]}, 422, "images[0]", "data:image/png"),
    "empty image": ("/v1/score", ASK | {"images": [""]}, 422, "images[0]", "base64"),
    "no image": ("/v1/score", ASK | {"images": []}, 422, "images", "at least one"),
    "too many images": ("/v1/score", ASK | {"images": URLS[:1] * 1001}, 413, "images", "several requests"),
    "unequal lists": ("/v1/score", ASK | {"prompt": ["a", "b", "c"]}, 422, "prompt", "one for each image"),
    "a number for an image": ("/v1/score", ASK | {"images": [3]}, 422, "images[0]", "/docs"),
    "a number for a prompt": ("/v1/score", ASK | {"prompt": 3}, 422, "prompt", "/docs"),
    "a number among prompts": ("/v1/score", ASK | {"prompt": ["a", 3]}, 422, "prompt", "/docs"),
    "half a character": ("/v1/score", ASK | {"prompt": "\ud800"}, 422, "prompt", "UTF-8"),
    "a long prompt": ("/v1/score", ASK | {"prompt": "a" * 10_001}, 422, "prompt", "shorten"),
    "no prompt": ("/v1/score", {"images": URLS}, 422, "prompt", "add it"),
    "an unknown field": ("/v1/score", ASK | {"promt": "a"}, 422, "promt", "known are"),
    "an unknown model": ("/v1/score", ASK | {"model": "<b>no</b>"}, 404, "model", "tiny"),
    "model and models": ("/v1/score", ASK | {"model": "tiny", "models": ["tiny"]}, 422, "models", "leave out"),
    "an address": ("/v1/score", ASK | {"images": ["http://example.org/a.png"]}, 422, "images[0]", "--allow-fetch example.org"),
    "an address of this machine": ("/v1/score", ASK | {"images": ["http://127.0.0.1/a.png"]}, 422, "images[0]", "data URL"),
    "a path": ("/v1/score", ASK | {"images": ["/etc/passwd"]}, 422, "images[0]", "data:image/png"),
    "a file address": ("/v1/score", ASK | {"images": ["file:///etc/passwd"]}, 422, "images[0]", "data:image/png"),
    "rank without images": ("/v1/rank", {"prompt": "a", "images": []}, 422, "images", "at least one"),
    "compare with a bad image": ("/v1/compare", {"prompt": "a", "a": URLS[0], "b": NOT_AN_IMAGE}, 422, "b", "save or download"),
    "compare without an image": ("/v1/compare", {"prompt": "a", "a": URLS[0]}, 422, "b", "add it"),
    "too large a matrix": ("/v1/matrix", {"prompts": ["a"] * 1500, "images": URLS[:2]}, 413, "prompts", "several requests"),
    "a bad prompt of a matrix": ("/v1/matrix", {"prompts": ["a", "\ud800"], "images": URLS[:2]}, 422, "prompts[1]", "UTF-8"),
    "a list": ("/v1/score", [1], 422, "body", "/docs"),
    "numbers for images": ("/v1/score", ASK | {"images": [3] * 1000}, 422, "images[0]", "/docs"),
    "many numbers for images": ("/v1/score", ASK | {"images": [3] * 100_000}, 413, "images", "several requests"),
    "many numbers for prompts": ("/v1/score", ASK | {"prompt": [3] * 100_000}, 413, "prompt", "several requests"),
    "many models": ("/v1/score", ASK | {"models": ["tiny"] * 100_000}, 413, "models", "several requests"),
    "many fields": ("/v1/score", ASK | {f"a{n}": 1 for n in range(1000)}, 422, "body", "leave out"),
    "many documents": ("/rerank", {"query": "a", "documents": [3] * 100_000}, 413, "documents", "several requests"),
    "no documents": ("/rerank", {"query": "a", "documents": {"content": []}}, 422, "documents", "at least one"),
    "a deep document": ("/rerank", {"query": "a", "documents": [nested(500)]}, 422, "documents[0]", "image_url"),
}


def assert_refused(answer: Any, status: int, field: str, remedy: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["field"] == field
    assert error["status"] == status
    assert error["message"]
    assert remedy in error["remedy"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests(case: str, client: TestClient) -> None:
    path, ask, status, field, remedy = REFUSED[case]
    assert_refused(client.post(path, content=json.dumps(ask), headers={"content-type": "application/json"}), status, field, remedy)
    assert client.post("/v1/score", json=ASK).status_code == 200


@pytest.mark.parametrize(
    ("body", "content_type", "status", "field"),
    [
        (b"{", "application/json", 400, "body"),
        (b"\xff", "application/json", 400, "body"),
        (b"[" * 100_000, "application/json", 400, "body"),
        (b'{"prompt": NaN}', "application/json", 400, "body"),
        (b"", "application/json", 400, "body"),
        (b"abc", "multipart/form-data", 400, "content-type"),
        (b"abc", "multipart/form-data; boundary=x", 400, "body"),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n', "multipart/form-data; boundary=x", 400, "body"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n", "multipart/form-data; boundary=x", 400, "body"),
        (
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            400,
            "prompt",
        ),
        (b"--x\r\n" + b"a: b\r\n" * 9 + b"\r\na\r\n--x--\r\n", "multipart/form-data; boundary=x", 400, "body"),
        (b"--x", "multipart/form-data; boundary=" + "x" * 5000, 400, "content-type"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n--x--", "multipart/form-data; boundary=x", 400, "body"),
        (b"--x\r\n" + b"a" * 100_000 + b"\r\n\r\n--x--", "multipart/form-data; boundary=x", 400, "body"),
        (b"--x\r\n" * 100_000, "multipart/form-data; boundary=x", 400, "body"),
        (b"a=%ff", "application/x-www-form-urlencoded", 400, "body"),
    ],
)
def test_bodies_that_cannot_be_read(body: bytes, content_type: str, status: int, field: str, client: TestClient) -> None:
    answer = client.post("/v1/score", content=body, headers={"content-type": content_type})
    assert_refused(answer, status, field, "")


def form(*parts: bytes, boundary: bytes = b"x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


PROMPT = b'Content-Disposition: form-data; name="prompt"\r\n\r\na'
FILE = b'Content-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + IMAGES[0]


@pytest.mark.parametrize(
    "body",
    [
        form(PROMPT, FILE),
        b"a preamble\r\n" + form(PROMPT, FILE) + b"an epilogue",
        form(PROMPT, FILE).replace(b"--x\r\n", b"--x \t\r\n"),
        form(PROMPT, FILE + b"\r\n--xyz\r\n--"),  # content that begins like a boundary
        form(b"X: y\r\ncontent-disposition:form-data;name=prompt\r\n\r\na", FILE),
        form(PROMPT, FILE.replace(b'filename="a.png"', b"filename*=UTF-8''%e2%82%ac.png")),
        form(PROMPT, FILE.replace(b'; filename="a.png"', b"\r\nContent-Type: image/png")),
        form(PROMPT, FILE.replace(b"a.png", b'; name=\\"prompt\\".png')),
    ],
)
def test_forms_as_clients_write_them(body: bytes, client: TestClient, scorer: ImageRewardScorer) -> None:
    answer = client.post("/v1/score", content=body, headers={"content-type": 'multipart/form-data; boundary="x"'})
    assert answer.json()["rewards"] == close_to(scorer.score("a", IMAGES[:1]))


def test_1001_files(client: TestClient) -> None:
    files = [("images", ("a.png", b"x"))] * 1001
    assert_refused(client.post("/v1/score", data={"prompt": "a"}, files=files), 413, "images", "several requests")
    assert_refused(client.post("/v1/score", data={"prompt": "a"}, files=files * 4), 413, "body", "fewer images")


def test_a_file_name_is_never_a_path(client: TestClient, scorer: ImageRewardScorer) -> None:
    files = [("images", ("../../../etc/passwd", IMAGES[0])), ("images", ("C:\\x\0.png", IMAGES[1]))]
    assert client.post("/v1/score", data={"prompt": "a"}, files=files).json()["rewards"] == close_to(scorer.score("a", IMAGES[:2]))


def test_paths_and_methods_that_are_not_there(client: TestClient) -> None:
    assert_refused(client.get("/v1/nothing"), 404, "path", "/docs")
    assert_refused(client.get("/v1/score"), 405, "path", "method")
    assert_refused(client.post("/v1/score/", json=ASK, follow_redirects=False), 404, "path", "/docs")


class TestLimits:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(max_images=2, max_queue=4, max_prompt=5)

    def test_they_can_be_set(self, client: TestClient) -> None:
        assert client.get("/v1/models").json()["limits"]["max_images"] == 2
        assert_refused(client.post("/v1/score", json={"prompt": "a", "images": URLS[:3]}), 413, "images", "several requests")
        assert_refused(client.post("/v1/score", json={"prompt": "longer", "images": URLS[:1]}), 422, "prompt", "shorten")
        assert_refused(client.post("/v1/matrix", json={"prompts": ["a"] * 3, "images": URLS[:2]}), 413, "prompts", "several requests")
        assert client.post("/v1/matrix", json={"prompts": ["a"] * 2, "images": URLS[:2]}).status_code == 200


def test_max_pixels_is_that_of_the_scorer() -> None:
    from image_reward.images import ImageOptions

    scorer = tiny(ImageRewardScorer, options=ImageOptions(max_pixels=100))
    with TestClient(create_app([scorer]), base_url=HOST) as client:
        assert_refused(client.post("/v1/score", json=ASK), 422, "images[0]", "--max-pixels")


def test_a_defect_is_a_500_that_quotes_nothing(client: TestClient, scorer: ImageRewardScorer, caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: Any) -> Any:
        raise ZeroDivisionError("".join(["sec", "ret"]))

    scorer.encode_images = fails  # type: ignore[method-assign]
    answer = client.post("/v1/score", json=ASK)
    assert answer.status_code == 500
    assert "secret" not in answer.text + caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert "image_reward_errors_total 1.0" in client.get("/metrics").text


def test_nothing_of_a_request_is_logged_but_sizes(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    client.post("/v1/score", json={"prompt": "a secret prompt", "images": URLS[:1]})
    client.get("/secret/path")
    assert "POST /v1/score 200" in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("image_reward")]
    assert not any("secret" in line for line in ours)


def test_settings_show_no_token() -> None:
    assert "hunter2" not in repr(Settings(token="hunter2"))
