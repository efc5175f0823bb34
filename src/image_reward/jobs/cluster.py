"""Workers as actors of a Ray cluster: the same shards, the same ``ShardScorer``, and parts in the same folder.

The folder, and images that are paths, must be visible under the same names on every machine: a shared file system or an object store.
Only the counts of a shard come back to the driver. Actors that the cluster has no room for yet wait for it, which makes an
autoscaling cluster grow; those that have nothing left to do are let go.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from image_reward.errors import ImageRewardError, JobError
from image_reward.jobs.messages import Died, Done, Event, Failed, Ready, Task

if TYPE_CHECKING:
    from image_reward.jobs.shards import Work


class Actor:
    """A ``ShardScorer`` on some machine of the cluster. The job's own troubles come back as text: Ray would add a traceback."""

    def __init__(self, work: Work, device: str | None) -> None:
        import warnings

        warnings.simplefilter("ignore")
        self.work, self.device = work, device
        self.scorer: Any = None

    def prepare(self) -> Any:
        """What the scorers are, and the node they are on."""
        import ray

        from image_reward.jobs.shards import ShardScorer

        try:
            self.scorer = ShardScorer(self.work, self.device)
            return self.scorer.identity(), ray.get_runtime_context().get_node_id()
        except (ImageRewardError, OSError) as error:
            return str(error)

    def run(self, task: Task) -> Any:
        try:
            if task.give_up is not None:
                return self.scorer.give_up(task.shard, task.give_up)
            return self.scorer.score(task.shard, task.upcoming)
        except (ImageRewardError, OSError) as error:
            return str(error)


class ActorPool:
    """At most ``num_workers`` actors; those that are ready work, however many they are."""

    def __init__(
        self,
        work: Callable[[int, int | None], Work],
        num_workers: int | None,
        decoders: int | None,
        device: str | None,
        address: str | None,
        num_shards: int,
    ) -> None:
        self.ray, self.started_here = _connect(address)
        resources = self.ray.cluster_resources()
        num_gpus, num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        cuda = (device or "cuda").startswith("cuda") and (num_gpus > 0 or device is not None)
        count = num_workers or (num_gpus if cuda else num_cpus) or 1
        self.decoders = decoders if decoders is not None else max(1, num_cpus // num_gpus - 1) if cuda and num_gpus else 0
        self.device = device or ("cuda" if cuda else "cpu")
        self.work = work(self.decoders, None if cuda else 1)
        self.count = min(count, max(1, num_shards))
        self.options = {"num_cpus": 1 + self.decoders, "num_gpus": 1 if cuda else 0, "max_restarts": 0, "max_task_retries": 0}
        self.actors: dict[int, Any] = {}
        self.nodes: dict[int, str] = {}
        self.calls: dict[Any, int] = {}  # what was asked of actors and not yet answered -> the worker

    @property
    def workers(self) -> list[int]:
        return list(range(self.count))

    def start(self, worker: int) -> None:
        actor = self.ray.remote(**self.options)(Actor).remote(self.work, self.device)
        self.actors[worker] = actor
        self.calls[actor.prepare.remote()] = worker

    def give(self, worker: int, task: Task) -> None:
        self.calls[self.actors[worker].run.remote(task)] = worker

    def events(self, timeout: float) -> list[Event]:
        calls = list(self.calls)
        ready, _ = self.ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
        if not ready and calls:
            ready, _ = self.ray.wait(calls, num_returns=1, timeout=timeout)
        return [self._event(call) for call in ready]

    def _event(self, call: Any) -> Event:
        worker = self.calls.pop(call)
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayActorError as error:
            return self._died(worker, _reason(str(error)))
        except self.ray.exceptions.RayTaskError as error:
            return self._died(worker, f"{type(error.cause).__name__}: {error.cause}")
        if isinstance(answer, str):
            return Failed(worker, answer)
        if isinstance(answer, tuple):
            identity, self.nodes[worker] = answer
            return Ready(worker, identity)
        return Done(worker, answer)

    def _died(self, worker: int, reason: str) -> Died:
        node = self.nodes.pop(worker, None)
        # Where the cluster has not noticed yet that the machine is gone, one try is counted, which is two too few to give a shard up.
        alive = {found["NodeID"] for found in self.ray.nodes() if found["Alive"]}
        self.stop(worker)
        return Died(worker, reason, blameless="node has died" in reason or (node is not None and node not in alive))

    def stop(self, worker: int) -> None:
        if (actor := self.actors.pop(worker, None)) is not None:
            self.ray.kill(actor)
        self.calls = {call: of for call, of in self.calls.items() if of != worker}

    def close(self) -> None:
        for worker in list(self.actors):
            self.stop(worker)
        if self.started_here:
            self.ray.shutdown()


def _reason(text: str) -> str:
    """What Ray says of a dead actor, in one line: of an exception its last line, else its first words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if "ray::" in text else " ".join(lines)[:300]


def _connect(address: str | None) -> tuple[Any, bool]:
    """Ray, connected to a cluster, or to one that is started on this machine; and whether it was not before. Raises ``JobError``."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise JobError("the engine 'ray' needs Ray: pip install 'image-reward[jobs]'") from None
    if ray.is_initialized():
        return ray, False
    try:
        if address is None:
            ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"the cluster at {address}" if address else "Ray on this machine"
        raise JobError(f"{where} could not be reached: {error}; see `ray status`, or use engine 'local'") from None
    return ray, True
