"""What a command needs no library for, it answers without loading it: each costs seconds before the first word."""

from __future__ import annotations

import subprocess
import sys

import pytest

from image_reward.cli import COMMANDS

HEAVY = {"torch", "transformers", "tokenizers", "pandas", "pyarrow", "numpy", "PIL", "matplotlib", "ray", "duckdb"}
ANSWERS = [
    ["rank", "a cat", "none.png"],
    ["prompts", "list"],
    ["prompts", "list", "--json"],
    ["models", "list"],
    ["models", "path", "ImageReward-mini"],
    ["models", "path", "CLIP"],
    ["train", "--recipe", "none.toml"],
]
RUN = """
import sys
from image_reward.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], *ANSWERS, *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_nothing_heavy_is_loaded(arguments: list[str]) -> None:
    process = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in process.stderr.splitlines()[-1].split()}
    assert "image_reward" in loaded
    assert sorted(loaded & HEAVY) == []
