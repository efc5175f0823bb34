"""The model card of a tuned LoRA: what it was made of, what it changed, what ended the run, and how programs load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from image_reward.config import CARD_NAME
from image_reward.files import written_whole
from image_reward.reports.render import markdown_of
from image_reward.tuning import lora
from image_reward.tuning.config import Tuning
from image_reward.tuning.pipelines import PACKAGED
from image_reward.tuning.result import TuningResult
from image_reward.tuning.strengths import Strength, strength_table

CURVES = "curves.png"


def tuning_card(config: Tuning, result: TuningResult, strengths: Sequence[Strength], curves: bool = False) -> str:
    """The card as Markdown; ``curves``: whether ``curves.png`` is beside it."""
    watched = [(name, before, after) for name, (before, after) in result.watched.items()]
    changes = "\n".join(
        f"| {name} | {before:.4f} | {after:.4f} |"
        for name, before, after in [(f"reward: {', '.join(config.reward)}", result.untuned_reward, result.reward), *watched]
    )
    settings = "\n".join(
        f"{name} = {value!r}" for name, value in asdict(config.resolved()).items() if name != "output" and value is not None
    )
    second = '\npipe.load_lora_weights("path/of/this/folder", weight_name="transformer_2.safetensors", load_into_transformer_2=True)'
    files = Path(result.model)
    made, by = ("diffusers", "diffusers.DiffusionPipeline.from_pretrained")
    if config.model in PACKAGED:
        made, by = ("image_reward.tuning", "image_reward.tuning.load_pipeline")
    loading = f"""```python
import {made}

pipe = {by}({config.model or "path/of/the/generator"!r})
pipe.load_lora_weights("path/of/this/folder"){second if (files / "transformer_2.safetensors").exists() else ""}
pipe.set_adapters(pipe.get_active_adapters(), adapter_weights=[0.75])  # a strength
```"""
    if config.kohya:
        loading += (
            f"\n\nStable Diffusion WebUI and ComfyUI: copy `{lora.KOHYA}` to their folder of LoRAs (`models/Lora`, `models/loras`) "
            "under a name of your own. In a prompt of WebUI, `<lora:NAME:0.75>` is the strength 0.75."
        )
    ended = "The monitors stopped the run." if result.stopped else "The run was completed."
    sections = [
        f"""---
base_model: {config.model or "unknown"}
library_name: diffusers
pipeline_tag: text-to-image
tags: [lora, text-to-image, human-preference, image-reward]
---
# {config.model or "A generator"}, tuned with {", ".join(config.reward)}

A LoRA of rank {config.lora_rank} for the denoiser, made by the method {config.method} of image-reward: {result.kept_step:,} steps of up to
{config.max_steps:,}. A higher reward does not prove that the images are better; compare with the untuned generator before use.

## What changed

{ended} {result.verdict}

| mean on held-out prompts | untuned | tuned |
|---|---|---|
{changes}
""",
        f"![The reward on held-out prompts against the step]({CURVES})\n" if curves else "",
        f"{markdown_of(strength_table(strengths))}\n" if strengths else "",
        f"## Loading\n\n{loading}\n",
        f"## Settings\n\n```text\n{settings}\n```\n",
    ]
    return "\n".join(section for section in sections if section)


def write_card(folder: Path, card: str) -> None:
    with written_whole(folder / CARD_NAME) as temporary:
        temporary.write_text(card, encoding="utf-8")
