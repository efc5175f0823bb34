from __future__ import annotations

import fnmatch
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")

import diffusers
import peft
import tiny_pipelines
import torch
from torch import nn

from image_reward.errors import InputError, UnknownModelError
from image_reward.reports import printing
from image_reward.scorers import ImageRewardScorer
from image_reward.tuning import lora, memory, methods, sample
from image_reward.tuning.config import Tuning
from image_reward.tuning.sampling import denoisers_of

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2

CONFIG = Tuning(denoising_steps=4, lora_rank=4, batch_images=6, max_steps=50, reward=("a",), watch=("b",))
GIB = 2**30


def parts(estimate: memory.MemoryEstimate) -> dict[str, int]:
    return {part.name: part.num_bytes for part in estimate.parts}


def counted(pipe: Any, chosen: methods.Rollout, own: dict[str, Any], num_images: int = 1) -> int:
    """Bytes that autograd saves in a real run."""
    resident = set().union(*map(memory.storages, tiny_pipelines.parts(pipe).values()))
    options = {"steps": chosen.steps, "grad_steps": chosen.grad_steps, "detach_input": chosen.detach_input, "stop_at": chosen.stop_at}
    with memory.saved_tensors(resident) as saved:
        sample(pipe, ["a cat"] * num_images, seed=0, **options, **own)
    return saved.num_bytes


def checkpointed(pipe: Any) -> Any:
    for part in (*denoisers_of(pipe), pipe.vae):
        if part._supports_gradient_checkpointing:
            part.enable_gradient_checkpointing()
    return pipe


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_the_activations_of_every_pipeline(name: str, scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build(name)
    config = replace(CONFIG, **{key: own[key] for key in ("height", "width", "guidance_scale") if key in own})
    arguments = {key: value for key, value in own.items() if not hasattr(config, key)}
    names = list(tiny_pipelines.denoiser(pipe).state_dict())
    estimate = memory.estimate(config, pipe=pipe, scorers={"a": scorer, "b": scorer}, **arguments)
    assert list(tiny_pipelines.denoiser(pipe).state_dict()) == names  # the pipeline is untouched
    sizes = parts(estimate)
    assert sizes["LoRA"] == sum(4 * weight.numel() for weight in lora.attach(pipe, 4, 4))
    real = counted(checkpointed(pipe), methods.rollout(config.resolved(), random.Random(0)), own)
    assert sizes["denoiser's activations"] + sizes["decoder's activations"] == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("method", ["sparse", "draft", "refl"])
def test_methods_differ_in_the_calls_that_they_keep(method: Any, scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    config = replace(CONFIG, method=method, denoising_steps=6, micro_images=2, gradient_checkpointing=False, precision="fp32", **own)
    estimate = memory.estimate(config, pipe=pipe, scorers={"a": scorer, "b": scorer})
    lora.attach(pipe, 4, 4)
    guidance = {"guidance_scale": 1.0} if method == "refl" else {}
    real = counted(pipe, methods.rollout(config.resolved(), random.Random(0)), own | guidance, num_images=2)
    sizes = parts(estimate)
    assert sizes["denoiser's activations"] + sizes["decoder's activations"] == pytest.approx(real, rel=0.1)
    assert estimate.num_active_calls == {"sparse": 2, "draft": 1, "refl": 1}[method]
    assert (estimate.num_steps, estimate.num_micro_batches) == (50, 3)


def test_the_activations_of_a_scorer(scorer: ImageRewardScorer) -> None:
    (measured,) = memory._scorer_memory(scorer, (2, 3, 48, 32), 1)
    assert measured.weights == memory.num_bytes(scorer)
    scorer.requires_grad_(False)  # as `load` gives it
    pixels = torch.rand(2, 3, 48, 32, requires_grad=True)
    with memory.saved_tensors(memory.storages(scorer)) as saved:
        scorer.rewards(["a cat in a hat"] * 2, pixels)
    assert measured.kept == pytest.approx(saved.num_bytes, rel=0.2)
    (more,) = memory._scorer_memory(scorer, (2, 3, 48, 32), 2)
    assert more.kept > measured.kept


def test_all_weights_in_place_of_lora(scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    config = replace(CONFIG, lora_rank=0, gradient_checkpointing=False, ema=0.0, **own)
    estimate = memory.estimate(config, pipe=pipe, scorers={"a": scorer, "b": scorer})
    sizes = parts(estimate)
    assert "LoRA" not in sizes
    assert "moving average" not in sizes
    assert sizes["gradients"] == sum(4 * weight.numel() for weight in pipe.unet.parameters())
    pipe.unet.requires_grad_(True)
    real = counted(pipe, methods.rollout(config.resolved(), random.Random(0)), own)
    assert sizes["denoiser's activations"] + sizes["decoder's activations"] == pytest.approx(real, rel=0.1)
    assert estimate.peak == sum(sizes.values())  # without checkpointing, all is there at the end of the forward pass


def test_the_peak_counts_what_is_recomputed(scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    estimate = memory.estimate(replace(CONFIG, **own), pipe=pipe, scorers={"a": scorer, "b": scorer})
    sizes = parts(estimate)
    kept = sizes["denoiser's activations"] + sizes["decoder's activations"]
    assert estimate.peak_activations == max(kept + sizes["rewards' activations"], kept + estimate.decoder.recomputed)
    assert estimate.denoiser_call.checkpointed < estimate.denoiser_call.plain / 2


def configuration_only(name: str, folder: Path) -> Path:
    pipe, _ = tiny_pipelines.build(name)
    pipe.save_pretrained(folder)
    for file in [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]:
        file.unlink()
    return folder


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_3", "qwen_image"])
def test_a_folder_without_weights(name: str, tmp_path: Path, scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build(name)
    config = replace(CONFIG, **{key: own[key] for key in ("height", "width", "guidance_scale") if key in own})
    arguments = {key: value for key, value in own.items() if not hasattr(config, key)}
    folder = configuration_only(name, tmp_path)
    estimate = memory.estimate(replace(config, model=str(folder)), scorers={"a": scorer, "b": scorer}, **arguments)
    expected = memory.estimate(config, pipe=pipe, scorers={"a": scorer, "b": scorer}, **arguments)
    assert parts(estimate) == parts(expected)
    assert estimate.peak == expected.peak
    assert estimate.model == str(folder)


def test_of_a_hub_id_only_configurations_are_fetched(tmp_path: Path, scorer: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    pipe.save_pretrained(tmp_path / "hub")

    def snapshot_download(repo: str, allow_patterns: list[str]) -> str:
        assert repo == "somebody/tiny"
        for file in (tmp_path / "hub").rglob("*"):
            if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                copy = tmp_path / "cache" / file.relative_to(tmp_path / "hub")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    estimate = memory.estimate(replace(CONFIG, model="somebody/tiny", **own), scorers={"a": scorer, "b": scorer})
    assert parts(estimate) == parts(memory.estimate(replace(CONFIG, **own), pipe=pipe, scorers={"a": scorer, "b": scorer}))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_scorers_by_name(tmp_path: Path, scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    scorer.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "model.safetensors").unlink()
    config = replace(
        CONFIG, reward=("ImageReward-v1.0", str(tmp_path / "own")), watch=("ImageReward-mini", "BLIP"), precision="bf16", **own
    )
    estimate = memory.estimate(config, pipe=pipe)
    sizes = parts(estimate)
    assert sizes["reward: ImageReward-v1.0"] == pytest.approx(1_786_880_927, rel=0.01)  # the published file is in float32
    assert sizes[f"reward: {tmp_path / 'own'}"] == pytest.approx(memory.num_bytes(scorer), rel=0.01)
    assert sizes["watch: ImageReward-mini"] > 0
    (blip,) = [part for part in estimate.parts if part.name == "watch: BLIP"]
    assert (blip.num_bytes, blip.note) == (0, "not known without its weights, and not counted")
    with pytest.raises(UnknownModelError, match="Did you mean ImageReward-v1"):
        memory.estimate(replace(config, reward=("ImageRewrd-v1.0",)), pipe=pipe)


def test_one_frame_of_a_pipeline_for_videos(scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build("wan")
    scorers = {"a": scorer, "b": scorer}
    config = replace(CONFIG, height=16, width=16)
    frame = memory.estimate(config, pipe=pipe, scorers=scorers, **own)
    own.pop("num_frames")
    assert memory.estimate(config, pipe=pipe, scorers=scorers, **own) == frame
    with pytest.raises(InputError, match="WanPipeline refused the call"):
        memory.estimate(CONFIG, pipe=pipe, scorers=scorers, **own | {"height": 17})


def test_the_estimate_as_a_table_and_as_json(scorer: ImageRewardScorer, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    estimate = memory.estimate(replace(CONFIG, **own), pipe=pipe, scorers={"a": scorer, "b": scorer}, processes=2)
    report = estimate.report()
    printing.show(report)
    printed = capsys.readouterr().out
    for part in estimate.parts:
        assert part.name in printed
    assert "50 steps of 3 micro-batches, each of 4 calls of the denoiser, 2 with gradients" in " ".join(printed.split())
    values = json.loads(json.dumps(report.data))
    assert values["peak"] == estimate.peak
    assert {part["name"]: part["num_bytes"] for part in values["parts"]} == parts(estimate)


def test_what_is_not_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a pipeline of diffusers: it has no model_index.json"):
        memory.meta_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(InputError, match="describes no pipeline that can be built here"):
        memory.meta_pipeline(tmp_path)


# --- sizes that were computed independently ------------------------------------------------------------------------------------------


def sd15_unet() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )


def sdxl_unet() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def sd_vae() -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )


def prepared(build: Any) -> Any:
    """Frozen, in bfloat16, with LoRA in bfloat16 on the attention of a U-Net."""
    with torch.device("meta"):
        network = build()
    nn.Module.to(network.eval().requires_grad_(False), torch.bfloat16)
    if hasattr(network, "conv_act"):
        network.add_adapter(peft.LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        nn.Module.to(network, torch.bfloat16)
    return network


def tensor(*shape: int, requires_grad: bool = False) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta", requires_grad=requires_grad)


def unet_call(network: Any, side: int, batch: int) -> memory.Kept:
    options = {"encoder_hidden_states": tensor(batch, 77, network.config.cross_attention_dim), "return_dict": False}
    if network.config.addition_embed_type:
        options["added_cond_kwargs"] = {"text_embeds": tensor(batch, 1280), "time_ids": tensor(batch, 6)}
    arguments = (tensor(batch, 4, side // 8, side // 8, requires_grad=True), torch.tensor(5.0))
    return memory.counted(network, network.forward, arguments, options, True)[0]


def test_the_layout_of_stable_diffusion() -> None:
    """Weights and activations of SD 1.5 in GiB, as another program computed them (bf16, LoRA of rank 16 on the attention)."""
    network = prepared(sd15_unet)
    assert memory.num_bytes(network) / GIB == pytest.approx(1.6, rel=0.1)
    for batch, plain, checkpointed in ((1, 0.81, 0.14), (2, 1.63, 0.29)):
        kept = unet_call(network, 512, batch)
        assert kept.plain / GIB == pytest.approx(plain, rel=0.1)
        assert kept.checkpointed / GIB == pytest.approx(checkpointed, rel=0.1)
    vae = prepared(sd_vae)
    for side, plain, checkpointed in ((512, 2.78, 0.40), (1024, 11.11, 1.59)):
        kept, _ = memory.counted(vae, vae.decode, (tensor(1, 4, side // 8, side // 8, requires_grad=True),), {}, True)
        assert kept.plain / GIB == pytest.approx(plain, rel=0.1)
        assert kept.checkpointed / GIB == pytest.approx(checkpointed, rel=0.1)


def test_the_layout_of_sdxl() -> None:
    network = prepared(sdxl_unet)
    assert memory.num_bytes(network) / GIB == pytest.approx(4.8, rel=0.1)
    for side, plain, checkpointed in ((512, 1.46, 0.12), (1024, 5.77, 0.47)):
        kept = unet_call(network, side, 1)
        assert kept.plain / GIB == pytest.approx(plain, rel=0.1)
        assert kept.checkpointed / GIB == pytest.approx(checkpointed, rel=0.1)


def test_half_precision_is_counted_as_the_loop_computes(scorer: ImageRewardScorer) -> None:
    """Norms keep float32 under autocast; blocks that are checkpointed hand on half precision all the same."""
    pipe, own = tiny_pipelines.build("stable_diffusion")
    config = replace(CONFIG, **own)
    whole, half, half_decoded_in_float32 = (
        memory.estimate(replace(config, precision=precision), pipe=pipe, scorers={"a": scorer, "b": scorer})
        for precision in ("fp32", "bf16", "fp16")
    )
    assert parts(half)["denoiser"] == parts(whole)["denoiser"] / 2
    assert parts(half)["LoRA"] == parts(whole)["LoRA"]
    assert whole.denoiser_call.checkpointed / 2 <= half.denoiser_call.checkpointed < whole.denoiser_call.checkpointed * 0.7  # the last norm
    assert whole.denoiser_call.plain / 2 < half.denoiser_call.plain < whole.denoiser_call.plain * 1.1
    assert half_decoded_in_float32.decoder.plain == pytest.approx(whole.decoder.plain, rel=0.05)
    assert parts(half_decoded_in_float32)["VAE"] == parts(whole)["VAE"]
