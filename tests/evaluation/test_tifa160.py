"""The correlations that TIFA's authors published for ten metrics, from the ratings and scores that they published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from image_reward.comparisons import read
from image_reward.evaluation import Evaluation, evaluate

TIFA = json.loads((Path(__file__).parents[1] / "data" / "tifa160.json").read_text())
SCORES = TIFA["columns"][2:]
IMAGES = {
    (prompt, generator): dict(zip(TIFA["columns"], map(float, row.split()), strict=True))
    for prompt, rows in TIFA["images"].items()
    for generator, row in zip(TIFA["generators"], rows, strict=True)
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The whole way: a table of ratings, one row for each rater and image, and saved rewards."""
    table = tmp_path_factory.mktemp("tifa") / "ratings.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "image": f"{prompt}_{generator}.jpg", "rating": values[rater], "annotator": rater, "prompt_id": prompt}
        for (prompt, generator), values in IMAGES.items()
        for rater in ("rater_1", "rater_2")
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparisons = read(table)
    assert len(comparisons) == 320
    rewards = {
        name: {c.id: [IMAGES[c.prompt, generator][name] for generator in TIFA["generators"]] for c in comparisons} for name in SCORES
    }
    return evaluate(rewards, comparisons, num_resamples=10)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("bleu", 18.8),
        ("rouge", 24.5),
        ("meteor", 27.4),
        ("spice", 23.2),
        ("clipscore_vitb32", 23.1),
        ("tifa_vilt", 38.2),
        ("tifa_ofa-large", 37.2),
        ("tifa_git-large", 42.6),
        ("tifa_blip2-flant5xl", 43.6),
        ("tifa_mplug-large", 47.2),
    ],
)
def test_published_correlations_over_all_images(evaluated: Evaluation, name: str, published: float) -> None:
    over = evaluated.scorers[name].over_images
    assert over is not None
    assert over.num_images == 800
    assert over.kendall_tau_b is not None
    assert round(100 * over.kendall_tau_b, 1) == published
    # all digits that were printed, but for those that four digits of a score do not carry
    tau, pearson = TIFA["published"][name]
    assert over.kendall_tau_b == pytest.approx(tau, abs=1e-4 if name in SCORES[:5] else 1e-12)
    assert over.pearson == pytest.approx(pearson, abs=2e-5)
