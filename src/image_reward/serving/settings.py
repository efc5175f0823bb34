"""What a service allows and refuses."""

from __future__ import annotations

import ipaddress
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
            if not getattr(self, option.name) > 0:
                raise InputError(f"{option.name} must be above 0, not {getattr(self, option.name)}")
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
    local_names: tuple[str, ...] | None = None
    """Names under which alone a service without a token answers, so that no web page can reach it under a name of its own."""
    num_decoders: int = 2
    """Threads that open images."""

    def __post_init__(self) -> None:
        self.limits.check()


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
