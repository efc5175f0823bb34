"""What becomes of a batch: rewards, and rows that have none. Scoring, jobs and the service all ask for it here.

A network gives a number that is not finite, or a scorer refuses a row (``RefusedRowsError``): neither fails the other rows. A batch that
does not fit into memory is halved until it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from image_reward.errors import RewardError

T = TypeVar("T")


class RefusedRowsError(RewardError):
    """Some rows of a batch have no reward; the others do. Raised by ``Scorer.forward``."""

    def __init__(self, rewards: Sequence[Tensor], reasons: Mapping[int, RewardError]) -> None:
        """``rewards``: of each scorer [N], or its estimates [N, K]; NaN where it refused the row. ``reasons``: why, by the row's number in
        the batch.
        """
        super().__init__(rewards, reasons)
        self.rewards, self.reasons = list(rewards), dict(reasons)

    def __str__(self) -> str:
        first = min(self.reasons)
        return f"{len(self.reasons)} rows of the batch have no reward: row {first}: {self.reasons[first]}"


class Outcome(NamedTuple):
    """Of a batch of N rows: M values of each, rewards or estimates."""

    rewards: Tensor
    """[M, N], float32, on the CPU; NaN where a scorer has no reward"""
    reasons: dict[int, RewardError]
    """Row -> why it lacks a reward, of the first scorer that does."""
    num_at_once: int | None = None
    """How many rows memory allowed at once, if not all."""


def outcome_of(names: Sequence[str], forward: Callable[[Sequence[Any]], Sequence[Tensor]], batches: Sequence[Any]) -> Outcome:
    """The outcome of batches of the same rows, of which ``forward`` makes the rewards [N] or estimates [N, K] of scorers, M values in all.

    ``names`` are those of the scorers that the values are of [M].

    Raises what ``forward`` raises, an error of memory only where it does not suffice for a single row.
    """

    def rewards_of(batches: Sequence[Any]) -> tuple[Tensor, dict[int, RewardError]]:
        reasons: dict[int, RewardError] = {}
        try:
            rewards = forward(batches)
        except RefusedRowsError as refused:
            rewards, reasons = refused.rewards, refused.reasons
        scored = torch.cat([own.reshape(len(own), -1).float().cpu() for own in rewards], dim=1).T.contiguous()
        for name, own in zip(names, scored, strict=True):
            for row in (~own.isfinite()).nonzero()[:, 0].tolist():
                own[row] = torch.nan
                reasons.setdefault(row, not_finite(name))
        return scored, reasons

    parts = list(in_parts(rewards_of, batches))
    reasons = {rows[row]: reason for rows, (_, own) in parts for row, reason in own.items()}
    at_once = min(len(rows) for rows, _ in parts) if len(parts) > 1 else None
    return Outcome(torch.cat([rewards for _, (rewards, _) in parts], dim=1), reasons, at_once)


def in_parts(compute: Callable[[Sequence[Any]], T], batches: Sequence[Any]) -> Iterator[tuple[range, T]]:
    """What is computed of batches of the same rows: of all at once, or of parts, where memory does not suffice for all.

    Yields which rows they are, and the result. Raises what ``compute`` raises, an error of memory only for a single row.
    """
    try:
        whole = compute(batches)
    except (RuntimeError, MemoryError) as error:
        if len(batches[0]) < 2 or not is_out_of_memory(error):
            raise
    else:
        yield range(len(batches[0])), whole
        return
    if torch.cuda.is_available():  # outside of ``except``, where the error keeps the tensors of what failed
        torch.cuda.empty_cache()
    for rows, half in halves(batches):
        for part, result in in_parts(compute, half):
            yield rows[part.start : part.stop], result


def halves(batches: Sequence[Any]) -> Iterator[tuple[range, list[Any]]]:
    """Batches of the same rows, at least two -> two parts. Yields which rows they are, and their batches."""
    num_rows = len(batches[0])
    for rows in (range(num_rows // 2), range(num_rows // 2, num_rows)):
        yield rows, [batch.select(rows) for batch in batches]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had too little memory for what was asked."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "out of memory", "can't allocate memory")
    )


def of_image(reason: RewardError, image: str) -> RewardError:
    """The same reason, which names the image that has no reward."""
    return type(reason)(f"{image}: {reason}")


def not_finite(name: str) -> RewardError:
    return RewardError(
        f"{name} gave a reward that is not a finite number; float16 overflows on some weights: use dtype float32 or bfloat16"
    )
