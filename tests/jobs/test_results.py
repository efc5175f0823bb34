from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stubs

from image_reward.cli import main
from image_reward.errors import JobError
from image_reward.jobs.files import Folder
from image_reward.jobs.folder import write_part
from image_reward.jobs.report import job_report
from image_reward.jobs.results import Scored, filter_rows, summarize
from image_reward.jobs.rows import Shard
from image_reward.reports.render import write

NUM = 40


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """40 rows, 4 of them wrong, of 8 prompts and 10 images, two of which are the same; rewards are -n/255 for image n, plus words."""
    names = stubs.draw(tmp_path / "in", 10)
    (tmp_path / "in" / "9.png").write_bytes((tmp_path / "in" / "8.png").read_bytes())
    order = list(range(NUM))
    random.Random(0).shuffle(order)
    rows = [{"id": n, "prompt": f"{'a ' * (n % 4)}{['cat', 'dog'][n % 8 // 4]}", "image": names[n % 10]} for n in order]
    for place, wrong in enumerate([{"prompt": None}, {"image": "none.png"}, {"image": "none.png"}, {"prompt": "nan"}]):
        rows[9 * place] |= wrong
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stubs.score_here(tmp_path / "in" / "rows.jsonl", tmp_path / "out", lambda _: [stubs.Brightness(weight=-1.0)], shard_size=7)
    return tmp_path / "out"


def all_rows(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    return pq.read_table(sorted(folder.glob("part-*.parquet"))).to_pylist()


def kept(folder: Path, **how: object) -> list[int]:
    out = io.StringIO()
    count = filter_rows(folder, out, **how)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(rows) == count
    return [row["id"] for row in rows]


def test_keeping_the_best(scored: Path) -> None:
    rows = all_rows(scored)
    good = [row for row in rows if row["reward"] is not None]
    assert len(good) == NUM - 4
    assert kept(scored, min_reward=3.0) == [row["id"] for row in good if row["reward"] >= 3.0]
    assert kept(scored, min_reward=-99) == [row["id"] for row in good]
    for fraction in (0.01, 0.1, 0.25, 0.5, 0.999, 1.0):
        best = sorted(range(len(good)), key=lambda n: (-good[n]["reward"], n))[: int(np.ceil(fraction * len(good)))]
        assert kept(scored, top_fraction=fraction) == [good[n]["id"] for n in sorted(best)]
    for count in (1, 2, 100):
        best_of = set()
        for prompt in {row["prompt"] for row in good}:
            of_prompt = [row for row in good if row["prompt"] == prompt]
            best_of |= {row["id"] for row in sorted(of_prompt, key=lambda row: -row["reward"])[:count]}
        assert kept(scored, best_per_prompt=count) == [row["id"] for row in good if row["id"] in best_of]


def test_kept_rows_can_be_scored_again(scored: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        target = tmp_path / "kept" / f"rows.{suffix}"
        assert filter_rows(scored, target, min_reward=3.0) > 3
        if suffix == "parquet":
            table = pq.read_table(target)
            assert table["image"][0].as_py().startswith("../in/")
            pq.write_table(table.drop_columns(["reward", "error"]), target)
            again = stubs.score_here(target, tmp_path / "again", lambda _: [stubs.Brightness(weight=-1.0)])
            assert again.num_errors == 0
            assert pq.read_table(tmp_path / "again" / "part-000000.parquet")["reward"].to_pylist() == table["reward"].to_pylist()
    with pytest.raises(ValueError, match=r"rows are written as \.parquet, \.csv or \.jsonl"):
        filter_rows(scored, tmp_path / "rows.txt", min_reward=3.0)


def test_what_filter_refuses(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, message in [
        ({}, "give one of"),
        ({"min_reward": 1.0, "top_fraction": 0.1}, "give one of"),
        ({"min_reward": float("nan")}, "not a number"),
        ({"top_fraction": 0.0}, r"must be in \(0, 1\]"),
        ({"best_per_prompt": 0}, "at least 1"),
        ({"min_reward": 1.0, "by": "clip"}, "has no scorer 'clip': --by brightness"),
    ]:
        with pytest.raises((ValueError, JobError), match=message):
            kept(scored, **wrong)
    with pytest.raises(ValueError, match=r"part-000001\.parquet is a part of the job itself"):
        filter_rows(scored, scored / "part-000001.parquet", min_reward=0)
    rows = tmp_path / "in" / "rows.jsonl"
    before = rows.read_bytes()
    for path in (rows, tmp_path / "out" / ".." / "in" / "rows.jsonl"):
        with pytest.raises(ValueError, match="is what was scored, and would be overwritten; give the rows another name"):
            filter_rows(scored, path, min_reward=0)
    assert rows.read_bytes() == before
    assert kept(scored, top_fraction=1e-12) == kept(scored, top_fraction=0.01)  # one row: rounded up
    (scored / "part-000002.parquet").write_bytes(b"cut short")
    with pytest.raises(JobError, match=r"part-000002\.parquet is damaged \(.*\); run the command that began the job again"):
        kept(scored, min_reward=0)
    (scored / "part-000002.parquet").unlink()
    with pytest.raises(JobError, match=r"holds 33 of 40 rows; finish the job first"):
        kept(scored, min_reward=1.0)
    with pytest.raises(JobError, match=r"is not the folder of a job: it has no manifest\.json"):
        kept(tmp_path, min_reward=1.0)
    with pytest.raises(JobError, match=r"there is no folder .*nowhere$"):
        kept(tmp_path / "nowhere", min_reward=1.0)
    for option, message in [
        ("--top-fraction=2", "--top-fraction is a share of the rows, more than 0 and at most 1, not 2"),
        ("--best-per-prompt=0", "--best-per-prompt must be at least 1, not 0"),
        ("--min-reward=nan", "--min-reward is not a number"),
    ]:
        assert main(["filter", str(scored), option]) == 2
        assert message in capsys.readouterr().err
    assert main(["filter", str(scored)]) == 2
    assert "give one of --min-reward, --top-fraction and --best-per-prompt" in capsys.readouterr().err


def test_parts_are_read_without_threads_that_could_outlive_the_program(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    read = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda *args, **options: (threads.append(options["use_threads"]), read(*args, **options))[1]
    )
    assert kept(scored, min_reward=-99)
    assert set(threads) == {False}


def test_several_scorers_are_told_apart(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path / "in", 4)
    pq.write_table(pa.table({"prompt": ["a"] * 4, "image": names, "id": range(4)}), tmp_path / "in" / "rows.parquet")
    stubs.score_here(
        tmp_path / "in" / "rows.parquet", tmp_path / "out", lambda _: [stubs.Brightness("up"), stubs.Brightness("down", weight=-1.0)]
    )
    assert kept(tmp_path / "out", top_fraction=0.25, by="up") == [3]
    assert kept(tmp_path / "out", top_fraction=0.25, by="reward:down") == [0]
    with pytest.raises(JobError, match="has several scorers; name the one to go by: --by up or down"):
        kept(tmp_path / "out", min_reward=0.0)
    assert [scorer.best[0].image for scorer in summarize(tmp_path / "out").scorers] == ["3.png", "0.png"]


def write_job(folder: Path, columns: dict[str, list[object]], rewards: list[float], shard_size: int = 100) -> Path:
    """What a job would write for these columns and rewards."""
    table = pa.table(columns)
    manifest = {
        "format": "image-reward job",
        "version": 1,
        "input": {"prompt_column": "prompt"},
        "base": str(folder),
        "image_column": "image",
        "columns": table.column_names,
        "num_rows": len(table),
        "repeated_ids": 0,
        "scorers": [{"name": "brightness"}],
    }
    job = Folder.at(str(folder))
    job.create()
    job.write("manifest.json", json.dumps(manifest).encode())
    for number, start in enumerate(range(0, len(table), shard_size)):
        part = table.slice(start, shard_size)
        values = rewards[start : start + shard_size]
        errors = {row: "RewardError: NaN" for row, value in enumerate(values) if np.isnan(value)}
        write_part(job, Shard(number, "rows.csv", start, start, len(part), start), part, {"reward": values}, errors, {})
    return folder


def test_the_best_share_is_exact_whatever_the_rewards(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    values[::7], values[::11], values[3], values[4], values[5] = 0.25, np.nan, -0.0, np.float32(1e-40), np.float32(3e38)
    job = write_job(tmp_path / "out", {"prompt": ["a"] * 1000, "image": ["0.png"] * 1000, "id": [*range(1000)]}, values.tolist())
    order = [int(n) for n in np.argsort(-values, kind="stable") if not np.isnan(values[n])]  # of equal rewards the first
    for fraction in (0.001, 0.3, 0.5, 0.9, 1.0):
        assert kept(job, top_fraction=fraction) == sorted(order[: int(np.ceil(fraction * len(order)))])
    for count in (1, 130, 5000):
        assert kept(job, best_per_prompt=count) == sorted(order[:count])
    for least in (0.25, float(values[8]), np.nextafter(float(values[8]), 1)):
        assert kept(job, min_reward=least) == sorted(n for n in order if values[n] >= least)
    found = summarize(job, num_shown=200).scorers[0]
    assert [row.row for row in found.best] == order[:200]
    assert [row.row for row in found.worst] == sorted(order, key=lambda n: (values[n], n))[:200]
    assert found.best[0].reward == float(np.float32(3e38))


def test_rows_go_to_streams_of_any_encoding(tmp_path: Path) -> None:
    job = write_job(tmp_path / "out", {"prompt": ["ü 漢字 😀"], "image": ["0.png"]}, [1.0])
    for encoding in ("ascii", "cp1252", "gbk", "utf-8", "utf-16"):
        written = io.BytesIO()
        with io.TextIOWrapper(written, encoding=encoding, write_through=True) as stream:
            assert filter_rows(job, stream, min_reward=0) == 1
            assert json.loads(written.getvalue().decode(encoding))["prompt"] == "ü 漢字 😀"


def test_columns_and_folders_of_any_name(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"Prompt": ["x", "y"], "prompt": ["a", "a"], "Reward": [7, 8], "file": ["k", "k"], "row": [5, 5]}
    job = write_job(
        tmp_path / "it's [v1] *?", columns | {"image": ["0.png", "1.png"], "id": [1, 2], "part": ["", ""], "c0": [0, 0]}, [1.0, 2.0]
    )
    assert kept(job, best_per_prompt=1) == [2]
    assert [row.prompt for row in summarize(job).scorers[0].best] == ["a", "a"]
    out = io.StringIO()
    filter_rows(job, out, min_reward=2.0)
    assert json.loads(out.getvalue()) == {
        **{name: values[1] for name, values in columns.items()},
        "image": str(job / "1.png"),
        "id": 2,
        "part": "",
        "c0": 0,
        "reward": 2.0,
        "error": None,
    }


def test_a_summary(scored: Path) -> None:
    rows = all_rows(scored)
    rewards = np.array([row["reward"] for row in rows if row["reward"] is not None])
    found = summarize(scored, num_shown=3)
    assert (found.num_rows, found.num_errors) == (NUM, 4)
    assert found.errors == {"FileNotFoundError": 2, "PromptError": 1, "RewardError": 1}
    assert found.examples["PromptError"] == "the row has no prompt"
    assert found.num_images == 9
    assert found.num_copies == NUM - 3 - 9  # all rows but three have a prompt and an image that could be read
    [scorer] = found.scorers
    assert (scorer.num, sum(scorer.counts)) == (36, 36)
    assert scorer.mean == pytest.approx(rewards.mean())
    assert scorer.std == pytest.approx(rewards.std())
    width = (rewards.max() - rewards.min()) / 6000
    assert scorer.quantiles["0.5"] == pytest.approx(np.quantile(rewards, 0.5, method="inverted_cdf"), abs=1.01 * width)
    assert [row.reward for row in scorer.best] == sorted(rewards, reverse=True)[:3]
    assert [row.reward for row in scorer.worst] == sorted(rewards)[:3]
    assert all(rows[row.row]["image"] == row.image for row in scorer.best)
    pairs = {
        (row["prompt"], "8.png" if row["image"] == "9.png" else row["image"])
        for row in rows
        if row["prompt"] and row["image"] != "none.png"
    }
    assert found.num_repeated_pairs == NUM - 3 - len(pairs)


def test_a_report_as_a_page_and_on_a_terminal(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(scored), "--report", str(page), "--show", "2"]) == 0
    printed = capsys.readouterr()
    assert "36 have a reward and 4 an error" in printed.out
    assert "FileNotFoundError" in printed.out
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/") == 4
    assert "<svg" in html
    assert main(["report", str(scored), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_rows"] == NUM
    assert main(["report", str(scored), "--report", "page.pdf"]) == 2
    (tmp_path / "in" / "0.png").unlink()
    write(job_report(summarize(scored), Scored(scored).image), page)
    assert "some of them cannot be opened from here" in page.read_text(encoding="utf-8")


def test_a_job_whose_rows_are_all_wrong_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,image\na,none.png\n")
    stubs.score_here(tmp_path / "rows.csv", tmp_path / "out", stubs.load)
    found = summarize(tmp_path / "out")
    assert (found.scorers[0].num, found.scorers[0].mean, found.num_images) == (0, None, 0)
    write(job_report(found, Scored(tmp_path / "out").image), tmp_path / "report.md")
    assert "FileNotFoundError" in (tmp_path / "report.md").read_text()
    assert kept(tmp_path / "out", top_fraction=0.5) == []
    assert filter_rows(tmp_path / "out", tmp_path / "none.parquet", best_per_prompt=1) == 0
    assert pq.read_table(tmp_path / "none.parquet").column_names == ["prompt", "image", "reward", "error"]
