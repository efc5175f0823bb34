"""Jobs and commands whose rows, images and results are in a bucket, as a real S3 server has them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stubs
from reading import write_tar

import object_store
from image_reward.cli import main
from image_reward.comparisons import audit, convert, read
from image_reward.errors import AddressError, JobError, StoreError
from image_reward.evaluation import read_rewards
from image_reward.images import open_image
from image_reward.jobs.folder import part_name
from image_reward.jobs.results import filter_rows, summarize

EXPECTED = [n % 4 + 1 + n % 5 / 255 for n in range(23)]
NAMES = ["0.png", "a cat.png", "#2.png", "what?.png", "猫 é.png"]


@pytest.fixture
def images(bucket: Any, tmp_path: Path) -> Path:
    """Five images with captions as ``s3://bkt/imgs``, whose names need quoting in URLs, and on this machine."""
    stubs.draw(tmp_path / "imgs", 5)
    for number, name in enumerate(NAMES):
        (tmp_path / "imgs" / f"{number}.png").rename(tmp_path / "imgs" / name)
        bucket.put_file(tmp_path / "imgs" / name, f"bkt/imgs/{name}")
        bucket.pipe_file(f"bkt/imgs/{name.removesuffix('.png')}.txt", b"a " * (number + 1))
    return tmp_path / "imgs"


@pytest.fixture
def rows(images: Path, bucket: Any) -> str:
    """23 rows: images are named relative to the file, and by their addresses."""
    names = [path.name for path in images.iterdir()]
    assert sorted(names) == sorted(NAMES)
    lines = [
        {"id": f"r{n}", "prompt": "a " * (n % 4 + 1), "image": f"{'s3://bkt/imgs' if n % 2 else '../imgs'}/{NAMES[n % 5]}"}
        for n in range(23)
    ]
    bucket.pipe_file("bkt/in/rows.jsonl", "\n".join(map(json.dumps, lines)).encode())
    return "s3://bkt/in/rows.jsonl"


def rewards(store: Any, folder: str) -> list[float]:
    names = sorted(path for path in store.find(folder) if path.endswith(".parquet"))
    return [reward for name in names for reward in pq.read_table(io.BytesIO(store.cat_file(name))).column("reward").to_pylist()]


# --- jobs ----------------------------------------------------------------------------------------------------------------------------


def test_a_job_in_a_bucket_and_the_same_again(rows: str, bucket: Any, tmp_path: Path) -> None:
    out = "s3://bkt/out put #1"
    done = stubs.score_here(rows, out, stubs.load, shard_size=5, format="csv")
    assert (done.num_rows, done.num_errors, done.file) == (23, 0, f"{out}/rewards.csv")
    parts = [part_name(n) for n in range(5)]
    assert object_store.files_of(bucket, "bkt/out put #1") == ["manifest.json", *parts, "rewards.csv", "shards.arrow", "summary.json"]
    assert rewards(bucket, "bkt/out put #1") == pytest.approx(EXPECTED)
    bucket.rm_file(f"bkt/out put #1/{part_name(1)}")
    bucket.pipe_file(f"bkt/out put #1/{part_name(3)}", b"cut short")
    assert stubs.score_here(rows, out, stubs.load).num_scored_now == 10
    assert rewards(bucket, "bkt/out put #1") == pytest.approx(EXPECTED)
    assert stubs.score_here(rows, out, stubs.load).num_scored_now == 0
    assert summarize(out).num_images == 5
    assert filter_rows(out, tmp_path / "best.csv", top_fraction=0.1) == 3
    assert "s3://bkt/in/../imgs" not in (tmp_path / "best.csv").read_text()
    with pytest.raises(JobError, match="the scorer has changed since it began"):
        stubs.score_here(rows, out, partial(stubs.load, weight=2.0))


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("kind", ["parquet of paths", "parquet of bytes", "tar", "csv"])
def test_rows_of_every_kind(kind: str, images: Path, bucket: Any, tmp_path: Path) -> None:
    contents = [(images / name).read_bytes() for name in NAMES]
    if kind == "tar":
        members = {f"{n}.{form}": data for n in range(5) for form, data in (("png", contents[n]), ("txt", b"a"))}
        write_tar(tmp_path / "rows.tar", members)
        bucket.put_file(tmp_path / "rows.tar", "bkt/in/rows.tar")
    elif kind == "csv":
        bucket.pipe_file("bkt/in/rows.csv", ("prompt,image\n" + "".join(f"a,../imgs/{name}\n" for name in NAMES)).encode())
    else:
        column = contents if kind.endswith("bytes") else [f"s3://bkt/imgs/{name}" for name in NAMES]
        sink = io.BytesIO()
        pq.write_table(pa.table({"prompt": ["a"] * 5, "image": column}), sink)
        bucket.pipe_file("bkt/in/rows.parquet", sink.getvalue())
    done = stubs.score_here("s3://bkt/in", "s3://bkt/out.parquet", stubs.load)
    assert (done.num_rows, done.num_errors) == (5, 0)
    assert rewards(bucket, "bkt/out.parquet") == pytest.approx([1 + n / 255 for n in range(5)])
    assert main(["report", "s3://bkt/out.parquet", "--report", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("data:image/") == 10  # the best and the worst


@pytest.mark.usefixtures("images")
def test_a_folder_of_images_with_captions(bucket: Any) -> None:
    bucket.pipe_file("bkt/imgs/more/lost.png", b"no image")
    bucket.pipe_file("bkt/imgs/photo.heic", b"x")
    notes: list[str] = []
    done = stubs.score_here("s3://bkt/imgs", "s3://bkt/out", stubs.load, shard_size=2, on_note=notes.append)
    assert (done.num_rows, done.num_errors) == (6, 1)
    assert notes == ["s3://bkt/imgs: 1 file was passed over: photo.heic"]
    order = sorted(range(5), key=NAMES.__getitem__)
    found = rewards(bucket, "bkt/out")
    assert [reward for reward in found if reward is not None] == pytest.approx([n + 1 + n / 255 for n in order])
    assert stubs.score_here("s3://bkt/imgs/", "s3://bkt/out", stubs.load).num_scored_now == 0
    bucket.pipe_file("bkt/imgs/0.png", b"another")
    with pytest.raises(JobError, match="the input has changed since it began"):
        stubs.score_here("s3://bkt/imgs", "s3://bkt/out", stubs.load)


def test_a_glob_takes_no_folder_for_a_file(rows: str, bucket: Any) -> None:
    stubs.score_here(rows, "s3://bkt/in/out.jsonl", stubs.load)
    bucket.cp_file("bkt/in/rows.jsonl", "bkt/in/more.jsonl")
    assert stubs.score_here("s3://bkt/in/*.jsonl", "s3://bkt/out", stubs.load).num_rows == 46
    with pytest.raises(FileNotFoundError, match=r"no such file of rows: s3://bkt/in/\*\.csv"):
        stubs.score_here("s3://bkt/in/*.csv", "s3://bkt/out2", stubs.load)


SCRIPT = """
import sys
import stubs
from functools import partial
if __name__ == "__main__":
    def show(progress):
        print(progress.num_rows, flush=True)
    stubs.score_files(*sys.argv[1:], partial(stubs.load, seconds=0.05), workers=1, shard_size=2, batch_size=1, on_progress=show)
"""


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    (tmp_path / "job.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(stubs.__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, str(tmp_path / "job.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_killed_job_goes_on_where_it_was(rows: str, bucket: Any, tmp_path: Path) -> None:
    with start(tmp_path, rows, "s3://bkt/out") as running:
        assert running.stdout is not None
        for line in running.stdout:
            if int(line) >= 6:
                break
        running.kill()
    before = [name for name in object_store.files_of(bucket, "bkt/out") if name.startswith("part-")]
    assert 2 <= len(before) < 12
    contents = {name: bucket.cat_file(f"bkt/out/{name}") for name in before}
    again = stubs.score_here(rows, "s3://bkt/out", stubs.load)
    assert (again.num_rows, again.num_scored_now) == (23, 23 - 2 * len(before))
    assert {name: bucket.cat_file(f"bkt/out/{name}") for name in before} == contents
    assert rewards(bucket, "bkt/out") == pytest.approx(EXPECTED)


def test_a_store_that_fails_is_one_error_and_a_missing_image_is_a_row(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs.draw(tmp_path / "in", 1)
    path = tmp_path / "in" / "rows.csv"
    path.write_text("prompt,image\na,0.png\na,s3://bkt/none.png\na,s3://none/0.png\na,ftp://x/0.png\n")
    assert stubs.score_here(path, "s3://bkt/out", stubs.load).num_errors == 3
    [table] = [pq.read_table(io.BytesIO(bucket.cat_file(f"bkt/out/{part_name(0)}")))]
    errors = table.column("error").to_pylist()
    assert errors[1] == "FileNotFoundError: no such image: s3://bkt/none.png"
    assert "there is no bucket 'none'" in errors[2]
    assert "ftp:// is not read here" in errors[3]
    with pytest.raises(AddressError, match="there is no bucket 'none'"):
        stubs.score_here(path, "s3://none/out", stubs.load)
    object_store.use_endpoint("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(StoreError, match=r"s3://bkt/out.* cannot be read: its server does not answer"):
        stubs.score_here(path, "s3://bkt/out", stubs.load)
    with pytest.raises(JobError, match=r"s3://bkt/none\.png cannot be read: its server does not answer"):
        stubs.score_here(path, tmp_path / "out", stubs.load)


def test_a_program_from_standard_input_is_one_error(tmp_path: Path) -> None:
    stubs.draw(tmp_path, 1)
    (tmp_path / "rows.csv").write_text("prompt,image\na,0.png\n")
    path = os.pathsep.join([str(Path(stubs.__file__).parent), *sys.path])
    script = "import stubs\nstubs.score_files('rows.csv', 'out', stubs.load, workers=1)\n"
    done = subprocess.run(
        [sys.executable, "-"],
        input=script,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "save the program to a file, with the call under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]


# --- commands ------------------------------------------------------------------------------------------------------------------------


def test_filter_and_report_write_to_the_bucket(rows: str, bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stubs.score_here(rows, "s3://bkt/out", stubs.load)
    assert main(["filter", "s3://bkt/out", "--best-per-prompt", "1", "--output", "s3://bkt/best/rows.csv"]) == 0
    assert capsys.readouterr().err == "4 rows kept: s3://bkt/best/rows.csv\n"
    best = list(csv.DictReader(io.StringIO(bucket.cat_file("bkt/best/rows.csv").decode())))
    assert {row["image"] for row in best} == {"s3://bkt/imgs/猫 é.png"}
    assert main(["report", "s3://bkt/out", "--report", "s3://bkt/page.html", "--report", "s3://bkt/page.json"]) == 0
    assert b"data:image/" in bucket.cat_file("bkt/page.html")
    assert json.loads(bucket.cat_file("bkt/page.json"))["num_rows"] == 23
    assert main(["report", "s3://bkt/nothing"]) == 1
    assert main(["report", "s3://bkt/out", "--report", "s3://none/page.html"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-2] == "image-reward: there is no folder s3://bkt/nothing"
    assert "there is no bucket 'none'" in errors[-1]


@pytest.mark.usefixtures("images")
def test_images_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = ["--model", "ImageReward-mini", "--json"]
    assert main(["rank", "a", "s3://bkt/imgs", "--copy-to", str(tmp_path / "best"), "--top", "2", *model]) == 0
    ranked = json.loads(capsys.readouterr().out)["images"]
    assert len(ranked) == 2
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == sorted(
        f"{row['rank']}_{row['image'].removeprefix('s3://bkt/imgs/')}" for row in ranked
    )
    assert main(["score", "a", "s3://bkt/imgs/*a*.png", "s3://bkt/imgs/#2.png", *model]) == 0
    assert [row["image"] for row in json.loads(capsys.readouterr().out)["images"]] == [
        f"s3://bkt/imgs/{name}" for name in ("a cat.png", "what?.png", "#2.png")
    ]
    assert main(["compare", "a", "s3://bkt/imgs/0.png", "s3://bkt/imgs/what?.png", *model]) == 0
    capsys.readouterr()
    for arguments, message in (
        (["s3://bkt/imgs/none.png"], "no such image: s3://bkt/imgs/none.png"),
        (["s3://none/1.png"], "there is no bucket 'none'"),
        (["https://host/1.png"], "https:// is not read here; download it first"),
        (["s3://bkt/imgs/0.png", "--copy-to", "s3://bkt/best"], "is an address as a Path"),
    ):
        assert main(["rank", "a", *arguments, *model]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.usefixtures("images")
def test_human_rankings(bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranking = {"id": "x", "prompt": "a cat", "images": ["imgs/0.png", "s3://bkt/imgs/a cat.png"], "ranks": [2, 1]}
    bucket.pipe_file("bkt/rank.jsonl", json.dumps(ranking).encode())
    [comparison] = read("s3://bkt/rank.jsonl")
    assert comparison.images == ("s3://bkt/imgs/0.png", "s3://bkt/imgs/a cat.png")
    assert open_image(comparison.images[1]).size == (8, 8)
    assert main(["data", "check", "s3://bkt/rank.jsonl"]) == 0
    assert not audit(["s3://bkt/rank.jsonl"], fast=True).findings
    convert("s3://bkt/rank.jsonl", tmp_path / "here.jsonl")
    assert read(tmp_path / "here.jsonl")[0].images == comparison.images
    bucket.pipe_file("bkt/rewards.json", b'{"x": [0.5, 1.5]}')
    assert read_rewards("s3://bkt/rewards.json", [comparison]) == [[0.5, 1.5]]
    evaluated = ["evaluate", "s3://bkt/rank.jsonl", "--rewards", "s3://bkt/rewards.json", "--resamples", "10"]
    capsys.readouterr()
    assert main([*evaluated, "--report", "s3://bkt/evaluation.md"]) == 0
    assert b"rewards" in bucket.cat_file("bkt/evaluation.md")
    bucket.pipe_file("bkt/rank.jsonl", json.dumps(ranking | {"images": ["imgs/0.png", "imgs/none.png"]}).encode())
    assert [finding.kind for finding in audit(["s3://bkt/rank.jsonl"]).findings] == ["missing image"]
    sink = io.BytesIO()
    contents = [bucket.cat_file("bkt/imgs/0.png"), bucket.cat_file("bkt/imgs/a cat.png")]
    pq.write_table(pa.table({"prompt": ["a"] * 2, "image": contents, "rank": [1, 2]}), sink)
    bucket.pipe_file("bkt/set/train.parquet", sink.getvalue())
    assert convert("s3://bkt/set", tmp_path / "inside.jsonl").num_extracted == 2
    with pytest.raises(AddressError, match="only a path of this machine will do here"):
        convert("s3://bkt/set", "s3://bkt/converted.jsonl")


@pytest.mark.parametrize(
    "arguments",
    [
        ["benchmark", "s3://bkt/generated", "--prompts", "ImageReward"],
        ["benchmark", "--results", "s3://bkt/results"],
        ["benchmark", "--manifest", "s3://bkt/manifest.csv"],
        ["train", "--data", "shapes:20", "--output", "s3://bkt/run", "--start", "ImageReward-mini"],
        ["pretrain", "--data", "shapes:20", "--output", "s3://bkt/run"],
        ["data", "convert", "nothing.json", "s3://bkt/converted.jsonl"],
        ["data", "split", "nothing.json", "s3://bkt/split"],
        ["export", "s3://bkt/model.onnx", "--model", "ImageReward-mini"],
        ["models", "convert", "ImageReward-mini", "s3://bkt/model"],
        ["models", "info", "s3://bkt/model"],
        ["models", "info", "https://host/model.onnx"],
        ["models", "info", "ImageReward-mini", "--config", "s3://bkt/config.json"],
    ],
)
def test_what_is_read_and_written_on_this_machine_alone_says_so(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "only a path of this machine will do here" in error
    assert not list(tmp_path.iterdir())
