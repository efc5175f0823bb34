"""All settings of a training run: one dataclass for each kind of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from image_reward.errors import InputError
from image_reward.models.blip_config import BlipConfig
from image_reward.recipes import Recipe, Schedule

Loss = Literal["pairwise", "davidson", "rao-kupper", "soft", "plackett-luce"]
TIE_MODELS = ("davidson", "rao-kupper")
SCRATCH = "scratch"
FEW_PAIRS = 50
"""With fewer validation pairs than this, an accuracy has a standard error above 7 points, so that a choice by it comes with a warning."""


@dataclass(frozen=True)
class RewardTraining(Recipe):
    """How a reward model is trained on comparisons. The defaults fine-tune the released model as the paper trained it."""

    data: tuple[str, ...] = ()
    """Training data: files, folders, or "shapes:PROMPTS" for drawn ones."""
    validation: tuple[str, ...] = ()
    """Validation data, by which the best step is chosen; by default a share of the prompts of the training data is held out."""
    validation_share: float = 0.05
    """The share of prompts to hold out, at least one, when there is no validation data; 0 keeps the last step."""
    output: str = "runs/reward"
    """The run's folder. The same command again continues a killed run."""

    start: str = "ImageReward-v1.0"
    """A model's name, file or folder; a BLIP pretraining checkpoint such as model_large.pth; or "scratch"."""
    network: BlipConfig = field(default_factory=BlipConfig)
    """Sizes of the network, if the model of `--start` does not store them."""
    max_tokens: int = 35
    """Tokens of a prompt that are read, counting the first and last, if the model of `--start` does not store it."""
    new_head: bool = False
    """Initialize a new head, as always for a BLIP checkpoint, which has none."""
    freeze: float = 0.7
    """The share of each tower's layers, from the bottom, that are frozen; with any, the embeddings are too."""
    lora_rank: int = 0
    """LoRA: train updates of this rank to the attention weights instead of the towers' weights; 0 is off."""
    lora_alpha: float = 16.0
    """LoRA: updates are scaled by this divided by the rank."""

    loss: Loss = "pairwise"
    """pairwise (ties skipped), davidson or rao-kupper (ties modelled), soft (shares of votes), plackett-luce (whole rankings)."""
    epochs: int = 10
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after this many steps, if that comes first."""
    batch_images: int = 64
    """Images per step, over all processes. The images of a prompt are never split between steps."""
    micro_images: int = 16
    """Images per micro-batch: the gradient of a step is accumulated over micro-batches."""
    lr: float = 1e-5
    """The highest learning rate."""
    tie_lr: float = 0.01
    """The highest learning rate of the tie parameter, a single number that has to move further than weights do."""
    schedule: Schedule = "cosine"
    """How the learning rate decays to 0 after the warm-up; constant does not."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's, applied to matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    clip: float = 1.0
    """The gradient is clipped to this norm; 0 does not clip."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is evaluated and kept in their place; 0 is off, 0.999 is usual."""
    dropout: bool = True
    """The head's dropout (0.2, 0.2, 0.1)."""
    seed: int = 0
    """Determines the order of the data, new weights and dropout."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the towers. Weights, and the head, are in float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time, a fraction of the memory."""
    cache_features: bool = False
    """Compute the frozen part of the image tower once per image and keep its output in the run's folder."""
    cache_mib: int = 1024
    """Cache decoded images in memory if all fit in this many MiB."""
    shard: bool = False
    """Shard the weights across processes (FSDP), for networks that do not fit on one device."""
    cpu: bool = False
    """Train on the CPU even if a GPU is available."""
    workers: int = 2
    """Processes that open images; 0 opens them in the training process."""
    skip_unreadable: bool = False
    """Leave out missing and damaged images, and count them, instead of stopping."""

    evaluate_every: int | None = None
    """Steps between evaluations on validation data; by default one epoch."""
    patience: int = 0
    """Stop after this many evaluations in a row that are not better; 0 never stops early."""
    save_every: int = 500
    """Steps between saved states. A killed run loses no more than these."""
    log_every: int = 10
    """Steps between lines of the log."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to these."""

    groups = {  # noqa: RUF012 - annotated by the base
        "weight": ("start", "Where the weights come from, and which are trained."),
        "optimizer": ("loss", "What is minimised, and how each step changes the weights."),
        "compute": ("precision", "Precision, memory, device and the reading of images."),
        "progress": ("evaluate_every", "Evaluations, saved states and the log."),
    }
    without_effect = ("output", "workers", "log_every", "trackers", "cache_mib", "save_every", "cpu")

    def __post_init__(self) -> None:
        self.check_positive("epochs", "batch_images", "micro_images", "lr", "tie_lr", "save_every", "log_every", "max_tokens")
        self.check_not_negative("warmup_steps", "weight_decay", "clip", "lora_rank", "workers", "patience", "cache_mib")
        for name in ("max_steps", "evaluate_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        self.check_share("freeze")
        self.check_share("validation_share", "ema", below_one=True)
        self.check_seed()
        if self.start == SCRATCH and (self.freeze or self.lora_rank):
            raise InputError("a network trained from scratch has nothing worth freezing: set freeze = 0 and lora_rank = 0")
        if self.lora_rank and self.shard:
            raise InputError("lora_rank and shard cannot be combined: low-rank updates need little memory as they are")
        if self.cache_features and not self.freeze and not self.lora_rank:
            raise InputError("cache_features keeps the output of frozen layers, and freeze is 0")
        if self.cache_features and self.lora_rank:
            raise InputError("cache_features needs frozen layers, and lora_rank changes every layer: choose one")
        self.check_unused(not self.lora_rank, "lora_rank is 0", "set lora_rank", "lora_alpha")
        self.check_unused(bool(self.lora_rank), "lora_rank freezes all weights of the towers", "set lora_rank = 0", "freeze")
        self.check_unused(
            self.loss not in TIE_MODELS, f"the loss {self.loss} has no tie parameter", f"use the loss {' or '.join(TIE_MODELS)}", "tie_lr"
        )
        self.check_unused(bool(self.validation), "validation names the data", "leave validation out", "validation_share")


@dataclass(frozen=True)
class MaskedLanguageTraining(Recipe):
    """How a network with random weights is pretrained by masked language modelling on the best-ranked images of comparisons."""

    data: tuple[str, ...] = ()
    """Training data: files, folders, or "shapes:PROMPTS" for drawn ones."""
    output: str = "runs/pretrained"
    """The folder to write the model to."""
    network: BlipConfig = field(default_factory=BlipConfig)
    """Sizes of the network."""
    max_tokens: int = 35
    """Tokens of a prompt that are read, counting the first and last."""

    own_vocabulary: bool = False
    """Restrict the vocabulary to the tokens of the data, which makes a small model much smaller; all others become [UNK]."""

    steps: int = 10_000
    """Steps of the optimizer."""
    batch_images: int = 48
    """Images in a step, over all processes."""
    views: int = 2
    """Copies of each prompt in a step, each masked differently."""
    mask_ratio: float = 0.3
    """The share of tokens that are masked, in (0, 1]."""
    short_share: float = 0.3
    """The share of steps, at the beginning, that see only the shortest two fifths of the prompts."""
    lr: float = 1.5e-3
    """The highest learning rate."""
    schedule: Schedule = "cosine"
    """How the learning rate decays to 0 after the warm-up; constant does not."""
    warmup_steps: int = 200
    """Steps in which the learning rate rises from 0."""
    weight_decay: float = 0.05
    """AdamW's, applied to matrices only."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's."""
    clip: float = 1.0
    """The gradient is clipped to this norm."""
    seed: int = 0
    """Determines new weights, the order of the data and what is masked."""
    cache_mib: int = 1024
    """Cache decoded images in memory if all fit in this many MiB."""
    workers: int = 2
    """Processes that open images; 0 opens them in the training process."""
    cpu: bool = False
    """Train on the CPU even if a GPU is available."""
    log_every: int = 100
    """Steps between lines of the log."""

    groups = {  # noqa: RUF012 - annotated by the base
        "model": ("max_tokens", "What the model reads; its sizes are below."),
        "optimizer": ("steps", "Steps, what is masked, and how each step changes the weights."),
        "compute": ("cache_mib", "Memory, device and the log."),
    }

    def __post_init__(self) -> None:
        self.check_positive("steps", "batch_images", "views", "lr", "max_tokens", "clip", "log_every")
        self.check_not_negative("warmup_steps", "weight_decay", "workers", "cache_mib")
        self.check_seed()
        if not 0 < self.mask_ratio <= 1:
            raise InputError(f"mask_ratio must be above 0 and at most 1, not {self.mask_ratio}")
        self.check_share("short_share")
        if self.own_vocabulary and self.network.vocab_size != BlipConfig.vocab_size:
            raise InputError(
                f"network.vocab_size is {self.network.vocab_size}, and own_vocabulary counts the tokens of the data: leave one of them out"
            )
