"""Learning a reward model from comparisons: evaluate, save, accumulate, clip, step, log, in one loop.

The result depends on the configuration and the data, and not on where a run was killed (to the bit on a CPU), nor, beyond rounding and
dropout, on how many processes share the work: the order of the data follows from the seed, dropout from seed, step and process, and the
loss is a mean over the terms of the whole step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from image_reward.checkpoints import read_checkpoint
from image_reward.comparisons import shared_prompts, split
from image_reward.config import RewardConfig, TieConfig
from image_reward.errors import TrainingError
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.training import features as feature_files
from image_reward.training.config import RewardTraining
from image_reward.training.data import Micro, Steps, fingerprint, name_of, pack, plan, usable
from image_reward.training.features import Features, FeatureScorer
from image_reward.training.folder import MODEL, RunFolder, training_card
from image_reward.training.freezing import add_low_rank, freeze, merge_low_rank, plain_weights
from image_reward.training.losses import TIE_MODELS, davidson, log_tie_parameter, pairwise_logistic, plackett_luce, rao_kupper
from image_reward.training.measures import Measures, measure_all
from image_reward.training.progress import Progress
from image_reward.training.start import starting_scorer
from image_reward.types import Comparison

CONSTANT = 1e-3
"""Raw rewards of one prompt's images that deviate by less are constant: the loss is within 1e-3 of log 2, whatever people said."""
CONSTANT_STEPS = 50
"""So many steps in a row are a collapse."""


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run; the model itself is in ``model``."""

    model: str
    """A folder that ``image_reward.load`` takes."""
    steps: int
    best_step: int
    """The step whose weights were kept."""
    accuracy: float | None
    """Pairwise accuracy of these on the validation data; None without any."""
    loss: float | None
    """Loss of these on the validation data."""
    training_accuracy: float | None
    reward_mean: float
    """Of the raw rewards over the training images, as stored in the model's config."""
    reward_std: float
    num_comparisons: int
    num_images: int
    num_validation: int
    num_unreadable: int
    """Times that an image could not be read and was left out."""
    num_shared_prompts: int = 0
    """Prompts of the validation data that are also in the training data, in whatever spelling."""


class Learner(nn.Module):
    """The scorer on its raw scale, the loss, and the tie parameter where the loss has one."""

    def __init__(self, scorer: ImageRewardScorer, loss: str) -> None:
        super().__init__()
        self.scorer, self.loss = scorer, loss
        self.tie = nn.Parameter(torch.zeros(1)) if loss in TIE_MODELS else None

    def forward(self, micro: Micro) -> tuple[Tensor, Tensor]:
        """Raw rewards [N] and the sum of the loss's terms."""
        rewards = self.scorer(micro.batch)
        if self.loss == "plackett-luce":
            return rewards, plackett_luce(rewards, micro.beats).sum()
        first, second = rewards[micro.first], rewards[micro.second]
        if self.tie is None:
            return rewards, pairwise_logistic(first, second, micro.target).sum()
        model = davidson if self.loss == "davidson" else rao_kupper
        return rewards, model(first, second, micro.target, log_tie_parameter(self.loss, self.tie)).sum()

    def tie_config(self) -> TieConfig | None:
        if self.tie is None:
            return None
        (tie,) = plain_weights(self, ["tie"]).values()
        return TieConfig(self.loss, log_tie_parameter(self.loss, tie).exp().item())


def train(config: RewardTraining, comparisons: Sequence[Comparison], validation: Sequence[Comparison] = ()) -> TrainingResult:
    """Learn a reward model into the folder ``config.output``, or go on with the run that is there.

    ``config.data`` and ``config.validation`` are only noted: whoever calls has read them. Without validation comparisons, a share of the
    prompts is set aside; without that share, the last weights are kept.

    Raises ``ValueError`` and ``FileNotFoundError`` for what can be seen before the first step, ``TrainingError`` for what goes wrong after.
    """
    accelerator = _accelerator(config)
    with accelerator.main_process_first():
        folder = RunFolder(Path(config.output), config)
    if done := folder.result():
        Progress(0, 0, accelerator.is_main_process).say(f"{config.output} holds a finished run")
        return TrainingResult(**done)

    # --- the data ---
    given = fingerprint(comparisons, validation)
    learnt, notes = usable(comparisons, config.loss, config.skip_unreadable)
    if validation:
        checked, more = usable(validation, config.loss, config.skip_unreadable)
        notes += [f"validation: {note}" for note in more]
    else:
        learnt, checked = _hold_out(learnt, config)
    if shared := shared_prompts(learnt, checked):
        notes.append(
            f"warning: {len(shared):,} prompts of the validation data are also in the training data, the first is {shared[0]!r:.80}: "
            "the best step is chosen by prompts that were learnt, and its accuracy is too high. `image-reward data split` writes files "
            "that share none"
        )

    # --- the network ---
    scorer = starting_scorer(config)
    names = list(scorer.network.state_dict())
    for module in scorer.network.mlp.modules():
        if isinstance(module, nn.Dropout) and not config.dropout:
            module.p = 0.0
    depth = 0
    if config.lora_rank:
        add_low_rank(scorer.network, config.lora_rank, config.lora_alpha, config.seed)
    else:
        depth = freeze(scorer.network, config.freeze)
    scorer.network.set_gradient_checkpointing(config.gradient_checkpointing)
    frozen_sum = sum(float(p.detach().sum(dtype=torch.float64)) for p in scorer.parameters() if not p.requires_grad)
    scorer.to(accelerator.device)

    # --- the steps ---
    process = (accelerator.process_index, accelerator.num_processes)

    def once(chosen: Sequence[Comparison], features: Features | None) -> Steps:
        skip, cache = config.skip_unreadable, config.cache_mib
        return Steps(chosen, scorer.prepare, config.loss, config.micro_images, process, skip, cache, features)

    features: list[Features | None] = [None, None]
    if config.cache_features:
        if depth == 0:
            raise ValueError(f"cache_features has nothing to keep: freeze = {config.freeze} freezes no block of the image tower")
        features = [_features(folder, accelerator, scorer, depth, chosen, config) if chosen else None for chosen in (learnt, checked)]
        scorer = FeatureScorer(scorer.network, scorer.config)
        scorer.depth = depth
    learnt_once = once(learnt, features[0])
    sizes = learnt_once.sizes
    steps = learnt_once.over(plan(sizes, config.epochs, config.max_steps, config.batch_images, config.seed))
    validation_steps = once(checked, features[1]) if checked else None
    total = len(steps)
    evaluate_every = config.evaluate_every or len(pack(sizes, range(len(sizes)), config.batch_images))

    # --- what learns ---
    learner = Learner(scorer, config.loss).to(accelerator.device)
    if config.shard:
        for block in scorer.network.blip.visual_encoder.blocks:
            fully_shard(block)
        fully_shard(learner)
    optimizer, highest_rates = _optimizer(learner, config)
    if config.shard:
        model, optimizer = learner, accelerator.prepare(optimizer)
    else:
        model, optimizer = accelerator.prepare(learner, optimizer)
    learning = [p for p in learner.parameters() if p.requires_grad]
    average = MovingAverage(learning, config.ema) if config.ema else None

    # --- where a killed run stopped ---
    step, stale, constant, unreadable, stopped = 0, 0, 0, 0, False
    best: dict[str, Any] = {}
    if state := folder.load_state():
        if state["data"] != given:
            raise ValueError(f"{config.output} holds a run on other data; give another output, or the same data to go on with that run")
        if not math.isclose(state["frozen_sum"], frozen_sum, rel_tol=1e-9):  # a sum's last digits depend on how many threads add
            raise ValueError(f"{config.start} is not what the run in {config.output} started from: its weights have changed")
        _restore(learner, optimizer, average, accelerator, state)
        step, stale, constant, unreadable, stopped = (state[k] for k in ("step", "stale", "constant", "unreadable", "stopped"))
        best = state["best"]
    if accelerator.is_main_process:
        folder.forget_after(step if state else -1)
    accelerator.wait_for_everyone()
    if config.trackers:
        accelerator.init_trackers("image-reward", {k: v if isinstance(v, int | float | str) else str(v) for k, v in asdict(config).items()})
    progress = Progress(step, total, accelerator.is_main_process)
    for note in notes:
        progress.say(note)
    progress.say(
        f"{len(learnt):,} comparisons of {sum(sizes):,} images in {total:,} steps on {process[1]} x {accelerator.device.type}; "
        f"{sum(p.numel() for p in learning):,} of {sum(p.numel() for p in learner.parameters()):,} weights learn"
        + (f"; going on after step {step}" if state else "")
    )

    def log(kind: str, values: dict[str, float | None]) -> None:
        if accelerator.is_main_process:
            folder.log({"kind": kind, "step": step, **values})
        accelerator.log({f"{kind}/{name}": value for name, value in values.items() if value is not None}, step=step)

    def save() -> None:
        weights = get_model_state_dict(learner, options=_LEARNING)
        moments = get_optimizer_state_dict(learner, optimizer.optimizer, options=_LEARNING)
        averaged = None
        if average:
            with average.in_place():  # on a CPU the dictionary holds the weights themselves, which are about to change back
                averaged = copy.deepcopy(get_model_state_dict(learner, options=_LEARNING))
        if accelerator.is_main_process:
            folder.save_state(
                {"step": step, "stale": stale, "constant": constant, "unreadable": unreadable, "stopped": stopped, "best": best}
                | {"data": given, "frozen_sum": frozen_sum, "model": weights, "optimizer": moments, "average": averaged}
                | {"scaler": accelerator.scaler.state_dict() if accelerator.scaler else None}
            )
        accelerator.wait_for_everyone()

    def evaluate() -> None:
        """Keep these weights if they are the best so far; without validation data the last are."""
        nonlocal best, stale
        with average.in_place() if average else nullcontext():
            found = measure_all(learner, validation_steps, accelerator, config.workers) if validation_steps else Measures()
            if validation_steps:
                log("validation", {"loss": found.loss, "accuracy": found.accuracy, "deviation": found.deviation})
                accuracy = "" if found.accuracy is None else f"  accuracy {found.accuracy:.4f}"
                progress.say(
                    f"step {step}  validation: loss {found.loss or 0:.4f}{accuracy}  (best so far: {best.get('accuracy') or 0:.4f})"
                )
            # Among equals in accuracy the lower loss is better; without accuracy the loss alone decides.
            key = [found.accuracy or 0.0, -found.loss if found.loss is not None else 0.0]
            if not best or not validation_steps or key > [best["accuracy"] or 0.0, -best["loss"]]:
                best, stale = {"step": step, "accuracy": found.accuracy, "loss": found.loss}, 0
                weights, tie = plain_weights(scorer.network, names), learner.tie_config()
                if accelerator.is_main_process:
                    reward = replace(scorer.config.reward, tie=tie)
                    folder.save_model(weights, replace(scorer.config, reward=reward), scorer.model_card() + "\nTraining is going on.\n")
            else:
                stale += 1
        if validation_steps and step and found.deviation is not None and found.deviation < CONSTANT:
            save()
            raise _collapsed(step, found.deviation, "the validation data")

    # --- the loop ---
    if step == 0 and not state:
        evaluate()
    window = Measures()
    learner.train()
    for work in steps.loader(config.workers, start=step) if not stopped else ():
        seed_step(config.seed, step, process[0])
        rate = rate_factor(step, total, config.warmup_steps, config.schedule)
        for group, highest in zip(optimizer.param_groups, highest_rates, strict=True):
            group["lr"] = highest * rate

        num_terms = max(1, _sum(accelerator, sum(micro.num_terms for micro in work)))
        measures = Measures()
        for number, micro in enumerate(work):
            micro = micro.to(accelerator.device)
            with _gradients_shared(accelerator, model, config.shard, number == len(work) - 1):
                with accelerator.autocast():
                    rewards, loss = model(micro)
                accelerator.backward(loss * (process[1] / num_terms))  # DDP and FSDP take the mean over processes
            measures += Measures.of(rewards, loss, micro)
        measures = measures.over_processes(accelerator)
        sums = measures.sums
        norm = float(_whole(accelerator.clip_grad_norm_(learning, config.clip or math.inf)))
        if not math.isfinite(sums["loss"]) or not (math.isfinite(norm) or config.precision == "fp16"):
            optimizer.zero_grad()
            save()  # of before this step: its weights are good
            inside = ", ".join(name_of(learnt[i]) for i in steps.steps[step])
            raise TrainingError(
                f"the loss of step {step + 1} is {measures.loss} and its gradient's norm {norm}; its comparisons are {inside}. "
                f"The state before it is in {config.output}. Look at these comparisons, and try in a new folder a lower lr, a warm-up, "
                "or precision bf16 or fp32"
            )
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if average:
            average.update(step)

        window += measures
        unreadable += int(sums["unreadable"])
        deviation = measures.deviation
        constant = constant + 1 if deviation is not None and deviation < CONSTANT else 0
        if constant == CONSTANT_STEPS:
            save()
            raise _collapsed(step, deviation or 0.0, f"{CONSTANT_STEPS} steps in a row")
        due = step % config.log_every == 0 or step == total
        shown = window if due else measures
        accuracy = "" if shown.accuracy is None else f"accuracy {shown.accuracy:.3f}  "
        progress.step(step, int(sums["images"]), f"loss {shown.loss or 0:.4f}  {accuracy}lr {config.lr * rate:.2e}", due)
        if due:
            found = {"loss": window.loss, "accuracy": window.accuracy, "deviation": window.deviation}
            log("train", found | {"lr": config.lr * rate, "norm": norm})
            window = Measures()
        if step % evaluate_every == 0 or step == total:
            evaluate()
            learner.train()
            stopped = bool(config.patience) and stale >= config.patience
        if step % config.save_every == 0 or step in (total, best["step"]) or stopped:
            save()
        if stopped:
            progress.say(f"stopped after {stale} evaluations without a better one")
            break

    # --- the best weights on a scale of their own ---
    progress.say(f"the best weights are of step {best['step']}; measuring their rewards over the training images")
    accelerator.wait_for_everyone()
    merge_low_rank(scorer.network)
    weights, kept = read_checkpoint(folder.path / MODEL)
    assert kept is not None
    set_model_state_dict(learner, {f"scorer.network.{name}": tensor for name, tensor in weights.items()}, options=_WHOLE)
    over_all = measure_all(learner, learnt_once, accelerator, config.workers)
    mean, std = over_all.mean_and_std()
    result = TrainingResult(
        model=str(folder.path / MODEL),
        steps=step,
        best_step=best["step"],
        accuracy=best["accuracy"],
        loss=best["loss"],
        training_accuracy=over_all.accuracy,
        reward_mean=mean,
        reward_std=std,
        num_comparisons=len(learnt),
        num_images=sum(sizes),
        num_validation=len(checked),
        num_unreadable=unreadable,
        num_shared_prompts=len(shared),
    )
    if accelerator.is_main_process:
        final = replace(kept, reward=RewardConfig(mean, std, kept.reward.tie, reference=None))
        shown_scorer = ImageRewardScorer(scorer.network, final, Path(config.output).name)
        folder.save_model(weights, final, shown_scorer.model_card() + training_card(config, asdict(result)))
        folder.draw_curves()
        folder.save_result(asdict(result))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


def _hold_out(comparisons: Sequence[Comparison], config: RewardTraining) -> tuple[list[Comparison], list[Comparison]]:
    """What to learn from, and a share of the prompts to validate on."""
    if not config.validation_share:
        return list(comparisons), []
    try:
        learnt, checked = split(comparisons, (1 - config.validation_share, config.validation_share), config.seed)
    except ValueError as error:
        raise ValueError(f"no prompts can be held out for validation: {error}, use validation data, or set validation_share = 0") from None
    return learnt, checked


# --- the parts of the loop --------------------------------------------------------------------------------------------------------------


def rate_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest.

    >>> [round(rate_factor(step, 6, 2, "linear"), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[schedule]


def seed_step(seed: int, step: int, process: int) -> None:
    """Let dropout and masks follow from the seed, the step and the process, wherever a run was killed."""
    torch.manual_seed(((seed << 24) + step) * 1024 + process)


def decayed(weights: Sequence[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices decay; biases, norms and other vectors do not. A group without weights is left out."""
    matrices, vectors = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim <= 1]
    groups = [{"params": matrices, "lr": lr, "weight_decay": weight_decay}, {"params": vectors, "lr": lr, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class MovingAverage:
    """An exponential moving average of weights; young averages follow faster, so that the start is forgotten."""

    def __init__(self, weights: Sequence[nn.Parameter], decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.averages = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.averages, self.weights, strict=True):
            average.lerp_(weight, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages stand where the weights are, and the weights return."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weight in zip(self.averages, self.weights, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def _accelerator(config: RewardTraining) -> Accelerator:
    cpu = config.cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if config.precision == "fp16" and (cpu or config.shard):
        raise ValueError(f"precision fp16 does not work {'on a CPU' if cpu else 'with shard'}; use bf16 or fp32")
    for tracker in config.trackers:
        if not find_spec(tracker):
            raise ValueError(f"the tracker {tracker} is not installed: pip install {tracker}")
    precision = {"fp32": "no"}.get(config.precision, config.precision)
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, log_with=list(config.trackers) or None, project_dir=config.output)
    if config.shard and accelerator.num_processes == 1:
        raise ValueError("shard needs several processes: start the command with torchrun --nproc-per-node NUMBER")
    return accelerator


def _optimizer(learner: Learner, config: RewardTraining) -> tuple[torch.optim.Optimizer, list[float]]:
    tie = [learner.tie] if learner.tie is not None else []
    others = [p for p in learner.scorer.parameters() if p.requires_grad]
    groups = decayed(others, config.lr, config.weight_decay)
    if tie:
        groups.append({"params": tie, "lr": config.tie_lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, betas=config.betas), [float(group["lr"]) for group in groups]


_LEARNING = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
_WHOLE = StateDictOptions(full_state_dict=True, strict=False)


def _restore(learner: Learner, optimizer: Any, average: MovingAverage | None, accelerator: Accelerator, state: Mapping[str, Any]) -> None:
    if average:
        set_model_state_dict(learner, state["average"], options=_LEARNING)
        average._exchange()
    set_model_state_dict(learner, state["model"], options=_LEARNING)
    set_optimizer_state_dict(learner, optimizer.optimizer, state["optimizer"], options=_LEARNING)
    if accelerator.scaler and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])


def _features(
    folder: RunFolder,
    accelerator: Accelerator,
    scorer: ImageRewardScorer,
    depth: int,
    comparisons: Sequence[Comparison],
    config: RewardTraining,
) -> Features:
    path = folder.path / feature_files.file_name(scorer.network.blip.visual_encoder, depth, fingerprint(comparisons))
    if accelerator.is_main_process and not path.exists():
        steps = Steps(comparisons, scorer.prepare, config.loss, config.micro_images, skip_unreadable=config.skip_unreadable)
        crops = ((micro.batch.pixels, micro.judged) for work in steps.loader(config.workers) for micro in work)
        with accelerator.autocast():
            feature_files.compute(path, scorer, depth, crops, sum(steps.sizes))
    accelerator.wait_for_everyone()
    return Features(path)


@contextmanager
def _gradients_shared(accelerator: Accelerator, model: Any, sharded: bool, now: bool) -> Iterator[None]:
    """Gradients travel between processes in the last pass of a step only."""
    if sharded:
        model.set_requires_gradient_sync(now)
        yield
    else:
        with nullcontext() if now else accelerator.no_sync(model):
            yield


def _sum(accelerator: Accelerator, number: int) -> int:
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.reduce(torch.tensor(number, device=accelerator.device), "sum"))


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _collapsed(step: int, deviation: float, where: str) -> TrainingError:
    return TrainingError(
        f"the rewards have become constant: at step {step} those of one prompt's images deviate by {deviation:.1e} ({where}), so the "
        "loss stands at log 2 = 0.693 and will not move. In a new folder, try a lower lr, a warm-up, more frozen layers, a fresh head "
        "(new_head), and look whether the ranks follow from the images at all"
    )
