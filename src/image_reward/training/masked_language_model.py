"""Masked language modelling: a network with random weights learns to match words and images, before it learns preferences.

A ranked pair carries one bit about two images; a prompt carries a dozen words about one. So the network first predicts masked tokens of a
prompt from the other tokens and from the image ranked best for it (the masked language modelling of ALBEF, Li et al. 2021, arXiv
2107.07651, eq. 3, from which BLIP developed), and `train` starts from there. Pretrained towers do not need it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from image_reward.addresses import Address
from image_reward.config import RewardConfig, ScorerConfig, TransformConfig
from image_reward.errors import InputError, TrainingError
from image_reward.models.blip import ImageRewardNetwork
from image_reward.models.initial import new_network, whiten_patches
from image_reward.prompts import PromptTokenizer, Tokens, long_prompt_warnings_suppressed, vocabulary_of
from image_reward.runs import Progress, adamw, end_processes, rate_factor, seed_step, weight_groups
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.training.config import MaskedLanguageTraining
from image_reward.training.data import MicroBatch, TrainingSteps, plan, select_usable
from image_reward.types import Comparison


@dataclass(frozen=True)
class PretrainingResult:
    """The outcome of a run; the model itself is in ``model``."""

    model: str
    """A folder that ``image_reward.load`` and ``RewardTraining.start`` take; its head is untrained."""
    steps: int
    accuracy: float
    """The share of masked tokens predicted correctly in the last hundred steps."""


class MaskedLanguageModel(nn.Module):
    """The network with an output layer over the tokens that occur in the data, whose weights are the token embeddings themselves."""

    vocabulary: Tensor

    def __init__(self, network: ImageRewardNetwork, vocabulary: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("vocabulary", vocabulary)
        self.bias = nn.Parameter(torch.zeros(len(vocabulary)))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor, masked: Tensor) -> Tensor:
        """Normalised pixels [I, 3, S, S]; ids with [MASK], attention mask and masked positions [N, L] -> logits [masked, vocabulary]."""
        hidden = self.network.encode_pairs(self.network.encode_images(pixels), ids, mask)[masked]
        embeddings = self.network.token_embeddings[self.vocabulary]
        # Of unit length: the LayerNorm that follows the embeddings hides their lengths from the network, so they must not count here.
        return F.linear(hidden, F.normalize(embeddings, dim=1), self.bias) * 4


def pretrain(config: MaskedLanguageTraining, comparisons: Sequence[Comparison]) -> PretrainingResult:
    """Pretrain a network from scratch on the best-ranked images of comparisons and write it to ``config.output``.

    Raises ``ValueError``, ``FileNotFoundError`` and ``TrainingError`` as ``train`` does; ``ValueError`` also if the output holds a model.
    """
    folder = Address.parse(config.output).local
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; use another output, or the model in it")
    accelerator = Accelerator(cpu=config.cpu or not torch.cuda.is_available())
    usable, notes = select_usable(comparisons, "pairwise", skip_unreadable=False)
    best = [
        replace(c, images=(image,), ranks=(1,), shares=None)
        for c in usable
        for image, rank in zip(c.images, c.ranks, strict=True)
        if rank == min(c.ranks)
    ]
    raw = RewardConfig(mean=0.0, std=1.0, reference=None)
    transform = TransformConfig(size=config.network.image_size)
    own_vocabulary = vocabulary_of(c.prompt for c in best) if config.own_vocabulary else None
    network = replace(config.network, vocab_size=len(own_vocabulary)) if own_vocabulary else config.network
    own = ScorerConfig(network=network, image=transform, max_tokens=config.max_tokens, vocabulary=own_vocabulary, reward=raw)
    scorer = ImageRewardScorer(new_network(network, config.seed), own, name=folder.name)
    scorer.network.mlp.requires_grad_(False)
    scorer.network.freeze_projections()

    process = (accelerator.process_index, accelerator.num_processes)
    all_images = TrainingSteps(best, scorer.prepare, "pairwise", config.batch_images, process, cache_mib=config.cache_mib)
    with long_prompt_warnings_suppressed():  # they have been reported
        tokens = scorer.prepare.tokenizer([c.prompt for c in best])
    steps = all_images.over(_plan(tokens, config))
    sample = torch.stack([scorer.prepare.transform(c.images[0]) for c in best[:1000]])
    whiten_patches(scorer.network, sample, config.seed)
    vocabulary = tokens.ids.unique()
    language_model = MaskedLanguageModel(scorer.network, vocabulary).to(accelerator.device)
    index_of = torch.zeros(network.vocab_size, dtype=torch.int64, device=accelerator.device)
    index_of[vocabulary] = torch.arange(len(vocabulary), device=accelerator.device)
    mask_id = PromptTokenizer(vocabulary=scorer.config.vocabulary).token_id("[MASK]")

    trained = [p for p in language_model.parameters() if p.requires_grad]
    optimizer = adamw(weight_groups(trained, config.lr, config.weight_decay), config.betas, accelerator.device)
    model, optimizer = accelerator.prepare(language_model, optimizer)

    progress = Progress(0, len(steps), accelerator.is_main_process)
    for note in notes:
        progress.say(note)
    progress.say(f"{len(best):,} images and {len(vocabulary):,} different tokens in {len(steps):,} steps")
    num_correct, num_masked = torch.zeros(100), torch.ones(100)  # of the last hundred steps
    model.train()
    for step, micro_batches in enumerate(steps.loader(config.workers)):
        seed_step(config.seed, step, process[0])
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate_factor(step, len(steps), config.warmup_steps, config.schedule)
        (micro,) = micro_batches
        pixels, ids, mask, masked = _masked(micro.to(accelerator.device), config)
        pixels = scorer.prepare.transform.normalize(pixels)
        logits = model(pixels, ids.masked_fill(masked, mask_id), mask, masked)
        targets = index_of[ids[masked]]
        loss = F.cross_entropy(logits, targets)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss of step {step + 1} is {loss.item()}; try a lower lr or a longer warm-up in a new folder")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        num_correct[step % 100], num_masked[step % 100] = int((logits.argmax(dim=1) == targets).sum()), len(targets)
        accuracy = float(num_correct.sum() / num_masked.sum())
        values = f"loss {loss.item():.4f}  masked tokens correct {accuracy:.3f}"
        progress.step(step + 1, len(pixels) * process[1], values, (step + 1) % config.log_every == 0)

    if accelerator.is_main_process:
        scorer.save_pretrained(folder)
    accelerator.wait_for_everyone()
    del model
    end_processes(accelerator)
    return PretrainingResult(str(folder), len(steps), accuracy)


def _plan(tokens: Tokens, config: MaskedLanguageTraining) -> list[list[int]]:
    """The images of each step: those with the shortest prompts for the first ``short_share`` of the steps, then all."""
    sizes = [1] * len(tokens.ids)
    num_short = round(config.steps * config.short_share)
    epochs = 1 + config.steps * config.batch_images // len(sizes)
    lengths = tokens.mask.sum(dim=1)
    short = (lengths <= lengths.float().quantile(0.4)).nonzero()[:, 0].tolist()
    first = plan([1] * len(short), epochs * len(sizes) // len(short) + 1, num_short, config.batch_images, config.seed) if num_short else []
    rest = plan(sizes, epochs, config.steps - num_short, config.batch_images, config.seed + 1)
    return [[short[i] for i in step] for step in first] + rest


def _masked(micro: MicroBatch, config: MaskedLanguageTraining) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels, and each prompt ``views`` times: ids, attention mask, and positions to mask [I * views, L], at least one in all."""
    ids = micro.batch.ids.repeat_interleave(config.views, dim=0)
    mask = micro.batch.mask.repeat_interleave(config.views, dim=0)
    maskable = mask.clone()
    maskable[:, 0] = False  # [CLS]
    maskable[torch.arange(len(mask)), mask.sum(dim=1) - 1] = False  # [SEP]
    masked = maskable & (torch.rand(ids.shape, device=ids.device) < config.mask_ratio)
    if not masked.any():
        masked[0, 1] = True
    return micro.batch.pixels, ids, mask, masked
