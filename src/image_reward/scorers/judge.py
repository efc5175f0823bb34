"""Judges: vision-language networks that write their judgement as text.

The text is decoded greedily, so that a question has one answer, and read strictly: what is not in the form that was asked for is an error
of its row. A kind of judge says what is asked, and reads the answers (``unified_reward``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from image_reward.errors import AnswerError, InputError, RewardError
from image_reward.images import ImageLike, describe
from image_reward.prompts import long_prompt_warnings_suppressed
from image_reward.scorers.base import inference
from image_reward.scorers.outcomes import RefusedRowsError, in_parts, of_image
from image_reward.scorers.qwen_chat import penalised
from image_reward.scorers.vision_language import VisionLanguageBatch, VisionLanguageProcessor, VisionLanguageScorer
from image_reward.types import Preference

Pair = tuple[ImageLike, ImageLike]
CUT_OFF = " […]"
"""The end of an answer that did not end."""
Reading = TypeVar("Reading")

# --- decoding --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoding:
    """How an answer is written: always the most probable token next."""

    ends: tuple[int, ...]
    """Any of these tokens ends an answer."""
    repetition_penalty: float = 1.0
    """See ``qwen_chat.penalised``."""
    most_tokens: int = 512
    """An answer that is longer is not an answer. That many are allowed in UnifiedReward's examples."""


def written_tokens(network: Any, inputs: dict[str, Tensor], decoding: Decoding) -> list[list[int]]:
    """What a Qwen's network writes after each row of ``VisionLanguageScorer.chat_inputs(batch, "left")``, the ending token included.

    Token for token what ``network.generate(do_sample=False)`` writes for the row alone. Rows that have ended leave the batch.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    grids, kinds = inputs["image_grid_thw"], inputs["mm_token_type_ids"]
    positions, _ = network.model.get_rope_index(ids, image_grid_thw=grids, attention_mask=mask, mm_token_type_ids=kinds)
    read = network.model(**inputs, position_ids=positions, use_cache=True)
    next_position = positions.amax(dim=(0, 2)) + 1  # an image advances positions by less than its number of tokens
    seen = torch.zeros(len(ids), network.lm_head.weight.shape[0], dtype=torch.bool, device=ids.device)
    seen.scatter_(1, torch.where(mask.bool(), ids, ids[:, -1:]), True)
    written: list[list[int]] = [[] for _ in ids]
    rows = list(range(len(ids)))
    while True:
        logits = network.lm_head(read.last_hidden_state[:, -1]).float()
        if decoding.repetition_penalty != 1.0:
            logits = penalised(logits, seen.to(logits.device), decoding.repetition_penalty)
        tokens = logits.argmax(dim=-1).to(ids.device)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            written[row].append(token)
        go_on = [place for place, row in enumerate(rows) if written[row][-1] not in decoding.ends]
        if not go_on or len(written[rows[0]]) >= decoding.most_tokens:
            return written
        if len(go_on) < len(rows):
            rows = [rows[place] for place in go_on]
            kept = torch.tensor(go_on, device=ids.device)
            tokens, mask, seen, next_position = tokens[kept], mask[kept], seen[kept], next_position[kept]
            read.past_key_values.batch_select_indices(kept.cpu())  # its layers may be on several devices
        seen.scatter_(1, tokens[:, None], True)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        read = network.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=next_position[None, :, None].expand(3, -1, -1),
            past_key_values=read.past_key_values,
            use_cache=True,
        )
        next_position = next_position + 1


# --- pairs -----------------------------------------------------------------------------------------------------------------------------


class PairProcessor(VisionLanguageProcessor):
    """Prompts and pairs of images -> a batch, a question about two images in each row."""

    def __call__(self, prompts: Sequence[str], images: Sequence[Pair]) -> VisionLanguageBatch:  # type: ignore[override]
        if wrong := [pair for pair in images if len(pair) != 2]:
            raise ValueError(f"a judge compares pairs of images, not {len(wrong[0])}")
        return self.of_rows(self.template(prompts), images)


class Verdict(NamedTuple):
    """What a judge says of two images."""

    share: float
    """Of the first in what is divided between the two, in [0, 1]: more than half where it is better."""

    @property
    def label(self) -> str:
        """A>B, B>A or A=B, A being the image that was shown first."""
        return "A=B" if abs(self.share - 0.5) < _EVEN else "A>B" if self.share > 0.5 else "B>A"


_EVEN = 1e-6
"""Shares that differ by less are equal: they are sums of decimal fractions."""


# --- scorers ---------------------------------------------------------------------------------------------------------------------------


class Judge(VisionLanguageScorer):
    """A scorer whose reward is read from what its network writes. ``answers`` gives the texts."""

    default_dtype = torch.bfloat16
    default_batch_sizes = (8, 8)
    batch_size_by_trial = False

    def __init__(
        self, network: nn.Module, prepare: VisionLanguageProcessor, prepare_pairs: PairProcessor, name: str, decoding: Decoding
    ) -> None:
        super().__init__()
        self.network = network
        self.prepare = prepare
        self.prepare_pairs = prepare_pairs
        self.name = name
        self.decoding = decoding

    @property
    def config(self) -> dict[str, Any]:
        """What its rewards depend on besides weights and processor."""
        return {"architecture": type(self).__name__, "decoding": self.decoding, "pairs": self.prepare_pairs.template.text}

    @abstractmethod
    def reward_of(self, answer: str) -> float:
        """The reward that an answer states. Raises ``AnswerError`` for one that is not in the form that was asked for."""

    @abstractmethod
    def verdict_of(self, answer: str) -> Verdict:
        """What an answer says of two images. Raises ``AnswerError`` for one that is not in the form that was asked for."""

    def forward(self, batch: VisionLanguageBatch) -> Tensor:
        rewards = torch.full((len(batch),), torch.nan, dtype=torch.float32, device=self.device)
        reasons: dict[int, RewardError] = {}
        for row, answer in enumerate(self.written(batch)):
            try:
                rewards[row] = self.reward_of(answer)
            except AnswerError as error:
                reasons[row] = error
        if reasons:
            raise RefusedRowsError([rewards], reasons)
        return rewards

    def written(self, batch: VisionLanguageBatch) -> list[str]:
        """The answer to each row's question; of one that does not end in time, its beginning and ``CUT_OFF``, which makes it no answer."""
        if not len(batch):
            return []
        with torch.no_grad():
            tokens = written_tokens(self.network, self.chat_inputs(batch, "left"), self.decoding)
        texts = self.prepare.template.tokenizer.decode_batch(tokens, skip_special_tokens=True)
        return [text if row[-1] in self.decoding.ends else text + CUT_OFF for row, text in zip(tokens, texts, strict=True)]

    def answers(self, prompts: str | Sequence[str], images: Sequence[ImageLike]) -> list[str]:
        """What is written of the images of one prompt, or of aligned prompts and images. Raises what ``score`` raises for unusable ones."""
        return self._read(self.prepare, prompts, images, str)

    def verdicts(self, prompts: str | Sequence[str], pairs: Sequence[Pair]) -> list[Verdict]:
        """What is said of pairs of images, each in this order, for one prompt or aligned prompts. Raises what ``score`` raises."""
        return self._read(self.prepare_pairs, prompts, pairs, self.verdict_of)

    def compare(self, prompt: str, a: ImageLike, b: ImageLike) -> Preference:
        """Both images in one question, asked in both orders: the mean shares of each, which nobody has fitted to how often people agree."""
        one, other = self.verdicts(prompt, [(a, b), (b, a)])
        share = (one.share + 1 - other.share) / 2
        return Preference(share, 0.0, 1 - share, (share, 1 - share), (a, b))

    def _read(
        self,
        prepare: Callable[[Sequence[str], Sequence[Any]], VisionLanguageBatch],
        prompts: str | Sequence[str],
        images: Sequence[Any],
        read: Callable[[str], Reading],
    ) -> list[Reading]:
        """What ``read`` makes of the answers to questions about an image or a pair; its ``AnswerError`` names those."""
        aligned = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if len(aligned) != len(images):
            raise ValueError(f"{len(aligned)} prompts and {len(images)} images: aligned lists must have the same length")
        self.check_evaluating()
        self.prepare.check(aligned)
        readings: list[Reading] = []
        with inference(), long_prompt_warnings_suppressed():
            for start in range(0, len(aligned), self.batch_size):
                shown = images[start : start + self.batch_size]
                batch = prepare(aligned[start : start + self.batch_size], shown)
                answers = [answer for _, part in in_parts(lambda parts: self.written(parts[0]), [batch]) for answer in part]
                for image, answer in zip(shown, answers, strict=True):
                    try:
                        readings.append(read(answer))
                    except AnswerError as error:
                        name = " and ".join(map(describe, image)) if isinstance(image, tuple) else describe(image)
                        raise of_image(error, name) from None
        return readings

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:  # noqa: ARG002 - the contract's
        """Raises ``InputError``: text has no gradients."""
        raise InputError(
            f"{self.name} writes its judgement as text, through which no gradient passes to the pixels; use score(), or a scorer with "
            "gradients such as ImageReward-v1.0 or HPSv3"
        )
