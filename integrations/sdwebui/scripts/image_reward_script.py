"""Stable Diffusion WebUI (A1111, Forge, reForge): every image is scored before it is saved, so that its file says its reward.

The host calls for each image ``postprocess_image``, pastes it into an inpainted original, in newer versions calls
``postprocess_image_after_composite``, and then saves it with the texts in ``p.extra_generation_params``. That dictionary is shared by all
images of a job, and by the grid, which is drawn after the last of them and before ``postprocess``.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

import gradio as gr
import torch
from image_reward_webui import MODEL_KEY, REWARD_KEY, Job, Scored, arrange, load, parse_limit, plain_prompt
from modules import devices, script_callbacks, scripts, shared

from image_reward.errors import ImageRewardError

MODELS = ["ImageReward-v1.0", "ImageReward-mini"]

_loaded: dict[tuple[str, str], Any] = {}
"""At most one scorer, by name and device."""
_drawing: tuple[Any, int] | None = None
"""The job whose images are being made, and its thread: the host draws grids of previews in another."""


def scorer(model: str, device: Any) -> Any:
    key = (model, str(device))
    if key not in _loaded:
        unload()
        with torch.inference_mode(False):
            _loaded[key] = load(model, device)
    return _loaded[key]


def unload() -> None:
    _loaded.clear()
    gc.collect()
    devices.torch_gc()


def forget_reward(p: Any) -> None:
    for key in (REWARD_KEY, MODEL_KEY):
        p.extra_generation_params.pop(key, None)


def before_grid(_: Any) -> None:
    """The text of the grid must not say the reward of the last image."""
    if _drawing is not None and _drawing[1] == threading.get_ident():
        forget_reward(_drawing[0])


class ImageRewardScript(scripts.Script):
    def title(self) -> str:
        return "Image Reward"

    def show(self, is_img2img: bool) -> Any:  # noqa: ARG002
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:  # noqa: ARG002
        with gr.Accordion("Image Reward", open=False):
            enabled = gr.Checkbox(value=False, label="Score images")
            model = gr.Dropdown(
                choices=MODELS, value=MODELS[0], allow_custom_value=True, label="Model: a name, or the path of a checkpoint"
            )
            sort = gr.Checkbox(value=True, label="Show the best first")
            limit = gr.Textbox(value="", label="Show only images with at least this reward", placeholder="no limit")
            best = gr.Slider(value=0, minimum=0, maximum=100, step=1, label="Show only the best N (0: all)")
            on_cpu = gr.Checkbox(value=False, label="Score on the CPU (slower, takes no video memory)")
            gr.Button(value="Unload the model").click(fn=unload, inputs=[], outputs=[])
        return [enabled, model, sort, limit, best, on_cpu]

    def before_process(self, p: Any, enabled: bool, _model: str, sort: bool, limit: Any, best: float, _on_cpu: bool) -> None:
        p.image_reward_job = None
        if not enabled:
            return
        p.image_reward_job = job = Job(sort=sort, best=int(best or 0))
        try:
            job.limit = parse_limit(limit)
        except ImageRewardError as error:
            job.messages.append(f"ImageReward: {error}")

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        forget_reward(p)

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        self.score(p, pp.image, *args)

    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
        job = getattr(p, "image_reward_job", None)
        if job is not None and pp.image is not job.seen:
            self.score(p, pp.image, *args, again=True)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:  # noqa: ARG002
        global _drawing
        _drawing = None
        forget_reward(p)
        job = getattr(p, "image_reward_job", None)
        if job is not None:
            arrange(processed, job)
            p.image_reward_job = None

    def score(self, p: Any, image: Any, *args: Any, again: bool = False) -> None:
        global _drawing
        job = getattr(p, "image_reward_job", None)
        if job is None or job.failed:
            return
        _, model, *_, on_cpu = args
        i = p.batch_index
        prompt = p.prompts[i]
        try:
            chosen = scorer(model, "cpu" if on_cpu else shared.device)
            reward = chosen.score(plain_prompt(prompt), image)
        except (ImageRewardError, OSError, torch.cuda.OutOfMemoryError) as error:
            job.fail(error)
            forget_reward(p)
            return
        job.add(image, Scored(reward, p.seeds[i], p.subseeds[i], prompt, p.negative_prompts[i]), again)
        p.extra_generation_params[REWARD_KEY] = f"{reward:.4f}"
        p.extra_generation_params[MODEL_KEY] = chosen.name
        _drawing = (p, threading.get_ident())


script_callbacks.on_image_grid(before_grid)
script_callbacks.on_script_unloaded(unload)
