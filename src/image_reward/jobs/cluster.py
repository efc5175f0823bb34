"""Workers as actors of a Ray cluster: the same shards, the same ``ShardScorer``, and parts in the same folder.

The folder, and images that are paths, must be visible under the same names on every machine: a shared file system or an object store.
Only the counts of a shard come back to the driver. Actors that the cluster has no room for yet wait for it, which makes an
autoscaling cluster grow; those that have nothing left to do are let go.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from image_reward.errors import JobError
from image_reward.jobs.messages import DefectError, Task, WorkerDiedError
from image_reward.jobs.worker import Worker
from image_reward.ray_clusters import connect

if TYPE_CHECKING:
    from image_reward.jobs.shards import Work


class Actor(Worker):
    """A worker on some machine of the cluster."""

    def __init__(self, work: Work, device: str | None) -> None:
        warnings.simplefilter("ignore")
        super().__init__(work, device)

    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())


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
        try:
            self.ray, self.started_here = connect(address)
        except ImportError:
            raise JobError("the engine 'ray' needs Ray: pip install 'image-reward[jobs]'") from None
        resources = self.ray.cluster_resources()
        num_gpus, num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        cuda = (device or "cuda").startswith("cuda") and (num_gpus > 0 or device is not None)
        count = num_workers or (num_gpus if cuda else num_cpus) or 1
        self.decoders = decoders if decoders is not None else max(1, num_cpus // num_gpus - 1) if cuda and num_gpus else 0
        self.device = device or ("cuda" if cuda else "cpu")
        self.work = work(self.decoders, None if cuda else 1)
        self.num_workers = min(count, max(1, num_shards))
        self.options = {"num_cpus": 1 + self.decoders, "num_gpus": 1 if cuda else 0, "max_restarts": 0, "max_task_retries": 0}
        self.actors: dict[int, Any] = {}
        self.nodes: dict[int, Future[str]] = {}

    def start(self, worker: int) -> Future[Any]:
        self.actors[worker] = actor = self.ray.remote(**self.options)(Actor).remote(self.work, self.device)
        self.nodes[worker] = actor.node.remote().future()
        return actor.load.remote().future()

    def give(self, worker: int, task: Task) -> Future[Any]:
        return self.actors[worker].run.remote(task).future()

    def result(self, worker: int, call: Future[Any]) -> Any:
        try:
            return call.result()
        except self.ray.exceptions.RayActorError as error:
            reason, where = _reason(str(error)), self.nodes[worker]
            self.stop(worker)
            # Where the cluster has not noticed yet that the machine is gone, one try is counted, which is two too few to give a shard up.
            alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
            gone = where.done() and where.exception() is None and where.result() not in alive
            raise WorkerDiedError(reason, blameless=gone or "node has died" in reason) from None
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, WorkerDiedError):
                self.stop(worker)
            raise error.cause from (error if isinstance(error.cause, DefectError) else None)  # which has the traceback of the actor

    def progress(self, worker: int) -> tuple[int, int]:
        """Not known: only what comes of a whole shard comes back."""
        del worker
        return 0, 0

    def stop(self, worker: int) -> None:
        self.ray.kill(self.actors.pop(worker))

    def close(self) -> None:
        for worker in list(self.actors):
            self.stop(worker)
        if self.started_here:
            self.ray.shutdown()


def _reason(text: str) -> str:
    """What Ray says of a dead actor, in one line: of an exception its last line, else its first words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if "ray::" in text else " ".join(lines)[:300]
