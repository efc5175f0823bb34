"""VQAScore: how probable the answer "Yes" is to the question whether an image shows a prompt (Lin et al., ECCV 2024, arXiv 2404.01291).

Written from the paper and from what t2v_metrics does: its release 3.1 for Qwen2.5-VL and Qwen3-VL, 3.0 for CLIP-FlanT5. Both report the
geometric mean of the probabilities of the answer's tokens. Here that is ``probability``, and the reward is its log odds: the order is the
same, but where a probability in float32 is 1 for many images, and they tie, their log odds differ, and have a gradient.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from image_reward.checkpoints import Piece, built, pieces_of, read_object
from image_reward.errors import CheckpointError, ImageReadError, InputError
from image_reward.images import ImageLike, ImageOptions, check_pixels, describe, open_image, resize_tensor
from image_reward.models.clip_t5 import ClipT5Network, clip_vision_config, float32_logits
from image_reward.scorers.qwen_chat import CHATS, ChatFiles, chat_text, load_chat, penalised, repetition_penalty
from image_reward.scorers.spec import Devices
from image_reward.scorers.vision_language import (
    LONGEST_STRIP,
    PROMPT,
    ChatTemplate,
    VisionLanguageBatch,
    VisionLanguageProcessor,
    VisionLanguageScorer,
    check_not_quantized,
    empty_network,
    load_network,
)
from image_reward.types import CLIP_MEAN, CLIP_STD

# --- what both kinds have in common ----------------------------------------------------------------------------------------------------

ANSWER = "Yes"


def log_odds_of_mean(odds: Tensor) -> Tensor:
    """The log odds of each token of an answer [N, A] -> those of the geometric mean of their probabilities [N].

    Precise where the mean is 0 or 1 in float32.
    """
    if odds.shape[1] == 1:
        return odds[:, 0]
    precise = odds if odds.device.type == "mps" else odds.double()  # which has no float64
    log_mean = -F.softplus(-precise).mean(dim=1)
    return (log_mean - torch.log(-torch.expm1(log_mean))).float()


def log_odds_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits [N, A, V] and a token for each place [A] -> the log odds of each token against all others [N, A]."""
    places = tokens.to(logits.device).expand(len(logits), -1)[..., None]
    chosen = logits.gather(-1, places)[..., 0]
    return chosen - logits.scatter(-1, places, -math.inf).logsumexp(dim=-1)


class AnswerScorer(VisionLanguageScorer):
    """The log odds of an answer to a question about the image and the prompt. ``probability`` is the published score."""

    default_dtype = torch.bfloat16
    default_batch_sizes = (8, 8)

    def __init__(self, network: nn.Module, prepare: VisionLanguageProcessor, name: str, answer: str = ANSWER) -> None:
        super().__init__()
        self.network = network
        self.prepare = prepare
        self.name = name
        self.answer = answer

    kept_as = "a checkpoint in transformers' format (config.json, tokenizer.json, weights), as it was loaded"

    @property
    def config(self) -> dict[str, Any]:
        """What its rewards depend on besides weights and processor."""
        return {"architecture": "VQAScore", "answer": self.answer}

    @abstractmethod
    def odds(self, batch: VisionLanguageBatch) -> Tensor:
        """The log odds [N, A] of each token of the answer, given the question and the tokens before it."""

    def forward(self, batch: VisionLanguageBatch) -> Tensor:
        if not len(batch):
            return torch.empty(0, dtype=torch.float32, device=self.device)
        return log_odds_of_mean(self.odds(batch))

    @overload
    def probability(self, prompt: str, image: ImageLike) -> float: ...
    @overload
    def probability(self, prompt: str, image: list[Any] | tuple[Any, ...]) -> list[float]: ...
    @overload
    def probability(self, prompt: list[str] | tuple[str, ...], image: list[Any] | tuple[Any, ...]) -> list[float]: ...

    def probability(self, prompt: Any, image: Any) -> float | list[float]:
        """VQAScore as it is published: the probability of the answer, in [0, 1]. Takes and raises what ``score`` does."""
        rewards = self.score(prompt, image)
        return [probability_of(reward) for reward in rewards] if isinstance(rewards, list) else probability_of(rewards)


def probability_of(reward: float) -> float:
    """The probability whose log odds a reward is."""
    return 0.5 * (1 + math.tanh(reward / 2))


# --- Qwen2.5-VL and Qwen3-VL -----------------------------------------------------------------------------------------------------------

QUESTION = f'Does this figure show "{PROMPT}"? Please answer Yes or No.'
"""Of t2v_metrics 3.1."""
_NUM_TOKENS = (4, 16384)
"""The fewest and the most of an image: qwen-vl-utils' limits."""


@dataclass(frozen=True)
class AnsweredTemplate(ChatTemplate):
    """A chat template, and the answer that begins after it: all of its tokens but the last, which is predicted and not read."""

    answer: str = ANSWER

    @property
    def answer_ids(self) -> list[int]:
        ids: list[int] = self.tokenizer.encode(self.answer, add_special_tokens=False).ids
        return ids

    def __call__(self, prompts: Sequence[str]) -> list[list[int]]:
        begun = self.answer_ids[:-1]
        return [[*row, *begun] for row in super().__call__(prompts)]


class ChatAnswerScorer(AnswerScorer):
    """VQAScore of a Qwen2.5-VL or Qwen3-VL."""

    def __init__(self, network: nn.Module, prepare: VisionLanguageProcessor, name: str, repetition_penalty: float = 1.0) -> None:
        """``repetition_penalty``: of the checkpoint's generation config; the original applies it to the logits of tokens that were read."""
        template = prepare.template
        assert isinstance(template, AnsweredTemplate)
        super().__init__(network, prepare, name, template.answer)
        self.repetition_penalty = repetition_penalty
        self.answer_ids = template.answer_ids

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"repetition_penalty": self.repetition_penalty}

    def odds(self, batch: VisionLanguageBatch) -> Tensor:
        network: Any = self.network
        states = self.last_states(batch, network.model.visual, network.model.language_model, len(self.answer_ids))
        logits = float32_logits(states, network.lm_head.weight)
        if self.repetition_penalty != 1.0:
            logits = self._penalised(logits, batch)
        return log_odds_of(logits, torch.tensor(self.answer_ids, device=logits.device))

    def positions(self, batch: VisionLanguageBatch, ids: Tensor, mask: Tensor) -> Tensor:
        """Qwen's own, with the rows and columns of images."""
        grids = [self.prepare.patches.grid(batch.pixels[image]) for row in batch.images for image in row]
        kinds = (ids == self.prepare.template.token_id(self.prepare.template.image_token)).int()
        network: Any = self.network
        places: Tensor = network.model.get_rope_index(
            ids,
            mm_token_type_ids=kinds,
            image_grid_thw=torch.tensor(grids, dtype=torch.int64, device=ids.device),
            attention_mask=mask.long(),
        )[0]
        return places

    def _penalised(self, logits: Tensor, batch: VisionLanguageBatch) -> Tensor:
        """Logits [N, A, V] after the penalty of repetition: of tokens that are in what was read before that place."""
        rows = []
        for own, ids in zip(logits, batch.ids, strict=True):
            was_read = torch.zeros_like(own, dtype=torch.bool)
            for place in range(len(own)):
                was_read[place, ids[: len(ids) - len(own) + 1 + place].to(own.device)] = True
            rows.append(penalised(own, was_read, self.repetition_penalty))
        return torch.stack(rows)


# --- CLIP-FlanT5 -----------------------------------------------------------------------------------------------------------------------

T5_QUESTION = f'Does this figure show "{PROMPT}"? Please answer yes or no.'
"""Of t2v_metrics 3.0."""
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to "
    "the user's questions."
)
T5_IMAGE = "<image>"
"""What stands for the image in the original's text. It is not a token of T5's; the scorer adds it."""
T5_END = "</s>"
_CLIP = "openai/clip-vit-large-patch14-336"
_T5_TOKENS = 2048
"""Of a text with one token for the image."""


def t5_text(question: str = T5_QUESTION) -> str:
    """The text around an image and a question: what is before and what is after the image is each ended as a sentence."""
    return f"{_SYSTEM} USER: {T5_END}{T5_IMAGE}\n{question} ASSISTANT: {T5_END}"


@dataclass(frozen=True)
class PaddedSquare:
    """How CLIP-FlanT5 reads an image: padded to a square with the mean colour, then resized. All images have as many tokens."""

    side: int
    num_patches: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    options: ImageOptions = field(default_factory=ImageOptions)

    @property
    def colour(self) -> tuple[int, int, int]:
        """Of the padding."""
        red, green, blue = (int(255 * value) for value in self.mean)
        return red, green, blue

    def size(self, width: int, height: int, name: str) -> int:
        """The side of the square that an image is padded to. Raises ``ImageReadError`` for long strips and for what is too large."""
        side = max(width, height)
        if side > LONGEST_STRIP * min(width, height):
            raise ImageReadError(f"{name} is {width} x {height}, a strip of more than {LONGEST_STRIP} to 1, which is not read; crop it")
        if side > _LARGEST_SQUARE:
            raise ImageReadError(f"{name} is {width} x {height}, and squares of more than {_LARGEST_SQUARE:,} px are not read; resize it")
        return side

    def fit(self, source: ImageLike) -> Tensor:
        """An image -> RGB values [3, side, side], uint8. Raises what ``open_image`` and ``size`` raise."""
        image = open_image(source, self.options).convert("RGB")
        width, height = image.size
        whole = self.size(width, height, describe(source))
        left, top = (whole - width) // 2, (whole - height) // 2
        # The square may not fit into memory. Pillow resizes along rows first, each for itself; so they are padded a part at a time.
        narrow = Image.new("RGB", (self.side, whole), self.colour)
        step = max(1, _PADDED_PIXELS // whole)
        for row in range(0, height, step):
            part = image.crop((0, row, width, min(row + step, height)))
            padded = Image.new("RGB", (whole, part.height), self.colour)
            padded.paste(part, (left, 0))
            narrow.paste(padded.resize((self.side, part.height), Image.Resampling.BICUBIC), (0, top + row))
        return torch.from_numpy(np.array(narrow.resize((self.side, self.side), Image.Resampling.BICUBIC))).permute(2, 0, 1).contiguous()

    def fit_tensor(self, pixels: Tensor) -> Tensor:
        """``fit`` with gradients: floats in [0, 1] [B, 3, H, W] -> [B, 3, side, side] in [0, 1]. See ``images.resize_tensor``."""
        check_pixels(pixels)
        height, width = pixels.shape[2:]
        whole = self.size(width, height, f"pixels of shape {tuple(pixels.shape)}")
        left, top = (whole - width) // 2, (whole - height) // 2
        colour = torch.tensor(self.colour, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) / 255
        padded = F.pad(pixels - colour, (left, whole - width - left, top, whole - height - top)) + colour
        return resize_tensor(padded.clamp(0, 1), self.side, self.side)

    def num_tokens(self, pixels: Tensor) -> int:  # noqa: ARG002 - the same for all
        """The tokens of pixels in a sequence."""
        return self.num_patches

    def normalized(self, pixels: Sequence[Tensor], device: torch.device) -> Tensor:
        """uint8, or floats in [0, 1], each [3, side, side] -> what the network takes [I, 3, side, side], float32."""
        stacked = torch.stack([image.to(device) for image in pixels])
        stacked = stacked.float() / 255 if stacked.dtype == torch.uint8 else stacked.float()
        mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1) for v in (self.mean, self.std))
        return (stacked - mean) / std


_PADDED_PIXELS = 1 << 24
"""Of a part of an image that is padded at once."""
_LARGEST_SQUARE = 1 << 16


class ClipT5Processor(VisionLanguageProcessor):
    """Prompts and images -> a batch for CLIP-FlanT5."""

    patches: PaddedSquare  # type: ignore[assignment]


class ClipT5Scorer(AnswerScorer):
    """VQAScore of a CLIP-FlanT5. The answer is ended as a sentence, and its end counts as one of its tokens."""

    network: ClipT5Network
    prepare: ClipT5Processor

    def __init__(self, network: ClipT5Network, prepare: ClipT5Processor, name: str, answer: str = ANSWER) -> None:
        super().__init__(network, prepare, name, answer)
        template = prepare.template
        self.num_tokens = template.token_id(T5_IMAGE)
        self.answer_ids = [*template.tokenizer.encode(answer, add_special_tokens=False).ids, template.token_id(T5_END)]

    def odds(self, batch: VisionLanguageBatch) -> Tensor:
        ids, mask = self.padded(batch)
        t5 = self.network.t5
        images = ids == self.prepare.template.token_id(T5_IMAGE)
        features = self.network.encode_images(self.prepare.patches.normalized(batch.pixels, self.device))
        embeddings: Tensor = t5.shared(ids.masked_fill(images, 0))
        shown = features[[image for row in batch.images for image in row]].to(embeddings)
        embeddings = embeddings.masked_scatter(images[..., None].to(embeddings.device), shown)
        tokens = torch.tensor(self.answer_ids, device=self.device)
        begun = torch.cat([tokens.new_tensor([t5.config.decoder_start_token_id or 0]), tokens[:-1]])
        states = self.network.answer_states(embeddings, mask.to(embeddings.device), begun.expand(len(batch), -1))
        # The original cuts the embeddings to the tokens that there are, of which the published network has 28 more.
        return log_odds_of(float32_logits(states, t5.lm_head.weight[: self.num_tokens]), tokens)

    def cast(self, dtype: torch.dtype) -> None:
        _refuse_float16(dtype, self.name)
        super().cast(dtype)


def _refuse_float16(dtype: torch.dtype, name: str) -> None:
    if dtype == torch.float16:
        raise InputError(
            f"{name} cannot compute in float16: FlanT5 was trained in bfloat16, and its feed-forward layers exceed float16's range; use "
            "bfloat16 or float32"
        )


# --- loading ---------------------------------------------------------------------------------------------------------------------------


def vqascore_from_files(
    files: ChatFiles,
    *,
    name: str = "VQAScore",
    question: str | None = None,
    answer: str = ANSWER,
    options: ImageOptions | None = None,
    dtype: torch.dtype | None = None,
    devices: Devices = None,
) -> AnswerScorer:
    """A scorer from the files of a Qwen2.5-VL, a Qwen3-VL or a CLIP-FlanT5, read a part at a time to where they are to be.

    Args:
        question: with ``{prompt}`` in it, once; by default the one that t2v_metrics asks of this kind of network.
        dtype: bfloat16, which the original uses, by default.
        devices: the CPU by default; see ``vision_language.load_network``.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
        InputError: for a question without the prompt, an answer of no tokens, or float16 for a CLIP-FlanT5.
    """
    values = read_object(files.config)
    kind = values.get("model_type")
    if kind not in (*CHATS, "clip_t5"):
        raise CheckpointError(
            f"{files.config} is of model_type {kind!r:.60}, and VQAScore is computed with {', '.join(CHATS)} and clip_t5; use a "
            "checkpoint of one of these"
        )
    check_not_quantized(values, files.config)
    if question is not None and question.count(PROMPT) != 1:
        raise InputError(f"the question {question!r:.80} must contain {PROMPT} once, where the prompt goes")
    if not answer.strip():
        raise InputError("the answer must not be empty")
    asked = _Asked(files, values, name, question, answer, options or ImageOptions(), dtype or AnswerScorer.default_dtype, devices)
    scorer = _clip_t5(asked) if kind == "clip_t5" else _chat(asked)
    scorer.is_spread = devices == "auto"
    return scorer.eval()


@dataclass(frozen=True)
class _Asked:
    """What a scorer is to be made of."""

    files: ChatFiles
    values: dict[str, Any]
    """Of the config."""
    name: str
    question: str | None
    answer: str
    options: ImageOptions
    dtype: torch.dtype
    devices: Devices


def _chat(asked: _Asked) -> AnswerScorer:
    files = asked.files
    text = chat_text(asked.question or QUESTION, asked.values["model_type"], files.chat)

    def template(most_tokens: int) -> AnsweredTemplate:
        return AnsweredTemplate.from_file(files.tokenizer, text, most_tokens=most_tokens, answer=asked.answer)  # type: ignore[return-value]

    chat = load_chat(files, asked.values, template, num_tokens=_NUM_TOKENS, options=asked.options, dtype=asked.dtype, devices=asked.devices)
    return ChatAnswerScorer(chat.network, chat.processor, asked.name, repetition_penalty(files.generation))


def _clip_t5(asked: _Asked) -> AnswerScorer:
    from transformers import T5Config

    files, values = asked.files, asked.values
    _refuse_float16(asked.dtype, asked.name)
    if not files.tokenizer.is_file():
        raise CheckpointError(
            f"{files.tokenizer.parent} lacks {files.tokenizer.name}: the original takes that of google/flan-t5-xl; put it beside the "
            "weights, or load the published checkpoint by its name, such as VQAScore-CLIP-FlanT5-XL"
        )
    expected = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch"}
    if wrong := [key for key, value in expected.items() if values.get(key, value) != value]:
        raise CheckpointError(
            f"{files.config}: {wrong[0]} is {values[wrong[0]]!r:.60}, and only {expected[wrong[0]]!r} is known; use another checkpoint"
        )
    if not str(values.get("mm_vision_tower", _CLIP)).startswith(_CLIP.split("/")[0] + "/"):
        raise CheckpointError(
            f"{files.config}: mm_vision_tower is {values['mm_vision_tower']!r:.60}, and only OpenAI's, as {_CLIP}, are known"
        )
    pieces, source = clip_t5_names(pieces_of(files.weights)), str(files.weights[0])
    tower = "vision_tower.vision_tower."
    shapes = {key.removeprefix(tower): piece.shape for key, piece in pieces.items() if key.startswith(tower)}
    if not shapes:
        raise CheckpointError(f"{source} has no image tower ({tower}…): it is not a CLIP-FlanT5, but perhaps its T5 alone")
    text = built(lambda: T5Config(**{**values, "model_type": "t5"}), files.config, "T5")
    vision = built(lambda: clip_vision_config(shapes), files.weights[0], "image tower")
    layer, num_states = values.get("mm_vision_select_layer", -2), vision.num_hidden_layers + 1
    if type(layer) is not int or not -num_states <= layer < num_states:
        raise CheckpointError(
            f"{files.config}: mm_vision_select_layer is {layer!r:.60}, and the image tower has {num_states} hidden states"
        )
    start = text.decoder_start_token_id
    if start is not None and (type(start) is not int or not 0 <= start < text.vocab_size):
        raise CheckpointError(f"{files.config}: decoder_start_token_id is {start!r:.60}, and there are {text.vocab_size:,} tokens")
    tied = values.get("tie_word_embeddings") is not False
    template = ChatTemplate.from_file(
        files.tokenizer, t5_text(asked.question or T5_QUESTION), image_token=T5_IMAGE, new_tokens=(T5_IMAGE,), most_tokens=_T5_TOKENS
    )
    if T5_END not in template.markers or template.token_id(T5_END) != text.eos_token_id:
        raise CheckpointError(f"{files.tokenizer} is not the tokenizer of this model: its {T5_END} is not token {text.eos_token_id}")
    if (num_tokens := template.token_id(T5_IMAGE)) > text.vocab_size:
        raise CheckpointError(
            f"{files.tokenizer} has {num_tokens} tokens, and {files.config} {text.vocab_size}: they are of different models"
        )
    network = built(lambda: empty_network(lambda: ClipT5Network(vision, text, tied, layer)), files.config, "network")
    hint = f". The sizes are those of {files.config}"
    load_network(network, pieces, source, dtype=asked.dtype, devices=asked.devices, hint=hint)
    square = PaddedSquare(vision.image_size, (vision.image_size // vision.patch_size) ** 2, options=asked.options)
    return ClipT5Scorer(network, ClipT5Processor(square, template), asked.name, asked.answer)  # type: ignore[arg-type]


def clip_t5_names(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """The published names -> ours: T5's under ``t5``, and CLIP's without a level that transformers 5 no longer has."""
    renamed: dict[str, Piece] = {}
    for name, piece in pieces.items():
        if name.startswith("vision_tower."):
            if not name.endswith(".position_ids"):
                renamed[name.replace(".vision_tower.vision_model.", ".vision_tower.")] = piece
        elif name.startswith("mm_projector."):
            renamed[name] = piece
        elif name not in _SHARED:
            renamed[f"t5.{name}"] = piece
    # The embeddings have four names, of which a file has one or more.
    if shared := next((pieces[name] for name in _SHARED if name in pieces), None):
        renamed["t5.shared.weight"] = shared
    return renamed


_SHARED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "embed_tokens.weight")
