"""HPSv3: a Qwen2-VL whose answer is two numbers, the mean and the spread of a reward (Ma et al., ICCV 2025, arXiv 2508.03789).

Written from the paper and from what the package hpsv3 1.0.0 does with transformers 4.45.2, in whose way the network was trained:

- The text model gets embeddings and no positions, and counts them 0, 1, 2, …: the image has none of Qwen2-VL's 3-D positions.
- The whole network is cast to bfloat16, the frequencies of rotary positions too, which at the 900th token turns some by a radian.
- Every image is resized to about 200,704 pixels; the instruction, with the white space at its lines' ends, goes before the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from image_reward.checkpoints import Piece, built, pieces_of, read_object
from image_reward.config import CONFIG_NAME, HPSV3_NAME, TOKENIZER_NAME, WEIGHTS_NAME
from image_reward.errors import CheckpointError
from image_reward.images import ImageLike, ImageOptions
from image_reward.metrics import uncertain_win_probability
from image_reward.prompts import long_prompt_warnings_suppressed
from image_reward.scorers.base import score_rows
from image_reward.scorers.spec import Devices
from image_reward.scorers.vision_language import (
    ChatTemplate,
    ImagePatches,
    VisionLanguageBatch,
    VisionLanguageProcessor,
    VisionLanguageScorer,
    cast_weights,
    empty_network,
    load_network,
    longest_text,
)
from image_reward.types import Preference

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig

REWARD_TOKEN = "<|Reward|>"
"""Added to Qwen2-VL's tokens; the head reads the network's state there."""
NUM_PIXELS = 256 * 28 * 28
"""Of every image, about."""
_LEFT_FOR_THE_IMAGE = 512
"""Tokens: the longest strip that is read has fewer."""


@cache
def chat_text() -> str:
    """The text around an image and a prompt: Qwen2-VL's chat template of one question, with HPSv3's instruction."""
    instruction = json.loads(files("image_reward").joinpath("assets/hpsv3.json").read_text(encoding="utf-8"))["text"]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{image}{instruction}<|im_end|>\n<|im_start|>assistant\n"


class Judgement(NamedTuple):
    """What HPSv3 makes of each image: a reward that is a Gaussian."""

    mean: Tensor
    """[N]: the reward."""
    spread: Tensor
    """[N]: its standard deviation, how uncertain the model is of it."""


class HPSv3Network(nn.Module):
    """Qwen2-VL without its language head, and the head of two numbers, which is in float32."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        from transformers import Qwen2VLModel

        self.model = Qwen2VLModel(config)
        width = config.text_config.hidden_size
        self.rm_head = nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))


class _VisionPositions(nn.Module):
    """The rotary positions of patches as transformers 4.45 computes them: angles, cosines and sines in the network's own dtype."""

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """``position_ids``: row and column of each patch [T, 2] -> cosine and sine [T, D], float32."""
        angles = position_ids.to(x.device, x.dtype)[..., None] * self.frequencies.to(x.device, x.dtype)
        both = angles.flatten(1).repeat(1, 2)
        return both.cos().float(), both.sin().float()


def empty_hpsv3(config: Qwen2VLConfig) -> HPSv3Network:
    """The network without storage for its weights, its positions as trained."""
    network = empty_network(lambda: HPSv3Network(config))
    vision, text = network.model.visual, network.model.language_model.rotary_emb
    vision.rotary_pos_emb = _VisionPositions(vision.rotary_pos_emb.inv_freq.bfloat16().float())
    text.inv_freq = text.inv_freq.bfloat16().float()
    return network


class HPSv3Scorer(VisionLanguageScorer):
    """The mean of HPSv3's reward. ``judge`` gives its spread too, and ``compare`` takes both into account."""

    network: HPSv3Network
    default_dtype = torch.bfloat16
    default_batch_sizes = (8, 8)

    def __init__(self, network: HPSv3Network, prepare: VisionLanguageProcessor, name: str = "HPSv3") -> None:
        super().__init__()
        self.network = network
        self.prepare = prepare
        self.name = name

    @property
    def config(self) -> dict[str, Any]:
        """What its rewards depend on besides weights and processor."""
        return {"architecture": "HPSv3", "num_pixels": NUM_PIXELS}

    def outputs(self, batch: VisionLanguageBatch) -> Tensor:
        """Mean and logarithm of the spread [N, 2] of a batch, float32, differentiable."""
        if not len(batch):
            return torch.empty(0, 2, dtype=torch.float32, device=self.device)
        states = self.last_states(batch, self.network.model.visual, self.network.model.language_model)
        outputs: Tensor = self.network.rm_head(states.float())
        return outputs

    def forward(self, batch: VisionLanguageBatch) -> Tensor:
        return self.outputs(batch)[:, 0]

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in ``dtype``, but for the head."""
        cast_weights(self.network.model, dtype)

    def judge(self, prompts: str | Sequence[str], images: Sequence[ImageLike]) -> Judgement:
        """Mean and spread [N] of the images of one prompt, or of aligned prompts and images. Raises what ``score`` raises."""
        aligned = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        self.check_evaluating()
        self.prepare.check(aligned)

        def both(batches: Sequence[VisionLanguageBatch]) -> list[Tensor]:
            outputs = self.outputs(batches[0])
            return [outputs[:, 0], outputs[:, 1].exp()]

        with long_prompt_warnings_suppressed():
            judged = score_rows(
                [self.name] * 2,
                aligned,
                images,
                self.batch_size,
                self.whole_images,
                lambda prompts, images: [self.prepare(prompts, images)],
                both,
            )
        return Judgement(*judged)

    def compare(self, prompt: str, a: ImageLike, b: ImageLike) -> Preference:
        """How likely people are to prefer ``a`` to ``b``, by the two Gaussians of their rewards: ``metrics.uncertain_win_probability``."""
        mean, spread = (values.double() for values in self.judge([prompt, prompt], [a, b]))
        a_better = uncertain_win_probability((mean[0] - mean[1]).item(), spread.square().sum().sqrt().item())
        rewards, spreads = ((values[0].item(), values[1].item()) for values in (mean, spread))
        return Preference(a_better, 0.0, 1.0 - a_better, rewards, (a, b), spreads)


# --- loading -------------------------------------------------------------------------------------------------------------------------


class HPSv3Files(NamedTuple):
    """The files of an HPSv3."""

    weights: Path
    """``HPSv3.safetensors`` of MizzenAI/HPSv3"""
    config: Path
    """``config.json`` of Qwen/Qwen2-VL-7B-Instruct"""
    tokenizer: Path
    """``tokenizer.json`` of Qwen/Qwen2-VL-7B-Instruct"""

    @classmethod
    def in_folder(cls, folder: Path) -> HPSv3Files:
        """The three beside each other. ``hpsv3_from_files`` says which are missing."""
        names = (HPSV3_NAME, WEIGHTS_NAME)
        weights = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
        return cls(weights, folder / CONFIG_NAME, folder / TOKENIZER_NAME)


def hpsv3_from_files(
    paths: HPSv3Files,
    *,
    name: str = "HPSv3",
    options: ImageOptions | None = None,
    dtype: torch.dtype | None = None,
    devices: Devices = None,
) -> HPSv3Scorer:
    """A scorer from its files, read a part at a time to where they are to be.

    Args:
        dtype: of all but the head; bfloat16, in which it was published, by default.
        devices: the CPU by default; see ``vision_language.load_network``.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
    """
    source = str(paths.weights)
    if not paths.weights.is_file():
        raise CheckpointError(
            f"{paths.weights.parent} lacks {paths.weights.name}: HPSv3 is the weights of MizzenAI/HPSv3 beside config.json and "
            "tokenizer.json of Qwen/Qwen2-VL-7B-Instruct, which alone is not a scorer"
        )
    pieces = pieces_of([paths.weights])
    if not any(piece.startswith("rm_head.") for piece in pieces):
        raise CheckpointError(
            f"{source} is not an HPSv3 checkpoint: it has no head (rm_head) beside the language model; "
            "use HPSv3.safetensors of MizzenAI/HPSv3"
        )
    config = _config(paths.config)
    template = ChatTemplate.from_file(
        paths.tokenizer,
        chat_text(),
        new_tokens=(REWARD_TOKEN,),
        last_token=REWARD_TOKEN,
        most_tokens=longest_text(config, paths.config, _LEFT_FOR_THE_IMAGE),
    )
    if (number := template.token_id(template.image_token)) != config.image_token_id:
        raise CheckpointError(
            f"{paths.tokenizer} gives {template.image_token} the number {number}, and {paths.config} {config.image_token_id}: they are of "
            "different models"
        )
    # The original cuts the embeddings to the tokens that there are, and adds its own.
    config.text_config.vocab_size = template.vocab_size
    network = built(lambda: empty_hpsv3(config), paths.config, "Qwen2-VL")
    hint = f". The sizes are those of {paths.config} and {paths.tokenizer}: is it of another base?"
    own = network_names(pieces, source, (template.vocab_size, config.text_config.hidden_size), hint)
    dtype = dtype or HPSv3Scorer.default_dtype
    load_network(network, own, source, dtype=dtype, devices=devices, float32=["rm_head"], hint=hint)
    vision = config.vision_config
    patches = ImagePatches(
        NUM_PIXELS,
        NUM_PIXELS,
        vision.patch_size,
        vision.spatial_merge_size,
        vision.temporal_patch_size,
        options=options or ImageOptions(),
    )
    scorer = HPSv3Scorer(network, VisionLanguageProcessor(patches, template), name)
    scorer.is_spread = devices == "auto"
    return scorer.eval()


def network_names(pieces: Mapping[str, Piece], source: str, vocabulary: tuple[int, int], hint: str = "") -> dict[str, Piece]:
    """What a file holds, under the names that transformers 4.45 gave -> under ours. The language head, which nothing reads, is left out.

    Raises ``CheckpointError`` for a language head of another shape than ``vocabulary``. Other names are kept, for the loader to refuse.
    """
    renamed: dict[str, Piece] = {}
    for name, piece in pieces.items():
        if name == "lm_head.weight":
            if piece.shape != vocabulary:
                raise CheckpointError(
                    f"{source} does not fit the network: {name} has shape {piece.shape} and should have {vocabulary}{hint}"
                )
        elif name.startswith("visual."):
            renamed[f"model.{name}"] = piece
        elif name.startswith("model."):
            renamed[f"model.language_model.{name.removeprefix('model.')}"] = piece
        else:
            renamed[name] = piece
    return renamed


def _config(file: Path) -> Qwen2VLConfig:
    from transformers import Qwen2VLConfig

    values = read_object(file)
    kind = values.get("model_type")
    if kind != "qwen2_vl":
        raise CheckpointError(
            f"{file} is of model_type {kind!r:.60}, and HPSv3 is built on 'qwen2_vl'; use that of Qwen/Qwen2-VL-7B-Instruct"
        )
    return built(lambda: Qwen2VLConfig(**values), file, "Qwen2-VL")
