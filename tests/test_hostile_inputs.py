"""What is malformed is refused by name or scored rightly, within bounds of time and memory, and no row is lost. See ``tests/hostile``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

LONGEST = 1800  # s for all inputs together: a bound for what hangs, and no measure of speed


def use_inputs(folder: Path, every: int) -> list[dict[str, str]]:
    """Group, name and fault of every Nth input, used by processes that are not this one."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",  # a process with threads cannot be forked
        "TOKENIZERS_PARALLELISM": "false",
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # others reserve more than they use, which the limit would count
        "MALLOC_ARENA_MAX": "2",
    }
    run = subprocess.run(
        [sys.executable, "-m", "hostile", str(folder / "inputs"), str(every)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return use_inputs(tmp_path_factory.mktemp("hostile"), every=8)


@pytest.mark.parametrize("group", ["images", "checkpoints", "rows", "rankings"])
def test_malformed_inputs_are_refused_by_name_or_scored_rightly(faults: list[dict[str, str]], group: str) -> None:
    assert_none([fault for fault in faults if fault["group"] == group])


def assert_none(faults: list[dict[str, str]]) -> None:
    failed = [f"{fault['group']}, {fault['name']}: {fault['fault']}" for fault in faults if fault["fault"]]
    assert not failed, f"{len(failed)} inputs:\n" + "\n".join(failed)


def test_there_are_many_of_each_group(faults: list[dict[str, str]]) -> None:
    assert min(Counter(fault["group"] for fault in faults).values()) >= 30
    assert len(faults) >= 200


@pytest.mark.full
def test_all_malformed_inputs(tmp_path: Path) -> None:
    faults = use_inputs(tmp_path, every=1)
    assert len(faults) >= 1500
    assert_none(faults)
