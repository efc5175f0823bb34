"""All settings of a run that tunes a generator. They need no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from image_reward.errors import InputError
from image_reward.recipes import Recipe, Schedule

Method = Literal["sparse", "draft", "refl", "best-of"]

DEFAULTS: dict[str, dict[str, Any]] = {
    # FlowBP-Sparse (arXiv 2606.11075) with guards against over-optimisation.
    "sparse": {"denoising_steps": 25, "grad_steps": 2, "reward_weight": 0.1, "margin_weight": 1.0, "kl_weight": 30.0},
    # DRaFT-LV (arXiv 2309.17400) with the same guards.
    "draft": {"denoising_steps": 25, "grad_steps": 1, "reward_weight": 0.1, "margin_weight": 1.0, "kl_weight": 30.0},
    # Xu et al. 2023 (arXiv 2304.05977): algorithm 1 and the released scripts.
    "refl": {
        "denoising_steps": 40,
        "grad_steps": 1,
        "reward_weight": 1e-3,
        "margin_weight": 0.0,
        "kl_weight": 0.0,
        "pretraining_weight": 1.0,
        "target": 2.0,
    },
    "best-of": {"denoising_steps": 25, "grad_steps": 0, "reward_weight": 1.0, "margin_weight": 0.0, "kl_weight": 0.0},
}
"""What the settings that are None mean for each method; see ``Tuning.resolved``."""


@dataclass(frozen=True)
class Tuning(Recipe):
    """How an image generator is tuned with a reward. The defaults guard against over-optimisation."""

    model: str = ""
    """The generator, which is the --pipeline of `image-reward generate`: the folder of a text-to-image pipeline of diffusers, a hub id
    OWNER/NAME, or shapes-generator. Scorers are named by --reward."""
    prompts: str = ""
    """Training prompts: a published set, a file, or of the shapes world "shapes:one" or "shapes:PROMPTS"."""
    held_out: str = ""
    """Prompts that the monitors watch, of the same forms; by default a share of the training prompts is held out."""
    held_out_share: float = 0.1
    """The share of prompts to hold out, at least two prompts, when there are no others."""
    output: str = "runs/tuned"
    """The run's folder. The same command again continues a killed run."""

    reward: tuple[str, ...] = ("ImageReward-v1.0",)
    """Scorers to tune with. Several are normalised on the images of the untuned generator, and averaged."""
    combine: Literal["mean", "conservative"] = "mean"
    """Of several scorers: the mean, or the mean less their disagreement."""
    watch: tuple[str, ...] = ()
    """Scorers that are not tuned with. The run stops where the reward rises and these fall."""

    method: Method = "sparse"
    """sparse (a few random steps), draft (the last steps), refl (one late step, as published), best-of (no gradients of the reward)."""
    denoising_steps: int | None = None
    """Steps of the generator for one image. [default: 25; refl: 40]"""
    grad_steps: int | None = None
    """Denoising steps that carry gradients, for sparse and draft. [default: sparse: 2, draft: 1]"""
    repeats: int = 2
    """draft with one step of gradients: each image is noised again this often, which lowers the variance (DRaFT-LV). best-of: the best
    image of each prompt is learnt at as many noise levels."""
    candidates: int = 8
    """best-of: images made for each prompt, of which the best is learnt."""
    guidance_scale: float | None = None
    """Of the generator's images, in training and evaluation. [default: the pipeline's own; refl: none in training]"""
    height: int | None = None
    """Of images in pixels; by default the pipeline's own."""
    width: int | None = None
    """Of images in pixels; by default the pipeline's own."""

    objective: Literal["hinge", "negative"] = "hinge"
    """hinge: relu(target - reward), which stops at the target; negative: -reward, which never does."""
    target: float | None = None
    """The reward where hinge stops. [default: from target_quantile; refl: 2]"""
    target_quantile: float = 0.9
    """The target as a quantile of the rewards of the untuned generator, unless `target` is set."""
    reward_weight: float | None = None
    """Weight of the reward's loss. [default: 0.1; refl: 0.001]"""
    margin_weight: float | None = None
    """The same loss on the prompt margin, the reward less that for another prompt: its share of the weight. [default: 1; refl: 0]"""
    kl_weight: float | None = None
    """The divergence from the untuned generator on the states of the rollout: its share of the weight. [default: 30; refl: 0]"""
    pretraining_weight: float | None = None
    """Weight of the ordinary denoising loss. [default: with pretraining_images, and for refl, 1; else 0]"""
    pretraining_images: str | None = None
    """File of rows with prompt and image for that loss; by default images that the untuned generator makes."""
    pretraining_samples: int = 64
    """Images that the untuned generator makes for that loss."""
    smoothing: float = 0.0
    """The reward is the lowest within this Euclidean distance of the pixels, to first order (RSA-FT); 0.01 is the paper's."""

    lora_rank: int = 16
    """LoRA: train updates of this rank; 0 trains all weights of the denoiser."""
    lora_alpha: float | None = None
    """LoRA: updates are scaled by this divided by the rank; by default the rank."""
    lora_targets: tuple[str, ...] = ()
    """LoRA: names of layers; by default those of the attention."""
    kohya: bool = False
    """Also write the LoRA of a U-Net under the names that Stable Diffusion WebUI and ComfyUI read."""

    max_steps: int = 300
    """Steps of the optimizer."""
    batch_images: int = 16
    """Images per step, over all processes, one for each prompt."""
    micro_images: int = 1
    """Images per micro-batch: the gradient of a step is accumulated over micro-batches."""
    lr: float = 1e-4
    """The highest learning rate; 1e-5 is usual for all weights."""
    schedule: Schedule = "constant"
    """How the learning rate decays to 0 after the warm-up; constant does not."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    weight_decay: float = 1e-2
    """AdamW's, applied to matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    clip: float = 1.0
    """The gradient is clipped to this norm; 0 does not clip."""
    ema: float = 0.99
    """Decay of a moving average of the weights, which is evaluated and kept in their place; 0 is off."""
    seed: int = 0
    """Determines the order of prompts, noises, steps with gradients, and new weights."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the generator. Trained weights are in float32; with fp16 the decoder is, too."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: a third more time, a fraction of the memory."""
    free_text_encoders: bool = True
    """Encode all prompts first and take the text encoders off the accelerator."""
    cpu: bool = False
    """Train on the CPU even if a GPU is available."""

    evaluate_every: int = 10
    """Steps between evaluations on the held-out prompts, each with the same noise."""
    num_held_out: int = 16
    """Held-out prompts that are evaluated, at most."""
    images_per_prompt: int = 2
    """Images of each held-out prompt."""
    auto_stop: bool = True
    """Stop where the reward rises and what should rise with it does not."""
    least_rise: float = 0.25
    """Monitors judge when the reward has risen by this, in standard deviations of the untuned rewards, and beyond chance."""
    least_margin_share: float = 0.3
    """Of the reward's rise, what the prompt margin has to rise by."""
    least_robust_share: float = 0.6
    """Of the reward's rise, what the rewards of mirrored and of blurred images have to rise by."""
    least_distance_share: float = 0.5
    """Of the distance between images of one prompt, what has to be left."""
    most_drift_share: float = 0.4
    """Of the distance between images of one prompt, how far images may move from the untuned ones without a clear rise of the reward."""
    patience: int = 2
    """Evaluations in a row with signs of over-optimisation after which the run stops."""
    save_every: int = 50
    """Steps between saved states. A killed run loses no more than these."""
    keep_checkpoints: int = 0
    """Of the saved states, how many of the last are kept in folders checkpoint-STEP, with the weights as diffusers reads them."""
    log_every: int = 1
    """Steps between lines of the log."""

    groups = {  # noqa: RUF012 - annotated by the base
        "reward": ("reward", "What is rewarded, and what is watched beside it."),
        "method": ("method", "How images are made, and where the gradients flow."),
        "objective": ("objective", "What is minimised: the reward's loss, and what guards against over-optimisation."),
        "lora": ("lora_rank", "Which weights are trained."),
        "optimizer": ("max_steps", "Steps, and how each changes the weights."),
        "compute": ("precision", "Precision, memory and device."),
        "monitor": ("evaluate_every", "Evaluations on the held-out prompts, and when the run stops itself."),
        "saving": ("save_every", "Saved states and the log."),
    }
    without_effect = ("output", "log_every", "save_every", "keep_checkpoints", "kohya", "cpu")

    def __post_init__(self) -> None:
        self.check_positive(
            "repeats",
            "candidates",
            "pretraining_samples",
            "max_steps",
            "batch_images",
            "micro_images",
            "lr",
            "evaluate_every",
            "images_per_prompt",
            "patience",
            "save_every",
            "log_every",
        )
        self.check_not_negative("keep_checkpoints", "smoothing", "lora_rank", "warmup_steps", "weight_decay", "clip", "least_rise")
        for name in ("denoising_steps", "height", "width", "lora_alpha"):
            if getattr(self, name) is not None:
                self.check_positive(name)
        for name in ("grad_steps", "guidance_scale", "reward_weight", "margin_weight", "kl_weight", "pretraining_weight"):
            if getattr(self, name) is not None:
                self.check_not_negative(name)
        self.check_share("held_out_share", "ema", below_one=True)
        self.check_share("target_quantile", "least_margin_share", "least_robust_share", "least_distance_share")
        self.check_not_negative("most_drift_share")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas must be from 0 to less than 1, not {self.betas[0]} and {self.betas[1]}")
        self.check_seed()
        if self.num_held_out < 2:
            raise InputError(f"num_held_out must be at least 2, since the prompt margin needs another prompt, not {self.num_held_out}")
        if not self.reward:
            raise InputError('no reward: name at least one scorer, such as reward = ["ImageReward-v1.0"]')
        for name in ("reward", "watch"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InputError(f"{name} names a scorer twice: {', '.join(getattr(self, name))}; name each once")
        if shared := sorted(set(self.reward) & set(self.watch)):
            raise InputError(f"{', '.join(shared)} cannot be both the reward and watched: a scorer that is tuned with shows nothing")
        if self.target is not None and not math.isfinite(self.target):
            raise InputError(f"target must be a finite number, not {self.target}")
        self._check_without_effect()
        defaults = DEFAULTS[self.method]
        grad_steps = defaults["grad_steps"] if self.grad_steps is None else self.grad_steps
        denoising_steps = defaults["denoising_steps"] if self.denoising_steps is None else self.denoising_steps
        if self.method in ("sparse", "draft") and not 1 <= grad_steps <= denoising_steps:
            raise InputError(f"grad_steps must be from 1 to the {denoising_steps} denoising steps, not {grad_steps}")
        if self.method == "best-of" and self.candidates < 2:
            raise InputError(f"candidates must be at least 2, not {self.candidates}")

    def resolved(self) -> Tuning:
        """With the method's own value for each setting that is None and has one.

        >>> Tuning(method="refl").resolved().reward_weight, Tuning(method="refl", reward_weight=1.0).resolved().reward_weight
        (0.001, 1.0)
        """
        own = {"pretraining_weight": 1.0 if self.pretraining_images else 0.0} | DEFAULTS[self.method]
        if self.objective == "negative" or self.reward_weight == 0:
            own.pop("target", None)
        if self.reward_weight == 0:
            own |= {"margin_weight": 0.0, "kl_weight": 0.0}
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    def _check_without_effect(self) -> None:
        """Raise ``InputError`` for settings that others leave without effect."""
        self._check_weights()
        self._check_method()
        if self.target is not None and self.objective == "negative":
            raise InputError(
                f"target is {self.target:g}, and the objective negative has none: leave target out, or use the objective hinge"
            )
        margin_weight = DEFAULTS[self.method]["margin_weight"] if self.margin_weight is None else self.margin_weight
        if self.objective == "negative":
            self.check_unused(True, "the objective negative has no target", "use the objective hinge", "target_quantile")
        elif not margin_weight:  # whose target is the quantile of margins, whatever that of the reward is
            self.check_unused(self.target is not None, "target is the target", "leave target out", "target_quantile")
            self.check_unused(
                "target" in DEFAULTS[self.method],
                f"the method {self.method} has a target of its own",
                "use another method, or a margin_weight above 0",
                "target_quantile",
            )
        self.check_unused(
            not self.lora_rank, "lora_rank 0 trains all weights without a LoRA", "set lora_rank", "lora_alpha", "lora_targets", "kohya"
        )
        self.check_unused(len(self.reward) < 2, "there is a single reward", "name several scorers as reward", "combine")
        self.check_unused(bool(self.held_out), "held_out names the prompts that are held out", "leave held_out out", "held_out_share")
        self.check_unused(not self.auto_stop, "without auto_stop the run never stops itself", "turn auto_stop on", "patience")

    def _check_weights(self) -> None:
        reward_weight, pretraining_weight = (
            own if (own := getattr(self, name)) is not None else DEFAULTS[self.method].get(name, instead)
            for name, instead in (("reward_weight", 0.0), ("pretraining_weight", float(bool(self.pretraining_images))))
        )
        if not reward_weight and not pretraining_weight:
            raise InputError("reward_weight and pretraining_weight are 0, so nothing would be trained: set one of them above 0")
        losses = ("margin_weight", "kl_weight", "smoothing", "target", "target_quantile", "objective")
        self.check_unused(not reward_weight, "reward_weight is 0", "set reward_weight above 0", *losses)
        self.check_unused(
            not pretraining_weight,
            "pretraining_weight is 0",
            "set pretraining_weight above 0",
            "pretraining_images",
            "pretraining_samples",
        )
        self.check_unused(bool(self.pretraining_images), "pretraining_images names the images", "leave it out", "pretraining_samples")

    def _check_method(self) -> None:
        method = self.method
        has = f"the method {method} has"
        if method in ("refl", "best-of") and self.grad_steps not in (None, own := DEFAULTS[method]["grad_steps"]):
            what = "one denoising step with gradients" if own else "no denoising step with gradients"
            raise InputError(f"grad_steps is {self.grad_steps}, and {has} {what}: leave grad_steps out, or use the method sparse or draft")
        self.check_unused(method != "best-of", f"{has} no candidates", "use the method best-of", "candidates")
        is_repeated = method == "best-of" or (method == "draft" and self.grad_steps in (None, 1))
        self.check_unused(
            not is_repeated,
            f"{'the method draft with several grad_steps' if method == 'draft' else f'the method {method}'} repeats nothing",
            "use the method draft with grad_steps 1, or best-of",
            "repeats",
        )
        self.check_unused(
            method == "best-of",
            f"{has} only the loss of the best images",
            "use another method",
            "objective",
            "target",
            "target_quantile",
            "margin_weight",
            "kl_weight",
            "smoothing",
        )
