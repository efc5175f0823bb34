"""The sizes of a BLIP network, apart from the network: settings and configs need no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from image_reward.errors import InputError


@dataclass(frozen=True)
class BlipConfig:
    """Sizes of the network; the defaults are the released model's (ViT-L/16 and BERT-base)."""

    image_size: int = 224
    """Side of the square that images are resized to, in pixels."""
    patch_size: int = 16
    """Side of a patch of the image, in pixels."""
    vision_width: int = 1024
    """Width of the image tower."""
    vision_layers: int = 24
    """Layers of the image tower."""
    vision_heads: int = 16
    """Attention heads in a layer of the image tower."""
    text_width: int = 768
    """Width of the text tower."""
    text_layers: int = 12
    """Layers of the text tower."""
    text_heads: int = 12
    """Attention heads in a layer of the text tower."""
    text_hidden: int = 3072
    """Width of the feed-forward layers of the text tower."""
    vocab_size: int = 30524
    """Tokens of the vocabulary."""
    max_positions: int = 512
    """Tokens for which the text tower has positions."""
    projection_width: int = 256
    """Width of the projections of the contrastive loss of BLIP."""
    head_widths: tuple[int, ...] = (1024, 128, 64, 16)
    """Widths of the hidden layers of the head."""

    def __post_init__(self) -> None:
        # Bounds far beyond any real network, so that a damaged config is refused before anything is built or overflows.
        for name, value in vars(self).items():
            largest = 200 if name.endswith("_layers") else 1 << 14 if name == "image_size" else 1 << 20
            for size in value if isinstance(value, tuple) else (value,):
                if not 1 <= size <= largest:
                    raise InputError(f"{name} must be from 1 to {largest:,}, not {size}")
        if len(self.head_widths) > 100:
            raise InputError(f"head_widths has {len(self.head_widths):,} layers; at most 100 can be built")
        for whole, part in [
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
        ]:
            if getattr(self, whole) % getattr(self, part):
                raise InputError(f"{whole} ({getattr(self, whole)}) must be a multiple of {part} ({getattr(self, part)})")
