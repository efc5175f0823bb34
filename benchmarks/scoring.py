"""How fast rewards are, against the plain way of computing the same rewards.

    python benchmarks/scoring.py                      # every section, full-size network, random weights from a seed
    python benchmarks/scoring.py --sections throughput memory

The plain way is what a straightforward program does: transformers' BLIP modules with explicit softmax attention, one image per call, the
prompt padded to 35 tokens. The port is the same modules, the image tower with fused attention, eight images per call. All compute the same
rewards (checked). Runs are interleaved in one process, figures are medians, and every figure is a ratio to something measured in the same
run: the peak is the best rate of any way to multiply any of the shapes that occur. Sections that need a fresh process start one for each
repetition.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
WORDS = ("red", "blue", "old", "new", "small", "large", "cat", "dog", "ocean", "forest", "castle", "portrait", "storm", "night")
Section = Literal["throughput", "matrix", "start", "memory", "import", "precision", "cuda"]


@dataclass
class Benchmark:
    sections: tuple[Section, ...] = ("import", "memory", "start", "throughput", "matrix", "precision", "cuda")
    repeats: int = 5
    """Repetitions of each measurement; medians are printed."""
    num_images: int = 16
    """Images scored in each repetition of the throughput section."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    threads: int = 2
    precisions: tuple[str, ...] = ("float32", "bfloat16", "bfloat16+compile", "int8", "int8+compile")
    """What the precision section measures: a dtype, or one with +compile."""
    checkpoint: Path | None = None
    """A checkpoint of the released layout; by default one with random weights is made in a temporary folder."""

    def run(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        print(f"{processor()}, {self.threads} threads, PyTorch {torch.__version__}, Python {platform.python_version()}\n")
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = self.checkpoint or make_checkpoint(Path(folder) / "FULL.pt")
            images = make_images(Path(folder), self.num_images)
            for section in self.sections:
                globals()[f"measure_{section}"](self, checkpoint, images)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def make_checkpoint(path: Path) -> Path:
    """Random weights of the released layout, with scales at which float32 rounding stays small."""
    import torch

    from image_reward.models.blip import BlipConfig, ImageRewardNetwork

    generator = torch.Generator().manual_seed(7)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ImageRewardNetwork(BlipConfig()).state_dict().items()}
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            tensors[name] = 1 + 0.1 * values
        else:
            tensors[name] = values * (shape[1:].numel() ** -0.5 if len(shape) > 1 and "embed" not in name else 0.05)
    torch.save(tensors, path)
    return path


def make_images(folder: Path, count: int) -> list[str]:
    """512 px JPEG files of smooth noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    paths = []
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        paths.append(str(folder / f"{i:03d}.jpg"))
        small.resize((512, 512), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def make_prompts(count: int) -> list[str]:
    """Distinct prompts of 4 to 24 words."""
    import numpy as np

    random = np.random.default_rng(1)
    return [" ".join(random.choice(WORDS, random.integers(4, 25))) for _ in range(count)]


# --- the plain way ------------------------------------------------------------------------------------------------------------------


class Plain:
    """One image and one prompt at a time, in modules of transformers, weights copied in by ``load_state_dict``."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        from image_reward.images import ImageTransform
        from image_reward.prompts import transformers_tokenizer

        vision = BlipVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
            patch_size=16,
            layer_norm_eps=1e-6,
            attn_implementation="eager",
        )
        text = BlipTextConfig(
            vocab_size=30524,
            hidden_size=768,
            encoder_hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            is_decoder=True,  # transformers' name for "has cross-attention"; calls below ask for attention in both directions
            attn_implementation="eager",
        )
        self.vision = BlipVisionModel(vision).eval()
        self.text = BlipTextModel(text, add_pooling_layer=False).eval()
        nn = torch.nn
        self.mlp = nn.Sequential(
            nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64), nn.Dropout(0.1),
            nn.Linear(64, 16), nn.Linear(16, 1),
        ).eval()  # fmt: skip
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        self.vision.load_state_dict({self._vision_name(k): v for k, v in state.items() if k.startswith("blip.visual_encoder.")})
        prefix = "blip.text_encoder."
        self.text.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self.mlp.load_state_dict({k.removeprefix("mlp.layers."): v for k, v in state.items() if k.startswith("mlp.layers.")})
        self.preprocess, self.tokenizer = ImageTransform(), transformers_tokenizer()

    @staticmethod
    def _vision_name(name: str) -> str:
        for ours, theirs in [
            ("blip.visual_encoder.", ""), ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding"),
            ("patch_embed.proj", "embeddings.patch_embedding"), ("blocks.", "encoder.layers."), ("norm1", "layer_norm1"),
            ("norm2", "layer_norm2"), ("attn.qkv", "self_attn.qkv"), ("attn.proj", "self_attn.projection"),
        ]:  # fmt: skip
            name = name.replace(ours, theirs)
        return name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name

    def to(self, device: str) -> Plain:
        self.vision.to(device), self.text.to(device), self.mlp.to(device)
        return self

    def score(self, prompt: str, path: str) -> float:
        return self.score_batch(prompt, [path])[0]

    def score_batch(self, prompt: str, paths: list[str]) -> list[float]:
        import torch

        device = self.mlp[0].weight.device
        with torch.inference_mode():
            prompts = [prompt] * len(paths)
            tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt").to(device)
            image = self.vision(torch.stack([self.preprocess(path) for path in paths]).to(device)).last_hidden_state
            hidden = self.text(
                tokens.input_ids,
                attention_mask=tokens.attention_mask,
                encoder_hidden_states=image,
                encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=device),
                is_decoder=False,
            ).last_hidden_state
            return ((self.mlp(hidden[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072).tolist()


class Port(Plain):
    """As ``Plain``, the image tower with fused attention, which transformers' BLIP does not offer."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        for layer in self.vision.encoder.layers:
            layer.self_attn.forward = partial(fused_attention, layer.self_attn)


def fused_attention(attention: Any, hidden_states: Any, **_: Any) -> tuple[Any, None]:
    import torch

    qkv = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    context = torch.nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
    return attention.projection(context.transpose(1, 2).flatten(2)), None


# --- the peak -----------------------------------------------------------------------------------------------------------------------


def multiplications(dtype: Any) -> dict[str, Callable[[], Any]]:
    """Every way at hand to multiply the shapes that eight images make in the image tower, by a name that begins with the shape."""
    import torch
    from torch.nn.functional import linear

    from image_reward.models.linear import WAYS

    ways: dict[str, Callable[[], Any]] = {}
    for fan_in, fan_out in ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)):
        x, w, bias = (torch.randn(*shape).to(dtype) for shape in ((8 * 197, fan_in), (fan_out, fan_in), (fan_out,)))
        shape = f"{len(x)}x{fan_in}x{fan_out}"
        for name, way in WAYS.items():
            ways[f"{shape} {name}"] = lambda way=way, x=x, w=w, bias=bias: way(x, w, bias, False)
        ways[f"{shape} without a bias"] = lambda x=x, w=w: linear(x, w)

        def packed(x: Any = x, w: Any = w, bias: Any = bias, copies: list[Any] = []) -> Any:  # noqa: B006 - packed at the first call
            copies or copies.append(torch.ops.mkldnn._reorder_linear_weight(w, len(x)))
            return torch.ops.mkldnn._linear_pointwise(x, copies[0], bias, "none", [], "")

        ways[f"{shape} onednn, packed weights"] = packed
    works: dict[str, Callable[[], Any]] = {}
    for name, work in ways.items():
        with torch.inference_mode():
            try:
                work()
            except Exception as error:  # what this build or processor does not have
                print(f"  {name}: not here ({str(error).splitlines()[0]:.60})")
            else:
                works[name] = work
    return works


def operations_of(scorer: Any, image: str) -> int:
    """Floating-point operations of one image with one prompt."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        scorer(scorer.prepare([PROMPT], [image]))
    return flops.get_total_flops()


def rate_of(name: str, taken: float) -> float:
    """Floating-point operations a second of one of ``multiplications``."""
    rows, fan_in, fan_out = map(int, name.split()[0].split("x"))
    return 2 * rows * fan_in * fan_out / taken


def print_peak(taken: dict[str, float]) -> float:
    """The best rate of any shape and way; prints the best of each way."""
    rates = {name: rate_of(name, seconds) for name, seconds in taken.items()}
    best = max(rates, key=lambda name: rates[name])
    for way in dict.fromkeys(name.split(maxsplit=1)[1] for name in rates):
        print(f"  matrix multiplication, {way:<22} {max(r for n, r in rates.items() if n.split(maxsplit=1)[1] == way) / 1e9:6.0f} GFLOP/s")
    print(f"  the peak is {rates[best] / 1e9:.0f} GFLOP/s: {best}")
    return rates[best]


# --- sections -----------------------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(repeats: int, **ways: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each way, run in turn after one warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, work in ways.items():
            taken = seconds(work)
            if repeat:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_throughput(b: Benchmark, checkpoint: Path, images: list[str]) -> None:
    import torch

    import image_reward as ir
    from image_reward.models.linear import linear_ways

    scorer, plain, port = ir.load(checkpoint, "cpu"), Plain(checkpoint), Port(checkpoint)
    apart = max(abs(scorer.score(PROMPT, image) - plain.score(PROMPT, image)) for image in images[:4])
    apart = max(apart, *(abs(a - b) for a, b in zip(scorer.score(PROMPT, images[:4]), port.score_batch(PROMPT, images[:4]), strict=True)))
    assert apart < 1e-3, f"the ways do not compute the same rewards: {apart}"
    operations = operations_of(scorer, images[0])
    print(f"Throughput, float32, from JPEG file to reward ({operations / 1e9:.1f} GFLOP an image)")
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: [plain.score(PROMPT, image) for image in images],
        "port": lambda: [port.score_batch(PROMPT, images[i : i + 8]) for i in range(0, len(images), 8)],
    }
    for size in b.batch_sizes:
        ways[f"batch {size}"] = lambda size=size: score_in_batches(scorer, images, size)
    products = multiplications(torch.float32)
    with torch.inference_mode():
        taken = interleaved(b.repeats, **ways, **products)
    peak = print_peak({name: taken[name] for name in products})
    print(f"  linear layers of ours: {', '.join(f'{count} {way}' for way, count in linear_ways(scorer).items())}")
    for name in ways:
        rate = len(images) / taken[name]
        print(
            f"  {name:<10} {rate:7.2f} images/s   {taken['plain'] / taken[name]:5.2f}x plain   {taken['port'] / taken[name]:5.2f}x port   "
            f"{rate * operations / peak:5.2f} of peak"
        )
    print(f"  largest difference from the rewards of the others: {apart:.1e}\n")


def score_in_batches(scorer: Any, images: list[str], size: int) -> list[float]:
    scorer.batch_size = size
    return scorer.score(PROMPT, images)


def measure_matrix(b: Benchmark, checkpoint: Path, images: list[str]) -> None:  # noqa: ARG001 - sections are called alike
    import image_reward as ir

    scorer = ir.load(checkpoint, "cpu")
    prompts = make_prompts(16)
    images = images[:16]
    found: dict[str, Any] = {}

    def pairs() -> None:
        found["pairs"] = [[scorer.score(prompt, image) for image in images] for prompt in prompts]

    def matrix() -> None:
        found["matrix"] = scorer.matrix(prompts, images)

    matrix()
    first = seconds(matrix)
    calls = seconds(pairs)  # minutes: run once, with a matrix before and after it
    second = seconds(matrix)
    taken = statistics.median([first, second])
    apart = abs(found["matrix"] - found["pairs"]).max()
    print(f"Matrix of {len(prompts)} prompts x {len(images)} images")
    print(f"  {len(prompts) * len(images)} pair calls {calls:7.1f} s   matrix {taken:6.1f} s   {calls / taken:5.1f}x   apart {apart:.1e}\n")


START = """
import time, sys
start = float(sys.argv[1])
import image_reward as ir
scorer = ir.load(sys.argv[2], "cpu")
scorer.score(sys.argv[3], sys.argv[4:])
first = time.time() - start
again = []
for _ in range(3):
    before = time.perf_counter()
    scorer.score(sys.argv[3], sys.argv[4:])
    again.append(time.perf_counter() - before)
print(first, min(again))
"""
TORCH = "import sys, time, torch; print(time.time() - float(sys.argv[1]))"
PLAIN_START = """
import time, sys
start = float(sys.argv[1])
sys.path.insert(0, {folder!r})
from pathlib import Path
from scoring import Plain
plain = Plain(Path(sys.argv[2]))
for image in sys.argv[4:]:
    plain.score(sys.argv[3], image)
print(time.time() - start)
"""
MEMORY = """
import resource, sys
import image_reward as ir
scorer = ir.load(sys.argv[1], "cpu")
scorer.score(sys.argv[2], sys.argv[3:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
IMPORT = "import time; t = time.perf_counter(); import image_reward; print(time.perf_counter() - t)"


def in_process(b: Benchmark, code: str, *arguments: object, **variables: str) -> list[float]:
    """The numbers that a process prints in its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": str(b.threads)} | variables
    output = subprocess.check_output([sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True)
    return [float(number) for number in output.splitlines()[-1].split()]


def measure_start(b: Benchmark, checkpoint: Path, images: list[str]) -> None:
    codes = {"ours": START, "plain": PLAIN_START.format(folder=str(Path(__file__).parent)), "torch": TORCH}
    times: dict[str, list[list[float]]] = {name: [] for name in codes}
    repeats = max(3, b.repeats // 2)
    with tempfile.TemporaryDirectory() as compiled:  # as an installed package is, also where the environment keeps Python from it
        variables = {"PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        for repeat in range(repeats + 1):
            for name, code in codes.items():
                taken = in_process(b, code, time.time(), checkpoint, PROMPT, *images[:4], **variables)
                if repeat:
                    times[name].append(taken)
    (ours, again), (plain,), (torch,) = ([statistics.median(column) for column in zip(*rows, strict=True)] for rows in times.values())
    print("From process start to the first four rewards, file cache warm, modules compiled")
    print(f"  plain {plain:6.2f} s   ours {ours:6.2f} s   {plain / ours:5.2f}x sooner")
    print(
        f"  ours: {again:.2f} s are computing, as later calls take; {torch:.2f} s `import torch`; {ours - again - torch:.2f} s the rest\n"
    )


def measure_memory(b: Benchmark, checkpoint: Path, images: list[str]) -> None:
    weights = checkpoint.stat().st_size
    (peak,) = in_process(b, MEMORY, checkpoint, PROMPT, *images[:8])
    print("Peak resident memory of a process that loads the model and scores eight images, float32")
    print(f"  {peak / 1e9:.2f} GB = {peak / weights:.2f}x the weights ({weights / 1e9:.2f} GB)\n")


def measure_import(b: Benchmark, checkpoint: Path, images: list[str]) -> None:  # noqa: ARG001 - sections are called alike
    taken = statistics.median(in_process(b, IMPORT)[0] for _ in range(b.repeats))
    print(f"import image_reward\n  {1000 * taken:.1f} ms\n")


def measure_precision(b: Benchmark, checkpoint: Path, images: list[str]) -> None:
    import torch

    import image_reward as ir
    from image_reward.models.linear import linear_ways
    from image_reward.scorers.precision import agreement

    plain, prompts = Plain(checkpoint), make_prompts(8)
    exact = ir.load(checkpoint, "cpu")
    reference, operations = exact.matrix(prompts, images), operations_of(exact, images[0])
    del exact
    print(f"Precision, batch 8, from JPEG file to reward; agreement with float32 over {len(prompts)} prompts x {len(images)} images")
    for way in b.precisions:  # one in memory at a time, each in turns with the plain way
        dtype, _, compiled = way.partition("+")
        start = time.perf_counter()
        scorer = ir.load(checkpoint, "cpu", dtype, compile=bool(compiled))
        scorer.score(PROMPT, images[:8])
        first = time.perf_counter() - start
        found = agreement(reference, scorer.matrix(prompts, images))
        products = {} if dtype == "int8" else multiplications(getattr(torch, dtype))
        with torch.inference_mode():
            taken = interleaved(
                b.repeats,
                plain=lambda: [plain.score(PROMPT, image) for image in images[:8]],
                ours=lambda scorer=scorer: scorer.score(PROMPT, images),
                **products,
            )
        rate = len(images) / taken["ours"]
        if products:
            peak = print_peak({name: taken[name] for name in products})
            print(f"  {way}: {rate * operations / peak:5.2f} of peak; linear layers: {linear_ways(scorer)}")
        print(
            f"  {way:<17} {rate:6.2f} images/s   {rate * taken['plain'] / len(images[:8]):5.2f}x plain   first rewards {first:6.1f} s   "
            f"Spearman {found.spearman:.4f}   flips {found.num_flips} of {found.num_pairs}   "
            f"differences: mean {found.mean_difference:.4f}, largest {found.largest_difference:.4f}, spread {found.spread:.3f}",
            flush=True,
        )
        del scorer
        torch._dynamo.reset()
    print()


def measure_cuda(b: Benchmark, checkpoint: Path, images: list[str]) -> None:
    import torch

    if not torch.cuda.is_available():
        print("CUDA, bfloat16\n  not measured: no CUDA device on this machine\n")
        return
    import image_reward as ir

    scorer, plain = ir.load(checkpoint, "cuda", "bfloat16"), Plain(checkpoint).to("cuda")
    many = images * 32
    ways: dict[str, Callable[[], Any]] = {"plain": lambda: [plain.score(PROMPT, image) for image in images]}
    for size in (16, 64, 256):
        ways[f"batch {size}"] = lambda size=size: score_in_batches(scorer, many, size)
    taken = interleaved(b.repeats, **ways)
    rate = len(images) / taken.pop("plain")
    print(f"CUDA ({torch.cuda.get_device_name()}), bfloat16, decoding included\n  plain float32 {rate:9.1f} images/s")
    for name, value in taken.items():
        print(f"  {name:<12} {len(many) / value:9.1f} images/s   {len(many) / value / rate:6.1f}x plain")
    print()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    tyro.cli(Benchmark).run()
