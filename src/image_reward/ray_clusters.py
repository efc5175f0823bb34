"""A connection to a Ray cluster, or one of its own on this machine: the same for jobs and for the service."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

from image_reward.errors import InputError

_TIMEOUT = 10.0  # s


class Connection(NamedTuple):
    """What ``connect`` gives."""

    ray: Any
    """The module, which holds its one connection."""
    is_new: bool
    """Whether it was not connected before."""


def connect(address: str | None) -> Connection:
    """Connect to the cluster at an address, such as ``host:6379``, or with "auto" to the one that this machine belongs to; by default start
    one here.

    Raises ``ImportError`` where Ray is not installed, and ``InputError``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return Connection(ray, False)
    # "local", or Ray would wait for a cluster that was killed here and left a file that names it.
    where: dict[str, Any] = {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}
    if address:
        _check_reachable(address)
        where = {"address": address}
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        name = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise InputError(f"{name} could not be reached: {error}; see `ray status`, or use the engine 'local'") from None
    return Connection(ray, True)


def _check_reachable(address: str) -> None:
    """Raise ``InputError`` where nobody listens at ``host:port``: Ray itself would wait for minutes, without a word."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:  # "auto", "local", or what Ray has a message for
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT):
            pass
    except (OSError, OverflowError, ValueError) as error:  # ValueError: of the port, or a name that no host can have
        raise InputError(
            f"no Ray cluster answers at {address}: {error}; see `ray status` there and correct the address, or use the engine 'local'"
        ) from None
