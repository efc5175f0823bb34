"""The model in the package: it is there, it is small, it says what it is, and it has learnt what it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import image_reward as ir
from image_reward.cli import main
from image_reward.comparisons import shapes
from image_reward.scorers import MODELS

NAME = "ImageReward-mini"
EXAMPLES = Path(__file__).parents[2] / "examples" / "shapes"


@pytest.fixture(scope="module")
def mini() -> ir.Scorer:
    return ir.load(NAME, "cpu", batch_size=64)


def test_it_is_in_the_package_and_small() -> None:
    folder = (MODELS[NAME].local_paths() or {})["folder"]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12_000_000


def test_it_ranks_prompts_it_has_never_seen(mini: ir.Scorer) -> None:
    right: dict[str, list[bool]] = {}
    for comparison in shapes.comparisons(150, seed=99, split="test"):
        rewards, ranks = mini.score(comparison.prompt, list(comparison.images)), np.array(comparison.ranks)
        for better, worse in np.argwhere(ranks[:, None] < ranks[None]):
            for kind in (shapes.pair_kind(comparison.images[better], comparison.images[worse]), "any"):
                right.setdefault(kind, []).append(rewards[better] > rewards[worse])
    for kind, least in (("any", 0.85), ("alignment", 0.8), ("fidelity", 0.8)):
        assert len(right[kind]) > 150
        assert np.mean(right[kind]) >= least, kind


def test_it_says_in_one_line_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted(str(path) for path in EXAMPLES.iterdir())
    assert main(["rank", "a large green square above a yellow triangle on a blue background", *images, "--model", NAME]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "knows only drawn shapes" in captured.err
    assert "ImageReward-v1.0" in captured.err
    ranked = [line.split()[1] for line in captured.out.splitlines() if ".png" in line]
    assert all("faultless" in name for name in ranked[:2])


def test_it_is_listed_and_has_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "path", NAME]) == 0
    assert Path(capsys.readouterr().out.strip()).is_dir()
    assert main(["models", "verify", NAME]) == 0
    assert main(["models", "list"]) == 0
    assert f"{NAME}" in capsys.readouterr().out


def test_it_has_no_tokenizer_of_image_reward_1() -> None:
    import ImageReward

    model = ImageReward.load(NAME)
    assert isinstance(model.score("a red circle", EXAMPLES / "faultless-1.png"), float)
    with pytest.raises(ir.PromptError, match="vocabulary of its own"):
        model.blip.tokenizer  # noqa: B018
