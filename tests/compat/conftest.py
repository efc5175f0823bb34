"""A small checkpoint of the released layout, where programs of image-reward 1.5 look for the large one."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

import hub as hubs
import seeded
from image_reward.config import ScorerConfig, TransformConfig
from image_reward.downloads import HubFile, WebFile
from image_reward.scorers import MODELS, ImageRewardScorer
from image_reward.scorers.clip import ClipScorer, ClipSettings, clip_from_state_dict
from image_reward.scorers.compat_v15_parts import TOWERS

TEXT = seeded.TINY.network
SMALL = ScorerConfig(network=replace(TEXT, image_size=224, projection_width=256), image=TransformConfig(224))
"""What programs build with 224 px and ``vit="large"``, in small."""
OPENAI = "openai/clip-vit-large-patch14"


@dataclass
class Released:
    root: Path
    """A folder with ImageReward.pt, med_config.json, model_large.pth and photo.png."""
    weights: dict[str, torch.Tensor]
    scorer: ImageRewardScorer
    clip: ClipScorer

    @property
    def checkpoint(self) -> str:
        return str(self.root / "ImageReward.pt")

    @property
    def med_config(self) -> str:
        return str(self.root / "med_config.json")

    def images(self) -> list[Image.Image]:
        return seeded.images()[:3]

    def rewards(self, *prompts: str) -> list[float]:
        """Of each image with the first prompt, or of image n with prompt n."""
        return self.scorer.score(list(prompts) if len(prompts) > 1 else list(prompts) * 3, self.images())


@pytest.fixture(scope="session")
def clip_scorer(tmp_path_factory: pytest.TempPathFactory) -> ClipScorer:
    folder = seeded.clip_tokenizer_files(tmp_path_factory.mktemp("tokenizer"), ["c a", "ca t</w>", "d o", "do g</w>", "r e"])
    settings = ClipSettings(convention="openai")
    return clip_from_state_dict(seeded.clip_weights(7), folder, settings, "seeded", activation="quick_gelu", text_heads=2)


@pytest.fixture
def released(clip_scorer: ClipScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Released]:
    """The files in a folder, and on a server that stands for the hub and the web."""
    monkeypatch.setitem(TOWERS, "large", {name: getattr(TEXT, name) for name in TOWERS["large"]})
    weights = seeded.weights(SMALL, 7)
    saved = weights | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}
    root = tmp_path / "released"
    root.mkdir()
    torch.save(saved, root / "ImageReward.pt")
    torch.save(
        {"model": {name.removeprefix("blip."): w for name, w in weights.items() if name.startswith("blip.")}}, root / "model_large.pth"
    )
    med_config = {
        "hidden_size": TEXT.text_width,
        "num_hidden_layers": TEXT.text_layers,
        "num_attention_heads": TEXT.text_heads,
        "intermediate_size": TEXT.text_hidden,
        "vocab_size": 30524,
        "max_position_embeddings": 512,
        "encoder_width": 768,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "add_cross_attention": True,
        "model_type": "bert",
    }
    (root / "med_config.json").write_text(json.dumps(med_config))
    seeded.images()[0].save(root / "photo.png")
    head = io.BytesIO()
    torch.save(seeded.aesthetic_weights(7), head)
    clip_scorer.save_pretrained(tmp_path / "clip")
    content = {f"{OPENAI}/{path.name}": path.read_bytes() for path in (tmp_path / "clip").iterdir()}
    checkpoint = (root / "ImageReward.pt").read_bytes()
    content |= {"THUDM/ImageReward/ImageReward.pt": checkpoint, "head%2Bnew.pth": head.getvalue()}
    content["model_large.pth"] = (root / "model_large.pth").read_bytes()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with hubs.serve(**content) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        file = HubFile("THUDM/ImageReward", "ImageReward.pt", len(checkpoint), hashlib.sha256(checkpoint).hexdigest())
        clip_files = {part: HubFile(f.repo, f.name) for part, f in MODELS["CLIP"].files.items() if isinstance(f, HubFile)}
        small: dict[str, dict[str, Any]] = {
            "ImageReward-v1.0": {"files": {"weights": file}, "config": SMALL},
            "CLIP": {"files": clip_files},
            "Aesthetic": {"files": {"head": WebFile(f"{hub.url}/head%2Bnew.pth"), **clip_files}},
            "BLIP": {"files": {"weights": WebFile(f"{hub.url}/model_large.pth")}},
        }
        for name, changed in small.items():
            monkeypatch.setitem(MODELS, name, replace(MODELS[name], **changed))
        scorer = ImageRewardScorer.from_tensors(weights, SMALL, "seeded weights")
        yield Released(root, weights, scorer, clip_scorer)
