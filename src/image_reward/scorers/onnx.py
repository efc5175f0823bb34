"""A scorer as an ONNX file, for programs without PyTorch, checked against PyTorch before it is kept; and that file as a scorer again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from image_reward.config import ScorerConfig
from image_reward.errors import CheckpointError, InputError
from image_reward.files import open_regular, written_whole
from image_reward.images import ImageTransform
from image_reward.prompts import PromptTokenizer
from image_reward.scorers.base import Scorer
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.scorers.precision import is_quantized
from image_reward.scorers.two_tower import TwoTowerBatch, TwoTowerProcessor
from image_reward.types import ImageOptions, LongPrompts

OPSET = 18
INPUTS = ["pixels", "ids", "mask"]
TOLERANCE = 1e-3
"""How far a reward of the file may be from PyTorch's. Order-one rewards in float32 are some 1e-6 apart unless weights amplify rounding."""
_LARGEST_FILE = 2_000_000_000  # bytes of weights; protobuf, of which ONNX files are made, ends at 2 GiB
_CHECKED_SHAPES = ((1, 2), (2, 3), (3, 17), (5, 0))
"""Images and prompt tokens at which a file is checked; 0 stands for as many tokens as the model reads."""


class _Rewards(nn.Module):
    """Prepared pairs -> rewards: pixels uint8 [I, 3, S, S], ids int64 [I, L], mask bool [I, L] -> [I]."""

    def __init__(self, scorer: ImageRewardScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        features = self.scorer.encode_images(pixels)
        return self.scorer.score_pairs(features, ids[:, None], mask[:, None])[:, 0]


def export_onnx(scorer: Scorer[Any], path: Path) -> float:
    """Write a scorer in float32 as one ONNX file; any number of images, each with its prompt, any prompt length the model reads.

    Inputs: ``pixels`` uint8 [I, 3, S, S], RGB as ``TwoTowerProcessor.pixels`` makes them (normalisation is inside); ``ids`` int64 [I, L];
    ``mask`` bool [I, L], False for padding. Output: ``rewards`` float32 [I]. The file's metadata say what the model is and how prompts
    become ids. The file appears only after ONNX Runtime computed, at several shapes, what PyTorch does.

    PyTorch's exporter writes notes about itself as warnings and to the log, which are left to the caller to silence.

    Returns the largest difference from PyTorch's rewards. Raises ``ValueError`` where a library is missing or the scorer cannot be
    exported, ``CheckpointError`` where the file computes something else.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 - for the check after the export
        import onnxscript  # noqa: F401 - what PyTorch's exporter writes with
    except ImportError as error:
        raise InputError(f"export to ONNX needs {error.name}: pip install 'image-reward[export]'") from None
    if not isinstance(scorer, ImageRewardScorer):
        raise InputError(f"{scorer.name} ({type(scorer).__name__}) cannot be exported: only models of ImageReward's architecture can")
    if is_quantized(scorer):
        raise InputError("a scorer of dtype int8 cannot be exported; load it in float32")
    size = sum(p.numel() * p.element_size() for p in scorer.parameters())
    if size > _LARGEST_FILE:
        raise InputError(f"{scorer.name} has {size:,} bytes of weights; one ONNX file holds at most {_LARGEST_FILE:,}")
    network = _Rewards(scorer).eval()
    model = _to_onnx(scorer, network)
    onnx.helper.set_model_props(model, metadata(scorer))
    with written_whole(path) as temporary:
        onnx.save_model(model, temporary)
        difference = _largest_difference(scorer, network, temporary)
        if not difference <= TOLERANCE:  # NaN too
            raise CheckpointError(
                f"the ONNX file computes rewards up to {difference:.2e} from PyTorch's (at most {TOLERANCE:g} is accepted); it was deleted"
            )
    return difference


def _to_onnx(scorer: ImageRewardScorer, network: nn.Module) -> Any:
    """The network as an ``onnx.ModelProto``."""
    # Two images at least: with one, the exporter would take the batch for a constant.
    example = _inputs(scorer.config, 2, min(5, scorer.config.max_tokens))
    images, tokens = torch.export.Dim("images"), torch.export.Dim("tokens", max=scorer.config.max_tokens)
    dynamic = ({0: images}, {0: images, 1: tokens}, {0: images, 1: tokens})
    with torch.no_grad():
        # Strict: the other way of tracing takes len(tensor) for a constant.
        traced = torch.export.export(network, example, dynamic_shapes=dynamic, strict=True)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=["rewards"],
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def metadata(scorer: ImageRewardScorer) -> dict[str, str]:
    """What stands in the file's ``metadata_props``: all that a program needs besides the network."""
    words = scorer.prepare.tokenizer
    assert isinstance(words, PromptTokenizer)
    tokenizer = {
        "kind": "WordPiece of bert-base-uncased, lower-cased; [PAD] fills on the right",
        "cls": words.token_id("[CLS]"),
        "sep": words.token_id("[SEP]"),
        "pad": 0,
        "max_tokens": scorer.config.max_tokens,
        "vocabulary": scorer.config.vocabulary,
    }
    transform = {
        "resize": f"shorter side to {scorer.config.image.size} px, Pillow's bicubic filter; longer side truncated to an integer",
        "crop": f"centre {scorer.config.image.size} x {scorer.config.image.size}, offset rounded half to even",
        "pixels": "RGB, uint8, [I, 3, S, S]; the network normalises them",
    }
    return {
        "name": scorer.name,
        "config": scorer.config.to_json(),
        "tokenizer": json.dumps(tokenizer),
        "transform": json.dumps(transform),
        "opset": str(OPSET),
    }


def _inputs(config: ScorerConfig, num_images: int, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random pixels, and ids of which every second row is shorter by one where there is room for it."""
    random = torch.Generator("cpu").manual_seed(num_images)
    size = config.image.size
    pixels = torch.randint(0, 256, (num_images, 3, size, size), generator=random, dtype=torch.uint8, device="cpu")
    ids = torch.randint(5, config.network.vocab_size, (num_images, num_tokens), generator=random, device="cpu")
    mask = torch.ones(num_images, num_tokens, dtype=torch.bool, device="cpu")
    if num_tokens > 2:
        mask[1::2, -1] = False
    return pixels, ids, mask


def _largest_difference(scorer: ImageRewardScorer, network: nn.Module, path: Path) -> float:
    import onnxruntime

    longest = scorer.config.max_tokens
    checked = [_inputs(scorer.config, num_images, min(num_tokens or longest, longest)) for num_images, num_tokens in _CHECKED_SHAPES]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        results = [session.run(None, dict(zip(INPUTS, (value.numpy() for value in inputs), strict=True))) for inputs in checked]
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise CheckpointError(f"ONNX Runtime cannot run the file, so it was deleted: {error}") from error
    largest = 0.0
    for inputs, (rewards,) in zip(checked, results, strict=True):
        with torch.inference_mode():
            expected = network(*inputs).numpy()
        if rewards.shape != expected.shape:
            return float("inf")
        largest = float(np.maximum(largest, np.abs(rewards - expected).max()))  # NaN stays
    return largest


# --- the file as a scorer ----------------------------------------------------------------------------------------------------------------


class OnnxScorer(Scorer[TwoTowerBatch]):
    """A file that ``export_onnx`` wrote, computed by ONNX Runtime on the CPU in float32. It gives no gradients."""

    digest: Tensor
    """Of the file."""

    def __init__(self, path: Path, name: str, options: ImageOptions | None = None, long_prompts: LongPrompts = "truncate") -> None:
        """Raises ``InputError`` without ONNX Runtime, ``CheckpointError`` for a file that is damaged or of another origin."""
        super().__init__()
        self.name, self.path = name, path.absolute()
        self.session, self.config = _open(path)
        # In place of weights, for whoever asks whether saved rewards are of this scorer.
        self.register_buffer("digest", _digest(path), persistent=False)
        self.tie, self.scale, self.reference = self.config.reward.tie, self.config.reward.std, self.config.reward.reference
        transform = ImageTransform(self.config.image.size, self.config.image.mean, self.config.image.std, options or ImageOptions())
        self.prepare = TwoTowerProcessor(transform, PromptTokenizer(self.config.max_tokens, long_prompts, self.config.vocabulary))

    def forward(self, batch: TwoTowerBatch) -> Tensor:
        if not len(batch):
            return torch.empty(0, dtype=torch.float32, device="cpu")
        inputs = (batch.pixels[batch.image_index], batch.ids, batch.mask)
        (rewards,) = self.session.run(None, {name: tensor.cpu().numpy() for name, tensor in zip(INPUTS, inputs, strict=True)})
        return torch.from_numpy(rewards)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "session"}  # which can be neither pickled nor copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.session, _ = _open(self.path)
        if not torch.equal(_digest(self.path), self.digest.cpu()):
            raise CheckpointError(f"{self.path} has changed since it was loaded; load it again")

    def cast(self, dtype: torch.dtype) -> None:
        if dtype is not torch.float32:
            raise InputError(
                f"{self.name} is an ONNX file, which computes in float32; for another dtype load the model it was exported from"
            )


def _digest(path: Path) -> Tensor:
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _open(path: Path) -> tuple[Any, ScorerConfig]:
    """ONNX Runtime's session of a file, tried on an image, and the config in its metadata."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path} is computed by ONNX Runtime, which is missing: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: what is wrong is said once, below
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise CheckpointError(
            f"{path} is damaged, or not an ONNX file ({' '.join(str(error).split()):.200}); write it again with `image-reward export`"
        ) from None
    carried = session.get_modelmeta().custom_metadata_map.get("config")
    if carried is None or [node.name for node in session.get_inputs()] != INPUTS:
        raise CheckpointError(
            f"{path} is an ONNX file of another program: only what `image-reward export` writes says how images and prompts are prepared"
        )
    config = ScorerConfig.from_json(carried, f"the config in the metadata of {path}")
    if config.architecture != "ImageReward":
        raise CheckpointError(f"{path} is of architecture {config.architecture!r}, which this release does not know")
    tried = _inputs(config, 1, config.max_tokens)
    try:
        (rewards,) = session.run(None, dict(zip(INPUTS, (value.numpy() for value in tried), strict=True)))
        is_reward = rewards.shape == (1,) and rewards.dtype == np.float32 and bool(np.isfinite(rewards).all())
    except Exception:  # ONNX Runtime's errors share no base class
        is_reward = False
    if not is_reward:
        raise CheckpointError(
            f"{path} does not compute a finite reward from an image and a prompt; write it again with `image-reward export`"
        )
    return session, config
