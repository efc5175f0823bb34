from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_reward.evaluation.generators import Benchmark, HumanRanking, Images, Selection, benchmark
from image_reward.evaluation.generators.report import generators_report
from image_reward.prompt_sets import Prompt
from image_reward.reports.document import Cards, Grid, Plot
from image_reward.reports.render import write


def benchmarked(
    num_generators: int, num_prompts: int = 4, num_images: int = 3, scorers: tuple[str, ...] = ("S",), **options: Any
) -> Benchmark:
    names = [f"g{i}" for i in range(num_generators)]
    prompts = [Prompt(f"p{p}", f"prompt <{p}>", "odd" if p % 2 else "even") for p in range(num_prompts)]
    draw = np.random.default_rng(0).normal
    rewards = {s: {g: {p.id: (draw(size=num_images) - i).tolist() for p in prompts} for i, g in enumerate(names)} for s in scorers}
    selection = Selection(prompts, [num_images] * num_prompts, options.pop("left_out", []), options.pop("left_out_images", {}))
    return benchmark(rewards, selection, num_resamples=50, **options)


def grids(blocks: Any) -> dict[str, Grid]:
    return {block.title: block for block in blocks if isinstance(block, Grid)}


def test_tables() -> None:
    human = HumanRanking.of("a poll", {"g0": 3.0, "g1": 2.0})
    result = benchmarked(3, scorers=("S", "T"), human=human, left_out=["p9"], left_out_images={"g1": 2})
    report = generators_report(result)
    assert report.lead.startswith(
        "3 generators, 4 prompts, 3 images of each, scored by S and T. Intervals: bootstrap of prompts, 95 %, 50 re"
    )
    assert report.blocks[0] == (
        "Left out, so that means compare like with like: 1 of 5 prompts, which not all generators have images of (p9); "
        "images for which others have no counterpart (2 of g1)."
    )
    tables = grids(report.blocks)
    overview = tables["Mean reward of each generator, and its rank"]
    assert [row[0] for row in overview.rows] == ["g0", "g1", "g2", "Spearman with human ranking", "Kendall's tau-b with human ranking"]
    assert overview.rows[0][1:] == ["3", *(f"{scorer.generators[0].mean.value:.4f} (1)" for scorer in result.scorers)]
    assert overview.rows[3] == ["Spearman with human ranking", "", "1.00", "1.00"]
    summary = tables["S: generators by mean reward"]
    assert [row[:2] for row in summary.rows] == [["g0", "1"], ["g1", "2"], ["g2", "3"]]
    assert summary.rows[2][-2:] == ["-", "-"]  # no human judged it
    assert "Against the human ranking of 2 generators: Spearman 1.00" in summary.caption
    assert all(len(row) == len(grid.columns) for grid in tables.values() for row in grid.rows)
    rates = tables["S: win rate of the row against the column"]
    assert rates.rows[0][2] == f"{100 * result.scorers[0].win_matrix[0][1]:.1f} %"
    assert [row[0] for row in tables["S: mean reward by category of prompt"].rows] == ["even", "odd"]
    assert len(tables["S: differences of means"].rows) == 3
    assert [column.title for column in tables["S: best of n"].columns] == ["best of", "1", "2", "3"]
    assert "per_prompt" not in report.data


def test_the_answer_names_the_best_and_what_is_not_significant() -> None:
    far = benchmarked(3, num_prompts=30)
    assert generators_report(far).answer.startswith(f"By S, g0 has the highest mean reward ({far.scorers[0].generators[0].mean.value:.4f})")
    [scorer] = far.scorers
    names = [row.b for row in scorer.differences if row.a == "g0"]
    for p_values, ending in (((0.01, 0.01), "significantly above all others."), ((0.01, 0.2), f"not significantly above {names[1]}.")):
        known = dict(zip(names, p_values, strict=True))
        rows = [replace(row, p_holm=known.get(row.b, row.p_holm) if row.a == "g0" else row.p_holm) for row in scorer.differences]
        assert generators_report(replace(far, num_resamples=10_000, scorers=[replace(scorer, differences=rows)])).answer.endswith(
            f", {ending}"
        )
    assert generators_report(benchmarked(1)).answer.startswith("By S, the mean reward of g0 is ")


def test_of_many_generators_neighbours_are_shown() -> None:
    tables = grids(generators_report(benchmarked(12)).blocks)
    differences = tables["S: differences of means"]
    assert len(differences.rows) == 11
    assert differences.caption.startswith("Of 66 pairs, neighbours in the ranking.")
    assert "S: win rate of the row against the column" not in tables


def test_one_generator_with_one_image_of_each_prompt() -> None:
    report = generators_report(benchmarked(1, num_images=1), pictures=False)
    assert report.lead.startswith("1 generator, 4 prompts, 1 image of each,")
    assert report.lead.endswith("With 4 distinct prompts, intervals are too narrow and p-values too small: take at least 20.")
    assert generators_report(benchmarked(1, num_prompts=20)).lead.endswith("seed 0.")
    tables = grids(report.blocks)
    assert list(tables) == ["S: generators by mean reward", "S: mean reward by category of prompt", "S: the best and the worst prompts"]
    assert [column.title for column in tables["S: generators by mean reward"].columns] == [
        "generator",
        "rank",
        "mean",
        "interval",
        "median",
    ]
    assert [column.title for column in tables["S: the best and the worst prompts"].columns] == ["prompt", "mean"]


def test_best_and_worst_prompts_are_told_apart() -> None:
    result = benchmarked(2, num_prompts=8)
    rows = grids(generators_report(result).blocks)["S: the best and the worst prompts"].rows
    means = {p.prompt: np.mean([np.mean(v) for v in p.rewards["S"].values()]) for p in result.per_prompt}
    order = sorted(means, key=lambda prompt: -means[prompt])
    assert [row[0] for row in rows] == order[:3] + order[-3:]
    assert rows[0][1] == f"{means[order[0]]:.4f}"
    few = grids(generators_report(benchmarked(2, num_prompts=4)).blocks)["S: the best and the worst prompts"].rows
    assert len(few) == len({row[0] for row in few}) == 4


def test_pictures(image_folder: Path, tmp_path: Path) -> None:
    paths = [image_folder / f"{name}.png" for name in "abc"]
    images = Images({f"g{i}": {f"p{p}": paths for p in range(4)} for i in range(2)})
    result = benchmarked(2, images=images)
    report = generators_report(result, pictures=True)
    plots = [block for block in report.blocks if isinstance(block, Plot)]
    assert [plot.title for plot in plots] == ["S: how rewards are distributed", "S: win rates", "S: best of n"]
    assert f"Medians: g0 {result.scorers[0].generators[0].median:.2f}" in plots[0].description
    galleries = [block for block in report.blocks if isinstance(block, Cards)]
    assert len(galleries) == 4  # four prompts: three best, one worst
    first = next(p for p in result.per_prompt if p.prompt in galleries[0].title)
    values = first.rewards["S"]["g0"]
    typical = int(np.abs(np.array(values) - np.mean(values)).argmin())
    card = next(card for card in galleries[0].cards if card.title == "g0")
    assert (card.image, card.lines[0]) == (str(paths[typical]), f"reward {values[typical]:.4f}")
    write(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert "prompt &lt;0&gt;" in page
    without = generators_report(benchmarked(2), pictures=True)
    assert not [block for block in without.blocks if isinstance(block, Cards)]
    assert "S: the best and the worst prompts" in grids(without.blocks)


@pytest.mark.parametrize("suffix", ["md", "json"])
def test_written(tmp_path: Path, suffix: str) -> None:
    write(generators_report(benchmarked(2)), tmp_path / f"report.{suffix}")
    assert "g0" in (tmp_path / f"report.{suffix}").read_text()


def test_images_to_choose_from_are_whole() -> None:
    blocks = generators_report(benchmarked(2, num_images=2), pictures=True).blocks
    [plot] = [block for block in blocks if isinstance(block, Plot) and block.title == "S: best of n"]
    low, high = plot.figure.axes[0].get_xlim()
    assert [tick for tick in plot.figure.axes[0].get_xticks() if low <= tick <= high] == [1, 2]


def test_where_no_test_can_find_anything_the_report_says_so() -> None:
    report = generators_report(benchmarked(4, num_prompts=30))
    assert report.lead.endswith("With 50 resamples no p-value of 6 differences can be below 0.235: take at least 239 (--resamples).")
    assert "; whether significantly, too few resamples cannot show." in report.answer
    assert "significantly above the other" in generators_report(benchmarked(2, num_prompts=30)).answer
