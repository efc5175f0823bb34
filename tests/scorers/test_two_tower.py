from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import seeded
from image_reward.images import ImageTransform
from image_reward.prompts import PromptTokenizer
from image_reward.scorers import ImageRewardScorer, TwoTowerBatch, TwoTowerProcessor
from image_reward.scorers.two_tower import cosines, distinct, process_together, take

A, B, C = (seeded.image("rings", 40, 30 + side, side) for side in (1, 2, 3))


@pytest.fixture
def batch(scorer: ImageRewardScorer) -> TwoTowerBatch:
    """Five rows of three images."""
    return scorer.prepare(["cat", "a large dog", "sea", "cat", "a red cat"], [A, B, A, C, A])


@pytest.mark.parametrize("rows", [[0], [4, 0, 0], [3, 1], range(1, 4), []])
def test_selected_rows_have_their_rewards_and_no_image_too_many(rows: list[int], scorer: ImageRewardScorer, batch: TwoTowerBatch) -> None:
    chosen = pickle.loads(pickle.dumps(batch.select(rows)))
    assert len(chosen) == len(rows)
    assert len(chosen.pixels) == len({batch.image_index[row].item() for row in rows}) == len(chosen.digests)
    with torch.inference_mode():
        np.testing.assert_allclose(scorer(chosen), scorer(batch)[list(rows)], rtol=0, atol=1e-5)
    assert chosen.keys() == [batch.keys()[row] for row in rows]


def test_keys_are_equal_for_equal_rows_alone(scorer: ImageRewardScorer) -> None:
    prompts, images = ["cat", "dog", "cat", "  CAT", "cat cat"], [A, A, A.copy(), A, A]
    batch = scorer.prepare(prompts, images)
    assert len(batch.pixels) == 1
    keys = batch.keys()
    assert list(map(keys.index, keys)) == [0, 1, 0, 0, 4]
    longer = scorer.prepare([*prompts, "the sea at night, seen from far away"], [*images, A])
    assert longer.keys()[:5] == keys  # padding is no part of a key


def test_processors_share_pixels_and_tokens_where_they_are_alike() -> None:
    one, other = ImageTransform(16), ImageTransform(16, fit="pad")
    reads, long = PromptTokenizer(), PromptTokenizer(75)
    batches = process_together([TwoTowerProcessor(t, w) for t, w in ((one, reads), (one, long), (other, reads))], ["cat", "dog"], [A, B])
    assert batches[0].pixels is batches[1].pixels
    assert batches[0].ids is batches[2].ids
    assert not torch.equal(batches[0].pixels, batches[2].pixels)


def test_features_are_taken_through_lists_and_tuples() -> None:
    rows = torch.arange(4)
    features = [(rows, rows * 10), (rows * 100, rows)]
    taken = take(features, torch.tensor([2, 0]))
    assert [[part.tolist() for part in pair] for pair in taken] == [[[2, 0], [20, 0]], [[200, 0], [2, 0]]]
    assert take(rows, slice(1)).tolist() == [0]


def test_cosines_encode_each_distinct_prompt_once() -> None:
    seen: list[torch.Tensor] = []

    def encode(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return torch.stack([ids.sum(dim=1), mask.sum(dim=1)], dim=1).float()

    ids = torch.tensor([[[1, 2], [1, 9]], [[1, 2], [3, 4]]])
    mask = torch.tensor([[[True, True], [True, False]], [[True, True], [True, True]]])
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert cosines(features, ids, mask, encode).tolist() == [[3.0, 1.0], [2.0, 2.0]]
    assert [len(each) for each in seen] == [3]


def test_distinct_keeps_the_order() -> None:
    assert distinct([[1], [2], [1], [3]]) == [[1], [2], [3]]


def test_batches_are_joined_into_the_batch_of_all_their_rows(scorer: ImageRewardScorer, image_folder: Path) -> None:
    a, b, c = (image_folder / f"{name}.png" for name in "abc")
    prompts, images = ["a cat", "a much longer prompt of several words", "", "a cat", "dog"], [a, b, a, c, b]
    whole = scorer.prepare(prompts, images)
    parts = [scorer.prepare(prompts[rows], images[rows]) for rows in (slice(0, 2), slice(2, 3), slice(3, 5))]
    joined = parts[0].join(parts[1:])
    assert joined.ids.equal(whole.ids)
    assert joined.mask.equal(whole.mask)
    assert joined.image_index.equal(whole.image_index)
    assert joined.pixels.equal(whole.pixels)
    assert joined.digests == whole.digests
    assert joined.keys() == whole.keys()


def test_batches_of_tensors_are_joined_image_by_image(scorer: ImageRewardScorer) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    parts = [scorer.prepare.of_tensors(["a"], pixels[i : i + 1]) for i in range(2)]
    joined = parts[0].join(parts[1:])
    assert torch.equal(joined.image_index, torch.tensor([0, 1]))
    assert not joined.digests
    assert torch.allclose(scorer(joined), torch.cat([scorer(part) for part in parts]), atol=1e-5)
