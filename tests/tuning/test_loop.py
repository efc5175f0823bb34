"""The loop, in this process, on a pipeline of a few thousand weights."""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")

import tiny_pipelines
import tiny_runs
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from image_reward.errors import AnswerError, InputError, PromptError, TrainingError
from image_reward.scorers import Ensemble, ImageRewardScorer, Scorer
from image_reward.tuning import Tuning, lora, methods, sample, tune
from image_reward.tuning.loop import _replaced_folder
from image_reward.tuning.rewarding import rewards_of_prompts
from refusing import Refusing

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # schedulers of diffusers with NumPy 2
]
UNGUARDED: dict[str, Any] = {
    "kl_weight": 0.0,
    "pretraining_weight": 0.0,
    "margin_weight": 0.0,
    "reward_weight": 1.0,
    "target_quantile": 1.0,
    "auto_stop": False,
}


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state per process, which fixes the precision."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def log_of(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(
    "method",
    [
        {"method": "sparse"},
        {"method": "draft", "grad_steps": 2},
        {"method": "draft", "repeats": 2},
        {"method": "refl", "denoising_steps": 4, "target": None, "objective": "negative", "target_quantile": 0.9},
        {"method": "sparse", "lora_rank": 0, "lr": 2e-3},
        {"method": "sparse", "smoothing": 0.1},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_each_method_raises_a_reward_that_any_image_can_have_more_of(tmp_path: Path, method: dict[str, Any]) -> None:
    result = tiny_runs.run(tiny_runs.config(tmp_path / "run", max_steps=10, evaluate_every=10, ema=0.0, **UNGUARDED | method))
    assert (result.steps, result.kept_step, result.stopped) == (10, 10, False)
    assert result.reward > result.untuned_reward + 0.02
    assert result.verdict.startswith("The reward rose from")


def test_best_of_learns_from_a_scorer_without_gradients(tmp_path: Path) -> None:
    class Blind(tiny_runs.Channel):
        rewards = Scorer.rewards

    blind = {"redness": Blind(0)}
    run = tiny_runs.config(tmp_path / "run", method="best-of", max_steps=10, evaluate_every=5, lr=1e-2)
    tiny_runs.run(run, scorers=blind)
    losses = [line["pretraining"] for line in log_of(tmp_path / "run")]
    assert sum(losses[-3:]) < sum(losses[:3])
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(
        InputError, match="redness gives no gradients to pixels; choose a scorer that does, or --method best-of, which needs none"
    ):
        tiny_runs.run(tiny_runs.config(tmp_path / "other"), scorers=blind)


def test_best_of_passes_over_images_that_a_judge_refuses(tmp_path: Path) -> None:
    class Half(Refusing):
        num_asked = 0

        def refuses(self, prompt: str) -> bool:
            self.num_asked += prompt not in tiny_runs.HELD_OUT
            return prompt not in tiny_runs.HELD_OUT and self.num_asked % 2 == 0

    def run(name: str, scorer: Refusing) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        options = {"method": "best-of", "candidates": 4, "max_steps": 2, "evaluate_every": 2, "batch_images": 2}
        tiny_runs.run(tiny_runs.config(tmp_path / name, **options), scorers={"redness": scorer})

    run("half", Half())
    assert [line["refused"] for line in log_of(tmp_path / "half")] == [2.0, 2.0]
    with pytest.raises(AnswerError, match=r"refusing gives no image of 4 for 'a \w+ \w+' a reward: the answer 'well' states"):
        run("all", Refusing(*tiny_runs.PROMPTS))
    with pytest.raises(AnswerError, match="refusing gives an image for 'a red fox' no reward: the answer 'well' states no score"):
        run("held out", Refusing("a red fox"))


def test_pretraining_loss_and_divergence_hold_the_generator_back(tmp_path: Path) -> None:
    def drift(name: str, **changes: Any) -> float:
        tiny_runs.run(tiny_runs.config(tmp_path / name, ema=0.0, **UNGUARDED | changes))
        AcceleratorState._reset_state(reset_partial_state=True)
        return log_of(tmp_path / name, "evaluation")[-1]["drift"]

    free = drift("free")
    assert drift("pretraining", pretraining_weight=100.0) < free
    for name, rank in (("kl", 4), ("kl of all weights", 0)):
        tiny_runs.run(tiny_runs.config(tmp_path / name, **UNGUARDED | {"kl_weight": 1.0, "lora_rank": rank, "lr": 1e-3}))
        AcceleratorState._reset_state(reset_partial_state=True)
        divergences = [line["kl"] for line in log_of(tmp_path / name)]
        assert divergences[0] == pytest.approx(0, abs=1e-9)
        assert divergences[-1] > 1e-6


def test_without_weight_of_the_reward_no_image_is_made_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(methods, "images", never)
    tiny_runs.run(tiny_runs.config(tmp_path / "control", reward_weight=0.0, pretraining_weight=1.0))
    lines = log_of(tmp_path / "control")
    assert all(line["pretraining"] > 0 and "reward" not in line and "margin" not in line for line in lines)
    assert (tmp_path / "control" / "report.html").exists()


def test_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    untuned = sample(pipe, "a red fox", steps=3, grad_steps=0, seed=1, **own)
    config = tiny_runs.config(tmp_path / "run", watch=("redder",), **UNGUARDED)
    result = tiny_runs.run(config, pipe=pipe)
    said = capsys.readouterr().err
    assert "sparse on 12 prompts, 4 images a step, 6 steps on 1 x cpu; watched on 2 held-out prompts with 2 images each" in said
    assert "step 6/6  reward" in said
    assert [line["step"] for line in log_of(tmp_path / "run", "evaluation")] == [0, 3, 6]
    first, *_, last = log_of(tmp_path / "run", "evaluation")
    assert first["drift"] == 0.0 < last["drift"]
    assert (first["margin"], first["above_target"]) == (None, 0.25)  # it reads no prompt; the target is the highest untuned reward
    assert result.watched == {"redder": (first["watch redder"], last["watch redder"])}

    page = (tmp_path / "run/report.html").read_text()
    assert result.verdict in page.replace("&#39;", "'")
    for text in ("The same noises at each evaluation", "1. a red fox; 2. a blue hen", "Scorers that are watched", "Strengths of the LoRA"):
        assert text in page
    assert "http" not in page.split("<body")[1].replace("http://www.w3.org", "")
    assert sorted(path.name for path in (tmp_path / "run/evaluations").iterdir()) == ["000000.png", "000003.png", "000006.png"]
    with Image.open(tmp_path / "run/evaluations/000006.png") as grid:
        assert grid.size == (2 * 18 - 2, 2 * 18 - 2)

    card = (tmp_path / "run/lora/README.md").read_text()
    assert result.verdict in card
    assert "lora_rank = 4" in card

    # The pipeline has the kept weights, and another gets them from the folder.
    tuned = sample(pipe, "a red fox", steps=3, grad_steps=0, seed=1, **own)
    assert not torch.equal(tuned, untuned)
    other, _ = tiny_pipelines.build("stable_diffusion")
    lora.load(other, result.model)
    assert torch.equal(sample(other, "a red fox", steps=3, grad_steps=0, seed=1, **own), tuned)
    assert "scheduler" in repr(pipe)
    assert not pipe.unet.is_gradient_checkpointing

    # The same command again has nothing to do but to load the weights; another is refused.
    again, _ = tiny_pipelines.build("stable_diffusion")
    assert tiny_runs.run(config, pipe=again) == result
    assert torch.equal(sample(again, "a red fox", steps=3, grad_steps=0, seed=1, **own), tuned)
    assert "holds a finished run" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"holds a run with other settings \(lr: 0\.02 there, 0\.001 here\)"):
        tiny_runs.run(tiny_runs.config(tmp_path / "run", watch=("redder",), **UNGUARDED | {"lr": 1e-3}))


def test_a_run_whose_watched_scorer_falls_is_stopped_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    config = tiny_runs.config(
        tmp_path / "run",
        watch=("pallor",),
        max_steps=30,
        evaluate_every=2,
        ema=0.0,
        **UNGUARDED | {"auto_stop": True, "objective": "negative", "target_quantile": 0.9},
    )
    pipe, own = tiny_pipelines.build("stable_diffusion")
    untuned = sample(pipe, "a red fox", steps=3, grad_steps=0, seed=1, **own)
    result = tiny_runs.run(config, pipe=pipe)
    assert result.stopped
    assert result.kept_step == result.steps - 4 < 26
    assert "pallor has fallen by" in result.verdict
    assert "The run was stopped" in result.verdict
    assert "is stopped after step" in (tmp_path / "run/report.html").read_text()
    if result.kept_step == 0:
        assert torch.equal(sample(pipe, "a red fox", steps=3, grad_steps=0, seed=1, **own), untuned)


def test_a_watched_scorer_that_shares_the_tower_of_the_reward_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scorer: ImageRewardScorer
) -> None:
    known = {"tiny": scorer, "the same": scorer}
    tiny_runs.run(tiny_runs.config(tmp_path / "run", reward=("tiny",), watch=("the same",), max_steps=1), scorers=known)
    assert "warning: the same is watched but shares the image tower of the reward" in capsys.readouterr().err
    assert log_of(tmp_path / "run", "evaluation")[0]["margin"] is not None


def test_several_scorers_are_on_the_scale_of_the_untuned_images(tmp_path: Path) -> None:
    config = tiny_runs.config(tmp_path / "run", reward=("redness", "greenness"), combine="conservative", max_steps=1)
    tiny_runs.run(config)
    first = log_of(tmp_path / "run", "evaluation")[0]
    assert first["reward"] < 0  # the mean is 0, less the disagreement
    assert math.isfinite(first["reward"])


def test_rewards_of_several_prompts_encode_an_image_once(scorer: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, prompts = torch.rand(2, 3, 16, 16), [["a cat", "a dog"], ["a blue ant", "a b"]]
    plain = torch.stack([scorer.rewards(each, pixels) for each in prompts], dim=1)
    calls: list[int] = []
    encode = scorer.encode_images
    monkeypatch.setattr(scorer, "encode_images", lambda at: calls.append(len(at)) or encode(at))
    torch.testing.assert_close(rewards_of_prompts(scorer, prompts, pixels), plain, rtol=1e-4, atol=1e-5)
    assert calls == [2]
    from image_reward.scorers.ensemble import Reference

    ensemble = Ensemble({"tiny": scorer}, references={"tiny": Reference(1.0, 2.0, 2, "two")})
    torch.testing.assert_close(rewards_of_prompts(ensemble, prompts, pixels), (plain - 1) / 2, rtol=1e-4, atol=1e-5)


def test_micro_batches_and_gradient_checkpointing_change_nothing(tmp_path: Path) -> None:
    def losses(name: str, **changes: Any) -> list[float]:
        tiny_runs.run(tiny_runs.config(tmp_path / name, max_steps=3, **changes))
        AcceleratorState._reset_state(reset_partial_state=True)
        return [line["loss"] for line in log_of(tmp_path / name)]

    plain = losses("plain")
    assert losses("micro", micro_images=1) == pytest.approx(plain, abs=2e-4)
    assert losses("all", micro_images=4, gradient_checkpointing=False) == pytest.approx(plain, abs=2e-4)


def test_bfloat16(tmp_path: Path) -> None:
    result = tiny_runs.run(
        tiny_runs.config(tmp_path / "run", precision="bf16", ema=0.0, **UNGUARDED | {"objective": "negative", "target_quantile": 0.9})
    )
    assert all(line["norm"] > 0 for line in log_of(tmp_path / "run"))
    assert result.reward > result.untuned_reward


def test_images_of_the_user_for_the_pretraining_loss(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (20 + number, 16), (200, 40 * number, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "rows.csv").write_text("prompt,image\n" + "".join(f"a red fox {n},{n}.png\n" for n in range(3)))
    tiny_runs.run(tiny_runs.config(tmp_path / "run", pretraining_images=str(tmp_path / "rows.csv"), max_steps=2))
    saved = torch.load(tmp_path / "run/untuned.pt", weights_only=True)
    assert all(line["pretraining"] > 0 for line in log_of(tmp_path / "run"))
    assert saved["samples"] == ("a red fox 0", "a red fox 1", "a red fox 2")
    assert saved["latents"].shape == (3, 4, 8, 8)
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3, "image": "0.png"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl, row 1: it needs prompt and image"):
        tiny_runs.run(tiny_runs.config(tmp_path / "bad", pretraining_images=str(tmp_path / "bad.jsonl")))


# --- what goes wrong ---


def test_a_loss_that_is_not_a_number(tmp_path: Path) -> None:
    class Breaking(tiny_runs.Channel):
        def rewards(self, prompts: Any, pixels: torch.Tensor) -> torch.Tensor:
            return super().rewards(prompts, pixels) * (math.nan if self.calls() > 4 else 1.0)

        def calls(self) -> int:
            self.num_calls = vars(self).get("num_calls", 0) + 1
            return self.num_calls

    pipe, _ = tiny_pipelines.build("stable_diffusion")
    names = [name for name, _ in pipe.unet.named_modules()]
    with pytest.raises(TrainingError, match=r"the loss of step 3 is nan, its reward nan.*Try in a new folder a lower lr"):
        tiny_runs.run(tiny_runs.config(tmp_path / "run"), pipe=pipe, scorers={"redness": Breaking(0)})
    assert [name for name, _ in pipe.unet.named_modules()] == names  # without the LoRA
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["run"]["step"] == 2


def test_weights_that_overflow(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss of step 2 is nan, its reward nan.*The state before it is in .*a lower lr"):
        tiny_runs.run(tiny_runs.config(tmp_path / "run", lr=1e30, clip=0.0, pretraining_weight=0.0))
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["run"]["step"] == 1


def test_pixels_that_are_not_finite(tmp_path: Path) -> None:
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    pipe.unet.conv_out.bias.data[:] = math.nan
    with pytest.raises(TrainingError, match="has pixels that are not finite; check the weights of the generator"):
        tiny_runs.run(tiny_runs.config(tmp_path / "run"), pipe=pipe)


def test_a_target_below_all_rewards_and_one_out_of_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="the target -100 is below the rewards of all images of the untuned generator"):
        tiny_runs.run(tiny_runs.config(tmp_path / "low", target=-100.0))
    AcceleratorState._reset_state(reset_partial_state=True)
    tiny_runs.run(tiny_runs.config(tmp_path / "high", target=100.0, max_steps=1))
    assert "warning: the target 100 is" in capsys.readouterr().err


def test_prompts_that_the_text_encoder_does_not_read_to_the_end(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="has 42 tokens, and the text encoders of StableDiffusionPipeline read 24"):
        tiny_runs.run(tiny_runs.config(tmp_path / "run"), prompts=["a cat", "a dog", "a" * 40])


def test_pipelines_without_what_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no generator: use --model"):
        tune(tiny_runs.config(tmp_path / "none"), prompts=tiny_runs.PROMPTS, scorers=tiny_runs.scorers())
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(InputError, match="StableDiffusionPipeline takes no gidance"):
        tiny_runs.run(tiny_runs.config(tmp_path / "misspelt"), gidance=3)


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    for wrong, message in (
        ({"height": 20}, "StableDiffusionPipeline refused the call: .* divisible by 8"),
        ({"lora_targets": ("nothing",)}, "has a name that ends with nothing"),
        ({"pretraining_images": str(tmp_path / "none.jsonl")}, "none.jsonl"),
    ):
        with pytest.raises((InputError, FileNotFoundError), match=message):
            tiny_runs.run(tiny_runs.config(tmp_path / "runs/new", **{"max_steps": 1} | wrong))
        assert not list(tmp_path.iterdir())
        AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="takes no gidance"):
        tiny_runs.run(tiny_runs.config(tmp_path / "mine"), gidance=3)
    assert not list((tmp_path / "mine").iterdir())


def test_a_folder_that_is_replaced_vanishes_or_is_whole(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), _replaced_folder(tmp_path / "lora") as new:
        shutil.copy(tmp_path / "nothing", new)
    assert not list(tmp_path.iterdir())
    for text in ("first", "second"):
        with _replaced_folder(tmp_path / "lora") as new:
            (new / "whole").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
    assert (tmp_path / "lora/whole").read_text() == "second"


def test_a_run_killed_between_the_renames_of_its_lora_continues(tmp_path: Path) -> None:
    config = tiny_runs.config(tmp_path / "run", max_steps=2, evaluate_every=1, **UNGUARDED)
    result = tiny_runs.run(config)
    weights = Path(result.model, lora.WEIGHTS).read_bytes()
    Path(result.model).rename(tmp_path / "run/lora.previous")
    (tmp_path / "run/result.json").unlink()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert tiny_runs.run(config) == result
    assert Path(result.model, lora.WEIGHTS).read_bytes() == weights


def test_a_run_on_other_prompts_or_weights_is_refused(tmp_path: Path) -> None:
    config = tiny_runs.config(tmp_path / "run", max_steps=3)
    tiny_runs.run(config)
    for kept in ("result.json", "state.pt"):
        (tmp_path / "run" / kept).unlink()
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(InputError, match="holds a run on other prompts"):
        tiny_runs.run(config, prompts=[*tiny_runs.PROMPTS, "a new one"])
    AcceleratorState._reset_state(reset_partial_state=True)
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    pipe.unet.conv_in.weight.data += 1
    with pytest.raises(InputError, match=r"is not what the run in .* started from: its weights have changed"):
        tiny_runs.run(config, pipe=pipe)
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "run/untuned.pt").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"untuned.pt is damaged .* start the run again in a new folder"):
        tiny_runs.run(config)


def test_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(TrainingError, match=r"saving to .* failed: the disk may be full.*no state was saved before. Free space"):
            tiny_runs.run(tiny_runs.config(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": ()}, "no reward: name at least one scorer"),
        ({"reward": ("a",), "watch": ("a",)}, "a cannot be both the reward and watched"),
        ({"grad_steps": 30}, "grad_steps must be from 1 to the 25 denoising steps, not 30"),
        ({"reward": ("a", "a")}, "reward names a scorer twice: a, a; name each once"),
        ({"betas": (0.9, 1.0)}, "betas must be from 0 to less than 1, not 0.9 and 1.0"),
        ({"num_held_out": 1}, "num_held_out must be at least 2"),
        ({"ema": 1.0}, "ema must be from 0 to less than 1"),
        ({"method": "best-of", "candidates": 1}, "candidates must be at least 2"),
        ({"target": math.nan}, "target must be a finite number, not nan"),
        ({"objective": "negative", "target": 1.0}, "target is 1, and the objective negative has none"),
        ({"lora_rank": 0, "kohya": True}, "kohya is true, and lora_rank 0 trains all weights without a LoRA"),
        ({"lora_rank": 0, "lora_targets": ("to_q",)}, "lora_targets is .*: leave lora_targets out, or set lora_rank"),
        ({"reward_weight": 0.0}, "reward_weight and pretraining_weight are 0, so nothing would be trained: set one of them above 0"),
        ({"method": "refl", "reward_weight": 0.0, "pretraining_weight": 0.0}, "so nothing would be trained"),
        ({"method": "best-of", "reward_weight": 0.0}, "so nothing would be trained"),
        ({"pretraining_images": "a.csv", "pretraining_weight": 0.0}, 'pretraining_images is "a.csv", and pretraining_weight is 0'),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tuning(**settings)


WITHOUT_EFFECT: list[tuple[dict[str, Any], str, str]] = [
    ({"method": "refl"}, "grad_steps", "use the method sparse or draft"),
    ({"method": "best-of"}, "grad_steps", "use the method sparse or draft"),
    ({"method": "sparse"}, "candidates", "use the method best-of"),
    ({"method": "refl"}, "candidates", "use the method best-of"),
    ({"method": "sparse"}, "repeats", "use the method draft with grad_steps 1, or best-of"),
    ({"method": "refl"}, "repeats", "use the method draft with grad_steps 1, or best-of"),
    ({"method": "draft", "grad_steps": 2}, "repeats", "use the method draft with grad_steps 1, or best-of"),
    ({"method": "best-of"}, "objective", "use another method"),
    ({"method": "best-of"}, "target", "use another method"),
    ({"method": "best-of"}, "target_quantile", "use another method"),
    ({"method": "best-of"}, "margin_weight", "use another method"),
    ({"method": "best-of"}, "kl_weight", "use another method"),
    ({"method": "best-of"}, "smoothing", "use another method"),
    ({"method": "refl"}, "target_quantile", "use another method, or a margin_weight above 0"),
    ({"margin_weight": 0.0, "target": 1.0}, "target_quantile", "leave target out"),
    ({"objective": "negative"}, "target_quantile", "use the objective hinge"),
    ({"lora_rank": 0}, "lora_alpha", "set lora_rank"),
    ({"reward_weight": 0.0, "pretraining_weight": 1.0}, "kl_weight", "set reward_weight above 0"),
    ({"reward_weight": 0.0, "pretraining_weight": 1.0}, "margin_weight", "set reward_weight above 0"),
    ({"reward_weight": 0.0, "pretraining_weight": 1.0}, "smoothing", "set reward_weight above 0"),
    ({"reward_weight": 0.0, "pretraining_weight": 1.0}, "objective", "set reward_weight above 0"),
    ({}, "pretraining_samples", "set pretraining_weight above 0"),
    ({"method": "refl", "pretraining_weight": 0.0}, "pretraining_samples", "set pretraining_weight above 0"),
    ({"pretraining_images": "a.csv"}, "pretraining_samples", "leave it out"),
    ({}, "combine", "name several scorers as reward"),
    ({"held_out": "DrawBench"}, "held_out_share", "leave held_out out"),
    ({"auto_stop": False}, "patience", "turn auto_stop on"),
]
SET: dict[str, Any] = {"objective": "negative", "combine": "conservative"}
"""Values other than the default, where it is no number."""


@pytest.mark.parametrize(("settings", "name", "remedy"), WITHOUT_EFFECT, ids=lambda value: value if isinstance(value, str) else None)
def test_settings_without_effect_are_refused(settings: dict[str, Any], name: str, remedy: str) -> None:
    others = {"held_out_share": 0.2, "target_quantile": 0.7}
    Tuning(**settings)  # which make sense without it
    with pytest.raises(InputError, match=rf"^{name} is .*leave {name} out, or .*{re.escape(remedy)}$"):
        Tuning(**settings | {name: SET.get(name, others.get(name, 5))})


@pytest.mark.parametrize("method", ["sparse", "draft", "refl", "best-of"])
@pytest.mark.parametrize("changes", [{}, {"pretraining_weight": 1.0}, {"pretraining_weight": 1.0, "reward_weight": 0.0}])
def test_what_a_method_resolves_to_is_accepted(method: Literal["sparse", "draft", "refl", "best-of"], changes: dict[str, float]) -> None:
    resolved = Tuning(method=method, **changes).resolved()  # type: ignore[arg-type]
    assert resolved.resolved() == resolved
    if resolved.reward_weight == 0:
        assert (resolved.margin_weight, resolved.kl_weight, resolved.target) == (0, 0, None)


def test_the_objective_without_a_target_has_none_by_default() -> None:
    assert Tuning(method="refl", objective="negative").resolved().target is None
    assert Tuning(method="refl").resolved().target == 2.0
