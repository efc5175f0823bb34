"""What a service allows and refuses."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field, fields

from image_reward.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request, and all at once, may cost."""

    max_body: int = 128 << 20
    """Bytes of a request."""
    max_memory: int = 1 << 30
    """Bytes of all requests in work."""
    max_requests: int = 512
    """Requests in work at once."""
    max_connections: int = 1000
    """Connections at once, idle ones included."""
    max_images: int = 1000
    """Images of a request."""
    max_prompt: int = 10_000
    """Characters of a prompt."""
    max_queue: int = 2000
    """Rows that wait, of all requests; beyond it the answer is 429 with Retry-After."""
    max_seconds: float = 120.0
    """Seconds that a request may take once it has arrived."""
    read_seconds: float = 30.0
    """Seconds that a request may take to arrive."""
    drain_seconds: float = 30.0
    """Seconds that requests in work have left after SIGTERM."""

    def check(self) -> None:
        """Raise ``InputError`` for a limit that would let nothing pass."""
        for option in fields(self):
            if not 0 < getattr(self, option.name) < math.inf:
                raise InputError(f"{option.name} must be a number above 0, not {getattr(self, option.name)}")
        if self.max_images > self.max_queue:
            raise InputError(
                f"max_images ({self.max_images}) must not be more than max_queue ({self.max_queue}), or no queue could hold them"
            )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a service behaves, whatever its scorers are."""

    limits: Limits = field(default_factory=Limits)
    token: str | None = field(default=None, repr=False)
    """What clients must send as ``Authorization: Bearer``, except for /health."""
    allow_fetch: tuple[str, ...] = ()
    """Hosts from which images are fetched by their address."""
    flow_grpo: bool = False
    """Whether POST / takes the pickles of flow_grpo's clients."""
    cosmos: bool = True
    """Whether batches of cosmos-rl's clients are kept until they are pulled."""
    local_names: tuple[str, ...] | None = None
    """Names under which alone a service without a token answers, so that no web page can reach it under a name of its own."""
    num_decoders: int = 2
    """Threads that open images."""

    def __post_init__(self) -> None:
        self.limits.check()


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Copies of the service on a cluster (`--engine ray`), each with models and a queue of its own."""

    replicas: int = 1
    """Copies of the service, with `--engine ray`."""
    max_replicas: int | None = None
    """Start up to this many copies under load, with `--engine ray`."""
    replica_cpus: float = 1.0
    """Processor cores that a copy reserves, with `--engine ray`."""
    replica_gpus: float | None = None
    """GPUs that a copy reserves, with `--engine ray`; by default 1 where this machine has any, else 0."""
    ray_address: str | None = None
    """A running Ray cluster, such as `auto`, for `--engine ray`; by default one is started on this machine."""

    def check(self) -> None:
        """Raise ``InputError`` for what makes no sense."""
        if self.replicas < 1:
            raise InputError(f"replicas must be at least 1, not {self.replicas}")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise InputError(f"max_replicas ({self.max_replicas}) must not be less than replicas ({self.replicas})")
        if not self.replica_cpus > 0 or (self.replica_gpus is not None and not self.replica_gpus >= 0):
            raise InputError("replica_cpus must be above 0, and replica_gpus not below")

    @property
    def gpus_each(self) -> float:
        import torch

        return self.replica_gpus if self.replica_gpus is not None else float(torch.cuda.is_available())

    @property
    def most(self) -> int:
        return self.max_replicas or self.replicas


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
