"""What people import is a promise; and importing it must stay light."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import image_reward
import ImageReward
from image_reward.scorers import ImageRewardScorer

FORBIDDEN = {"torchvision", "timm", "open-clip-torch", "fairscale", "optimum-intel", "clip"}


def test_the_names_of_the_package() -> None:
    assert image_reward.__all__ == [
        "AsyncClient",
        "CheckpointError",
        "Client",
        "Comparison",
        "ComparisonError",
        "ComparisonWarning",
        "DownloadError",
        "ImageReadError",
        "ImageRewardError",
        "ImageRewardScorer",
        "InputError",
        "JobError",
        "LongPromptWarning",
        "Preference",
        "PromptError",
        "Ranking",
        "RewardError",
        "Scorer",
        "ScorerConfig",
        "ServiceError",
        "UnknownModelError",
        "__version__",
        "best_of",
        "load",
        "score_files",
    ]
    for name in image_reward.__all__:
        assert getattr(image_reward, name) is not None
    assert dir(image_reward) == sorted(image_reward.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        image_reward.lod  # noqa: B018


def test_the_names_of_image_reward_1() -> None:
    assert ImageReward.__all__ == [
        "MLP",
        "AestheticScore",
        "BLIPScore",
        "BLIP_Pretrain",
        "CLIPScore",
        "ImageReward",
        "ImageReward_download",
        "available_models",
        "available_scores",
        "load",
        "load_score",
    ]
    assert all(hasattr(ImageReward, name) for name in ImageReward.__all__)


def modules_after(code: str) -> set[str]:
    printed = subprocess.check_output([sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], text=True)
    return {name.split(".")[0] for name in printed.split()}


def test_importing_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "numpy", "PIL", "tokenizers", "safetensors", "huggingface_hub", "rich", "tyro"}
    assert not modules_after("import image_reward") & heavy


def test_scoring_loads_no_transformers(scorer: ImageRewardScorer, image_folder: Path, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    image = str(image_folder / "a.png")
    assert "transformers" not in modules_after(f"import image_reward; image_reward.load({str(tmp_path)!r}).score('cat', {image!r})")


def test_asking_for_the_version_loads_no_torch() -> None:
    assert "torch" not in modules_after("import image_reward.cli; image_reward.cli.main(['--version'])")


def test_nothing_forbidden_is_installed_or_required() -> None:
    installed = {distribution.metadata["Name"].lower().replace("_", "-") for distribution in distributions()}
    assert not installed & FORBIDDEN
    seen, queue = set(), ["image-reward"]
    while queue:
        name = queue.pop()
        for text in requires(name) or []:
            requirement = Requirement(text)
            assert requirement.url is None, f"{name} requires a URL: {text}"
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            key = requirement.name.lower().replace("_", "-")
            assert key not in FORBIDDEN, f"{name} requires {key}"
            if key not in seen and key in installed:
                seen.add(key)
                queue.append(key)
    assert {"torch", "transformers", "pillow"} <= seen
    assert version("image-reward") == image_reward.__version__
