"""CLIP-FlanT5: CLIP's image patches go before a question that a T5 reads and answers (Lin et al., ECCV 2024, arXiv 2404.01291).

Weights have the names of the published checkpoints, but for the T5's, which are under ``t5``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, T5Config

_HEAD_WIDTH = 64
"""Of an attention head in all of OpenAI's CLIPs."""


def clip_vision_config(shapes: dict[str, tuple[int, ...]]) -> CLIPVisionConfig:
    """The config of an image tower of OpenAI's, from the shapes of its weights by transformers' names."""
    from transformers import CLIPVisionConfig

    width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
    side = math.isqrt(shapes["embeddings.position_embedding.weight"][0] - 1)
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        image_size=side * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
        projection_dim=width,
    )


class _VisionTower(nn.Module):
    """For the published names alone."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        from transformers import CLIPVisionModel

        self.vision_tower = CLIPVisionModel(config)


class ClipT5Network(nn.Module):
    """An image tower, a projector of two layers, and a T5 whose language head is or is not its embeddings."""

    def __init__(self, vision: CLIPVisionConfig, text: T5Config, tied_head: bool = False, layer: int = -2) -> None:
        """``layer``: of the image tower's hidden states, the one that is read."""
        super().__init__()
        from transformers import T5ForConditionalGeneration

        self.vision_tower = _VisionTower(vision)
        self.mm_projector = nn.Sequential(nn.Linear(vision.hidden_size, text.d_model), nn.GELU(), nn.Linear(text.d_model, text.d_model))
        self.t5 = T5ForConditionalGeneration(text)
        if not tied_head:  # transformers 5 ties them whatever the config says, and parts them again only in its own loader
            self.t5.lm_head = nn.Linear(text.d_model, text.vocab_size, bias=False)
        self.layer = layer
        self._no_split_modules = {"CLIPEncoderLayer", "T5Block"}

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, S, S] -> one embedding for each patch [I, T, D]; the class token is dropped."""
        tower: Any = self.vision_tower.vision_tower
        states = tower(pixel_values=pixels.to(tower.dtype), output_hidden_states=True).hidden_states
        projected: Tensor = self.mm_projector(states[self.layer][:, 1:])
        return projected

    def answer_states(self, embeddings: Tensor, mask: Tensor, answers: Tensor) -> Tensor:
        """Embeddings [N, L, D] of a question, False for padding in mask [N, L], and the first ids of an answer [N, A] -> states [N, A, D].

        The language head predicts the next token from each state (``float32_logits``); answers begin with T5's start token.
        """
        encoded = self.t5.encoder(inputs_embeds=embeddings, attention_mask=mask.long()).last_hidden_state
        states: Tensor = self.t5.decoder(
            inputs_embeds=self.t5.shared(answers), encoder_hidden_states=encoded, encoder_attention_mask=mask.long(), use_cache=False
        ).last_hidden_state
        return states * self.t5.model_dim**-0.5 if self.t5.config.scale_decoder_outputs else states


_ROWS = 1 << 14
"""Of a language head that are converted to float32 at once."""


def float32_logits(states: Tensor, head: Tensor) -> Tensor:
    """States [..., D] times a language head [V, D] -> logits [..., V], in float32 whatever dtype the two have.

    A logit in bfloat16 is one of 128 values between 16 and 32, so that the answers to many images would be equally probable.
    """
    states = states.to(head.device).float()
    return torch.cat([F.linear(states, part.float()) for part in head.split(_ROWS)], dim=-1)
