from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import squares
import torch

from image_reward.training.frozen_features import FrozenFeatures, FrozenFeatureScorer, compute, file_name
from image_reward.training.initial_scorer import initial_scorer


@pytest.fixture
def scorer(tmp_path: Path) -> FrozenFeatureScorer:
    start = initial_scorer(squares.config(tmp_path / "run"))
    scorer = FrozenFeatureScorer(start.network, start.config)
    scorer.depth = 1
    return scorer.eval()


def crops(scorer: FrozenFeatureScorer) -> torch.Tensor:
    return torch.stack([scorer.prepare.transform.crop(image) for c in squares.comparisons(2) for image in c.images])


def test_features_lead_to_the_tokens_of_the_whole_tower(tmp_path: Path, scorer: FrozenFeatureScorer) -> None:
    images = crops(scorer)
    readable = torch.ones(len(images), dtype=torch.bool)
    readable[2] = False
    parts = [(images[:3], readable[:3]), (images[3:], readable[3:])]
    compute(tmp_path / "features.npy", scorer, 1, parts, len(images))
    features = FrozenFeatures(tmp_path / "features.npy")
    assert [features.get(i) is None for i in range(len(images))] == (~readable).tolist()
    tower, transform = scorer.network.blip.visual_encoder, scorer.prepare.transform
    with torch.no_grad():
        whole = tower(transform.normalize(images))
        finished = tower.finish(torch.stack([features.get(0), features.get(3)]), 1)
    torch.testing.assert_close(finished, whole[[0, 3]], rtol=1e-5, atol=1e-5)
    blank = features.blank()
    assert blank.shape == features.get(0).shape
    assert not blank.any()


def test_features_are_picklable_for_loader_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    features = FrozenFeatures(tmp_path / "features.npy")
    features.get(0)  # maps the file, which is not sent along
    copy = pickle.loads(pickle.dumps(features))
    assert len(pickle.dumps(features)) < 1000
    assert torch.equal(copy.get(1), torch.arange(6.0, 12.0).reshape(2, 3))


def test_the_file_name_changes_with_frozen_weights_depth_and_data_alone(scorer: FrozenFeatureScorer) -> None:
    tower = scorer.network.blip.visual_encoder
    name = file_name(scorer.network, 1, "data")
    assert name == file_name(scorer.network, 1, "data")
    assert len({name, file_name(scorer.network, 0, "data"), file_name(scorer.network, 1, "other")}) == 3
    with torch.no_grad():
        tower.blocks[-1].mlp.fc2.bias += 1  # above the frozen part
        assert len(tower.blocks) > 1
        assert file_name(scorer.network, 1, "data") == name
        tower.blocks[0].mlp.fc2.bias += 1
        assert file_name(scorer.network, 1, "data") != name


def test_a_computation_that_breaks_off_leaves_no_file(tmp_path: Path, scorer: FrozenFeatureScorer) -> None:
    def broken() -> object:
        images = crops(scorer)
        yield images[:1], torch.ones(1, dtype=torch.bool)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        compute(tmp_path / "features.npy", scorer, 1, broken(), 4)
    assert list(tmp_path.glob("*.npy")) == []
