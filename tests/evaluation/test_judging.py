"""A judge of pairs over a file of rankings: what it writes, how it goes on, and what becomes of answers that cannot be read."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import image_reward as ir
import judges
from image_reward.cli import main
from image_reward.comparisons import read
from image_reward.errors import AnswerError, ComparisonError, InputError
from image_reward.evaluation import Judged, evaluate, judge_pairs, read_verdicts, without_verdict
from image_reward.metrics import position_bias
from image_reward.types import Comparison

ANSWERS = "verdicts.answers.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judges.write(tmp_path_factory.mktemp("judging") / "good", judges.SHARES)


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judges.write(tmp_path_factory.mktemp("judging") / "bad", judges.BAD_SHARES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Nine pairs of four images and two prompts, of which people prefer the first."""
    for number, image in enumerate(judges.images()):
        image.save(tmp_path / f"{number}.png")
    rows = [
        {"id": f"{a}{b}{p}", "prompt": judges.PROMPTS[p], "images": [f"{a}.png", f"{b}.png"], "ranks": [1, 2]}
        for p in range(2)
        for a, b in itertools.combinations(range(4), 2)
    ][:9]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


def load(folder: Path) -> Any:
    return ir.load(folder, "cpu", "float32")


_EXPECTED: dict[str, dict[str, list[str] | None]] = {}


def expected(judge: Any, comparisons: list[Comparison]) -> dict[str, list[str] | None]:
    """What the judge says, one question at a time."""
    verdicts = _EXPECTED.setdefault(judge.name, {})
    for comparison in comparisons if not verdicts else ():
        a, b = comparison.images
        try:
            verdicts[comparison.id] = [judge.verdicts(comparison.prompt, [pair])[0].label for pair in ((a, b), (b, a))]
        except AnswerError:
            verdicts[comparison.id] = None
    return verdicts


def test_verdicts_in_both_orders(folder: Path, data: Path, tmp_path: Path) -> None:
    judge, comparisons, output = load(folder), read(data), tmp_path / "verdicts.json"
    judge.batch_size = 3
    seen: list[tuple[int, int]] = []
    judged = judge_pairs(judge, comparisons, output, lambda done, total: seen.append((done, total)))
    theirs = expected(judge, comparisons)
    assert len({str(labels) for labels in theirs.values()}) > 2
    assert json.loads(output.read_text()) == theirs
    read_back = read_verdicts(output, comparisons)
    assert read_back.swapped is not None
    assert [read_back.labels, read_back.swapped] == [[labels[n] for labels in theirs.values() if labels] for n in (0, 1)]
    orders = read_back.orders()
    assert judged == Judged(str(output), len(comparisons), {}, 2 * len(comparisons), position_bias(*zip(*orders, strict=True)))
    assert seen[0] == (0, len(comparisons))
    assert seen[-1] == (len(comparisons), len(comparisons))
    # The verdicts of the file are those that evaluate measures.
    measured = evaluate({"judge": read_back}, comparisons, num_resamples=10).scorers["judge"]
    assert judged.bias is not None
    assert measured.metrics["verdicts_flipped"].value == pytest.approx(judged.bias.flipped)


def test_what_was_answered_is_not_asked_again(folder: Path, data: Path, tmp_path: Path) -> None:
    judge, comparisons, output = load(folder), read(data), tmp_path / "verdicts.json"
    judge_pairs(judge, comparisons, output)
    whole, log = output.read_bytes(), (tmp_path / ANSWERS).read_bytes()
    judge.network.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(AssertionError("asked")))
    judge.network.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(AssertionError("asked")))
    output.unlink()
    assert judge_pairs(judge, comparisons, output).num_asked == 0
    assert output.read_bytes() == whole
    # A line that a kill cut off is asked again, and nothing else.
    lines = log.split(b"\n")
    (tmp_path / ANSWERS).write_bytes(b"\n".join(lines[:6]) + b"\n" + lines[6][:9])
    again = judge_pairs(load(folder), comparisons, output)
    assert again.num_asked == 2 * len(comparisons) - 5
    assert output.read_bytes() == whole
    assert sorted((tmp_path / ANSWERS).read_bytes().split(b"\n")) == sorted(lines)


def test_a_killed_run_goes_on(folder: Path, data: Path, tmp_path: Path) -> None:
    """With kill -9, as soon as the first answers are there."""
    asked = [sys.executable, "-m", "image_reward.cli", "judge", str(data), str(tmp_path / "verdicts.json"), "--model", str(folder)]
    asked += ["--dtype", "float32", "--device", "cpu", "--batch-size", "1"]
    code = (
        "import os, signal, sys\n"
        "from image_reward.evaluation import judging\n"
        "add = judging._Answers.add\n"
        "def killing(self, answers):\n"
        "    add(self, answers)\n"
        "    if len(self.answers) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "judging._Answers.add = killing\n"
        "from image_reward.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *asked[3:]], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "verdicts.json").exists()
    assert len((tmp_path / ANSWERS).read_text().splitlines()) == 6
    done = subprocess.run([*asked, "--json"], capture_output=True, check=True, text=True)
    comparisons = read(data)
    assert json.loads(done.stdout)["num_asked"] == 2 * len(comparisons) - 5
    assert json.loads((tmp_path / "verdicts.json").read_text()) == expected(load(folder), comparisons)


def test_answers_of_another_judge_or_about_other_pairs(folder: Path, bad_folder: Path, data: Path, tmp_path: Path) -> None:
    comparisons, output = read(data), tmp_path / "verdicts.json"
    judge_pairs(load(folder), comparisons[:2], output)
    assert judge_pairs(load(folder), comparisons, output).num_asked == 2 * len(comparisons) - 4  # those that are new
    for other in (load(bad_folder), ir.load(folder, "cpu", "bfloat16")):
        with pytest.raises(InputError, match="holds no answers of this judge in this dtype; name another output"):
            judge_pairs(other, comparisons[:2], output)  # type: ignore[arg-type]
    (tmp_path / ANSWERS).write_text("{\n")
    with pytest.raises(InputError, match="line 1 is not a JSON object; delete the file"):
        judge_pairs(load(folder), comparisons[:2], output)
    (tmp_path / ANSWERS).unlink()
    judge_pairs(load(folder), comparisons[:1], output)
    with (tmp_path / ANSWERS).open("a") as stream:
        stream.write('{"id": "010", "swapped": 1, "key": "", "answer": "A"}\n')
    with pytest.raises(InputError, match="line 4 is not an answer"):
        judge_pairs(load(folder), comparisons[:1], output)
    three = Comparison("a cat", ("0.png", "1.png", "2.png"), (1, 2, 3), id="x")
    with pytest.raises(ComparisonError, match="verdicts are on pairs of images, and 1 comparisons have more: x"):
        judge_pairs(load(folder), [three], tmp_path / "other.json")


def test_other_pixels_or_words_under_the_same_names_are_asked_again(folder: Path, data: Path, tmp_path: Path) -> None:
    judge, comparisons, output = load(folder), read(data), tmp_path / "verdicts.json"
    judge_pairs(judge, comparisons, output)
    (tmp_path / "0.png").rename(tmp_path / "other.png")
    (tmp_path / "1.png").rename(tmp_path / "0.png")
    (tmp_path / "other.png").rename(tmp_path / "1.png")
    touched = [comparison for comparison in comparisons if {"0.png", "1.png"} & {Path(str(image)).name for image in comparison.images}]
    again = judge_pairs(judge, comparisons, output)
    assert again.num_asked == 2 * len(touched) > 0
    anew = tmp_path / "anew.json"
    judge_pairs(judge, comparisons, anew)
    assert output.read_bytes() == anew.read_bytes()
    reworded = [replace(comparison, prompt=comparison.prompt + "!") for comparison in comparisons[:1]]
    assert judge_pairs(judge, reworded, output).num_asked == 2
    opened = [
        replace(comparison, images=(judges.images()[0], judges.images()[number])) for number, comparison in enumerate(comparisons[:3], 1)
    ]
    assert judge_pairs(judge, opened, tmp_path / "opened.json").num_asked == 6
    assert judge_pairs(judge, opened, tmp_path / "opened.json").num_asked == 0


@pytest.mark.parametrize("content", [b'{"id": "a"}', b'{"id": "a"}\n{"id": "b"', b"words", b'{"judge": "x"}\n', b"[1]\n"])
def test_a_file_that_is_no_file_of_answers_stays_as_it_is(content: bytes, folder: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / ANSWERS).write_bytes(content)
    with pytest.raises(InputError, match=ANSWERS):
        judge_pairs(load(folder), read(data)[:1], tmp_path / "verdicts.json")
    assert (tmp_path / ANSWERS).read_bytes() == content


@pytest.mark.parametrize(
    ("ids", "message"), [(("", "b", ""), "2 comparisons have no id"), (("a", "b", "a"), "several comparisons have a;")]
)
def test_ids_that_tell_nothing(ids: tuple[str, ...], message: str, folder: Path, data: Path, tmp_path: Path) -> None:
    comparisons = [replace(comparison, id=id) for comparison, id in zip(read(data), ids, strict=False)]
    with pytest.raises(ComparisonError, match=message):
        judge_pairs(load(folder), comparisons, tmp_path / "verdicts.json")
    (tmp_path / "saved.json").write_text('{"": "A>B", "a": "A>B", "b": "A>B"}')
    with pytest.raises(ComparisonError, match=message):
        read_verdicts(tmp_path / "saved.json", comparisons)


def test_two_that_judge_at_once(folder: Path, data: Path, tmp_path: Path) -> None:
    output, comparisons = tmp_path / "verdicts.json", read(data)

    def another(_done: int, _total: int) -> None:
        with pytest.raises(InputError, match=rf"another process is writing to .*{ANSWERS}; wait for it, or name another output"):
            judge_pairs(load(folder), comparisons, output)

    assert judge_pairs(load(folder), comparisons, output, another).num_asked == 2 * len(comparisons)
    assert judge_pairs(load(folder), comparisons, output).num_asked == 0


def test_answers_and_images_that_cannot_be_read(bad_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They cost their own pair alone, and evaluate leaves it out."""
    judge, comparisons, output = load(bad_folder), read(data), tmp_path / "verdicts.json"
    theirs = expected(judge, comparisons)
    broken = next(comparison.id for comparison in comparisons if theirs[comparison.id] and comparison.images[1].endswith("3.png"))
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    next(row for row in rows if row["id"] == broken)["images"][1] = "none.png"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    without = {id for id, labels in theirs.items() if labels is None}
    assert 0 < len(without) < len(comparisons) - 1

    asked = ["judge", str(data), str(output), "--model", str(bad_folder), "--dtype", "float32", "--device", "cpu"]
    assert main([*asked, "--json"]) == 0
    told = capsys.readouterr()
    judged = json.loads(told.out)
    assert json.loads(output.read_text()) == theirs | {broken: None}
    assert judged["num_errors"] == len(without) + 1
    assert all("does not divide 1 between two images" in judged["errors"][id] for id in without)
    assert judged["errors"][broken].startswith("FileNotFoundError: no such image: ")
    assert f"no verdict on {broken}: FileNotFoundError" in told.err or len(judged["errors"]) > 5
    assert without_verdict(output) == without | {broken}
    with pytest.raises(ComparisonError, match=r"the verdict on .* is \[None\]"):
        read_verdicts(output, comparisons)

    assert main(["evaluate", str(data), "--verdicts", str(output), "--resamples", "10", "--json"]) == 0
    told = capsys.readouterr()
    assert f"{len(without) + 1} pairs on which verdicts gave no verdict are left out, for all scorers: " in told.err
    left = [comparison for comparison in comparisons if comparison.id not in without | {broken}]
    assert json.loads(told.out)["num_prompts"] == len(left)

    judges.images()[3].save(tmp_path / "none.png")  # an image that is there now is asked about, and nothing else
    assert main(asked) == 0
    told = capsys.readouterr()
    num = len(comparisons) - len(without)
    assert told.out.startswith(f"{output}: {num} of {len(comparisons)} pairs have a verdict\nposition bias: ")
    assert json.loads(output.read_text()) == theirs


def test_too_little_memory_halves_the_batch(folder: Path, data: Path, tmp_path: Path) -> None:
    judge, comparisons = load(folder), read(data)
    sizes: list[int] = []

    def forward(_: Any, __: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    judge.network.model.register_forward_pre_hook(forward, with_kwargs=True)
    judge_pairs(judge, comparisons, tmp_path / "verdicts.json")
    assert sizes.count(8) == 1
    judge.network.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(InputError, match="not enough memory on cpu to judge a single pair; use another device or dtype"):
        judge_pairs(judge, comparisons, tmp_path / "other.json")
    assert json.loads((tmp_path / "verdicts.json").read_text()) == expected(load(folder), comparisons)


def test_usage(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["judge", str(data)]
    assert main([*asked, str(tmp_path / "v.json"), "--model", "ImageReward-mini"]) == 2
    assert "ImageReward-mini gives rewards, and does not judge pairs: evaluate it as it is, with image-reward" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / "v.csv"), "--model", "ImageReward-mini"]) == 2
    assert "is written as JSON" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / "v.json"), "--limit", "0"]) == 2
    assert "--limit must be at least 1" in capsys.readouterr().err
    assert main([*asked, str(data).replace("jsonl", "json"), "--model", "ImageReward-mini"]) == 2
