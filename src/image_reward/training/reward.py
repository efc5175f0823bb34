"""Learning a reward model from comparisons: evaluate, save, accumulate, clip, step, log, in one loop.

The result depends on the configuration and the data, and not on where a run was killed (to the bit on a CPU), nor, beyond rounding and
dropout, on how many processes share the work: the order of the data follows from the seed, dropout from seed, step and process, and the
loss is a mean over the terms of the whole step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
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

from image_reward.checkpoints import read_checkpoint, save_checkpoint
from image_reward.comparisons import normalized_prompt, shared_prompts, split
from image_reward.config import RewardConfig, TieConfig
from image_reward.errors import InputError, TrainingError
from image_reward.metrics import num_pairs
from image_reward.reports.numbers import counted
from image_reward.runs import MovingAverage, RunFolder, adamw, begin, end_processes, open_run, rate_factor, seed_step, weight_groups
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.training import frozen_features
from image_reward.training.card import draw_curves, training_card
from image_reward.training.config import FEW_PAIRS, TIE_MODELS, RewardTraining
from image_reward.training.data import MicroBatch, TrainingSteps, fingerprint, name_of, pack, plan, select_usable
from image_reward.training.freezing import add_low_rank, freeze, merge_low_rank, plain_weights
from image_reward.training.frozen_features import FrozenFeatures, FrozenFeatureScorer
from image_reward.training.initial_scorer import initial_scorer
from image_reward.training.losses import davidson, log_tie_parameter, pairwise_logistic, plackett_luce, rao_kupper
from image_reward.training.measures import Measures, measure_all
from image_reward.types import Comparison

MODEL = "model"
CONSTANT = 1e-3
"""Rewards whose standard deviation within a prompt is below this are constant: the loss is within 1e-3 of log 2 whatever the ranks."""
CONSTANT_STEPS = 50
"""The run stops after this many consecutive steps with constant rewards."""


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a run; the model itself is in ``model``."""

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
    """How often an image could not be read and was left out."""
    num_shared_prompts: int = 0
    """Prompts of the validation data that are also in the training data, in whatever spelling."""
    num_validation_pairs: int = 0
    """Pairs of validation images that are not tied."""

    @property
    def is_start(self) -> bool:
        """Whether no evaluation was better than the first, so that the model is the one the run started from."""
        return self.best_step == 0 and self.steps > 0


class RewardLoss(nn.Module):
    """The scorer on its raw scale, the loss, and the tie parameter where the loss has one: everything that is trained."""

    def __init__(self, scorer: ImageRewardScorer, loss: str) -> None:
        super().__init__()
        self.scorer, self.loss = scorer, loss
        self.tie = nn.Parameter(torch.zeros(1)) if loss in TIE_MODELS else None

    def forward(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
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


@dataclass
class RunState:
    """What changes from step to step, apart from weights and moments: saved as it is, so that a killed run continues with it."""

    step: int = 0
    """Steps completed."""
    best_step: int | None = None
    """The step whose weights are kept; None before the first evaluation."""
    best_accuracy: float | None = None
    best_loss: float | None = None
    num_worse: int = 0
    """Consecutive evaluations that were not better."""
    num_constant: int = 0
    """Consecutive steps in which the rewards were constant."""
    num_unreadable: int = 0
    stopped: bool = False
    """Whether ``patience`` has ended the run."""

    def is_best(self, accuracy: float | None, loss: float | None) -> bool:
        """Among equals in accuracy the lower loss is better; without accuracy the loss alone decides."""
        if self.best_step is None:
            return True
        return (accuracy or 0.0, -(loss or 0.0)) > (self.best_accuracy or 0.0, -(self.best_loss or 0.0))


def train(config: RewardTraining, comparisons: Sequence[Comparison], validation: Sequence[Comparison] = ()) -> TrainingResult:
    """Learn a reward model into the folder ``config.output``, or continue the run that is there.

    ``config.data`` and ``config.validation`` are only recorded: the caller has read them. Without validation comparisons, a share of the
    prompts is held out; without that share, the last weights are kept.

    Raises ``ValueError`` and ``FileNotFoundError`` for what can be seen before the first step, ``TrainingError`` for what goes wrong after.
    """
    has_validation = bool(validation) or config.validation_share > 0
    config.check_unused(
        not has_validation, "there are no validation data", "use some, or a validation_share above 0", "patience", "evaluate_every"
    )
    accelerator = _accelerator(config)
    folder, result = open_run(config, accelerator)
    if result:
        return TrainingResult(**result)
    run = _Run(config, _Data(config, comparisons, validation), folder, accelerator)
    state = run.state

    if state.best_step is None:
        run.evaluate()
    run.learner.train()
    window = Measures()  # since the last line of the log
    for micro_batches in run.steps.loader(config.workers, start=state.step) if not state.stopped else ():
        seed_step(config.seed, state.step, accelerator.process_index)
        lr_factor = rate_factor(state.step, run.num_steps, config.warmup_steps, config.schedule)
        for group, highest in zip(run.optimizer.param_groups, run.highest_rates, strict=True):
            group["lr"] = highest * lr_factor

        measures = run.accumulate(micro_batches)
        norm = float(_unsharded(accelerator.clip_grad_norm_(run.trained, config.clip or math.inf)))
        run.check_finite(measures, norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
        state.step += 1
        if run.average:
            run.average.update(state.step)

        state.num_unreadable += int(measures.sums["unreadable"])
        run.check_constant(measures)
        window += measures
        due = state.step % config.log_every == 0 or state.step == run.num_steps
        run.show(window if due else measures, int(measures.sums["images"]), config.lr * lr_factor, due)
        if due:
            run.log("train", {**window.as_dict(), "lr": config.lr * lr_factor, "norm": norm})
            window = Measures()
        if state.step % run.evaluate_every == 0 or state.step == run.num_steps:
            run.evaluate()
            run.learner.train()
            state.stopped = 0 < config.patience <= state.num_worse
        if state.step % config.save_every == 0 or state.step in (run.num_steps, state.best_step) or state.stopped:
            run.save()
        if state.stopped:
            run.progress.say(f"stopped after {state.num_worse} evaluations without a better one")
            break
    return run.finish()


class _Data:
    """Training and validation data, and notes on what was left out or is doubtful."""

    def __init__(self, config: RewardTraining, comparisons: Sequence[Comparison], validation: Sequence[Comparison]) -> None:
        self.fingerprint = fingerprint(comparisons, validation)
        self.train, self.notes = select_usable(comparisons, config.loss, config.skip_unreadable)
        self.validation: list[Comparison] = []
        if validation:
            self.validation, notes = select_usable(validation, config.loss, config.skip_unreadable)
            self.notes += [f"validation: {note}" for note in notes]
        elif config.validation_share:
            self._hold_out(config)
        self.shared_prompts = shared_prompts(self.train, self.validation)
        self.num_validation_pairs = sum(num_pairs(c.ranks)[0] for c in self.validation)
        if shared := self.shared_prompts:
            self.notes.append(
                f"warning: {len(shared):,} prompts of the validation data are also in the training data, the first is {shared[0]!r:.80}: "
                "the best step is chosen on prompts that were trained on, and its accuracy is too high. `image-reward data split` writes "
                "files that share none"
            )
        if self.validation and self.num_validation_pairs < FEW_PAIRS:
            self.notes.append(
                f"warning: the best step is chosen on only {counted(self.num_validation_pairs, 'ordered pair')} of "
                f"{counted(len(self.validation), 'comparison')}, "
                "which is little better than chance: use more validation data, or validation_share = 0 to keep the last step"
            )

    def _hold_out(self, config: RewardTraining) -> None:
        share, num_usable = config.validation_share, len(self.train)
        try:
            self.train, self.validation = split(self.train, (1 - share, share), config.seed)
        except ValueError as error:
            remedy = "use validation data, or set validation_share = 0"
            raise InputError(f"no prompts can be held out for validation: {error}, {remedy}") from None
        prompts = {normalized_prompt(c.prompt) for c in self.validation}
        self.notes.append(
            f"{len(self.validation):,} of {num_usable:,} comparisons, of {counted(len(prompts), 'prompt')}, are held out for validation "
            f"(validation_share {share:g}, seed {config.seed})"
        )


class _Run:
    """A run in progress: its parts, and the parts of its loop. What changes from step to step is in ``state``."""

    def __init__(self, config: RewardTraining, data: _Data, folder: RunFolder, accelerator: Accelerator) -> None:
        self.config, self.data, self.folder, self.accelerator = config, data, folder, accelerator

        # --- the network ---
        scorer = initial_scorer(config)
        self.weight_names = list(scorer.network.state_dict())
        for module in scorer.network.mlp.modules():
            if isinstance(module, nn.Dropout) and not config.dropout:
                module.p = 0.0
        depth = 0
        if config.lora_rank:
            add_low_rank(scorer.network, config.lora_rank, config.lora_alpha, config.seed)
        else:
            depth = freeze(scorer.network, config.freeze)
        scorer.network.set_gradient_checkpointing(config.gradient_checkpointing)
        self.frozen_sum = sum(float(p.detach().sum(dtype=torch.float64)) for p in scorer.parameters() if not p.requires_grad)
        scorer.to(accelerator.device)

        # --- the steps ---
        features: list[FrozenFeatures | None] = [None, None]
        if config.cache_features:
            if depth == 0:
                raise InputError(f"cache_features has nothing to keep: freeze = {config.freeze} freezes no block of the image tower")
            features = [self._frozen_features(scorer, depth, c) if c else None for c in (data.train, data.validation)]
            scorer = FrozenFeatureScorer(scorer.network, scorer.config)
            scorer.depth = depth
        self.scorer = scorer
        self.train_once = self._once(data.train, features[0])
        self.validation_once = self._once(data.validation, features[1]) if data.validation else None
        self.sizes = self.train_once.sizes
        self.steps = self.train_once.over(plan(self.sizes, config.epochs, config.max_steps, config.batch_images, config.seed))
        self.num_steps = len(self.steps)
        self.evaluate_every = config.evaluate_every or len(pack(self.sizes, range(len(self.sizes)), config.batch_images))

        # --- what is trained ---
        self.learner = RewardLoss(scorer, config.loss).to(accelerator.device)
        if config.shard:
            for layer in scorer.network.image_layers:
                fully_shard(layer)
            fully_shard(self.learner)
        optimizer, self.highest_rates = _optimizer(self.learner, config, accelerator.device)
        self.model: Any = self.learner
        if config.shard:  # FSDP has wrapped the learner in place, and DDP must not wrap it again
            self.optimizer = accelerator.prepare(optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(self.learner, optimizer)
        self.trained = [p for p in self.learner.parameters() if p.requires_grad]
        self.average = MovingAverage(self.trained, config.ema) if config.ema else None

        # --- where a killed run stopped ---
        restored = self._restored()
        self.state = restored or RunState()
        if config.trackers:
            settings = {k: v if isinstance(v, int | float | str) else str(v) for k, v in asdict(config).items()}
            accelerator.init_trackers("image-reward", settings)
        weights = f"{sum(p.numel() for p in self.trained):,} of {sum(p.numel() for p in self.learner.parameters()):,} weights are trained"
        self.progress = begin(
            folder,
            accelerator,
            self.state.step if restored else None,
            self.num_steps,
            data.notes,
            f"{counted(len(data.train), 'comparison')} of {sum(self.sizes):,} images in {self.num_steps:,} steps on "
            f"{accelerator.num_processes} x {accelerator.device.type}; validation on {counted(len(data.validation), 'comparison')} with "
            f"{counted(data.num_validation_pairs, 'ordered pair')}; {weights}",
        )

    def _once(self, comparisons: Sequence[Comparison], features: FrozenFeatures | None) -> TrainingSteps:
        config, process = self.config, (self.accelerator.process_index, self.accelerator.num_processes)
        options = (config.loss, config.micro_images, process, config.skip_unreadable, config.cache_mib)
        return TrainingSteps(comparisons, self.scorer.prepare, *options, features)

    def _frozen_features(self, scorer: ImageRewardScorer, depth: int, comparisons: Sequence[Comparison]) -> FrozenFeatures:
        config = self.config
        path = self.folder.path / frozen_features.file_name(scorer.network, depth, fingerprint(comparisons))
        if self.accelerator.is_main_process and not path.exists():
            steps = TrainingSteps(comparisons, scorer.prepare, config.loss, config.micro_images, skip_unreadable=config.skip_unreadable)
            crops = ((micro.batch.pixels, micro.judged) for step in steps.loader(config.workers) for micro in step)
            with self.accelerator.autocast():
                frozen_features.compute(path, scorer, depth, crops, sum(steps.sizes))
        self.accelerator.wait_for_everyone()
        return FrozenFeatures(path)

    # --- saving and restoring ---

    def save(self) -> None:
        weights = get_model_state_dict(self.learner, options=_TRAINED)
        moments = get_optimizer_state_dict(self.learner, self.optimizer.optimizer, options=_TRAINED)
        averaged = None
        if self.average:
            with self.average.in_place():  # on a CPU the dictionary holds the weights themselves, which are about to change back
                averaged = copy.deepcopy(get_model_state_dict(self.learner, options=_TRAINED))
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        if self.accelerator.is_main_process:
            self.folder.save_state(
                {"run": asdict(self.state), "data": self.data.fingerprint, "frozen_sum": self.frozen_sum}
                | {"model": weights, "optimizer": moments, "average": averaged, "scaler": scaler}
            )
        self.accelerator.wait_for_everyone()

    def _restored(self) -> RunState | None:
        saved = self.folder.load_state()
        if saved is None:
            return None
        if saved["data"] != self.data.fingerprint:
            raise InputError(f"{self.config.output} holds a run on other data; use another output, or the same data to continue that run")
        if not math.isclose(saved["frozen_sum"], self.frozen_sum, rel_tol=1e-9):  # its last digits depend on how many threads add
            raise InputError(f"{self.config.start} is not what the run in {self.config.output} started from: its weights have changed")
        if self.average:
            with self.average.in_place():
                set_model_state_dict(self.learner, saved["average"], options=_TRAINED)
        set_model_state_dict(self.learner, saved["model"], options=_TRAINED)
        set_optimizer_state_dict(self.learner, self.optimizer.optimizer, saved["optimizer"], options=_TRAINED)
        if self.accelerator.scaler and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        return RunState(**saved["run"])

    # --- the parts of the loop ---

    def accumulate(self, micro_batches: Sequence[MicroBatch]) -> Measures:
        """Accumulate the gradient of the mean over all terms of the step, other processes' included. Returns measures of all processes."""
        accelerator = self.accelerator
        num_terms = max(1, _sum(accelerator, sum(micro.num_terms for micro in micro_batches)))
        measures = Measures()
        for number, micro in enumerate(micro_batches, start=1):
            micro = micro.to(accelerator.device)
            with _gradient_sync(accelerator, self.model, self.config.shard, number == len(micro_batches)):
                with accelerator.autocast():
                    rewards, loss = self.model(micro)
                # A sum over the terms, and DDP and FSDP take the mean over processes.
                accelerator.backward(loss * (accelerator.num_processes / num_terms))
            measures += Measures.of(rewards, loss, micro)
        return measures.over_processes(accelerator)

    def evaluate(self) -> None:
        """Validate, and keep the weights if they are the best so far; without validation data the latest are kept."""
        state, measures = self.state, Measures()
        with self.average.in_place() if self.average else nullcontext():
            if self.validation_once:
                measures = measure_all(self.learner, self.validation_once, self.accelerator, self.config.workers)
                self.log("validation", measures.as_dict())
                accuracy = "" if measures.accuracy is None else f"  accuracy {measures.accuracy:.4f}"
                best = "" if state.best_accuracy is None else f"  (best so far: {state.best_accuracy:.4f})"
                self.progress.say(f"step {state.step}  validation: loss {measures.loss or 0:.4f}{accuracy}{best}")
            if not self.validation_once or state.is_best(measures.accuracy, measures.loss):
                state.best_step, state.best_accuracy, state.best_loss, state.num_worse = state.step, measures.accuracy, measures.loss, 0
                self._keep_weights()
            else:
                state.num_worse += 1
        if self.validation_once and state.step and measures.std is not None and measures.std < CONSTANT:
            self.save()
            raise _collapsed(state.step, measures.std, "the validation data")

    def _keep_weights(self) -> None:
        weights, tie = plain_weights(self.scorer.network, self.weight_names), self.learner.tie_config()
        if self.accelerator.is_main_process:
            config = replace(self.scorer.config, reward=replace(self.scorer.config.reward, tie=tie))
            with self.folder.saving():
                save_checkpoint(self.model_folder, weights, config, self.scorer.model_card() + "\nTraining is not finished.\n")

    @property
    def model_folder(self) -> Path:
        return self.folder.path / MODEL

    def check_finite(self, measures: Measures, norm: float) -> None:
        if math.isfinite(measures.sums["loss"]) and (math.isfinite(norm) or self.config.precision == "fp16"):
            return  # in float16 an infinite gradient is common: the scaler skips the step and lowers its factor
        self.optimizer.zero_grad()
        self.save()  # the state before this step, whose weights are good
        step = self.state.step
        names = ", ".join(name_of(self.data.train[i]) for i in self.steps.steps[step])
        raise TrainingError(
            f"the loss of step {step + 1} is {measures.loss} and its gradient's norm {norm}; its comparisons are {names}. "
            f"The state before it is in {self.config.output}. Look at these comparisons, and try in a new folder a lower lr, a warm-up, "
            "or precision bf16 or fp32"
        )

    def check_constant(self, measures: Measures) -> None:
        state, std = self.state, measures.std
        state.num_constant = state.num_constant + 1 if std is not None and std < CONSTANT else 0
        if state.num_constant == CONSTANT_STEPS:
            self.save()
            raise _collapsed(state.step, std or 0.0, f"{CONSTANT_STEPS} consecutive steps")

    def log(self, kind: str, values: dict[str, float | None]) -> None:
        if self.accelerator.is_main_process:
            self.folder.log({"kind": kind, "step": self.state.step, **values})
        self.accelerator.log({f"{kind}/{k}": value for k, value in values.items() if value is not None}, step=self.state.step)

    def show(self, measures: Measures, num_images: int, lr: float, due: bool) -> None:
        accuracy = "" if measures.accuracy is None else f"accuracy {measures.accuracy:.3f}  "
        self.progress.step(self.state.step, num_images, f"loss {measures.loss or 0:.4f}  {accuracy}lr {lr:.2e}", due)

    # --- the end ---

    def finish(self) -> TrainingResult:
        """Normalise the rewards of the best weights, and write the result."""
        state, data = self.state, self.data
        assert state.best_step is not None
        self.progress.say(f"the best weights are those of step {state.best_step}; measuring their rewards over the training images")
        self.accelerator.wait_for_everyone()
        merge_low_rank(self.scorer.network)
        weights, kept = read_checkpoint(self.model_folder)
        assert kept is not None
        set_model_state_dict(self.learner, {f"scorer.network.{name}": tensor for name, tensor in weights.items()}, options=_WHOLE)
        measures = measure_all(self.learner, self.train_once, self.accelerator, self.config.workers)
        mean, std = measures.mean_and_std()
        result = TrainingResult(
            model=str(self.model_folder),
            steps=state.step,
            best_step=state.best_step,
            accuracy=state.best_accuracy,
            loss=state.best_loss,
            training_accuracy=measures.accuracy,
            reward_mean=mean,
            reward_std=std,
            num_comparisons=len(data.train),
            num_images=sum(self.sizes),
            num_validation=len(data.validation),
            num_unreadable=state.num_unreadable,
            num_shared_prompts=len(data.shared_prompts),
            num_validation_pairs=data.num_validation_pairs,
        )
        if result.is_start:
            self.progress.say(
                "warning: nothing was learnt: no evaluation was better than the first, so the model is what the run started from"
            )
        if self.accelerator.is_main_process:
            final = replace(kept, reward=RewardConfig(mean, std, kept.reward.tie, reference=None))
            scorer = ImageRewardScorer(self.scorer.network, final, Path(self.config.output).name)
            card = scorer.model_card() + training_card(self.config, asdict(result))
            with self.folder.saving():
                save_checkpoint(self.model_folder, weights, final, card)
            draw_curves(self.folder)
            self.folder.save_result(asdict(result))
        self.accelerator.wait_for_everyone()
        self.model = self.learner
        end_processes(self.accelerator)
        return result


# --- helpers -------------------------------------------------------------------------------------------------------------------------


def _accelerator(config: RewardTraining) -> Accelerator:
    cpu = config.cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if config.precision == "fp16" and (cpu or config.shard):
        raise InputError(f"precision fp16 does not work {'on a CPU' if cpu else 'with shard'}; use bf16 or fp32")
    for tracker in config.trackers:
        if not find_spec(tracker):
            raise InputError(f"the tracker {tracker} is not installed: pip install {tracker}")
    precision = {"fp32": "no"}.get(config.precision, config.precision)
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, log_with=list(config.trackers) or None, project_dir=config.output)
    if config.shard and accelerator.num_processes == 1:
        raise InputError("shard needs several processes: start the command with torchrun --nproc-per-node NUMBER")
    if config.shard and cpu and not hasattr(torch.cpu.Stream, "record_event"):
        raise InputError("shard on CPUs needs PyTorch 2.7 or later")
    return accelerator


def _optimizer(learner: RewardLoss, config: RewardTraining, device: torch.device) -> tuple[torch.optim.Optimizer, list[float]]:
    tie = [learner.tie] if learner.tie is not None else []
    others = [p for p in learner.scorer.parameters() if p.requires_grad]
    groups = weight_groups(others, config.lr, config.weight_decay)
    if tie:
        groups.append({"params": tie, "lr": config.tie_lr, "weight_decay": 0.0})
    return adamw(groups, config.betas, device), [float(group["lr"]) for group in groups]


_TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
_WHOLE = StateDictOptions(full_state_dict=True, strict=False)


@contextmanager
def _gradient_sync(accelerator: Accelerator, model: Any, sharded: bool, synchronise: bool) -> Iterator[None]:
    """Synchronise gradients between processes in the last pass of a step only."""
    if sharded:
        model.set_requires_gradient_sync(synchronise)
        yield
    else:
        with nullcontext() if synchronise else accelerator.no_sync(model):
            yield


def _sum(accelerator: Accelerator, number: int) -> int:
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.reduce(torch.tensor(number, device=accelerator.device), "sum"))


def _unsharded(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _collapsed(step: int, std: float, where: str) -> TrainingError:
    return TrainingError(
        f"the rewards have become constant: at step {step} those of one prompt's images have a standard deviation of {std:.1e} ({where}), "
        "so the loss is stuck at log 2 = 0.693. In a new folder, try a lower lr, a warm-up, more frozen layers or a new head (new_head), "
        "and check that the ranks follow from the images"
    )
