"""What a config.json may say, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

import seeded
from image_reward.config import ScorerConfig
from image_reward.errors import CheckpointError
from image_reward.models.blip_config import BlipConfig


def edited(*path: str, value: Any) -> str:
    config = json.loads(seeded.TINY.to_json())
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(config)


def without(*path: str) -> str:
    config = json.loads(seeded.TINY.to_json())
    place = config
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return json.dumps(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.json is not JSON: "),
        (b"\xff\xfe\x00", "x.json is not JSON: "),
        ("[]", 'x.json is not a config of this package \\("format": "image-reward" is missing\\)'),
        ('{"architectures": ["CLIPModel"]}', "is not a config of this package"),
        (edited("version", value=2), "x.json has format version 2; this release of image-reward reads version 1"),
        (edited("colour", value=2), "x.json: unknown key 'colour' for ScorerConfig; known are architecture, network"),
        (edited("network", "depth", value=2), "unknown key 'depth' for BlipConfig; known are image_size"),
        (without("reward", "std"), "x.json: RewardConfig lacks 'std'"),
        (without("network"), "ScorerConfig lacks 'network'"),
        (edited("max_tokens", value="35"), "x.json: max_tokens of ScorerConfig must be of type int, not '35'"),
        (edited("max_tokens", value=35.0), "max_tokens of ScorerConfig must be of type int, not 35.0"),
        (edited("max_tokens", value=True), "max_tokens of ScorerConfig must be of type int, not True"),
        (edited("max_tokens", value=513), "x.json: max_tokens must be from 3 to the network's 512, not 513"),
        (edited("max_tokens", value=2), "max_tokens must be from 3"),
        (edited("architecture", value=None), "architecture of ScorerConfig must be of type str, not None"),
        (edited("network", value=5), "network of ScorerConfig must be an object, not 5"),
        (edited("network", "patch_size", value=0), "x.json: patch_size must be from 1 to 1,048,576, not 0"),
        (edited("network", "patch_size", value=7), r"image_size \(64\) must be a multiple of patch_size \(7\)"),
        (edited("network", "head_widths", value=[16, "8"]), "head_widths of BlipConfig must be of type int, not '8'"),
        (edited("network", "head_widths", value=16), "head_widths of BlipConfig must be a list of whole numbers, not 16"),
        (edited("network", "image_size", value=32), "images are made 64 px large, but the network reads 32 px"),
        (edited("image", "mean", value=[0.5, 0.5]), r"mean of TransformConfig must be a list of 3 numbers, not \[0.5, 0.5\]"),
        (edited("image", "std", value=[0.5, 0.5, 0]), "the pixels' mean and std must be finite and std positive"),
        (edited("reward", "std", value=0), "the reward's mean and std must be finite and std positive, not .* and 0.0"),
        (edited("reward", "mean", value=-1e7), "the reward's mean and std must be finite"),
        (edited("reward", "mean", value=float("nan")), "x.json is not JSON: NaN is not a number that JSON has"),
        (edited("reward", "reference", value=7), "reference of RewardConfig must be of type str, not 7"),
        (edited("reward", "tie", value="davidson"), "tie of RewardConfig must be an object, not 'davidson'"),
        (
            edited("reward", "tie", value={"model": "coin", "parameter": 1}),
            "unknown tie model 'coin'; known are 'davidson' and 'rao-kupper'",
        ),
        (
            edited("reward", "tie", value={"model": "rao-kupper", "parameter": 0.5}),
            "parameter of rao-kupper must be at least 1.0 and at most 1e[+]06, not 0.5",
        ),
    ],
)
def test_configs_that_are_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ScorerConfig.from_json(text, "x.json")


def test_configs_that_are_read() -> None:
    assert ScorerConfig.from_json(seeded.TINY.to_json(), "x.json") == seeded.TINY
    assert ScorerConfig.from_json(ScorerConfig().to_json().encode(), "x.json") == ScorerConfig()
    assert ScorerConfig.from_json(edited("reward", "mean", value=0), "x.json").reward.mean == 0.0
    assert ScorerConfig().network == BlipConfig()
