from __future__ import annotations

import os
from pathlib import Path

import pytest
import squares

from image_reward.errors import FileKindError, FileSizeError
from image_reward.training import RewardTraining, read_toml

EXAMPLES = Path(__file__).parents[2] / "examples"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_a_configuration_survives_being_written_and_read(tmp_path: Path) -> None:
    config = squares.config(tmp_path, data=('a "quoted" name', "b\\c.jsonl"), lr=1e-5, trackers=("tensorboard",), max_steps=7)
    assert read_toml(written(tmp_path, config.to_toml()), RewardTraining()) == config
    assert read_toml(written(tmp_path, RewardTraining().to_toml()), RewardTraining()) == RewardTraining()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("train_*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_configuration(path: Path) -> None:
    assert read_toml(path, RewardTraining()).data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1e-3", "recipe.toml: unknown key 'learning_rate' for RewardTraining; known are data, validation"),
        ("batch_image = 3", "recipe.toml: unknown key 'batch_image' for RewardTraining; did you mean 'batch_images'?"),
        ("[network]\nvision_witdh = 3", "recipe.toml: unknown key 'vision_witdh' for BlipConfig; did you mean 'vision_width'?"),
        ('lr = "fast"', "recipe.toml: lr of RewardTraining must be of type float, not 'fast'"),
        ("epochs = 1.5", "recipe.toml: epochs of RewardTraining must be of type int, not 1.5"),
        ("epochs = true", "recipe.toml: epochs of RewardTraining must be of type int, not True"),
        ('max_steps = "many"', "max_steps of RewardTraining must be of type int, not 'many'"),
        ('loss = "hinge"', "loss of RewardTraining must be one of 'pairwise', 'davidson'"),
        ("betas = [0.9]", "betas of RewardTraining must be a list of 2 numbers"),
        ('trackers = ["mlflow"]', "trackers of RewardTraining must be one of 'tensorboard', 'wandb', not 'mlflow'"),
        ("lr = 0", "recipe.toml: lr must be greater than 0, not 0"),
        ("freeze = 1.2", "freeze must be from 0 to 1, not 1.2"),
        ("ema = 1", "ema must be from 0 to less than 1"),
        ('start = "scratch"', "nothing worth freezing: set freeze = 0"),
        ("cache_features = true\nlora_rank = 4", "cache_features needs frozen layers"),
        ("lr = ", "recipe.toml is not TOML"),
        ("lr = inf", "recipe.toml: lr must be greater than 0, not inf"),
        ("lr = nan", "recipe.toml: lr must be greater than 0, not nan"),
        (f"lr = {'9' * 400}", "lr of RewardTraining must be of type float, not 9999"),
        (f"seed = {2**40}", "recipe.toml: seed must be at least 0 and less than 4,294,967,296"),
        ("lr = " + "[" * 100_000, "recipe.toml is not TOML"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_toml(written(tmp_path, text), RewardTraining())


def test_a_recipe_is_a_regular_file_of_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, problem in [(tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")]:
        with pytest.raises(FileKindError, match=f"{path} is {problem}, not a file"):
            read_toml(path, RewardTraining())
    with pytest.raises(FileSizeError, match=r"recipe.toml is larger than 1,048,576 bytes"):
        read_toml(written(tmp_path, "#" * 2_000_000), RewardTraining())
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbflr = 0.5")
    assert read_toml(tmp_path / "recipe.toml", RewardTraining()).lr == 0.5
    (tmp_path / "recipe.toml").write_bytes(b'output = "caf\xe9"')
    with pytest.raises(ValueError, match=r"recipe.toml is not TOML: 'utf-8' codec"):
        read_toml(tmp_path / "recipe.toml", RewardTraining())
