from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.parquet import read_table
from sklearn.metrics import log_loss as sklearn_log_loss

import seeded
from image_reward import LongPromptWarning, PromptError
from image_reward.checkpoints import TieConfig
from image_reward.comparisons import read
from image_reward.errors import ComparisonError
from image_reward.evaluation import evaluate, read_rewards, score_comparisons, write_per_prompt
from image_reward.scorers import ImageRewardScorer
from image_reward.types import Comparison

TINY = Path(__file__).parents[1] / "data" / "comparisons_tiny.json"
PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "imagerewarddb_test.json"
FEW = {"num_resamples": 200}


def ranked(*ranks: int, name: str = "", prompt: str = "") -> Comparison:
    return Comparison(prompt or f"a cat {name}", tuple(f"{i}.png" for i in range(len(ranks))), ranks, id=name)


def estimates(rewards: Any, comparisons: list[Comparison], **options: Any) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in evaluate(rewards, comparisons, **FEW, **options).metrics.items()}


# --- counts and metrics ---


def test_counts_of_a_small_file(image_folder: Path) -> None:
    found = evaluate([[0.3, 0.2, 0.1], [0.1, 0.1, 0.5], [0.0, 0.0]], read(TINY, image_folder), **FEW)
    assert (found.num_prompts, found.num_distinct_prompts, found.num_images) == (3, 2, 8)
    assert (found.num_untied_pairs, found.num_tied_pairs, found.num_predicted_ties) == (6, 1, 1)
    assert found.metrics["pairwise_accuracy_pooled"].value == pytest.approx(5 / 6)
    assert found.metrics["pairwise_accuracy_per_prompt"].value == pytest.approx((1 + 1 + 0) / 3)
    assert found.treatment_of_ties == "pairs that people tied are left out; a pair of equal reward counts as wrong"


@pytest.fixture(scope="module")
def published() -> list[Comparison]:
    if not PUBLISHED.exists():
        pytest.skip("the published file is not here")
    return read(PUBLISHED)


def test_counts_of_the_published_test_split(published: list[Comparison]) -> None:
    found = evaluate([[-rank for rank in c.ranks] for c in published], published, **FEW)
    assert (found.num_prompts, found.num_images, found.num_untied_pairs, found.num_tied_pairs) == (466, 2720, 6399, 831)
    for name in ("pairwise_accuracy_pooled", "pairwise_accuracy_per_prompt", "recall@1", "filter@1", "kendall_tau_b", "spearman"):
        assert found.metrics[name].value == pytest.approx(1), name
    assert found.metrics["recall@4"].num_prompts == 466 - 194  # of 4 images the 4 best are known


def test_random_rewards_are_at_chance_and_the_interval_says_so(published: list[Comparison]) -> None:
    random = np.random.default_rng(0)
    found = evaluate([random.normal(size=len(c.images)).tolist() for c in published], published, num_resamples=1000)
    for name in ("pairwise_accuracy_pooled", "pairwise_accuracy_per_prompt"):
        estimate = found.metrics[name]
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < 0.5 < estimate.high
        assert 0.02 < estimate.high - estimate.low < 0.06


def test_pooled_and_per_prompt_weigh_differently() -> None:
    comparisons = [ranked(1, 2, 3, 4, name="x"), ranked(1, 2, name="y")]
    found = estimates([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0]], comparisons)
    assert found["pairwise_accuracy_pooled"] == pytest.approx(6 / 7)
    assert found["pairwise_accuracy_per_prompt"] == pytest.approx(1 / 2)
    assert found["kendall_tau_b"] == pytest.approx(0)
    assert found["recall@1"] == pytest.approx(1 / 2)
    assert found["recall@2"] == 1  # only the first has more than two images
    assert found["recall@4"] is None


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        ({}, 1 / 3, "a pair of equal reward counts as wrong"),
        ({"predicted_ties": "half"}, 1.5 / 3, "a pair of equal reward counts half"),
        ({"predicted_ties": "excluded"}, 1 / 2, "pairs of equal reward are left out"),
        ({"human_ties": "half"}, 2.5 / 6, "pairs that people tied count half, whatever the scorer says"),
    ],
)
def test_ties_are_treated_as_told_and_that_is_said(options: dict[str, Any], expected: float, words: str) -> None:
    comparisons, rewards = [ranked(1, 1, 1, 2, name="x")], [[0.9, 0.5, 0.1, 0.5]]
    assert estimates(rewards, comparisons, **options)["pairwise_accuracy_pooled"] == pytest.approx(expected)
    assert words in evaluate(rewards, comparisons, **FEW, **options).treatment_of_ties


def test_log_loss_is_scikit_learns_over_the_ordered_pairs() -> None:
    random = np.random.default_rng(0)
    comparisons = [ranked(*random.integers(1, 6, size=n).tolist(), name=str(i)) for i, n in enumerate(random.integers(2, 8, size=40))]
    rewards = [random.normal(size=len(c.images)).tolist() for c in comparisons]
    truth, predicted = [], []
    for c, values in zip(comparisons, rewards, strict=True):
        for i in range(len(values)):
            for j in range(i):
                if c.ranks[i] != c.ranks[j]:
                    truth.append(int(c.ranks[i] < c.ranks[j]))
                    predicted.append(1 / (1 + math.exp(values[j] - values[i])))
    found = evaluate(rewards, comparisons, **FEW)
    assert found.metrics["log_loss"].value == pytest.approx(sklearn_log_loss(truth, predicted))
    assert sum(b.num for b in found.calibration) == found.num_untied_pairs == len(truth)
    sure = [(max(p, 1 - p), (p > 0.5) == t) for p, t in zip(predicted, truth, strict=True)]
    error = 0.0
    for k in range(10):
        inside = [(p, right) for p, right in sure if 0.5 + 0.05 * k < p <= 0.55 + 0.05 * k]
        error += abs(sum(p for p, _ in inside) - sum(right for _, right in inside)) / len(sure)
    assert found.metrics["expected_calibration_error"].value == pytest.approx(error)
    assert found.metrics["expected_calibration_error"].low is None


def test_rankings_of_one_prompt_are_resampled_together() -> None:
    random = np.random.default_rng(0)
    rewards = [random.normal(size=4).tolist() for _ in range(60)]
    apart = evaluate(rewards, [ranked(1, 2, 3, 4, name=str(i)) for i in range(60)], **FEW).metrics["pairwise_accuracy_pooled"]
    # the same ones, but six rankings each of ten prompts, which agree with each other
    rewards = [rewards[i // 6] for i in range(60)]
    together = evaluate(rewards, [ranked(1, 2, 3, 4, name=str(i), prompt=f"a cat {i // 6}") for i in range(60)], **FEW)
    wide = together.metrics["pairwise_accuracy_pooled"]
    assert wide.high - wide.low > 1.5 * (apart.high - apart.low)  # type: ignore[operator]
    assert together.num_distinct_prompts == 10


def test_undefined_metrics_are_none_and_json_is_whole() -> None:
    found = evaluate([[0.1, 0.1]], [ranked(2, 2, name="x")], **FEW)
    assert found.num_untied_pairs == 0
    assert {name: e.value for name, e in found.metrics.items()} == dict.fromkeys(found.metrics)
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["metrics"]["spearman"] == {"value": None, "low": None, "high": None, "num_prompts": 0}


def test_results_per_prompt_as_parquet(tmp_path: Path) -> None:
    comparisons = [ranked(1, 2, 2, name="x"), ranked(2, 1, name="y")]
    found = evaluate([[0.9, 0.1, 0.5], [0.3, 0.3]], comparisons, ks=(1, 2), **FEW)
    write_per_prompt(found, tmp_path / "prompts.parquet")
    x, y = read_table(tmp_path / "prompts.parquet").to_pylist()
    assert (x["id"], x["prompt"], x["rewards"], x["ranks"]) == ("x", "a cat x", [0.9, 0.1, 0.5], [1, 2, 2])
    assert (x["num_untied_pairs"], x["num_tied_pairs"], x["pairwise_accuracy"]) == (2, 1, 1.0)
    assert (x["recall@1"], x["recall@2"], x["filter@1"]) == (1.0, 1.0, 1.0)
    assert (y["num_predicted_ties"], y["pairwise_accuracy"], y["kendall_tau_b"], y["recall@2"]) == (1, 0.0, None, None)
    assert y["log_loss"] == pytest.approx(math.log(2))


# --- a scorer ---


def test_a_scorer_is_measured_by_what_it_scores(scorer: ImageRewardScorer, image_folder: Path) -> None:
    comparisons = read(TINY, image_folder)
    found = evaluate(scorer, comparisons, **FEW)
    rewards = [scorer.score(c.prompt, list(c.images)) for c in comparisons]
    for result, expected in zip(found.per_prompt, rewards, strict=True):
        assert result.rewards == pytest.approx(expected, abs=1e-5)
    assert found.name == "tiny"
    saved = evaluate(rewards, comparisons, **FEW)
    assert found.metrics["kendall_tau_b"] == saved.metrics["kendall_tau_b"]
    # `compare` works in the units the loss was in, which saved rewards do not know
    pairs = [
        scorer.compare(c.prompt, c.images[i], c.images[j]).a_better
        for c in comparisons
        for i in range(len(c.images))
        for j in range(len(c.images))
        if c.ranks[i] < c.ranks[j]
    ]
    assert found.metrics["log_loss"].value == pytest.approx(-np.log(pairs).mean(), abs=1e-5)
    assert found.metrics["log_loss"].value != pytest.approx(saved.metrics["log_loss"].value, abs=1e-4)


def test_an_image_is_encoded_once_however_many_comparisons_it_is_in(
    scorer: ImageRewardScorer, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer.batch_size = 1
    encoded: list[int] = []
    encode = scorer.encode_images
    monkeypatch.setattr(scorer, "encode_images", lambda pixels: (encoded.append(len(pixels)), encode(pixels))[1])
    seen: list[tuple[int, int]] = []
    rewards = score_comparisons(scorer, read(TINY, image_folder), lambda done, total: seen.append((done, total)))
    assert sum(encoded) == 3
    assert [len(values) for values in rewards] == [3, 3, 2]
    assert seen == [(3, 3)]


def test_a_fitted_tie_parameter_is_measured_too(scorer: ImageRewardScorer, image_folder: Path) -> None:
    scorer.tie = TieConfig("rao-kupper", 1.5)
    comparisons = read(TINY, image_folder)
    found = evaluate(scorer, comparisons, **FEW).metrics
    ordered, said = [], []
    for c in comparisons:
        for i in range(len(c.images)):
            for j in range(i):
                preference = scorer.compare(c.prompt, c.images[i], c.images[j])
                if c.ranks[i] == c.ranks[j]:
                    said.append(preference.tie)
                    continue
                right = preference.a_better if c.ranks[i] < c.ranks[j] else preference.b_better
                said.append(right)
                ordered.append(right / (preference.a_better + preference.b_better))
    assert len(said) == 7
    assert found["log_loss_with_ties"].value == pytest.approx(-np.log(said).mean(), abs=1e-5)
    assert found["log_loss"].value == pytest.approx(-np.log(ordered).mean(), abs=1e-5)


def test_long_prompts_are_warned_of_once(scorer: ImageRewardScorer, image_folder: Path) -> None:
    scorer.batch_size = 1
    images = tuple(str(image_folder / f"{name}.png") for name in "abc")
    comparisons = [Comparison(f"{seeded.LONG_PROMPT} {i}", images, (1, 2, 3), id=str(i)) for i in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(scorer, comparisons, **FEW)
    assert [w.category for w in caught] == [LongPromptWarning]
    assert "(3 prompts are cut)" in str(caught[0].message)
    scorer.prepare.tokenizer.long_prompts = "error"
    with pytest.raises(PromptError, match="are not read"):
        evaluate(scorer, comparisons, **FEW)


def test_a_missing_image_is_named(scorer: ImageRewardScorer, image_folder: Path) -> None:
    comparison = Comparison("a cat", (str(image_folder / "a.png"), "gone.png"), (1, 2))
    with pytest.raises(FileNotFoundError, match=r"no such image: gone\.png"):
        evaluate(scorer, [comparison], **FEW)


# --- saved rewards ---

TWO = [ranked(1, 2, name="x"), ranked(2, 1, name="y")]


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        ({"x": [1, 2]}, r"there are no rewards for 1 of 2 prompts: y \('a cat y'\)"),
        ([[1, 2]], "there are rewards for 1 prompts, but 2 comparisons"),
        ([[1, 2], [1]], r"1 prompts have not one reward for each image: y \(1 for 2\)"),
        ({"x": [1, 2], "y": [1, 2, 3]}, r"y \(3 for 2\)"),
        ([[1, 2], [1, math.nan]], "the reward of image 2 of y is nan; rewards must be finite"),
        ([[1, 2], [None, 1]], "the reward of image 1 of y is None"),
        ([[1, 2], ["a", 1]], "the reward of image 1 of y is 'a'"),
    ],
)
def test_rewards_that_miss_prompts_or_images(rewards: Any, problem: str) -> None:
    with pytest.raises(ComparisonError, match=problem):
        evaluate(rewards, TWO, **FEW)


def test_rewards_by_id_may_be_of_more_prompts_than_are_evaluated() -> None:
    assert estimates({"y": [1, 2], "z": [0], "x": [2, 1]}, TWO)["pairwise_accuracy_pooled"] == 1


@pytest.mark.parametrize(
    "content",
    [[[2, 1], [1, 2]], {"x": [2, 1], "y": [1, 2]}, [{"id": "y", "rewards": [1, 2], "prompt": ""}, {"id": "x", "rewards": [2, 1]}]],
)
def test_files_of_rewards(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "rewards.json"
    path.write_text(json.dumps(content))
    assert estimates(read_rewards(path), TWO)["pairwise_accuracy_pooled"] == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2]", "holds no rewards. Looked for: a list of lists"),
        ('{"x": 1}', "holds no rewards"),
        ("3", "holds no rewards"),
        ("[[1,", "is not JSON"),
        ('[{"id": "x", "rewards": [1]}, {"id": "x", "rewards": [2]}]', "twice: 2 rows for 1 ids"),
    ],
)
def test_files_that_hold_no_rewards(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "rewards.json").write_text(text)
    with pytest.raises(ComparisonError, match=problem):
        read_rewards(tmp_path / "rewards.json")
    with pytest.raises(FileNotFoundError, match="no such file of rewards"):
        read_rewards(tmp_path / "none.json")


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no comparisons"):
        evaluate([], [])
    with pytest.raises(ValueError, match=r"ks are integers from 1, not \[0\]"):
        evaluate([[1, 2], [1, 2]], TWO, ks=[0])
