"""What every training run shares."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from image_reward.errors import TrainingError
from image_reward.recipes import Recipe, read_toml
from image_reward.runs import MovingAverage, RunFolder, adamw, rate_factor, seed_step, weight_groups


@dataclass(frozen=True)
class Part:
    width: int = 8


@dataclass(frozen=True)
class Settings(Recipe):
    """Another subject than training a reward model."""

    lr: float = 0.1
    steps: int | None = None
    names: tuple[str, ...] = ()
    part: Part = field(default_factory=Part)
    seed: int = 0
    workers: int = 2

    without_effect = ("workers",)

    def __post_init__(self) -> None:
        self.check_positive("lr")
        self.check_not_negative("workers")
        self.check_seed()


# --- recipes ---


def test_a_recipe_survives_being_written_and_read(tmp_path: Path) -> None:
    recipe = Settings(lr=1e-5, steps=3, names=('a "b"', "c\\d"), part=Part(3))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert read_toml(tmp_path / "recipe.toml", Settings()) == recipe


def test_only_what_has_an_effect_differs() -> None:
    assert Settings().difference(Settings(workers=0)) == []
    assert Settings().difference(Settings(lr=0.2, part=Part(9), workers=0)) == [
        "lr: 0.1 there, 0.2 here",
        "part: Part(width=8) there, Part(width=9) here",
    ]


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"lr": float("nan")}, {"lr": float("inf")}, {"workers": -1}, {"seed": -1}, {"seed": 2**40}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Settings(**wrong)  # type: ignore[arg-type]


# --- the folder ---


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", Settings())
    RunFolder(tmp_path / "run", Settings(workers=0))
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr: 0.1 there, 0.2 here\); use another output"):
        RunFolder(tmp_path / "run", Settings(lr=0.2))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file cannot be the folder of a run: a file with that name exists"):
        RunFolder(tmp_path / "file", Settings())
    with pytest.raises(ValueError, match=r"is not empty and not the folder of a run \(config.toml is missing\)"):
        RunFolder(tmp_path, Settings())


def test_the_state_is_what_was_saved_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", Settings())
    assert folder.load_state() is None
    folder.save_state({"run": {"step": 1}, "weights": torch.ones(2)})
    folder.save_state({"run": {"step": 2}, "weights": torch.zeros(2)})
    state = folder.load_state()
    assert state is not None
    assert (state["run"], state["weights"].tolist()) == ({"step": 2}, [0, 0])


def test_a_state_that_is_damaged_or_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", Settings())
    folder.save_state({"run": {"step": 1}})
    whole = (tmp_path / "run/state.pt").read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        (tmp_path / "run/state.pt").write_bytes(content)
        with pytest.raises(TrainingError, match=r"state.pt is damaged") as caught:
            folder.load_state()
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)
    torch.save({"step": 3, "best": {}, "data": "0"}, tmp_path / "run/state.pt")  # as it was before it had a version
    with pytest.raises(TrainingError, match=r"run holds a run of another version of this program.*use another output"):
        folder.load_state()


def test_lines_of_the_log_after_the_saved_step_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", Settings())
    for step in range(5):
        folder.log({"step": step})
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # killed while it wrote
    folder.forget_after(2)
    assert [line["step"] for line in folder.history()] == [0, 1, 2]
    assert json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1]) == {"step": 2}


@pytest.mark.parametrize("name", ["log.jsonl", "result.json"])
def test_a_damaged_log_or_result_is_named(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", Settings())
    (tmp_path / "run" / name).write_bytes(b"\xff{}")
    with pytest.raises(TrainingError, match=rf"{name} is damaged"):
        folder.history() if name == "log.jsonl" else folder.result()


# --- steps ---


def test_the_moving_average_is_in_place_only_while_asked() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    average = MovingAverage([weight], decay=0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update(step=1000)
    with average.in_place():
        assert weight.tolist() == pytest.approx([0.1, 0.1])
    assert weight.tolist() == [1.0, 1.0]


def test_the_schedules() -> None:
    assert [rate_factor(step, 100, 10, "cosine") for step in (0, 9, 10, 55)] == pytest.approx([0.1, 1, 1, 0.5])
    assert 0 < rate_factor(99, 100, 10, "cosine") < 0.001
    assert {rate_factor(step, 100, 0, "constant") for step in range(100)} == {1.0}


def test_randomness_follows_from_seed_step_and_process() -> None:
    drawn = set()
    for arguments in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**32 - 1, 2**21, 1023)]:
        seed_step(*arguments)
        value = torch.rand(1).item()
        seed_step(*arguments)
        assert torch.rand(1).item() == value
        drawn.add(value)
    assert len(drawn) == 5


def test_matrices_decay_and_vectors_do_not() -> None:
    matrix, vector = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    assert [group["weight_decay"] for group in weight_groups([matrix, vector], 1e-3, 0.1)] == [0.1, 0.0]
    assert len(weight_groups([vector], 1e-3, 0.1)) == 1


def test_adamw_in_one_operation_moves_weights_as_the_loop_does() -> None:
    moved = []
    for optimizer_of in (
        lambda groups: adamw(groups, (0.9, 0.98), torch.device("cpu")),
        lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.98)),
    ):
        weights = [torch.linspace(-1, 1, 12).view(3, 4).requires_grad_(), torch.ones(4).requires_grad_()]
        optimizer = optimizer_of(weight_groups(weights, lr=0.01, weight_decay=0.1))
        for step in range(5):
            optimizer.zero_grad()
            sum((weight**3 * (step + 1)).sum() for weight in weights).backward()
            optimizer.step()
        moved.append([weight.detach() for weight in weights])
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
