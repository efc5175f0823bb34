"""A run in a process of its own, for tests that kill it or start several: ``run_squares.py CONFIG.toml [KILL_AT_STEP]``."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from pathlib import Path

import squares
import torch
from torch.nn.parallel import DistributedDataParallel

from image_reward.runs import Progress
from image_reward.training import RewardTraining, read_toml, train


def check_no_reducer_is_left() -> None:
    assert not [each for each in gc.get_objects() if type(each) is DistributedDataParallel]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ.get("WARNINGS_ARE_ERRORS"):
        warnings.simplefilter("error")
    if len(sys.argv) > 2:
        kill_at = int(sys.argv[2])

        def kill(_: Progress, step: int, *__: object) -> None:
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        Progress.step = kill
    config = read_toml(Path(sys.argv[1]), RewardTraining())
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda *group: (check_no_reducer_is_left(), destroy(*group))
    train(config, squares.comparisons(24, ties=config.loss == "davidson"), squares.comparisons(4, seed=1))
