"""BLIP as ImageReward uses it: a ViT encodes the image, a BERT encodes the prompt while attending to the image, a head gives the reward.

Architecture: BLIP (Li et al. 2022, arXiv 2201.12086) and ImageReward (Xu et al. 2023, arXiv 2304.05977). Module names are those of the
released checkpoint, so that its state dict loads without renaming. Letters in shape comments: I images, P prompts per image,
N = I * P pairs, T image tokens (class token first), L prompt tokens, W width, H heads, D width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from image_reward.models.blip_config import BlipConfig
from image_reward.models.heads import LinearHead
from image_reward.models.linear import Linear, gelu, set_plain

KeysValues = tuple[Tensor, Tensor]  # each [I, H, T, D]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, L, W] -> [B, H, L, D]"""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, L, D] -> [B, L, W]"""
    return x.transpose(1, 2).flatten(2)


# --- the image tower ---------------------------------------------------------------------------------------------------------------


class PatchEmbedding(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.vision_width, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)  # [I, T - 1, W]


class VisionAttention(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.num_heads = config.vision_heads
        self.qkv = Linear(config.vision_width, 3 * config.vision_width)
        self.proj = Linear(config.vision_width, config.vision_width)

    def forward(self, x: Tensor, original_order: bool = False) -> Tensor:
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        if original_order:
            logits = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
            return self.proj(merge_heads(logits.softmax(dim=-1) @ value))
        return self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value)))


class VisionMLP(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.vision_width, 4 * config.vision_width)
        self.fc1.gelu_follows = True
        self.fc2 = Linear(4 * config.vision_width, config.vision_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1, x))


class VisionBlock(nn.Module):
    attention_kind: type[VisionAttention] = VisionAttention

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.vision_width, eps=1e-6)
        self.attn = self.attention_kind(config)
        self.norm2 = nn.LayerNorm(config.vision_width, eps=1e-6)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, original_order: bool = False) -> Tensor:
        x = x + self.attn(self.norm1(x), original_order)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Normalised pixels [I, 3, S, S] -> image tokens [I, T, W]; token 0 is the class token."""

    block_kind: type[VisionBlock] = VisionBlock

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        num_patches = (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.vision_width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, config.vision_width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(self.block_kind(config) for _ in range(config.vision_layers))
        self.norm = nn.LayerNorm(config.vision_width, eps=1e-6)
        self.gradient_checkpointing = False
        self.original_order = False
        """Compute as the original does, operation by operation and one image at a time, so that float32 rounds as it did there."""

    def forward(self, pixels: Tensor) -> Tensor:
        if self.original_order:
            return torch.cat([self._encode(image[None]) for image in pixels])
        return self._encode(pixels)

    def _encode(self, pixels: Tensor) -> Tensor:
        return self.finish(self.begin(pixels, 0), 0)

    def begin(self, pixels: Tensor, depth: int) -> Tensor:
        """Normalised pixels [I, 3, S, S] -> the output of the first ``depth`` blocks, [I, T, W]."""
        if pixels.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}; the network reads [I, 3, {self.image_size}, {self.image_size}]")
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed  # [I, T, W]
        return self._through(x, 0, depth)

    def finish(self, x: Tensor, depth: int) -> Tensor:
        """The output of the first ``depth`` blocks -> image tokens, both [I, T, W]."""
        return self.norm(self._through(x, depth, len(self.blocks)))

    def weights_to(self, depth: int) -> dict[str, Tensor]:
        """The weights that ``begin(pixels, depth)`` computes with, by name."""

        def is_before(name: str) -> bool:
            return int(name.split(".")[1]) < depth if name.startswith("blocks.") else not name.startswith("norm.")

        return {name: tensor for name, tensor in self.state_dict().items() if is_before(name)}

    def _through(self, x: Tensor, start: int, end: int) -> Tensor:
        for block in list(self.blocks)[start:end]:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, self.original_order, use_reentrant=False)
            else:
                x = block(x, self.original_order)
        return x


# --- the text tower ----------------------------------------------------------------------------------------------------------------


class TextEmbeddings(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        # From zeros, because drawing normal values on the meta device loads torch._dynamo: most of a second, for nothing.
        zeros = (torch.zeros(size, config.text_width) for size in (config.vocab_size, config.max_positions))
        self.word_embeddings, self.position_embeddings = (nn.Embedding.from_pretrained(table, freeze=False) for table in zeros)
        self.LayerNorm = nn.LayerNorm(config.text_width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]])  # [N, L, W]


class Projections(nn.Module):
    """Query, key and value of an attention; keys and values may read tokens of another width."""

    def __init__(self, config: BlipConfig, memory_width: int) -> None:
        super().__init__()
        self.query = Linear(config.text_width, config.text_width)
        self.key = Linear(memory_width, config.text_width)
        self.value = Linear(memory_width, config.text_width)


class AddAndNorm(nn.Module):
    """BERT's post-norm residual: norm(residual + dense(x))."""

    def __init__(self, config: BlipConfig, width_in: int) -> None:
        super().__init__()
        self.dense = Linear(width_in, config.text_width)
        self.LayerNorm = nn.LayerNorm(config.text_width, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dense(x))


class TextAttention(nn.Module):
    """One class for both attentions: to the prompt itself and across to the image."""

    projections_kind: type[Projections] = Projections

    def __init__(self, config: BlipConfig, memory_width: int) -> None:
        super().__init__()
        self.num_heads = config.text_heads
        self.self = self.projections_kind(config, memory_width)
        self.output = AddAndNorm(config, config.text_width)

    def keys_values(self, memory: Tensor) -> KeysValues:
        return split_heads(self.self.key(memory), self.num_heads), split_heads(self.self.value(memory), self.num_heads)

    def attend(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """x [N, L, W] attends to keys and values [M, H, S, D], where N is a multiple of M: consecutive rows of x share a row of them."""
        key, value = keys_values
        query = split_heads(self.self.query(x).reshape(len(key), -1, x.shape[-1]), self.num_heads)  # [M, H, N/M * L, D]
        context = merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
        return self.output(context.reshape(x.shape), x)


class TextIntermediate(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.dense = Linear(config.text_width, config.text_hidden)
        self.dense.gelu_follows = True

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.dense, x)


class TextLayer(nn.Module):
    attention_kind: type[TextAttention] = TextAttention

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.attention = self.attention_kind(config, config.text_width)
        self.crossattention = self.attention_kind(config, config.vision_width)
        self.intermediate = TextIntermediate(config)
        self.output = AddAndNorm(config, config.text_hidden)

    def read(
        self,
        x: Tensor,
        mask: Tensor | None,
        image: KeysValues | None,
        image_mask: Tensor | None = None,
        first_token_only: bool = False,
    ) -> Tensor:
        keys_values = self.attention.keys_values(x)
        if first_token_only:
            x = x[:, :1]
        x = self.attention.attend(x, keys_values, mask)
        if image is not None:
            x = self.crossattention.attend(x, image, image_mask)
        return self.output(self.intermediate(x), x)


class TextLayers(nn.Module):
    layer_kind: type[TextLayer] = TextLayer

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(self.layer_kind(config) for _ in range(config.text_layers))


class TextTransformer(nn.Module):
    """A bidirectional BERT whose every layer also attends to an image."""

    embeddings_kind: type[TextEmbeddings] = TextEmbeddings
    encoder_kind: type[TextLayers] = TextLayers

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.embeddings = self.embeddings_kind(config)
        self.encoder = self.encoder_kind(config)
        self.gradient_checkpointing = False

    def read_image(self, image_tokens: Tensor) -> list[KeysValues]:
        """Cross-attention keys and values of every layer, computed once for any number of prompts."""
        layers: list[TextLayer] = list(self.encoder.layer)  # type: ignore[arg-type]
        return [layer.crossattention.keys_values(image_tokens) for layer in layers]

    def encode(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        images: list[KeysValues] | None = None,
        image_mask: Tensor | None = None,
        first_token_only: bool = False,
    ) -> Tensor:
        """Token ids [N, L] and their mask [N, L] (1 for a token, 0 for padding) -> [N, L, W], or [N, 1, W] for the first token only.

        With ``images``, keys and values for I images, N is a multiple of I, and row ``n`` reads image ``n // (N / I)``.
        """
        text_mask = None if mask is None else mask.bool()[:, None, None, :]
        cross_mask = None if image_mask is None else image_mask.bool()[:, None, None, :]
        if images and len(ids) % len(images[0][0]):
            raise ValueError(f"{len(ids)} prompts cannot be divided among {len(images[0][0])} images")
        x = self.embeddings(ids)
        last = len(self.encoder.layer) - 1
        layers: list[TextLayer] = list(self.encoder.layer)  # type: ignore[arg-type]
        for i, layer in enumerate(layers):
            arguments = (x, text_mask, images[i] if images else None, cross_mask, first_token_only and i == last)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer.read, *arguments, use_reentrant=False)
            else:
                x = layer.read(*arguments)
        return x


# --- the whole ---------------------------------------------------------------------------------------------------------------------


class Blip(nn.Module):
    """Both towers and the projections of BLIP's contrastive score."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextTransformer(config)
        self.vision_proj = Linear(config.vision_width, config.projection_width)
        self.text_proj = Linear(config.text_width, config.projection_width)

    def set_original_order(self, enabled: bool) -> None:
        """Encode images one at a time in the original's order of operations, so that float32 rounds as it did there."""
        self.visual_encoder.original_order = enabled
        set_plain(self, enabled)

    def project_images(self, image_tokens: Tensor) -> Tensor:
        """L2-normalised image features [I, projection]; their dot product with those of prompts is BLIP's contrastive score."""
        return F.normalize(self.vision_proj(image_tokens[:, 0]).float(), dim=-1)

    def project_prompts(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """L2-normalised prompt features [N, projection]: the text tower reads the prompts alone, without cross-attention."""
        text = self.text_encoder.encode(ids, mask, first_token_only=True)[:, 0]
        return F.normalize(self.text_proj(text).float(), dim=-1)


class CrossEncoder(nn.Module):
    """Both towers, and a head on the text tower's first token, which has attended to prompt and image."""

    config: BlipConfig
    blip: Blip

    def head(self, first: Tensor) -> Tensor:
        """Features of the first token [N, W] -> [N], float32."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """The image tower's."""
        for weight in self.blip.visual_encoder.parameters():  # a loop, because PyTorch 2.6 cannot export ``next`` with a default
            return weight.dtype
        return torch.float32

    def encode_images(self, pixels: Tensor) -> list[KeysValues]:
        """Normalised pixels [I, 3, S, S] -> every layer's cross-attention keys and values, which serve any number of prompts."""
        return self.blip.text_encoder.read_image(self.blip.visual_encoder(pixels))

    @property
    def image_layers(self) -> list[nn.Module]:
        """The blocks of the image tower, from the input on."""
        return list(self.blip.visual_encoder.blocks)

    @property
    def text_layers(self) -> list[nn.Module]:
        """The layers of the text tower, from the input on."""
        return list(self.blip.text_encoder.encoder.layer)

    @property
    def token_embeddings(self) -> Tensor:
        """[vocabulary, W]"""
        return self.blip.text_encoder.embeddings.word_embeddings.weight

    @property
    def image_tokens_shape(self) -> tuple[int, int]:
        """T and W of what ``begin_images`` gives."""
        _, num_tokens, width = self.blip.visual_encoder.pos_embed.shape
        return num_tokens, width

    def begin_images(self, pixels: Tensor, depth: int) -> Tensor:
        """Normalised pixels [I, 3, S, S] -> the output of the image tower's first ``depth`` blocks, [I, T, W], for ``finish_images``."""
        return self.blip.visual_encoder.begin(pixels, depth)

    def image_weights_to(self, depth: int) -> dict[str, Tensor]:
        """The weights that ``begin_images(pixels, depth)`` computes with, by name."""
        return self.blip.visual_encoder.weights_to(depth)

    def finish_images(self, tokens: Tensor, depth: int) -> list[KeysValues]:
        """As ``encode_images``, from what ``begin_images`` gave for that depth."""
        return self.blip.text_encoder.read_image(self.blip.visual_encoder.finish(tokens, depth))

    def encode_pairs(self, images: list[KeysValues], ids: Tensor, mask: Tensor) -> Tensor:
        """As ``score_pairs``, but the output of the text tower for every token [N, L, W]."""
        return self.blip.text_encoder.encode(ids, mask, images)

    def score_pairs(self, images: list[KeysValues], ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encoded images (I of them), token ids [N, L] and mask [N, L] -> raw rewards [N], float32; an image's prompts are consecutive."""
        return self.head(self.blip.text_encoder.encode(ids, mask, images, first_token_only=True)[:, 0])

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised pixels [I, 3, S, S] and token ids [N, L], N a multiple of I -> raw rewards [N], float32."""
        return self.score_pairs(self.encode_images(pixels), ids, mask)

    def freeze_projections(self) -> None:
        """Take the projections of BLIP's contrastive score, which no reward depends on, out of training."""
        for projection in (self.blip.vision_proj, self.blip.text_proj):
            projection.requires_grad_(False)

    def cast(self, dtype: torch.dtype) -> None:
        """Let the towers compute in ``dtype``; the head stays in float32."""
        self.blip.to(dtype)

    def set_original_order(self, enabled: bool) -> None:
        """See ``Blip.set_original_order``."""
        self.blip.set_original_order(enabled)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass: about a third more time for a fraction of the memory."""
        self.blip.visual_encoder.gradient_checkpointing = enabled
        self.blip.text_encoder.gradient_checkpointing = enabled


class ImageRewardNetwork(CrossEncoder):
    """Raw rewards, before the mean and standard deviation of the published scale are applied."""

    def __init__(self, config: BlipConfig, blip: Blip | None = None, mlp: LinearHead | None = None) -> None:
        """A network of existing parts, or of new ones where ``blip`` or ``mlp`` is None."""
        super().__init__()
        self.config = config
        self.blip = Blip(config) if blip is None else blip
        self.mlp = LinearHead(config.text_width, config.head_widths) if mlp is None else mlp

    def head(self, first: Tensor) -> Tensor:
        return self.mlp(first)[:, 0]


class MatchingNetwork(CrossEncoder):
    """BLIP's image-text matching: the log odds that the prompt describes the image. Prompts begin with [ENC] in place of [CLS]."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.blip = Blip(config)
        self.itm_head = nn.Linear(config.text_width, 2)

    def head(self, first: Tensor) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):  # as ``LinearHead``: in float32 whatever the towers compute in
            no, yes = F.linear(first.float(), self.itm_head.weight.float(), self.itm_head.bias.float()).unbind(dim=-1)
            return yes - no
