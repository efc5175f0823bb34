"""What the package hpsv3 computes with a small network: ``hpsv3_tiny.json`` beside this file, which tests hold our own code to.

The weights come from a seed and the images are drawn, so that nothing else of the original is needed. To make it again:

    python3.11 -m venv original
    original/bin/pip install torch==2.13.0 transformers==4.45.2 'numpy<2' trl==0.8.6 peft==0.12.0 datasets pandas matplotlib \
        tensorboard requests packaging fire pyyaml omegaconf opencv-python-headless rich accelerate==0.34.2
    original/bin/pip install --no-deps hpsv3==1.0.0
    PYTHONPATH=src:tests original/bin/python tests/data/hpsv3_tiny.py

torchvision, which the original imports for videos and tensors, stays out: nothing of it is used here.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

SEED = 3
PROMPTS = [
    "a cat",
    "portrait of a {beautiful} fox, wide angle, trending on artstation  ",
    "一只猫坐在窗台上 \U0001f600",
    "two red birds\non a wire\n\n",
]
IMAGES = [("rings", 401, 300, 3), ("gradient", 225, 1024, 5), ("checker", 97, 61, 7), ("noise", 300, 301, 4)]
"""Of ``seeded.image``"""
NUM_MERGES = 700
PADDING = 40
"""Embeddings of the base network that no token has, as the published one has 407: the original drops them when it adds its token."""


def main() -> None:
    import datasets  # noqa: F401 - and the next two before what stands for torchvision, which they look for
    import transformers
    import trl  # noqa: F401

    assert transformers.__version__ == "4.45.2", transformers.__version__
    for name in ("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = ModuleType(name)
    for name in ("io", "transforms"):
        setattr(sys.modules["torchvision"], name, sys.modules[f"torchvision.{name}"])
    sys.modules["torchvision.transforms"].InterpolationMode = None  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]  # type: ignore[attr-defined]

    import torch
    from hpsv3.dataset import data_collator_qwen
    from hpsv3.inference import HPSv3RewardInferencer
    from safetensors.torch import save_file
    from tokenizers import trainers
    from transformers import Qwen2TokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    import qwen
    import seeded

    torch.set_num_threads(2)
    learnt = qwen.tokenizer()
    learnt.train_from_iterator([data_collator_qwen.INSTRUCTION], trainers.BpeTrainer(vocab_size=256 + NUM_MERGES, show_progress=False))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in json.loads(learnt.to_str())["model"]["merges"]]
    tokenizer = qwen.tokenizer(merges)
    num_tokens = max(tokenizer.get_vocab().values()) + 1
    recorded: dict[str, Any] = {"merges": merges}

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        config = qwen.config(num_tokens, vocab_size=num_tokens + PADDING)
        Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config)).save_pretrained(base)
        file = qwen.tokenizer_file(base, merges)
        Qwen2TokenizerFast(tokenizer_file=str(file), pad_token="<|endoftext|>").save_pretrained(base)
        processor = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
        processor |= {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
        (base / "preprocessor_config.json").write_text(json.dumps(processor))
        (base / "chat_template.json").write_text(json.dumps({"chat_template": qwen.CHAT_TEMPLATE}))
        settings = Path(folder) / "settings.yaml"
        settings.write_text(
            f"rm_head_type: ranknet\nmodel_name_or_path: {base}\nuse_special_tokens: true\nreward_token: special\noutput_dim: 2\n"
            "loss_type: uncertainty\nbf16: False\ntorch_dtype: float32\noutput_dir: unused\ndisable_flash_attn2: True\n"
        )
        weights = Path(folder) / "HPSv3.safetensors"
        images = [seeded.image(*arguments) for arguments in IMAGES]

        def original(precision: str) -> Any:
            """The original's own object; its program casts the whole network to bfloat16 on loading, frequencies of positions too."""
            if not weights.exists():
                save_file({"none": torch.zeros(1)}, weights)
                load = torch.nn.Module.load_state_dict
                torch.nn.Module.load_state_dict = lambda *_, **__: None  # type: ignore[assignment, method-assign]
                model = HPSv3RewardInferencer(str(settings), str(weights), "cpu").model
                torch.nn.Module.load_state_dict = load  # type: ignore[method-assign]
                shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
                recorded["shapes"] = {name: list(shape) for name, shape in shapes.items()}
                save_file(qwen.weights(shapes, SEED), weights)
            inferencer = HPSv3RewardInferencer(str(settings), str(weights), "cpu")
            model = inferencer.model
            if precision != "float32":
                model.to(torch.bfloat16)
                model.rm_head.to(torch.float32)
                model.rm_head.load_state_dict(_head(weights))
            if precision == "trained":  # its frequencies, computed in float32
                model.to(torch.float32)
            # On CUDA its autocast region hands float32 to the head; on a CPU that region does nothing.
            model.rm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
            return inferencer

        for precision in ("float32", "trained", "bfloat16"):
            inferencer = original(precision)
            with torch.inference_mode():
                outputs = [inferencer.reward(list(images), [prompt] * len(images)).float().tolist() for prompt in PROMPTS]
                alone = [inferencer.reward([image], [PROMPTS[0]]).float().tolist()[0] for image in images]
            recorded[precision] = outputs
            print(precision, *outputs, "one by one", alone, sep="\n")
        batch = inferencer.prepare_batch(list(images), PROMPTS)
        messages = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _text(data_collator_qwen, prompt)}]}]
            for prompt in PROMPTS
        ]
        texts = inferencer.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        recorded["texts"] = {"first": texts[0], "sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts]}
        mask = batch["attention_mask"].bool()
        recorded["ids"] = [row[own].tolist() for row, own in zip(batch["input_ids"], mask, strict=True)]
        recorded["grids"] = batch["image_grid_thw"].tolist()
        sizes = batch["image_grid_thw"].prod(dim=-1).tolist()
        recorded["patches"] = [
            {"sum": p.double().sum().item(), "squares": p.double().square().sum().item(), "first": p[0, :3].tolist()}
            for p in batch["pixel_values"].split(sizes)
        ]
    Path(__file__).with_suffix(".json").write_text(json.dumps(recorded, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def _text(package: Any, prompt: str) -> str:
    return package.INSTRUCTION.format(text_prompt=prompt) + package.prompt_with_special_token


def _head(weights: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name.removeprefix("rm_head."): tensor for name, tensor in load_file(weights).items() if name.startswith("rm_head.")}


if __name__ == "__main__":
    main()
