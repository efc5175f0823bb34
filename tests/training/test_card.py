from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import squares

from image_reward.runs import RunFolder
from image_reward.training.card import draw_curves, training_card
from image_reward.training.reward import TrainingResult

RESULT = TrainingResult(
    model="run/model",
    steps=40,
    best_step=30,
    accuracy=0.875,
    loss=0.5,
    training_accuracy=None,
    reward_mean=0.1,
    reward_std=2.0,
    num_comparisons=1200,
    num_images=4800,
    num_validation=300,
    num_unreadable=0,
    num_shared_prompts=0,
    num_validation_pairs=1500,
)


def rows(card: str) -> dict[str, str]:
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and line.strip("| ")]
    return dict(cells)


def test_a_card_says_on_what_and_how_the_model_was_trained(tmp_path: Path) -> None:
    card = training_card(squares.config(tmp_path / "run", data=("a.jsonl", "shapes:100"), lr=0.25), asdict(RESULT))
    assert rows(card)["data"] == "a.jsonl, shapes:100"
    assert rows(card)["trained on"] == "1,200 comparisons of 4,800 images"
    assert rows(card)["validation"] == "300 comparisons, 1,500 ordered pairs"
    assert rows(card)["steps"].startswith("30 of 40")
    assert rows(card)["pairwise accuracy"].startswith("87.50 % on validation")
    assert "pairwise accuracy, training data" not in rows(card)  # it is not known
    assert "\nlr = 0.25\n" in card
    assert "output" not in card  # a path of this machine says nothing to others


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"num_validation_pairs": 12}, "300 comparisons, 12 ordered pairs, too few to tell steps apart"),
        ({"num_validation_pairs": 50}, "300 comparisons, 50 ordered pairs"),
        ({"num_validation": 0, "num_validation_pairs": 0}, "0 comparisons, 0 ordered pairs"),
        ({"num_shared_prompts": 7}, "300 comparisons, 1,500 ordered pairs; 7 of their prompts are training prompts too"),
    ],
)
def test_a_card_says_what_its_accuracy_is_worth(tmp_path: Path, values: dict[str, int], note: str) -> None:
    assert rows(training_card(squares.config(tmp_path / "run"), asdict(RESULT) | values))["validation"] == note


def test_curves_are_drawn_from_the_log_whatever_is_in_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", squares.config(tmp_path / "run"))
    for lines in ([], [{"kind": "train", "step": 1, "loss": 0.7, "accuracy": None}, {"kind": "validation", "step": 1, "loss": 0.6}]):
        for line in lines:
            folder.log(line)
        assert draw_curves(folder) == folder.path / "curves.png"
        assert (folder.path / "curves.png").read_bytes().startswith(b"\x89PNG")
