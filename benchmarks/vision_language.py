"""What sharing saves HPSv3, and what loading it costs: random weights from a seed, of the widths of published networks and fewer layers.

    python benchmarks/vision_language.py                               # every section, widths of a network of 2 billion weights
    python benchmarks/vision_language.py --size tiny --sections images
    python benchmarks/vision_language.py --full --sections images      # all layers of Qwen2-VL-2B, in bfloat16, which takes minutes

Of a row, everything up to the prompt is the same for all prompts of an image, and is computed once for them ("prompts"). Of the images
of one prompt hardly anything is, because the instruction comes after the image and looks at it ("images"): what a batch gains there is
what one call costs besides multiplying.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from scoring import interleaved, make_images, make_prompts, processor, seconds

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
Section = Literal["images", "prompts", "memory"]
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "2b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14},
    },
}
"""Besides layers and vocabulary."""
MEMORY = """
import os, sys, threading, torch
import transformers.models.qwen2_vl.modeling_qwen2_vl
from image_reward.scorers.hpsv3 import HPSv3Files, hpsv3_from_files
def resident(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
from pathlib import Path
small = hpsv3_from_files(HPSv3Files.in_folder(Path(sys.argv[2])))  # imports what loading imports
before = resident("VmRSS:")
scorer = hpsv3_from_files(HPSv3Files.in_folder(Path(sys.argv[1])), dtype=getattr(torch, sys.argv[3]))
weights = sum(weight.numel() * weight.element_size() for weight in scorer.parameters())
print(resident("VmHWM:") - before, weights)
"""


@dataclass
class Benchmark:
    sections: tuple[Section, ...] = ("images", "prompts", "memory")
    size: Literal["tiny", "2b"] = "2b"
    layers: int = 4
    """Of the text model, and of the image tower."""
    num: int = 8
    """Images of one prompt, and prompts of one image."""
    repeats: int = 3
    threads: int = 2
    full: bool = False
    """All 28 and 32 layers of Qwen2-VL-2B, made in memory in bfloat16; each way is run once. Not for the section memory."""

    def run(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        layers = "all layers" if self.full else f"{self.layers} layers"
        print(f"{processor()}, {self.threads} threads, PyTorch {torch.__version__}, {self.size}, {layers}\n")
        if self.full and (self.size != "2b" or "memory" in self.sections):
            raise SystemExit("--full is of size 2b, and for the sections images and prompts")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / self.size
            folder.mkdir()
            if not self.full:
                make_model(folder, self.size, self.layers)
            for section in self.sections:
                globals()[f"measure_{section}"](self, folder)

    def scorer(self, folder: Path) -> Any:
        import image_reward as ir

        return full_scorer(folder, self.num) if self.full else ir.load(folder, "cpu", "float32", batch_size=self.num)


def make_files(folder: Path, size: str, layers: int, vision_layers: int) -> Any:
    """Config and tokenizer; the config as HPSv3 has it."""
    from transformers import Qwen2VLConfig

    import qwen

    folder.mkdir(exist_ok=True)
    merges = json.loads((TESTS / "data" / "hpsv3_tiny.json").read_text(encoding="utf-8"))["merges"]
    num_tokens = max(qwen.tokenizer(merges).get_vocab().values()) + 1
    values = qwen.config(num_tokens, num_hidden_layers=layers, **SIZES[size])
    values["vision_config"]["depth"] = vision_layers
    (folder / "config.json").write_text(json.dumps(values))
    qwen.tokenizer_file(folder, merges)
    config = Qwen2VLConfig(**values)
    config.text_config.vocab_size = num_tokens + 1
    return config


def full_scorer(folder: Path, batch_size: int) -> Any:
    """With a random weight of each place made where it stays, because a copy of all would not fit beside them."""
    import torch
    from torch import nn

    from image_reward.scorers.hpsv3 import NUM_PIXELS, REWARD_TOKEN, HPSv3Scorer, chat_text, empty_hpsv3
    from image_reward.scorers.vision_language import ChatTemplate, ImagePatches, VisionLanguageProcessor

    network = empty_hpsv3(make_files(folder, "2b", 28, 32))
    drawn = torch.randn((1 << 22) + 3, generator=torch.Generator().manual_seed(7))
    for name, weight in list(network.named_parameters()):
        values = torch.empty(weight.shape, dtype=torch.float32 if name.startswith("rm_head") else torch.bfloat16)
        scale, mean = 0.02 if weight.ndim < 2 else weight.shape[1:].numel() ** -0.5, float("norm" in name and name.endswith("weight"))
        for part in values.view(-1).split(len(drawn)):
            part.copy_(drawn[: len(part)] * scale + mean)
        module, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(module), leaf, nn.Parameter(values, requires_grad=False))
    template = ChatTemplate.from_file(folder / "tokenizer.json", chat_text(), new_tokens=(REWARD_TOKEN,), last_token=REWARD_TOKEN)
    scorer = HPSv3Scorer(network, VisionLanguageProcessor(ImagePatches(NUM_PIXELS, NUM_PIXELS), template)).eval()
    scorer.batch_size = batch_size
    return scorer


def make_model(folder: Path, size: str, layers: int) -> Path:
    """An HPSv3 of random weights, in bfloat16 but for its head, as published."""
    import torch
    from safetensors.torch import save_file

    from image_reward.scorers.hpsv3 import empty_hpsv3

    config = make_files(folder, size, layers, layers)
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, tensor in empty_hpsv3(config).state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator) * (0.02 if tensor.ndim < 2 else tensor.shape[1:].numel() ** -0.5)
        drawn = drawn + 1 if "norm" in name and name.endswith("weight") else drawn
        published = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        tensors[published] = drawn if name.startswith("rm_head") else drawn.bfloat16()
    tensors["lm_head.weight"] = torch.zeros(config.text_config.vocab_size, config.text_config.hidden_size, dtype=torch.bfloat16)
    save_file(tensors, folder / "HPSv3.safetensors")
    return folder


def measure_images(b: Benchmark, folder: Path) -> None:
    measure(b, folder, [make_prompts(1)[0]] * b.num, make_images(folder, b.num), f"{b.num} images of one prompt")


def measure_prompts(b: Benchmark, folder: Path) -> None:
    measure(b, folder, make_prompts(b.num), make_images(folder, 1) * b.num, f"{b.num} prompts of one image")


def measure(b: Benchmark, folder: Path, prompts: list[str], images: list[str], title: str) -> None:
    scorer = b.scorer(folder)
    rewards: dict[str, list[float]] = {}

    def one_by_one() -> None:
        rewards["one by one"] = [scorer.score(prompt, image) for prompt, image in zip(prompts, images, strict=True)]

    def together() -> None:
        rewards["together"] = scorer.score(prompts, images)

    ways = {"one by one": one_by_one, "together": together}
    taken = {}
    if b.full:
        scorer.score(prompts[:2], images[:2])  # which prepares the network for rows and batches of rows
        for name, work in ways.items():
            started = time.process_time()
            taken[name] = seconds(work)
            print(f"  {name}: {taken[name]:.1f} s, of processors {time.process_time() - started:.1f} s", flush=True)  # it may be shared
    else:
        taken = interleaved(b.repeats, **ways)
    apart = max(abs(a - c) for a, c in zip(*rewards.values(), strict=True))
    print(f"{title}, {'bfloat16' if b.full else 'float32'}")
    print(
        f"  one by one {taken['one by one']:7.2f} s   together {taken['together']:7.2f} s   {taken['one by one'] / taken['together']:.2f}x"
    )
    print(f"  rewards differ by at most {apart:.1e}; their standard deviation is {statistics.pstdev(rewards['together']):.2f}\n")


def measure_memory(b: Benchmark, folder: Path) -> None:
    small = make_model(folder.parent / "small", "tiny", 2)
    print("What loading adds to the resident memory of a process at its peak")
    for dtype in ("bfloat16", "float32"):
        output = subprocess.check_output(
            [sys.executable, "-c", MEMORY, str(folder), str(small), dtype], env=os.environ | {"OMP_NUM_THREADS": str(b.threads)}, text=True
        )
        peak, weights = map(int, output.split()[-2:])
        print(f"  {dtype}: {peak / 1e9:.2f} GB = {peak / weights:.3f}x the weights ({weights / 1e9:.2f} GB)")


if __name__ == "__main__":
    tyro.cli(Benchmark).run()
