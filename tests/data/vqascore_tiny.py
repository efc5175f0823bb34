"""What t2v_metrics computes with small networks: ``vqascore_tiny.json`` beside this file, which tests hold our own code to.

CLIP-FlanT5 and Qwen2.5-VL are computed by the release 3.0 of the package itself, Qwen2.5-VL with the question of its release 3.1, which is
not in the registry: for an answer of one token that is all that differs. Qwen3-VL, which 3.0 does not know, is computed as 3.1 does, in the
few lines of ``qwen3`` below. The weights come from a seed and the images are drawn. To make it again:

    python3.11 -m venv old
    old/bin/pip install torch torchvision 'numpy<2.4' transformers==4.49.0 accelerate==0.34.2 sentencepiece protobuf \\
        opencv-python-headless av
    old/bin/pip install --no-deps t2v-metrics==3.0 qwen-vl-utils==0.0.14 decord
    PYTHONPATH=src:tests old/bin/python tests/data/vqascore_tiny.py
    python3.11 -m venv new
    new/bin/pip install torch torchvision 'numpy<2.4' transformers==5.23.0 av
    new/bin/pip install --no-deps qwen-vl-utils==0.0.14
    PYTHONPATH=src:tests new/bin/python tests/data/vqascore_tiny.py

The package cannot be installed with what it asks for (torch 2.5.1 beside peft 0.5.0, hpsv2 and LAVIS), and imports all of its models at
once; so its ``__init__`` files are not run.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

SEED = 5
PROMPTS = [
    "a cat",
    "portrait of a {beautiful} fox, wide angle, trending on artstation  ",
    "一只猫坐在窗台上 \U0001f600",
    "two red birds\non a  wire\n\n",
]
IMAGES = [("rings", 401, 300, 3), ("gradient", 225, 1024, 5), ("checker", 97, 61, 7), ("noise", 300, 301, 4)]
"""Of ``seeded.image``"""
QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'
"""Of the release 3.1"""
NUM_MERGES, NUM_PIECES = 200, 300
REPETITION_PENALTY = 1.05
"""As in the generation config of the published Qwen2.5-VL"""
FILE = Path(__file__).with_suffix(".json")

QWEN3_TEMPLATE = (
    "{%- set image_count = namespace(value=0) %}\n{%- set video_count = namespace(value=0) %}\n{%- for message in messages %}\n"
    "    {%- if message.role == \"user\" %}\n        {{- '<|im_start|>' + message.role + '\\n' }}\n"
    "        {%- if message.content is string %}\n            {{- message.content }}\n        {%- else %}\n"
    "            {%- for content in message.content %}\n"
    "                {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}\n"
    "                    {%- set image_count.value = image_count.value + 1 %}\n"
    "                    {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}\n"
    "                    <|vision_start|><|image_pad|><|vision_end|>\n"
    "                {%- elif content.type == 'video' or 'video' in content %}\n"
    "                    {%- set video_count.value = video_count.value + 1 %}\n"
    "                    {%- if add_vision_id %}Video {{ video_count.value }}: {% endif -%}\n"
    "                    <|vision_start|><|video_pad|><|vision_end|>\n"
    "                {%- elif 'text' in content %}\n                    {{- content.text }}\n                {%- endif %}\n"
    "            {%- endfor %}\n        {%- endif %}\n        {{- '<|im_end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
"""Of Qwen/Qwen3-VL-8B-Instruct (Apache-2.0), without the parts for tools, for systems and for assistants' turns"""


def main() -> None:
    import transformers

    recorded: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        import seeded

        paths = []
        for number, arguments in enumerate(IMAGES):
            paths.append(str(folder / f"{number}.png"))
            seeded.image(*arguments).save(paths[-1])
        if transformers.__version__ == "4.49.0":
            originals()
            recorded |= {"clip_t5": clip_t5(folder / "clip_t5", paths), "qwen2_5_vl": qwen2_5(folder / "qwen2_5", paths)}
        else:
            assert transformers.__version__ == "5.23.0", transformers.__version__
            recorded["qwen3_vl"] = qwen3(folder / "qwen3", paths)
    FILE.write_text(json.dumps(recorded, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def originals() -> None:
    """Let the package's modules be imported without its ``__init__`` files."""
    import importlib.util

    (root,) = importlib.util.find_spec("t2v_metrics").submodule_search_locations  # type: ignore[union-attr]
    for name in ("", ".models", ".models.vqascore_models"):
        module = ModuleType(f"t2v_metrics{name}")
        module.__path__ = [str(Path(root, *name.split(".")))]
        sys.modules[module.__name__] = module


def seeded_network(folder: Path, network: Any, pickled: bool = False) -> dict[str, list[int]]:
    """Write a network with seeded weights, as safetensors or as the older format, and return the shapes of what was written."""
    import torch
    from safetensors.torch import save_file

    import flan
    import qwen

    network.save_pretrained(folder, safe_serialization=not pickled)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if not name.endswith(".position_ids")}
    if pickled:
        torch.save(flan.weights(shapes, SEED), folder / "pytorch_model.bin")
    else:
        save_file(qwen.weights(shapes, SEED), folder / "model.safetensors", {"format": "pt"})
    return {name: list(shape) for name, shape in shapes.items()}


# --- CLIP-FlanT5 ---


def clip_t5(folder: Path, paths: list[str]) -> dict[str, Any]:
    import sentencepiece
    import torch
    from t2v_metrics.models.vqascore_models import clip_t5_model as original
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, T5Tokenizer

    import flan

    tower, network = folder / "tower", folder / "network"
    tower.mkdir(parents=True)
    question = original.format_question(original.default_question_template, "t5_chat")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*question.split("<image>"), *PROMPTS, "Yes", "No"] * 20),
        model_writer=model,
        vocab_size=NUM_PIECES,
        hard_vocab_limit=False,
        character_coverage=0.98,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = T5Tokenizer(str(folder / "spiece.model"), legacy=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    pieces = [(tokenizer.sp_model.id_to_piece(i), tokenizer.sp_model.get_score(i)) for i in range(len(tokenizer.sp_model))]
    CLIPVisionModel(CLIPVisionConfig(**flan.vision_config())).save_pretrained(tower)
    side = flan.vision_config()["image_size"]
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(tower)
    config = original.CLIPT5ForConditionalGeneration.config_class(**flan.config(len(pieces), mm_vision_tower=str(tower)))
    shapes = seeded_network(network, original.CLIPT5ForConditionalGeneration(config), pickled=True)
    known = original.CLIP_T5_MODELS["clip-flant5-xl"]
    known["tokenizer"]["path"], known["model"]["path"] = str(folder / "tokenizer"), str(network)
    scorer = original.CLIPT5Model("clip-flant5-xl", device="cpu", cache_dir=str(folder))
    recorded: dict[str, Any] = {"pieces": pieces, "shapes": shapes}
    with torch.autocast("cpu", torch.bfloat16):  # the original's own region is for CUDA alone
        recorded["bfloat16"] = [scorer.forward(paths, [prompt] * len(paths)).tolist() for prompt in PROMPTS]
    scorer.model.float()  # the weights are values of bfloat16
    recorded["float32"] = [scorer.forward(paths, [prompt] * len(paths)).tolist() for prompt in PROMPTS]
    recorded["another_answer"] = scorer.forward(paths, [PROMPTS[0]] * len(paths), answer_template="a cat").tolist()
    texts = [original.format_question(original.default_question_template.format(prompt), "t5_chat") for prompt in PROMPTS]
    recorded["texts"] = texts
    recorded["ids"] = [original.t5_tokenizer_image_token(text, scorer.tokenizer) for text in texts]
    recorded["answer_ids"] = original.t5_tokenizer_image_token("Yes", scorer.tokenizer)
    pixels = scorer.load_images(paths)
    recorded["pixels"] = [statistics(image) for image in pixels]
    assert pixels.dtype == torch.float32
    print("clip_t5", *recorded["float32"], *recorded["bfloat16"], recorded["answer_ids"], sep="\n")
    return recorded


def statistics(pixels: Any) -> dict[str, float]:
    return {"sum": pixels.double().sum().item(), "squares": pixels.double().square().sum().item(), "first": pixels.flatten()[0].item()}


# --- Qwen ---


def chat_folder(folder: Path, config: dict[str, Any], merges: list[str], template: str, processor: str) -> None:
    """What the published repositories have beside the weights."""
    from transformers import Qwen2TokenizerFast

    import qwen

    file = qwen.tokenizer_file(folder, merges)
    Qwen2TokenizerFast(tokenizer_file=str(file), pad_token="<|endoftext|>", eos_token="<|im_end|>").save_pretrained(folder)
    qwen.tokenizer_file(folder, merges)
    patch = config["vision_config"]["patch_size"]
    values = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor, "patch_size": patch, "merge_size": 2}
    if patch == 14:
        values |= {"temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 12_845_056}
    else:
        values |= {"temporal_patch_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 16_777_216}}
        values |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_processor_type": "Qwen2VLImageProcessorFast"}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(values | {"video_processor_type": "Qwen3VLVideoProcessor"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    special = {name: config.get("text_config", config)[name] for name in ("bos_token_id", "eos_token_id")}
    penalty = REPETITION_PENALTY if patch == 14 else 1.0
    generation = {"do_sample": True, "repetition_penalty": penalty, "temperature": 1e-6 if patch == 14 else 0.7, "top_k": 20}
    (folder / "generation_config.json").write_text(json.dumps(special | {"pad_token_id": special["bos_token_id"]} | generation))


def learnt(text: str) -> list[str]:
    """Merges that make words of a text."""
    from tokenizers import trainers

    import qwen

    tokenizer = qwen.tokenizer()
    tokenizer.train_from_iterator([text] * 2, trainers.BpeTrainer(vocab_size=256 + NUM_MERGES, show_progress=False))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]


@contextmanager
def inputs_of(network: Any, kept: list[dict[str, Any]]) -> Any:
    """Keep what ``generate`` is given."""
    generate = network.generate
    network.generate = lambda **inputs: (kept.append(inputs), generate(**inputs))[1]
    yield
    network.generate = generate


def inputs_recorded(kept: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "ids": [inputs["input_ids"][0].tolist() for inputs in kept],
        "grids": [inputs["image_grid_thw"][0].tolist() for inputs in kept],
        "patches": [statistics(inputs["pixel_values"]) for inputs in kept],
    }


def qwen2_5(folder: Path, paths: list[str]) -> dict[str, Any]:
    import torch
    from t2v_metrics.models.vqascore_models import qwen2vl_model as original
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    import qwen

    merges = learnt(QUESTION + " Yes No Yes")
    config = qwen.config_2_5(256 + len(merges) + len(qwen.SPECIAL_TOKENS))
    shapes = seeded_network(folder, Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)))
    chat_folder(folder, config, merges, qwen.CHAT_TEMPLATE, "Qwen2_5_VLProcessor")
    known = original.QWEN2_VL_MODELS["qwen2.5-vl-7b"]
    recorded: dict[str, Any] = {"merges": merges, "shapes": shapes}
    for dtype in (torch.bfloat16, torch.float32):
        known["tokenizer"]["path"] = str(folder)
        known["model"] = {"path": str(folder), "torch_dtype": dtype, "attn_implementation": "sdpa"}
        scorer = original.Qwen2VLModel("qwen2.5-vl-7b")
        kept: list[dict[str, Any]] = []
        with inputs_of(scorer.model, kept):
            scores = [scorer.forward(paths, [prompt] * len(paths), question_template=QUESTION).tolist() for prompt in PROMPTS]
        recorded[str(dtype).removeprefix("torch.")] = scores
    scorer.model.generation_config.repetition_penalty = 1.0
    recorded["without_penalty"] = scorer.forward(paths, [PROMPTS[0]] * len(paths), question_template=QUESTION).tolist()
    messages = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION.format(prompt)}]}] for prompt in PROMPTS]
    recorded["texts"] = scorer.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    print("qwen2_5", *recorded["float32"], *recorded["bfloat16"], recorded["without_penalty"], sep="\n")
    return recorded | inputs_recorded(kept[::5])


def qwen3(folder: Path, paths: list[str]) -> dict[str, Any]:
    import torch
    from PIL import Image
    from qwen_vl_utils import process_vision_info
    from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    import qwen

    merges = learnt(QUESTION + " Yes No Yes")
    config = qwen.config_3(256 + len(merges) + len(qwen.SPECIAL_TOKENS))
    shapes = seeded_network(folder, Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)))
    (folder / "config.json").write_text(json.dumps(config))
    chat_folder(folder, config, merges, QWEN3_TEMPLATE, "Qwen3VLProcessor")
    processor = AutoProcessor.from_pretrained(folder)
    recorded: dict[str, Any] = {"merges": merges, "shapes": shapes, "texts": []}
    for dtype in (torch.bfloat16, torch.float32):
        network = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
        kept: list[dict[str, Any]] = []
        scores = []
        for prompt in PROMPTS:
            scores.append([])
            for path in paths:
                content = [{"type": "image", "image": Image.open(path).convert("RGB")}, {"type": "text", "text": QUESTION.format(prompt)}]
                messages = [{"role": "user", "content": content}]
                text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                images, _ = process_vision_info(messages, image_patch_size=processor.image_processor.patch_size)
                inputs = processor(text=[text], images=images, padding=True, return_tensors="pt", do_resize=False)
                with torch.inference_mode(), inputs_of(network, kept):
                    outputs = network.generate(
                        **inputs, max_new_tokens=1, temperature=1.0, do_sample=False, output_scores=True, return_dict_in_generate=True
                    )
                (token,) = processor.tokenizer.encode("Yes", add_special_tokens=False)
                scores[-1].append(outputs.scores[0][0].softmax(dim=-1)[token].item())
            recorded["texts"].append(text)
        recorded[str(dtype).removeprefix("torch.")] = scores
    recorded["texts"] = recorded["texts"][: len(PROMPTS)]
    print("qwen3", *recorded["float32"], *recorded["bfloat16"], sep="\n")
    return recorded | inputs_recorded(kept[::5])


if __name__ == "__main__":
    main()
