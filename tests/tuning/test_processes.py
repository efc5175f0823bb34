"""Tuning runs in processes of their own: killed, and several at once."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")

import tiny_runs
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import own_process
from image_reward.tuning import Tuning
from own_process import same

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2
run = functools.partial(own_process.run, Path(__file__).with_name("tiny_runs.py"))


def here(config: Tuning) -> None:
    tiny_runs.run(config)
    AcceleratorState._reset_state(reset_partial_state=True)


def log_of(config: Tuning) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(config.output, "log.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"max_steps": 7, "save_every": 2, "evaluate_every": 3, "ema": 0.9, "pretraining_weight": 1.0}
    whole, killed = tiny_runs.config(tmp_path / "whole", **options), tiny_runs.config(tmp_path / "killed", **options)
    here(whole)
    kill_at = 3 + os.urandom(1)[0] % 4  # any step after the first save
    assert run(killed, str(kill_at)).returncode == -signal.SIGKILL
    assert 2 <= torch.load(tmp_path / "killed/state.pt", weights_only=True)["run"]["step"] < kill_at
    here(killed)
    assert "continued after step" in capsys.readouterr().err
    states = [torch.load(config.output + "/state.pt", weights_only=True) for config in (whole, killed)]
    assert same(*states), f"killed at step {kill_at}"
    weights = [load_file(Path(config.output, "lora/pytorch_lora_weights.safetensors")) for config in (whole, killed)]
    assert same(*weights), f"killed at step {kill_at}"
    assert log_of(whole) == log_of(killed), f"killed at step {kill_at}"


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    # Three images in micro-batches of one: the processes have different numbers of them.
    options: dict[str, Any] = {
        "max_steps": 4,
        "evaluate_every": 2,
        "batch_images": 3,
        "micro_images": 1,
        "lr": 1e-3,
        "pretraining_weight": 1.0,
    }
    one, two = tiny_runs.config(tmp_path / "one", **options), tiny_runs.config(tmp_path / "two", **options)
    here(one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = run(two, launcher=("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "on 2 x cpu" in done.stderr
    logs = [log_of(config) for config in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 4 + 3
    for a, b in zip(*logs, strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        for name in ("loss", "pretraining", "kl") if a["kind"] == "train" else ("drift", "blurred"):
            assert a[name] == pytest.approx(b[name], abs=1e-5)
        assert a["reward"] == pytest.approx(b["reward"], abs=1e-5)
