"""``ImageReward.ReFL`` of image-reward 1.5 on ``tune``: its ``Trainer``, and the flags of its scripts (SD 1.4, SDXL, SDXL with LoRA)."""

from __future__ import annotations

import argparse
import os
import random
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any, Literal

from image_reward.addresses import Address
from image_reward.errors import InputError, PromptError
from image_reward.files import written_whole
from image_reward.recipes import Schedule
from image_reward.rows import read_rows
from image_reward.tuning.config import Tuning

ALL_CHECKPOINTS = 1_000_000

NEVER_USED = (
    "num_train_epochs",  # --max_train_steps decides
    "input_pertubation",
    "resolution",
    "center_crop",
    "random_flip",
    "snr_gamma",
    "noise_offset",
    "validation_prompts",
    "validation_epochs",
)
"""Flags that image-reward 1.5 reads and that have no effect on what it trains."""

_NOT_HERE: dict[str, str] = {
    "dataset_config_name": "prompts are read from the JSON file",
    "adam_epsilon": "it is 1e-8",
    "non_ema_revision": "--revision is that of all weights",
    "use_8bit_adam": "AdamW keeps its moments in float32; --rank trains a LoRA, which needs far less",
    "enable_xformers_memory_efficient_attention": "PyTorch's own fused attention is used",
    "dataloader_num_workers": "prompts need no loader",
    "logging_dir": "the log is log.jsonl, and the page report.html, in --output_dir",
    "report_to": "the log is log.jsonl, and the page report.html, in --output_dir",
    "tracker_project_name": "the log is log.jsonl, and the page report.html, in --output_dir",
    "local_rank": "`accelerate launch` starts several processes",
    "save_only_one_ckpt": "--checkpoints_total_limit says how many are kept",
    "mapping_batch_size": "prompts are encoded one by one, and once",
    "eval_num_imgs_to_generate": "the held-out prompts of report.html are evaluated",
    "id_column": "images are found by --image_column",
    "run_name": "the run is called by its --output_dir",
}
"""Flags of 1.5 that had an effect there and have none here, and why."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Tune a diffusion model with ImageReward (ReFL), with the flags of image-reward 1.5.")

    def option(name: str, default: Any, kind: Callable[[str], Any] | None = None, **others: Any) -> None:
        parser.add_argument(f"--{name}", default=default, type=kind or type(default), **others)

    for name, default in (("grad_scale", 1e-3), ("input_pertubation", 0.0), ("learning_rate", 1e-5), ("noise_offset", 0.0)):
        option(name, default)
    for name, number in (
        ("resolution", 512),
        ("train_batch_size", 2),
        ("num_train_epochs", 100),
        ("max_train_steps", 100),
        ("gradient_accumulation_steps", 4),
        ("lr_warmup_steps", 0),
        ("dataloader_num_workers", 0),
        ("local_rank", -1),
        ("checkpointing_steps", 100),
        ("validation_epochs", 5),
        ("mapping_batch_size", 128),
        ("eval_num_imgs_to_generate", 0),
    ):
        option(name, number)
    for name, value in (
        ("adam_beta1", 0.9),
        ("adam_beta2", 0.999),
        ("adam_weight_decay", 1e-2),
        ("adam_epsilon", 1e-8),
        ("max_grad_norm", 1.0),
    ):
        option(name, value)
    for name in ("revision", "non_ema_revision", "dataset_name", "dataset_config_name", "cache_dir", "hub_token", "hub_model_id"):
        option(name, None, str)
    for name in ("resume_from_checkpoint", "image_base_dir", "run_name"):
        option(name, None, str)
    for name in ("max_train_samples", "seed", "checkpoints_total_limit"):
        option(name, None, int)
    option("snr_gamma", None, float)
    option("validation_prompts", None, str, nargs="+")
    for name, text in (
        ("image_column", "image"),
        ("caption_column", "text"),
        ("id_column", "id"),
        ("output_dir", "checkpoint/refl"),
        ("lr_scheduler", "constant"),
        ("logging_dir", "logs"),
        ("report_to", "tensorboard"),
        ("tracker_project_name", "text2image-refl"),
        ("image_reward_version", "ImageReward-v1.0"),
    ):
        option(name, text)
    option("mixed_precision", None, str, choices=["no", "fp16", "bf16"])
    option("rank", 0, help="train a LoRA of this rank (the LoRA script's default is 4); 0 trains all weights")
    for name in (
        "center_crop",
        "random_flip",
        "gradient_checkpointing",
        "scale_lr",
        "use_8bit_adam",
        "allow_tf32",
        "use_ema",
        "push_to_hub",
        "enable_xformers_memory_efficient_attention",
        "apply_pre_loss",
        "apply_reward_loss",
        "save_only_one_ckpt",
    ):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the program's command line, or of ``arguments``, with the defaults of image-reward 1.5.

    They are those of the script for SD 1.4, and what the scripts for SDXL add. As in 1.5, ``non_ema_revision`` is ``revision`` without one.
    """
    args = _parser().parse_args(arguments)
    if args.non_ema_revision is None:
        args.non_ema_revision = args.revision
    return args


class Trainer:
    """``Trainer(model, "refl_data.json", args=args).train(args=args)`` of image-reward 1.5.

    It tunes with the published ReFL (arXiv 2304.05977) on the loop of ``tune``, which also watches held-out prompts. What is different from
    1.5: prompts that the text encoder does not read to the end are left out; the last batch of the data is whole; the weights that are kept
    are those of the last evaluation without signs of over-optimisation; a run that was killed goes on by itself.
    """

    def __init__(self, pretrained_model_name_or_path: str, train_data_dir: str, args: argparse.Namespace) -> None:
        """``train_data_dir``: a JSON list of objects, of which ``args.caption_column`` is the prompt."""
        if args.dataset_name is not None:
            raise InputError(
                f"--dataset_name {args.dataset_name} is not read: save its prompts as a JSON file with the column {args.caption_column}"
            )
        self.pretrained_model_name_or_path, self.train_data_dir = pretrained_model_name_or_path, train_data_dir
        self.config = _config(pretrained_model_name_or_path, args)
        self.prompts = _read(train_data_dir, args)
        _warn(args)

    def train(self, args: argparse.Namespace) -> None:
        """Tune, and write the pipeline to ``args.output_dir``, or its LoRA with ``args.rank``. Raises what ``tune`` raises."""
        from image_reward.tuning import tune
        from image_reward.tuning.pipelines import load_pipeline

        config = self.config
        options = {name: getattr(args, name) for name in ("revision", "cache_dir") if getattr(args, name) is not None}
        pipe = load_pipeline(config.model, **options)
        if args.allow_tf32:
            import torch

            torch.backends.cuda.matmul.allow_tf32 = True
        _resume(Path(config.output), args.resume_from_checkpoint)
        result = tune(config, pipe, prompts=_readable(pipe, self.prompts))
        from accelerate import PartialState

        if not PartialState().is_main_process:
            return
        print(f"{result.verdict} The weights of step {result.kept_step} of {result.steps} are kept.", file=sys.stderr)
        if config.lora_rank:
            from image_reward.tuning import lora

            lora.save(pipe, config.output)
        else:
            pipe.save_pretrained(config.output)
        if args.push_to_hub:
            pipe.push_to_hub(args.hub_model_id or Path(config.output).name, token=args.hub_token)


def _config(model: str, args: argparse.Namespace) -> Tuning:
    schedules: dict[str, Schedule] = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
    if args.lr_scheduler not in schedules:
        raise InputError(f"--lr_scheduler {args.lr_scheduler} is not one of {', '.join(schedules)}")
    precisions: dict[str | None, Literal["fp32", "bf16", "fp16"]] = {None: "fp32", "no": "fp32", "bf16": "bf16", "fp16": "fp16"}
    processes = int(os.environ.get("WORLD_SIZE", 1))
    batch = args.train_batch_size * args.gradient_accumulation_steps * processes
    weights_reward = args.apply_reward_loss or not args.apply_pre_loss  # the SD 1.4 script has neither flag, and only this loss
    return Tuning(
        model=str(model),
        output=args.output_dir,
        method="refl",
        reward=(args.image_reward_version,),
        reward_weight=args.grad_scale if weights_reward else 0.0,
        pretraining_weight=1.0 if args.apply_pre_loss else 0.0,
        pretraining_images=str(_pretraining_file(args)) if args.apply_pre_loss else None,
        lora_rank=args.rank,
        max_steps=args.max_train_steps,
        batch_images=batch,
        micro_images=args.train_batch_size,
        lr=args.learning_rate * (batch if args.scale_lr else 1),
        schedule=schedules[args.lr_scheduler],
        warmup_steps=0 if args.lr_scheduler == "constant" else args.lr_warmup_steps,
        weight_decay=args.adam_weight_decay,
        betas=(args.adam_beta1, args.adam_beta2),
        clip=args.max_grad_norm,
        ema=0.9999 if args.use_ema else 0.0,  # of diffusers' EMAModel
        seed=args.seed or 0,
        precision=precisions[args.mixed_precision],
        gradient_checkpointing=args.gradient_checkpointing,
        evaluate_every=min(args.checkpointing_steps, 25),
        auto_stop=False,
        save_every=args.checkpointing_steps,
        keep_checkpoints=args.checkpoints_total_limit or ALL_CHECKPOINTS,
    )


def _pretraining_file(args: argparse.Namespace) -> Path:
    """Beside the run's folder, which holds nothing else before the run."""
    return Path(args.output_dir).with_name(f"{Path(args.output_dir).name}.pretraining.jsonl")


def _read(source: str, args: argparse.Namespace) -> list[str]:
    """The prompts; with ``apply_pre_loss`` their images are written down for the loop. Of a list of captions one is drawn."""
    address = Address.parse(source)
    rows = list(read_rows(address, (args.caption_column, args.image_column)))
    draws = random.Random(args.seed or 0)
    if args.max_train_samples is not None:
        draws.shuffle(rows)
        rows = rows[: args.max_train_samples]
    prompts, images = [], []
    for number, row in enumerate(rows, start=1):
        prompt = row.values.get(args.caption_column)
        if isinstance(prompt, list) and prompt:
            prompt = draws.choice(prompt)
        if not isinstance(prompt, str):
            raise InputError(f"{source}, row {number}: {args.caption_column!r} is not text; name the column of prompts by --caption_column")
        prompts.append(prompt)
        if args.apply_pre_loss:
            image = row.values.get(args.image_column)
            if not isinstance(image, str):
                raise InputError(f"{source}, row {number}: --apply_pre_loss needs the file of an image in the column {args.image_column!r}")
            images.append({"prompt": prompt, "image": str(_image(image, args.image_base_dir, address))})
    if args.apply_pre_loss:
        path = _pretraining_file(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text("".join(dumps(row) + "\n" for row in images), encoding="utf-8")
    return prompts


def _image(name: str, base: str | None, source: Address) -> Path:
    folder = Path(base) if base else source.local.parent
    return (folder / name).resolve()


def _readable(pipe: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts that the text encoders read to the end; 1.5 cut the others silently, and scored images for words never seen."""
    from image_reward.tuning.sampling import check_lengths

    kept = []
    for prompt in prompts:
        try:
            check_lengths(pipe, [prompt], None)
        except PromptError:
            continue
        kept.append(prompt)
    if len(kept) < len(prompts):
        warnings.warn(
            f"{len(prompts) - len(kept):,} of {len(prompts):,} prompts are longer than the generator reads, and are left out", stacklevel=3
        )
    return kept


def _resume(output: Path, checkpoint: str | None) -> None:
    """Put the state of a checkpoint in place of the run's. "latest" is what a run does anyway."""
    from image_reward.runs import RESULT, STATE

    if checkpoint is None or checkpoint == "latest":
        return
    state = output / Path(checkpoint).name / STATE
    if not state.is_file():
        raise FileNotFoundError(f"--resume_from_checkpoint {checkpoint}: {state} does not exist")
    with written_whole(output / STATE) as temporary:
        temporary.write_bytes(state.read_bytes())
    (output / RESULT).unlink(missing_ok=True)


def _warn(args: argparse.Namespace) -> None:
    """Say once, for all of them, which flags have no effect."""
    defaults: Mapping[str, Any] = vars(_parser().parse_args([]))
    defaults = {**defaults, "non_ema_revision": args.revision}  # as parse_args() sets it
    changed = [name for name in vars(args) if name in defaults and getattr(args, name) != defaults[name]]
    if never := [f"--{name}" for name in changed if name in NEVER_USED]:
        warnings.warn(f"{', '.join(never)}: no effect, as in image-reward 1.5", stacklevel=3)
    if gone := [f"--{name} ({_NOT_HERE[name]})" for name in changed if name in _NOT_HERE]:
        warnings.warn(f"no effect in this release: {'; '.join(gone)}", stacklevel=3)
