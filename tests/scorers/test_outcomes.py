from __future__ import annotations

from typing import Any

import pytest
import torch

from image_reward.errors import AnswerError, RewardError
from image_reward.scorers.outcomes import RefusedRowsError, halves, in_parts, is_out_of_memory, of_image, outcome_of


class Numbers(list[float]):
    """A batch: a reward for each row, which is refused below 0."""

    def select(self, rows: Any) -> Numbers:
        return Numbers(self[row] for row in rows)


def forward(batches: Any) -> Any:
    (numbers,) = batches
    rewards = torch.tensor(numbers)
    if any(number < 0 for number in numbers):
        reasons = {row: AnswerError(f"refused {number}") for row, number in enumerate(numbers) if number < 0}
        raise RefusedRowsError([rewards.masked_fill(rewards < 0, torch.nan), rewards * 2], reasons)
    return [rewards, rewards * 2]


def limited(most: int) -> Any:
    def compute(batches: Any) -> Any:
        if len(batches[0]) > most:
            raise torch.OutOfMemoryError("out of memory")
        return forward(batches)

    return compute


NUMBERS = Numbers([1.0, -2.0, 3.0, float("inf"), 5.0])


@pytest.mark.parametrize(("most", "at_once"), [(9, None), (3, 2), (1, 1)])
def test_rows_without_a_reward_fail_no_others(most: int, at_once: int | None) -> None:
    outcome = outcome_of(["a", "b"], limited(most), [NUMBERS])
    nan = torch.nan
    expected = torch.tensor([[1, nan, 3, nan, 5], [2, -4, 6, nan, 10]])
    torch.testing.assert_close(outcome.rewards, expected, equal_nan=True)
    assert {row: (type(reason), str(reason)[:9]) for row, reason in outcome.reasons.items()} == {
        1: (AnswerError, "refused -"),
        3: (RewardError, "a gave a "),
    }
    assert outcome.num_at_once == at_once


def test_memory_for_not_even_one_row_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        outcome_of(["a", "b"], limited(0), [NUMBERS])
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_parts(lambda _: (_ for _ in ()).throw(RuntimeError("shapes do not match")), [NUMBERS]))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_messages() -> None:
    with pytest.raises(RefusedRowsError, match=r"1 rows of the batch have no reward: row 1: refused -2\.0"):
        forward([NUMBERS])
    named = of_image(AnswerError("refused"), "cat.png")
    assert (type(named), str(named)) == (AnswerError, "cat.png: refused")
    assert [(rows, parts) for rows, parts in halves([NUMBERS])][1] == (range(2, 5), [NUMBERS[2:]])
