from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")
pytest.importorskip("accelerate")

import diffusers
import tiny_pipelines
import torch
from PIL import Image

import ImageReward
from image_reward.errors import InputError
from image_reward.scorers import ImageRewardScorer
from image_reward.tuning import lora
from image_reward.tuning.compat_v15 import NEVER_USED

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2

PROMPTS = ["a cat", "a dog", "two birds", "a red hat", "a cow", "a blue door"]

DEFAULTS = {  # of image-reward 1.5
    "grad_scale": 1e-3,
    "input_pertubation": 0,
    "revision": None,
    "dataset_name": None,
    "dataset_config_name": None,
    "image_column": "image",
    "caption_column": "text",
    "max_train_samples": None,
    "validation_prompts": None,
    "output_dir": "checkpoint/refl",
    "cache_dir": None,
    "seed": None,
    "resolution": 512,
    "center_crop": False,
    "random_flip": False,
    "train_batch_size": 2,
    "num_train_epochs": 100,
    "max_train_steps": 100,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": False,
    "learning_rate": 1e-5,
    "scale_lr": False,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "snr_gamma": None,
    "use_8bit_adam": False,
    "allow_tf32": False,
    "use_ema": False,
    "non_ema_revision": None,
    "dataloader_num_workers": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "push_to_hub": False,
    "hub_token": None,
    "hub_model_id": None,
    "logging_dir": "logs",
    "mixed_precision": None,
    "report_to": "tensorboard",
    "local_rank": -1,
    "checkpointing_steps": 100,
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": None,
    "enable_xformers_memory_efficient_attention": False,
    "noise_offset": 0,
    "validation_epochs": 5,
    "tracker_project_name": "text2image-refl",
}


def parse(monkeypatch: pytest.MonkeyPatch, *flags: object) -> Any:
    from ImageReward import ReFL

    monkeypatch.setattr(sys, "argv", ["refl.py", *map(str, flags)])
    return ReFL.parse_args()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_pipelines.build("stable_diffusion")[0].save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """As refl_data.json of image-reward 1.5."""
    path = tmp_path / "refl_data.json"
    path.write_text(json.dumps([{"text": prompt} for prompt in PROMPTS]))
    return path


@pytest.fixture
def reward(tmp_path: Path, scorer: ImageRewardScorer) -> Path:
    scorer.save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def test_flags_and_defaults_are_those_of_1_5(monkeypatch: pytest.MonkeyPatch) -> None:
    args = vars(parse(monkeypatch))
    assert {name: args[name] for name in DEFAULTS} == DEFAULTS
    assert args["apply_pre_loss"] is args["apply_reward_loss"] is args["save_only_one_ckpt"] is False
    assert args["mapping_batch_size"] == 128
    args = vars(parse(monkeypatch, "--revision", "fp16", "--use_ema", "--learning_rate", "1e-4", "--validation_prompts", "a", "b"))
    assert (args["non_ema_revision"], args["use_ema"], args["learning_rate"]) == ("fp16", True, 1e-4)
    assert args["validation_prompts"] == ["a", "b"]


def test_a_program_of_1_5(base: Path, data: Path, reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ImageReward import ReFL

    output = tmp_path / "refl"
    flags = ["--train_batch_size", 2, "--gradient_accumulation_steps", 1, "--max_train_steps", 3, "--checkpointing_steps", 1]
    flags += ["--learning_rate", 1e-4, "--checkpoints_total_limit", 2, "--image_reward_version", reward, "--output_dir", output]
    args = parse(monkeypatch, *flags)
    trainer = ReFL.Trainer(str(base), str(data), args=args)
    trainer.train(args=args)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    tuned = diffusers.StableDiffusionPipeline.from_pretrained(output)
    untuned = diffusers.StableDiffusionPipeline.from_pretrained(base)
    pairs = list(zip(tuned.unet.parameters(), untuned.unet.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(tuned.vae.parameters(), untuned.vae.parameters(), strict=True))
    last = diffusers.UNet2DConditionModel.from_pretrained(output / "checkpoint-3")
    assert all(torch.equal(a, b) for a, b in zip(tuned.unet.parameters(), last.parameters(), strict=True))
    assert (output / "report.html").is_file()

    ReFL.Trainer(str(base), str(data), args=args).train(args=args)  # the run is finished, and its pipeline stays the tuned one
    same = diffusers.StableDiffusionPipeline.from_pretrained(output)
    assert all(torch.equal(a, b) for a, b in zip(tuned.unet.parameters(), same.unet.parameters(), strict=True))

    again = parse(monkeypatch, *flags, "--resume_from_checkpoint", output / "checkpoint-2")
    ReFL.Trainer(str(base), str(data), args=again).train(args=again)
    resumed = diffusers.StableDiffusionPipeline.from_pretrained(output)
    assert all(torch.equal(a, b) for a, b in zip(tuned.unet.parameters(), resumed.unet.parameters(), strict=True))
    lost = parse(monkeypatch, *flags, "--resume_from_checkpoint", "checkpoint-7")
    with pytest.raises(FileNotFoundError, match="--resume_from_checkpoint checkpoint-7"):
        ReFL.Trainer(str(base), str(data), args=lost).train(args=lost)


def test_lora_and_the_pretraining_loss_of_the_scripts_for_sdxl(
    base: Path, reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ImageReward import ReFL

    (tmp_path / "images").mkdir()
    for number in range(len(PROMPTS)):
        Image.new("RGB", (20, 16), (40 * number, 100, 50)).save(tmp_path / "images" / f"{number}.png")
    rows = [{"text": [prompt], "image": f"{number}.png"} for number, prompt in enumerate(PROMPTS)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    output = tmp_path / "refl"
    flags = ["--train_batch_size", 1, "--gradient_accumulation_steps", 2, "--max_train_steps", 2, "--output_dir", output, "--rank", 2]
    flags += ["--apply_pre_loss", "--apply_reward_loss", "--image_base_dir", tmp_path / "images", "--image_reward_version", reward]
    args = parse(monkeypatch, *flags)
    trainer = ReFL.Trainer(str(base), str(tmp_path / "data.json"), args=args)
    assert (trainer.config.pretraining_weight, trainer.config.reward_weight, trainer.config.lora_rank) == (1.0, 1e-3, 2)
    trainer.train(args=args)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(output)
    assert (output / lora.WEIGHTS).is_file()


def test_settings_of_the_published_launch_script(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ImageReward import ReFL

    monkeypatch.setenv("WORLD_SIZE", "8")
    args = parse(monkeypatch, "--mixed_precision", "fp16", "--use_ema", "--gradient_checkpointing", "--scale_lr")
    config = ReFL.Trainer("CompVis/stable-diffusion-v1-4", str(data), args=args).config.resolved()
    assert (config.batch_images, config.micro_images, config.max_steps) == (64, 2, 100)
    assert (config.method, config.denoising_steps, config.target, config.reward_weight) == ("refl", 40, 2.0, 1e-3)
    assert (config.precision, config.ema, config.lora_rank, config.gradient_checkpointing) == ("fp16", 0.9999, 0, True)
    assert config.lr == pytest.approx(64e-5)
    assert config.reward == ("ImageReward-v1.0",)


def test_flags_that_have_no_effect_say_so_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ImageReward import ReFL

    args = parse(monkeypatch, "--resolution", 768, "--random_flip", "--use_8bit_adam", "--adam_epsilon", 1e-6, "--revision", "fp16")
    with pytest.warns(UserWarning, match="no effect") as caught:
        ReFL.Trainer("base", str(data), args=args)
    assert [str(warning.message) for warning in caught] == [
        "--resolution, --random_flip: no effect, as in image-reward 1.5",
        "no effect in this release: --adam_epsilon (it is 1e-8); --use_8bit_adam (AdamW keeps its moments in float32; --rank trains a "
        "LoRA, which needs far less)",
    ]
    assert set(NEVER_USED) < set(vars(args))


def test_prompts_that_are_too_long_are_left_out(base: Path, tmp_path: Path, reward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ImageReward import ReFL

    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"text": prompt} for prompt in [*PROMPTS, "a cat and a dog and a bird and a cow and a hat"]]))
    flags = ["--train_batch_size", 1, "--gradient_accumulation_steps", 1, "--max_train_steps", 1, "--output_dir", tmp_path / "refl"]
    args = parse(monkeypatch, *flags, "--image_reward_version", reward)
    with pytest.warns(UserWarning, match="1 of 7 prompts are longer than the generator reads, and are left out"):
        ReFL.Trainer(str(base), str(path), args=args).train(args=args)


def test_data_that_make_no_sense(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ImageReward import ReFL

    with pytest.raises(InputError, match="row 1: 'caption' is not text; name the column of prompts by --caption_column"):
        ReFL.Trainer("base", str(data), args=parse(monkeypatch, "--caption_column", "caption"))
    with pytest.raises(InputError, match="row 1: --apply_pre_loss needs the file of an image in the column 'image'"):
        ReFL.Trainer("base", str(data), args=parse(monkeypatch, "--apply_pre_loss", "--output_dir", tmp_path / "refl"))
    with pytest.raises(InputError, match="--dataset_name laion is not read"):
        ReFL.Trainer("base", str(data), args=parse(monkeypatch, "--dataset_name", "laion"))
    with pytest.raises(InputError, match="--lr_scheduler step is not one of constant"):
        ReFL.Trainer("base", str(data), args=parse(monkeypatch, "--lr_scheduler", "step"))


def test_importing_the_package_does_not_import_it() -> None:
    assert not hasattr(ImageReward, "trainer")
    assert "ReFL" not in ImageReward.__all__
