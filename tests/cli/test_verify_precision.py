from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_reward.cli import main

EXAMPLES = str(Path(__file__).parents[2] / "examples" / "shapes")
PROMPT = "a large green square above a yellow triangle on a blue background"
COMMAND = ["verify-precision", EXAMPLES, "--model", "ImageReward-mini", "--device", "cpu"]


def test_as_json_and_as_a_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\na red circle\n", encoding="utf-8")
    page = tmp_path / "report.md"
    assert main([*COMMAND, "--repeats", "1", "--dtype", "bfloat16", "--prompts", str(prompts), "--json", "--report", str(page)]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["model"] == "ImageReward-mini"
    assert found["way"] == "bfloat16"
    assert (found["num_prompts"], found["num_images"]) == (2, 9)
    assert found["num_pairs"] == 2 * 36
    assert 0 < found["mean_difference"] < found["largest_difference"] < 0.1
    assert found["spearman"] > 0.95
    assert found["share_flipped"] == found["num_flips"] / 72
    speeds = found["images_per_second"]
    assert speeds["ratio"] == pytest.approx(speeds["reduced"] / speeds["float32"])
    assert f"report: {page}" in captured.err
    assert "ImageReward-mini in bfloat16 against float32" in page.read_text(encoding="utf-8")


def test_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    assert main([*COMMAND, "--repeats", "1", "--dtype", "int8", "--prompt", PROMPT]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("ImageReward-mini in int8 against float32", "1 prompt with 9 images", "of 36 (", "images per second, int8"):
        assert words in out


def test_too_many_flips(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from image_reward.scorers import precision

    upside_down = lambda a, b, real=precision.agreement: real(a, -b)  # noqa: E731
    monkeypatch.setattr(precision, "agreement", upside_down)
    assert main([*COMMAND, "--repeats", "1", "--dtype", "bfloat16", "--prompt", PROMPT, "--max-flips", "0.5"]) == 1
    assert "1.0000 of the pairs flipped, more than 0.5" in capsys.readouterr().err
    assert main([*COMMAND, "--repeats", "1", "--dtype", "bfloat16", "--prompt", PROMPT, "--max-flips", "1"]) == 0


def test_flips_cannot_be_judged_without_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["verify-precision", f"{EXAMPLES}/faultless-1.png", *COMMAND[2:], "--repeats", "1", "--dtype", "bfloat16", "--prompt", PROMPT]
    assert main(one) == 0
    assert main([*one, "--max-flips", "0.5"]) == 1
    assert "so no pair can flip; use more images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--prompt", "x"], 2, "nothing to compare: use --dtype"),
        (["--dtype", "int8"], 2, "no prompts: use --prompt TEXT or --prompts FILE"),
        (["--dtype", "int8", "--prompt", "x", "--max-flips", "2"], 2, "from 0 to 1, not 2"),
        (["--dtype", "int8", "--prompt", "x", "--repeats", "0"], 2, "--repeats must be at least 1"),
        (["--dtype", "int8", "--prompt", "x", "--report", "r.pdf"], 2, "r.pdf: a report is written as .html, .md or .json"),
        (["--dtype", "int8", "--prompt", "x", "--report", "no/such/r.md"], 2, "the folder no/such does not exist"),
        (["--dtype", "int8", "--prompts", "none.txt"], 1, "'none.txt' is neither a file nor a known set of prompts"),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str) -> None:
    assert main([*COMMAND, *arguments]) == code
    assert words in capsys.readouterr().err


def test_an_image_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-precision", EXAMPLES, "no.png", "--prompt", "x", "--dtype", "int8"]) == 1
    assert "no such image: no.png" in capsys.readouterr().err


def test_files_that_hold_no_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, content, words in (("empty.txt", b" \n\n", "is empty"), ("image.txt", b"\xff\xd8\xff", "is not UTF-8")):
        (tmp_path / name).write_bytes(content)
        assert main([*COMMAND, "--dtype", "int8", "--prompts", str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().err
