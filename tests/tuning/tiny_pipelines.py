"""Pipelines of diffusers with a few thousand random weights each, built from their configurations: no file, no network."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

diffusers = pytest.importorskip("diffusers")  # which needs Python 3.11

WIDTH = 16  # of every text encoder


def clip_tokenizer() -> Any:
    letters = [*string.ascii_lowercase, *string.digits, *",.-"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=24)


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in string.ascii_lowercase)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)


def qwen_tokenizer() -> Any:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.Qwen2Tokenizer(vocab={word: i for i, word in enumerate([*letters, *special])}, merges=[])
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def clip_text(projection: bool = False) -> Any:
    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5_text(kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(t5_tokenizer()), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def decoder_text(kind: str, vocab_size: int) -> Any:
    """A tiny language model as text encoder."""
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))


def vae(latent_channels: int = 4, **options: Any) -> Any:
    """Halves the sides."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
        force_upcast=False,
        **options,
    )


def flow_vae() -> Any:
    """As the pipelines that predict velocities have it."""
    return vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06)


def unet(**options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # those of Stable Diffusion


def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=WIDTH),
        scheduler=diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
            use_linear_projection=True,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def stable_diffusion_3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            out_channels=4,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=_widened(t5_text(), 2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


def flux() -> Any:
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flow_vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        vae=vae(),
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=8,
            caption_channels=WIDTH,
            use_additional_conditions=False,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def sana() -> Any:
    return diffusers.SanaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=decoder_text("Gemma2", len(t5_tokenizer())),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
        ),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=8,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def qwen_image() -> Any:
    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 256,
    }
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def z_image() -> Any:
    tokenizer = qwen_tokenizer()
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=decoder_text("Qwen3", len(tokenizer)),
        tokenizer=tokenizer,
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[128, 16, 16],
        ),
    )


def wan() -> Any:
    return diffusers.WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text("UMT5"),
        vae=diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            scale_factor_temporal=4,
            scale_factor_spatial=2,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        ),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    build.__name__: build
    for build in (stable_diffusion, stable_diffusion_xl, stable_diffusion_3, flux, pixart, sana, qwen_image, z_image, wan)
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "flux": {"max_sequence_length": 24},
    "stable_diffusion_3": {"max_sequence_length": 24, "guidance_scale": 3.0},
    "pixart": {"max_sequence_length": 24, "use_resolution_binning": False, "clean_caption": False},
    "sana": {"max_sequence_length": 24, "use_resolution_binning": False, "clean_caption": False, "complex_human_instruction": None},
    "qwen_image": {"true_cfg_scale": 2.0, "negative_prompt": "b"},
    "z_image": {"max_sequence_length": 24},
    "wan": {"max_sequence_length": 24, "num_frames": 1},
}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Any]]:
    """A pipeline whose denoiser alone is trainable, and the arguments that keep its calls small."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = PIPELINES[name]()
        for part in parts(pipe).values():
            for parameter in part.parameters():  # some layers begin at zero, which would hide a gradient that is lost
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.1)
            part.requires_grad_(False).eval()
            if dtype != torch.float32:
                part.to(dtype)
        pipe.vae.decoder.conv_out.weight.mul_(0.2)  # fewer pixels at the limits of [0, 1], where nothing has a gradient
    denoiser(pipe).requires_grad_(True)
    side = 32 if name == "sana" else 16  # which is as small as the pipeline allows
    return pipe, {"height": side, "width": side} | ARGUMENTS.get(name, {})


def parts(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def _widened(encoder: Any, width: int) -> Any:
    """SD3 joins CLIP's two outputs to the width of T5's."""
    config = encoder.config
    config.d_model = width
    return type(encoder)(config)
