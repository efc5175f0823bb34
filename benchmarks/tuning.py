"""What tuning costs: memory and seconds of a step by method, the best of N images against a loop, the memory that is foretold. And what it
gains: the faults of the shapes generator in the package before and after.

Every figure is a ratio to a baseline, or a difference from one, that is measured in the same run. No file is downloaded.

    python benchmarks/tuning.py                          # all sections
    python benchmarks/tuning.py --sections methods best-of
    python benchmarks/tuning.py --sections shapes        # 20 minutes; the same command again continues it, in runs/benchmark-tuning
    python benchmarks/tuning.py --sections gpu           # SD 1.5 and SDXL in bfloat16; "not measured" without a CUDA device
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import nn

import image_reward as ir
import ImageReward
from image_reward import metrics
from image_reward.comparisons.shapes import prompt_specs
from image_reward.comparisons.shapes_judge import judge
from image_reward.config import RewardConfig, ScorerConfig, TransformConfig
from image_reward.models.blip_config import BlipConfig
from image_reward.models.initial import new_network
from image_reward.recipes import read_toml
from image_reward.scorers import ImageRewardScorer
from image_reward.tuning import Tuning, load_pipeline, lora, memory, methods, objectives, tune
from image_reward.tuning.sampling import denoisers_of, sample
from image_reward.tuning.shapes_generator import build

SPEC = spec_from_file_location("tiny_pipelines", Path(__file__).parents[1] / "tests" / "tuning" / "tiny_pipelines.py")
assert SPEC is not None
assert SPEC.loader is not None
tiny_pipelines = module_from_spec(SPEC)
SPEC.loader.exec_module(tiny_pipelines)

SECTIONS = ("methods", "best-of", "dry-run", "shapes", "gpu")
STEPS = 20
MOST_MEMORY, MOST_SECONDS, LEAST_RATE, MOST_ERROR, MOST_POINTS = 0.2, 0.5, 1.0, 0.2, 0.5


def small_scorer() -> ImageRewardScorer:
    network = BlipConfig(
        image_size=64, vision_width=64, vision_layers=2, vision_heads=2, text_width=64, text_layers=2, text_heads=2, text_hidden=128
    )
    config = ScorerConfig(network=network, image=TransformConfig(size=64), reward=RewardConfig(0.0, 1.0))
    return ImageRewardScorer(new_network(network, seed=0), config).eval().requires_grad_(False)


def small_diffusion(side: int = 48) -> tuple[Any, dict[str, Any]]:
    """The layout of Stable Diffusion with narrow layers, large enough that activations are most of the memory."""
    torch.manual_seed(0)
    pipe = tiny_pipelines.stable_diffusion()
    pipe.unet = diffusers.UNet2DConditionModel(
        sample_size=side // 2,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=tiny_pipelines.WIDTH,
    )
    for part in tiny_pipelines.parts(pipe).values():
        part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"height": side, "width": side, "guidance_scale": 1.0}


# --- methods -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    rollout: methods.Rollout
    checkpointed: bool
    """Denoiser and decoder."""
    lora_rank: int
    """0 trains all weights of the denoiser."""


FULL, SPARSE = methods.Rollout(STEPS, frozenset(range(STEPS))), methods.sparse(STEPS, 2, random.Random(0))
WAYS = {
    f"{name}, {what}": Way(rollout, checkpointed, rank)
    for what, rank in (("LoRA", 4), ("all weights", 0))
    for name, rollout, checkpointed in (("full", FULL, False), ("sparse", SPARSE, True))
}


def checkpoint(pipe: Any) -> None:
    for part in (*denoisers_of(pipe), pipe.vae):
        part.enable_gradient_checkpointing()


def step(
    pipe: Any, scorer: Any, rollout: methods.Rollout, weights: Sequence[nn.Parameter], arguments: dict[str, Any], autocast: Any = None
) -> None:
    """The gradient of one image's reward."""
    with autocast or nullcontext():
        (pixels,) = methods.images(pipe, rollout, ["a cat"], [0], **arguments)
    objectives.negative(scorer.rewards(["a cat"], pixels.float())).sum().backward()
    assert any(weight.grad is not None for weight in weights)
    for weight in weights:
        weight.grad = None


def measure_way(name: str, repeats: int) -> dict[str, float]:
    """In a process of its own: bytes by which the resident memory rises, bytes that autograd saves, and seconds of a step.

    The seconds are of the processor, which other programs on the machine change less than those of a clock.
    """
    way = WAYS[name]
    pipe, arguments = small_diffusion()
    scorer = small_scorer()
    weights = lora.attach(pipe, way.lora_rank, way.lora_rank) if way.lora_rank else list(pipe.unet.requires_grad_(True).parameters())
    if way.checkpointed:
        checkpoint(pipe)
    with torch.no_grad():  # whatever the first call allocates once
        sample(pipe, "a cat", steps=1, grad_steps=0, seed=0, **arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(pipe, scorer, way.rollout, weights, arguments)
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        step(pipe, scorer, way.rollout, weights, arguments)
        seconds.append(time.process_time() - start)
    own = set().union(*map(memory.storages, [*tiny_pipelines.parts(pipe).values(), scorer]))
    with memory.saved_tensors(own) as saved:
        step(pipe, scorer, way.rollout, weights, arguments)
    return {"resident": rise, "saved": saved.num_bytes, "seconds": statistics.median(seconds)}


def methods_section(arguments: argparse.Namespace) -> None:
    """Each way in turns, so that all see the machine alike.

    Full backpropagation takes a forward and a backward pass of each of 20 steps; sparse takes 20 forward passes, and recomputes and
    differentiates two. With LoRA a backward pass takes about as long as a forward pass, since frozen weights need no gradient: 24 passes of
    40 are left, 0.6 of the time.
    """
    results: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(arguments.rounds):
        for name in WAYS:
            command = [sys.executable, __file__, "--way", name, "--repeats", str(arguments.repeats), "--threads", str(arguments.threads)]
            results[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
    medians = {name: {key: statistics.median(each[key] for each in rows) for key in rows[0]} for name, rows in results.items()}
    print(f"{STEPS} denoising steps, 48 px, LoRA of rank 4 or all weights, float32, {arguments.threads} threads")
    for name, values in medians.items():
        print(
            f"  {name:19}  peak of resident memory +{values['resident'] / 2**20:7.1f} MiB   "
            f"saved tensors {values['saved'] / 2**20:7.1f} MiB   {values['seconds']:.2f} processor s a step"
        )
    for what in ("LoRA", "all weights"):
        full, sparse = medians[f"full, {what}"], medians[f"sparse, {what}"]
        print(
            f"  sparse with checkpointing / full backpropagation, {what}: memory "
            f"{verdict(sparse['resident'] / full['resident'], most=MOST_MEMORY)}, saved tensors {sparse['saved'] / full['saved']:.3f}, "
            f"seconds {verdict(sparse['seconds'] / full['seconds'], most=MOST_SECONDS)}"
        )


def verdict(value: float, most: float | None = None, least: float | None = None) -> str:
    held = (most is None or value <= most) and (least is None or value >= least)
    limit = f"at most {most}" if most is not None else f"at least {least}"
    return f"{value:.3f} ({limit}: {'held' if held else 'NOT HELD'})"


# --- the best of N -------------------------------------------------------------------------------------------------------------------


def best_of_section(arguments: argparse.Namespace) -> None:
    """``best_of`` against a loop over the pipeline and ``score`` of image-reward 1.5's names, with the same scorer, in processor time."""
    pipe, own = tiny_pipelines.build("stable_diffusion")
    pipe.set_progress_bar_config(disable=True)
    scorer, model = ir.load("ImageReward-mini", "cpu"), ImageReward.load("ImageReward-mini", device="cpu")
    options = {**own, "num_inference_steps": STEPS, "height": 64, "width": 64}
    prompt, n = "a red circle", 8

    def by_loop() -> int:
        images = [pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0] for seed in range(n)]
        rewards = [model.score(prompt, image) for image in images]
        return max(range(n), key=rewards.__getitem__)

    def together() -> int:
        return ir.best_of(pipe, prompt, n, model=scorer, **options).index

    ways: dict[str, Callable[[], int]] = {"a loop, and 1.5's score": by_loop, "best_of": together}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    winners: dict[str, int] = {}
    for turn in range(arguments.rounds + 1):
        for name, work in ways.items():
            start = time.process_time()
            winners[name] = work()
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - start)
    rates = {name: n / statistics.median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"  {name:22}  {rate:6.2f} images/s   winner: seed {winners[name]}")
    loop, best = rates.values()
    same = "the same winner" if len(set(winners.values())) == 1 else "ANOTHER WINNER"
    print(f"  best_of / loop: {verdict(best / loop, least=LEAST_RATE)}, {same}")


# --- the memory that is foretold -----------------------------------------------------------------------------------------------------


def dry_run_section(_: argparse.Namespace) -> None:
    """``--dry-run`` against the tensors that autograd saves in a real step."""
    config = Tuning(denoising_steps=4, lora_rank=4, reward=("a",), margin_weight=0.0)
    for name in tiny_pipelines.PIPELINES:
        pipe, own = tiny_pipelines.build(name)
        scorer = small_scorer()
        settings = {key: value for key, value in own.items() if hasattr(config, key)}
        rest = {key: value for key, value in own.items() if key not in settings}
        estimate = memory.estimate(Tuning(**vars(config) | settings), pipe=pipe, scorers={"a": scorer}, **rest)
        weights = lora.attach(pipe, 4, 4)
        for part in (*denoisers_of(pipe), pipe.vae):
            if part._supports_gradient_checkpointing:
                part.enable_gradient_checkpointing()
        rollout = methods.rollout(config.resolved(), random.Random(0))
        own_storages = set().union(*map(memory.storages, [*tiny_pipelines.parts(pipe).values(), scorer]))
        with memory.saved_tensors(own_storages) as saved:
            step(pipe, scorer, rollout, weights, own)
        foretold = sum(part.num_bytes for part in estimate.parts if part.kind == "activations")
        error = abs(foretold / saved.num_bytes - 1)
        print(f"  {name:20}  foretold {foretold:9,}  counted {saved.num_bytes:9,} bytes   error {verdict(error, most=MOST_ERROR)}")


# --- the shapes generator ------------------------------------------------------------------------------------------------------------

RECIPE = Path(__file__).parents[1] / "examples" / "tune_shapes.toml"
IMAGES_PER_PROMPT = 24  # of 45 held-out prompts: 1,080 images
UNGUARDED: dict[str, Any] = {
    "method": "refl",
    "objective": "negative",
    "reward_weight": 1.0,
    "margin_weight": 0.0,
    "pretraining_weight": 0.0,
    "ema": 0.0,
    "max_steps": 96,
    "batch_images": 8,
    "micro_images": 8,
    "evaluate_every": 12,
    "save_every": 12,
    "keep_checkpoints": 1,
}
"""ReFL with nothing but the reward."""
UNGUARDED_RATES = (1e-2, 3e-3)


def shapes_section(arguments: argparse.Namespace) -> None:
    """The judge's penalty points of images for held-out prompts of one object, with the same noises for every generator.

    Intervals are of resampled prompts; those of all seeds are of the mean over the seeds. The monitors watch training prompts here.
    """
    folder = Path(arguments.shapes_output)
    recipe = replace(read_toml(RECIPE, Tuning()), log_every=10)
    untrained = build()
    untrained.vae = load_pipeline("shapes-generator", device="cpu").vae
    never = _points(folder / "untrained.json", lambda: untrained, recipe)
    before = _points(folder / "untuned.json", lambda: load_pipeline("shapes-generator", device="cpu"), recipe)
    _print_points("random denoiser", never)
    _print_points("untuned", before)
    print(f"  untuned / random denoiser: {verdict(float(np.mean(before) / np.mean(never)), most=MOST_POINTS)}")

    points = []
    for seed in arguments.seeds:
        output = folder / f"guarded-{seed}"
        result = tune(replace(recipe, output=str(output), seed=seed))
        print(f"  guarded, seed {seed}: kept step {result.kept_step} of {result.steps}. {result.verdict}")
        points.append(_points(folder / f"{output.name}.json", lambda result=result: _with_lora(Path(result.model)), recipe))  # type: ignore[misc]
        _print_points(f"guarded, seed {seed}", points[-1], {"untuned": before})
    # The recipe has no loss but the reward's, so that without it nothing is trained, which is refused: the generator is the untuned one.
    held = _print_points("guarded, all seeds", np.mean(points, axis=0), {"untuned and without the reward": before})
    print(f"  lower than without the reward, interval excludes 0: {'held' if held else 'NOT HELD'}", flush=True)

    for lr in UNGUARDED_RATES:
        output = folder / f"unguarded-{lr:g}"
        result = tune(replace(recipe, output=str(output), lr=lr, **UNGUARDED))
        print(f"  unguarded ReFL, lr {lr:g}: ended after step {result.steps}, step {result.kept_step} is kept. {result.verdict}")
        print(f"  stopped within 100 steps: {'yes' if result.stopped else 'no'}")
        ends = {"at its end": output / f"checkpoint-{result.steps}"} | ({"kept": Path(result.model)} if result.stopped else {})
        for name, weights in ends.items():
            own = _points(folder / f"{output.name} {name}.json", lambda weights=weights: _with_lora(weights), recipe)  # type: ignore[misc]
            _print_points(f"unguarded ReFL, lr {lr:g}, {name}", own, {"untuned": before})
    if arguments.grid:
        tuned = _with_lora(folder / f"guarded-{arguments.seeds[0]}" / "lora")
        _save_grid(arguments.grid, [load_pipeline("shapes-generator", device="cpu"), tuned], recipe)


def _prompts() -> list[str]:
    return [spec.prompt for spec in prompt_specs("one", "test")] * IMAGES_PER_PROMPT


def _points(path: Path, pipeline: Callable[[], Any], config: Tuning, batch_size: int = 60) -> Any:
    """[N] points; kept in a file, with the faults and the rewards, so that an interrupted measurement continues."""
    if not path.exists():
        pipe, prompts = pipeline(), _prompts()
        pipe.set_progress_bar_config(disable=True)
        scorer = ir.load("ImageReward-mini", "cpu")
        images: list[Any] = []
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            generators = [torch.Generator().manual_seed(10_000 + start + i) for i in range(len(batch))]
            options = {"num_inference_steps": config.denoising_steps, "guidance_scale": config.guidance_scale}
            images += pipe(batch, generator=generators, **options).images
        verdicts = [judge(prompt, image) for prompt, image in zip(prompts, images, strict=True)]
        faults = Counter(fault for each in verdicts for fault in set(each.names))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"points": [each.points for each in verdicts], "rewards": scorer.score(prompts, images), "faults": dict(faults)})
        )
    values = json.loads(path.read_text())
    shares = ", ".join(f"{fault} {count / len(values['points']):.0%}" for fault, count in Counter(values["faults"]).most_common())
    print(f"  {path.stem}: reward {np.mean(values['rewards']):+.2f}, faultless {np.mean(np.equal(values['points'], 0)):.0%}; {shares}")
    return np.array(values["points"], dtype=float)


def _with_lora(folder: Path) -> Any:
    pipe = load_pipeline("shapes-generator", device="cpu")
    pipe.load_lora_weights(str(folder))
    return pipe


def _save_grid(path: Path, pipes: Sequence[Any], config: Tuning, rows: int = 4, columns: int = 8) -> None:
    """A picture: two rows of images for every tenth held-out prompt, before and after, with the same noises."""
    sheets = []
    for prompt in [spec.prompt for spec in prompt_specs("one", "test")][5::10][:rows]:
        for pipe in pipes:
            generators = [torch.Generator().manual_seed(seed) for seed in range(columns)]
            options = {"num_inference_steps": config.denoising_steps, "guidance_scale": config.guidance_scale}
            sheets.append(np.concatenate(list(pipe([prompt] * columns, generator=generators, output_type="np", **options).images), axis=1))
        sheets.append(np.ones((8, sheets[-1].shape[1], 3)))
        print(f"  {prompt}")
    picture = Image.fromarray((np.concatenate(sheets[:-1]) * 255).round().astype(np.uint8))
    picture.quantize(128).save(path, optimize=True)


def _print_points(name: str, points: Any, baselines: dict[str, Any] | None = None) -> bool:
    """Whether the points are below those of each baseline, beyond chance."""
    low, high = metrics.interval(metrics.bootstrap(points, groups=_prompts()))
    line = f"  {name:34} {points.mean():.2f} [{low:.2f}, {high:.2f}] points"
    below = True
    for baseline, own in (baselines or {}).items():
        low, high = metrics.interval(metrics.bootstrap(points - own, groups=_prompts()))
        line += f"; less {baseline}: {(points - own).mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        below = below and high < 0
    print(line, flush=True)
    return below


# --- a GPU ---------------------------------------------------------------------------------------------------------------------------


def sd15() -> tuple[Any, dict[str, Any]]:
    return _layout(xl=False), {"height": 512, "width": 512}


def sdxl() -> tuple[Any, dict[str, Any]]:
    return _layout(xl=True), {"height": 1024, "width": 1024}


LAYOUTS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "SD 1.5": sd15,
    "SDXL": sdxl,
    "tiny": lambda: (tiny_pipelines.stable_diffusion(), {"height": 16, "width": 16}),  # to try this section without a GPU
}


def _layout(xl: bool) -> Any:
    """The published sizes of denoiser and decoder, with random weights; text encoders are tiny, since they are freed in a run."""
    torch.manual_seed(0)
    pipe = (tiny_pipelines.stable_diffusion_xl if xl else tiny_pipelines.stable_diffusion)()
    sizes: dict[str, Any] = {"sample_size": 64, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)}
    if xl:
        sizes = {
            "sample_size": 128,
            "attention_head_dim": (5, 10, 20),
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": tiny_pipelines.WIDTH + 6 * 256,
        }
    pipe.unet = diffusers.UNet2DConditionModel(cross_attention_dim=tiny_pipelines.WIDTH * (2 if xl else 1), **sizes)
    pipe.vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
        force_upcast=False,
    )
    pipe.vae_scale_factor = 8
    pipe.image_processor = diffusers.image_processor.VaeImageProcessor(vae_scale_factor=8)
    return pipe


def gpu_section(arguments: argparse.Namespace) -> None:
    """Seconds and GiB of a step by method, LoRA of rank 16 in bfloat16 with checkpointing, beside the original's loop."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        print("  not measured: there is no CUDA device here")
        return
    print(f"  on {torch.cuda.get_device_name() if device == 'cuda' else device}")
    for name in arguments.layouts:
        for method in ("the original's loop", "refl", "draft", "sparse"):
            seconds, peak, foretold = _on_device(name, method, device, arguments.repeats)
            memories = "" if peak is None else f"   {peak / 2**30:6.2f} GiB"
            if foretold is not None and peak is not None:
                memories += f", foretold {foretold / 2**30:6.2f}: error {verdict(abs(foretold / peak - 1), most=MOST_ERROR)}"
            print(f"  {name:7} {method:20} {seconds:8.2f} s a step{memories}")


def _on_device(name: str, method: str, device: str, repeats: int) -> tuple[float, int | None, int | None]:
    """Median seconds, the peak of allocated bytes on a GPU, and what ``--dry-run`` foretells, for one image."""
    pipe, size = LAYOUTS[name]()
    original = method == "the original's loop"
    for part in tiny_pipelines.parts(pipe).values():
        part.requires_grad_(False).eval().to(device, torch.float32 if original and part is pipe.unet else torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    scorer = small_scorer().to(device)
    config = Tuning(
        method="refl" if original else method,  # type: ignore[arg-type]
        reward=("a",),
        lora_rank=0 if original else 16,
        margin_weight=0.0,
        pretraining_weight=0.0,
        precision="bf16",
        ema=0.0,
        gradient_checkpointing=not original,
        batch_images=1,
        **size,
    ).resolved()
    foretold = None if original else memory.estimate(config, pipe=pipe, scorers={"a": scorer}).peak
    if original:
        pipe.unet.requires_grad_(True)
        weights = list(pipe.unet.parameters())
    else:
        weights = lora.attach(pipe, 16, 16)
        checkpoint(pipe)
    call = {**size, **({"guidance_scale": config.guidance_scale} if config.guidance_scale is not None else {})}
    optimizer = torch.optim.AdamW(weights, lr=1e-5)
    draws = random.Random(0)
    seconds = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats + 1):
        start = time.perf_counter()
        rollout = methods.rollout(config, draws)
        for repeat in range(rollout.repeats):
            with torch.autocast(device, torch.bfloat16, cache_enabled=False):
                pixels = next(methods.images(pipe, rollout, ["a cat"], [repeat], **call))
            objectives.negative(scorer.rewards(["a cat"], pixels.float())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    del pipe, scorer, weights, optimizer
    if device == "cuda":
        torch.cuda.empty_cache()
    return statistics.median(seconds[1:]), peak, foretold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="steps that are timed in each round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="of the section gpu; to try it, cpu")
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=["SD 1.5", "SDXL"])
    parser.add_argument("--shapes-output", default="runs/benchmark-tuning", help="of the section shapes: its runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs of the section shapes")
    parser.add_argument("--grid", type=Path, help="of the section shapes: also save a picture of before and after")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", "__array_", DeprecationWarning)  # schedulers of diffusers with NumPy 2
    if arguments.way:
        print(json.dumps(measure_way(arguments.way, arguments.repeats)))
        return
    sections = {
        "methods": methods_section,
        "best-of": best_of_section,
        "dry-run": dry_run_section,
        "shapes": shapes_section,
        "gpu": gpu_section,
    }
    for name in arguments.sections:
        print(f"{name}: {(sections[name].__doc__ or '').strip()}")
        sections[name](arguments)


if __name__ == "__main__":
    main()
