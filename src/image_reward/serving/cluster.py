"""The same application on a Ray cluster: Ray Serve starts replicas of it, on GPUs too, more of them under load, and listens for them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from image_reward.errors import InputError
from image_reward.ray_clusters import connect
from image_reward.serving.settings import Replicas, Settings
from image_reward.terminal import note

if TYPE_CHECKING:
    from fastapi import FastAPI

    from image_reward.scorers.base import Scorer

_NAME = "image-reward"


def run(
    load: Callable[[], Sequence[Scorer[Any]]],
    settings: Settings,
    replicas: Replicas,
    host: str,
    port: int,
    on_started: Callable[[], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until ``stop`` is set; then finish the requests in work, for at most ``drain_seconds``.

    ``load`` and ``settings`` are pickled, and each replica loads its own models. Raises ``InputError``.
    """
    with _watchdog() if replicas.ray_address is None else nullcontext():
        _run(load, settings, replicas, host, port, on_started, stop or threading.Event())


def _run(
    load: Callable[[], Sequence[Scorer[Any]]],
    settings: Settings,
    replicas: Replicas,
    host: str,
    port: int,
    on_started: Callable[[], None] | None,
    stop: threading.Event,
) -> None:
    own = replicas.ray_address is None
    try:
        ray = connect(replicas.ray_address).ray
        from ray import serve
    except ImportError:
        raise InputError("the engine 'ray' needs Ray Serve: pip install 'image-reward[serve-ray]'") from None
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    before = {}
    if threading.current_thread() is threading.main_thread():  # only now: Ray puts handlers of its own in their place
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_room(ray, replicas)
        serve.start(
            proxy_location="HeadOnly" if own else "EveryNode",
            http_options={"host": host, "port": port, "keep_alive_timeout_s": 75},
            logging_config=_LOGGING,
        )
        try:
            serve.run(_deployment(serve, load, settings, replicas).bind(), name=_NAME, route_prefix="/", logging_config=_LOGGING)
            os.environ.pop(_MARK, None)  # a browser that is opened now is not Ray's
            if on_started:
                on_started()
            stop.wait()
        except RuntimeError as error:  # what the replica printed is in the logs of Ray
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"Ray Serve could not start the service: {reason} See `ray logs`, or try --engine local") from error
        finally:
            serve.delete(_NAME)  # waits for the requests in work
            if own:
                serve.shutdown()
    finally:
        if own:
            ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_room(ray: Any, replicas: Replicas) -> None:
    """Raise ``InputError`` for more cores or GPUs than this machine has, for which Ray would wait without a word.

    A cluster may grow, or others may use it: there it is a warning.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free = ray.available_resources()
    for kind, name, option, each in (
        ("CPU", "cores", "--replica-cpus", replicas.replica_cpus),
        ("GPU", "GPUs", "--replica-gpus", replicas.gpus_each),
    ):
        if not each:
            continue
        copies = f"{replicas.replicas} {'copies' if replicas.replicas > 1 else 'copy'} of {each:g}"
        if sum(int(node.get(kind, 0) / each + 1e-9) for node in nodes) < replicas.replicas:
            there = " + ".join(f"{node.get(kind, 0):g}" for node in nodes) or "0"
            message = f"Ray has {there} {name}, too few for {copies}; use a smaller {option}, fewer --replicas,"
            if replicas.ray_address is None:
                raise InputError(f"{message} or --ray-address of a larger cluster")
            note(f"{message} or wait until the cluster has grown")
        elif free.get(kind, 0) < each * replicas.replicas:
            note(f"Ray has {free.get(kind, 0):g} free {name}, too few for {copies}: those that do not fit wait until others end")


@contextmanager
def _watchdog() -> Iterator[None]:
    """What Ray starts ends when this process is killed, at whatever moment. Some of Ray's processes would notice that only minutes later.

    They are known by a variable of the environment, which they inherit from each other: those that are killed while they start, too.
    """
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHDOG], stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        os.environ[_MARK] = mark
        try:
            process.stdin.write(f"{_MARK}={mark}\n")
            process.stdin.flush()
            yield
        finally:
            os.environ.pop(_MARK, None)
            process.kill()


_MARK = "IMAGE_REWARD_STARTED_RAY"
_WATCHDOG = """
import os, select, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
mark = sys.stdin.readline().strip().encode()
known = {os.getppid(): None}  # this program and all that it has started, and the times at which they were

def read(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""

def look():
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if fields := read(pid, "stat").rpartition(b")")[2].split():
            found[pid] = int(fields[1]), fields[19]
    queue = [pid for pid, (_, started) in found.items() if known.get(pid, "") in (None, started)]
    queue += [pid for pid in found if pid not in known and mark in read(pid, "environ").split(b"\\0")]
    for pid in queue:
        known[pid] = found[pid][1]
        queue += [child for child, (parent, _) in found.items() if parent == pid and child not in queue and child != os.getpid()]
    return queue

# Until the other end of the pipe is closed, however that comes about. Workers write their names over the mark in their environment, and
# have another parent once theirs has ended: so they are looked for while it is there.
while not select.select([sys.stdin], [], [], 1.0)[0]:
    look()
clean = 0
while clean < 10:  # those that are killed may just have started others
    clean += 1
    for pid in look():
        clean = 0
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    time.sleep(0.1)
"""
_LOGGING = {"enable_access_log": False, "log_level": "WARNING"}  # its access log holds paths of requests, and ours does not


def _deployment(serve: Any, load: Callable[[], Sequence[Scorer[Any]]], settings: Settings, replicas: Replicas) -> Any:
    def build() -> FastAPI:
        from image_reward.serving.app import create_app

        return create_app(load(), settings)

    limits = settings.limits
    settings = replace(settings, cosmos=replicas.most == 1)  # a batch is pulled from the replica that has scored it
    options: dict[str, Any] = {"num_replicas": replicas.replicas}
    if replicas.max_replicas is not None:
        scaling = {"min_replicas": replicas.replicas, "max_replicas": replicas.max_replicas, "target_ongoing_requests": 16}
        options = {"autoscaling_config": scaling}
    return serve.deployment(
        name="service",
        ray_actor_options={"num_cpus": replicas.replica_cpus, "num_gpus": replicas.gpus_each},
        max_ongoing_requests=2 * limits.max_requests,  # more than the service takes: it is the service that refuses, and says why
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=limits.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        **options,
    )(serve.ingress(build)())
