"""The same application on a Ray cluster: Ray Serve starts replicas of it, on GPUs too, more of them under load, and listens for them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from image_reward.errors import InputError
from image_reward.serving.settings import Replicas, Settings

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
    try:
        ray, serve = _connect(replicas.ray_address)
    except ImportError:
        raise InputError("the engine 'ray' needs Ray Serve: pip install 'image-reward[serve-ray]'") from None
    stop = stop or threading.Event()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        serve.start(
            proxy_location="HeadOnly" if replicas.ray_address is None else "EveryNode",
            http_options={"host": host, "port": port, "keep_alive_timeout_s": 75},
            logging_config=_LOGGING,
        )
        try:
            serve.run(_deployment(serve, load, settings, replicas).bind(), name=_NAME, route_prefix="/", logging_config=_LOGGING)
            with _watchdog() if replicas.ray_address is None else nullcontext():
                if on_started:
                    on_started()
                stop.wait()
        except RuntimeError as error:  # what the replica printed is in the logs of Ray
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"Ray Serve could not start the service: {reason} See `ray logs`, or try --engine local") from error
        finally:
            serve.delete(_NAME)  # waits for the requests in work
            if replicas.ray_address is None:
                serve.shutdown()
    finally:
        if replicas.ray_address is None:
            ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watchdog() -> Iterator[None]:
    """Processes that this one has started end when it is killed. Some of Ray's would notice that only minutes later."""
    printed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in printed.splitlines()]
    own = [str(os.getpid())]
    for number in own:
        own += [pid for pid, parent in pairs if parent == number]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHDOG], stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        try:
            process.stdin.write(" ".join(own[1:]) + "\n")
            process.stdin.flush()
            yield
        finally:
            process.kill()


_WATCHDOG = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
own = sys.stdin.readline().split()
sys.stdin.read()  # until the other end of the pipe is closed, however that comes about
for pid in own:
    try:
        os.kill(int(pid), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
_LOGGING = {"enable_access_log": False, "log_level": "WARNING"}  # its access log holds paths of requests, and ours does not


def _connect(address: str | None) -> tuple[Any, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        if not ray.is_initialized():
            where: dict[str, Any] = {"address": address} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"Ray could not be reached: {error}; see `ray status`, or use --engine local") from None
    return ray, serve


def _deployment(serve: Any, load: Callable[[], Sequence[Scorer[Any]]], settings: Settings, replicas: Replicas) -> Any:
    def build() -> FastAPI:
        from image_reward.serving.app import create_app

        return create_app(load(), settings)

    import torch

    limits = settings.limits
    settings = replace(settings, cosmos=replicas.most == 1)  # a batch is pulled from the replica that has scored it
    gpus = replicas.replica_gpus if replicas.replica_gpus is not None else float(torch.cuda.is_available())
    options: dict[str, Any] = {"num_replicas": replicas.replicas}
    if replicas.max_replicas is not None:
        scaling = {"min_replicas": replicas.replicas, "max_replicas": replicas.max_replicas, "target_ongoing_requests": 16}
        options = {"autoscaling_config": scaling}
    return serve.deployment(
        name="service",
        ray_actor_options={"num_cpus": replicas.replica_cpus, "num_gpus": gpus},
        max_ongoing_requests=2 * limits.max_requests,  # more than the service takes: it is the service that refuses, and says why
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=limits.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        **options,
    )(serve.ingress(build)())
