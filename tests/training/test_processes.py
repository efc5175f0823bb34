"""Runs in processes of their own: killed, and several at once."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import squares
import torch

import own_process
from image_reward.checkpoints import read_checkpoint
from image_reward.training import RewardTraining, train
from own_process import same

run = functools.partial(own_process.run, Path(__file__).with_name("run_squares.py"))


def here(config: RewardTraining) -> None:
    train(config, squares.comparisons(24, ties=config.loss == "davidson"), squares.comparisons(4, seed=1))


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"loss": "davidson", "dropout": True, "ema": 0.9, "save_every": 3, "evaluate_every": 4, "weight_decay": 0.1}
    whole, killed = squares.config(tmp_path / "whole", **options), squares.config(tmp_path / "killed", **options)
    here(whole)
    kill_at = 4 + int.from_bytes(os.urandom(1), "big") % 10  # any step after the first save
    assert run(killed, str(kill_at)).returncode == -signal.SIGKILL
    assert 3 <= torch.load(tmp_path / "killed/state.pt", weights_only=True)["run"]["step"] < kill_at
    here(killed)
    states = [torch.load(config.output + "/state.pt", weights_only=True) for config in (whole, killed)]
    assert same(*states), f"killed at step {kill_at}"
    models = [read_checkpoint(Path(config.output, "model"))[0] for config in (whole, killed)]
    assert same(*models), f"killed at step {kill_at}"  # not by bytes: safetensors writes its metadata in any order
    for name in ("model/config.json", "log.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), f"{name}, killed at step {kill_at}"


needs_fsdp = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="PyTorch shards on CPUs from 2.7 on")


@pytest.mark.parametrize(("shard", "steps"), [pytest.param(False, 20, id="ddp"), pytest.param(True, 4, id="fsdp", marks=needs_fsdp)])
def test_two_processes_give_what_one_gives(tmp_path: Path, shard: bool, steps: int) -> None:
    options: dict[str, Any] = {"epochs": 20, "max_steps": steps, "lr": 1e-3, "loss": "davidson", "ema": 0.9, "evaluate_every": steps // 2}
    one, two = squares.config(tmp_path / "one", **options), squares.config(tmp_path / "two", shard=shard, **options)
    here(one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = run(two, launcher=("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "on 2 x cpu" in done.stderr
    logs = [[json.loads(line) for line in Path(config.output, "log.jsonl").read_text().splitlines()] for config in (one, two)]
    assert len(logs[0]) == len(logs[1]) == steps + 3
    for a, b in zip(*logs, strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
