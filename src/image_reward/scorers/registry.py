"""The one table of scorers that have a name: those of this package, and those that other packages add."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint, entry_points

from image_reward.config import (
    CONFIG_NAME,
    GENERATION_NAME,
    HPSV3_NAME,
    PICKLE_NAME,
    PREPROCESSOR_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    ScorerConfig,
)
from image_reward.downloads import INDEX_SUFFIX, HubFile, WebFile
from image_reward.scorers.build import (
    build_aesthetic,
    build_aesthetic25,
    build_blip,
    build_blip_matching,
    build_hpsv2,
    build_hpsv3,
    build_imagereward,
    build_mps,
    build_openai_clip,
    build_pickscore,
    build_unified_reward,
    build_vqascore,
)
from image_reward.scorers.spec import ModelSpec

ENTRY_POINTS = "image_reward.scorers"
"""The entry point group in which other packages name their ``ModelSpec``s."""

_OPENAI, _OPENCLIP, _PICK = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "yuvalkirstain/PickScore_v1"
_CLIP = {
    "config": HubFile(_OPENAI, CONFIG_NAME),
    "weights": HubFile(_OPENAI, WEIGHTS_NAME, 1_710_540_580, "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"),
    "preprocessor": HubFile(_OPENAI, PREPROCESSOR_NAME),
    "tokenizer": HubFile(_OPENAI, TOKENIZER_NAME),
}
_PICKSCORE = {
    "config": HubFile(_PICK, CONFIG_NAME),
    "weights": HubFile(_PICK, WEIGHTS_NAME),
    "preprocessor": HubFile(_OPENCLIP, PREPROCESSOR_NAME),
    "tokenizer": HubFile(_OPENCLIP, TOKENIZER_NAME),
}
_VIT_H_PARAMETERS = 986_109_441
_AESTHETIC_HEAD = WebFile(
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    size=3_714_759,
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    original_cache="~/.cache/ImageReward",
)
_SIGLIP = "google/siglip-so400m-patch14-384"
_QWEN2_VL = "Qwen/Qwen2-VL-7B-Instruct"
_BLIP_URL = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"


def _chat_model(repo: str, in_parts: bool = True) -> dict[str, HubFile]:
    """The files of a Qwen2.5-VL or Qwen3-VL. ``in_parts``: whether its weights are in several."""
    names = {
        "config": CONFIG_NAME,
        **({"index": WEIGHTS_NAME + INDEX_SUFFIX} if in_parts else {"weights": WEIGHTS_NAME}),
        "tokenizer": TOKENIZER_NAME,
        "generation": GENERATION_NAME,
        "preprocessor": PREPROCESSOR_NAME,
        "chat": "tokenizer_config.json",
    }
    return {part: HubFile(repo, name) for part, name in names.items()}


def _clip_flan_t5(size: str, weights: str) -> dict[str, HubFile]:
    repo = f"zhiqiulin/clip-flant5-{size}"
    part = "index" if weights.endswith(INDEX_SUFFIX) else "weights"
    return {
        "config": HubFile(repo, CONFIG_NAME),
        part: HubFile(repo, weights),
        "tokenizer": HubFile(f"google/flan-t5-{size}", TOKENIZER_NAME),
    }


def _unified_reward(base: str, size: str, repo: str, num_weights: int, description: str = "") -> dict[str, ModelSpec]:
    """A row of the table: the judge of this name, and the number of weights that it has."""
    name = f"UnifiedReward-2.0-{base}-{size}"
    billions, gigabytes = num_weights / 1e9, 2 * num_weights / 1e9
    spec = ModelSpec(
        description=description or f"as UnifiedReward-2.0-Qwen3-VL-8B, written by a {base}-{size}",
        licence="MIT",
        range="1 to 5",
        build=build_unified_reward,
        files=_chat_model(f"CodeGoat24/UnifiedReward-2.0-{repo}", in_parts=2 * num_weights > 5e9),  # as transformers divided them
        least_size=2 * num_weights,
        notice=f"{name} has {billions:.1f} billion weights: {gigabytes:.1f} GB are downloaded once, and as much memory is needed",
    )
    return {name: spec}


MODELS: dict[str, ModelSpec] = {
    "ImageReward-mini": ModelSpec(
        description="a careful annotator's preference among drawn shapes; a small model for trying things out",
        licence="Apache-2.0",
        range="mean 0, std 1 on drawings",
        build=build_imagereward,
        packaged="assets/ImageReward-mini",
        notice="ImageReward-mini knows only drawn shapes; for pictures use ImageReward-v1.0, which is downloaded once (1.8 GB)",
    ),
    "ImageReward-v1.0": ModelSpec(
        description="human preference for an image given its prompt (Xu et al., NeurIPS 2023)",
        licence="Apache-2.0",
        range="about -2.5 to 2",
        build=build_imagereward,
        files={
            "weights": HubFile(
                repo="THUDM/ImageReward",
                name="ImageReward.pt",
                size=1_786_880_927,
                sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
                original_cache="~/.cache/ImageReward",
            ),
        },
        config=ScorerConfig(),
    ),
    "PickScore": ModelSpec(
        description="human choice among images for a prompt: exp(logit_scale) * cosine (Kirstain et al., NeurIPS 2023)",
        licence="MIT",
        range="about 10 to 30",
        build=build_pickscore,
        files=_PICKSCORE,
        least_size=4 * _VIT_H_PARAMETERS,
    ),
    "HPSv2": ModelSpec(
        description="human preference among images for a prompt: a cosine (Wu et al. 2023)",
        licence="Apache-2.0",
        range="[-1, 1], about 0.2 to 0.35",
        build=build_hpsv2,
        files={"weights": HubFile("xswu/HPSv2", "HPS_v2_compressed.pt"), "tokenizer": _CLIP["tokenizer"]},
        least_size=2 * _VIT_H_PARAMETERS,  # saved in half precision
    ),
    "HPSv2.1": ModelSpec(
        description="as HPSv2, trained on more data; on its own scale",
        licence="Apache-2.0",
        range="[-1, 1], about 0.2 to 0.35",
        build=build_hpsv2,
        files={"weights": HubFile("xswu/HPSv2", "HPS_v2.1_compressed.pt"), "tokenizer": _CLIP["tokenizer"]},
        least_size=2 * _VIT_H_PARAMETERS,  # saved in half precision
    ),
    "MPS": ModelSpec(
        description="human preference among images for a prompt: a CLIP that reads the image with it in mind (Zhang et al., CVPR 2024)",
        licence="MIT",
        range="[-100, 100], of the order of 10",
        build=build_mps,
        files={
            "weights": HubFile("RE-N-Y/mpsv1", WEIGHTS_NAME),
            "config": HubFile(_OPENCLIP, CONFIG_NAME),
            "preprocessor": HubFile(_OPENCLIP, PREPROCESSOR_NAME),
            "tokenizer": HubFile(_OPENCLIP, TOKENIZER_NAME),
        },
        least_size=4 * (_VIT_H_PARAMETERS + 118_505_600),
    ),
    "HPSv3": ModelSpec(
        description="human preference for an image given its prompt, and how sure of it: a Qwen2-VL-7B (Ma et al., ICCV 2025)",
        licence="Apache-2.0",
        range="about -2 to 14",
        build=build_hpsv3,
        files={
            "weights": HubFile("MizzenAI/HPSv3", HPSV3_NAME),
            "config": HubFile(_QWEN2_VL, CONFIG_NAME),
            "tokenizer": HubFile(_QWEN2_VL, TOKENIZER_NAME),
        },
        least_size=2 * 7_748_610_610,
        notice="HPSv3 has 8.3 billion weights: 16.6 GB are downloaded once, and as much memory is needed",
    ),
    "VQAScore-Qwen2.5-VL-7B": ModelSpec(
        description="whether the image shows the prompt: log odds of Qwen2.5-VL's answer Yes (Lin et al., ECCV 2024)",
        licence="Apache-2.0",
        range="any; 0 is even odds",
        build=build_vqascore,
        files=_chat_model("Qwen/Qwen2.5-VL-7B-Instruct"),
        least_size=2 * 8_292_166_656,
        notice="VQAScore-Qwen2.5-VL-7B has 8.3 billion weights: 16.6 GB are downloaded once, and as much memory is needed",
    ),
    "VQAScore-Qwen3-VL-8B": ModelSpec(
        description="whether the image shows the prompt: log odds of Qwen3-VL's answer Yes (Lin et al., ECCV 2024)",
        licence="Apache-2.0",
        range="any; 0 is even odds",
        build=build_vqascore,
        files=_chat_model("Qwen/Qwen3-VL-8B-Instruct"),
        least_size=2 * 8_767_123_696,
        notice="VQAScore-Qwen3-VL-8B has 8.8 billion weights: 17.5 GB are downloaded once, and as much memory is needed",
    ),
    "VQAScore-CLIP-FlanT5-XL": ModelSpec(
        description="whether the image shows the prompt: log odds of CLIP-FlanT5-XL's answer Yes (Lin et al., ECCV 2024)",
        licence="Apache-2.0",
        range="any; 0 is even odds",
        build=build_vqascore,
        files=_clip_flan_t5("xl", PICKLE_NAME),
        least_size=2 * 3_159_560_192,
        notice="VQAScore-CLIP-FlanT5-XL has 3.2 billion weights: 6.3 GB are downloaded once, and as much memory is needed",
    ),
    "VQAScore-CLIP-FlanT5-XXL": ModelSpec(
        description="as VQAScore-CLIP-FlanT5-XL, of the larger network, whose results the paper reports",
        licence="Apache-2.0",
        range="any; 0 is even odds",
        build=build_vqascore,
        files=_clip_flan_t5("xxl", PICKLE_NAME + INDEX_SUFFIX),
        least_size=2 * 11_459_819_520,
        notice="VQAScore-CLIP-FlanT5-XXL has 11.5 billion weights: 23 GB are downloaded once, and as much memory is needed",
    ),
    **_unified_reward(
        "Qwen3-VL",
        "8B",
        "qwen3vl-8b",
        8_767_123_696,
        "what a Qwen3-VL-8B writes of alignment, coherence and style of an image for its prompt: their mean (Wang et al. 2025)",
    ),
    **_unified_reward("Qwen3-VL", "2B", "qwen3vl-2b", 2_127_532_032),
    **_unified_reward("Qwen3-VL", "4B", "qwen3vl-4b", 4_437_815_808),
    **_unified_reward("Qwen3-VL", "32B", "qwen3vl-32b", 33_357_390_064),
    **_unified_reward("Qwen2.5-VL", "3B", "qwen-3b", 3_754_622_976),
    **_unified_reward("Qwen2.5-VL", "7B", "qwen-7b", 8_292_166_656),
    **_unified_reward("Qwen2.5-VL", "32B", "qwen-32b", 33_452_718_336),
    **_unified_reward("Qwen2.5-VL", "72B", "qwen-72b", 73_410_777_344),
    "CLIP": ModelSpec(
        description="how well image and prompt match: the cosine of OpenAI's ViT-L/14 (Radford et al., ICML 2021)",
        licence="MIT",
        range="[-1, 1], about 0.1 to 0.35",
        build=build_openai_clip,
        files=_CLIP,
    ),
    "Aesthetic": ModelSpec(
        description="how good an image looks, regardless of the prompt: a head on CLIP's image embedding (Schuhmann 2022)",
        licence="Apache-2.0",
        range="1 to 10, about 4 to 7",
        build=build_aesthetic,
        files={"head": _AESTHETIC_HEAD, **_CLIP},
    ),
    "Aesthetic-v2.5": ModelSpec(
        description="as Aesthetic, trained on more kinds of images: a head on SigLIP's image features (discus0434 2024)",
        licence="AGPL-3.0",
        range="1 to 10; 5.5 and more is very good",
        build=build_aesthetic25,
        files={
            "head": WebFile(
                "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/aesthetic_predictor_v2_5.pth",
                original_cache="~/.cache/torch/hub/checkpoints",
            ),
            "config": HubFile(_SIGLIP, CONFIG_NAME),
            "weights": HubFile(_SIGLIP, WEIGHTS_NAME),
            "preprocessor": HubFile(_SIGLIP, PREPROCESSOR_NAME),
        },
        least_size=4 * (428_225_600 + 1_321_185),
        notice="the weights of Aesthetic-v2.5 are under the AGPL-3.0, which binds who shares them or serves what they are part of",
    ),
    "BLIP": ModelSpec(
        description="how well image and prompt match: the cosine of BLIP's contrastive features (Li et al., ICML 2022)",
        licence="BSD-3-Clause",
        range="[-1, 1]",
        build=build_blip,
        files={"weights": WebFile(_BLIP_URL + "model_large.pth", original_cache="~/.cache/ImageReward")},
        least_size=4 * 445_737_984,
    ),
    "BLIP-ITM": ModelSpec(
        description="whether the prompt describes the image: log odds of BLIP's matching head, fine-tuned on COCO (Li et al., ICML 2022)",
        licence="BSD-3-Clause",
        range="any; 0 is even odds",
        build=build_blip_matching,
        files={"weights": WebFile(_BLIP_URL + "model_large_retrieval_coco.pth")},
        least_size=4 * 446_128_642,
    ),
}


def specs() -> dict[str, ModelSpec]:
    """All scorers that have a name: those of this package, then those of other packages. One that cannot be loaded is a warning."""
    return MODELS | {name: spec for name, point in scorer_entry_points().items() if (spec := _spec_of(point))}


def spec_of(name: str) -> ModelSpec | None:
    """The scorer of a name, or None. No other package is imported but the one that the name is from."""
    if name in MODELS:
        return MODELS[name]
    point = scorer_entry_points().get(name)
    return _spec_of(point) if point else None


def scorer_entry_points() -> dict[str, EntryPoint]:
    """By name; a name that is taken is a warning."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in MODELS or points.setdefault(point.name, point) != point:
            by = "this package's own" if point.name in MODELS else f"that of {package_of(points[point.name])}"
            warnings.warn(f"{package_of(point)} names a scorer {point.name}, but the name is taken: {by} is used", stacklevel=3)
    return points


def _spec_of(point: EntryPoint) -> ModelSpec | None:
    try:
        spec = point.load()
    except (Exception, SystemExit) as error:  # whatever the code of another package does
        warnings.warn(f"the scorer {point.name} of {package_of(point)} cannot be loaded: {type(error).__name__}: {error}", stacklevel=3)
        return None
    if not isinstance(spec, ModelSpec):
        warnings.warn(f"the scorer {point.name} of {package_of(point)} is not a ModelSpec: {point.value} is {spec!r:.80}", stacklevel=3)
        return None
    return spec


def package_of(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else f"the module {point.module}"
