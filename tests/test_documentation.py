"""Every code block of README.md and docs/: run as it stands where that is possible, with the small model in place of those of the hub.

``NOT_RUN`` lists the blocks and commands that are not, with the reason; Python among them must compile, and commands of this package are
read by the real command line all the same. Output that a console session shows must be output of the commands in it.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import image_reward as ir
from image_reward import comparisons
from image_reward.cli import main, parse
from image_reward.comparisons import shapes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

HUB = "loads a pipeline of the hub"
SERVICE = "talks to a running service, as tests/test_client.py and tests/serving do"
PART = "is an excerpt of somebody else's program"
PATTERN = "is a pattern"
NOT_RUN = {
    # part of a block or a command: why it is not run
    'AutoPipelineForText2Image.from_pretrained("stabilityai/sd-turbo")': HUB,
    'ir.best_of(pipe, "a red cube on a blue sphere", 8)\n': HUB,
    "pipe.load_lora_weights(": "needs a LoRA of a tuned pipeline of the hub",
    "config = Tuning(": HUB,
    "weights = lora.attach(": HUB,
    "pipe.text_encoder_2": HUB,
    "unet.add_adapter": HUB,
    'ir.load("VQAScore': "needs 16.6 GB of weights; tests/scorers/test_vqascore.py asks the same of a small network",
    'ir.load("UnifiedReward': "needs 17.5 GB of weights; tests/scorers/test_unified_reward.py asks the same of a small network",
    'ir.load("HPSv3"': "needs 16.6 GB of weights; tests/scorers/test_hpsv3.py asks the same of a small network",
    "for image_batch, prompt_batch in": PART,
    '"media_type": "image"': PART,
    "verdicts.json": "needs 17.5 GB of weights; tests/evaluation/test_judging.py does the same with a small network",
    "http://127.0.0.1:8000": SERVICE,
    "image-reward serve": "serves until it is stopped",
    "image-reward tune": HUB,
    "--pipeline stabilityai": HUB,
    "image-reward benchmark table1": "needs the results published with the paper, which are not in this repository",
    "s3://": "needs an object store; tests/test_addresses.py runs such commands against one",
    "--engine ray": "needs a Ray cluster",
    "image-reward score ...": PATTERN,
    "saved/train": "needs a data set saved by datasets; tests/cli/test_data.py converts one",
}
PROGRAMS = {
    "cd": "after git clone",
    "curl": SERVICE,
    "export": "sets variables of an object store",
    "git": "clones the repository",
    "make": "sets up an environment of its own; here its target must exist",
    "pip": "installs packages; here the extras must exist",
}
"""Programs that are not run, and why."""

MINI = "ImageReward-mini"
OF_THE_HUB = ("ImageReward-v1.0", "BLIP-ITM", "BLIP", "CLIP", "Aesthetic", "PickScore", "HPSv2.1", "HPSv2", "ensemble.json")
SDXL = 'diffusers.AutoPipelineForText2Image.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0").to("cuda")'
SMALLER = {SDXL: 'image_reward.tuning.load_pipeline("shapes-generator")', "num_inference_steps=30": "num_inference_steps=3"} | {
    "512": "64",
    "{10, 20}": "{1}",
    '"cuda"': '"cpu"',
    '"DrawBench"': '"prompts.txt"',
}
"""In Python: what is large -> what takes its place."""
MORE_OPTIONS = {
    "train": ["--start", MINI, "--freeze", "0", "--max-steps", "1", "--workers", "0", "--cpu", "--validation-share", "0"],
    "score-files": ["--workers", "0"],
    "evaluate": ["--resamples", "50"],
}
PROMPT = "a large green square above a yellow triangle on a blue background"


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in FENCE.finditer(text)]


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SESSIONS = [page for page in PAGES if any(block.language in ("console", "bash", "") for block in blocks(page))]


def why_not(text: str) -> str | None:
    return next((reason for part, reason in NOT_RUN.items() if part in text), None)


# --- where they run ---


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the blocks name, as small as can be."""
    folder = tmp_path_factory.mktemp("documentation")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    drawings = sorted((ROOT / "examples/shapes").glob("*.png"))
    (folder / "pictures").mkdir()
    for name, path in zip(("cat", "1", "2", "one", "two"), drawings, strict=False):
        for place in (folder, folder / "pictures"):
            shutil.copy(path, place / f"{name}.png")
    for number, name in enumerate(("rankings", "my_rankings", "train", "validation", "test")):
        drawn = shapes.comparisons(4, seed=number, split="test" if name == "test" else "train")
        shapes.write(folder / name, drawn)
        written = comparisons.read(next((folder / name).glob("*.jsonl")))
        rows = [{"id": row.id, "prompt": row.prompt, "images": list(map(str, row.images)), "ranks": row.ranks} for row in written]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    test = comparisons.read(folder / "test.jsonl")
    (folder / "saved.json").write_text(json.dumps([{"id": row.id, "rewards": [float(-rank) for rank in row.ranks]} for row in test]))
    (folder / "prompts.txt").write_text(f"{PROMPT}\na large red circle\n")
    for generator in ("openjourney", "sd2-1"):
        (folder / "images" / generator).mkdir(parents=True)
        for number, path in enumerate(drawings[:2]):
            shutil.copy(path, folder / "images" / generator / f"0000{number}_0.png")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"prompt": [PROMPT] * 3, "image": [str(path) for path in drawings[:3]]}
    parquet.write_table(pyarrow.table(rows), folder / "rows.parquet")
    return folder


@pytest.fixture
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


# --- Python ---


def names() -> dict[str, Any]:
    """What the text around a block lets a reader take for granted."""
    import torch

    import image_reward.tuning

    scorer = ir.load(MINI, "cpu")
    candidate = shapes.comparison(0, seed=0).images[0]
    return {
        "image_reward": image_reward,
        "ir": ir,
        "scorer": scorer,
        "prompt": PROMPT,
        "image": candidate(),
        "pixels": torch.rand(2, 3, 64, 64),
        "rewards": [0.5, -0.25, 1.0],
    }


def smaller(code: str) -> str:
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    for model in OF_THE_HUB:
        code = code.replace(f'"{model}"', f'"{MINI}"')
    return code


@pytest.mark.filterwarnings("default")  # the libraries' own
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.page == page for b in PYTHON)], ids=lambda page: page.stem)
@pytest.mark.usefixtures("here")
def test_python(page: Path) -> None:
    namespace: dict[str, Any] = {}
    for block in PYTHON:
        if block.page != page:
            continue
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if "await " in block.text else 0
        code = compile("\n" * block.line + smaller(block.text), str(block), "exec", flags=flags, dont_inherit=True)
        if why_not(block.text):
            continue
        if "diffusers" in block.text:
            pytest.importorskip("diffusers")
        namespace = namespace or names()
        exec(code, namespace)


# --- commands ---


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a block with the output that is shown below it."""
    text = re.sub(r" *\\\n\s*", " ", block.text)
    command, shown = "", []
    for line in text.splitlines():
        is_command = line.startswith("$ ") if block.language == "console" else bool(line.strip()) and not line.startswith("#")
        if is_command:
            if command:
                yield command, shown
            command, shown = line.removeprefix("$ "), []
        else:
            shown.append(line)
    if command:
        yield command, shown


def with_small_model(arguments: list[str]) -> list[str]:
    models = [place for place, argument in enumerate(arguments) if argument == "--model"]
    for place in models:
        if not Path(arguments[place + 1]).is_dir():
            arguments[place + 1] = MINI
    for place in reversed(models[1:]):
        if arguments[place + 1] == MINI:  # a second one of the same name
            del arguments[place : place + 2]
    if not models and arguments[0] in ("rank", "score", "compare", "verify-precision"):
        arguments += ["--model", MINI]
    return [*(argument.replace("DrawBench", "prompts.txt") for argument in arguments), *MORE_OPTIONS.get(arguments[0], [])]


def check_other(program: str, arguments: list[str]) -> None:
    assert program in PROGRAMS, f"{program} is neither run nor listed with a reason"
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {argument for argument in arguments if "=" not in argument} <= targets
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for argument in arguments:
            for names_of_extras in re.findall(r"(?:image-reward|\.)\[(.*)\]", argument):
                assert set(names_of_extras.split(",")) <= set(extras)


def is_shown(expected: str, output: str) -> bool:
    """Whether a line of the output has what a line of the page shows, in order; numbers may differ by rounding."""
    return any(_has(line.split(), expected.split()) for line in output.splitlines())


def _has(tokens: list[str], expected: list[str]) -> bool:
    rest = iter(tokens)
    return all(any(_same(token, wanted) for token in rest) for wanted in expected)


def _same(token: str, wanted: str) -> bool:
    try:
        return abs(float(token) - float(wanted)) < 2e-3
    except ValueError:
        return token.rstrip(",;") == wanted.rstrip(",;")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.stem)
def test_commands(page: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page):
        if block.language == "csv":
            (here / "rows.csv").write_text(block.text)
        if block.language == "json" and '"ranks"' in block.text:
            (here / "rankings.jsonl").write_text(block.text)
        if block.language not in ("console", "bash", ""):
            continue
        for command, shown in commands(block):
            for part in re.split(r" && ", command):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if ">" in words:
                    words = words[: words.index(">")]
                if words[0] != "image-reward":
                    check_other(words[0], words[1:])
                    continue
                reason = why_not(part)
                words = ["1.png" if word == "IMAGES..." else word for word in words]
                if reason != PATTERN:
                    parse(words[1:])
                if reason:
                    continue
                if words[1] == "generate":
                    pytest.importorskip("diffusers")
                arguments = with_small_model(words[1:])
                capfd.readouterr()
                with warnings.catch_warnings():
                    code = main(arguments)
                output = "\n".join(capfd.readouterr())
                assert code == 0, f"{block}: {part}\n{output}"
                for line in shown:
                    if line.strip() and "…" not in line and "──" not in line:
                        assert is_shown(line, output), f"{block}: {part}\nshows {line!r}, but printed\n{output}"


def test_the_demo_of_the_readme(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    (block,) = [block for block in BLOCKS if block.page.name == "README.md" and "$ make demo" in block.text]
    assert main(["rank", PROMPT, "examples/shapes", "--model", MINI]) == 0
    output = "\n".join(capfd.readouterr())
    shown = [line for line in block.text.splitlines() if line.strip() and "──" not in line and not line.startswith(("$", "gallery"))]
    assert len(shown) == 13
    assert [line for line in shown if not is_shown(line, output)] == []


# --- the rest ---


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("json", "toml")], ids=str)
def test_data(block: Block) -> None:
    if block.language == "json":
        assert json.loads(block.text)
    else:
        assert tomllib.loads(block.text)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {"python", "console", "bash", "", "json", "toml", "csv", "text", "bibtex"}
    assert [str(block) for block in BLOCKS if block.language not in kinds] == []
    assert [str(block) for block in BLOCKS if block.language == "bibtex"] == [str(b) for b in BLOCKS if b.text.startswith("@inproceedings")]
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(BLOCKS)  # none is indented or left open


def test_no_reason_is_left_over() -> None:
    text = "\n".join(re.sub(r" *\\\n\s*", " ", block.text) for block in BLOCKS)
    assert [part for part in NOT_RUN if part not in text] == []
    assert [name for name in PROGRAMS if not re.search(rf"(?:^|\$ |&& ){name} ", text, re.MULTILINE)] == []
