"""How fast the service is against a loop over the same pairs, what it adds to a request, and what becomes of it under too much load.

    python benchmarks/serving.py                                        # with ImageReward-mini
    python benchmarks/serving.py --model FILE --side 512 --num-images 32 --repeats 1 --sections throughput

Everything is measured in one run, alternating, and printed as ratios of medians. The clients are coroutines of another process that send
requests which were written before, so that they take little of the cores from the service and the loop; what they take is printed.
Where other programs use the cores too, set OMP_NUM_THREADS=1: threads of PyTorch that wait for each other then wait for those programs.
"""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import tyro

_NUM_CONNECTIONS = 256  # of the overload
_MOST_LATE = 0.02  # seconds
PROMPT = "a large green square above a yellow triangle on a blue background"
Section = Literal["throughput", "overhead", "overload"]


@dataclass
class Benchmark:
    sections: tuple[Section, ...] = ("throughput", "overhead", "overload")
    model: str = "ImageReward-mini"
    side: int = 64
    """Pixels of the images' sides."""
    num_images: int = 512
    batch_size: int | None = None
    """Of the loop and of the service; by default the scorer's own."""
    clients: int = 16
    repeats: int = 5
    seconds: float = 60.0
    """Of the overload."""
    queue: int = 32
    """Rows that may wait during the overload."""
    times_capacity: float = 4.0
    """Requests a second of the overload, as a multiple of what the service answers."""

    def run(self) -> None:
        import image_reward as ir

        images = draw(self.num_images, self.side)
        prompts = [f"{PROMPT} {number}" for number in range(self.num_images)]
        scorer = ir.load(self.model, batch_size=self.batch_size)
        scorer.score(prompts[:8], images[:8])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            for section in self.sections:
                print(f"--- {section}", flush=True)
                globals()[f"measure_{section}"](self, pool, scorer, prompts, images)


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


# --- the clients, in a process of their own ------------------------------------------------------------------------------------------


def written(prompt: str, image: bytes) -> bytes:
    """A request for one reward, as ``image_reward.Client`` sends it."""
    head = "--xx\r\nContent-Disposition: form-data; name="
    kind = "Content-Type: application/octet-stream"
    body = f'{head}"prompt"\r\n\r\n{prompt}\r\n{head}"images"; filename="image"\r\n{kind}\r\n\r\n'.encode() + image + b"\r\n--xx--\r\n"
    kind = "Content-Type: multipart/form-data; boundary=xx"
    return f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    def __init__(self, url: str) -> None:
        self.port = urlsplit(url).port
        self.reader: asyncio.StreamReader | None = None

    async def open(self) -> asyncio.StreamReader:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self.reader

    async def status(self, request: bytes) -> int:
        """Of the answer to a request."""
        reader = self.reader or await self.open()
        self.writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        if b"connection: close" in head.lower():
            self.close()
        return int(head.split()[1])

    def close(self) -> None:
        if self.reader is not None:
            self.writer.close()
            self.reader = None


@dataclass
class Load:
    """What the clients saw."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Of the requests that were answered with 200."""
    answered_meanwhile: list[int] = field(default_factory=list)
    """How many others were answered with 200 while such a request waited."""

    async def add(self, connection: Connection, request: bytes) -> None:
        started, before = time.perf_counter(), self.statuses["200"]
        try:
            status = str(await connection.status(request))
        except (OSError, EOFError) as error:
            status = type(error).__name__
            connection.close()
        self.statuses[status] += 1
        if status == "200":
            self.latencies.append(time.perf_counter() - started)
            self.answered_meanwhile.append(self.statuses["200"] - 1 - before)


def in_turn(url: str, num_clients: int, requests: Sequence[bytes]) -> Load:
    """Clients that each send a request, wait for the answer, and send the next, until all have been sent once."""

    async def main() -> Load:
        load = Load()
        todo = iter(requests)

        async def client() -> None:
            connection = Connection(url)
            for request in todo:
                await load.add(connection, request)
            connection.close()

        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(client() for _ in range(num_clients)))
        load.seconds, load.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        return load

    return asyncio.run(main())


def at_rate(url: str, requests: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Requests that are sent at a rate, whether earlier ones have been answered or not, as long as there are connections."""

    async def main() -> Load:
        load = Load()
        idle = deque(Connection(url) for _ in range(_NUM_CONNECTIONS))
        await asyncio.gather(*(connection.open() for connection in idle))
        tasks: set[asyncio.Task[None]] = set()

        async def send(connection: Connection, request: bytes) -> None:
            await load.add(connection, request)
            idle.append(connection)

        started, cpu = time.perf_counter(), time.process_time()
        number, due = 0, 0.0
        while (now := time.perf_counter() - started) < seconds:
            due = max(due, now - _MOST_LATE)  # what could not be sent in time is left out: no burst makes up for it
            while due < now and idle:
                task = asyncio.create_task(send(idle.popleft(), requests[number % len(requests)]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number, due = number + 1, due + 1 / rate
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        load.seconds, load.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        for connection in idle:
            connection.close()
        return load

    return asyncio.run(main())


# --- what is measured ----------------------------------------------------------------------------------------------------------------


def score_in_batches(scorer: Any, prompts: list[str], images: list[bytes], batch_size: int) -> None:
    before, scorer.batch_size = scorer.batch_size, batch_size
    scorer.score(prompts, images)
    scorer.batch_size = before


def cpu_seconds(pid: int) -> float:
    """That a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_throughput(benchmark: Benchmark, pool: ProcessPoolExecutor, scorer: Any, prompts: list[str], images: list[bytes]) -> None:
    requests = [written(prompt, image) for prompt, image in zip(prompts, images, strict=True)]
    part = max(1, len(images) // 4)
    rates: dict[str, list[float]] = {name: [] for name in ("loop", "loop, one by one", "service", "service, one client")}
    costs = {"loop": 0.0, "service": 0.0, "clients": 0.0}

    def note(name: str, number: int, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        rates[name].append(number / (result.seconds if isinstance(result, Load) else time.perf_counter() - started))
        return result

    options = () if benchmark.batch_size is None else ("--batch-size", str(benchmark.batch_size))
    with service(benchmark.model, "--max-seconds", "3600", *options) as (url, pid):
        pool.submit(in_turn, url, benchmark.clients, requests[:8]).result()
        for _ in range(benchmark.repeats):
            started = time.process_time()
            note("loop", len(images), lambda: score_in_batches(scorer, prompts, images, scorer.batch_size))
            costs["loop"] += time.process_time() - started
            started = cpu_seconds(pid)
            load = note("service", len(images), lambda: pool.submit(in_turn, url, benchmark.clients, requests).result())
            assert set(load.statuses) == {"200"}, load.statuses
            costs["service"] += cpu_seconds(pid) - started
            costs["clients"] += load.cpu_seconds
            note("loop, one by one", part, lambda: score_in_batches(scorer, prompts[:part], images[:part], 1))
            note("service, one client", part, lambda: pool.submit(in_turn, url, 1, requests[:part]).result())
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in median.items():
        print(f"{name:24} {value:8.2f} pairs/s  ({min(rates[name]):.2f} to {max(rates[name]):.2f})")
    each = {name: 1000 * seconds / benchmark.repeats / len(images) for name, seconds in costs.items()}
    print(f"{benchmark.clients} clients / loop                  {median['service'] / median['loop']:.2f}")
    print(f"{benchmark.clients} clients / loop, one by one      {median['service'] / median['loop, one by one']:.2f}")
    print(f"{benchmark.clients} clients / one client            {median['service'] / median['service, one client']:.2f}")
    print(f"loop / loop, one by one            {median['loop'] / median['loop, one by one']:.2f}  (what batches gain)")
    print(
        f"processor time of a pair: loop {each['loop']:.2f} ms, service {each['service']:.2f} ms ({each['loop'] / each['service']:.2f}), "
        f"clients {each['clients']:.2f} ms"
    )


def measure_overhead(benchmark: Benchmark, pool: ProcessPoolExecutor, scorer: Any, prompts: list[str], images: list[bytes]) -> None:  # noqa: ARG001
    """One request at a time on an idle service, alternating with the same pair in this process."""
    from image_reward import Client

    local, remote = [], []
    own = 0.0
    with service(benchmark.model) as (url, pid):
        client = Client(url)
        client.score(prompts[0], [images[0]])
        before = cpu_seconds(pid)
        for number in range(min(200, len(images))):
            started, cpu = time.perf_counter(), time.process_time()
            scorer.score(prompts[number], [images[number]])
            between = time.perf_counter()
            own += time.process_time() - cpu
            client.score(prompts[number], [images[number]])
            local.append(between - started)
            remote.append(time.perf_counter() - between)
        other = cpu_seconds(pid) - before
    overheads = [1000 * (b - a) for a, b in zip(local, remote, strict=True)]
    print(f"scoring {1000 * statistics.median(local):.2f} ms, request {1000 * statistics.median(remote):.2f} ms (medians)")
    low, median = np.quantile(overheads, [0.1, 0.5])
    print(f"overhead of a request: median {median:.2f} ms, tenth percentile {low:.2f} ms, {len(overheads)} requests")
    print(f"processor time: scoring {1000 * own / len(local):.2f} ms, service {1000 * other / len(local):.2f} ms a request")


def measure_overload(benchmark: Benchmark, pool: ProcessPoolExecutor, scorer: Any, prompts: list[str], images: list[bytes]) -> None:
    """More requests a second than the service answers, sent whether it answers or not."""
    requests = [written(prompt, image) for prompt, image in zip(prompts, images, strict=True)]
    with service(benchmark.model, "--max-queue", str(benchmark.queue), "--max-images", str(benchmark.queue)) as (url, pid):
        in_turn_load = pool.submit(in_turn, url, benchmark.clients, requests).result()
        capacity = len(requests) / in_turn_load.seconds
        running = pool.submit(at_rate, url, requests, benchmark.times_capacity * capacity, benchmark.seconds)
        memories = []
        while not running.done():
            time.sleep(1)
            memories.append(memory(pid))
        load = running.result()
    accepted = load.statuses["200"] / load.seconds
    sent = load.statuses.total() / load.seconds
    print(f"capacity {capacity:.1f} requests/s; sent {sent:.1f} requests/s for {load.seconds:.0f} s: {dict(load.statuses)}")
    print(f"MiB of the service's memory, every tenth second: {' '.join(f'{value:.0f}' for value in memories[9::10] or memories[-1:])}")
    most = benchmark.queue + scorer.batch_size  # rows of the queue, and of what is scored in the moment
    quantiles, meanwhile = np.quantile(load.latencies, [0.5, 0.99]), np.quantile(load.answered_meanwhile, [0.5, 0.99])
    print(f"accepted: {accepted:.1f} requests/s, median {quantiles[0]:.2f} s, p99 {quantiles[1]:.2f} s; limit {most / accepted:.2f} s")
    print(f"others answered while one waited: median {meanwhile[0]:.0f}, p99 {meanwhile[1]:.0f}; limit {most}, of queue and batch")
    print(f"the clients used {load.cpu_seconds / load.seconds:.2f} of a core")


def memory(pid: int) -> float:
    """MiB that a process holds."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    tyro.cli(Benchmark).run()
