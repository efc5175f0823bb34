from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import squares
import torch

import seeded
from image_reward.errors import ImageReadError, LongPromptWarning
from image_reward.images import ImageTransform
from image_reward.prompts import PromptTokenizer, long_prompt_warnings_suppressed
from image_reward.scorers import TwoTowerProcessor
from image_reward.training.data import TrainingSteps, fingerprint, pack, plan, select_usable, shard_across_ranks
from image_reward.types import Comparison

PREPARE = TwoTowerProcessor(ImageTransform(16), PromptTokenizer())
GREY = np.full((16, 16, 3), 90, dtype=np.uint8)


def steps_of(comparisons: list[Comparison], loss: str = "pairwise", **options: object) -> TrainingSteps:
    return TrainingSteps(comparisons, PREPARE, loss, micro_images=64, **options)  # type: ignore[arg-type]


# --- which comparisons ---


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        (Comparison("p", (GREY,), (1,), id="lonely"), "comparison lonely has 1 images and 1 ranks"),
        (Comparison("p", (GREY, GREY), (1,)), "comparison 'p' has 2 images and 1 ranks"),
    ],
)
def test_what_is_no_comparison_is_named(comparison: Comparison, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_usable([*squares.comparisons(2), comparison], "pairwise", skip_unreadable=True)


def test_ties_teach_the_pairwise_loss_nothing_and_a_tie_model_something() -> None:
    tied = Comparison("p", (GREY, GREY), (1, 1))
    kept, notes = select_usable([*squares.comparisons(2), tied], "pairwise", skip_unreadable=False)
    assert len(kept) == 2
    assert notes == ["1 comparisons in which all images tie were left out: the loss 'pairwise' learns nothing from a tie"]
    assert len(select_usable([tied], "davidson", skip_unreadable=False)[0]) == 1
    with pytest.raises(ValueError, match="there is nothing to learn from"):
        select_usable([tied], "pairwise", skip_unreadable=False)


def test_missing_images_stop_the_run_before_it_starts_or_are_left_out(tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    comparison = Comparison("p", (GREY, gone, 255 - GREY), (1, 2, 3), shares=(0.5, 0.3, 0.2))
    with pytest.raises(FileNotFoundError, match=r"1 images are missing, the first is .*gone\.png.*skip_unreadable"):
        select_usable([comparison], "pairwise", skip_unreadable=False)
    (kept,), notes = select_usable([comparison], "pairwise", skip_unreadable=True)
    assert (kept.ranks, kept.shares, len(kept.images)) == ((1, 3), (0.5, 0.2), 2)
    assert "1 missing images were left out" in notes[0]


def test_the_fingerprint_changes_with_ranks_and_image_names() -> None:
    a = Comparison("p", ("a.png", "b.png"), (1, 2))
    assert fingerprint([a]) == fingerprint([replace(a)])
    others = [fingerprint([replace(a, ranks=(2, 1))]), fingerprint([replace(a, images=("a.png", "c.png"))]), fingerprint([a], [a])]
    assert len({fingerprint([a]), *others}) == 4


# --- which steps ---


def test_steps_hold_every_prompt_once_an_epoch_and_no_more_images_than_asked() -> None:
    sizes = [4, 5, 2, 6, 9, 4, 4]
    steps = plan(sizes, epochs=3, max_steps=None, batch_images=10, seed=1)
    flat = [index for step in steps for index in step]
    assert [sorted(flat[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert flat[:7] != flat[7:14]
    assert all(sum(sizes[i] for i in step) <= 10 for step in steps)
    assert plan(sizes, 3, 4, 10, 1) == steps[:4]
    assert plan(sizes, 3, None, 10, 2) != steps


def test_a_prompt_with_more_images_than_fit_is_a_step_of_its_own() -> None:
    assert pack([4, 50, 4], [0, 1, 2], capacity=8) == [[0], [1], [2]]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_processes_share_a_step_evenly_and_pass_equally_often(num_processes: int) -> None:
    sizes = [4, 9, 5, 4, 2, 7]
    shares = shard_across_ranks(sizes, list(range(6)), num_processes, micro_images=9)
    assert sorted(index for share in shares for bin_ in share for index in bin_) == list(range(6))
    assert len({len(share) for share in shares}) == 1
    loads = [sum(sizes[i] for bin_ in share for i in bin_) for share in shares]
    assert max(loads) <= 31 / num_processes + 9


# --- as tensors ---


def test_a_micro_batch_has_each_image_once_and_the_pairs_people_ranked() -> None:
    comparisons = [Comparison("a", (GREY, GREY, GREY), (2, 1, 2)), Comparison("a longer prompt", (GREY, GREY), (1, 2))]
    micro = steps_of(comparisons).micro_batch([0, 1])
    assert micro.batch.pixels.shape == (5, 3, 16, 16)
    assert micro.batch.ids.shape == (5, 5)
    assert set(zip(micro.first.tolist(), micro.second.tolist(), strict=True)) == {(1, 0), (1, 2), (3, 4)}
    assert micro.target.tolist() == [1, 1, 1]
    assert micro.num_terms == 3
    assert steps_of(comparisons, "plackett-luce").micro_batch([0, 1]).num_terms == 2


def test_long_prompts_are_reported_once_and_cut_as_the_scorer_cuts_them() -> None:
    comparison = Comparison(seeded.LONG_PROMPT, (GREY, 255 - GREY), (1, 2))
    with pytest.warns(LongPromptWarning) as reported:
        steps = steps_of([comparison, Comparison("a", (GREY, GREY), (1, 2))])
    assert len(reported) == 1
    batch = steps.micro_batch([0, 1]).batch  # a warning would be an error
    with long_prompt_warnings_suppressed():
        expected = PREPARE([seeded.LONG_PROMPT] * 2 + ["a"] * 2, [GREY, 255 - GREY, GREY, GREY])
    assert torch.equal(batch.ids, expected.ids)
    assert torch.equal(batch.mask, expected.mask)


def test_a_tie_model_sees_the_ties_and_soft_labels_the_votes() -> None:
    comparisons = [Comparison("a", (GREY,) * 3, (2, 1, 2), shares=(0.2, 0.6, 0.2)), Comparison("b", (GREY,) * 2, (1, 2))]
    micro = steps_of(comparisons, "davidson").micro_batch([0, 1])
    found = {(a, b): t for a, b, t in zip(micro.first.tolist(), micro.second.tolist(), micro.target.tolist(), strict=True)}
    assert found == {(1, 0): 1, (1, 2): 1, (0, 2): 0.5, (3, 4): 1}
    micro = steps_of(comparisons, "soft").micro_batch([0, 1])
    found = {(a, b): t for a, b, t in zip(micro.first.tolist(), micro.second.tolist(), micro.target.tolist(), strict=True)}
    assert found == {(1, 0): pytest.approx(0.75), (1, 2): pytest.approx(0.75), (0, 2): 0.5, (3, 4): 1}


def test_a_damaged_image_stops_the_run_or_takes_its_pairs_with_it() -> None:
    comparison = Comparison("a", (GREY, b"not an image", 255 - GREY), (1, 2, 3), id="c7")
    with pytest.raises(ImageReadError, match=r"image 2 of comparison c7: .*skip_unreadable"):
        steps_of([comparison]).micro_batch([0])
    micro = steps_of([comparison], skip_unreadable=True).micro_batch([0])
    assert (micro.num_unreadable, micro.judged.tolist()) == (1, [True, False, True])
    assert (micro.first.tolist(), micro.second.tolist()) == ([0], [2])


def test_padding_teaches_nothing() -> None:
    micro = steps_of(squares.comparisons(1)).micro_batch([0], padding=True)
    assert (micro.num_terms, len(micro.first), bool(micro.beats.any()), bool(micro.judged.any())) == (0, 0, False, False)


def test_images_are_opened_once_when_they_fit_in_memory() -> None:
    opened: list[int] = []

    def image() -> np.ndarray:
        opened.append(1)
        return GREY

    comparison = Comparison("a", (image, image), (1, 2))
    steps = steps_of([comparison], cache_mib=1)
    assert torch.equal(steps.micro_batch([0]).batch.pixels, steps.micro_batch([0]).batch.pixels)
    assert len(opened) == 2
    steps = steps_of([comparison], cache_mib=0)
    steps.micro_batch([0]), steps.micro_batch([0])
    assert len(opened) == 6


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_loader_processes_give_what_none_gives() -> None:
    comparisons = squares.comparisons(6)
    steps = TrainingSteps(comparisons, PREPARE, "pairwise", micro_images=8, cache_mib=1).over([[0, 3], [1], [2, 4, 5]])
    for alone, together in zip(steps.loader(0, start=1), steps.loader(1, start=1), strict=True):
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a.batch.pixels, b.batch.pixels)
            assert (a.names, a.first.tolist()) == (b.names, b.first.tolist())
