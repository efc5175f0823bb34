"""The loop, in this process, on networks of a few thousand weights."""

from __future__ import annotations

import json
import math
import re
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import squares
import torch
from accelerate.state import AcceleratorState

import image_reward
from image_reward.comparisons import normalized_prompt, split
from image_reward.config import ScorerConfig
from image_reward.errors import TrainingError
from image_reward.runs import RunFolder
from image_reward.training import reward, train
from image_reward.training.initial_scorer import initial_scorer
from image_reward.types import Comparison


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state per process, which fixes the precision."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def log_of(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(folder: Path, **changes: Any) -> list[float]:
    values: dict[str, Any] = {"max_steps": 4, "validation_share": 0.0}
    train(squares.config(folder, **values | changes), squares.comparisons(8, ties=changes.get("loss") == "davidson"))
    return [line["loss"] for line in log_of(folder)]


def test_sixteen_comparisons_are_learnt_by_heart_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparisons = squares.comparisons(16)
    config = squares.config(tmp_path / "run", epochs=12, validation_share=0.0, data=("squares",), trackers=("tensorboard",))
    result = train(config, comparisons)
    assert result.training_accuracy == 1.0
    assert (result.accuracy, result.num_comparisons, result.num_images) == (None, 16, 68)
    assert log_of(tmp_path / "run")[0]["loss"] > 0.5 > 0.2 > log_of(tmp_path / "run")[-1]["loss"]

    # The rewards of the training images have mean 0 and standard deviation 1, and the model ranks.
    scorer = image_reward.load(result.model, device="cpu")
    scores = torch.tensor([score for c in comparisons for score in scorer.score(c.prompt, list(c.images))])
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert scorer.rank(comparisons[0].prompt, list(comparisons[0].images)).ranking == list(comparisons[0].ranks)
    kept = ScorerConfig.from_json((tmp_path / "run/model/config.json").read_text(), "config")
    assert (kept.reward.mean, kept.reward.std, kept.reward.reference) == (result.reward_mean, result.reward_std, None)

    card = (tmp_path / "run/model/README.md").read_text()
    assert "| data | squares |" in card
    assert "| pairwise accuracy, training data | 100.00 % |" in card
    assert "lr = 0.003" in card
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert re.search(r"step 60/60  loss 0\.\d+  accuracy 1\.000  lr \S+  [\d.]+ images/s  0 s left", capsys.readouterr().err)

    # The same command again has nothing to do.
    assert train(config, comparisons) == result
    assert "holds a finished run" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["patience", "evaluate_every"])
def test_settings_of_evaluations_without_validation_data_are_refused(tmp_path: Path, setting: str) -> None:
    config = squares.config(tmp_path / "run", validation_share=0.0, **{setting: 2})
    with pytest.raises(ValueError, match=rf"{setting} is 2, and there are no validation data, .* leave {setting} out, or use some"):
        train(config, squares.comparisons(8), [])
    assert not (tmp_path / "run").exists()


def test_the_best_of_the_evaluations_is_kept_and_a_run_without_progress_stops(tmp_path: Path) -> None:
    # The rate is so low that nothing changes: no evaluation is better than the first.
    config = squares.config(tmp_path / "run", epochs=50, lr=1e-12, evaluate_every=2, patience=2)
    result = train(config, squares.comparisons(8), squares.comparisons(4, seed=1))
    assert (result.steps, result.best_step) == (4, 0)
    evaluations = log_of(tmp_path / "run", "validation")
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    assert result.accuracy == evaluations[0]["accuracy"]
    tensors = initial_scorer(config).network.state_dict()
    assert torch.equal(image_reward.load(result.model, device="cpu").network.mlp.layers[0].weight, tensors["mlp.layers.0.weight"])


def test_validation_holds_out_prompts_in_whatever_spelling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """80 comparisons of 40 prompts, each in two spellings."""
    pairs = squares.comparisons(40, sizes=(2,))
    both = [*pairs, *(replace(c, prompt=f" {c.prompt.upper()}", id=f"{c.id} again") for c in pairs)]
    config = squares.config(tmp_path / "run", max_steps=1, validation_share=0.25)
    held_out = split(both, (0.75, 0.25), config.seed)[1]
    result = train(config, both)
    assert result.num_validation == len(held_out) == 20
    assert len({normalized_prompt(c.prompt) for c in held_out}) == 10
    assert result.num_shared_prompts == 0
    assert "also in the training data" not in capsys.readouterr().err


def test_one_ranking_in_four_can_be_held_out_and_one_alone_cannot(tmp_path: Path) -> None:
    result = train(squares.config(tmp_path / "four", max_steps=1), squares.comparisons(4))  # of which 5 % are none
    assert (result.num_comparisons, result.num_validation) == (3, 1)
    with pytest.raises(ValueError, match=r"no prompts can be held out for validation: 1 different prompts .* set validation_share = 0"):
        train(squares.config(tmp_path / "one", max_steps=1), squares.comparisons(1))


def test_validation_data_that_repeat_prompts_of_the_training_data_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repeated = [replace(c, prompt=c.prompt.title()) for c in squares.comparisons(2, seed=1)]
    result = train(squares.config(tmp_path / "run", max_steps=1), squares.comparisons(8), [*repeated, replace(repeated[0], prompt="new")])
    assert (result.num_validation, result.num_shared_prompts) == (3, 2)
    assert "warning: 2 prompts of the validation data are also in the training data, the first is 'Prompt 0'" in capsys.readouterr().err
    assert (
        "ordered pairs, too few to tell steps apart; 2 of their prompts are training prompts too"
        in (tmp_path / "run/model/README.md").read_text()
    )


# --- what gives the same ---


def test_accumulation_gives_what_one_pass_gives(tmp_path: Path) -> None:
    assert losses(tmp_path / "a", micro_images=6) == pytest.approx(losses(tmp_path / "b", micro_images=64), abs=1e-5)


def test_gradient_checkpointing_gives_the_same(tmp_path: Path) -> None:
    assert losses(tmp_path / "a", gradient_checkpointing=True) == pytest.approx(losses(tmp_path / "b"), abs=1e-5)


def test_cached_features_give_the_same_loss(tmp_path: Path) -> None:
    initial_scorer(squares.config(tmp_path)).save_pretrained(tmp_path / "start")
    options = {"start": str(tmp_path / "start"), "freeze": 0.7, "max_steps": 6}
    cached, plain = losses(tmp_path / "a", cache_features=True, **options), losses(tmp_path / "b", **options)
    assert cached == pytest.approx(plain, abs=1e-5)
    assert cached[-1] != cached[0]
    (file,) = (tmp_path / "a").glob("features-*.npy")
    assert file.stat().st_size == 34 * 5 * 16 * 4 + 128  # images x tokens x width, float32, and the header


def test_bfloat16_is_near_float32_and_its_weights_are_float32(tmp_path: Path) -> None:
    full = losses(tmp_path / "a")
    AcceleratorState._reset_state(reset_partial_state=True)
    half = losses(tmp_path / "b", precision="bf16")
    assert half == pytest.approx(full, abs=0.02)
    assert half != full
    assert image_reward.load(tmp_path / "b/model", device="cpu").network.blip.vision_proj.weight.dtype == torch.float32


# --- other ways to learn ---


@pytest.mark.parametrize("loss", ["davidson", "rao-kupper"])
def test_a_tie_parameter_is_learnt_and_used_by_compare(tmp_path: Path, loss: str) -> None:
    result = train(squares.config(tmp_path / "run", loss=loss, tie_lr=0.1, epochs=3), squares.comparisons(16, ties=True))
    scorer = image_reward.load(result.model, device="cpu")
    assert scorer.tie is not None
    assert scorer.tie.model == loss
    parameter, start = scorer.tie.parameter, {"davidson": 1.0, "rao-kupper": 2.0}[loss]
    assert abs(parameter - start) > 0.05
    tie = parameter / (2 + parameter) if loss == "davidson" else (parameter - 1) / (parameter + 1)
    image = squares.comparisons(1)[0].images[0]
    assert scorer.compare("prompt 0", image, image).tie == pytest.approx(tie, rel=1e-6)


@pytest.mark.parametrize("loss", ["soft", "plackett-luce"])
def test_other_losses_learn_too(tmp_path: Path, loss: str) -> None:
    result = train(squares.config(tmp_path / "run", loss=loss, epochs=8, validation_share=0.0), squares.comparisons(16))
    assert result.training_accuracy is not None
    assert result.training_accuracy > 0.97


def test_low_rank_updates_leave_all_but_attentions_and_head_as_they_were(tmp_path: Path) -> None:
    start = initial_scorer(squares.config(tmp_path))
    start.save_pretrained(tmp_path / "start")
    result = train(
        squares.config(tmp_path / "run", start=str(tmp_path / "start"), lora_rank=2, freeze=0.7, max_steps=3, validation_share=0.0),
        squares.comparisons(8),
    )
    after, before = image_reward.load(result.model, device="cpu").network.state_dict(), start.network.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert {name for name in changed if not name.startswith("mlp.")} == {
        name for name in before if name.endswith("weight") and before[name].ndim == 2 and ("attn." in name or "attention." in name)
    }


# --- what goes wrong ---


def test_a_run_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    config = squares.config(tmp_path / "run", max_steps=1)
    train(config, squares.comparisons(8))
    (tmp_path / "run/result.json").unlink()
    torch.save({"step": 1, "stale": 0, "best": {"step": 1}}, tmp_path / "run/state.pt")
    with pytest.raises(TrainingError, match="another version of this program, which cannot be continued exactly; use another output"):
        train(config, squares.comparisons(8))


def test_little_data_and_a_run_that_learnt_nothing_are_said_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = squares.config(tmp_path / "run", lr=1e-12, epochs=3)
    result = train(config, squares.comparisons(8))
    printed = capsys.readouterr().err
    assert result.is_start
    assert "1 of 8 comparisons, of 1 prompt, are held out for validation (validation_share 0.05, seed 0)" in printed
    assert f"validation on 1 comparison with {result.num_validation_pairs} ordered pairs" in printed
    assert f"warning: the best step is chosen on only {result.num_validation_pairs} ordered pairs of 1 comparison, which" in printed
    assert f"{result.num_validation_pairs} ordered pairs, too few" in (tmp_path / "run/model/README.md").read_text()
    assert "warning: nothing was learnt: no evaluation was better than the first" in printed


def test_another_configuration_in_the_folder_is_refused(tmp_path: Path) -> None:
    comparisons = squares.comparisons(8)
    config = squares.config(tmp_path / "run", max_steps=1)
    train(config, comparisons)
    (tmp_path / "run/result.json").unlink()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr: 0.003 there, 0.1 here; seed: 0 there, 1 here\)"):
        train(replace(config, lr=0.1, seed=1), comparisons)
    with pytest.raises(ValueError, match="holds a run on other data"):
        train(config, comparisons[1:])
    assert train(replace(config, log_every=7), comparisons).steps == 1  # what has no effect on the result may change
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.doc").touch()
    with pytest.raises(ValueError, match=r"is not empty and not the folder of a run \(config.toml is missing\)"):
        train(squares.config(tmp_path / "other"), comparisons)


def test_a_loss_that_is_not_a_number_names_the_batch_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    config = squares.config(tmp_path / "run", lr=1e30, clip=0.0, epochs=5, validation_share=0.0)
    with pytest.raises(TrainingError, match=r"the loss of step \d+ is nan and its gradient's norm nan; its comparisons are c\d+") as caught:
        train(config, squares.comparisons(8))
    bad = int(re.search(r"of step (\d+)", str(caught.value))[1])  # type: ignore[index]
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert state["run"]["step"] == bad - 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


@pytest.mark.parametrize("validated", [False, True])
def test_constant_rewards_stop_the_run_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validated: bool) -> None:
    monkeypatch.setattr(reward, "CONSTANT_STEPS", 4)
    scorer = initial_scorer(squares.config(tmp_path))
    with torch.no_grad():
        scorer.network.mlp.layers[0].weight.zero_()
    scorer.save_pretrained(tmp_path / "start")
    config = squares.config(tmp_path / "run", start=str(tmp_path / "start"), lr=1e-9, epochs=9, validation_share=0.0)
    config = replace(config, evaluate_every=2 if validated else None)
    with pytest.raises(TrainingError, match=r"have become constant: at step (\d).*0\.693.*warm-up.*new_head") as caught:
        train(config, squares.comparisons(8), squares.comparisons(4, seed=1) if validated else [])
    assert f"at step {2 if validated else 4}" in str(caught.value)
    assert all(line["loss"] == pytest.approx(math.log(2), abs=1e-5) for line in log_of(tmp_path / "run"))


def test_unreadable_images_are_counted(tmp_path: Path) -> None:
    comparisons = squares.comparisons(8)
    broken = replace(comparisons[0], images=(b"not an image", *comparisons[0].images[1:]))
    config = squares.config(tmp_path / "run", epochs=3, skip_unreadable=True, validation_share=0.0)
    assert train(config, [broken, *comparisons[1:]]).num_unreadable == 3
    assert train(replace(config, output=str(tmp_path / "two"), epochs=1), [lonely(broken), *comparisons[1:]]).num_unreadable == 3


def lonely(comparison: Comparison) -> Comparison:
    return replace(comparison, images=(comparison.images[1], b"", b"", b"")[: len(comparison.images)])


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = squares.config(tmp_path / "run", max_steps=6, save_every=2, epochs=9, validation_share=0.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = RunFolder.save_state

    def save_on_a_full_disk(self: RunFolder, state: dict[str, Any]) -> None:
        if state["run"]["step"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # the kernel refuses to write more
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", save_on_a_full_disk)
        try:
            with pytest.raises(TrainingError, match=r"the last saved state is whole\. Free space and run the same command again"):
                train(config, squares.comparisons(8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (tmp_path / "run" / ".unfinished").exists()
    assert train(config, squares.comparisons(8)).steps == 6
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "fp16 does not work on a CPU; use bf16 or fp32"),
        ({"shard": True}, "shard needs several processes: start the command with torchrun"),
        ({"trackers": ("wandb",)}, "the tracker wandb is not installed"),
    ],
)
def test_what_cannot_work_here_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(reward, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=message):
        train(squares.config(tmp_path / "run", **changes), squares.comparisons(4))
    assert not (tmp_path / "run").exists()
