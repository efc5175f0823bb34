"""How fast the service is against a loop over the same pairs, what it adds to a request, and what becomes of it under too much load.

    python benchmarks/serving.py                                        # with ImageReward-mini
    python benchmarks/serving.py --model ImageReward-v1.0 --side 512 --num-images 64

Everything is measured in one run, alternating, and printed as ratios of medians: the clients, the service and the loop share the cores.
Where other programs use them too, set OMP_NUM_THREADS=1: threads of PyTorch that wait for each other then wait for those programs.
"""

from __future__ import annotations

import io
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

PROMPT = "a large green square above a yellow triangle on a blue background"
Section = Literal["throughput", "overhead", "overload"]


@dataclass
class Benchmark:
    sections: tuple[Section, ...] = ("throughput", "overhead", "overload")
    model: str = "ImageReward-mini"
    side: int = 64
    """Pixels of the images' sides."""
    num_images: int = 512
    clients: int = 16
    repeats: int = 5
    seconds: float = 60.0
    """Of the overload."""
    queue: int = 32
    """Rows that may wait during the overload."""

    def run(self) -> None:
        import image_reward as ir

        images = draw(self.num_images, self.side)
        prompts = [f"{PROMPT} {number}" for number in range(self.num_images)]
        scorer = ir.load(self.model)
        scorer.score(prompts[:8], images[:8])
        for section in self.sections:
            print(f"--- {section}", flush=True)
            globals()[f"measure_{section}"](self, scorer, prompts, images)


def draw(count: int, side: int) -> list[bytes]:
    """JPEG files of smooth noise, each different, which cost about what photographs cost to decode."""
    from PIL import Image

    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        small = generator.integers(0, 256, (max(2, side // 16), max(2, side // 16), 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


@contextmanager
def service(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """The address and the process of a service."""
    command = [sys.executable, "-m", "image_reward.cli", "serve", "--model", model, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next((line for line in process.stderr if line.startswith("serving ")), "")
        if not line:
            sys.exit(f"the service did not start: {' '.join(command)}")
        drain = threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True)
        drain.start()
        try:
            yield line.split()[-1], process.pid
        finally:
            process.terminate()
            drain.join()


def rate_of_clients(url: str, num_clients: int, prompts: list[str], images: list[bytes]) -> float:
    """Pairs a second of clients that each send one image, wait for its reward, and send the next."""
    from image_reward import Client

    todo = iter(range(len(images)))
    lock = threading.Lock()

    def work(client: Client) -> None:
        while True:
            with lock:
                number = next(todo, None)
            if number is None:
                return
            client.score(prompts[number], [images[number]])

    clients = [Client(url) for _ in range(num_clients)]
    for client in clients:
        client.models()
    started = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(work, clients))
    return len(images) / (time.perf_counter() - started)


def rate_of_loop(scorer: Any, prompts: list[str], images: list[bytes], batch_size: int) -> float:
    before, scorer.batch_size = scorer.batch_size, batch_size
    started = time.perf_counter()
    scorer.score(prompts, images)
    seconds = time.perf_counter() - started
    scorer.batch_size = before
    return len(images) / seconds


def cpu_seconds(pid: int) -> float:
    """That a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_throughput(benchmark: Benchmark, scorer: Any, prompts: list[str], images: list[bytes]) -> None:
    rates: dict[str, list[float]] = {name: [] for name in ("loop", "loop, one by one", "service", "service, one client")}
    costs: dict[str, float] = {"loop": 0.0, "service": 0.0}
    with service(benchmark.model) as (url, pid):
        rate_of_clients(url, benchmark.clients, prompts[:32], images[:32])
        for _ in range(benchmark.repeats):
            started = time.process_time()
            rates["loop"].append(rate_of_loop(scorer, prompts, images, scorer.batch_size))
            costs["loop"] += time.process_time() - started
            started = cpu_seconds(pid)
            rates["service"].append(rate_of_clients(url, benchmark.clients, prompts, images))
            costs["service"] += cpu_seconds(pid) - started
            part = max(1, len(images) // 4)
            rates["loop, one by one"].append(rate_of_loop(scorer, prompts[:part], images[:part], 1))
            rates["service, one client"].append(rate_of_clients(url, 1, prompts[:part], images[:part]))
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in median.items():
        print(f"{name:24} {value:8.1f} pairs/s  ({min(rates[name]):.1f} to {max(rates[name]):.1f})")
    each = {name: 1000 * seconds / benchmark.repeats / len(images) for name, seconds in costs.items()}
    print(f"CPU time of a pair: loop {each['loop']:.2f} ms, service {each['service']:.2f} ms ({each['loop'] / each['service']:.2f})")
    print(f"{benchmark.clients} clients / loop                  {median['service'] / median['loop']:.2f}")
    print(f"{benchmark.clients} clients / loop, one by one      {median['service'] / median['loop, one by one']:.2f}")
    print(f"loop / loop, one by one            {median['loop'] / median['loop, one by one']:.2f}  (what batches gain)")


def measure_overhead(benchmark: Benchmark, scorer: Any, prompts: list[str], images: list[bytes]) -> None:
    """One request at a time on an idle service, alternating with the same pair in this process."""
    from image_reward import Client

    local, remote = [], []
    with service(benchmark.model) as (url, _):
        client = Client(url)
        client.score(prompts[0], [images[0]])
        for number in range(min(200, len(images))):
            started = time.perf_counter()
            scorer.score(prompts[number], [images[number]])
            between = time.perf_counter()
            client.score(prompts[number], [images[number]])
            local.append(between - started)
            remote.append(time.perf_counter() - between)
    overheads = [1000 * (b - a) for a, b in zip(local, remote, strict=True)]
    print(f"scoring {1000 * statistics.median(local):.2f} ms, request {1000 * statistics.median(remote):.2f} ms (medians)")
    print(f"overhead of a request: median {statistics.median(overheads):.2f} ms, {len(overheads)} requests")


def measure_overload(benchmark: Benchmark, scorer: Any, prompts: list[str], images: list[bytes]) -> None:
    """Clients that never wait: four times as many requests at once as the queue and a batch hold."""
    from image_reward import Client, ServiceError

    num_clients = 4 * (benchmark.queue + scorer.batch_size)
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    numbers = itertools.count()
    lock = threading.Lock()
    options = ["--max-queue", str(benchmark.queue), "--max-images", str(benchmark.queue)]
    with service(benchmark.model, *options) as (url, pid):
        stop = time.monotonic() + benchmark.seconds

        def work(_: int) -> None:
            client = Client(url, retries=0)
            while time.monotonic() < stop:
                with lock:
                    number = next(numbers) % len(images)
                started = time.perf_counter()
                try:
                    client.score(prompts[number], [images[number]])
                    status = "200"
                except ServiceError as error:
                    status = "429" if "429" in str(error) else str(error)
                with lock:
                    statuses[status] += 1
                    if status == "200":
                        latencies.append(time.perf_counter() - started)
                if status != "200":
                    time.sleep(0.02)  # or the clients alone would use up the cores

        with ThreadPoolExecutor(num_clients) as pool:
            pool.map(work, range(num_clients))
            time.sleep(min(10, benchmark.seconds / 2))
            early = memory(pid)
        late = memory(pid)
    rate = statuses["200"] / benchmark.seconds
    print(f"{num_clients} clients for {benchmark.seconds:g} s: {dict(statuses)}")
    print(f"memory of the service: {early:.0f} MiB after {min(10, benchmark.seconds / 2):g} s, {late:.0f} MiB at the end")
    quantiles = np.quantile(latencies, [0.5, 0.99])
    bound = (benchmark.queue + 2 * scorer.batch_size) / rate
    print(
        f"accepted: {rate:.1f} pairs/s, median {quantiles[0]:.2f} s, p99 {quantiles[1]:.2f} s; the queue's limit / that rate: {bound:.2f} s"
    )


def memory(pid: int) -> float:
    """MiB that a process holds."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    tyro.cli(Benchmark).run()
