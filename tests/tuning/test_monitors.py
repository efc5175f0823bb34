from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from image_reward.tuning import monitors
from image_reward.tuning.monitors import Evaluation, Thresholds, judge

NUM = 32
THRESHOLDS = Thresholds()


def values(center: float, spread: float, seed: int) -> tuple[float, ...]:
    return tuple(np.random.default_rng(seed).normal(center, spread, NUM).tolist())


def evaluation(step: int, reward: float, margin: float, mirrored: float, blurred: float, **watched: float) -> Evaluation:
    """Means as measured, with the noise of 32 images. ``mirrored`` and ``blurred`` are rewards."""
    return Evaluation(
        step=step,
        rewards=values(reward, 0.5, step),
        margins=values(margin, 0.5, step + 1),
        mirrored=values(mirrored - reward, 0.3, step + 2),
        blurred=values(blurred - reward, 0.3, step + 3),
        watched={name: values(value, 0.5, step + 4) for name, value in watched.items()},
    )


# Rewards of the shapes world: those of an untuned generator, of unguarded ReFL after 90 steps, and of real images.
UNTUNED: dict[str, Any] = {"reward": -1.68, "margin": 0.1, "mirrored": -1.71, "blurred": -1.69}
HACKED: dict[str, Any] = {"reward": 2.28, "margin": 0.0, "mirrored": -0.10, "blurred": 0.17}
REAL: dict[str, Any] = {"reward": 2.01, "margin": 3.0, "mirrored": 2.01, "blurred": 1.54}


def towards(end: dict[str, Any], num: int = 9, **watched: float) -> list[Evaluation]:
    """Evaluations on the straight way from the untuned generator to ``end``; watched scorers from 0 to their value."""
    history = []
    for place in range(num + 1):
        share = place / num
        means = {name: (1 - share) * UNTUNED[name] + share * end[name] for name in UNTUNED}
        history.append(evaluation(10 * place, **means, **{name: share * value for name, value in watched.items()}))
    return history


def stopped_at(history: list[Evaluation], **options: Any) -> int | None:
    """The step at which a run with this history would have stopped."""
    verdicts = (judge(history[: place + 1], THRESHOLDS, **options) for place in range(len(history)))
    return next((each.step for each, verdict in zip(history, verdicts, strict=False) if verdict.stop), None)


def test_a_hacked_run_is_stopped_early_and_the_last_good_weights_are_those_before() -> None:
    history = towards(HACKED)
    step = stopped_at(history)
    assert step is not None
    assert step <= 50
    verdict = judge(history[: step // 10 + 1], THRESHOLDS)
    assert verdict.last_good == step - 20
    assert "the prompt margin has" in verdict.sentence
    assert "is being exploited. The run was stopped" in verdict.sentence


def test_a_collapse_to_one_image_is_stopped() -> None:
    """As unguarded ReFL did on an early shapes generator: plain images, which keep their reward when they are mirrored and blurred."""
    history = [
        replace(
            evaluation(10 * place, -1.19 + rise, 0.04, -1.19 + rise, -1.19 + rise),
            rewards=tuple(value + rise for value in values(-1.19, 0.5, 0)),
            distances=(distance,) * 16,
        )
        for place, (rise, distance) in enumerate([(0.0, 0.22), (0.12, 0.22), (0.35, 0.14), (0.28, 0.09), (0.33, 0.05), (0.33, 0.05)])
    ]
    assert stopped_at(history) == 40
    verdict = judge(history[:5], THRESHOLDS)
    assert "the distance between images of one prompt has fallen to 23 %" in verdict.sentence
    assert verdict.last_good == 20


def test_a_healthy_run_goes_on() -> None:
    history = towards(REAL)
    assert stopped_at(history) is None
    verdict = judge(history, THRESHOLDS)
    assert (verdict.last_good, verdict.signs) == (90, ())
    assert "without signs of over-optimisation" in verdict.sentence


def test_a_run_that_changes_nothing_goes_on_and_is_said_to() -> None:
    history = [replace(each, step=step) for step, each in enumerate([evaluation(0, **UNTUNED)] * 5)]
    assert stopped_at(history) is None
    assert "has not changed beyond chance" in judge(history, THRESHOLDS).sentence


def test_a_reward_that_has_fallen_far_twice_ends_the_run_and_is_not_kept() -> None:
    history = [evaluation(step, **(UNTUNED | {"reward": UNTUNED["reward"] - step / 10})) for step in (0, 10, 20)]
    assert stopped_at(history) == 20
    verdict = judge(history[:2], THRESHOLDS)
    assert (verdict.stop, verdict.last_good, len(verdict.signs)) == (False, 0, 1)
    assert verdict.sentence.startswith("The reward fell from")
    assert "the untuned generator is the last good one" in verdict.sentence
    slightly = evaluation(10, **(UNTUNED | {"reward": UNTUNED["reward"] - 0.05}))
    assert judge([history[0], slightly], THRESHOLDS).signs == ()


def test_images_that_move_far_for_no_clear_rise_of_the_reward_are_noticed() -> None:
    """As in unguarded ReFL on the shapes generator at lr 3e-3, which added objects that the scorer minds little."""

    def history(last: float) -> list[Evaluation]:
        rewards = values(0.4, 1.2, 0)
        noise = (0.57, -0.57) * (NUM // 2)
        return [
            replace(
                evaluation(step, **UNTUNED),
                rewards=tuple(reward + rise + each for reward, each in zip(rewards, noise, strict=True)) if step else rewards,
                distances=(0.186,) * 16,
                drifts=(drift,) * NUM,
            )
            for step, rise, drift in ((0, 0.0, 0.0), (24, 0.0, 0.039), (36, 0.1, 0.059), (48, 0.16, 0.091), (60, last, 0.091))
        ]

    assert stopped_at(history(0.17)) == 60
    verdict = judge(history(0.17), THRESHOLDS)
    assert verdict.last_good == 36
    assert "but the images have moved by 49 % of the distance between two images of a prompt: they change without" in verdict.sentence
    assert judge(history(0.17)[:4], THRESHOLDS).sentence.startswith("The reward has not clearly risen, from")
    assert stopped_at(history(1.0)) is None  # for a clear rise they may
    assert judge([replace(each, distances=()) for each in history(0.17)], THRESHOLDS).signs == ()


def test_watched_scorers_decide_where_there_are_some() -> None:
    assert stopped_at(towards(REAL, pick=-2.0)) is not None  # they fall, whatever the other signs say
    assert stopped_at(towards(HACKED, pick=2.0)) is None
    assert stopped_at(towards(REAL, pick=-2.0, aesthetic=2.0, clip=2.0)) is None  # most of them rise
    assert "pick has fallen by" in judge(towards(REAL, pick=-2.0), THRESHOLDS).sentence


def test_a_scorer_that_shares_the_tower_does_not_decide() -> None:
    history = towards(HACKED, same_tower=2.0)
    assert stopped_at(history, trusted=[]) is not None
    assert stopped_at(history, trusted=["same_tower"]) is None


def test_one_bad_evaluation_is_not_enough() -> None:
    history = [evaluation(0, **UNTUNED), evaluation(10, **HACKED), evaluation(20, **UNTUNED), evaluation(30, **HACKED)]
    assert stopped_at(history) is None
    verdict = judge(history, THRESHOLDS)
    assert verdict.last_good == 20
    assert "stops if the next evaluation agrees" in verdict.sentence
    assert "the next 2 evaluations agree" in judge(history, replace(THRESHOLDS, patience=3)).sentence
    assert judge(history, THRESHOLDS, is_last=True).sentence.endswith("exploited. Step 20 is the last good one.")


def test_a_run_that_is_not_to_be_stopped_is_not_said_to_be() -> None:
    verdict = judge(towards(HACKED), replace(THRESHOLDS, patience=None))
    assert not verdict.stop
    assert verdict.signs
    assert "stop" not in verdict.sentence


def test_without_margin_and_mirrored_images_what_is_left_decides() -> None:
    history = [replace(each, margins=(), mirrored=()) for each in towards(HACKED)]
    assert stopped_at(history) is not None
    assert stopped_at([replace(each, blurred=()) for each in history]) is None  # nothing is left


def test_images_are_mirrored_and_blurred() -> None:
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(monitors.mirrored(pixels)[..., 0], pixels[..., -1])
    blurred = monitors.blurred(pixels)
    assert blurred.shape == pixels.shape
    assert blurred[0, 0, 5, 7].item() == pytest.approx(pixels[0, 0, 4:7, 6:9].mean().item(), abs=1e-6)
    flat = torch.full((1, 3, 512, 512), 0.25)
    torch.testing.assert_close(monitors.blurred(flat), flat)


def test_distances_and_drifts() -> None:
    pixels = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 0.5, 1.0)])
    assert monitors.distances(pixels, ["a", "b", "a"]) == (1.0,)
    assert monitors.drifts(pixels, torch.zeros_like(pixels)) == (0.0, 0.5, 1.0)
