"""What a run starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import squares
import torch
from torch import Tensor

from image_reward.errors import CheckpointError
from image_reward.models.blip import BlipConfig, ImageRewardNetwork
from image_reward.models.initial import new_network
from image_reward.training.initial_scorer import initial_scorer


@torch.no_grad()
def rewards(network: ImageRewardNetwork, num_images: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(num_images, 3, network.config.image_size, network.config.image_size, generator=draw)
    return network.eval()(pixels, torch.tensor([[101, 2000, 102]]).expand(num_images, -1))


# --- BLIP's pretraining checkpoint ---


def pretraining_checkpoint(path: Path) -> dict[str, Tensor]:
    """The layout of ``model_large.pth`` at a tiny size, with all that pretraining keeps beside the towers."""
    towers = {name.removeprefix("blip."): t for name, t in new_network(squares.NETWORK, 5).state_dict().items() if name.startswith("blip.")}
    momentum = {name.replace(name.split(".")[0], name.split(".")[0] + "_m", 1): tensor + 1 for name, tensor in towers.items()}
    rest = {
        "text_encoder.embeddings.position_ids": torch.arange(512)[None],
        "text_decoder.bert.embeddings.word_embeddings.weight": torch.zeros(3, 3),
        "text_decoder.cls.predictions.bias": torch.zeros(3),
        "itm_head.weight": torch.zeros(2, 16),
        "image_queue": torch.zeros(8, 5),
        "text_queue": torch.zeros(8, 5),
        "queue_ptr": torch.zeros(1, dtype=torch.int64),
        "temp": torch.tensor(0.07),
    }
    torch.save({"model": towers | momentum | rest, "epoch": 19}, path)
    return towers


def test_a_blip_checkpoint_gives_its_towers_and_a_fresh_head(tmp_path: Path) -> None:
    towers = pretraining_checkpoint(tmp_path / "model_large.pth")
    scorer = initial_scorer(squares.config(tmp_path, start=str(tmp_path / "model_large.pth"), freeze=0.7))
    blip = scorer.network.blip.state_dict()
    assert blip.keys() == towers.keys()
    assert all(torch.equal(blip[name], tensor) for name, tensor in towers.items())
    assert float(rewards(scorer.network).std()) > 0.01
    assert (scorer.config.reward.mean, scorer.config.reward.std, scorer.config.reward.reference) == (0.0, 1.0, None)
    assert scorer.config.image.size == 16


def test_nothing_else_of_a_blip_checkpoint_is_dropped_in_silence(tmp_path: Path) -> None:
    towers = pretraining_checkpoint(tmp_path / "blip.pth")
    path = tmp_path / "odd.pth"
    torch.save({"model": towers | {"visual_encoder.extra": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match=r"blip\.visual_encoder\.extra is unexpected"):
        initial_scorer(squares.config(tmp_path, start=str(path)))
    with pytest.raises(CheckpointError, match=r"should have .*give the sizes of its network in \[network\]"):
        initial_scorer(squares.config(tmp_path, start=str(tmp_path / "blip.pth"), network=replace(squares.NETWORK, vision_width=32)))


# --- a checkpoint of ours ---


def test_a_trained_model_goes_on_from_its_raw_rewards(tmp_path: Path) -> None:
    scorer = initial_scorer(squares.config(tmp_path, seed=8))
    scorer.save_pretrained(tmp_path / "model")
    again = initial_scorer(squares.config(tmp_path, start=str(tmp_path / "model"), network=BlipConfig()))
    assert again.config.network == squares.NETWORK
    torch.testing.assert_close(rewards(again.network), rewards(scorer.network), rtol=0, atol=1e-5)
    fresh = initial_scorer(squares.config(tmp_path, start=str(tmp_path / "model"), new_head=True))
    assert not torch.equal(fresh.network.mlp.layers[0].weight, scorer.network.mlp.layers[0].weight)
    assert torch.equal(fresh.network.blip.vision_proj.weight, scorer.network.blip.vision_proj.weight)
    with pytest.raises(ValueError, match=r"model reads 35 tokens of a prompt, so max_tokens must be left out or be the same, not 20"):
        initial_scorer(squares.config(tmp_path, start=str(tmp_path / "model"), max_tokens=20))
    with pytest.raises(ValueError, match=r"\[network\] must be left out or be the same"):
        initial_scorer(squares.config(tmp_path, start=str(tmp_path / "model"), network=replace(squares.NETWORK, text_layers=1)))
