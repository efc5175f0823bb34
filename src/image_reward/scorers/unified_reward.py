"""UnifiedReward 2.0: a judge that writes three scores of an image, or of two images (Wang et al. 2025, arXiv 2503.05236).

The texts of the questions are those of the repository CodeGoat24/UnifiedReward at a759534 (MIT), byte for byte: in
inference_qwen/UnifiedReward-2.0-inference, point_score_ACS_image_generation.py and pair_score_image_generation.py. These programs send
images as JPEG of quality 95 to a server; here they are read as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from image_reward.checkpoints import read_object
from image_reward.errors import AnswerError, CheckpointError
from image_reward.images import ImageLike, ImageOptions
from image_reward.scorers.judge import Decoding, Judge, PairProcessor, Verdict
from image_reward.scorers.qwen_chat import CHATS, ChatFiles, chat_text, end_tokens, load_chat, repetition_penalty
from image_reward.scorers.spec import Devices
from image_reward.scorers.vision_language import PROMPT, ChatTemplate

POINTWISE = (
    "You are presented with a generated image and its associated text caption. "
    "Your task is to analyze the image across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\n"
    "Coherence Score (1-5): Y\n"
    "Style Score (1-5): Z\n\n"
    "Your task is provided as follows:\n"
    f"Text Caption: [{PROMPT}]"
)
"""What is asked about an image."""

PAIRWISE = (
    "You are presented with two generated images (Image 1 and Image 2) along with a shared text caption. "
    "Your task is to comparatively evaluate the two images across three specific dimensions:\n\n"
    "- Alignment Score: How well each image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent and visually coherent each image is (absence of visual glitches, distorted objects, "
    "etc.).\n"
    "- Style Score: How aesthetically appealing each image is, regardless of caption accuracy.\n\n"
    "For each dimension, you must assign a relative score to Image 1 and Image 2, such that:\n"
    "- Each score is a float between 0 and 1 (inclusive).\n"
    "- The scores for Image 1 and Image 2 must sum to exactly 1.0 for each dimension.\n"
    "- The higher the score, the better that image is in the corresponding dimension *relative to the other*.\n\n"
    "This format emphasizes comparative quality rather than absolute evaluation.\n\n"
    "Please provide your evaluation in the format below:\n\n"
    "Alignment Score:\n"
    " Image 1: X\n"
    " Image 2: Y\n\n"
    "Coherence Score:\n"
    " Image 1: X\n"
    " Image 2: Y\n\n"
    "Style Score:\n"
    " Image 1: X\n"
    " Image 2: Y\n\n"
    "Your task is provided as follows:\n"
    f"Text Caption: [{PROMPT}]"
)
"""What is asked about two images."""

_NUMBER = r"(\d{1,2}(?:\.\d{1,32})?)"
_PARTS = ("Alignment", "Coherence", "Style")
_SCORES = re.compile("\n".join(rf"{part} Score \(1-5\): {_NUMBER}" for part in _PARTS), re.ASCII)
_SHARES = re.compile("\n\n".join(rf"{part} Score:\n Image 1: {_NUMBER}\n Image 2: {_NUMBER}" for part in _PARTS), re.ASCII)
_ROUNDING = 0.01 + 1e-9
"""By which the shares of two images, decimal fractions, may miss 1."""


class Scores(NamedTuple):
    """Of an image, each from 1 to 5."""

    alignment: float
    """How well it shows the prompt."""
    coherence: float
    """How free it is of visual faults."""
    style: float
    """How good it looks, whatever the prompt."""

    @property
    def mean(self) -> float:
        return sum(self) / len(self)

    @classmethod
    def of(cls, answer: str) -> Scores:
        """The scores that an answer states: the three lines that were asked for, and nothing else. Raises ``AnswerError``."""
        match = _SCORES.fullmatch(answer.strip())
        scores = [float(number) for number in match.groups()] if match else []
        if not scores or not all(1 <= score <= 5 for score in scores):
            raise AnswerError(f"the answer {answer!r:.300} does not state three scores from 1 to 5; try another prompt or a larger model")
        return cls(*scores)


def verdict_of(answer: str) -> Verdict:
    """The mean of the three shares of the first image: of an answer that states those of both, and nothing else. Raises ``AnswerError``."""
    match = _SHARES.fullmatch(answer.strip())
    shares = [float(number) for number in match.groups()] if match else []
    sums = [first + second for first, second in zip(shares[::2], shares[1::2], strict=True)]
    if not shares or max(shares) > 1 or any(abs(both - 1) > _ROUNDING for both in sums):
        raise AnswerError(
            f"the answer {answer!r:.500} does not divide 1 between two images in each of three parts; try another prompt or a larger model"
        )
    return Verdict(sum(first / both for first, both in zip(shares[::2], sums, strict=True)) / 3)


class UnifiedReward(Judge):
    """The mean of the three scores. ``judge`` gives them one by one."""

    def reward_of(self, answer: str) -> float:
        return Scores.of(answer).mean

    def verdict_of(self, answer: str) -> Verdict:
        return verdict_of(answer)

    def judge(self, prompts: str | Sequence[str], images: Sequence[ImageLike]) -> list[Scores]:
        """The scores of the images of one prompt, or of aligned prompts and images. Raises what ``score`` raises."""
        return self._read(self.prepare, prompts, images, Scores.of)


# --- loading ---------------------------------------------------------------------------------------------------------------------------

FORMAT = "unified-reward"
"""What the config.json of a folder says as ``format``: its ``model_type`` does not tell it from the model that it was tuned from."""


def unified_reward_from_files(
    files: ChatFiles,
    *,
    name: str = "UnifiedReward",
    options: ImageOptions | None = None,
    dtype: torch.dtype | None = None,
    devices: Devices = None,
) -> UnifiedReward:
    """A judge from the files of a UnifiedReward 2.0, read a part at a time to where they are to be.

    Args:
        dtype: bfloat16, in which it was published, by default.
        devices: the CPU by default; see ``vision_language.load_network``.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
    """
    values: dict[str, Any] = read_object(files.config)
    kind = values.get("model_type")
    if kind not in CHATS:
        raise CheckpointError(
            f"{files.config} is of model_type {kind!r:.60}, and UnifiedReward 2.0 is a {' or '.join(CHATS)}; UnifiedReward 1 and the "
            "checkpoints of other bases are not read"
        )

    def template(most_tokens: int) -> ChatTemplate:
        return ChatTemplate.from_file(files.tokenizer, chat_text(POINTWISE, str(kind), files.chat), most_tokens=most_tokens)

    chat = load_chat(
        files,
        {key: value for key, value in values.items() if key != "format"},
        template,
        num_images=2,
        num_written=Decoding.most_tokens,
        options=options or ImageOptions(),
        dtype=dtype or UnifiedReward.default_dtype,
        devices=devices,
    )
    decoding = Decoding(end_tokens(files.generation, chat.processor.template), repetition_penalty(files.generation))
    alone = chat.processor.template
    pairs = replace(alone, text=chat_text(PAIRWISE, str(kind), files.chat, num_images=2))
    judge = UnifiedReward(chat.network, chat.processor, PairProcessor(chat.processor.patches, pairs), name, decoding)
    judge.is_spread = devices == "auto"
    return judge.eval()
