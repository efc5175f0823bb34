from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

import shared
from image_reward.comparisons import read, write_pick_a_pic
from image_reward.evaluation import evaluate
from image_reward.evaluation import published_results as module
from image_reward.evaluation.published_results import fingerprint, published_results
from image_reward.evaluation.scorers_report import scorers_report
from image_reward.reports.document import Grid
from image_reward.types import Comparison


def test_the_published_test_split_is_known_by_its_content() -> None:
    comparisons = [
        replace(c, images=tuple(f"elsewhere-{c.id}-{i}.png" for i in range(len(c.images)))) for c in read(shared.published_test_split())
    ][::-1]
    found = evaluate({"ImageReward-v1.0": [[-rank for rank in c.ranks] for c in comparisons]}, comparisons, num_resamples=10)
    assert found.published is not None
    assert found.published.name == "ImageRewardDB test"
    rows = {row.scorer: row for row in found.published.accuracies}
    assert (rows["ImageReward"].accuracy, rows["ImageReward"].here) == (65.14, "ImageReward-v1.0")
    assert rows["CLIP"].here is None
    assert found.published.human[0].agreement == 65.3
    assert found.published.sources["Xu et al. 2023"] == "arXiv 2304.05977"
    assert found.published.best_and_worst is not None
    assert found.published.best_and_worst.rows[-1].recall == {1: 39.62, 2: 63.07, 4: 90.84}
    assert published_results(comparisons, {}, []) is not None  # by ids and prompts alone
    assert published_results(comparisons[1:], {}, []) is None


def test_other_data_is_not_taken_for_published(monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons = [Comparison("a cat", ("1.png", "2.png"), (1, 2), id="a"), Comparison("a dog", ("3.png", "4.png"), (2, 1), id="b")]
    counts = {"prompts": 466, "images": 2720, "untied pairs": 6399, "tied pairs": 831}
    assert published_results(comparisons, counts | {"tied pairs": 830}, ["CLIP"]) is None
    by_counts = published_results(comparisons, counts, ["openai/clip-vit-large-patch14", "mine", "PickScore_v1"])
    assert by_counts is not None
    assert {row.scorer: row.here for row in by_counts.accuracies if row.here} == {
        "CLIP": "openai/clip-vit-large-patch14",
        "PickScore": "PickScore_v1",
    }
    # the same ids and prompts in another order, whatever the images and ranks
    assert fingerprint(comparisons) == fingerprint([replace(c, ranks=(1, 1), images=("x", "y")) for c in comparisons[::-1]])
    assert fingerprint(comparisons) != fingerprint([replace(comparisons[0], prompt="a cat."), comparisons[1]])
    monkeypatch.setattr(module, "fingerprint", lambda _: "3271a79a2addde5e4cc4a484b3ed7aa07f8a1d9dadee5ee449da98a3423b67e7")
    known = published_results(comparisons, {}, ["ImageReward"])
    assert known is not None
    assert [row.here for row in known.accuracies if row.here] == ["ImageReward"]


def test_benchmarks_of_round_numbers_are_known_by_their_form_too() -> None:
    pairs = [Comparison(f"a cat {i}", (f"{i}-1.png", f"{i}-2.png"), (1, 2), id=str(i), source="MMRB2") for i in range(1000)]
    counts = {"prompts": 1000, "images": 2000, "untied pairs": 1000, "tied pairs": 0, "pairs": 1000}
    known = published_results(pairs, counts, ["HPSv3"])
    assert known is not None
    assert known.name == "MMRB2 text-to-image"
    assert {row.scorer: row.accuracy for row in known.accuracies if row.here} == {"HPSv3": 60.2}
    assert published_results([replace(pairs[0], source=""), *pairs[1:]], counts, []) is None
    votes = [replace(pair, source="GenAI-Bench") for pair in pairs]
    known = published_results(votes, {"prompts": 1735, "untied pairs": 1306, "tied pairs": 429}, ["yuvalkirstain/PickScore_v1"])
    assert known is not None
    assert [(row.measure, row.accuracy) for row in known.accuracies if row.here] == [("diff", 67.2), ("tau", 53.2)]


def test_hpdv3_and_pick_a_pic_are_known_as_their_files_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": f"a cat {i}", "path1": f"{i}-1.png", "path2": f"{i}-2.png", "confidence": 0.9} for i in range(3)]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    evaluation = evaluate({"HPSv3": [[1.0, 0.0]] * 3}, read(tmp_path / "test.json"), num_resamples=10)
    assert evaluation.published is not None
    assert evaluation.published.name == "HPDv3 test"
    assert {row.scorer: row.accuracy for row in evaluation.published.accuracies if row.here} == {"HPSv3": 76.9}
    report = scorers_report(evaluation, "test.json")
    grid = next(block for block in report.blocks if isinstance(block, Grid) and block.title == "Published for HPDv3 test")
    assert "The rows do not say their split" in grid.caption
    assert next(row for row in grid.rows if row[0] == "HPSv3")[1:3] == ["76.9", "100.00 [100.00, 100.00]"]

    def pairs(num: int) -> list[Comparison]:
        folder = tmp_path / str(num)
        folder.mkdir()
        for side, colour in enumerate(("red", "blue")):
            Image.new("RGB", (4, 4), colour).save(folder / f"{side}.png")
        images = (str(folder / "0.png"), str(folder / "1.png"))
        write_pick_a_pic([Comparison(f"a dog {i}", images, (1, 2)) for i in range(num)], folder / "pairs.parquet")
        return list(read(folder / "pairs.parquet"))

    known = evaluate({"PickScore": [[1.0, 0.0]] * 500}, pairs(500), num_resamples=10).published
    assert known is not None
    assert (known.name, [row.accuracy for row in known.accuracies if row.here]) == ("Pick-a-Pic test", [70.5])
    assert evaluate({"PickScore": [[1.0, 0.0]] * 3}, pairs(3), num_resamples=10).published is None


def test_every_number_has_its_source() -> None:
    told = json.loads(files("image_reward").joinpath("assets/published_results.json").read_text(encoding="utf-8"))
    for data in told["datasets"]:
        best = [data["best_and_worst"]] if data["best_and_worst"] else []
        for row in [*data["accuracies"], *data["human"], *best]:
            assert any(row["source"].startswith(name) for name in told["sources"]), row
    # 153,000 published judgements are ten annotators' of these pairs: 100 prompts of 10 images, 300 of 9
    assert told["datasets"][1]["counts"] == {"prompts": 400, "images": 100 * 10 + 300 * 9, "pairs": 100 * 45 + 300 * 36}
