"""How fast files of rows are scored, against what the cores can do; how memory grows; and whether kills change a result.

    python benchmarks/jobs.py                                  # every section, with ImageReward-mini
    python benchmarks/jobs.py --sections million growth        # a scorer that costs nothing: the job's own time and memory
    python benchmarks/jobs.py --sections end-to-end --model ImageReward-v1.0 --num-rows 200

Every rate is printed with what it is compared to, measured in the same run: a loop that only computes (all cores, tensors in memory), a
pool of processes that only decodes, and what the same cores would do if they did both and nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

PROMPT = "a large green square above a yellow triangle on a blue background"
Section = Literal["end-to-end", "ray", "million", "restart", "growth", "resume", "cluster-kills"]


@dataclass
class Benchmark:
    sections: tuple[Section, ...] = ("end-to-end", "ray", "growth", "resume", "cluster-kills")
    model: str = "ImageReward-mini"
    num_rows: int = 2000
    """Rows of the end-to-end section, each with a file of its own."""
    num_ray_rows: int = 20_000
    num_million: int = 1_000_000
    growth: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    num_resume_rows: int = 5000
    num_kills: int = 5
    workers: int = 2
    repeats: int = 3
    """Of the end-to-end section; medians are printed."""
    figure: Path = Path(__file__).parents[1] / "docs" / "images" / "jobs_growth.svg"
    child: str = ""
    """For the benchmark's own use: a job to run in a process of its own."""

    def run(self) -> None:
        if self.child:
            run_child(**json.loads(self.child))
            return
        with tempfile.TemporaryDirectory() as folder:
            for section in self.sections:
                print(f"--- {section}", flush=True)
                globals()[f"measure_{section.replace('-', '_')}"](self, Path(folder))


# --- inputs --------------------------------------------------------------------------------------------------------------------------


def draw(folder: Path, count: int, side: int, quality: int = 90) -> list[str]:
    """JPEG files of smooth noise, which cost about what photographs cost to decode."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        small = generator.integers(0, 256, (max(2, side // 16), max(2, side // 16), 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=quality)
    return [f"{number}.jpg" for number in range(count)]


def write_rows(folder: Path, images: list[str], count: int) -> Path:
    path = folder / f"rows-{count}.csv"
    with path.open("w") as file:
        file.write("id,prompt,image\n")
        file.writelines(f"{n},{PROMPT},{images[n % len(images)]}\n" for n in range(count))
    return path


def nothing(device: str | None, size: int = 16) -> list[Any]:
    """A scorer that costs nothing but its preparation, of images of ``size`` px."""
    import torch

    from image_reward.images import ImageTransform
    from image_reward.prompts import PromptTokenizer
    from image_reward.scorers import TwoTowerProcessor, TwoTowerScorer

    class Nothing(TwoTowerScorer[torch.Tensor]):
        name = "nothing"

        def __init__(self) -> None:
            super().__init__()
            self.prepare = TwoTowerProcessor(ImageTransform(size), PromptTokenizer())
            self.batch_size = 64

        def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.float().mean(dim=(1, 2, 3))

        def score_pairs(self, features: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            del ids
            return features[:, None] + mask.sum(dim=-1)

    return [Nothing().to(device or "cpu")]


# --- jobs in processes of their own ----------------------------------------------------------------------------------------------------


def run_child(rows: str, output: str, model: str, nothing_size: int = 16, **options: Any) -> None:
    """Run a job and print what it cost."""
    from image_reward.jobs import score_files

    started = time.perf_counter()
    result = score_files(rows, output, model or partial(nothing, size=nothing_size), **options)
    print(
        json.dumps(
            {
                "rows": result.num_rows,
                "errors": result.num_errors,
                "seconds": result.seconds,
                "whole": time.perf_counter() - started,
                "busy": result.busy,
                "driver_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "worker_rss": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            }
        )
    )


def start(benchmark: Benchmark, rows: Path, output: Path, model: str, **options: Any) -> subprocess.Popen[str]:
    given = json.dumps({"rows": str(rows), "output": str(output), "model": model, "workers": benchmark.workers} | options)
    return subprocess.Popen([sys.executable, __file__, "--child", given], stdout=subprocess.PIPE, text=True)


def job(*arguments: Any, **options: Any) -> dict[str, float]:
    process = start(*arguments, **options)
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the job ended with exit code {process.returncode}")
    cost: dict[str, float] = json.loads(printed.splitlines()[-1])
    return cost


# --- sections ------------------------------------------------------------------------------------------------------------------------


def decode_part(transform: Any, paths: list[str]) -> int:
    for path in paths:
        transform.crop(path)
    return len(paths)


def measure_end_to_end(benchmark: Benchmark, folder: Path) -> None:
    """Rows a second through a job, against a loop that only computes and a pool that only decodes, for large files and for tiny ones."""
    import torch

    import image_reward as ir

    torch.set_num_threads(benchmark.workers)
    network = ir.load(benchmark.model, "cpu")
    transform = network.prepare.transform
    print("| files | model | job | computing alone | decoding alone | both in turn | job / both | job / computing | job / decoding |")
    print("|---|---|---|---|---|---|---|---|---|")
    for side, model in ((transform.size, benchmark.model), (512, benchmark.model), (512, "")):
        scorer = network if model else nothing("cpu", transform.size)[0]
        place = folder / f"files-{side}"
        rows = write_rows(place, draw(place, benchmark.num_rows, side), benchmark.num_rows)
        paths = [str(place / f"{n}.jpg") for n in range(benchmark.num_rows)]
        jobs, computing, decoding = [], [], []
        for repeat in range(benchmark.repeats):
            cost = job(benchmark, rows, folder / f"out-{side}-{model}-{repeat}", model, nothing_size=transform.size)
            assert cost["errors"] == 0
            jobs.append(cost["rows"] / cost["seconds"])
            computing.append(forward_rate(scorer, paths[: 16 * scorer.batch_size], benchmark.num_rows))
            decoding.append(decode_rate(transform, paths, benchmark.workers))
        done, compute, decode = (float(np.median(rates)) for rates in (jobs, computing, decoding))
        both = 1 / (1 / compute + 1 / decode)
        rates = f"{done:.1f} | {compute:.1f} | {decode:.1f} | {both:.1f}"
        print(
            f"| {side} px | {model or 'nothing'} | {rates} | {done / both:.3f} | {done / compute:.3f} | {done / decode:.3f} |", flush=True
        )


def forward_rate(scorer: Any, paths: list[str], num_rows: int) -> float:
    """Rows a second of the network alone, batches in memory."""
    import torch

    size = scorer.batch_size
    batches = [scorer.prepare([PROMPT] * size, paths[n : n + size]) for n in range(0, len(paths) - size + 1, size)]
    with torch.inference_mode():
        scorer(batches[0])
        started = time.perf_counter()
        for number in range(max(1, num_rows // size)):
            scorer(batches[number % len(batches)])
    return max(1, num_rows // size) * size / (time.perf_counter() - started)


def decode_rate(transform: Any, paths: list[str], processes: int) -> float:
    """Images a second of processes that only decode and crop."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(partial(decode_part, transform), [paths[:4]] * processes)  # start them
        started = time.perf_counter()
        pool.map(partial(decode_part, transform), [paths[n : n + 50] for n in range(0, len(paths), 50)], chunksize=1)
        return len(paths) / (time.perf_counter() - started)


def measure_ray(benchmark: Benchmark, folder: Path) -> None:
    """The same rows by both engines, from the first worker's being ready."""
    place = folder / "ray"
    rows = write_rows(place, draw(place, 1000, 64), benchmark.num_ray_rows)
    rates = {}
    for engine in ("local", "ray"):
        cost = job(benchmark, rows, folder / f"out-{engine}", benchmark.model, engine=engine)
        rates[engine] = cost["rows"] / cost["seconds"]
        print(f"{engine}: {rates[engine]:.1f} rows/s after {cost['whole'] - cost['seconds']:.1f} s of start-up", flush=True)
    print(f"ray / local: {rates['ray'] / rates['local']:.3f}")


def measure_million(benchmark: Benchmark, folder: Path) -> None:
    """Many rows by a scorer that costs nothing: the job's own cost."""
    place = folder / "million"
    rows = write_rows(place, draw(place, 1000, 32), benchmark.num_million)
    tell(job(benchmark, rows, folder / "out-million", ""))


def measure_restart(benchmark: Benchmark, folder: Path) -> None:
    """What a job does before its first shard: the scan of the input, or what is left of it when the job goes on."""
    from image_reward.jobs.inputs import open_input

    rows = str(write_rows(folder, ["0.jpg"], benchmark.num_million))
    began = open_input(rows)
    started = time.perf_counter()
    shards = began.scan(500)
    scanned = time.perf_counter() - started
    plan = began.plan(shards, 500)
    started = time.perf_counter()
    assert open_input(rows).resume(plan, 500) == shards
    print(f"{benchmark.num_million:,} rows: scanned in {scanned:.2f} s; going on needs {time.perf_counter() - started:.3f} s", flush=True)


def tell(cost: dict[str, float]) -> None:
    print(
        f"{cost['rows']:,} rows: {cost['whole']:.1f} s, {cost['rows'] / cost['whole']:,.0f} rows/s, "
        f"driver's peak {cost['driver_rss'] / 2**30:.3f} GiB, a worker's {cost['worker_rss'] / 2**30:.3f} GiB",
        flush=True,
    )


def measure_growth(benchmark: Benchmark, folder: Path) -> None:
    """Time and memory for more and more rows, as a figure."""
    place = folder / "growth"
    images = draw(place, 1000, 32)
    costs = []
    for count in benchmark.growth:
        costs.append(job(benchmark, write_rows(place, images, count), folder / f"out-growth-{count}", ""))
        tell(costs[-1])
    from image_reward.reports.plots import COLOURS, MARKERS, figure, to_svg

    drawn = figure(7.2, 3.2)
    time_axes, memory_axes = drawn.subplots(1, 2)
    counts = [cost["rows"] for cost in costs]
    time_axes.plot(counts, [cost["whole"] for cost in costs], marker=MARKERS[0], color=COLOURS[0])
    time_axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds, start-up included")
    for (name, key), colour, marker in zip((("driver", "driver_rss"), ("a worker", "worker_rss")), COLOURS, MARKERS, strict=False):
        memory_axes.plot(counts, [cost[key] / 2**30 for cost in costs], marker=marker, color=colour, label=name)
    most = max(cost[key] for cost in costs for key in ("driver_rss", "worker_rss")) / 2**30
    memory_axes.set(xscale="log", xlabel="rows", ylabel="peak memory in GiB", ylim=(0, 1.25 * most))
    memory_axes.legend(loc="lower right")
    benchmark.figure.parent.mkdir(parents=True, exist_ok=True)
    benchmark.figure.write_text(to_svg(drawn) + "\n", encoding="utf-8")


def measure_resume(benchmark: Benchmark, folder: Path) -> None:
    """A job that is killed at random moments and begun again, against one that is not."""
    import pyarrow.parquet as pq

    place = folder / "resume"
    rows = write_rows(place, draw(place, 1000, 64), benchmark.num_resume_rows)
    job(benchmark, rows, folder / "out-whole", benchmark.model, shard_size=100)
    output = folder / "out-killed"
    for number in range(benchmark.num_kills):
        process = start(benchmark, rows, output, benchmark.model, shard_size=100)
        parts = len(list(output.glob("part-*"))) + random.randint(0, 7)
        while process.poll() is None and len(list(output.glob("part-*"))) < parts:
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.3))
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        print(f"kill {number + 1}{' (it was done)' if ended else ''}: {len(list(output.glob('part-*')))} parts", flush=True)
    job(benchmark, rows, output, benchmark.model, shard_size=100)
    results = []
    for out in (folder / "out-whole", output):
        results.append(pq.read_table(sorted(out.glob("part-*.parquet"))))
    print("the results are equal row for row" if results[0].equals(results[1]) else "THE RESULTS DIFFER")


def measure_cluster_kills(benchmark: Benchmark, folder: Path) -> None:
    """A job on a cluster of two nodes on this machine, whose actors and second node are killed at random moments, against a whole one."""
    import pyarrow.parquet as pq

    place = folder / "cluster"
    rows = write_rows(place, draw(place, 1000, 64), benchmark.num_resume_rows)
    job(benchmark, rows, folder / "out-local", benchmark.model, shard_size=50)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    output = folder / "out-cluster"
    told: list[str] = []
    try:
        second = cluster.add_node(**node)
        process = start(benchmark, rows, output, benchmark.model, shard_size=50, engine="ray", ray_address=cluster.address)
        for number in range(2 * benchmark.num_kills):
            before = len(list(output.glob("part-*")))
            while process.poll() is None and len(list(output.glob("part-*"))) < before + 4:  # both nodes are at work again
                time.sleep(0.02)
            time.sleep(random.uniform(0.0, 0.3))
            actors = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if path.read_bytes().startswith(b"ray::Actor")]
            if process.poll() is not None:
                break
            if number % 2:
                cluster.remove_node(second, allow_graceful=False)
                second = cluster.add_node(**node)
            elif actors:
                os.kill(random.choice(actors), signal.SIGKILL)
            told.append(f"{'node' if number % 2 else 'actor'} after {len(list(output.glob('part-*')))} parts")
        process.communicate()
    finally:
        cluster.shutdown()
    results = [pq.read_table(sorted(out.glob("part-*.parquet"))) for out in (folder / "out-local", output)]
    print(f"killed: {', '.join(told)}")
    print("the results are equal row for row" if results[0].equals(results[1]) else "THE RESULTS DIFFER")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tyro.cli(Benchmark).run()
