from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
from clients import IMAGES, URLS
from PIL import Image

from image_reward.scorers import ImageRewardScorer

HANDLER = Path(__file__).parents[2] / "examples" / "huggingface" / "handler.py"


@pytest.fixture
def handler(scorer: ImageRewardScorer, tmp_path: Path) -> Any:
    scorer.save_pretrained(tmp_path)
    spec = importlib.util.spec_from_file_location("handler", HANDLER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(path=str(tmp_path))


def test_it_ranks(handler: Any, scorer: ImageRewardScorer) -> None:
    expected = scorer.rank("a cat", IMAGES)
    for images in (URLS, [base64.b64encode(image).decode() for image in IMAGES]):
        answer = handler({"inputs": {"prompt": "a cat", "images": images}})
        assert answer["ranking"] == expected.ranking
        assert answer["rewards"] == pytest.approx(expected.rewards, abs=1e-5)
    image = Image.open(io.BytesIO(IMAGES[0]))
    assert handler({"inputs": image, "parameters": {"prompt": "a cat"}})["rewards"] == pytest.approx(expected.rewards[:1], abs=1e-5)


@pytest.mark.parametrize(
    "data", [{}, {"inputs": "text"}, {"inputs": {"prompt": "a"}}, {"inputs": {"prompt": "a", "images": []}},
             {"inputs": {"prompt": "a", "images": ["%"]}}, {"inputs": {"prompt": "a", "images": ["aGVsbG8="]}}],
)  # fmt: skip
def test_mistakes_are_named(data: dict[str, Any], handler: Any) -> None:
    assert set(handler(data)) == {"error"}
