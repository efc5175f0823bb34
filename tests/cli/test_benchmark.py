from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import seeded
import shared
from image_reward.cli import main
from image_reward.scorers import ImageRewardScorer

TABLE_1 = {  # Xu et al. 2023, Table 1: people's wins, ImageReward, CLIP
    "openjourney": (507, 0.2614, 0.2726),
    "sd2-1": (463, 0.2458, 0.2683),
    "dalle2": (390, 0.2114, 0.2684),
    "sd1-4": (362, 0.1344, 0.2763),
    "versatile-diffusion": (340, -0.2470, 0.2606),
    "cogview2": (74, -1.2376, 0.2044),
}


@pytest.fixture
def world(tmp_path: Path, scorer: ImageRewardScorer) -> Path:
    """A model, prompts, and two generators with two images of each."""
    scorer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.json").write_text('[{"id": "0001", "prompt": "a cat"}, {"id": "0002", "prompt": "a green car"}]')
    for g, generator in enumerate(("first", "second")):
        (tmp_path / "images" / generator).mkdir(parents=True)
        for i in range(4):
            kind, width, height, _ = seeded.IMAGES[i]
            image = seeded.image(kind, width // 4, height // 4, 5 * g + i)
            image.save(tmp_path / "images" / generator / f"000{1 + i // 2}_{i % 2}.png")
    return tmp_path


def command(world: Path, *more: str) -> list[str]:
    model = ["--model", str(world / "tiny"), "--resamples", "50"]
    return ["benchmark", str(world / "images"), "--prompts", str(world / "prompts.json"), *model, *more]


def test_images_to_reports_and_results(world: Path, scorer: ImageRewardScorer, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [str(world / f"report.{suffix}") for suffix in ("html", "md", "json")]
    saved = ["--save-results", str(world / "results")]
    assert main(command(world, "--json", *saved, *(part for file in reports for part in ("--report", file)))) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == json.loads(Path(reports[2]).read_text())
    (by_scorer,) = found["scorers"]
    for generator in by_scorer["generators"]:
        paths = [str(world / "images" / generator["name"] / f"000{p}_{n}.png") for p in (1, 2) for n in (0, 1)]
        rewards = scorer.score(["a cat", "a cat", "a green car", "a green car"], paths)
        assert generator["mean"]["value"] == pytest.approx(sum(rewards) / 4, abs=1e-5)
    assert by_scorer["name"] == "tiny"
    assert "report.html" in err
    assert "<svg" in Path(reports[0]).read_text()
    assert "tiny: generators by mean reward" in Path(reports[1]).read_text()

    assert main(command(world, *saved)) == 0
    out, err = capsys.readouterr()
    assert "8 rewards were reused from" in err
    assert "2 generators, 2 prompts, 2 images of each, scored by tiny" in " ".join(out.split())
    assert main(["benchmark", str(world / "results"), "--json", "--resamples", "50"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_missing_and_unknown_images(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "images" / "second" / "0002_1.png").rename(world / "images" / "second" / "0003_1.png")
    assert main(command(world)) == 1
    err = capsys.readouterr().err
    assert "1 file belongs to no prompt and is ignored" in err
    assert "0003_1.png" in err
    assert "second: 1 of 2 prompts: 0002 (1 of 2)" in err
    assert main(command(world, "--allow-missing")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 prompts, 1 to 2 images of each" in out
    assert "images for which others have no counterpart (1 of first)" in out


def test_manifest_and_human_ranking(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"generator": generator, "prompt": prompt, "image": f"images/{generator}/000{p}_0.png"}
        for generator in ("first", "second")
        for p, prompt in ((1, "a cat"), (2, "a green car"))
    ]
    (world / "images.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (world / "human.json").write_text('{"first": 1, "second": 2}')
    arguments = ["benchmark", "--manifest", str(world / "images.jsonl"), "--model", str(world / "tiny"), "--resamples", "50", "--json"]
    results = {}
    for better in ("higher", "lower"):
        assert main([*arguments, "--human", str(world / "human.json"), "--human-better", better]) == 0
        results[better] = json.loads(capsys.readouterr().out)
    assert results["lower"]["human"]["ranks"] == {"first": 1, "second": 2}
    one, other = (results[better]["scorers"][0]["spearman"]["value"] for better in ("higher", "lower"))
    assert sorted([one, other]) == pytest.approx([-1.0, 1.0])


def test_usage(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, results = str(world / "images"), world / "results" / "S"
    results.mkdir(parents=True)
    (results / "a.json").write_text('[{"id": "1", "prompt": "x", "rewards": [1, 2]}]')
    folder = str(results.parent)
    for arguments, code, words in [
        ([], 2, "give either IMAGE_ROOT, or --manifest FILE, or --results FOLDER"),
        ([images, "--results", folder], 2, "give either IMAGE_ROOT"),
        ([images], 2, "images need --prompts"),
        ([images, "--prompts", "DrawBnch"], 1, "Did you mean DrawBench?"),
        ([folder, "--model", "T"], 2, "has no results of T; it has those of S"),
        ([folder, "--save-results", "x"], 2, "contains results already"),
        ([folder, "--report", "x.pdf"], 2, "a report is written as .html, .md or .json"),
        ([folder, "--human", "x.json"], 2, "say which numbers are better"),
        ([folder, "--confidence", "95"], 2, "--confidence between 0 and 1"),
        ([folder, "--human", "x.json", "--human-better", "lower"], 1, "no such file of human rankings"),
        (["--results", str(world / "none")], 1, "no such folder of results"),
        ([str(world / "none"), "--prompts", "ImageReward"], 1, "no such folder of images"),
    ]:
        assert main(["benchmark", *arguments]) == code, arguments
        assert words in capsys.readouterr().err


def test_table_1_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(shared.require("data/table1")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_prompts"], found["num_images"], found["images_per_prompt"]) == (100, 1000, [10, 10])
    assert found["human"]["values"] == {name: wins for name, (wins, _, _) in TABLE_1.items()}
    scorers = {scorer["name"]: scorer for scorer in found["scorers"]}
    for column, name in ((1, "ImageReward-v1.0"), (2, "CLIP")):
        means = {generator["name"]: generator["mean"]["value"] for generator in scorers[name]["generators"]}
        assert means == {generator: pytest.approx(row[column], abs=1e-4) for generator, row in TABLE_1.items()}
    assert scorers["ImageReward-v1.0"]["spearman"]["value"] == pytest.approx(1.0)
    assert scorers["CLIP"]["spearman"]["value"] == pytest.approx(0.6)


def test_models_of_one_name_are_called_what_was_given(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "runs" / "tiny").parent.mkdir()
    shutil.copytree(world / "tiny", world / "runs" / "tiny")
    assert main(command(world, "--model", str(world / "runs" / "tiny"), "--json")) == 0
    assert [scorer["name"] for scorer in json.loads(capsys.readouterr().out)["scorers"]] == [
        str(world / "tiny"),
        str(world / "runs" / "tiny"),
    ]
    assert main(command(world, "--model", str(world / "tiny"))) == 2
    assert "tiny occurs twice" in capsys.readouterr().err


def test_the_human_ranking_is_read_before_scoring(world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_reward.cli.options.SeveralModelOptions.load_all", lambda _: pytest.fail("a model was loaded"))
    assert main(command(world, "--human", str(world / "gone.json"), "--human-better", "higher")) == 1
    assert "no such file of human rankings" in capsys.readouterr().err


def test_a_report_that_cannot_be_written(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "folder.md").mkdir()
    assert main(command(world, "--report", str(world / "folder.md"))) == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err


def test_one_model_under_two_spellings_is_refused(
    world: Path, scorer: ImageRewardScorer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_reward.cli.options.LoadingOptions.load_models", lambda _, models, *__: [scorer for _ in models])
    assert main(command(world, "--model", f"{world}/./tiny")) == 2
    assert "are the same model; name it once" in capsys.readouterr().err
