from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pyarrow.parquet import read_table

from image_reward.cli import main
from image_reward.cli import options as cli_options
from image_reward.cli.evaluate import Evaluate
from image_reward.errors import DownloadError
from image_reward.scorers import ImageRewardScorer
from refusing import Refusing

TINY = Path(__file__).parents[1] / "data" / "comparisons_tiny.json"
REWARDS = {"0001": [0.3, 0.2, 0.1], "0002": [0.1, 0.1, 0.5], "0003": [0.0, 0.0]}


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    path = tmp_path / "rewards.json"
    path.write_text(json.dumps(REWARDS))
    return str(path)


def test_models_against_human_rankings(
    capsys: pytest.CaptureFixture[str], scorer: ImageRewardScorer, image_folder: Path, rewards: str, tmp_path: Path
) -> None:
    scorer.save_pretrained(tmp_path / "tiny")
    for name in ("twin", "other/tiny"):
        shutil.copytree(tmp_path / "tiny", tmp_path / name)
    command = ["evaluate", str(TINY), "--image-root", str(image_folder), "--resamples", "100", "--rewards", f"saved={rewards}"]
    command += ["--model", str(tmp_path / "tiny"), "--model", str(tmp_path / "twin")]
    assert main([*command, "--json", "--per-prompt", str(tmp_path / "prompts.parquet")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"] == "comparisons_tiny.json"
    assert list(report["scorers"]) == ["saved", "tiny", "twin"]
    rows = read_table(tmp_path / "prompts.parquet").to_pylist()
    assert [(row["id"], row["scorer"]) for row in rows[:4]] == [("0001", "saved"), ("0001", "tiny"), ("0001", "twin"), ("0002", "saved")]
    assert rows[1]["rewards"] == pytest.approx(scorer.score("a cat on a chair", [str(image_folder / f"{n}.png") for n in "abc"]), abs=1e-5)
    cat, *dogs = (row for row in rows if row["scorer"] == "tiny")
    of_dogs = sum(row["pairwise_accuracy"] * row["num_untied_pairs"] for row in dogs) / sum(row["num_untied_pairs"] for row in dogs)
    mean = (cat["pairwise_accuracy"] + of_dogs) / 2
    assert report["scorers"]["tiny"]["metrics"]["pairwise_accuracy_per_prompt"]["value"] == pytest.approx(mean)
    assert report["scorers"]["tiny"] == report["scorers"]["twin"]
    same_names = ["--model", str(tmp_path / "tiny"), "--model", str(tmp_path / "other" / "tiny")]
    assert main([*command[:6], *same_names, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["scorers"]) == same_names[1::2]


def test_saved_rewards_as_a_table(capsys: pytest.CaptureFixture[str], rewards: str) -> None:
    assert main(["evaluate", str(TINY), "--rewards", rewards, "--resamples", "100", "--confidence", "0.9"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "rewards against human rankings",
        "accuracy, pooled (%) 83.33 [",
        "accuracy, per prompt (%) 83.33 [",
        "accuracy, equal rewards half (%) 91.67 [",
        "accuracy, ties calibrated (%) 85.71 [",
        "90 % intervals",
        "3 prompts (2 distinct), 8 images, 6 untied and 1 tied pairs.",
        "pairs of equal reward 1",
        "pairs that the annotators tied are left out; a pair of equal reward counts as wrong",
        "100 resamples of the prompts, the same for all scorers, seed 0",
    ):
        assert words in out
    assert "recall@4" not in out


def test_options(capsys: pytest.CaptureFixture[str], rewards: str) -> None:
    command = ["evaluate", str(TINY), "--rewards", rewards, "--resamples", "100", "--json"]
    assert main([*command, "--predicted-ties", "half", "--k", "1", "--limit", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_prompts"] == 2
    assert [name for name in report["scorers"]["rewards"]["metrics"] if "@" in name] == ["recall@1", "filter@1"]
    assert "counts half" in report["treatment_of_ties"]


def test_reports_in_files(capsys: pytest.CaptureFixture[str], rewards: str, tmp_path: Path) -> None:
    files = [str(tmp_path / f"report.{suffix}") for suffix in ("html", "md", "json")]
    command = ["evaluate", str(TINY), "--rewards", f"a={rewards}", "--rewards", f"b={rewards}", "--resamples", "100"]
    assert main([*command, *(part for file in files for part in ("--report", file))]) == 0
    assert "2 scorers against human rankings" in capsys.readouterr().out
    page, words, data = (Path(file).read_text() for file in files)
    assert page.count("<svg") == 4
    assert "83.33" in page
    assert "| accuracy, pooled (%) | 83.33" in words
    assert json.loads(data)["scorers"]["a"] == json.loads(data)["scorers"]["b"]


def test_saved_verdicts_on_votes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    votes = [
        {"id": name, "prompt": f"a cat {name}", "left_image": "1.png", "right_image": "2.png", "vote_type": vote}
        for name, vote in (("x", "leftvote"), ("y", "rightvote"), ("z", "bothbad_vote"), ("w", "tievote"))
    ]
    data, verdicts, rewards = tmp_path / "votes.jsonl", tmp_path / "verdicts.json", tmp_path / "rewards.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in votes))
    verdicts.write_text(json.dumps({"x": ["[[A>B]]", "B>A"], "y": ["a > b", "A>B"], "z": ["A=B=Bad", "A=B=Bad"], "w": ["A=B=Bad", "B>A"]}))
    rewards.write_text("[[1, 0], [0, 1], [0.1, 0], [0, 0.2]]")
    command = ["evaluate", str(data), "--verdicts", f"judge={verdicts}", "--rewards", str(rewards), "--resamples", "50", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_tied_pairs"], report["num_both_bad"]) == (2, 1)
    judge, scorer = report["scorers"]["judge"]["metrics"], report["scorers"]["rewards"]
    assert (judge["label_match"]["value"], judge["verdicts_flipped"]["value"]) == (0.5, 0.5)
    assert judge["first_shown_preferred"]["value"] == 0.25
    assert (scorer["tie_threshold"], scorer["metrics"]["pairwise_accuracy_ties_calibrated"]["value"]) == (0.2, 1.0)
    assert main(["evaluate", str(data), "--verdicts", str(verdicts), "--verdicts", f"verdicts={verdicts}"]) == 2
    assert "verdicts" in capsys.readouterr().err


def test_refused_comparisons_are_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shade in (("light", 200), ("dark", 20)):
        Image.new("RGB", (40, 40), (shade,) * 3).save(tmp_path / f"{name}.png")
    rows = [{"id": name, "prompt": name, "images": ["light.png", "dark.png"], "ranks": [1, 2]} for name in "abc"]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(Evaluate, "load_all", lambda *_: [Refusing("b")])
    assert main(["evaluate", str(tmp_path / "data.jsonl"), "--resamples", "50", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "1 comparison with an image without a reward is left out, for all scorers: b. The first: " in err
    assert (json.loads(out)["num_prompts"], json.loads(out)["refused"]["ids"]) == (2, ["b"])


def test_the_default_model_is_loaded_only_where_nothing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rewards: str
) -> None:
    asked: list[tuple[str, ...]] = []

    def load(_: object, models: tuple[str, ...], taken: list[str]) -> list[object]:
        assert taken == []
        asked.append(models)
        raise DownloadError("no network here")

    monkeypatch.setattr(cli_options.LoadingOptions, "load_models", load)
    assert main(["evaluate", str(TINY), "--rewards", rewards, "--resamples", "10"]) == 0
    assert asked == []
    assert main(["evaluate", str(TINY)]) == 1
    assert asked == [("ImageReward-v1.0",)]
    capsys.readouterr()


def test_errors(capsys: pytest.CaptureFixture[str], rewards: str, tmp_path: Path) -> None:
    (tmp_path / "fewer.json").write_text('{"0001": [0.3, 0.2, 0.1]}')
    (tmp_path / "nan.json").write_text(json.dumps(REWARDS | {"0003": [0.0, float("nan")]}))
    (tmp_path / "tied.jsonl").write_text('{"prompt": "a cat", "images": ["1.png", "2.png"], "ranks": [1, 1]}')
    (tmp_path / "tied.json").write_text("[[1, 2]]")
    data = ["evaluate", str(TINY), "--rewards"]
    for arguments, code, words in [
        (
            [*data, str(tmp_path / "fewer.json")],
            1,
            "fewer.json: there are no rewards for 2 of 3 prompts: 0002 ('A  Dog in the snow'), 0003",
        ),
        ([*data, str(tmp_path / "nan.json")], 1, "nan.json is not JSON: NaN is not a number that JSON has"),
        ([*data, rewards, "--k", "0"], 2, "--k takes integers from 1"),
        ([*data, rewards, "--k", "1", "3"], 1, "no prompt has more than 3 images, which recall@3 needs"),
        ([*data, rewards, "--limit", "0"], 2, "--limit must be at least 1"),
        ([*data, rewards, "--resamples", "0"], 2, "--resamples must be at least 1"),
        ([*data, rewards, "--confidence", "95"], 2, "--confidence between 0 and 1"),
        ([*data, rewards, "--per-prompt", str(tmp_path / "no" / "x.parquet")], 2, "does not exist"),
        ([*data, rewards, "--report", str(tmp_path / "no" / "x.html")], 2, "does not exist"),
        ([*data, rewards, "--report", str(tmp_path / "x.pdf")], 2, "is written as .html, .md or .json"),
        ([*data, rewards, "--rewards", rewards], 2, "rewards occurs twice, and a table of results needs different names"),
        ([*data, rewards, "--model", "A", "--model", "A"], 2, "A occurs twice"),
        ([*data, f"={rewards}"], 2, "write NAME=FILE"),
        (["evaluate", str(tmp_path / "fewer.json"), "--rewards", rewards], 1, "is of no known form"),
        (["evaluate", str(TINY), "--rewards", str(tmp_path / "none.json")], 1, "no such file of rewards"),
        (["evaluate", str(tmp_path / "tied.jsonl"), "--rewards", str(tmp_path / "tied.json")], 1, "every pair of images is tied, so"),
    ]:
        assert main(arguments) == code, arguments
        assert words in capsys.readouterr().err
