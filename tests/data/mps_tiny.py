"""What imscore's copy of MPS computes with a small CLIP and cross model: ``mps_tiny.json`` beside this file.

The weights come from a seed and the images are drawn; scores are made of its two features as the README of Kwai-Kolors/MPS does it, one
prompt at a time. To make it again:

    python3.11 -m venv original
    original/bin/pip install torch==2.13.0 'numpy<2' pillow==13.0.0 transformers==4.45.2 einops==0.8.2
    original/bin/pip install --no-deps imscore==0.0.11  # asks for transformers 4.53, whose text tower refuses how it is called
    PYTHONPATH=src:tests original/bin/python tests/data/mps_tiny.py

torchvision, by which the package resizes tensors itself, stays out: images are prepared by CLIP's processor, as in that README.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

SEED = 13
PROMPTS = [
    "a cat",
    "portrait of a beautiful fox, wide angle, soft light and color",
    "一只猫坐在窗台上 \U0001f600",
    "two  red birds\non a wire",
    "",
    "hair, face and hands of a queen " * 9,
]
IMAGES = [("rings", 401, 300, 3), ("gradient", 225, 1024, 5), ("checker", 97, 61, 7), ("noise", 300, 301, 4)]
"""Of ``seeded.image``"""
CONFIG = {
    "model_type": "clip",
    "projection_dim": 128,
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 64,
        "intermediate_size": 128,
        "projection_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 96,
        "intermediate_size": 128,
        "projection_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
        "hidden_act": "gelu",
    },
}
"""With the keys of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"""
PREPROCESSOR = {
    "crop_size": 64,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 64,
}
WORDS = "light color clarity tone style ambiance artistry shape face hair hands limbs structure instance texture quantity"
WORDS += " attributes position number location word things cat red portrait of and beautiful"


def merges() -> list[str]:
    """Which make tokens of the condition's words, so that it is not cut."""
    made = []
    for word in WORDS.split():
        letters = [*word[:-1], word[-1] + "</w>"]
        made += [f"{''.join(letters[:i])} {letters[i]}" for i in range(1, len(letters))]
    return list(dict.fromkeys(made))


def main() -> None:
    import torch
    import transformers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizerFast

    assert transformers.__version__ == "4.45.2", transformers.__version__
    sys.modules["torchvision"] = ModuleType("torchvision")
    from imscore.mps import model as original

    import seeded

    torch.set_num_threads(2)
    condition = _condition(original)
    network = original.CLIPModel.__new__(original.CLIPModel)
    torch.nn.Module.__init__(network)
    network.model = original.XCLIPModel(CLIPConfig(**CONFIG))
    network.model.text_model.eos_token_id = 2
    network.cross_model = original.CrossModel(dim=128, layer_num=4, heads=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    weights = seeded.mps_weights(shapes, SEED)
    assert all(torch.equal(own, weights[name]) for name, own in network.state_dict().items() if name.endswith(("fn.norm.bias", "inv_freq")))
    network.load_state_dict(weights)
    network.eval()
    recorded: dict[str, Any] = {"seed": SEED, "prompts": PROMPTS, "images": IMAGES, "config": CONFIG, "preprocessor": PREPROCESSOR}
    recorded |= {"shapes": {name: list(shape) for name, shape in shapes.items()}, "merges": merges(), "condition": condition}

    with tempfile.TemporaryDirectory() as folder:
        seeded.clip_tokenizer_files(Path(folder), merges())
        tokenizer = CLIPTokenizerFast(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=77, pad_token="<|endoftext|>")

    def tokenize(text: str) -> torch.Tensor:
        options = {"max_length": tokenizer.model_max_length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return tokenizer(text, **options).input_ids

    recorded["ids"] = [tokenize(prompt)[0].tolist() for prompt in PROMPTS]
    recorded["condition_ids"] = tokenize(condition)[0].tolist()
    images = [seeded.image(*arguments).convert("RGB") for arguments in IMAGES]
    pixels = CLIPImageProcessor(**{key: value for key, value in PREPROCESSOR.items() if "_type" not in key})(
        images=images, return_tensors="pt"
    ).pixel_values

    def scores(prompt: str) -> list[float]:
        num = len(images)
        text, image = network(tokenize(prompt).repeat(num, 1), pixels, tokenize(condition).repeat(num, 1))
        text, image = text / text.norm(dim=-1, keepdim=True), image / image.norm(dim=-1, keepdim=True)
        return (network.logit_scale.exp() * torch.diagonal(torch.einsum("bd,cd->bc", text, image))).float().tolist()

    half = torch.Tensor.half
    with torch.inference_mode():
        torch.Tensor.half = lambda self: self  # type: ignore[method-assign] # the original rounds pixels whatever its weights are
        recorded["float32"] = [scores(prompt) for prompt in PROMPTS]
        recorded["seen"] = [_seen(network, tokenize(prompt), tokenize(condition)) for prompt in PROMPTS]
        torch.Tensor.half = half  # type: ignore[method-assign]
        network.half()
        recorded["float16"] = [scores(prompt) for prompt in PROMPTS]
    for name in ("float32", "float16"):
        print(name, *recorded[name], sep="\n")
    print("seen", [sum(row) for row in recorded["seen"]], "condition", recorded["condition_ids"].index(49407))
    Path(__file__).with_suffix(".json").write_text(json.dumps(recorded, separators=(",", ":")) + "\n", encoding="utf-8")


def _condition(package: Any) -> str:
    """The one that the package writes in its constructor."""
    (text,) = (constant for constant in package.MPS.__init__.__code__.co_consts if isinstance(constant, str) and constant.count(",") > 5)
    return text


def _seen(network: Any, ids: Any, condition: Any) -> list[bool]:
    text, of = (network.get_text_features(tokens)[0][0] for tokens in (ids, condition))
    most = (text @ of.T).max(dim=1)[0]
    return (most / most.max() > 0.01).tolist()


if __name__ == "__main__":
    main()
