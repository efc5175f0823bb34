"""A shard of rows -> the same rows with rewards. Every engine's workers do their work here."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from image_reward.errors import ImageRewardError, JobError
from image_reward.jobs.decoders import Decoders, Group, Prepared, RowDefectError, group_rows, in_words, prepare_groups
from image_reward.jobs.files import Folder
from image_reward.jobs.folder import write_part
from image_reward.jobs.messages import DefectError, ShardResult
from image_reward.jobs.rows import Input, Shard
from image_reward.scorers.base import Batch, Scorer, keys_of
from image_reward.scorers.identity import identity_of
from image_reward.scorers.outcomes import Outcome, halves, is_out_of_memory, outcome_of
from image_reward.scorers.together import options_of, prepare_together, processors_of, rewards_together, single_scorers

if TYPE_CHECKING:
    import pyarrow

LoadScorers = Callable[[str | None], Sequence[Scorer[Any]]]
"""A device -> scorers on it. Picklable: every worker calls it."""

_LARGEST_TRIED = 512  # images at once: beyond this no device gets faster
_REPORT_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Work:
    """All that a worker must know. Picklable."""

    input: Input
    output: str
    load: LoadScorers
    batch_size: int | None
    """Images at once; None to find out."""
    decoders: int
    """Processes that prepare batches for a worker; 0 to prepare them in the worker itself."""
    threads: int | None = None
    """CPU threads of the network; None leaves it to PyTorch."""


# --- scoring -------------------------------------------------------------------------------------------------------------------------


def is_lost_device(error: BaseException) -> bool:
    """Whether a device failed in a way that only a new process can mend."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


class Scoring:
    """Batches -> rewards, as many images at once as memory allows."""

    def __init__(self, scorers: Sequence[Scorer[Any]], batch_size: int | None) -> None:
        self.scorers = scorers
        self.batch_size = batch_size or min(scorer.batch_size for scorer in scorers)
        self.busy = 0.0
        if batch_size is None and scorers[0].device.type == "cuda" and all(one.batch_size_by_trial for one in single_scorers(scorers)):
            self.batch_size = self._fastest()

    def __call__(self, batches: Sequence[Batch]) -> Outcome:
        """What becomes of batches of the same rows. Where memory does not allow all at once, later batches are smaller."""
        started = time.perf_counter()
        names = [scorer.name for scorer in self.scorers]
        try:
            with torch.inference_mode():
                outcome = outcome_of(names, lambda parts: rewards_together(self.scorers, parts), batches)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            device = self.scorers[0].device
            raise JobError(f"there is not enough memory on {device} to score a single image; use another device or dtype") from None
        finally:
            self.busy += time.perf_counter() - started
        self.batch_size = min(self.batch_size, outcome.num_at_once or self.batch_size)
        return outcome

    def _fastest(self) -> int:
        """The number of images at once that gives the most images a second, by trial."""
        best, best_rate, size = self.batch_size, 0.0, 16
        processors = processors_of(self.scorers)
        noise = np.random.default_rng(0).integers(0, 256, size=(_LARGEST_TRIED, 64, 64, 3), dtype=np.uint8)  # no two images alike
        while size <= _LARGEST_TRIED:
            batches = prepare_together(processors, ["a photograph of a cat"] * size, list(noise[:size]))
            try:
                with torch.inference_mode():
                    for _ in range(2):  # the first run chooses kernels and fills caches
                        started = time.perf_counter()
                        for found in rewards_together(self.scorers, batches):
                            found.cpu()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                torch.cuda.empty_cache()
                break
            rate = size / (time.perf_counter() - started)
            if rate > 1.03 * best_rate:
                best, best_rate = size, rate
            size *= 2
        return best


def reward_columns(scorers: Sequence[str]) -> list[str]:
    """The names of the columns that rewards go to, by the scorers' names.

    >>> reward_columns(["ImageReward-v1.0"]), reward_columns(["ImageReward-v1.0", "CLIP"])
    (['reward'], ['reward:ImageReward-v1.0', 'reward:CLIP'])
    """
    return ["reward"] if len(scorers) == 1 else [f"reward:{name}" for name in scorers]


# --- a worker ------------------------------------------------------------------------------------------------------------------------


class ShardScorer:
    """Scorers on a device that score shards and write the parts."""

    def __init__(self, work: Work, device: str | None = None) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # for a batch of prompts, threads cost more than they give
        if work.threads:
            torch.set_num_threads(work.threads)
        self.work = work
        self.folder = Folder.at(work.output)
        self.scorers = [scorer.eval() for scorer in work.load(device)]
        self.processors = processors_of(self.scorers)
        if len({options_of(processor) for processor in self.processors}) > 1:
            raise JobError("scorers of one job must open images in the same way; load them with the same image options")
        if len({scorer.name for scorer in self.scorers}) < len(self.scorers):
            raise JobError(f"two scorers are called {self.scorers[0].name}; each needs a name of its own for its column")
        self.scoring = Scoring(self.scorers, work.batch_size)
        self.decoders = Decoders(work.decoders, self.processors, work.input.access) if work.decoders else None
        self.feeds: dict[int, _Feed] = {}

    def identity(self) -> list[dict[str, str]]:
        return [identity_of(scorer) for scorer in self.scorers]

    def score(
        self, shard: Shard, upcoming: Shard | None = None, on_progress: Callable[[int, int], None] = lambda _rows, _errors: None
    ) -> ShardResult:
        """Score a shard and write its part; meanwhile begin to prepare the one that comes next.

        ``on_progress`` is called every second or so with how many rows of the shard are done and how many of them have errors.

        Raises ``DefectError``, which names the row, for an exception that no row may cause.
        """
        feed = self.feeds.pop(shard.number, None) or _Feed(self, shard)
        try:
            return self._score_rows(feed, upcoming, on_progress)
        except RowDefectError as defect:
            raise DefectError(f"{self.work.input.place(shard, feed.rows, defect.row)}: {defect.error}") from defect

    def _score_rows(self, feed: _Feed, upcoming: Shard | None, on_progress: Callable[[int, int], None]) -> ShardResult:
        shard = feed.shard
        busy = self.scoring.busy
        rewards = torch.full((len(self.scorers), shard.num_rows), torch.nan)
        errors, digests, heard = dict(feed.errors), dict[int, bytes](), list[str]()
        reported = time.perf_counter()
        num_done = 0
        first_of: dict[Hashable, int] = {}  # rounding depends on what shares a batch, so equal rows get the reward of the first
        equal_to: dict[int, int] = {}
        for prepared in feed.run(upcoming):
            errors |= prepared.errors
            digests |= prepared.digests
            heard += prepared.warnings
            num_done += len(prepared.rows) + len(prepared.errors)
            for row, key in zip(prepared.rows, _row_keys(prepared, feed.rows.prompts), strict=True):
                if (first := first_of.setdefault(key, row)) != row:
                    equal_to[row] = first
            new = [place for place, row in enumerate(prepared.rows) if row not in equal_to]
            if len(new) < len(prepared.rows):
                prepared = Prepared([prepared.rows[place] for place in new], [batch.select(new) for batch in prepared.batches])
            if new:
                self._score(prepared, rewards, errors)
            if time.perf_counter() - reported > _REPORT_EVERY:
                reported = time.perf_counter()
                on_progress(num_done, len(errors))
        for row, first in equal_to.items():
            rewards[:, row] = rewards[:, first]
            if first in errors:
                errors[row] = errors[first]
        self._write(shard, feed.rows.table, rewards, errors, digests)
        return ShardResult(shard.number, shard.num_rows, len(errors), self.scoring.busy - busy, tuple(dict.fromkeys(heard)))

    def _score(self, prepared: Prepared, rewards: Tensor, errors: dict[int, str]) -> None:
        try:
            outcome = self.scoring(prepared.batches)
        except JobError:
            raise
        except Exception as error:  # a scorer that refuses the batch for one of its rows, or a defect: find which row it is
            if is_lost_device(error):
                raise
            if len(prepared.rows) == 1:
                if not isinstance(error, ImageRewardError):
                    raise RowDefectError(prepared.rows[0], in_words(error)) from error
                errors[prepared.rows[0]] = in_words(error)
                return
            for places, half in halves(prepared.batches):
                self._score(Prepared([prepared.rows[place] for place in places], half), rewards, errors)
            return
        rewards[:, prepared.rows] = outcome.rewards
        errors |= {prepared.rows[place]: in_words(reason) for place, reason in outcome.reasons.items()}

    def give_up(self, shard: Shard, reason: str) -> ShardResult:
        """Write the part of a shard that cannot be scored: its rows, each with the reason."""
        rows = self.work.input.read(shard)
        errors = dict.fromkeys(range(shard.num_rows), f"Quarantined: {reason}")
        self._write(shard, rows.table, torch.full((len(self.scorers), shard.num_rows), torch.nan), errors, {})
        return ShardResult(shard.number, shard.num_rows, shard.num_rows, 0.0)

    def close(self) -> None:
        if self.decoders is not None:
            self.decoders.pool.shutdown(cancel_futures=True)

    def _write(self, shard: Shard, table: pyarrow.Table, rewards: Tensor, errors: dict[int, str], digests: dict[int, bytes]) -> None:
        columns = dict(zip(reward_columns([scorer.name for scorer in self.scorers]), rewards.tolist(), strict=True))
        write_part(self.folder, shard, table, columns, errors, digests)


def _row_keys(prepared: Prepared, prompts: Sequence[object]) -> Iterable[Hashable]:
    """Equal for rows that get one reward: those in which the scorers see the same, or else those of one image file and one prompt."""
    keys = [known for batch in prepared.batches if (known := keys_of(batch)) is not None]
    if len(keys) == len(prepared.batches):
        return zip(*keys, strict=True)
    return [(prepared.digests.get(row, row), prompts[row]) for row in prepared.rows]


class _Feed:
    """The rows of a shard, prepared one batch after another; with decoders, some batches ahead of the device."""

    def __init__(self, owner: ShardScorer, shard: Shard) -> None:
        self.owner, self.shard = owner, shard
        self.rows = owner.work.input.read(shard)
        groups, self.errors = group_rows(self.rows, owner.work.input.image_column, owner.work.input.access)
        self.groups = deque(groups)
        self.futures: deque[Future[Prepared]] = deque()

    def next_groups(self) -> list[Group]:
        return [self.groups.popleft() for _ in range(min(self.owner.scoring.batch_size, len(self.groups)))]

    def submit(self, limit: int) -> None:
        """Let the decoders work on more of this shard, up to ``limit`` batches at once."""
        assert self.owner.decoders is not None
        while self.groups and len(self.futures) < limit:
            self.futures.append(self.owner.decoders.submit(self.next_groups()))

    def run(self, upcoming: Shard | None) -> Iterator[Prepared]:
        owner, decoders = self.owner, self.owner.decoders
        if decoders is None:
            while self.groups:
                yield prepare_groups(owner.processors, self.next_groups(), owner.work.input.access)
            return
        self.submit(decoders.ahead)
        while self.futures:
            prepared = self.futures.popleft().result()
            self.submit(decoders.ahead)
            if upcoming is not None and not self.groups:
                if upcoming.number not in owner.feeds:
                    owner.feeds[upcoming.number] = _Feed(owner, upcoming)
                owner.feeds[upcoming.number].submit(decoders.ahead - len(self.futures))
            yield prepared
