from __future__ import annotations

from pathlib import Path

import pytest

from image_reward.cli import main, parse
from image_reward.cli.recipes import read_sources
from image_reward.cli.train import Train


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_options_win_over_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, 'data = ["a.jsonl"]\nlr = 0.5\nfreeze = 0.25\n[network]\nvision_layers = 2')
    command = parse(["train", "--recipe", str(path), "--freeze", "0.5", "--network.text-layers", "3", "--no-dropout"])
    config = command.training
    assert (config.data, config.lr, config.freeze, config.dropout) == (("a.jsonl",), 0.5, 0.5, False)
    assert (config.network.vision_layers, config.network.text_layers) == (2, 3)
    assert Train.defaults([f"--recipe={path}"]).training.lr == 0.5


def test_a_command_without_data_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert main(["pretrain"]) == 2
    assert "--data" in capsys.readouterr().err


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such recipe: nowhere\.toml"):
        parse(["train", "--recipe", "nowhere.toml"])


@pytest.mark.parametrize("source", ["shapes:", "shapes:0", "shapes:-1", "shapes:10:", "shapes:10:1:2", "shapes:1e3", "shapes:9999999999"])
def test_drawn_data_is_named_by_two_numbers_at_most(source: str) -> None:
    with pytest.raises(ValueError, match=f"'{source}' is not of the form shapes:PROMPTS or shapes:PROMPTS:SEED"):
        read_sources([source], "train")
