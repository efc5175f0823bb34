"""The parts of image-reward 1.5's network under their names there: what its programs build, hook and call themselves.

They are the parts of ``models.blip``, with the signatures and outputs of BLIP's code (Salesforce BLIP, ``models/med.py`` and
``models/vit.py``). Scores are computed by ``models.blip``'s own shorter way, and by these calls once a program has hooked or changed what
is inside (``is_plain``).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from image_reward.checkpoints import read_checkpoint
from image_reward.downloads import WebFile, fetch
from image_reward.errors import CheckpointError, PromptError
from image_reward.files import read_json
from image_reward.images import ImageTransform
from image_reward.models import blip
from image_reward.models.blip import Blip, BlipConfig, merge_heads, split_heads
from image_reward.models.heads import LinearHead, is_changed
from image_reward.models.linear import Linear
from image_reward.prompts import transformers_tokenizer

if TYPE_CHECKING:
    from transformers import BertConfig

TOWERS: dict[str, dict[str, Any]] = {
    "base": {"vision_width": 768, "vision_layers": 12, "vision_heads": 12},
    "large": {"vision_width": 1024, "vision_layers": 24, "vision_heads": 16},
}
"""The image towers that BLIP has a name for."""

# --- weights that nobody has loaded yet ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Start:
    """A parameter as it was drawn. What a program writes through ``.data`` leaves no trace but the values."""

    parameter: weakref.ref[nn.Parameter]
    version: int
    values: Tensor
    """A few of them."""

    @classmethod
    def of(cls, parameter: nn.Parameter) -> _Start:
        return cls(weakref.ref(parameter), parameter._version, _some_values(parameter))

    def is_left(self, parameter: nn.Parameter | None) -> bool:
        if parameter is None or parameter is not self.parameter() or parameter.is_meta or parameter._version != self.version:
            return False
        return torch.allclose(_some_values(parameter), self.values, rtol=0.01, atol=0)  # half types round by up to 0.4 %


def _some_values(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().flatten()[:8].to("cpu", torch.float32, copy=True)


class Part(nn.Module):
    """A module that programs may build with random weights; it knows which of them nobody has loaded or trained."""

    _starts: Mapping[str, _Start] = {}

    def start_at_random(self, std: float) -> None:
        """Draw the weights as BERT and BLIP's image tower do. They count as random until they change."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, blip.VisionTransformer):
                for parameter in (module.cls_token, module.pos_embed):
                    nn.init.normal_(parameter, std=std)
        self.register_load_state_dict_post_hook(_warn_of_random)
        self._starts = {name: _Start.of(parameter) for name, parameter in self.named_parameters() if not parameter.is_meta}

    def untouched(self) -> list[str]:
        """Names of the parameters that are as they were drawn."""
        if self._starts:
            now = dict(self.named_parameters())
            self._starts = {name: start for name, start in self._starts.items() if start.is_left(now.get(name))}
        return list(self._starts)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_starts": self.untouched()}  # copies have parameters of their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = state.pop("_starts")
        super().__setstate__(state)
        parameters = dict(self.named_parameters())
        self._starts = {name: _Start.of(parameters[name]) for name in names}


def _warn_of_random(part: Part, outcome: Any) -> None:
    """Called after ``load_state_dict``, of the part or of a module that it is in."""
    if left := part.untouched():
        other = f"; the state dict has {outcome.unexpected_keys[0]}" if outcome.unexpected_keys else ""
        warn(
            f"load_state_dict() left {len(left)} tensors of the {type(part).__name__} random, such as {left[0]}{other}: "
            "give the state dict the names of the module that it is loaded into",
            stacklevel=2,
        )


def random_weights(module: nn.Module) -> list[str]:
    """Names of the weights within a module that are as they were drawn when a program built it."""
    parts = [(name, part) for name, part in module.named_modules() if isinstance(part, Part)]
    return list(dict.fromkeys(f"{name}.{weight}".removeprefix(".") for name, part in parts for weight in part.untouched()))


# --- the text tower ------------------------------------------------------------------------------------------------------------------


class BertEmbeddings(blip.TextEmbeddings):
    @property
    def position_ids(self) -> Tensor:
        weight = self.position_embeddings.weight
        return torch.arange(len(weight), device=weight.device)[None]

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
    ) -> Tensor:
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = self.position_ids[:, past_key_values_length : words.shape[1] + past_key_values_length]
        return self.LayerNorm(words + self.position_embeddings(position_ids))


class _KeepsWeights:
    """Keeps the weights of an attention [N, H, L, S] and their gradients, for programs that show where a model looks."""

    attention_map: Tensor
    attn_gradients: Tensor

    def save_attention_map(self, attention_map: Tensor) -> None:
        self.attention_map = attention_map
        if attention_map.requires_grad:
            attention_map.register_hook(self.save_attn_gradients)

    def get_attention_map(self) -> Tensor:
        return self.attention_map

    def save_attn_gradients(self, attn_gradients: Tensor) -> None:
        self.attn_gradients = attn_gradients

    def get_attn_gradients(self) -> Tensor:
        return self.attn_gradients


class BertSelfAttention(_KeepsWeights, blip.Projections):
    """One attention, called on its own. With ``save_attention``, one to the image keeps its weights [N, H, L, T] and their gradients."""

    def __init__(self, config: BlipConfig, memory_width: int) -> None:
        super().__init__(config, memory_width)
        self.num_attention_heads = config.text_heads
        self.attention_head_size = config.text_width // config.text_heads
        self.all_head_size = config.text_width
        self.save_attention = False
        self.dropout = nn.Identity()  # where programs hook the attention weights

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
    ) -> tuple[Any, ...]:
        """-> (context [N, L, W], weights [N, H, L, S] with ``output_attentions``, (keys, values)). Masks are added to the logits."""
        _refuse(past_key_value=past_key_value)
        to_image = encoder_hidden_states is not None
        memory, mask = (encoder_hidden_states, encoder_attention_mask) if to_image else (hidden_states, attention_mask)
        query, key, value = (
            split_heads(part, self.num_attention_heads) for part in (self.query(hidden_states), self.key(memory), self.value(memory))
        )
        num_rows = max(len(query), len(key))  # one prompt may meet many images, and one image many prompts
        query, full_key, full_value = (x.expand(num_rows, *x.shape[1:]) for x in (query, key, value))
        mask = None if mask is None else mask.to(query.dtype)  # which autocast may have changed
        saves = to_image and self.save_attention
        if not (output_attentions or saves or head_mask is not None or is_changed(self.dropout)):
            context = F.scaled_dot_product_attention(query, full_key, full_value, attn_mask=mask)
            return merge_heads(context), (key, value)
        logits = query @ full_key.transpose(-2, -1) * self.attention_head_size**-0.5
        weights = (logits if mask is None else logits + mask).softmax(dim=-1)
        if saves:
            self.save_attention_map(weights)
        kept = self.dropout(weights)
        context = merge_heads((kept if head_mask is None else kept * head_mask) @ full_value)
        return (context, weights, (key, value)) if output_attentions else (context, (key, value))


class BertAttention(blip.TextAttention):
    projections_kind = BertSelfAttention

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> tuple[Any, ...]:
        """As ``BertSelfAttention``, with the residual added to the context."""
        outputs = self.self(hidden_states, *arguments, **named)
        return self.output(outputs[0], hidden_states), *outputs[1:]


class BertLayer(blip.TextLayer):
    attention_kind = BertAttention

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
        mode: str | None = None,
    ) -> tuple[Any, ...]:
        """-> (hidden states [N, L, W], the weights of both attentions with ``output_attentions``, (keys, values))."""
        x, *outputs, keys_values = self.attention(
            hidden_states, attention_mask, head_mask, output_attentions=output_attentions, past_key_value=past_key_value
        )
        if mode == "multimodal":
            x, *crossed, _ = self.crossattention(
                x, attention_mask, head_mask, encoder_hidden_states, encoder_attention_mask, output_attentions=output_attentions
            )
            outputs += crossed
        return self.feed_forward_chunk(x), *outputs, keys_values

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        return self.output(self.intermediate(attention_output), attention_output)


class BertEncoder(blip.TextLayers):
    layer_kind = BertLayer
    gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        mode: str = "multimodal",
    ) -> Any:
        _refuse(past_key_values=past_key_values, use_cache=use_cache)
        states: list[Tensor] = []
        attentions: list[tuple[Tensor, ...]] = []
        for i, layer in enumerate(self.layer):
            states.append(hidden_states)
            mask = None if head_mask is None else head_mask[i]
            arguments = (hidden_states, attention_mask, mask, encoder_hidden_states, encoder_attention_mask, None, output_attentions)
            call = partial(layer, mode=mode)
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            hidden_states, *weights, _ = checkpoint(call, *arguments, use_reentrant=False) if recompute else call(*arguments)
            attentions.append(tuple(weights))
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            hidden_states=(*states, hidden_states) if output_hidden_states else None,
            attentions=tuple(weights[0] for weights in attentions) if output_attentions else None,
            cross_attentions=tuple(weights[1] for weights in attentions) if output_attentions and mode == "multimodal" else None,
        )
        return output if return_dict else output.to_tuple()


class BertModel(Part, blip.TextTransformer):
    """The text tower, in BERT's calling convention."""

    embeddings_kind = BertEmbeddings
    encoder_kind = BertEncoder
    encoder: BertEncoder

    @torch.inference_mode(False)
    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        if add_pooling_layer:
            raise ValueError("ImageReward's text tower has no pooling layer: give add_pooling_layer=False")
        values = config.to_dict() | {"encoder_width": getattr(config, "encoder_width", config.hidden_size)}
        self._build(text_sizes(values, "the config", BlipConfig(vision_width=values["encoder_width"], vision_heads=1)))
        vars(self)["config"] = config
        self.start_at_random(config.initializer_range)

    @classmethod
    def of(cls, config: BlipConfig) -> BertModel:
        """Of these sizes, with PyTorch's own weights, for others to be loaded."""
        model = cls.__new__(cls)
        model._build(config)
        return model

    def _build(self, config: BlipConfig) -> None:
        blip.TextTransformer.__init__(self, config)
        self.pooler = None
        self._sizes = config

    @property
    def config(self) -> BertConfig:
        if "config" not in vars(self):
            from transformers import BertConfig

            sizes = {key: getattr(self._sizes, size) for key, size in _MED_SIZES.items()}
            vars(self)["config"] = BertConfig(**sizes, encoder_width=self._sizes.vision_width, add_cross_attention=True)
        return vars(self)["config"]

    @property
    def gradient_checkpointing(self) -> bool:
        return self.encoder.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: bool) -> None:
        self.encoder.gradient_checkpointing = enabled

    @property
    def device(self) -> torch.device:
        return self.embeddings.word_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.word_embeddings.weight.dtype

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    def get_extended_attention_mask(self, attention_mask: Tensor, *_: Any, **__: Any) -> Tensor:
        """A mask [N, S] or [N, L, S], 1 for what is seen -> what is added to logits [N, H, L, S]."""
        mask = attention_mask[:, None] if attention_mask.ndim == 3 else attention_mask[:, None, None]
        return (1.0 - mask.to(self.dtype)) * -10_000.0

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Any = None,
        inputs_embeds: Tensor | None = None,
        encoder_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        is_decoder: bool = False,
        mode: str = "multimodal",
    ) -> Any:
        """Token ids [N, L] and image tokens [N, T, W] -> ``last_hidden_state`` [N, L, W]. ``mode="text"`` leaves the image out.

        One image [1, T, W] may meet any number of prompts, and one prompt [1, L] any number of images; otherwise there is one image per
        prompt. The output is transformers' ``BaseModelOutputWithPoolingAndCrossAttentions``, or a tuple with ``return_dict=False``.
        """
        _refuse(past_key_values=past_key_values, use_cache=use_cache and is_decoder, is_decoder=is_decoder)
        if mode not in ("multimodal", "text"):
            raise ValueError(f"mode must be 'multimodal' or 'text', not {mode!r}")
        if mode == "text":
            encoder_hidden_states = encoder_attention_mask = None
        elif encoder_hidden_states is None:
            raise ValueError("encoder_hidden_states is missing: give the image tokens, or mode='text' to read the prompt alone")
        if encoder_embeds is not None:
            hidden = encoder_embeds
        elif input_ids is not None or inputs_embeds is not None:
            hidden = self.embeddings(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)
        else:
            raise ValueError("give input_ids, inputs_embeds or encoder_embeds")
        if (
            encoder_hidden_states is not None
            and len(hidden) != len(encoder_hidden_states)
            and 1 not in (len(hidden), len(encoder_hidden_states))
        ):
            raise ValueError(f"{len(hidden)} prompts cannot be divided among {len(encoder_hidden_states)} images")
        mask, image_mask = (None if m is None else self.get_extended_attention_mask(m) for m in (attention_mask, encoder_attention_mask))
        config = self.config
        output = self.encoder(
            hidden,
            attention_mask=mask,
            head_mask=head_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=image_mask,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            return_dict=True,
            mode=mode,
        )
        if return_dict is False:
            return output[0], None, *output[1:]
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        return BaseModelOutputWithPoolingAndCrossAttentions(**output)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}embeddings.position_ids", None)  # a buffer of the original that holds 0..511
        super()._load_from_state_dict(state_dict, prefix, *args)


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value:
            raise ValueError(f"{name} is for BLIP's captioning, which ImageReward does not use: leave it out")


_KINDS = (
    *(BertModel, BertEncoder, BertLayer, BertAttention, BertSelfAttention, BertEmbeddings, blip.AddAndNorm, blip.TextIntermediate),
    *(nn.ModuleList, Linear, nn.Linear, nn.LayerNorm, nn.Embedding, nn.Identity),
)
_FORWARDS = {kind: kind.forward for kind in _KINDS}


def is_plain(encoder: nn.Module) -> bool:
    """Whether nobody can tell a shorter way to the same numbers from calling a text tower and all that is in it."""
    return isinstance(encoder, BertModel) and all(
        type(module).forward is _FORWARDS.get(type(module))  # type: ignore[arg-type]
        and not is_changed(module)
        and not getattr(module, "save_attention", False)
        for module in encoder.modules()
    )


# --- the image tower -----------------------------------------------------------------------------------------------------------------


class Attention(_KeepsWeights, blip.VisionAttention):
    """With ``register_hook`` it keeps its weights [I, H, T, T] and their gradients."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.scale = (config.vision_width // config.vision_heads) ** -0.5
        self.attn_drop = nn.Identity()  # where programs hook the attention weights

    def forward(self, x: Tensor, original_order: bool = False, register_hook: bool = False) -> Tensor:
        if not register_hook and not is_changed(self.attn_drop):
            return super().forward(x, original_order)
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        weights = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
        if register_hook:
            self.save_attention_map(weights)
        return self.proj(merge_heads(self.attn_drop(weights) @ value))


class Block(blip.VisionBlock):
    attention_kind = Attention

    def forward(self, x: Tensor, original_order: bool = False, register_hook: bool = False) -> Tensor:
        x = x + self.attn(self.norm1(x), original_order, register_hook)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(Part, blip.VisionTransformer):
    """The image tower. Dropout and drop path, which regularise training, are not computed."""

    block_kind = Block

    @torch.inference_mode(False)
    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,  # noqa: ARG002 - unread in BLIP too, as representation_size is
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        representation_size: int | None = None,  # noqa: ARG002
        drop_rate: float = 0.0,  # noqa: ARG002
        attn_drop_rate: float = 0.0,  # noqa: ARG002
        drop_path_rate: float = 0.0,  # noqa: ARG002
        norm_layer: Any = None,
        use_grad_checkpointing: bool = False,
        ckpt_layer: int = 0,  # noqa: ARG002 - all blocks are recomputed, or none
    ) -> None:
        fixed = {"in_chans": (in_chans, 3), "mlp_ratio": (mlp_ratio, 4), "qkv_bias": (qkv_bias, True), "qk_scale": (qk_scale, None)}
        for name, (value, only) in (fixed | {"norm_layer": (norm_layer, None)}).items():
            if value != only:
                raise ValueError(f"BLIP's image tower has {name}={only} here, not {value}")
        self._build(
            BlipConfig(image_size=img_size, patch_size=patch_size, vision_width=embed_dim, vision_layers=depth, vision_heads=num_heads)
        )
        self.gradient_checkpointing = use_grad_checkpointing
        self.start_at_random(0.02)

    @classmethod
    def of(cls, config: BlipConfig) -> VisionTransformer:
        """Of these sizes, with PyTorch's own weights, for others to be loaded."""
        tower = cls.__new__(cls)
        tower._build(config)
        return tower

    def _build(self, config: BlipConfig) -> None:
        blip.VisionTransformer.__init__(self, config)
        self.embed_dim = self.num_features = config.vision_width

    def forward(self, x: Tensor, register_blk: int = -1) -> Tensor:
        """As ``models.blip.VisionTransformer``; the attention of block ``register_blk`` keeps its weights and their gradients."""
        if register_blk < 0:
            return super().forward(x)
        before, block = self.begin(x, register_blk), self.blocks[register_blk]
        return self.finish(block(before, self.original_order, True), register_blk + 1)


def interpolate_pos_embed(pos_embed_checkpoint: Tensor, visual_encoder: blip.VisionTransformer) -> Tensor:
    """Positions [1, 1 + t * t, W] of images of another size -> those of a tower; the first one, of the class token, stays."""
    old, new = (round((positions.shape[1] - 1) ** 0.5) for positions in (pos_embed_checkpoint, visual_encoder.pos_embed))
    if old == new:
        return pos_embed_checkpoint
    grid = pos_embed_checkpoint[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([pos_embed_checkpoint[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


# --- both towers, and the head -------------------------------------------------------------------------------------------------------


class BLIP_Pretrain(Part, Blip):  # noqa: N801 - the name in 1.5
    """Both towers with a transformers tokenizer beside them, made when a program asks for it."""

    name = "a BLIP"
    vocabulary: tuple[str, ...] | None = None

    @torch.inference_mode(False)
    def __init__(
        self,
        med_config: str | os.PathLike[str] | None = None,
        image_size: int = 224,
        vit: str = "base",
        vit_grad_ckpt: bool = False,
        vit_ckpt_layer: int = 0,  # noqa: ARG002 - all blocks are recomputed, or none
        embed_dim: int = 256,
        queue_size: int = 57_600,  # noqa: ARG002 - of BLIP's own training, as momentum is
        momentum: float = 0.995,  # noqa: ARG002
    ) -> None:
        """``med_config``: the JSON file of the text tower; without it, BERT-base."""
        sizes = BlipConfig(image_size=image_size, projection_width=embed_dim, **_tower(vit))
        if med_config is not None:
            sizes = text_sizes(read_json(Path(med_config)), os.fspath(med_config), sizes)
        self._build(sizes)
        self.visual_encoder.gradient_checkpointing = vit_grad_ckpt
        self.start_at_random(0.02)

    @classmethod
    def of(cls, config: BlipConfig, name: str = "", vocabulary: tuple[str, ...] | None = None) -> BLIP_Pretrain:
        """Of these sizes, with PyTorch's own weights, for others to be loaded."""
        model = cls.__new__(cls)
        model._build(config)
        model.name, model.vocabulary = name or cls.name, vocabulary
        return model

    def _build(self, config: BlipConfig) -> None:
        nn.Module.__init__(self)
        self.sizes = config
        self.visual_encoder, self.text_encoder = VisionTransformer.of(config), BertModel.of(config)
        self.vision_proj = Linear(config.vision_width, config.projection_width)
        self.text_proj = Linear(config.text_width, config.projection_width)

    @property
    def tokenizer(self) -> Any:
        if "tokenizer" not in vars(self):
            if self.vocabulary is not None:
                raise PromptError(
                    f"{self.name} has a vocabulary of its own, which has no tokenizer of image-reward 1.5; use score() or rewards()"
                )
            vars(self)["tokenizer"] = transformers_tokenizer()
        return vars(self)["tokenizer"]

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        vars(self)["tokenizer"] = tokenizer

    def project_prompts(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        if is_plain(self.text_encoder):
            return super().project_prompts(ids, mask)
        text = self.text_encoder(ids, attention_mask=None if mask is None else mask.long(), return_dict=True, mode="text")
        return F.normalize(self.text_proj(text.last_hidden_state[:, 0]).float(), dim=-1)


class MLP(Part, LinearHead):
    """The reward head, or the Aesthetic score's: features [N, W] -> [N, 1]."""

    @torch.inference_mode(False)
    def __init__(self, input_size: int) -> None:
        LinearHead.__init__(self, input_size)
        self.start_at_random(1 / (input_size + 1))

    @classmethod
    def of(cls, config: BlipConfig) -> MLP:
        """Of these sizes, with PyTorch's own weights, for others to be loaded."""
        head = cls.__new__(cls)
        LinearHead.__init__(head, config.text_width, config.head_widths)
        return head

    @property
    def input_size(self) -> int:
        return next(layer.in_features for layer in self.layers if isinstance(layer, nn.Linear))


def _tower(vit: str) -> dict[str, Any]:
    if vit not in TOWERS:
        raise ValueError(f"vit must be one of {', '.join(TOWERS)}, not {vit!r}")
    return TOWERS[vit]


def init_tokenizer() -> Any:
    """BLIP's tokenizer, as a transformers object."""
    return transformers_tokenizer()


def create_vit(
    vit: str, image_size: int, use_grad_checkpointing: bool = False, ckpt_layer: int = 0, drop_path_rate: float = 0
) -> tuple[VisionTransformer, int]:
    """One of BLIP's image towers with random weights, and its width."""
    sizes = _tower(vit)
    width, depth, heads = (sizes[f"vision_{name}"] for name in ("width", "layers", "heads"))
    options = {"use_grad_checkpointing": use_grad_checkpointing, "ckpt_layer": ckpt_layer, "drop_path_rate": drop_path_rate}
    return VisionTransformer(image_size, embed_dim=width, depth=depth, num_heads=heads, **options), width  # type: ignore[arg-type]


def load_checkpoint(model: nn.Module, url_or_filename: str | os.PathLike[str]) -> tuple[nn.Module, Any]:
    """Load one of BLIP's own checkpoints, a file or an address, into a model; -> it, and the names that were missing or unexpected."""
    is_url = str(url_or_filename).startswith(("http://", "https://"))
    tensors, _ = read_checkpoint(fetch(WebFile(str(url_or_filename))) if is_url else Path(url_or_filename))
    if "visual_encoder.pos_embed" in tensors:
        tensors["visual_encoder.pos_embed"] = interpolate_pos_embed(tensors["visual_encoder.pos_embed"], model.visual_encoder)  # type: ignore[arg-type]
    return model, model.load_state_dict(tensors, strict=False)


_MED_SIZES = {
    "hidden_size": "text_width",
    "num_hidden_layers": "text_layers",
    "num_attention_heads": "text_heads",
    "intermediate_size": "text_hidden",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_positions",
}
_MED_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "add_cross_attention": True, "position_embedding_type": "absolute"}


def text_sizes(values: Any, source: str, base: BlipConfig) -> BlipConfig:
    """What a med_config says of the text tower, and the rest of ``base``. Raises ``CheckpointError``."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{source} is not a JSON object with the text tower's sizes; med_config need not be given")
    for key, value in _MED_FIXED.items():
        if values.get(key, value) != value:
            raise CheckpointError(f"{source} says {key} = {values[key]!r:.60}, but ImageReward's text tower has {value!r}")
    sizes = {size: values[key] for key, size in _MED_SIZES.items() if key in values}
    if wrong := [key for key, size in _MED_SIZES.items() if type(sizes.get(size, 1)) is not int]:
        raise CheckpointError(f"{source} says {wrong[0]} = {values[wrong[0]]!r:.60}, which is not a whole number")
    return replace(base, **sizes)


def med_key(size: str) -> str:
    """What a med_config calls one of the sizes of ``BlipConfig``, where it has it."""
    return next((key for key, name in _MED_SIZES.items() if name == size), size)


def med_config_of(config: BlipConfig) -> dict[str, Any]:
    """The med_config of a text tower."""
    return {key: getattr(config, size) for key, size in _MED_SIZES.items()} | {"encoder_width": config.text_width} | _MED_FIXED


# --- images --------------------------------------------------------------------------------------------------------------------------


def _convert_image_to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


@dataclass(frozen=True)
class Resize:
    """The shorter side becomes ``size``."""

    size: int

    def __call__(self, image: Any) -> Any:
        return _resized(image, self.size)


@dataclass(frozen=True)
class CenterCrop:
    """The square of ``size`` in the middle."""

    size: int

    def __call__(self, image: Any) -> Any:
        width, height = _sides(image)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        if isinstance(image, Tensor):
            return image[..., top : top + self.size, left : left + self.size]
        return image.crop((left, top, left + self.size, top + self.size))


class ToTensor:
    """A PIL image -> [C, H, W] in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        values = torch.from_numpy(np.array(image))
        return (values[None] if values.ndim == 2 else values.permute(2, 0, 1)).float() / 255


@dataclass(frozen=True)
class Normalize:
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def _sides(image: Any) -> tuple[int, int]:
    return (image.shape[-1], image.shape[-2]) if isinstance(image, Tensor) else image.size


def _resized(image: Any, size: int) -> Any:
    width, height = _sides(image)
    new = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    if not isinstance(image, Tensor):
        return image.resize(new, Image.Resampling.BICUBIC)
    pixels = image if image.ndim == 4 else image[None]
    pixels = F.interpolate(pixels, size=(new[1], new[0]), mode="bicubic", antialias=True, align_corners=False)
    return pixels if image.ndim == 4 else pixels[0]


@dataclass(frozen=True)
class Preprocess(ImageTransform):
    """``ImageTransform``, with its steps for programs that take some of them."""

    @property
    def transforms(self) -> list[Callable[[Any], Any]]:
        """Five functions, one after the other."""
        return [Resize(self.size), CenterCrop(self.size), _convert_image_to_rgb, ToTensor(), Normalize(self.mean, self.std)]


def _transform(n_px: int) -> Preprocess:
    """An image -> normalised pixels [3, n_px, n_px]."""
    return Preprocess(n_px)
