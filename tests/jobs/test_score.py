from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stubs
import torch

import object_store
from image_reward.errors import ImageRewardError, InputError, JobError
from image_reward.images import ImageLike
from image_reward.jobs import decoders
from image_reward.jobs.folder import JobFolder, part_name
from image_reward.jobs.inputs.text import CsvInput
from image_reward.jobs.messages import DefectError
from image_reward.jobs.results import filter_rows, summarize
from image_reward.jobs.shards import ShardScorer
from image_reward.scorers import MODELS, LoadOptions, ModelSpec, Processor, Scorer, TwoTowerBatch, TwoTowerProcessor


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """23 rows of 5 images as rows.csv."""
    images = stubs.draw(tmp_path / "in", 5)
    path = tmp_path / "in" / "rows.csv"
    path.write_text("id,prompt,image\n" + "".join(f"r{n},{'a ' * (n % 4 + 1)},{images[n % 5]}\n" for n in range(23)))
    return path


EXPECTED = [n % 4 + 1 + n % 5 / 255 for n in range(23)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def result(folder: Path) -> dict[str, list[Any]]:
    return pq.read_table([folder / name for name in names(folder) if name.endswith(".parquet")]).to_pydict()


def test_a_job_and_the_same_again(rows: Path, tmp_path: Path) -> None:
    seen = []
    done = stubs.score_here(rows, tmp_path / "out", stubs.load, shard_size=5, format="csv", on_progress=seen.append)
    assert (done.num_rows, done.num_errors, done.num_scored_now, done.columns) == (23, 0, 23, ("reward",))
    table = result(tmp_path / "out")
    assert table["reward"] == pytest.approx(EXPECTED)
    assert table["id"] == [f"r{n}" for n in range(23)]
    assert seen[-1].num_rows == seen[-1].total == 23
    with (tmp_path / "out" / "rewards.csv").open(newline="") as file:
        assert [float(row["reward"]) for row in csv.DictReader(file)] == pytest.approx(EXPECTED)
    (tmp_path / "out" / part_name(2)).unlink()
    (tmp_path / "out" / part_name(3)).write_bytes(b"cut short")
    again = stubs.score_here(rows, tmp_path / "out", stubs.load, format="jsonl")  # the shard size is the job's
    assert again.num_scored_now == 10
    assert result(tmp_path / "out") == table
    lines = (tmp_path / "out" / "rewards.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] for line in lines] == pytest.approx(EXPECTED)
    assert stubs.score_here(rows, tmp_path / "out", stubs.load).num_scored_now == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_rows"] == 23


def test_another_input_or_scorer_is_refused(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stubs.score_here(rows, out, stubs.load, shard_size=5)
    before = result(out)
    with pytest.raises(JobError, match=r"the scorer has changed since it began \(weights: '.*' then, '.*' now\)\. Give another folder"):
        stubs.score_here(rows, out, partial(stubs.load, weight=2.0))
    with pytest.raises(JobError, match=r"the scorer has changed since it began \(scorers"):
        stubs.score_here(rows, out, partial(stubs.load, names=["a", "b"]))
    with pytest.raises(JobError, match=r"the shard size has changed since it began \(shard_size: 5 then, 6 now\)"):
        stubs.score_here(rows, out, stubs.load, shard_size=6)
    rows.write_text(rows.read_text() + "late,x,0.png\n")
    with pytest.raises(JobError, match=r"the input has changed since it began \(files\.rows\.csv: '\d+ bytes, \d+ ns' then"):
        stubs.score_here(rows, out, stubs.load)
    assert result(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(JobError, match=r"mine is not empty and holds no job \(it has thesis\.tex\)"):
        stubs.score_here(rows, tmp_path / "mine", stubs.load)
    assert names(tmp_path / "mine") == ["thesis.tex"]
    with pytest.raises(JobError, match="a file with that name exists"):
        stubs.score_here(rows, rows, stubs.load)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(JobError, match="is not that of a job of this release"):
        stubs.score_here(rows, out, stubs.load)


def test_going_on_needs_no_scan(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of the first scan is kept, and counts only for the same files, columns and shard size."""
    out = tmp_path / "out"
    rows.write_text(rows.read_text() + "r3,x,0.png\n")
    stubs.score_here(rows, out, stubs.load, shard_size=5)
    (out / part_name(2)).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(CsvInput, "scan", lambda *_: pytest.fail("the input is scanned again"))
        again = stubs.score_here(rows, out, stubs.load)
    assert (again.num_scored_now, again.num_repeated_ids, again.num_rows) == (5, 1, 24)
    assert result(out)["reward"] == pytest.approx([*EXPECTED, 1])
    with pytest.raises(JobError, match="the shard size has changed since it began"):
        stubs.score_here(rows, out, stubs.load, shard_size=7)
    (out / "shards.arrow").write_bytes((out / "shards.arrow").read_bytes()[:-100])
    assert stubs.score_here(rows, out, stubs.load).num_scored_now == 0
    rows.write_text(rows.read_text() + "r4,x,0.png\n")
    with pytest.raises(JobError, match="the input has changed since it began"):
        stubs.score_here(rows, out, stubs.load)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar", "folder"])
def test_a_plan_says_what_a_scan_found(tmp_path: Path, kind: str) -> None:
    names = stubs.draw(tmp_path / "in", 3)
    given = tmp_path / "in" if kind == "folder" else tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        lines = [{"prompt": "a", "image": f"in/{name}", "n": n / 2, "ok": True} for n, name in enumerate(names)]
        given.write_text("\n".join(map(json.dumps, lines)))
    elif kind == "parquet":
        pq.write_table(pa.table({"prompt": ["a"] * 3, "image": [f"in/{name}" for name in names]}), given)
    elif kind == "tar":
        with tarfile.open(given, "w") as archive:
            for key in ("a", "b", "a"):
                archive.add(tmp_path / "in" / "0.png", f"{key}.png")
    prompt = "a" if kind in ("tar", "folder") else None
    stubs.score_here(given, tmp_path / "whole", stubs.load, shard_size=2, prompt=prompt)
    stubs.score_here(given, tmp_path / "out", stubs.load, shard_size=2, prompt=prompt)
    (tmp_path / "out" / part_name(1)).unlink()
    assert stubs.score_here(given, tmp_path / "out", stubs.load, prompt=prompt).num_scored_now == 1
    assert result(tmp_path / "out") == result(tmp_path / "whole")


def test_one_job_at_a_time_in_a_folder(rows: Path, tmp_path: Path) -> None:
    with JobFolder(tmp_path / "out").opened(), pytest.raises(JobError, match="another process is writing to"):
        stubs.score_here(rows, tmp_path / "out", stubs.load)


def test_an_input_that_changes_keeps_the_parts(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = ShardScorer.score

    def change_after_two(self: ShardScorer, shard: Any, *others: Any) -> Any:
        if shard.number == 2:
            rows.write_text("id,prompt,image\n")
        return score(self, shard, *others)

    monkeypatch.setattr(ShardScorer, "score", change_after_two)
    with pytest.raises(JobError, match="has changed while it was being read"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, shard_size=5)
    assert result(tmp_path / "out")["reward"] == pytest.approx(EXPECTED[:10])


def test_a_full_disk_leaves_nothing_half_written(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobError, match=r"the disk is full: .*part-00000\d\.parquet could not be written; free some space and run"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, shard_size=5)
    monkeypatch.setattr(os, "fsync", fsync)
    left = names(tmp_path / "out")
    assert left == [".lock", "manifest.json", *(part_name(n) for n in range(len(left) - 3)), "shards.arrow"]
    stubs.score_here(rows, tmp_path / "out", stubs.load)
    assert result(tmp_path / "out")["reward"] == pytest.approx(EXPECTED)


def test_a_shard_that_kills_is_given_up_after_three_tries(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, deaths = ShardScorer.score, []

    def die(self: ShardScorer, shard: Any, *others: Any) -> Any:
        if shard.number == 1:
            deaths.append(shard.number)
            raise MemoryError("stands for a crash")
        return score(self, shard, *others)

    monkeypatch.setattr(ShardScorer, "score", die)
    out = tmp_path / "out"
    done = stubs.score_here(rows, out, stubs.load, shard_size=5)
    assert (len(deaths), done.num_quarantined, done.num_errors) == (3, 5, 5)
    table = result(out)
    assert table["reward"] == [None if 5 <= n < 10 else pytest.approx(EXPECTED[n]) for n in range(23)]
    assert set(table["error"][5:10]) == {"Quarantined: the worker died 3 times on this shard: MemoryError: stands for a crash"}
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["shard"], row["row"], row["id"]) for row in listed] == [(1, n, f"r{n}") for n in range(5, 10)]
    assert json.loads((out / "tries.json").read_text()) == {"1": 3}
    stubs.score_here(rows, out, stubs.load)
    assert len(deaths) == 3  # a restart remembers
    (out / "quarantine.jsonl").unlink()  # as if the job had been killed just before it was written
    assert stubs.score_here(rows, out, stubs.load).num_quarantined == 5
    monkeypatch.setattr(ShardScorer, "score", score)
    done = stubs.score_here(rows, out, stubs.load, retry_quarantined=True)
    assert (done.num_scored_now, done.num_quarantined) == (5, 0)
    assert result(out)["reward"] == pytest.approx(EXPECTED)
    assert not (out / "quarantine.jsonl").exists()


def test_rows_that_cannot_even_be_read_are_counted(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: ShardScorer, shard: Any, *others: Any) -> Any:
        if shard.number == 1:
            raise MemoryError("reading crashes")
        return work[len(others) > 1](self, shard, *others)

    work = [ShardScorer.give_up, ShardScorer.score]
    monkeypatch.setattr(ShardScorer, "score", lambda self, shard, upcoming=None, told=lambda *_: None: die(self, shard, upcoming, told))
    monkeypatch.setattr(ShardScorer, "give_up", die)
    out = tmp_path / "out"
    done = stubs.score_here(rows, out, stubs.load, shard_size=5)
    assert (done.num_rows, done.num_quarantined, done.num_errors) == (23, 5, 5)
    assert not (out / part_name(1)).exists()
    found = summarize(out)
    assert (found.num_rows, found.num_errors, found.errors, found.num_quarantined) == (23, 5, {"Quarantined": 5}, 5)
    assert filter_rows(out, io.StringIO(), top_fraction=0.5) == 9


def test_a_store_that_cannot_be_used_ends_the_job_instead_of_every_row(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    object_store.uninstall_gcsfs(monkeypatch)
    rows.write_text("prompt,image\na,0.png\nb,gs://bucket/1.png\n")
    with pytest.raises(JobError, match="gs:// needs a package that is not installed: pip install gcsfs"):
        stubs.score_here(rows, tmp_path / "out", stubs.load)
    assert part_name(0) not in names(tmp_path / "out")


def test_a_defect_ends_the_job_and_names_the_row(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a million rows with errors. What was scored before is kept."""
    rows.write_text(rows.read_text().replace("r13,a a ", "r13,a crash "))
    with pytest.raises(DefectError, match=r"rows\.csv, row 14 \(id r13\): TypeError: the stub has a defect") as caught:
        stubs.score_here(rows, tmp_path / "out", stubs.load, shard_size=5)
    assert not isinstance(caught.value, ValueError | OSError | ImageRewardError)  # the command shows its traceback
    assert result(tmp_path / "out")["reward"] == pytest.approx(EXPECTED[:10])
    monkeypatch.setattr(decoders, "prepare_together", lambda *_: {}["no such key"])
    with pytest.raises(DefectError, match=r"rows\.csv, row 11 \(id r10\): KeyError: 'no such key'"):
        stubs.score_here(rows, tmp_path / "out", stubs.load)
    monkeypatch.setattr(CsvInput, "read", lambda *_: {}["no such row"])
    with pytest.raises(DefectError, match=r"rows\.csv, rows 11 to 15: KeyError: 'no such row'"):
        stubs.score_here(rows, tmp_path / "out", stubs.load)
    with pytest.raises(DefectError, match="the scorers cannot be loaded: AttributeError: "):
        stubs.score_here(rows, tmp_path / "out", lambda device: device.scorers)  # type: ignore[union-attr]


def test_a_value_error_of_a_registered_scorer_is_a_defect(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it comes of preparing a row or of scoring it. With ``InputError`` a scorer refuses a row."""

    @dataclass
    class Strict(Processor[TwoTowerBatch]):
        processor: TwoTowerProcessor

        def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> TwoTowerBatch:
            if "a few" in prompts:
                raise ValueError("shape mismatch")
            if "a lot" in prompts:
                raise InputError("this scorer does not know how many a lot are")
            return self.processor(prompts, images)

    class Registered(Scorer[TwoTowerBatch]):
        def __init__(self, _: object, options: LoadOptions) -> None:
            super().__init__()
            self.name = options.name
            self.brightness = stubs.Brightness()
            self.prepare = Strict(self.brightness.prepare)

        def forward(self, batch: TwoTowerBatch) -> torch.Tensor:
            if (batch.mask.sum(dim=-1) == 2 + 5).any():  # a prompt of five words
                raise ValueError("shapes differ")
            return self.brightness(batch)

    spec = ModelSpec("refuses some prompts", licence="MIT", range="any", build=Registered)
    monkeypatch.setitem(MODELS, "Registered", spec)
    text = rows.read_text()
    lines = text.splitlines(keepends=True)
    lines[8], lines[14] = "r7,a lot,2.png\n", "r13,a few,3.png\n"
    rows.write_text("".join(lines))
    with pytest.raises(DefectError, match=r"rows\.csv, row 14 \(id r13\): ValueError: shape mismatch"):
        stubs.score_here(rows, tmp_path / "out", "Registered", device="cpu", shard_size=5)
    table = result(tmp_path / "out")
    assert table["error"] == [None] * 7 + ["InputError: this scorer does not know how many a lot are"] + [None] * 2
    assert table["reward"][:7] == pytest.approx(EXPECTED[:7])
    rows.write_text(text.replace("r3,a a a a ", "r3,a a a a a"))
    with pytest.raises(DefectError, match=r"rows\.csv, row 4 \(id r3\): ValueError: shapes differ"):
        stubs.score_here(rows, tmp_path / "again", "Registered", device="cpu", shard_size=5)


def test_a_defect_in_a_process_shows_its_traceback(rows: Path, tmp_path: Path) -> None:
    rows.write_text(rows.read_text().replace("r13,a a ", "r13,a crash "))
    for num in (0, 1):
        running = job(rows, tmp_path / f"out-{num}", decoders=num, workers=1)
        _, errors = running.communicate()
        assert running.returncode == 1
        assert "rows.csv, row 14 (id r13): TypeError: the stub has a defect" in errors
        assert "in score_pairs" in errors
        assert result(tmp_path / f"out-{num}")["reward"] == pytest.approx(EXPECTED[:10])


def test_workers_that_always_die_end_the_job(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise MemoryError("every time")

    monkeypatch.setattr(ShardScorer, "score", die)
    with pytest.raises(JobError, match=r"the first 3 shards all ended their workers, so it is not the rows: .*every time"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, shard_size=5)


def test_repeated_ids_are_told(rows: Path, tmp_path: Path) -> None:
    rows.write_text(rows.read_text() + "r3,x,0.png\n")
    notes: list[str] = []
    assert stubs.score_here(rows, tmp_path / "out", stubs.load, on_note=notes.append).num_repeated_ids == 1
    assert notes == ["1 id occurs more than once in the column 'id', such as that of rows 4 and 24"]


def test_wrong_arguments(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be at least 0, not -1"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, workers=-1)
    with pytest.raises(ValueError, match="workers must be at least 1, not 0"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, engine="ray")
    with pytest.raises(ValueError, match="engine must be 'local' or 'ray'"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, engine="slurm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format must be 'parquet' or 'csv' or 'jsonl', not 'xml'"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, format="xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decoders must be at least 0, not -1"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, decoders=-1)
    with pytest.raises(InputError, match=r"shard_size must be less than 2\^31, not 1000"):
        stubs.score_here(rows, tmp_path / "out", stubs.load, shard_size=10**30)
    with pytest.raises(JobError, match="a Ray address was given, but the engine is 'local'"):
        stubs.score_here(rows, tmp_path / "deep" / "out", stubs.load, ray_address="auto")
    assert not (tmp_path / "deep" / "out").exists()  # of a job that never began nothing stays
    (tmp_path / "mine").mkdir()
    with pytest.raises(JobError, match="no column 'picture'"):
        stubs.score_here(rows, tmp_path / "mine", stubs.load, image_column="picture")
    assert (tmp_path / "mine").is_dir()  # which was there before


def test_files_of_one_name_in_several_folders(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        stubs.draw(tmp_path / folder, number + 1)
        (tmp_path / folder / f"{number}.png").rename(tmp_path / folder / "x.png")
        (tmp_path / folder / "rows.csv").write_text("prompt,image\ncat,x.png\n")
    out = tmp_path / "out"
    stubs.score_here(tmp_path / "[ab]" / "rows.csv", out, stubs.load)
    assert result(out)["image"] == ["x.png", "../b/x.png"]
    filter_rows(out, tmp_path / "best.jsonl", top_fraction=0.5)
    assert json.loads((tmp_path / "best.jsonl").read_text())["image"] == "b/x.png"
    (tmp_path / "a" / "rows.csv").write_text("prompt,image\na dog,x.png\n")
    with pytest.raises(JobError, match=r"the input has changed since it began \(files\.rows\.csv"):
        stubs.score_here(tmp_path / "[ab]" / "rows.csv", out, stubs.load)


def test_one_file_of_values_that_text_has_no_place_for(tmp_path: Path) -> None:
    image = tmp_path / stubs.draw(tmp_path, 1)[0]
    columns = {"prompt": ["a"], "image": [image.read_bytes()], "nan": [float("nan")], "blob": [b"\xff"], "list": [[{"x": float("inf")}]]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    for form in ("csv", "jsonl"):
        stubs.score_here(tmp_path / "rows.parquet", tmp_path / "out", stubs.load, format=form)  # type: ignore[arg-type]
    (row,) = csv.DictReader(io.StringIO((tmp_path / "out" / "rewards.csv").read_text()))
    assert (row["blob"], row["list"], row["nan"]) == ("/w==", '[{"x": null}]', "nan")
    text = (tmp_path / "out" / "rewards.jsonl").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (found["nan"], found["blob"], found["list"]) == (None, "/w==", [{"x": None}])


def test_the_quarantine_names_its_shards_whatever_the_columns_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs.draw(tmp_path, 1)
    (tmp_path / "rows.csv").write_text("prompt,image,shard\nfine,0.png,left\nbad,0.png,right\n")
    score = ShardScorer.score

    def die(self: ShardScorer, shard: Any, *others: Any) -> Any:
        if shard.number == 1:
            raise MemoryError("every time")
        return score(self, shard, *others)

    monkeypatch.setattr(ShardScorer, "score", die)
    assert stubs.score_here(tmp_path / "rows.csv", tmp_path / "out", stubs.load, shard_size=1).num_quarantined == 1
    assert JobFolder(tmp_path / "out").quarantined() == [1]
    monkeypatch.setattr(ShardScorer, "score", score)
    again = stubs.score_here(tmp_path / "rows.csv", tmp_path / "out", stubs.load, retry_quarantined=True)
    assert (again.num_quarantined, again.num_scored_now) == (0, 1)


def test_no_row_of_hostile_input_costs_another(tmp_path: Path) -> None:
    """Names and captions that are not UTF-8, deep JSON, half a character: each an error of its own row, and a report of all of it."""
    folder = tmp_path / "folder"
    [good] = stubs.draw(folder, 1)
    data = (folder / good).read_bytes()
    (folder / "0.txt").write_text("a cat")
    for name, caption in ((b"latin\xe9", b"a cat"), (b"both\xe9", b"caf\xe9")):
        (folder / f"{os.fsdecode(name)}.png").write_bytes(data)
        (folder / f"{os.fsdecode(name)}.txt").write_bytes(caption)
    texts = [b'{"caption": "a cat"}', b'{"caption": "a cat \\ud83d"}', b"[" * 100_000, b"[1]"]
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        for number, text in enumerate(texts):
            for kind, content in (("png", data), ("json", text)):
                member = tarfile.TarInfo(f"{number}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    lines = [{"prompt": "a cat", "image": "folder/0.png", "n": 2**62 + 1}, {"prompt": "a \ud800", "image": "folder/0.png", "n": 0.5}]
    lines += [{"prompt": "a cat", "image": name} for name in ("pipe.png", "/dev/zero", "folder", "\ud800.png", "a\0.png", "/proc/kmsg", "")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    for given, num_rows, num_errors in ((folder, 3, 1), (tmp_path / "rows.tar", 4, 3), (tmp_path / "rows.jsonl", 9, 8)):
        out = tmp_path / f"out-{given.name}"
        done = stubs.score_here(given, out, stubs.load, format="csv")
        assert (done.num_rows, done.num_errors, done.num_quarantined) == (num_rows, num_errors, 0)
        assert not (out / "tries.json").exists()
        assert summarize(out).num_errors == num_errors
        assert filter_rows(out, tmp_path / "best.jsonl", top_fraction=1.0) == num_rows - num_errors


def test_times_that_python_does_not_have_are_written_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs.draw(tmp_path, 1)
    nanoseconds = pa.array([1, 10**18 + 1], pa.timestamp("ns"))
    inside = pa.array([{"at": 5}, None], pa.struct([("at", pa.timestamp("ns", "UTC"))]))
    columns = {
        "prompt": ["a", "bad"],
        "image": ["0.png"] * 2,
        "at": nanoseconds,
        "in": inside,
        "for": pa.array([5, None], pa.duration("ns")),
    }
    late = pa.array([2**58, 0], pa.timestamp("ms"))
    pq.write_table(pa.table(columns | {"late": late, "day": pa.array([0, 1], pa.date32())}), tmp_path / "rows.parquet")
    score = ShardScorer.score

    def die(self: ShardScorer, shard: Any, *others: Any) -> Any:
        if shard.number == 1:
            raise MemoryError("every time")
        return score(self, shard, *others)

    monkeypatch.setattr(ShardScorer, "score", die)
    for form in ("csv", "jsonl"):
        stubs.score_here(tmp_path / "rows.parquet", tmp_path / "out", stubs.load, format=form, shard_size=1)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in (tmp_path / "out" / "rewards.jsonl").read_text().splitlines()]
    assert [row["at"] for row in rows] == ["1970-01-01 00:00:00.000000001", "2001-09-09 01:46:40.000000001"]
    assert rows[0]["in"] == {"at": "1970-01-01 00:00:00.000000005Z"}
    assert (rows[0]["for"], rows[0]["day"]) == (5, "1970-01-01")
    [given_up] = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert given_up["at"] == "2001-09-09 01:46:40.000000001"
    assert filter_rows(tmp_path / "out", tmp_path / "best.csv", top_fraction=1.0) == 1


# --- with real processes ---


def job(rows: Path, out: Path, seconds: float = 0.0, **options: Any) -> subprocess.Popen[str]:
    """A job of two workers in a process group of its own. It prints its notes, and how far it is."""
    code = f"""
if __name__ == "__main__":
    import functools, stubs
    from image_reward.jobs import score_files
    seen = []
    def tell(progress):
        line = f"{{progress.num_workers}} workers, {{progress.num_rows}} rows"
        if line not in seen:
            seen.append(line)
            print(line, flush=True)
    load = functools.partial(stubs.load, seconds={seconds})
    options = dict(workers=2, shard_size=5) | {options!r}
    result = score_files({str(rows)!r}, {str(out)!r}, load, on_progress=tell, on_note=lambda note: print(note, flush=True), **options)
    print("done:", result.num_scored_now, result.num_quarantined)
"""
    script = out.with_suffix(".py")
    script.write_text(code)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path}, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def wait_for_parts(running: subprocess.Popen[str], out: Path, count: int) -> None:
    while len(list(out.glob("part-*.parquet"))) < count:
        assert running.poll() is None, f"it ended before there were {count} parts in {out}"
        time.sleep(0.01)


def wait_for_line(running: subprocess.Popen[str], pattern: str) -> None:
    """Read what the job prints until a line matches."""
    assert running.stdout is not None
    for line in running.stdout:
        if re.match(pattern, line):
            return
    raise AssertionError(f"it ended without a line {pattern!r}: {running.communicate()[1]}")


def test_killed_at_any_moment_and_begun_again(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = job(rows, out, seconds=0.05)
    wait_for_parts(killed, out, random.randint(1, 3))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    again = job(rows, out)
    printed, errors = again.communicate()
    assert again.returncode == 0, errors
    assert 0 < int(printed.split("done:")[1].split()[0]) < 23
    assert result(out)["reward"] == pytest.approx(EXPECTED)
    assert result(out)["id"] == [f"r{n}" for n in range(23)]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing is scored twice
    assert not (out / ".unfinished").exists()


def test_ctrl_c_finishes_the_shards_in_work(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = job(rows, out, seconds=0.05)
    wait_for_parts(running, out, 1)
    running.send_signal(signal.SIGINT)
    printed, errors = running.communicate()
    assert "finishing the shards in work" in printed
    assert "rows are done; run the same command again to go on" in errors
    num_done = len(list(out.glob("part-*.parquet")))
    assert 1 <= num_done < 5
    assert result(out)["reward"] == pytest.approx([reward for n, reward in enumerate(EXPECTED) if (out / part_name(n // 5)).exists()])


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups on this system")
def test_stopped_with_its_whole_process_group_no_shard_is_to_blame(rows: Path, tmp_path: Path) -> None:
    """As `timeout`, systemd and Slurm stop programs: while workers load, when one is ready, when rows are scored."""
    out = tmp_path / "out"
    for moment in ("0 workers", "1 workers", "1 workers, [1-9]"):
        running = job(rows, out, seconds=0.05, workers=1, decoders=1)
        wait_for_line(running, moment)
        for _ in range(2):  # `timeout` sends it to the program and then to its group
            os.killpg(running.pid, signal.SIGTERM)
        _, errors = running.communicate()
        assert running.returncode == 1, errors
        assert "of 23 rows are done; run the same command again to go on" in errors
        assert JobFolder(out).tries() == {}
    undisturbed = job(rows, out, workers=1)
    _, errors = undisturbed.communicate()
    assert undisturbed.returncode == 0, errors
    assert not (out / "tries.json").exists()
    assert result(out)["reward"] == pytest.approx(EXPECTED)
    assert result(out)["id"] == [f"r{n}" for n in range(23)]
    assert result(out)["error"] == [None] * 23


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    images = stubs.draw(tmp_path / "in", 5)
    table = pa.table({"prompt": ["kill" if n == 7 else "a" for n in range(20)], "image": [images[n % 5] for n in range(20)]})
    pq.write_table(table, tmp_path / "in" / "rows.parquet")
    running = job(tmp_path / "in" / "rows.parquet", tmp_path / "out")
    printed, errors = running.communicate()
    assert running.returncode == 0, errors
    assert printed.splitlines()[-1] == "done: 20 5"
    found = result(tmp_path / "out")
    assert found["reward"] == [None if 5 <= n < 10 else pytest.approx(1 + n % 5 / 255) for n in range(20)]
    assert "ended by SIGKILL, which the system does to programs when memory runs out" in found["error"][7]


def test_a_model_that_cannot_be_loaded(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no model, file or folder is called 'ImageReward-mono'\. Did you mean ImageReward-mini\?"):
        stubs.score_here(rows, tmp_path / "out", "ImageReward-mono", workers=1)


def test_a_row_that_kills_a_decoder_costs_its_shard_alone(rows: Path, tmp_path: Path) -> None:
    lines = rows.read_text().splitlines(keepends=True)
    lines[8] = "r7,kill,2.png\n"
    rows.write_text("".join(lines[:11]))
    done = stubs.score_here(rows, tmp_path / "out", stubs.load_killed_decoders, decoders=1, shard_size=5)
    assert (done.num_rows, done.num_quarantined) == (10, 5)
    table = result(tmp_path / "out")
    assert table["reward"] == [*map(pytest.approx, EXPECTED[:5]), *[None] * 5]
    reason = "a process that prepares batches died, as it does when memory runs out"
    assert set(table["error"][5:]) == {f"Quarantined: the worker died 3 times on this shard: {reason}"}


def test_decoders_prepare_ahead(rows: Path, tmp_path: Path) -> None:
    rows.write_text(rows.read_text() + "late,a,none.png\n")
    load = partial(stubs.load, seconds=0.01)
    done = stubs.score_here(rows, tmp_path / "out", load, workers=1, decoders=2, shard_size=5, batch_size=2)
    assert (done.num_rows, done.num_errors) == (24, 1)
    assert result(tmp_path / "out")["reward"][:23] == pytest.approx(EXPECTED)
