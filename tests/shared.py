"""Data that the repository does not carry: the folder ``shared`` beside it. A test that needs a file of it is skipped without it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "shared"


def require(name: str) -> Path:
    """A file or folder of ``shared``; skips the test that asks for it where it is missing."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"for want of ../shared/{name}")
    return path


def published_test_split() -> Path:
    """ImageRewardDB's test split: 466 prompts with ranked images."""
    return require("data/imagerewarddb_test.json")


def openai_merges() -> list[str]:
    """The merges of OpenAI's tokenizer, in order."""
    return gzip.decompress(require("data/bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
