"""Nodes for ComfyUI: images are scored for a prompt, ranked, chosen, filtered and compared.

A reward is that of the file which SaveImage would write: floats are cut to 8 bits as it does. Every node gives one reward for each image of
the batch. The functions before the nodes need no ComfyUI; what they ask of it is in ``Progress`` and ``Model``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import image_reward as ir
from image_reward.scorers import MODELS, Ensemble, Reference, Scorer
from image_reward.types import Preference, Ranking

try:
    import comfy.model_management as model_management
    import comfy.utils as comfy_utils
    import folder_paths
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("comfy", "folder_paths"):
        raise
    model_management = comfy_utils = folder_paths = None  # outside ComfyUI

FOLDER = "image_reward"
"""The folder of ComfyUI's models that holds checkpoints, model folders and JSON files of ensembles."""
SUFFIXES = (".safetensors", ".pt", ".onnx", ".json")
AUTO, CPU = "auto", "cpu"
BLOCK, BEST, ERROR = "stop this branch", "pass on the best image", "report an error"

Step = Callable[[int], None]
"""Called with the number of images that have been scored since the last call; raises to stop."""

if folder_paths is not None:
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


# --- rewards -------------------------------------------------------------------------------------------------------------------------


def saved_pixels(images: Tensor) -> list[Any]:
    """ComfyUI's IMAGE, floats [B, H, W, C] -> uint8 arrays [H, W, C], as SaveImage writes them.

    Raises ``InputError`` for other shapes and for NaN.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ir.InputError(f"images must be a batch [B, H, W, 1, 3 or 4], not {list(images.shape)}")
    if not bool(images.isfinite().all()):
        raise ir.InputError("images hold NaN or infinite values: the VAE or an earlier node produced them; try it in float32")
    return list((images.detach().cpu().float() * 255).clamp(0, 255).to(torch.uint8).numpy())


def score(scorer: Scorer[Any], prompt: str, images: Tensor, step: Step = lambda _: None) -> list[float]:
    """One reward for each image of a batch."""
    pixels = saved_pixels(images)
    rewards: list[float] = []
    for start in range(0, len(pixels), scorer.batch_size):
        some = pixels[start : start + scorer.batch_size]
        rewards += scorer.score(prompt, some)
        step(len(some))
    return rewards


def chosen(images: Tensor, rewards: Sequence[float], places: Sequence[int]) -> tuple[Tensor, list[float]]:
    """The images at these places of the batch, in their order, and their rewards."""
    return images[list(places)], [rewards[place] for place in places]


def best_places(rewards: Sequence[float], n: int) -> list[int]:
    """Where the n best images are, best first; all of them where there are fewer.

    >>> best_places([0.1, 1.5, -2.0], 2)
    [1, 0]
    """
    return Ranking.from_rewards(rewards).order[:n]


def passing_places(rewards: Sequence[float], threshold: float) -> list[int]:
    """Where the images are whose reward is at least the threshold, in the order of the batch.

    >>> passing_places([0.1, 1.5, -2.0], 0.1)
    [0, 1]
    """
    return [place for place, reward in enumerate(rewards) if reward >= threshold]


def pairs(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Image by image [1, H, W, C]; a single image is paired with each of the other batch."""
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ir.InputError(f"{len(a)} and {len(b)} images: both batches must have the same length, or one of them a single image")
    return [(a[i % len(a)][None], b[i % len(b)][None]) for i in range(max(len(a), len(b)))]


def compare(
    scorer: Scorer[Any], prompt: str, images: Sequence[tuple[Tensor, Tensor]], step: Step = lambda _: None
) -> tuple[list[Preference], list[Tensor]]:
    """The preference in each pair, and its better image: the first, where both have one reward."""
    preferences = []
    for pair in images:
        preferences.append(scorer.compare(prompt, *(saved_pixels(image)[0] for image in pair)))
        step(1)
    return preferences, [pair[of.rewards[1] > of.rewards[0]] for of, pair in zip(preferences, images, strict=True)]


def combine(
    scorers: Sequence[Scorer[Any]],
    weights: Sequence[float],
    reward: str,
    penalty: float,
    reference_rewards: Callable[[Scorer[Any]], Sequence[float]] | None = None,
) -> Ensemble:
    """Several scorers as one. ``reference_rewards`` gives those by which a member's rewards are normalised, in place of the published."""
    members: dict[str, Scorer[Any]] = {}
    for scorer in scorers:
        number = sum(name.split(" #")[0] == scorer.name for name in members) + 1
        members[scorer.name if number == 1 else f"{scorer.name} #{number}"] = scorer
    references = None
    if reference_rewards is not None:
        references = {name: Reference.from_rewards(reference_rewards(one), "reference images") for name, one in members.items()}
    return Ensemble(members, dict(zip(members, weights, strict=True)), references, reward, penalty)  # type: ignore[arg-type]


def listed(rewards: Sequence[float], places: Sequence[int]) -> str:
    """One line for each image: its reward and its place in the batch, counted from 1.

    >>> print(listed([0.1, 1.5], [1, 0]))
    +1.5000  image 2
    +0.1000  image 1
    """
    return "\n".join(f"{rewards[place]:+.4f}  image {place + 1}" for place in places)


# --- the host ------------------------------------------------------------------------------------------------------------------------


def model_choices() -> list[str]:
    """The registered names, and what lies in ``models/image_reward``: checkpoints, folders with a config.json, JSON files of ensembles."""
    files = [name.replace("\\", "/") for name in folder_paths.get_filename_list(FOLDER)] if folder_paths is not None else []
    folders = [name.removesuffix("/config.json") for name in files if name.endswith("/config.json")]
    single = [name for name in files if name.lower().endswith(SUFFIXES) and name.rpartition("/")[0] not in folders]
    return [*MODELS, *folders, *single]


def model_path(name: str) -> str:
    """What ``image_reward.load`` takes for one of the choices. Raises ``FileNotFoundError``."""
    if name in MODELS or folder_paths is None:
        return name
    if name.lower().endswith(SUFFIXES):
        return str(folder_paths.get_full_path_or_raise(FOLDER, name))
    return str(Path(folder_paths.get_full_path_or_raise(FOLDER, f"{name}/config.json")).parent)


class Progress:
    """ComfyUI's progress bar; an interruption by the user is raised at each step."""

    def __init__(self, total: int) -> None:
        self.bar = comfy_utils.ProgressBar(total) if comfy_utils is not None else None
        self(0)

    def __call__(self, num_images: int) -> None:
        if model_management is not None:
            model_management.throw_exception_if_processing_interrupted()
        if self.bar is not None and num_images:
            self.bar.update(num_images)


@dataclass(frozen=True)
class Model:
    """What the nodes pass on as IMAGE_REWARD_MODEL: a scorer that is on ``device`` only while it scores."""

    scorer: Scorer[Any]
    device: torch.device
    offload: torch.device

    @classmethod
    def load(cls, name: str, dtype: str, device: str) -> Model:
        compute = offload = torch.device("cpu")
        if device == AUTO and model_management is not None:
            compute, offload = model_management.text_encoder_device(), model_management.text_encoder_offload_device()
        model = cls(ir.load(model_path(name), offload, dtype), compute, offload)
        model.scorer.batch_size = 8 if compute.type == "cpu" else 32
        return model

    @contextmanager
    def ready(self) -> Iterator[Scorer[Any]]:
        """The scorer on its device; it makes room there first, and leaves it again."""
        moves = self.device != self.offload
        try:
            if moves:
                size = sum(tensor.nbytes for tensor in (*self.scorer.parameters(), *self.scorer.buffers()))
                model_management.free_memory(1.5 * size, self.device)  # half as much again is for activations
                self._move(self.device)
            yield self.scorer
        finally:
            if moves:
                self._move(self.offload)
                model_management.soft_empty_cache()

    @torch.inference_mode(False)  # nodes run under it, and weights that are made there could never give gradients
    def _move(self, device: torch.device) -> None:
        self.scorer.to(device)

    def score(self, prompt: str, images: Tensor) -> list[float]:
        with self.ready() as scorer:
            return score(scorer, prompt, images, Progress(len(images)))


def blocker() -> Any:
    """The value that stops the branch of a graph behind it, without an error."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(None)


# --- the nodes -----------------------------------------------------------------------------------------------------------------------

PROMPT = ("STRING", {"multiline": True, "default": "", "tooltip": "The prompt that the images were made for."})
MODEL = ("IMAGE_REWARD_MODEL", {"tooltip": "From Load Image Reward or Image Reward Ensemble."})
IMAGES = ("IMAGE", {"tooltip": "A batch; each of its images gets a reward."})


class Node:
    CATEGORY = "image reward"
    FUNCTION = "run"


class Load(Node):
    DESCRIPTION = "Loads a reward model: a registered name, or what lies in models/image_reward. Names are downloaded once."
    RETURN_TYPES = ("IMAGE_REWARD_MODEL",)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's names
        return {
            "required": {
                "model": (model_choices(), {"default": "ImageReward-v1.0"}),
                "dtype": (["float32", "bfloat16", "float16"], {"tooltip": "float32 repeats published rewards."}),
                "device": (
                    [AUTO, CPU],
                    {"tooltip": "auto: where ComfyUI computes text encoders. The model is there only while it scores."},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, model: str, dtype: str, device: str) -> str:  # noqa: N802, ARG003
        """A file that was replaced is loaded again."""
        path = Path(model_path(model))
        return (
            model if model in MODELS or not path.exists() else f"{model} {max(file.stat().st_mtime_ns for file in (path, *path.glob('*')))}"
        )

    def run(self, model: str, dtype: str, device: str) -> tuple[Model]:
        return (Model.load(model, dtype, device),)


class Score(Node):
    DESCRIPTION = "The reward of each image of a batch: higher is better."
    OUTPUT_NODE = True  # the rewards are part of the answer of the server's /history
    RETURN_TYPES = ("FLOAT", "STRING")
    RETURN_NAMES = ("rewards", "text")
    OUTPUT_IS_LIST = (True, False)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": MODEL, "images": IMAGES, "prompt": PROMPT}}

    def run(self, model: Model, images: Tensor, prompt: str) -> dict[str, Any]:
        rewards = model.score(prompt, images)
        text = listed(rewards, range(len(rewards)))
        return {"ui": {"text": [text], "rewards": rewards}, "result": (rewards, text)}


class Rank(Node):
    DESCRIPTION = "The images of a batch, best first, with their rewards. ranking has the rank of each image of the incoming batch."
    RETURN_TYPES = ("IMAGE", "FLOAT", "INT", "STRING")
    RETURN_NAMES = ("images", "rewards", "ranking", "text")
    OUTPUT_IS_LIST = (False, True, True, False)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": MODEL, "images": IMAGES, "prompt": PROMPT}}

    def run(self, model: Model, images: Tensor, prompt: str) -> tuple[Tensor, list[float], list[int], str]:
        ranking = Ranking.from_rewards(model.score(prompt, images))
        return *chosen(images, ranking.rewards, ranking.order), ranking.ranking, listed(ranking.rewards, ranking.order)


class PickBest(Node):
    DESCRIPTION = "The n best images of a batch, best first. places has their places in the incoming batch, counted from 0."
    RETURN_TYPES = ("IMAGE", "FLOAT", "INT", "STRING")
    RETURN_NAMES = ("images", "rewards", "places", "text")
    OUTPUT_IS_LIST = (False, True, True, False)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        n = ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "A smaller batch is passed on whole."})
        return {"required": {"model": MODEL, "images": IMAGES, "prompt": PROMPT, "n": n}}

    def run(self, model: Model, images: Tensor, prompt: str, n: int) -> tuple[Tensor, list[float], list[int], str]:
        rewards = model.score(prompt, images)
        places = best_places(rewards, n)
        return *chosen(images, rewards, places), places, listed(rewards, places)


class Filter(Node):
    DESCRIPTION = "The images of a batch whose reward is at least the threshold, in their order."
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("images", "rewards", "text")
    OUTPUT_IS_LIST = (False, True, False)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        threshold = ("FLOAT", {"default": 0.0, "min": -1000.0, "max": 1000.0, "step": 0.01, "tooltip": "On the scale of the model."})
        if_none = ([BLOCK, BEST, ERROR], {"tooltip": "What happens where no image passes."})
        return {"required": {"model": MODEL, "images": IMAGES, "prompt": PROMPT, "threshold": threshold, "if_none_passes": if_none}}

    def run(self, model: Model, images: Tensor, prompt: str, threshold: float, if_none_passes: str) -> tuple[Any, Any, str]:
        rewards = model.score(prompt, images)
        places = passing_places(rewards, threshold)
        text = f"{len(places)} of {len(rewards)} images have a reward of at least {threshold:g}\n{listed(rewards, places)}".strip()
        if not places and if_none_passes == ERROR:
            raise ir.InputError(f"no image has a reward of at least {threshold:g}: the best of {len(rewards)} has {max(rewards):.4f}")
        if not places and if_none_passes == BLOCK:
            return blocker(), blocker(), text
        return *chosen(images, rewards, places or best_places(rewards, 1)), text


class Compare(Node):
    DESCRIPTION = (
        "How likely people are to prefer the first image of each pair, or the second. A single image is compared with each of the other "
        "batch."
    )
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE", "FLOAT", "FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("better", "a_better", "tie", "b_better", "text")
    OUTPUT_IS_LIST = (True, True, True, True, False)  # the images of a pair may differ in size

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": MODEL, "images_a": IMAGES, "images_b": IMAGES, "prompt": PROMPT}}

    def run(self, model: Model, images_a: Tensor, images_b: Tensor, prompt: str) -> dict[str, Any]:
        both = pairs(images_a, images_b)
        with model.ready() as scorer:
            preferences, better = compare(scorer, prompt, both, Progress(len(both)))
        text = "\n".join(
            f"a better {100 * of.a_better:.1f} %, tie {100 * of.tie:.1f} %, b better {100 * of.b_better:.1f} % "
            f"(rewards {of.rewards[0]:+.4f} and {of.rewards[1]:+.4f})"
            for of in preferences
        )
        shares = ([of.a_better for of in preferences], [of.tie for of in preferences], [of.b_better for of in preferences])
        return {"ui": {"text": [text], "a_better": shares[0]}, "result": (better, *shares, text)}


class Combine(Node):
    DESCRIPTION = (
        "Several reward models as one: the weighted mean of their rewards, each normalised by its rewards of reference images. "
        "Without reference_images, the published references of ImageReward-v1.0 and CLIP are used."
    )
    RETURN_TYPES = ("IMAGE_REWARD_MODEL",)
    RETURN_NAMES = ("model",)
    MEMBERS: ClassVar = (1, 2, 3, 4)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        weight = ("FLOAT", {"default": 1.0, "min": 0.01, "max": 100.0, "step": 0.01})
        conservative = "conservative: the mean less penalty times the disagreement of the models."
        return {
            "required": {
                "model_1": MODEL,
                "model_2": MODEL,
                "reward": (["mean", "conservative"], {"tooltip": conservative}),
                "penalty": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.05}),
                **{f"weight_{i}": weight for i in cls.MEMBERS},
            },
            "optional": {
                **{f"model_{i}": MODEL for i in cls.MEMBERS[2:]},
                "reference_images": ("IMAGE", {"tooltip": "At least two images of the kind that will be scored; better many."}),
                "reference_prompt": ("STRING", {"default": "", "tooltip": "The prompt of the reference images."}),
            },
        }

    def run(
        self,
        reward: str,
        penalty: float,
        reference_images: Tensor | None = None,
        reference_prompt: str = "",
        **inputs: Any,
    ) -> tuple[Model]:
        numbers = [i for i in self.MEMBERS if inputs.get(f"model_{i}") is not None]
        models: list[Model] = [inputs[f"model_{i}"] for i in numbers]
        reference_rewards = None
        if reference_images is not None:
            model_of = {id(model.scorer): model for model in models}

            def reference_rewards(scorer: Scorer[Any]) -> list[float]:
                return model_of[id(scorer)].score(reference_prompt, reference_images)

        ensemble = combine([model.scorer for model in models], [inputs[f"weight_{i}"] for i in numbers], reward, penalty, reference_rewards)
        first = models[0]
        together = Model(ensemble, first.device, first.offload)
        together._move(first.offload)
        ensemble.batch_size = min(model.scorer.batch_size for model in models)
        return (together,)


# Saved workflows name the keys, so they never change. "ImageRewardLoader" and "ImageRewardScore" are another pack's.
NODE_CLASS_MAPPINGS: dict[str, type[Node]] = {
    "ImageReward_Load": Load,
    "ImageReward_Score": Score,
    "ImageReward_Rank": Rank,
    "ImageReward_PickBest": PickBest,
    "ImageReward_Filter": Filter,
    "ImageReward_Compare": Compare,
    "ImageReward_Ensemble": Combine,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ImageReward_Load": "Load Image Reward",
    "ImageReward_Score": "Image Reward Score",
    "ImageReward_Rank": "Image Reward Rank",
    "ImageReward_PickBest": "Image Reward Pick Best N",
    "ImageReward_Filter": "Image Reward Filter",
    "ImageReward_Compare": "Image Reward Compare",
    "ImageReward_Ensemble": "Image Reward Ensemble",
}
