"""UnifiedReward 2.0: a judge that writes three scores of an image (Wang et al. 2025, arXiv 2503.05236).

The text of the question is that of the repository CodeGoat24/UnifiedReward at a759534 (MIT), byte for byte:
inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py. Its programs send images as JPEG of quality 95 to a server;
here they are read as they are.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from image_reward.checkpoints import read_object
from image_reward.errors import AnswerError, CheckpointError
from image_reward.images import ImageLike, ImageOptions
from image_reward.scorers.judge import Decoding, Judge
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

_NUMBER = r"(\d{1,2}(?:\.\d{1,32})?)"
_SCORES = re.compile("\n".join(rf"{part} Score \(1-5\): {_NUMBER}" for part in ("Alignment", "Coherence", "Style")), re.ASCII)


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


class UnifiedReward(Judge):
    """The mean of the three scores. ``judge`` gives them one by one."""

    def reward_of(self, answer: str) -> float:
        return Scores.of(answer).mean

    def judge(self, prompts: str | list[str], images: list[ImageLike]) -> list[Scores]:
        """The scores of the images of one prompt, or of aligned prompts and images. Raises what ``score`` raises."""
        return self._read(prompts, images, Scores.of)


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
        num_written=Decoding.most_tokens,
        options=options or ImageOptions(),
        dtype=dtype or UnifiedReward.default_dtype,
        devices=devices,
    )
    decoding = Decoding(end_tokens(files.generation, chat.processor.template), repetition_penalty(files.generation))
    judge = UnifiedReward(chat.network, chat.processor, name, decoding)
    judge.is_spread = devices == "auto"
    return judge.eval()
