"""Make the shapes generator: a small text-to-image pipeline of Stable Diffusion's layout, trained from nothing on the shapes world.

torchrun --nproc-per-node 2 -m image_reward.tuning.shapes_generator  # `make tiny-generator`: less than an hour on two cores

It is the test bed of tuning: small enough for a laptop's processor, and its images can be judged exactly
(``comparisons.shapes_judge``). ``tuning.load_pipeline("shapes-generator")`` loads the one in the package, which this module has made.

First an autoencoder learns to bring faultless drawings of 64 x 64 px to latents of 8 x 8 and back; then a text encoder and a denoiser
learn together to predict v (Salimans and Ho 2022, arXiv 2202.00512) of noisy latents. At the last timestep nothing is left of the latents
(Lin et al. 2023, arXiv 2305.08891): the background's colour would show through otherwise. Prompts are those of the train split.

Processes share every batch, whose size is to be a multiple of their number, and draw the same random numbers, so that the number changes
rounding only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
import tyro
from torch import Tensor, nn

from image_reward.comparisons import shapes
from image_reward.comparisons.shapes_judge import judge
from image_reward.runs import MovingAverage, Progress, rate_factor, weight_groups
from image_reward.tuning.pipelines import load_pipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 64  # pixels
MAX_TOKENS = 24
LATENT_CHANNELS = 8
KINDS: dict[shapes.PromptKind, int] = {"one": 6, "count": 2, "relation": 2}
"""How often a kind of prompt is drawn in training, in tenths."""


@dataclass
class ShapesGenerator:
    """Train the shapes generator from nothing and save it as a folder of diffusers."""

    output: Path = Path("runs/shapes-generator")
    continue_from: Path | None = None
    """The folder of an earlier run, to train its networks on; --autoencoder-steps 0 leaves the autoencoder as it is."""
    seed: int = 0
    num_images: int = 24_000
    """Drawings that the denoiser learns from."""
    autoencoder_images: int = 16_000
    """Drawings that the autoencoder learns from."""
    autoencoder_steps: int = 3_100
    autoencoder_batch: int = 16
    autoencoder_lr: float = 2e-3
    kl_weight: float = 1e-3
    """How much a latent's mean divergence from the standard normal distribution counts beside the mean absolute error of a pixel."""
    steps: int = 9_000
    batch_size: int = 32
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    ema: float = 0.998
    unconditional: float = 0.1
    """The share of images that are learnt without their prompt, for guidance."""
    widths: tuple[int, int] = (64, 128)
    """Channels of the denoiser at 8 x 8 and 4 x 4."""
    log_every: int = 100
    evaluate_every: int = 500
    """Steps between checkpoints, each with the judge's points of held-out prompts."""
    evaluation_images: int = 45

    def run(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.seed)
        pipe = build(self.widths) if self.continue_from is None else load_pipeline(self.continue_from, device="cpu")
        if self.autoencoder_steps:
            train_autoencoder(pipe, self)
        train_denoiser(pipe, self)

    def evaluates_after(self, step: int, steps: int) -> bool:
        """Whether this process saves and evaluates after a step, counted from 0."""
        return process()[0] == 0 and ((step + 1) % self.evaluate_every == 0 or step + 1 == steps)


# --- processes -----------------------------------------------------------------------------------------------------------------------


def process() -> tuple[int, int]:
    """This one's number, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _share(batch: Tensor) -> Tensor:
    """This process's rows."""
    number, total = process()
    return batch[number::total]


def _update(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], loss: Tensor) -> float:
    """A step of the optimizer down the gradient of the mean loss of all processes, which is returned."""
    loss.backward()
    value = loss.detach()
    if dist.is_initialized():
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        sums = torch.cat([value.view(1), *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(sums)
        sums /= process()[1]
        value = sums[0]
        for gradient, mean in zip(gradients, sums[1:].split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(value)


# --- networks ------------------------------------------------------------------------------------------------------------------------


def tokenizer() -> Any:
    """CLIP's tokenizer with a token for every word of the world's prompts, and letters for the rest: byte-pair encoding (Sennrich et al.
    2016, arXiv 1508.07909) of the words until each is one token."""
    words = {word for spec in _specs_of_every_word() for word in spec.prompt.split()}
    spelled = {word: (*word[:-1], f"{word[-1]}</w>") for word in sorted(words)}
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in spelled.values() for pair in pairwise(parts)):
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((first, second))
        vocabulary.append(first + second)
        spelled = {word: tuple(_merged(parts, first, second)) for word, parts in spelled.items()}
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, model_max_length=MAX_TOKENS)


def _specs_of_every_word() -> list[shapes.PromptSpec]:
    two = [
        shapes.PromptSpec((spec.objects[0], shapes.SceneObject("circle", "red")), relation=relation)
        for spec in shapes.prompt_specs()[:1]
        for relation in shapes.RELATIONS
    ]
    return [*shapes.prompt_specs("one"), *shapes.prompt_specs("count"), *two]


def _merged(parts: Sequence[str], first: str, second: str) -> Iterator[str]:
    rest = list(parts)
    while rest:
        part = rest.pop(0)
        if rest and (part, rest[0]) == (first, second):
            part += rest.pop(0)
        yield part


def build(widths: tuple[int, int] = (64, 128)) -> Any:
    """The pipeline with random weights, decided by PyTorch's generator."""
    import diffusers

    words = tokenizer()
    width = 64
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=width,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 64),
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIDE,
        mid_block_add_attention=False,
        force_upcast=False,
        scaling_factor=1.0,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=width,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # which trailing spacing ignores, and Stable Diffusion must have
    )
    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in parts(pipe).values():
        part.eval()
    return pipe


# --- drawings ------------------------------------------------------------------------------------------------------------------------


def training_specs(number: int, seed: int) -> list[shapes.PromptSpec]:
    """Prompts of the train split, in the shares of ``KINDS``."""
    draws = np.random.Generator(np.random.PCG64(seed))
    kinds = draws.choice(list(KINDS), number, p=np.array(list(KINDS.values())) / sum(KINDS.values()))
    places = draws.random(number)
    specs = [shapes.prompt_specs(kind, "train") for kind in kinds]
    return [each[int(place * len(each))] for each, place in zip(specs, places, strict=True)]


def drawings(specs: Sequence[shapes.PromptSpec], seed: int) -> Tensor:
    """A faultless drawing for each prompt, [N, 3, 64, 64] uint8; number i depends on ``seed`` and i."""
    pixels = np.stack([shapes.draw(shapes.faultless(spec, seed, i, size=SIDE)) for i, spec in enumerate(specs)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _to_range(pixels: Tensor) -> Tensor:
    """uint8 -> [-1, 1]"""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


# --- training ------------------------------------------------------------------------------------------------------------------------


def train_autoencoder(pipe: Any, config: ShapesGenerator) -> None:
    """Train it, and save the pipeline at each evaluation."""
    vae = pipe.vae
    pixels = drawings(training_specs(config.autoencoder_images, config.seed + 1), config.seed + 1)
    vae.train().to(memory_format=torch.channels_last)
    weights = list(vae.parameters())
    optimizer = torch.optim.AdamW(weights, lr=config.autoencoder_lr, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    rng = torch.Generator().manual_seed(config.seed)
    progress = Progress(0, config.autoencoder_steps, shown=process()[0] == 0)
    losses: list[float] = []
    for step in range(config.autoencoder_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.autoencoder_lr * rate_factor(step, config.autoencoder_steps, config.warmup_steps, "cosine")
        batch = _to_range(_share(pixels[torch.randint(len(pixels), [config.autoencoder_batch], generator=rng)]))
        distribution = vae.encode(batch).latent_dist
        noise = _share(torch.randn(config.autoencoder_batch, *distribution.mean.shape[1:], generator=rng))
        error = F.l1_loss(vae.decode(distribution.mean + distribution.std * noise).sample, batch)
        divergence = distribution.kl().mean() / distribution.mean[0].numel()
        losses.append(_update(optimizer, weights, error + config.kl_weight * divergence))
        due = (step + 1) % config.log_every == 0
        values = f"loss {fmean(losses[-config.log_every :]):.4f} error {error.item():.4f} divergence {divergence.item():.2f}"
        progress.step(step + 1, config.autoencoder_batch, values, due)
        if config.evaluates_after(step, config.autoencoder_steps):
            save(pipe, config.output)
    vae.eval()


def train_denoiser(pipe: Any, config: ShapesGenerator) -> None:
    """Train denoiser and text encoder, and save the pipeline with their moving averages at each evaluation."""
    specs = training_specs(config.num_images, config.seed + 2)
    latents = _encoded(pipe.vae, specs, config.seed + 2)
    pipe.vae.register_to_config(scaling_factor=float(1 / latents.std()))
    latents = latents * pipe.vae.config.scaling_factor
    ids, empty = token_ids(pipe.tokenizer, [spec.prompt for spec in specs]), token_ids(pipe.tokenizer, [""])
    alphas = pipe.scheduler.alphas_cumprod
    num_levels = len(alphas)
    pipe.unet.train().to(memory_format=torch.channels_last)
    pipe.text_encoder.train()
    weights = [*pipe.unet.parameters(), *pipe.text_encoder.parameters()]
    optimizer = torch.optim.AdamW(weight_groups(weights, config.lr, config.weight_decay), betas=(0.9, 0.99), fused=True)
    averages = MovingAverage(weights, config.ema)
    rng = torch.Generator().manual_seed(config.seed)
    progress = Progress(0, config.steps, shown=process()[0] == 0)
    losses: list[float] = []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate_factor(step, config.steps, config.warmup_steps, "cosine")
        rows = torch.randint(len(latents), [config.batch_size], generator=rng)
        noise = torch.randn(config.batch_size, *latents.shape[1:], generator=rng)
        # One timestep from each of as many equal parts of the range as there are images, which makes losses of batches alike.
        places = torch.arange(config.batch_size) + torch.rand(config.batch_size, generator=rng)
        timesteps = (places * (num_levels / config.batch_size)).long().clamp(max=num_levels - 1)
        unconditional = torch.rand(config.batch_size, 1, generator=rng) < config.unconditional
        rows, noise, timesteps, unconditional = (_share(each) for each in (rows, noise, timesteps, unconditional))
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in (alphas[timesteps].sqrt(), (1 - alphas[timesteps]).sqrt()))
        noisy = (alpha * latents[rows] + sigma * noise).contiguous(memory_format=torch.channels_last)
        states = pipe.text_encoder(torch.where(unconditional, empty, ids[rows]))[0]
        prediction = pipe.unet(noisy, timesteps, encoder_hidden_states=states).sample
        losses.append(_update(optimizer, weights, F.mse_loss(prediction, alpha * noise - sigma * latents[rows])))
        averages.update(step)
        due = (step + 1) % config.log_every == 0
        progress.step(step + 1, config.batch_size, f"loss {fmean(losses[-config.log_every :]):.4f}", due)
        if config.evaluates_after(step, config.steps):
            with averages.in_place():
                pipe.unet.eval()
                pipe.text_encoder.eval()
                save(pipe, config.output)
                points = held_out_points(pipe, config.evaluation_images)
            pipe.unet.train()
            pipe.text_encoder.train()
            progress.say(f"step {step + 1}: {fmean(points):.2f} penalty points on held-out prompts of one object")


@torch.no_grad()
def _encoded(vae: Any, specs: Sequence[shapes.PromptSpec], seed: int) -> Tensor:
    """Latents [N, C, 8, 8] of a drawing for each prompt. Each process makes its part."""
    size = 64
    latents = torch.zeros(len(specs), LATENT_CHANNELS, SIDE // 8, SIDE // 8)
    number, total = process()
    for start in range(number * size, len(specs), total * size):
        rows = slice(start, start + size)
        latents[rows] = vae.encode(_to_range(drawings(specs[rows], seed + start))).latent_dist.mean
    if dist.is_initialized():
        dist.all_reduce(latents)
    return latents


def token_ids(words: Any, prompts: Sequence[str]) -> Tensor:
    """[B, MAX_TOKENS], as the pipeline makes them."""
    return words(list(prompts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids


def save(pipe: Any, folder: Path) -> None:
    """In float16, which halves the files; it is loaded as float32 all the same."""
    halved = {name: deepcopy(part).half() for name, part in parts(pipe).items()}
    type(pipe)(**(pipe.components | halved), requires_safety_checker=False).save_pretrained(folder)
    # Without a dtype, diffusers loads float32, but transformers what its configuration says, and the two would not fit.
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def parts(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


# --- evaluation ----------------------------------------------------------------------------------------------------------------------


def held_out_images(
    pipe: Any, number: int, *, kind: shapes.PromptKind = "one", steps: int = 8, guidance_scale: float = 3.0, batch_size: int = 64
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Held-out prompts, which take turns, with an image [H, W, 3] each; image i has the seed i."""
    specs = shapes.prompt_specs(kind, "test")
    stride = max(1, len(specs) // number)
    prompts = [specs[i * stride % len(specs)].prompt for i in range(number)]
    images: list[NDArray[np.uint8]] = []
    for start in range(0, number, batch_size):
        batch = prompts[start : start + batch_size]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        made = pipe(batch, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators, output_type="np").images
        images += list((made * 255).round().astype(np.uint8))
    return list(zip(prompts, images, strict=True))


def held_out_points(pipe: Any, number: int, **arguments: Any) -> list[int]:
    """The judge's penalty points of ``held_out_images``."""
    return [judge(prompt, image).points for prompt, image in held_out_images(pipe, number, **arguments)]


if __name__ == "__main__":
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    tyro.cli(ShapesGenerator).run()
