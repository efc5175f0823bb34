"""What Aesthetic Predictor V2.5's own package computes with a small SigLIP: ``aesthetic25_tiny.json`` beside this file.

The weights come from a seed and the images are drawn. To make it again:

    python3.11 -m venv original
    original/bin/pip install torch==2.13.0 'numpy<2.5' pillow==13.0.0 transformers==4.57.6
    original/bin/pip install --no-deps aesthetic-predictor-v2-5==2024.12.18.1
    PYTHONPATH=src:tests original/bin/python tests/data/aesthetic25_tiny.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SEED = 11
IMAGES = [("rings", 401, 300, 3), ("gradient", 225, 1024, 5), ("checker", 97, 61, 7), ("noise", 300, 301, 4), ("rings", 64, 64, 6)]
"""Of ``seeded.image``"""
CONFIG = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
}
PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "SiglipProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
}
"""With the keys and values of google/siglip-so400m-patch14-384, but for the size"""
GAIN = 8.0
"""Of the head's first layer, so that scores are of the order of the differences of published ones"""


def main() -> None:
    import torch
    import transformers
    from aesthetic_predictor_v2_5 import AestheticPredictorV2_5Model, AestheticPredictorV2_5Processor
    from transformers import SiglipVisionConfig

    import qwen
    import seeded

    assert transformers.__version__ == "4.57.6", transformers.__version__
    torch.set_num_threads(2)
    model = AestheticPredictorV2_5Model(SiglipVisionConfig(**CONFIG)).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = qwen.weights(shapes, SEED)
    weights["layers.scoring_head.0.weight"] *= GAIN
    model.load_state_dict(weights)
    processor = AestheticPredictorV2_5Processor(**{key: value for key, value in PREPROCESSOR.items() if "_type" not in key})
    images = [seeded.image(*arguments) for arguments in IMAGES]
    pixels = processor(images=images, return_tensors="pt").pixel_values
    recorded: dict[str, Any] = {"seed": SEED, "gain": GAIN, "images": IMAGES, "config": CONFIG, "preprocessor": PREPROCESSOR}
    recorded |= {"shapes": {name: list(shape) for name, shape in shapes.items()}}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            scores = model.to(dtype)(pixels.to(dtype)).logits.squeeze(-1).float().tolist()
            recorded[str(dtype).removeprefix("torch.")] = scores
            print(dtype, scores)
    recorded["pixels"] = [{"sum": p.double().sum().item(), "first": p[:, 0, 0].tolist()} for p in pixels]
    Path(__file__).with_suffix(".json").write_text(json.dumps(recorded, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
