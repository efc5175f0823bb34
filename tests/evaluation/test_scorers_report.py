from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from image_reward.evaluation import Evaluation, evaluate
from image_reward.evaluation import scorers as scorers_module
from image_reward.evaluation.published_results import BestAndWorst, HumanAgreement, PublishedAccuracy, PublishedResults, RecallAndFilter
from image_reward.evaluation.scorers_report import scorers_report
from image_reward.evaluation.verdicts import Verdicts
from image_reward.reports.document import Grid, Plot, Report
from image_reward.types import Comparison


def evaluation(scorers: int = 2, **options: Any) -> Evaluation:
    """Perfect, reversed and constant rewards of ten prompts with three images; the first is ranked twice."""
    images = [tuple(f"{i}-{j}.png" for j in range(3)) for i in range(10)]
    comparisons = [Comparison(f"a cat {i}", images[i], (1, 2, 3), id=str(i), category=["pets", ""][i % 2]) for i in range(10)]
    comparisons.append(replace(comparisons[0], ranks=(1, 3, 2), id="again"))
    rewards = {"perfect": [3.0, 2.0, 1.0], "reversed": [1.0, 2.0, 3.0], "constant": [0.0, 0.0, 0.0]}
    chosen = {name: [rewards[name]] * 11 for name in list(rewards)[:scorers]}
    return evaluate(chosen, comparisons, **{"num_resamples": 100} | options)


def grids(report: Report) -> dict[str, Grid]:
    return {block.title: block for block in report.blocks if isinstance(block, Grid)}


def cells(grid: Grid, first: str) -> list[str]:
    [row] = [row for row in grid.rows if row[0] == first]
    assert len(row) == len(grid.columns)
    return list(row[1:])


def test_all_metrics_of_all_scorers_are_in_one_table() -> None:
    report = scorers_report(evaluation(), "mine.jsonl")
    assert report.title == "2 scorers against human rankings"
    assert report.lead.startswith("mine.jsonl: 11 prompts (10 distinct), 33 images, 33 untied and 0 tied pairs. 95 % intervals")
    table = grids(report)["Agreement with the human rankings"]
    assert [column.title for column in table.columns] == ["metric", "perfect", "reversed", "prompts"]
    value, other, num = cells(table, "accuracy, pooled (%)")
    assert value.startswith("96.97 [")
    assert other.startswith("3.03 [")
    assert num == "11"
    assert cells(table, "recall@1 (%)") == ["100.00 [100.00, 100.00]", "0.00 [0.00, 0.00]", "11"]
    assert cells(table, "pairs of equal reward") == ["0", "0", ""]
    assert "a pair of equal reward counts as wrong" in table.caption
    assert report.data["scorers"]["perfect"]["metrics"]["recall@1"]["value"] == 1.0
    json.dumps(report.data, allow_nan=False)


def test_a_metric_that_scorers_have_on_different_prompts_says_so() -> None:
    result = evaluation()
    estimates = result.scorers["reversed"].metrics
    estimates["spearman"] = replace(estimates["spearman"], num_prompts=9)
    table = grids(scorers_report(result, "mine"))["Agreement with the human rankings"]
    assert cells(table, "Spearman's rho")[-1] == "10 / 9"
    assert cells(table, "Kendall's tau-b")[-1] == "10"


def test_the_answer_names_the_best_and_what_is_not_significant() -> None:
    result = evaluation()
    report = scorers_report(result, "mine")
    assert report.answer.startswith("perfect orders 96.97 [")
    assert "% of the pairs of images as the annotators do, reversed 3.03 [" in report.answer
    assert report.answer.endswith(" perfect is significantly better than the other.")
    undecided = replace(result, differences=[replace(row, p_holm=0.3) for row in result.differences])
    assert scorers_report(undecided, "mine").answer.endswith(" perfect is not significantly better than reversed.")
    assert scorers_report(evaluation(1), "mine").answer.endswith("as the annotators do.")


def test_where_no_test_can_find_anything_the_report_says_so() -> None:
    result = evaluation()
    few = replace(result, num_resamples=30, differences=[replace(row, p_holm=0.06) for row in result.differences])
    report = scorers_report(few, "mine")
    assert report.lead.endswith("With 30 resamples no p-value of 1 difference can be below 0.065: take at least 39 (--resamples).")
    assert report.answer.endswith(" Whether perfect is significantly better, too few resamples cannot show.")


def test_few_prompts_are_said_to_be_few() -> None:
    assert scorers_report(evaluation(), "mine").lead.endswith(
        "With 10 distinct prompts, intervals are too narrow and p-values too small: take at least 20."
    )


def test_differences_say_who_is_better() -> None:
    few = grids(scorers_report(evaluation(scorers=3), "mine"))["Differences between scorers"]
    assert [column.title for column in few.columns] == ["scorers", "accuracy", "difference", "p", "corrected", "better"]
    assert len(few.rows) == 6  # three pairs, two accuracies
    scorers, metric, value, p, corrected, better = few.rows[0]
    assert (scorers, metric, p, corrected) == ("perfect - reversed", "pooled", f"{2 / 101:.3f}", f"{6 / 101:.3f}")
    assert value.startswith("+93.94 [+")
    assert better == "not shown"  # of 100 resamples: the p-value cannot be smaller
    assert "corrected by Holm's method for the 3 pairs of scorers, is at most 0.05" in few.caption
    enough = grids(scorers_report(evaluation(num_resamples=1000), "mine"))["Differences between scorers"]
    assert [column.title for column in enough.columns] == ["scorers", "accuracy", "difference", "p", "better"]
    assert [row[-1] for row in enough.rows] == ["perfect", "perfect"]


def test_a_difference_that_is_not_shown_is_not_claimed() -> None:
    random = np.random.default_rng(0)
    comparisons = [Comparison(f"a cat {i}", ("a.png", "b.png"), (1, 2), id=str(i)) for i in range(30)]
    rewards = {name: random.normal(size=(30, 2)).tolist() for name in "ab"}
    table = grids(scorers_report(evaluate(rewards, comparisons, num_resamples=100), "mine"))["Differences between scorers"]
    assert {row[-1] for row in table.rows} == {"not shown"}


def test_best_and_worst_stand_beside_chance() -> None:
    table = grids(scorers_report(evaluation(), "mine"))["Finding the best and the worst image"]
    assert [column.title for column in table.columns] == ["scorer", "recall@1", "recall@2", "filter@1", "filter@2"]  # no prompt has 5
    assert cells(table, "perfect")[:2] == ["100.00", "100.00"]
    assert cells(table, "chance, on these prompts") == ["33.33", "66.67", "33.33", "66.67"]
    assert "Only prompts of more than k images count" in table.caption


def test_groups_agreement_and_annotators() -> None:
    report = scorers_report(evaluation(), "mine")
    tables = grids(report)
    assert cells(tables["Accuracy by prompt length"], "up to 10")[-2:] == ["11", "33"]
    assert cells(tables["Accuracy by prompt category"], "pets")[-2:] == ["6", "18"]
    assert cells(tables["Accuracy by prompt category"], "none given")[0] == "100.00 [100.00, 100.00]"
    same = tables["Agreement: same order (%)"]
    assert cells(same, "human") == ["", "96.97", "3.03"]
    assert cells(same, "perfect") == ["96.97", "", "0.00"]
    assert cells(tables["Agreement: Spearman's rho"], "perfect") == ["0.9750", "", "-1.0000"]  # one prompt of ten is at 0.75
    words = report.blocks[-1]
    assert isinstance(words, str)
    assert words.startswith("Annotators among themselves: 2 rankings of the images of 1 prompt ranked more than once. Two annotators")
    assert "the same order to 66.67 [66.67, 66.67] % of the 3 pairs" in words
    assert "Krippendorff's alpha (ordinal) is 0.583." in words  # by hand: 1 - 16 / 38.4


def test_a_scorer_that_ties_often_is_shown_with_ties_counted_half() -> None:
    report = scorers_report(evaluation(3), "mine")
    table = grids(report)["Agreement with the human rankings"]
    perfect, _, constant, num = cells(table, "accuracy, equal rewards half (%)")
    assert perfect.startswith("96.97 [")
    assert constant == "50.00 [50.00, 50.00]"
    assert num == "11"
    assert [row[0] for row in table.rows][:3] == ["accuracy, pooled (%)", "accuracy, per prompt (%)", "accuracy, equal rewards half (%)"]
    assert cells(table, "accuracy, pooled (%)")[2] == "0.00 [0.00, 0.00]"
    assert "Chance is 50 %, and less for a scorer that ties many pairs (constant), unless they count half." in table.caption
    assert "constant gives equal rewards to 100.0 % of the pairs; counted half they make that 50.00 [50.00, 50.00] %." in report.answer
    few = scorers_report(evaluation(2), "mine")
    assert "counted half" not in few.answer
    assert "Chance is 50 %. In brackets" in grids(few)["Agreement with the human rankings"].caption


def judged() -> tuple[Report, Evaluation]:
    comparisons = [Comparison(f"a cat {i}", (f"{i}-1.png", f"{i}-2.png"), [(1, 2), (1, 1)][i % 2], id=str(i)) for i in range(20)]
    comparisons = [replace(c, both_bad=i % 4 == 1) for i, c in enumerate(comparisons)]
    labels = Verdicts(["A>B"] * 20, ["B>A", "A>B"] * 10)
    result = evaluate({"judge": labels, "rewards": [[0.25, 0.0]] * 20}, comparisons, num_resamples=100)
    return scorers_report(result, "votes"), result


def test_verdicts_stand_beside_rewards() -> None:
    report, _ = judged()
    assert "10 untied and 10 tied pairs (5 of which were found both bad)." in report.lead
    table = grids(report)["Agreement with the human rankings"]
    assert cells(table, "same label of four (%)")[0].startswith("50.00 [")
    assert cells(table, "same label of four (%)")[1] == "-"
    assert cells(table, "verdicts that flip (%)")[0].startswith("50.00 [")
    assert cells(table, "first shown preferred (%)")[0].startswith("50.00 [")
    assert cells(table, "accuracy, ties calibrated (%)")[0] == "100.00 [100.00, 100.00]"
    assert cells(table, "accuracy, ties calibrated (%)")[1].startswith("50.00 [")
    assert "rewards are tied that differ by at most what suits these data best (judge 0, rewards 0)" in table.caption
    assert cells(table, "log loss")[0] == "-"
    assert "Over all images, not grouped by prompt" not in grids(report)


def test_verdicts_have_no_place_in_a_plot_of_probabilities() -> None:
    _, result = judged()
    plots = {block.title: block for block in scorers_report(result, "votes", plots=True).blocks if isinstance(block, Plot)}
    assert "rewards errs by" in plots["Calibration"].description
    assert "judge" not in plots["Calibration"].description
    alone = replace(result, scorers={"judge": result.scorers["judge"]})
    assert "Calibration" not in {block.title for block in scorers_report(alone, "votes", plots=True).blocks if isinstance(block, Plot)}


def test_ratings_have_a_table_over_all_images() -> None:
    comparisons = [Comparison(f"a cat {i}", (f"{i}-1.png", f"{i}-2.png"), (1, 2), id=str(i), ratings=(4.0 + i, i)) for i in range(5)]
    rewards = {"right": [[4.0 + i, i] for i in range(5)], "wrong": [[-4.0 - i, -i] for i in range(5)]}
    table = grids(scorers_report(evaluate(rewards, comparisons, num_resamples=10), "mos"))["Over all images, not grouped by prompt"]
    assert [column.title for column in table.columns] == ["metric", "right", "wrong"]
    assert cells(table, "Pearson's r") == ["1.0000", "-1.0000"]
    assert cells(table, "Kendall's tau-b") == ["1.0000", "-1.0000"]
    assert cells(table, "accuracy, ties calibrated (%)")[0] == "100.00"
    assert "10 images" in table.caption


def test_one_scorer_needs_no_comparison_of_scorers() -> None:
    report = scorers_report(evaluation(scorers=1), "mine")
    assert report.title == "perfect against human rankings"
    assert set(grids(report)) == {
        "Agreement with the human rankings",
        "Finding the best and the worst image",
        "Accuracy by prompt length",
        "Accuracy by prompt category",
    }


def test_published_numbers_stand_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    published = PublishedResults(
        name="Some test",
        human=[HumanAgreement("one annotator with another", 65.3, "Someone 2023")],
        best_and_worst=BestAndWorst("Someone 2023", "other prompts", [RecallAndFilter("CLIP", {1: 27.22}, {1: 29.65, 2: 51.75})]),
        accuracies=[
            PublishedAccuracy("Perfect", 65.1, "Someone 2023", "perfect"),
            PublishedAccuracy("CLIP", 54.82, "Someone 2023", None),
        ],
        sources={"Someone 2023": "arXiv 1234.56789"},
    )
    monkeypatch.setattr(scorers_module, "published_results", lambda *_: published)
    report = scorers_report(evaluation(), "mine")
    assert "mine, which is the Some test split as published" in report.lead
    table = grids(report)["Published for Some test"]
    accuracy, pooled, per_prompt, source = cells(table, "Perfect, here perfect")
    assert (accuracy, source) == ("65.1", "Someone 2023")
    assert pooled.startswith("96.97 [")
    assert per_prompt.startswith("98.33 [")
    assert cells(table, "CLIP") == ["54.82", "-", "-", "Someone 2023"]
    assert cells(table, "one annotator with another") == ["65.3", "-", "-", "Someone 2023"]
    assert table.strong == {0}
    assert table.caption.endswith("Someone 2023: arXiv 1234.56789.")
    best = grids(report)["Finding the best and the worst image"]
    assert cells(best, "CLIP, published") == ["27.22", "-", "29.65", "51.75"]
    assert "compare them with each other, not with those above" in best.caption


def test_published_numbers_that_say_how_ties_count_stand_beside_the_same_of_ours() -> None:
    _, result = judged()
    rows = [
        PublishedAccuracy("Judge", 70.9, "Someone 2023", "judge", "diff"),
        PublishedAccuracy("Judge", 54.8, "Someone 2023", "judge", "tau"),
        PublishedAccuracy("Judge", 45.6, "Someone 2023", "judge", "labels"),
        PublishedAccuracy("HPSv2", 51.6, "Someone 2023", None, "tau"),
    ]
    published = PublishedResults("Votes", [], None, rows, {"Someone 2023": "arXiv 1234.56789"})
    table = grids(scorers_report(replace(result, published=published), "mine"))["Published for Votes"]
    assert [column.title for column in table.columns] == ["scorer", "accuracy", "published", "here", "source"]
    assert [row[1] for row in table.rows[:3]] == ["ordered pairs (diff)", "ties calibrated (tau)", "label of four"]
    assert [row[3].split(" [")[0] for row in table.rows] == ["100.00", "100.00", "50.00", "-"]


def test_plots_hold_what_they_say() -> None:
    report = scorers_report(evaluation(), "mine", plots=True)
    plots = {block.title: block for block in report.blocks if isinstance(block, Plot)}
    assert list(plots) == [
        "Accuracy",
        "Accuracy by prompt length, drawn",
        "Accuracy by prompt category, drawn",
        "Calibration",
        "Same order, drawn",
    ]
    [axes] = plots["Accuracy"].figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["perfect", "reversed"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert dots[0].get_xdata() == pytest.approx([100 * 32 / 33, 100 / 33])
    assert any(list(line.get_xdata()) == [50, 50] for line in axes.lines)  # chance
    assert "perfect 96.97 [" in plots["Accuracy"].description
    [axes] = plots["Accuracy by prompt category, drawn"].figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["none given", "pets"]
    [axes] = plots["Calibration"].figure.axes
    sure = 100 / (1 + np.exp(-1)), 100 / (1 + np.exp(-2))  # rewards 1 and 2 apart
    assert axes.lines[1].get_xdata() == pytest.approx(sure)
    assert axes.lines[1].get_ydata() == pytest.approx([100 * 21 / 22, 100])
    [axes] = plots["Same order, drawn"].figure.axes
    assert [text.get_text() for text in axes.texts] == ["–", "97.0", "3.0", "97.0", "–", "0.0", "3.0", "0.0", "–"]


def test_tables_need_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert scorers_report(evaluation(), "mine").blocks
