from __future__ import annotations

import json
import math
import warnings
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.parquet import read_table
from scipy import stats
from sklearn.metrics import log_loss as sklearn_log_loss

import judges
import seeded
import shared
from image_reward import LongPromptWarning, PromptError, load, metrics
from image_reward.comparisons import read
from image_reward.config import TieConfig
from image_reward.errors import ComparisonError, RewardError
from image_reward.evaluation import Evaluation, evaluate, score_comparisons, write_per_prompt
from image_reward.evaluation.scorers import Measured
from image_reward.evaluation.scorers_report import scorers_report
from image_reward.evaluation.verdicts import Verdicts
from image_reward.scorers import ImageRewardScorer
from image_reward.types import Comparison
from refusing import Refusing

TINY = Path(__file__).parents[1] / "data" / "comparisons_tiny.json"
FEW = {"num_resamples": 200}


def ranked(*ranks: int, name: str = "", prompt: str = "") -> Comparison:
    return Comparison(prompt or f"a cat {name}", tuple(f"{i}.png" for i in range(len(ranks))), ranks, id=name)


def evaluated(rewards: Any, comparisons: list[Comparison], **options: Any) -> tuple[Evaluation, Measured]:
    """The evaluation of one scorer, or its saved rewards, and what it reached."""
    found = evaluate({"x": rewards}, comparisons, **FEW | options)
    return found, found.scorers["x"]


def estimates(rewards: Any, comparisons: list[Comparison], **options: Any) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in evaluated(rewards, comparisons, **options)[1].metrics.items()}


# --- counts and metrics ---


def test_counts_of_a_small_file(image_folder: Path) -> None:
    found, measured = evaluated([[0.3, 0.2, 0.1], [0.1, 0.1, 0.5], [0.0, 0.0]], read(TINY, image_folder))
    assert (found.num_prompts, found.num_distinct_prompts, found.num_images) == (3, 2, 8)
    assert (found.num_untied_pairs, found.num_tied_pairs, measured.num_predicted_ties) == (6, 1, 1)
    assert measured.metrics["pairwise_accuracy_pooled"].value == pytest.approx(5 / 6)
    assert measured.metrics["pairwise_accuracy_per_prompt"].value == pytest.approx((1 + 2 / 3) / 2)  # two rankings are of one prompt
    assert measured.metrics["pairwise_accuracy_per_prompt"].num_prompts == 2
    assert found.treatment_of_ties == "pairs that the annotators tied are left out; a pair of equal reward counts as wrong"


@pytest.fixture(scope="module")
def published() -> list[Comparison]:
    return read(shared.published_test_split())


def test_counts_of_the_published_test_split(published: list[Comparison]) -> None:
    found, measured = evaluated([[-rank for rank in c.ranks] for c in published], published)
    assert (found.num_prompts, found.num_images, found.num_untied_pairs, found.num_tied_pairs) == (466, 2720, 6399, 831)
    for name in ("pairwise_accuracy_pooled", "pairwise_accuracy_per_prompt", "recall@1", "filter@1", "kendall_tau_b", "spearman"):
        assert measured.metrics[name].value == pytest.approx(1), name
    assert measured.metrics["recall@4"].num_prompts == 466 - 194  # of 4 images the 4 best are known


def test_random_rewards_are_at_chance_and_the_interval_says_so(published: list[Comparison]) -> None:
    random = np.random.default_rng(0)
    measured = evaluated([random.normal(size=len(c.images)).tolist() for c in published], published, num_resamples=1000)[1]
    for name in ("pairwise_accuracy_pooled", "pairwise_accuracy_per_prompt"):
        estimate = measured.metrics[name]
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
    assert "recall@4" not in found  # which no prompt here could have


def test_per_prompt_is_per_prompt_however_often_it_was_ranked() -> None:
    """Against a loop over prompts, with its bootstrap."""
    random = np.random.default_rng(0)
    comparisons = [ranked(*(random.permutation(3) + 1).tolist(), name=str(i), prompt=f"a cat {i % 5 % 3}") for i in range(20)]
    rewards = random.normal(size=(20, 3)).tolist()
    right: dict[str, list[bool]] = {}
    taus: dict[str, list[float]] = {}
    for c, values in zip(comparisons, rewards, strict=True):
        for i in range(3):
            for j in range(3):
                if c.ranks[i] < c.ranks[j]:
                    right.setdefault(c.prompt, []).append(values[i] > values[j])
        taus.setdefault(c.prompt, []).append(stats.kendalltau(values, [-rank for rank in c.ranks]).statistic)
    found = evaluated(rewards, comparisons)[1].metrics
    for metric, by_prompt in (("pairwise_accuracy_per_prompt", right), ("kendall_tau_b", taus)):
        means = [np.mean(values) for values in by_prompt.values()]
        assert found[metric].value == pytest.approx(np.mean(means))
        assert found[metric].num_prompts == 3
        low, high = metrics.interval(metrics.bootstrap(means, groups=list(by_prompt), num_resamples=200))
        assert (found[metric].low, found[metric].high) == pytest.approx((low, high))


# --- ties ---


def tied(num: int = 40, step: float = 0.5) -> tuple[list[list[float]], list[Comparison]]:
    """Pairs that are tied in a third of the cases, and rewards in steps."""
    random = np.random.default_rng(0)
    ranks = [((1, 2), (2, 1), (1, 1))[i % 3] for i in range(num)]
    rewards = [[float(np.round((random.normal() - rank) / step) * step) for rank in pair] for pair in ranks]
    return rewards, [ranked(*pair, name=str(i)) for i, pair in enumerate(ranks)]


def test_ties_are_calibrated_and_an_answer_where_the_annotators_tie() -> None:
    rewards, comparisons = tied()
    outcomes = [int(np.sign(c.ranks[1] - c.ranks[0])) for c in comparisons]
    found, measured = evaluated(rewards, comparisons)
    tried = {}
    for threshold in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        answers = [0 if abs(a - b) <= threshold else int(np.sign(a - b)) for a, b in rewards]
        tried[threshold] = np.mean([answer == outcome for answer, outcome in zip(answers, outcomes, strict=True)])
    estimate = measured.metrics["pairwise_accuracy_ties_calibrated"]
    assert estimate.value == pytest.approx(max(tried.values()))
    assert tried[measured.tie_threshold] == pytest.approx(estimate.value)  # type: ignore[index]
    assert estimate.low < estimate.value < estimate.high  # type: ignore[operator]
    assert measured.metrics["pairwise_accuracy_ties_answered"].value == pytest.approx(tried[0.0])  # it ties many
    assert estimates(rewards, comparisons, human_ties="answer")["pairwise_accuracy_pooled"] == pytest.approx(tried[0.0])
    assert found.scorers["x"].num_predicted_ties > 1
    diff = [a > b if outcome > 0 else a < b for (a, b), outcome in zip(rewards, outcomes, strict=True) if outcome]
    assert measured.metrics["pairwise_accuracy_pooled"].value == pytest.approx(np.mean(diff))


def test_half_stands_beside_wrong_only_for_a_scorer_that_ties_often() -> None:
    rewards, comparisons = tied()
    rare = [[a + 1e-9 * i, b] for i, (a, b) in enumerate(rewards)]
    found = estimates(rewards, comparisons)
    assert found["pairwise_accuracy_ties_half"] == estimates(rewards, comparisons, predicted_ties="half")["pairwise_accuracy_pooled"]
    assert found["pairwise_accuracy_ties_half"] > found["pairwise_accuracy_pooled"]  # type: ignore[operator]
    assert "pairwise_accuracy_ties_half" not in estimates(rare, comparisons)
    assert "pairwise_accuracy_ties_answered" not in estimates(rare, comparisons)
    assert "pairwise_accuracy_ties_half" not in estimates(rewards, comparisons, predicted_ties="excluded")
    untied, untied_rewards = zip(*[(c, r) for c, r in zip(comparisons, rewards, strict=True) if c.ranks != (1, 1)], strict=True)
    measured = evaluated(list(untied_rewards), list(untied))[1]
    assert measured.tie_threshold is None
    assert "pairwise_accuracy_ties_calibrated" not in measured.metrics


# --- ratings ---


def rated(num: int = 30) -> tuple[list[list[float]], list[Comparison]]:
    """Two raters of the three images of each prompt."""
    random = np.random.default_rng(0)
    comparisons, rewards = [], []
    for i in range(num):
        scored = random.normal(size=3).round(1).tolist()
        for rater in "ab":
            ratings = random.integers(1, 6, size=3)
            ranks = [1 + int((ratings > rating).sum()) for rating in ratings]
            images = tuple(f"{i}-{j}.png" for j in range(3))
            comparisons.append(Comparison(f"a cat {i}", images, tuple(ranks), id=f"{i}/{rater}", ratings=tuple(ratings.tolist())))
            rewards.append(scored)
    return rewards, comparisons


def test_ratings_are_compared_over_all_images() -> None:
    rewards, comparisons = rated()
    over = evaluated(rewards, comparisons)[1].over_images
    assert over is not None
    values = [value for row in rewards[::2] for value in row]
    means = [
        (a + b) / 2 for x, y in zip(comparisons[::2], comparisons[1::2], strict=True) for a, b in zip(x.ratings, y.ratings, strict=True)
    ]
    assert over.num_images == len(values) == 90
    assert over.pearson == pytest.approx(stats.pearsonr(values, means).statistic)
    assert over.kendall_tau_b == pytest.approx(stats.kendalltau(values, means).statistic)
    assert over.spearman == pytest.approx(stats.spearmanr(values, means).statistic)
    right = tied = 0
    for i in range(90):
        for j in range(i):
            answer = 0 if abs(values[i] - values[j]) <= over.tie_threshold + 1e-9 else np.sign(values[i] - values[j])  # type: ignore[operator]
            right += answer == np.sign(means[i] - means[j])
            tied += means[i] == means[j]
    assert over.accuracy_ties_calibrated == pytest.approx(right / (90 * 89 / 2), abs=2e-3)
    assert over.accuracy_ties_calibrated >= tied / (90 * 89 / 2)  # type: ignore[operator]
    assert evaluated(rewards[1:], [replace(comparisons[1], ratings=()), *comparisons[2:]])[1].over_images is None


def test_ratings_that_cannot_be_compared_over_all_images() -> None:
    once = Comparison("p", ("1.png", "2.png"), (1, 2), id="one", ratings=(2.0, 1.0))
    same = replace(once, images=("1.png", "1.png"))
    assert evaluated([[1.0, 0.0]], [same])[1].over_images is None
    for ratings in ((math.nan, 1.0), (math.inf, 1.0), (1.0,)):
        with pytest.raises(ComparisonError, match="the ratings of one must be one finite number for each image"):
            evaluated([[1.0, 0.0]], [replace(once, ratings=ratings)])


# --- verdicts ---


def test_verdicts_are_measured_by_labels_and_position() -> None:
    ranks, bad = [(1, 2), (2, 1), (1, 1), (1, 1), (1, 2)], [False, False, False, True, False]
    comparisons = [replace(ranked(*pair, name=str(i)), both_bad=b) for i, (pair, b) in enumerate(zip(ranks, bad, strict=True))]
    labels, swapped = ["A>B", "A>B", "A=B=Good", "A=B=Good", "A>B"], ["B>A", "A>B", "A=B=Bad", "B>A", "A>B"]
    found, measured = evaluated(Verdicts(labels, swapped), comparisons)
    assert found.num_both_bad == 1
    assert [row.rewards for row in measured.per_prompt] == [[0.5, -0.5], [0.0, 0.0], [0.0, 0.0], [0.25, -0.25], [0.0, 0.0]]
    expected = {"label_match": 3 / 5, "verdicts_flipped": 3 / 5, "first_shown_preferred": 2 / 5, "second_shown_preferred": 0.0}
    assert {name: measured.metrics[name].value for name in expected} == pytest.approx(expected)
    assert measured.metrics["pairwise_accuracy_pooled"].value == pytest.approx(1 / 3)
    assert measured.metrics["pairwise_accuracy_ties_half"].value == pytest.approx(2 / 3)
    assert measured.metrics["log_loss"].value is None  # a verdict is no probability
    assert measured.metrics["expected_calibration_error"].value is None
    json.dumps(found.as_dict(), allow_nan=False)
    one_order = evaluated(Verdicts(["A>B", "A>B", "A=B", "A=B", "A>B"]), comparisons)[1]
    assert not {"label_match", "verdicts_flipped"} & set(one_order.metrics)
    assert one_order.metrics["pairwise_accuracy_ties_answered"].value == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        ({}, 1 / 3, "a pair of equal reward counts as wrong"),
        ({"predicted_ties": "half"}, 1.5 / 3, "a pair of equal reward counts half"),
        ({"predicted_ties": "excluded"}, 1 / 2, "pairs of equal reward are left out"),
        ({"human_ties": "half"}, 2.5 / 6, "pairs that the annotators tied count half, whatever the scorer says"),
        ({"human_ties": "answer"}, 1 / 6, "pairs that the annotators tied are right where the scorer ties them too"),
    ],
)
def test_ties_are_treated_as_told_and_that_is_said(options: dict[str, Any], expected: float, words: str) -> None:
    comparisons, rewards = [ranked(1, 1, 1, 2, name="x")], [[0.9, 0.5, 0.1, 0.5]]
    assert estimates(rewards, comparisons, **options)["pairwise_accuracy_pooled"] == pytest.approx(expected)
    assert words in evaluated(rewards, comparisons, **options)[0].treatment_of_ties


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
    found, measured = evaluated(rewards, comparisons)
    assert measured.metrics["log_loss"].value == pytest.approx(sklearn_log_loss(truth, predicted))
    assert sum(b.num for b in measured.calibration) == found.num_untied_pairs == len(truth)
    sure = [(max(p, 1 - p), (p > 0.5) == t) for p, t in zip(predicted, truth, strict=True)]
    error = 0.0
    for k in range(10):
        inside = [(p, right) for p, right in sure if 0.5 + 0.05 * k < p <= 0.55 + 0.05 * k]
        error += abs(sum(p for p, _ in inside) - sum(right for _, right in inside)) / len(sure)
    assert measured.metrics["expected_calibration_error"].value == pytest.approx(error)
    assert measured.metrics["expected_calibration_error"].low is None


def test_rankings_of_one_prompt_are_resampled_together() -> None:
    random = np.random.default_rng(0)
    rewards = [random.normal(size=4).tolist() for _ in range(60)]
    apart = evaluated(rewards, [ranked(1, 2, 3, 4, name=str(i)) for i in range(60)])[1].metrics["pairwise_accuracy_pooled"]
    # the same ones, but six rankings each of ten prompts, which agree with each other
    rewards = [rewards[i // 6] for i in range(60)]
    together, measured = evaluated(rewards, [ranked(1, 2, 3, 4, name=str(i), prompt=f"a cat {i // 6}") for i in range(60)])
    wide = measured.metrics["pairwise_accuracy_pooled"]
    assert wide.high - wide.low > 1.5 * (apart.high - apart.low)  # type: ignore[operator]
    assert together.num_distinct_prompts == 10


def test_undefined_metrics_are_none_and_json_is_whole() -> None:
    found, measured = evaluated([[0.1, 0.1], [2, 2]], [ranked(2, 2, name="x"), ranked(1, 2, name="y")], predicted_ties="excluded")
    assert measured.metrics["pairwise_accuracy_pooled"].value is None
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["scorers"]["x"]["metrics"]["spearman"] == {"value": None, "low": None, "high": None, "num_prompts": 0}
    assert "per_prompt" not in json.loads(text)["scorers"]["x"]


def test_results_per_prompt_as_parquet(tmp_path: Path) -> None:
    comparisons = [ranked(1, 2, 2, name="x"), ranked(2, 1, name="y")]
    rewards = [[0.9, 0.1, 0.5], [0.3, 0.3]]
    found = evaluate({"one": rewards, "two": [[-v for v in values] for values in rewards]}, comparisons, ks=(1, 2), **FEW)
    write_per_prompt(found, tmp_path / "prompts.parquet")
    x, other, y, _ = read_table(tmp_path / "prompts.parquet").to_pylist()
    assert (x["scorer"], other["scorer"], other["id"], other["pairwise_accuracy"]) == ("one", "two", "x", 0.0)
    assert (x["num_tokens"], x["category"]) == (5, "")  # [CLS] a cat x [SEP]
    assert (x["id"], x["prompt"], x["rewards"], x["ranks"]) == ("x", "a cat x", [0.9, 0.1, 0.5], [1, 2, 2])
    assert (x["num_untied_pairs"], x["num_tied_pairs"], x["pairwise_accuracy"]) == (2, 1, 1.0)
    assert (x["recall@1"], x["recall@2"], x["filter@1"]) == (1.0, 1.0, 1.0)
    assert (y["num_predicted_ties"], y["pairwise_accuracy"], y["kendall_tau_b"], y["recall@2"]) == (1, 0.0, None, None)
    assert y["log_loss"] == pytest.approx(math.log(2))


# --- a scorer ---


def test_a_scorer_is_measured_by_what_it_scores(scorer: ImageRewardScorer, image_folder: Path) -> None:
    comparisons = read(TINY, image_folder)
    found = evaluated(scorer, comparisons)[1]
    rewards = [scorer.score(c.prompt, list(c.images)) for c in comparisons]
    for result, expected in zip(found.per_prompt, rewards, strict=True):
        assert result.rewards == pytest.approx(expected, abs=1e-5)
    saved = evaluated(rewards, comparisons)[1]
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


def test_a_scorer_that_compares_in_a_question_of_its_own_has_no_probabilities(tmp_path: Path, image_folder: Path) -> None:
    judge = load(judges.write(tmp_path / "judge", judges.SCORES), "cpu", "float32")
    judged = estimates(judge, read(TINY, image_folder))
    assert judged["pairwise_accuracy_pooled"] is not None
    assert (judged["log_loss"], judged["expected_calibration_error"]) == (None, None)


def _shades(*prompts: str) -> list[Comparison]:
    """A pair for each prompt, the brighter image first."""
    light, dark = (np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (200, 20))
    return [Comparison(prompt, (light, dark), (1, 2), id=prompt) for prompt in prompts]


def test_comparisons_that_a_scorer_refuses_are_left_out_for_all_scorers() -> None:
    comparisons = _shades("a", "b", "c", "d")
    rewards = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    verdicts = Verdicts(["A>B", "B>A", "A>B", "A>B"], ["B>A", "A>B", "B>A", "A>B"])
    found = evaluate({"judge": Refusing("b", "c"), "saved": rewards, "verdicts": verdicts}, comparisons, **FEW)
    accuracies = [measured.metrics["pairwise_accuracy_pooled"].value for measured in found.scorers.values()]
    assert accuracies == [1.0, 0.5, 0.5]
    assert found.scorers["verdicts"].metrics["verdicts_flipped"].value == 0.5
    assert found.num_prompts == 2
    assert found.refused is not None
    assert found.refused.ids == ["b", "c"]
    said = str(found.refused)
    assert said.startswith("2 comparisons with an image without a reward are left out, for all scorers: b, c. The first: ")
    assert said.endswith("the answer 'well' states no score")
    assert said in scorers_report(found, "data").lead
    assert found.as_dict()["refused"]["ids"] == ["b", "c"]
    assert evaluate({"judge": Refusing()}, comparisons, **FEW).refused is None


@pytest.mark.parametrize("refused", ["bcd", "abcd"])
def test_too_many_refused_comparisons_are_an_error(refused: str) -> None:
    problem = rf"{len(refused)} of 4 comparisons have an image without a reward, .* The first is {refused[0]}: .*states no score"
    with pytest.raises(RewardError, match=problem):
        evaluate({"judge": Refusing(*refused)}, _shades("a", "b", "c", "d"), **FEW)


def test_an_image_is_encoded_once_however_many_comparisons_it_is_in(
    scorer: ImageRewardScorer, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer.batch_size = 1
    encoded: list[int] = []
    encode = scorer.encode_images
    monkeypatch.setattr(scorer, "encode_images", lambda pixels: (encoded.append(len(pixels)), encode(pixels))[1])
    seen: list[tuple[int, int]] = []
    [rewards, again] = score_comparisons([scorer, scorer], read(TINY, image_folder), lambda done, total: seen.append((done, total)))
    assert sum(encoded) == 3
    assert [len(values) for values in rewards] == [3, 3, 2]
    assert seen == [(3, 3)]
    assert again == rewards


def test_a_fitted_tie_parameter_is_measured_too(scorer: ImageRewardScorer, image_folder: Path) -> None:
    scorer.tie = TieConfig("rao-kupper", 1.5)
    comparisons = read(TINY, image_folder)
    found = evaluated(scorer, comparisons)[1].metrics
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
    answered = []
    for c in comparisons:
        for i in range(len(c.images)):
            for j in range(i):
                preference = scorer.compare(c.prompt, c.images[i], c.images[j])
                chances = {1: preference.a_better, 0: preference.tie, -1: preference.b_better}
                answered.append(max(chances, key=chances.__getitem__) == np.sign(c.ranks[j] - c.ranks[i]))
    assert found["pairwise_accuracy_ties_answered"].value == pytest.approx(np.mean(answered))


def test_long_prompts_are_warned_of_once(scorer: ImageRewardScorer, image_folder: Path) -> None:
    scorer.batch_size = 1
    images = tuple(str(image_folder / f"{name}.png") for name in "abc")
    comparisons = [Comparison(f"{seeded.LONG_PROMPT} {i}", images, (1, 2, 3), id=str(i)) for i in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluated(scorer, comparisons)
    assert [w.category for w in caught] == [LongPromptWarning]
    assert "(3 prompts are cut)" in str(caught[0].message)
    scorer.prepare.tokenizer.long_prompts = "error"
    with pytest.raises(PromptError, match="are not read"):
        evaluated(scorer, comparisons)


def test_a_missing_image_is_named(scorer: ImageRewardScorer, image_folder: Path) -> None:
    comparison = Comparison("a cat", (str(image_folder / "a.png"), "gone.png"), (1, 2))
    with pytest.raises(FileNotFoundError, match=r"no such image: gone\.png"):
        evaluated(scorer, [comparison])


# --- several scorers ---


def several(num: int = 60, seed: int = 0) -> tuple[dict[str, list[list[float]]], list[Comparison]]:
    """Eight images ranked for each prompt; scorers from perfect to random."""
    random = np.random.default_rng(seed)
    comparisons = [ranked(*(random.permutation(8) + 1).tolist(), name=str(i)) for i in range(num)]
    noises = {"good": 1.0, "fair": 4.0, "random": 1e6}
    return {
        name: [(random.normal(scale=noise, size=8) - np.array(c.ranks)).tolist() for c in comparisons] for name, noise in noises.items()
    }, comparisons


def test_each_of_several_is_measured_as_if_alone() -> None:
    rewards, comparisons = several()
    together = evaluate(rewards, comparisons, **FEW)
    for name, values in rewards.items():
        alone = evaluate({name: values}, comparisons, **FEW)
        for metric, estimate in together.scorers[name].metrics.items():  # the intervals too: the draws are the same
            assert astuple(estimate) == pytest.approx(astuple(alone.scorers[name].metrics[metric])), metric
        assert together.scorers[name].per_prompt == alone.scorers[name].per_prompt


def test_differences_are_those_of_the_paired_bootstrap() -> None:
    rewards, comparisons = several()
    found = evaluate(rewards, comparisons, num_resamples=500, seed=3)
    accuracies = {name: [r.pairwise_accuracy for r in measured.per_prompt] for name, measured in found.scorers.items()}
    keys = [c.prompt for c in comparisons]
    rows = [row for row in found.differences if row.metric == "pairwise_accuracy_per_prompt"]
    assert [(row.a, row.b) for row in rows] == [("good", "fair"), ("good", "random"), ("fair", "random")]
    for row in rows:
        apart = np.array(accuracies[row.a]) - np.array(accuracies[row.b])  # the difference of means is the mean of differences
        samples = metrics.bootstrap(apart, groups=keys, num_resamples=500, seed=3)
        expected = (apart.mean(), *metrics.interval(samples), metrics.two_sided_p(samples))
        assert (row.value, row.low, row.high, row.p_value) == pytest.approx(expected)
    assert [row.p_holm for row in rows] == metrics.holm([row.p_value for row in rows])
    assert rows[0].low > 0
    assert len(found.differences) == 6


def test_rewards_at_random_find_the_best_of_eight_in_k_of_eight() -> None:
    rewards, comparisons = several(num=300, seed=1)
    found = evaluate(rewards, comparisons, num_resamples=1000)
    for what in ("recall", "filter"):
        for k in (1, 2, 4):
            estimate = found.scorers["random"].metrics[f"{what}@{k}"]
            assert found.chance[f"{what}@{k}"] == pytest.approx(k / 8)
            assert estimate.low < k / 8 < estimate.high  # type: ignore[operator]
            assert estimate.num_prompts == 300
            assert found.scorers["good"].metrics[f"{what}@{k}"].low > k / 8  # type: ignore[operator]


def test_accuracy_by_length_and_category() -> None:
    words = {"up to 10": 8, "11 to 20": 9, "21 to 35": 33, "over 35, cut by BLIP": 34}  # and [CLS] and [SEP]
    comparisons = [
        replace(ranked(1, 2, 3, name=f"{i}{name}", prompt=f"{'cat ' * num}"), category="pets" if i else "")
        for i in range(2)
        for name, num in words.items()
    ]
    perfect, reverse = [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    rewards = [perfect, reverse, perfect, reverse, perfect, perfect, perfect, reverse]
    found, _ = evaluated(rewards, comparisons)
    assert [(g.name, g.num_prompts, g.num_untied_pairs, g.accuracies["x"].value) for g in found.by_length] == [
        ("up to 10", 2, 6, 1.0),
        ("11 to 20", 2, 6, 0.5),
        ("21 to 35", 2, 6, 1.0),
        ("over 35, cut by BLIP", 2, 6, 0.0),
    ]
    assert [(g.name, g.num_prompts, g.accuracies["x"].value) for g in found.by_category] == [("none given", 4, 0.5), ("pets", 4, 0.75)]
    assert found.by_category[0].accuracies["x"].num_prompts == 4
    assert found.by_category[0].accuracies["x"].low is not None


def test_the_intervals_of_groups_are_those_of_the_group_resampled() -> None:
    rewards, comparisons = several(num=400)
    comparisons = [replace(c, category="ab"[i % 2]) for i, c in enumerate(comparisons)]
    group = evaluate({"fair": rewards["fair"]}, comparisons, num_resamples=2000).by_category[0].accuracies["fair"]
    alone = evaluate({"fair": rewards["fair"][::2]}, comparisons[::2], num_resamples=2000).scorers["fair"].metrics
    expected = alone["pairwise_accuracy_pooled"]
    assert group.value == expected.value
    assert (group.low, group.high) == pytest.approx((expected.low, expected.high), abs=3e-3)


# --- what cannot be evaluated ---

TWO = [ranked(1, 2, name="x"), ranked(2, 1, name="y")]


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no comparisons"):
        evaluate({"x": []}, [])
    with pytest.raises(ValueError, match="no scorers"):
        evaluate({}, TWO)
    with pytest.raises(ValueError, match=r"ks are integers from 1, not \[0\]"):
        evaluated([[1, 2], [1, 2]], TWO, ks=[0])
    with pytest.raises(ValueError, match=r"no prompt has more than 2 images, which recall@2 needs; the most here are 2, so choose k below"):
        evaluated([[1, 2], [1, 2]], TWO, ks=[1, 2])
    with pytest.raises(ComparisonError, match="every pair of images is tied, so"):
        evaluated([[1, 2]], [ranked(2, 2, name="x")])
    with pytest.raises(ComparisonError, match="the id 'x' is used twice; give each comparison an id of its own"):
        evaluated([[1, 2], [1, 2]], [TWO[0], TWO[0]])
    with pytest.raises(ComparisonError, match=r"^x: the reward of image 2 of y is nan"):
        evaluated([[1, 2], [1, math.nan]], TWO)


def test_no_scorer_can_be_called_what_the_human_rankings_are_called() -> None:
    with pytest.raises(ValueError, match="a scorer cannot be called 'human'"):
        evaluate({"human": [[1.0, 0.0]]}, [Comparison("a cat", ("a.png", "b.png"), (1, 2))])
