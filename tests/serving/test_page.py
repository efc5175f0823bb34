"""The page as it is sent: what it may do, who gets it, and the rows of a folder that it shows. Its behaviour: test_page_in_browser.py."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from clients import HOST, IMAGES
from fastapi.testclient import TestClient
from PIL import Image

from image_reward.scorers import ImageRewardScorer
from image_reward.scorers.distribution import published_distribution
from image_reward.serving import Settings, create_app
from image_reward.serving.page import OPEN_PATHS

TOKEN = "a-token-of-some-length"
PAGE = Path(__file__).parents[2] / "src/image_reward/serving/page"


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["field"]


class Parts(HTMLParser):
    """Addresses, attributes and texts of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.names: set[str] = set()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names.update(name for name, _ in attributes)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action")]
        if tag == "script":
            assert dict(attributes).get("src")


def test_the_page_asks_nothing_of_others(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    parts = Parts()
    parts.feed(answer.text)
    assert "style" not in parts.tags
    assert not [name for name in parts.names if name == "style" or name.startswith("on")]
    assert "page/page.js" in parts.addresses
    for address in set(parts.addresses) - {"docs"}:
        part = client.get(f"/{address}")
        assert part.status_code == 200, address
        assert part.headers["x-content-type-options"] == "nosniff"
    for file in PAGE.glob("*.js"):
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", file.read_text()), file
        assert {f"/page/{name}" for name in re.findall(r'from "\./(.+?)"', file.read_text())} <= OPEN_PATHS
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", file.read_text())


def test_its_policy(client: TestClient) -> None:
    for path in OPEN_PATHS:
        policy = client.get(path).headers["content-security-policy"]
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "frame-ancestors 'none'" in policy
        assert "*" not in policy


def test_there_is_no_other_file(client: TestClient) -> None:
    for name in ("none.js", "index.html", "rank.html", "..%2fapp.py", "%2e%2e%2fapp.py", "page.js%00"):
        assert refusal(client.get(f"/page/{name}")) == (404, "path"), name
    assert client.get("/page/../api.py").status_code == 404


def test_only_the_page_needs_no_token(scorer: ImageRewardScorer) -> None:
    with TestClient(create_app([scorer], Settings(token=TOKEN)), base_url=HOST) as client:
        for path in OPEN_PATHS:
            assert client.get(path).status_code == 200, path
            assert "tiny" not in client.get(path).text  # the name of the model
        for path in ("/page/scored", "/page/scored/rows", "/page/scored/images/0/0", "/page/none.js", "/page", "/page/", "/docs"):
            assert refusal(client.get(path)) == (401, "authorization"), path
        assert refusal(client.post("/", content=b"")) == (401, "authorization")


def test_the_models_have_their_published_distribution(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    published = published_distribution("ImageReward-v1.0")
    assert published is not None
    assert model["distribution"] == {
        "origin": published.origin,
        "num_images": published.num_images,
        "quantiles": list(published.quantiles),
    }
    monkeypatch.setattr(ImageRewardScorer, "reference", None)
    (model,) = client.get("/v1/models").json()["models"]
    assert model["distribution"] is None


# --- scored rows ---


class Rows:
    """Three rows, the last of which has no reward."""

    name = "scored"
    columns = ["reward"]  # noqa: RUF012
    num_rows = 3

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.image: Any = IMAGES[0]

    def histogram(self, column: str) -> tuple[float | None, float | None, list[int]]:
        assert column == "reward"
        return -1.0, 1.0, [1, 1]

    def page(self, **asked: Any) -> tuple[int, list[dict[str, Any]]]:
        self.asked = asked
        return 3, [{"part": 0, "row": 0, "id": "1", "prompt": "a", "image": "a.png", "reward": 1.0, "error": None}]

    def picture(self, part: int, row: int) -> Any:
        if (part, row) != (0, 0):
            raise LookupError
        return self.image


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def browsing(scorer: ImageRewardScorer, rows: Rows) -> Iterator[TestClient]:
    with TestClient(create_app([scorer], scored=rows), base_url=HOST) as client:  # type: ignore[arg-type]
        yield client


def test_what_there_is_to_browse(browsing: TestClient, client: TestClient) -> None:
    assert browsing.get("/page/scored").json() == {
        "name": "scored",
        "columns": ["reward"],
        "num_rows": 3,
        "histograms": {"reward": {"low": -1.0, "high": 1.0, "counts": [1, 1]}},
    }
    assert "browse-served" in browsing.get("/").text
    assert "browse-served" not in client.get("/").text
    for path in ("", "/rows?column=reward", "/images/0/0"):
        assert refusal(client.get(f"/page/scored{path}")) == (404, "path")


def test_a_page_of_rows(browsing: TestClient, rows: Rows) -> None:
    answer = browsing.get(
        "/page/scored/rows?column=reward&order=prompt&descending=false&low=-0.5&text=%3Cb%3E&errors=true&offset=100&limit=50"
    )
    assert answer.json()["num"] == 3
    assert rows.asked == {
        "column": "reward",
        "order": "prompt",
        "descending": False,
        "low": -0.5,
        "high": None,
        "text": "<b>",
        "errors": True,
        "offset": 100,
        "limit": 50,
    }


@pytest.mark.parametrize(
    ("query", "field", "status"),
    [
        ("", "column", 422),
        ("column=none", "column", 404),
        ("column=reward&order=1; DROP TABLE parts", "order", 422),
        ("column=reward&low=nan", "low", 422),
        ("column=reward&limit=100000", "limit", 422),
        ("column=reward&offset=-1", "offset", 422),
        ("column=reward&offset=x", "offset", 422),
    ],
)
def test_a_question_that_makes_no_sense(browsing: TestClient, query: str, field: str, status: int) -> None:
    assert refusal(browsing.get(f"/page/scored/rows?{query}")) == (status, field)


def test_an_image_is_made_smaller(browsing: TestClient, rows: Rows) -> None:
    rows.image = Image.new("RGB", (900, 300), "red")
    for asked, side in ((None, 320), (600, 600), (4000, 900)):
        answer = browsing.get("/page/scored/images/0/0" + (f"?side={asked}" if asked else ""))
        assert answer.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert max(image.size) == side
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_only_images_are_sent(browsing: TestClient, rows: Rows, tmp_path: Path) -> None:
    """Rows come from anywhere, and may name any file."""
    secret = tmp_path / "secret.png"
    secret.write_text("root:x:0:0")
    rows.image = secret
    answer = browsing.get("/page/scored/images/0/0")
    assert answer.status_code == 422
    assert "root:x" not in answer.text
    assert str(tmp_path) not in answer.text
    rows.image = tmp_path / "none.png"
    assert browsing.get("/page/scored/images/0/0").status_code == 404
    rows.image = tmp_path
    assert browsing.get("/page/scored/images/0/0").status_code in (404, 422)
    for place in ("1/0", "0/x", "-1/0", "0/0?side=0", "0/0?side=100000"):
        assert browsing.get(f"/page/scored/images/{place}").status_code in (404, 422), place


def test_a_page_is_json_even_of_odd_text(browsing: TestClient) -> None:
    assert json.loads(browsing.get("/page/scored/rows", params={"column": "reward", "text": "\u0000'\"\U0001f600"}).content)["num"] == 3
