"""The Ray engine on a real cluster of two nodes on this machine."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stubs

from image_reward.errors import JobError
from image_reward.jobs import score_files
from image_reward.jobs.cluster import ActorPool
from image_reward.jobs.folder import JobFolder

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


@pytest.fixture(scope="module")
def cluster(only_ray_cluster: None) -> Iterator[Any]:  # noqa: ARG001
    environment = pytest.MonkeyPatch()
    environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
    environment.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's name for a cluster on the loopback address alone
    environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # so that actors find the stubs
    import ray

    # The variable is read when Ray is imported, as another test in this process may have done: its client would wait for ever for a
    # cluster at the machine's other address.
    environment.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        environment.undo()


def write_rows(folder: Path, count: int, kill: int | None = None) -> Path:
    images = stubs.draw(folder, 5)
    prompts = ["kill" if n == kill else "a" for n in range(count)]
    pq.write_table(pa.table({"prompt": prompts, "image": [images[n % 5] for n in range(count)]}), folder / "rows.parquet")
    return folder / "rows.parquet"


def rewards(folder: Path) -> list[float | None]:
    return pq.read_table(sorted(folder.glob("part-*.parquet")))["reward"].to_pylist()


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_its_actor_is_given_up_and_the_rest_is_as_on_one_machine(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in", 30, kill=12)
    done = score_files(rows, tmp_path / "out", stubs.load, engine="ray", shard_size=5)
    assert (done.num_rows, done.num_scored_now, done.num_quarantined) == (30, 30, 5)
    expected = [1 + n % 5 / 255 for n in range(30)]
    assert rewards(tmp_path / "out") == [None if 10 <= n < 15 else pytest.approx(expected[n]) for n in range(30)]
    assert JobFolder(tmp_path / "out").tries() == {2: 3}
    with pytest.raises(JobError, match="the scorer has changed since it began"):
        score_files(rows, tmp_path / "out", partial(stubs.load, weight=2.0), engine="ray")


def test_a_node_that_goes_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in", 60)
    out = tmp_path / "out"
    node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=80 << 20)
    removed: list[int] = []

    def remove_when_both_work() -> None:
        for _ in range(6000):
            found = len(list(out.glob("part-*.parquet")))
            if found >= 4:
                cluster.remove_node(node, allow_graceful=False)
                removed.append(found)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=remove_when_both_work)
    thread.start()
    seen: list[int] = []
    done = score_files(
        rows,
        out,
        partial(stubs.load, seconds=0.1),
        engine="ray",
        shard_size=2,
        on_progress=lambda progress: seen.append(progress.num_workers),
    )
    thread.join()
    assert max(seen) == 2
    assert removed
    assert (done.num_scored_now, done.num_errors, done.num_quarantined) == (60, 0, 0)
    assert rewards(out) == pytest.approx([1 + n % 5 / 255 for n in range(60)])
    assert set(JobFolder(out).tries().values()) <= {1}  # the cluster may not know yet that the machine is to blame


@pytest.mark.usefixtures("cluster")
def test_what_no_actor_can_help_ends_the_job(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in", 4)
    with pytest.raises(JobError, match="no model, file or folder is called 'ImageReward-mono'"):
        score_files(rows, tmp_path / "out", "ImageReward-mono", engine="ray")


@pytest.mark.usefixtures("cluster")
def test_as_many_actors_as_there_are_cores_or_as_asked() -> None:
    def work(decoders: int, threads: int | None) -> Any:
        return decoders, threads

    import ray

    assert ActorPool(work, None, None, None, None, 100).num_workers == ray.cluster_resources()["CPU"]
    assert ActorPool(work, 7, None, None, None, 100).num_workers == 7
    assert ActorPool(work, 7, None, None, None, 3).num_workers == 3
    assert ActorPool(work, None, None, "cpu", None, 3).work == (0, 1)
