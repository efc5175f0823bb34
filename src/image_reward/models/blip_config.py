"""The sizes of a BLIP network, apart from the network: settings and configs need no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from image_reward.errors import InputError


@dataclass(frozen=True)
class BlipConfig:
    """Sizes of the network; the defaults are the released model's (ViT-L/16 and BERT-base)."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    vocab_size: int = 30524
    max_positions: int = 512
    projection_width: int = 256
    head_widths: tuple[int, ...] = (1024, 128, 64, 16)

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
