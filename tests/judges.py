"""Small judges: Qwen3-VLs of seeded weights, which write answers made of given pieces. Which piece is next depends on image and prompt."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

import qwen
import seeded
from image_reward.scorers.qwen_chat import ChatFiles
from image_reward.scorers.unified_reward import unified_reward_from_files
from image_reward.scorers.vision_language import VisionLanguageBatch, empty_network

SCORES = (
    ("Alignment Score (1-5): ",),
    tuple(f"{score}\nCoherence Score (1-5): " for score in ("1", "2.5", "3.694700002670288", "4", "5")),
    tuple(f"{score}\nStyle Score (1-5): " for score in ("1.25", "2", "3", "4.371500015258789", "5.0")),
    ("1", "2.802500009536743", "3.5", "4", "5"),
)
"""Pieces of an answer to the question about an image: one of each row, in order."""
BAD_SCORES = (SCORES[0], SCORES[1], SCORES[2], ("2", "4", "5.5", "0", "3, I would say"))
"""Some answers of these pieces cannot be read."""

_COHERENCE, _STYLE = "\n\nCoherence Score:\n Image 1: ", "\n\nStyle Score:\n Image 1: "
SHARES = (
    ("Alignment Score:\n Image 1: ",),
    tuple(f"{share}{_COHERENCE}" for share in ("1\n Image 2: 0", "0.5\n Image 2: 0.5", "0.2\n Image 2: 0.8")),
    tuple(f"{share}{_STYLE}" for share in ("0.435699999332428\n Image 2: 0.564300000667572", "0.5\n Image 2: 0.5", "0.9\n Image 2: 0.1")),
    ("0.6\n Image 2: 0.4", "0.5\n Image 2: 0.5", "0.0\n Image 2: 1.0"),
)
"""Pieces of an answer to the question about two images."""
BAD_SHARES = (SHARES[0], SHARES[1], SHARES[2], (*SHARES[3], "Image 1 is better"))

MERGES = json.loads((Path(__file__).parent / "data" / "vqascore_tiny.json").read_text(encoding="utf-8"))["qwen3_vl"]["merges"]


def network_of(config: dict[str, Any]) -> Any:
    import transformers

    kind = {"qwen3_vl": "Qwen3VL", "qwen2_5_vl": "Qwen2_5_VL"}[config["model_type"]]
    built = getattr(transformers, f"{kind}Config")(**config)
    return empty_network(lambda: getattr(transformers, f"{kind}ForConditionalGeneration")(built))


def write(folder: Path, pieces: Sequence[Sequence[str]] = (), seed: int = 5, kind: str = "qwen3_vl", **config: Any) -> Path:
    """The files of a judge. Without ``pieces``, what it writes is of no form."""
    folder.mkdir(parents=True, exist_ok=True)
    written = list(dict.fromkeys(piece for alternatives in pieces for piece in alternatives))
    tokenizer = qwen.tokenizer(MERGES, written=written)
    tokenizer.save(str(folder / "tokenizer.json"))
    num_tokens = tokenizer.get_vocab_size()
    values = {"qwen3_vl": qwen.config_3, "qwen2_5_vl": qwen.config_2_5}[kind](num_tokens, **config)
    shapes = {name: tuple(tensor.shape) for name, tensor in network_of(values).state_dict().items()}
    if values["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    tensors = qwen.weights(shapes, seed)
    for name, tensor in tensors.items():
        if name.endswith("q_norm.weight"):
            tensor.mul_(4)  # peaked attention, as that of ``qwen.weights`` is where nothing is normalised
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values | {"format": "unified-reward"}))
    ends = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.7, "eos_token_id": ends}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 4096, "longest_edge": 16384}}))
    if pieces:
        _teach(folder, pieces, _pair_questions if pieces[0] == SHARES[0] else _questions)
    return folder


def _word(text: str) -> str:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(part for part, _ in byte_level.pre_tokenize_str(text))


def _teach(folder: Path, pieces: Sequence[Sequence[str]], batch_of: Callable[[Any], VisionLanguageBatch]) -> None:
    """Fit the language head, place by place: what images and prompts have in common says that a piece is next, what differs says which."""
    judge: Any = unified_reward_from_files(ChatFiles.in_folder(folder), dtype=torch.float32)
    vocabulary = judge.prepare.template.tokenizer.get_vocab()
    head, embeddings = judge.network.lm_head.weight, judge.network.model.language_model.embed_tokens.weight
    tokens = [[vocabulary[_word(piece)] for piece in alternatives] for alternatives in pieces] + [[vocabulary["<|im_end|>"]]]
    for alternatives in tokens:  # so that what is next does not depend on what was chosen
        embeddings[alternatives] = embeddings[alternatives[0]].clone()
    batch = batch_of(judge)
    common, differences = [], []
    for alternatives in tokens:
        states = judge.network.model(**judge.chat_inputs(batch, "left")).last_hidden_state[:, -1]
        common.append(states.mean(dim=0))
        differences.append(states - common[-1])
        batch = replace(batch, ids=tuple(torch.cat([ids, torch.tensor(alternatives[:1])]) for ids in batch.ids))
    places = torch.stack(common)
    varied = torch.linalg.svd(torch.cat(differences))[2][:30]
    cues = torch.linalg.pinv(places - places @ varied.T @ varied).T  # each meets its own place, none of the others, and no difference
    generator = torch.Generator().manual_seed(1)
    head.mul_(0.01)
    for alternatives, cue in zip(tokens, cues, strict=True):
        for token in alternatives:
            own = (torch.randn(len(varied), generator=generator) @ varied) * (len(alternatives) > 1)
            head[token] = 30 * cue + 3 * (own - places.T @ torch.linalg.pinv(places.T) @ own)
    state = judge.network.state_dict()
    save_file({name: tensor.bfloat16().float().contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


PROMPTS = ["a cat", "two red birds\non a  wire", "a photograph of a dog"]


def images() -> list[Image.Image]:
    kinds = [("rings", 401, 300), ("gradient", 225, 300), ("checker", 97, 61), ("noise", 300, 301)]
    return [seeded.image(*arguments, 3) for arguments in kinds]


def _questions(judge: Any) -> VisionLanguageBatch:
    return judge.prepare([prompt for prompt in PROMPTS for _ in images()], images() * len(PROMPTS))


def _pair_questions(judge: Any) -> VisionLanguageBatch:
    pairs = [(a, b) for a, b in itertools.permutations(images(), 2)]
    return judge.prepare_pairs([PROMPTS[number % 3] for number in range(len(pairs))], pairs)
