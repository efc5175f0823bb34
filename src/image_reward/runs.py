"""Shared by all training runs: the run's folder, schedules, a moving average of weights, and progress.

A run is a folder with the recipe, the state to continue from, a log and the result. It belongs to this one run: the same recipe continues
where a killed run stopped, another is refused.
"""

from __future__ import annotations

import errno
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from image_reward.addresses import Address
from image_reward.errors import InputError, TrainingError
from image_reward.files import remove_unfinished, written_whole
from image_reward.recipes import Recipe, Schedule, read_toml
from image_reward.terminal import StatusLine, duration

# --- the folder ----------------------------------------------------------------------------------------------------------------------

RECIPE, STATE, LOG, RESULT = "config.toml", "state.pt", "log.jsonl", "result.json"
_STATE_VERSION = 2


class RunFolder:
    """Every file but the log appears whole or not at all, so that a kill or a full disk leaves the last good one."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        """Raises ``ValueError`` when the folder belongs to a run with other settings, or is not the folder of a run."""
        self.path = path
        self.made: list[Path] = []
        """What this process made of a new run: the recipe, and the folders that were not there."""
        if (path / RECIPE).exists():
            if changes := read_toml(path / RECIPE, type(recipe)()).difference(recipe):
                raise InputError(
                    f"{path} holds a run with other settings ({'; '.join(changes)}); use another output, "
                    "or the original settings to continue that run"
                )
            return
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} cannot be the folder of a run: a file with that name exists; use another output")
        remove_unfinished(path)
        if path.exists() and any(path.iterdir()):
            raise InputError(f"{path} is not empty and not the folder of a run ({RECIPE} is missing); use another output")
        self.made = [path / RECIPE, *(folder for folder in (path, *path.parents) if not folder.exists())]
        path.mkdir(parents=True, exist_ok=True)
        self._write(RECIPE, recipe.to_toml())

    @contextmanager
    def beginning(self, *files: str) -> Iterator[None]:
        """An error in the block leaves no trace of a new run, so that it can begin again with other settings.

        ``files``: names of what else the block may have written.
        """
        try:
            yield
        except Exception:
            if self.made:
                recipe, *folders = self.made
                for path in (recipe, *(self.path / name for name in files)):
                    path.unlink(missing_ok=True)
                for folder in folders:
                    with suppress(OSError):  # it is not empty: something else was put there
                        folder.rmdir()
            raise

    # --- the state ---

    def save_state(self, state: Mapping[str, Any]) -> None:
        """``state``: tensors, numbers, strings, and dictionaries and lists of these."""
        with self.saving(), written_whole(self.path / STATE) as temporary:
            torch.save({"version": _STATE_VERSION, **state}, temporary)

    def load_state(self) -> dict[str, Any] | None:
        """What was saved last, on the CPU; None in a new run. Raises ``TrainingError`` for a state that cannot be continued."""
        if not (self.path / STATE).exists():
            return None
        state = self.load(STATE)
        if not isinstance(state, dict) or state.get("version") != _STATE_VERSION:
            raise TrainingError(
                f"{self.path} holds a run of another version of this program, which cannot be continued exactly; use another output"
            )
        return state

    def load(self, name: str) -> Any:
        """What ``torch.save`` wrote, on the CPU. Raises ``TrainingError`` for a damaged file."""
        path = self.path / name
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch's reader raises errors of many kinds for damaged files
            # For files of other kinds, PyTorch advises weights_only=False, which would run any code in them.
            reason = "not what torch.save writes" if "weights_only" in str(error) else " ".join(str(error).split())
            raise TrainingError(f"{path} is damaged ({reason:.200}); start the run again in a new folder") from None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Errors inside become a ``TrainingError`` that says which state is intact."""
        try:
            yield
        # PyTorch's writer turns a full disk into a RuntimeError; safetensors' errors and OSError share no base class.
        except Exception as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            full = full or any(words in str(error).lower() for words in ("write", "unexpected pos"))
            kept = "the last saved state is whole" if (self.path / STATE).exists() else "no state was saved before"
            raise TrainingError(
                f"saving to {self.path} failed{': the disk may be full' if full else ''} ({error}); {kept}. "
                "Free space and run the same command again to continue from there"
            ) from error

    def _write(self, name: str, text: str) -> None:
        with written_whole(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    # --- the log ---

    def log(self, values: Mapping[str, Any]) -> None:
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def history(self) -> list[dict[str, Any]]:
        path = self.path / LOG
        if not path.exists():
            return []
        with _whole(path):
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]

    def forget_after(self, step: int) -> None:
        """Drop the lines that a killed run wrote after its last saved state: they will be written again."""
        if (self.path / LOG).exists():
            self._write(LOG, "".join(json.dumps(line) + "\n" for line in self.history() if line["step"] <= step))

    # --- the result ---

    def result(self) -> dict[str, Any] | None:
        path = self.path / RESULT
        if not path.exists():
            return None
        with _whole(path):
            return json.loads(path.read_text(encoding="utf-8"))

    def save_result(self, result: Mapping[str, Any]) -> None:
        self._write(RESULT, json.dumps(result, indent=2) + "\n")


def open_run(recipe: Recipe, accelerator: Any) -> tuple[RunFolder, dict[str, Any] | None]:
    """The folder ``recipe.output`` of a run, and its result where the run is finished; the main process of ``accelerator`` is the first.

    Raises ``ValueError`` as ``RunFolder`` does.
    """
    with accelerator.main_process_first():
        folder = RunFolder(Address.parse(recipe.output).local, recipe)
    if result := folder.result():
        Progress(0, 0, accelerator.is_main_process).say(f"{recipe.output} holds a finished run")
    return folder, result


def begin(folder: RunFolder, accelerator: Any, step: int | None, total: int, notes: Sequence[str], summary: str) -> Progress:
    """Begin a new run, or go on after ``step`` where a killed one saved its state last: its log ends there.

    ``notes`` and ``summary`` are shown.
    """
    if accelerator.is_main_process:
        folder.forget_after(-1 if step is None else step)
    accelerator.wait_for_everyone()
    progress = Progress(step or 0, total, accelerator.is_main_process)
    for note in notes:
        progress.say(note)
    progress.say(summary if step is None else f"{summary}; continued after step {step}")
    return progress


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What is not JSON inside is a ``TrainingError`` that names the file."""
    try:
        yield
    except ValueError as error:
        raise TrainingError(f"{path} is damaged ({error}); start the run again in a new folder") from None


# --- steps ---------------------------------------------------------------------------------------------------------------------------


def rate_factor(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest.

    >>> [round(rate_factor(step, 6, 2, "linear"), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[schedule]


def seed_step(seed: int, step: int, process: int) -> None:
    """Make dropout and masks depend on seed, step and process alone, so that a continued run repeats them."""
    # PyTorch's generator on a CPU reads the low 32 bits of a seed alone, so all three are mixed into these: by Knuth's multiplier, which is
    # odd and not a multiple of 1024, so that no two seeds share a sequence of steps.
    torch.manual_seed((seed * 2_654_435_761 + step * 1024 + process) % 2**32)


def weight_groups(weights: Sequence[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices decay; biases, norms and other vectors do not. A group without weights is left out."""
    matrices, vectors = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim <= 1]
    groups = [{"params": matrices, "lr": lr, "weight_decay": weight_decay}, {"params": vectors, "lr": lr, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float], device: torch.device) -> torch.optim.AdamW:
    """On a CPU one operation for all weights: a loop over those of a small network takes a sixth of its training step."""
    return torch.optim.AdamW(groups, betas=betas, fused=True if device.type == "cpu" else None)


def end_processes(accelerator: Any) -> None:
    """End the group of processes of an ``Accelerator`` whose caller no longer holds the model that it prepared.

    DDP's reducer would otherwise be the last to hold the group, and would end it while it holds Python's global lock, for which gloo's
    thread may be waiting: the process would hang at its end.
    """
    accelerator.free_memory()
    accelerator.end_training()


class MovingAverage:
    """An exponential moving average of weights; in early steps the decay is lower, so that the initial weights are forgotten."""

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
        """Within the block the averages replace the weights."""
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


# --- progress ------------------------------------------------------------------------------------------------------------------------


class Progress:
    """Where a run is: a line that is rewritten on a terminal, or a line at each logged step elsewhere."""

    def __init__(self, start: int, total: int, shown: bool) -> None:
        """``start`` of ``total`` steps are complete already; nothing is printed unless ``shown``."""
        self.start, self.total = start, total
        self.line = StatusLine() if shown else None
        self.start_time = time.monotonic()
        self.num_images = 0

    def step(self, step: int, num_images: int, values: str, due: bool) -> None:
        """``due``: this step is logged, so it is shown even where lines cannot be rewritten."""
        self.num_images += num_images
        if self.line is None or not (due or self.line.is_terminal):
            return
        elapsed = max(time.monotonic() - self.start_time, 1e-9)
        remaining = elapsed / (step - self.start) * (self.total - step)
        rate = f"{self.num_images / elapsed:.1f} images/s  {duration(remaining)} left"
        self.line.show(lambda: f"step {step}/{self.total}  {values}  {rate}", now=due)

    def say(self, text: str) -> None:
        if self.line is not None:
            self.line.note(text)
