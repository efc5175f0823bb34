"""What a service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """One registry for each service, so that several can live in a process."""

    def __init__(self, queue_length: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        name = "image_reward"
        self.requests = Counter(f"{name}_requests", "Requests answered", ["route", "status"], registry=self.registry)
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
        self.latency = Histogram(
            f"{name}_request_seconds", "Seconds from a request to its answer", ["route"], buckets=seconds, registry=self.registry
        )
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batches = Histogram(f"{name}_batch_rows", "Rows that were scored at once", buckets=sizes, registry=self.registry)
        self.scoring = Histogram(f"{name}_scoring_seconds", "Seconds of scoring a batch", buckets=seconds, registry=self.registry)
        self.rejected = Counter(f"{name}_rejected", "Requests refused", ["reason"], registry=self.registry)
        self.errors = Counter(f"{name}_errors", "Requests that failed by a defect of the service", registry=self.registry)
        self.gone = Counter(f"{name}_disconnected", "Requests whose client left before the answer", registry=self.registry)
        gauge = Gauge(f"{name}_queue_rows", "Rows that are admitted and not yet scored", registry=self.registry)
        gauge.set_function(queue_length)

        self._of_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}  # labels() takes as long as all else that is counted

    def answered(self, route: str, status: int, seconds: float) -> None:
        if (route, status) not in self._of_route:
            self._of_route[route, status] = self.requests.labels(route, str(status)), self.latency.labels(route)
        requests, latency = self._of_route[route, status]
        requests.inc()
        latency.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
