from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import object_store
import seeded
import upstream
from image_reward.scorers import ImageReward, ImageRewardScorer
from upstream import Original


@pytest.fixture(autouse=True)
def _isolated_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the caches of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # tests run in parallel processes


@pytest.fixture(scope="session")
def original() -> Original:
    """What the original computes with the weights of ``scorer`` and ``model``."""
    return upstream.tiny(7)


def tiny(kind: type[ImageRewardScorer], seed: int = 7, **options: Any) -> Any:
    return kind.from_tensors(seeded.weights(seeded.TINY, seed), seeded.TINY, "seeded weights", name="tiny", **options)


@pytest.fixture
def scorer() -> ImageRewardScorer:
    return tiny(ImageRewardScorer)


@pytest.fixture
def model() -> ImageReward:
    """The same network under the names of image-reward 1.5."""
    return tiny(ImageReward)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeded images as PNG files: a.png, b.png, c.png."""
    folder = tmp_path_factory.mktemp("images")
    for name, arguments in zip("abc", seeded.IMAGES, strict=False):
        seeded.image(*arguments).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    for package in ("moto", "s3fs"):  # of the extra dev
        pytest.importorskip(package)
    with object_store.serving(object_store.S3) as url:
        yield url


@pytest.fixture(scope="session")
def gs_url() -> Iterator[str]:
    for package in ("gcp_storage_emulator", "gcsfs"):  # of the extra dev
        pytest.importorskip(package)
    with object_store.serving(object_store.GS) as url:
        yield url


@pytest.fixture(scope="module")
def only_ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One file of tests at a time starts clusters: Ray's processes on one machine get in each other's way."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        yield


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """s3fs's file system on a server that has an empty bucket called ``bkt``."""
    object_store.use_endpoint(s3_url, monkeypatch)
    from s3fs import S3FileSystem

    store = S3FileSystem(use_listings_cache=False)
    store.mkdir("bkt")
    yield store
    store.rm("bkt", recursive=True)
    object_store.forget()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was skipped, by what it lacks: a run without it has shown less than it seems."""
    lacking: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")
        lacking.setdefault(reason, Counter())[report.nodeid.split("::")[0]] += 1
    for reason, files in sorted(lacking.items()):
        names = ", ".join(f"{file} ({count})" for file, count in sorted(files.items()))
        terminalreporter.write_line(f"SKIPPED {reason}: {names}", yellow=True, bold=True)
