"""What every scorer does with tensors, in ensembles and in commands: one check of each, for the tests of all kinds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import image_reward as ir
from image_reward.cli import main
from image_reward.errors import InputError
from image_reward.scorers import Ensemble, Reference, Scorer, load_all, score_together


def check_gradient(scorer: Scorer[Any], picture: Image.Image) -> None:
    """The reward of a picture as a tensor is that of the picture, and rises along its gradient."""
    pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255).requires_grad_()
    reward = scorer.rewards("a cat", pixels)
    assert reward.item() == pytest.approx(scorer.score("a cat", picture), abs=0.02)  # Pillow rounds to 8 bits
    reward.sum().backward()
    assert pixels.grad is not None
    step = 1e-3 * pixels.grad / pixels.grad.norm()
    with torch.no_grad():
        risen = scorer.rewards("a cat", (pixels + step).clamp(0, 1)) - scorer.rewards("a cat", (pixels - step).clamp(0, 1))
    assert risen.item() > 0


def check_kept(scorer: Scorer[Any], files: Sequence[str], folder: Path, place: Path) -> None:
    """Saving is refused, and the files that the error names are in another folder the same scorer again."""
    with pytest.raises(
        InputError, match=r"has no format of this package, which does not train it, so it cannot be saved; keep .* and load"
    ):
        scorer.save_pretrained(place / "saved")
    assert not (place / "saved").exists()
    (place / "kept").mkdir()
    for name in files:
        assert name in scorer.kept_as
        (place / "kept" / name).write_bytes((folder / name).read_bytes())
    for file in folder.iterdir():  # of the base model
        if not (place / "kept" / file.name).exists():
            (place / "kept" / file.name).write_bytes(file.read_bytes())
    picture = Image.new("RGB", (60, 50), (200, 30, 90))
    assert ir.load(place / "kept", "cpu", "float32").score("a cat", picture) == pytest.approx(scorer.score("a cat", picture), abs=1e-6)


def check_ensemble(scorer: Scorer[Any], prompts: Sequence[str], images: Sequence[Any], mean: float) -> None:
    """Beside another scorer, and in an ensemble with it on a scale of this mean."""
    mini = ir.load("ImageReward-mini", "cpu")
    together = score_together([scorer, mini], prompts, images)
    assert together[0] == pytest.approx(scorer.score(prompts, images), abs=1e-5)
    assert together[1] == pytest.approx(mini.score(prompts, images), abs=1e-5)
    references = {"own": Reference(mean, 2.0, 10, "made up"), "mini": Reference(0.0, 1.0, 10, "made up")}
    ensemble = Ensemble({"own": scorer, "mini": mini}, references=references)
    own = [(reward - mean) / 2 / 2 + other / 2 for reward, other in zip(*together, strict=True)]
    assert ensemble.score(prompts, images) == pytest.approx(own, abs=1e-5)


def check_saved_ensemble(folder: Path, name: str, images: Sequence[Any], place: Path) -> None:
    """As a member of an ensemble in a file, and loaded beside another model."""
    member = {"mean": 1.0, "std": 2.0, "num_images": 10, "origin": "made up"}
    members = [{"model": str(folder), "reference": member}, {"model": "ImageReward-mini", "reference": member}]
    (place / "ensemble.json").write_text(json.dumps({"format": "image-reward-ensemble", "version": 1, "members": members}))
    assert np.isfinite(ir.load(place / "ensemble.json", "cpu").score("a cat", images)).all()
    assert [one.name for one in load_all([folder, "ImageReward-mini"], "cpu")] == [name, "ImageReward-mini"]


def check_commands(
    folder: Path,
    paths: Sequence[str],
    rewards: Sequence[float],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    options: Sequence[str] = (),
    num_workers: int = 0,
    refused: str | None = None,
    largest_difference: float = 0.1,
    is_text: bool = False,
) -> None:
    """``rank``, ``score-files``, ``evaluate`` and ``verify-precision`` with the model in a folder.

    ``rewards``: of ``paths`` for "a cat". ``options``: of the first three commands. ``refused``: a marker that no prompt may contain.
    ``largest_difference``: that bfloat16 may make; ``is_text``: whether rewards are read from text, in which it may make none.
    """
    model = ["--model", str(folder), "--device", "cpu"]
    assert main(["rank", "a cat", *paths, *model, *options, "--json"]) == 0
    ranked = {row["image"]: row["reward"] for row in json.loads(capsys.readouterr().out)["images"]}
    assert [ranked[path] for path in paths] == pytest.approx(rewards, abs=1e-5)

    rows = place / "rows.csv"
    last = f"a {refused} cat,{paths[0]}\n" if refused else ""
    rows.write_text("prompt,image\n" + "".join(f"a cat,{path}\n" for path in paths) + last)
    job = ["--workers", str(num_workers), "--format", "jsonl", "--json"]
    assert main(["score-files", str(rows), str(place / "out"), *model, *options, *job]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["num_rows"], done["num_errors"]) == (len(paths) + bool(refused), int(bool(refused)))
    scored = [json.loads(line) for line in (place / "out" / "rewards.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in scored[: len(paths)]] == pytest.approx(rewards, abs=1e-5)
    if refused:
        assert scored[-1]["error"].startswith(f"PromptError: the prompt 'a {refused} cat' contains {refused}")

    pairs = place / "pairs.jsonl"
    ranks = list(range(1, len(paths) + 1))
    pairs.write_text("".join(json.dumps({"prompt": "a cat", "images": list(paths), "ranks": ranks}) + "\n" for _ in range(2)))
    assert main(["evaluate", str(pairs), *model, *options, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["scorers"]) == [folder.name]

    assert main(["verify-precision", *paths, "--prompt", "a cat", *model, "--dtype", "bfloat16", "--repeats", "1", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["largest_difference"] < largest_difference
    assert measured["largest_difference"] > 0 or is_text
    assert (measured["way"], measured["num_images"]) == ("bfloat16", len(paths))
