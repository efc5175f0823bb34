from __future__ import annotations

import math
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import seeded
from image_reward import ImageReadError, LongPromptWarning, PromptError, Ranking, RewardError
from image_reward.config import TieConfig
from image_reward.errors import CheckpointError
from image_reward.scorers import BlipScorer, Ensemble, ImageRewardScorer, Reference, load
from image_reward.scorers import compat_v15 as v15
from upstream import Original

pytestmark = pytest.mark.filterwarnings("ignore::image_reward.LongPromptWarning")
SHORT = [prompt for prompt in seeded.PROMPTS if prompt != seeded.LONG_PROMPT]


def test_what_goes_in_decides_what_comes_out(scorer: ImageRewardScorer, image_folder: Path) -> None:
    a, b = str(image_folder / "a.png"), image_folder / "b.png"
    one = scorer.score("cat", a)
    assert isinstance(one, float)
    assert scorer.score("cat", [a]) == [pytest.approx(one, abs=1e-5)]
    assert scorer.score("cat", (a, b)) == [pytest.approx(one, abs=1e-5), pytest.approx(scorer.score("cat", b), abs=1e-5)]
    assert scorer.score(["cat", "dog"], [a, b])[1] == pytest.approx(scorer.score("dog", b), abs=1e-5)
    assert scorer.score("cat", []) == []
    assert scorer.score([], []) == []
    assert scorer.matrix([], [a]).shape == (0, 1)
    assert scorer.matrix(["cat"], []).shape == (1, 0)
    matrix = scorer.matrix(["cat", "dog", "sea"], [a, b])
    assert matrix.shape == (3, 2)
    assert matrix.dtype == np.float32
    assert scorer.rewards([], torch.empty(0, 3, 8, 8)).shape == (0,)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20), batch_size=st.integers(1, 9))
def test_any_batch_gives_what_one_at_a_time_gives(
    scorer: ImageRewardScorer, pairs: list[tuple[int, int]], batch_size: int, original: Original
) -> None:
    scorer.batch_size = batch_size
    rewards = scorer.score([original.prompts[p] for p, _ in pairs], [original.images[i] for _, i in pairs])
    np.testing.assert_allclose(rewards, [original.rewards[p, i] for p, i in pairs], rtol=0, atol=1e-5)


SEEDED_IMAGES = seeded.images()


def test_each_image_passes_through_the_network_once(scorer: ImageRewardScorer) -> None:
    seen: list[int] = []
    scorer.network.blip.visual_encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    a, b, c = SEEDED_IMAGES[:3]
    scorer.batch_size = 2
    scorer.score(["x", "y", "z", "x", "y", "z"], [a, b, a, c, a, b])
    assert sum(seen) == 3
    seen.clear()
    scorer.matrix(SHORT, [a, b, a])
    assert sum(seen) == 2


def test_a_matrix_of_many_prompts_is_read_in_parts(scorer: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scorer.matrix(SHORT, SEEDED_IMAGES)
    monkeypatch.setattr("image_reward.scorers.two_tower._MAX_TOKENS_AT_ONCE", 300)
    np.testing.assert_allclose(scorer.matrix(SHORT, SEEDED_IMAGES), whole, rtol=0, atol=1e-5)


def test_rewards_have_gradients_and_agree_with_files(scorer: ImageRewardScorer) -> None:
    image = SEEDED_IMAGES[5]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(255).requires_grad_()
    rewards = scorer.rewards("cat", pixels)
    rewards.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.shape == pixels.shape
    assert pixels.grad.abs().sum() > 0
    assert rewards.item() == pytest.approx(scorer.score("cat", image), abs=0.02)  # within 2/255 a pixel
    size = seeded.TINY.image.size
    exact = torch.rand(2, 3, size, size).mul(255).round().div(255)  # needs no resizing: both ways see the same pixels
    expected = scorer.score(["cat", "dog"], [exact[0], exact[1]])
    assert scorer.rewards(["cat", "dog"], exact).tolist() == pytest.approx(expected, abs=1e-5)


def test_rewards_refuse_what_they_cannot_read(scorer: ImageRewardScorer) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 images"):
        scorer.rewards(["a", "b"], torch.rand(1, 3, 8, 8))
    with pytest.raises(ImageReadError, match=r"\[B, 3, H, W\]"):
        scorer.rewards("a", torch.rand(1, 8, 8, 3))
    with pytest.raises(ImageReadError, match="NaN"):
        scorer.rewards("a", torch.full((1, 3, 8, 8), math.nan))
    with pytest.raises(ImageReadError, match="must be in"):
        scorer.rewards("a", torch.full((1, 3, 8, 8), 255.0))


def test_preparation_is_small_and_travels(scorer: ImageRewardScorer, image_folder: Path) -> None:
    parcel = pickle.dumps(scorer.prepare)
    assert len(parcel) < 2000
    batch = pickle.loads(parcel)(["cat", "dog", "sea"], [image_folder / "a.png", image_folder / "b.png", str(image_folder / "a.png")])
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.pixels.dtype == torch.uint8
    assert batch.image_index.tolist() == [0, 1, 0]
    with torch.inference_mode():
        rewards = scorer(batch)
    assert rewards.tolist() == pytest.approx(
        [scorer.score(p, image_folder / f"{i}.png") for p, i in [("cat", "a"), ("dog", "b"), ("sea", "a")]], abs=1e-5
    )
    with pytest.raises(ValueError, match="1 prompts and 2 images"):
        scorer.prepare(["cat"], SEEDED_IMAGES[:2])


def test_forward_is_differentiable(scorer: ImageRewardScorer) -> None:
    batch = scorer.prepare(["cat", "dog", "cat"], [SEEDED_IMAGES[0], SEEDED_IMAGES[0], SEEDED_IMAGES[1]])
    scorer(batch).sum().backward()
    assert scorer.network.blip.visual_encoder.cls_token.grad is not None
    empty = scorer(scorer.prepare([], []))
    assert empty.shape == (0,)


def test_a_missing_image_never_gets_anothers_score(scorer: ImageRewardScorer, image_folder: Path) -> None:
    images = [image_folder / "a.png", image_folder / "missing.png", image_folder / "b.png"]
    for ask in (lambda: scorer.score("cat", images), lambda: scorer.rank("cat", images), lambda: scorer.matrix(["cat"], images)):
        with pytest.raises(FileNotFoundError, match=r"no such image: .*missing\.png"):
            ask()


def test_wrong_calls_say_what_is_right(scorer: ImageRewardScorer) -> None:
    a = SEEDED_IMAGES[0]
    with pytest.raises(ValueError, match="2 prompts and 1 images: aligned lists must have the same length; use matrix"):
        scorer.score(["a", "b"], [a])
    with pytest.raises(ValueError, match="a list of prompts needs a list of images"):
        scorer.score(["a", "b"], a)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="matrix\\(\\) takes a list of prompts"):
        scorer.matrix("cat", [a])  # type: ignore[arg-type]
    for prompts, images in [({"cat", "dog"}, [a]), (["cat"], a), (["cat"], iter([a])), (["cat"], torch.rand(2, 3, 8, 8))]:
        with pytest.raises(ValueError, match="a list of images"):
            scorer.matrix(prompts, images)  # type: ignore[arg-type]
    with pytest.raises(ImageReadError, match=r"rewards\(\) takes a float tensor \[B, 3, H, W\], not list"):
        scorer.rewards("cat", [torch.rand(3, 8, 8)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one image"):
        scorer.rank("cat", [])
    for wrong in (None, 3, b"cat"):
        with pytest.raises(PromptError, match="a prompt is a string, not"):
            scorer.score(wrong, a)  # type: ignore[call-overload]


def test_a_reward_that_is_not_a_number_is_an_error(scorer: ImageRewardScorer) -> None:
    with torch.no_grad():
        scorer.network.mlp.layers[0].bias[0] = math.nan
    for ask in (lambda: scorer.score("cat", SEEDED_IMAGES[0]), lambda: scorer.matrix(["cat"], SEEDED_IMAGES[:1])):
        with pytest.raises(RewardError, match="not a finite number"):
            ask()


def test_training_mode_makes_no_scores(scorer: ImageRewardScorer) -> None:
    right = scorer.score("cat", SEEDED_IMAGES[0])
    scorer.train()
    asked = (
        lambda: scorer.score("cat", SEEDED_IMAGES[0]),
        lambda: scorer.rank("cat", SEEDED_IMAGES[:1]),
        lambda: scorer.compare("cat", *SEEDED_IMAGES[:2]),
        lambda: scorer.matrix(["cat"], SEEDED_IMAGES[:1]),
    )
    for ask in asked:
        with pytest.raises(RewardError, match=r"dropout makes rewards random; call its eval\(\) first"):
            ask()
    assert scorer(scorer.prepare(["cat"], SEEDED_IMAGES[:1])).shape == (1,)  # what training calls
    assert scorer.eval().score("cat", SEEDED_IMAGES[0]) == right


def test_autocast_around_a_call_leaves_the_head_in_float32(scorer: ImageRewardScorer) -> None:
    right = scorer.score("cat", SEEDED_IMAGES[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer.score("cat", SEEDED_IMAGES[:2])
        assert scorer.rewards("cat", torch.rand(1, 3, 80, 80)).dtype == torch.float32
        np.testing.assert_allclose(scorer.matrix(["cat"], SEEDED_IMAGES[:2])[0], found, rtol=0, atol=0.05)
    assert found == pytest.approx(right, abs=0.05)


def test_rewards_that_are_not_numbers_have_no_ranking() -> None:
    assert Ranking.from_rewards([math.inf, 1.0, -math.inf]).ranking == [1, 2, 3]
    with pytest.raises(ValueError, match="not numbers have no order"):
        Ranking.from_rewards([1.0, math.nan, 2.0])


def test_a_long_prompt_is_cut_with_a_warning_or_refused(scorer: ImageRewardScorer, original: Original) -> None:
    with pytest.warns(LongPromptWarning, match="the last 26 of 61 tokens"):
        reward = scorer.score(seeded.LONG_PROMPT, SEEDED_IMAGES[0])
    assert reward == pytest.approx(original.rewards[4, 4], abs=1e-5)
    scorer.prepare.tokenizer = replace(scorer.prepare.tokenizer, long_prompts="error")
    with pytest.raises(PromptError, match="shorten it"):
        scorer.score(seeded.LONG_PROMPT, SEEDED_IMAGES[0])


def test_compare_is_bradley_terry_in_raw_units(scorer: ImageRewardScorer) -> None:
    a, b = SEEDED_IMAGES[:2]
    preference = scorer.compare("cat", a, b)
    rewards = scorer.score("cat", [a, b])
    raw = (rewards[0] - rewards[1]) * 1.0333394966054072
    assert preference.a_better == pytest.approx(1 / (1 + math.exp(-raw)), abs=1e-5)
    assert preference.tie == 0
    assert preference.a_better + preference.b_better == pytest.approx(1)
    assert preference.rewards == pytest.approx(tuple(rewards), abs=1e-5)


@pytest.mark.parametrize(
    ("tie", "win"),
    [
        (TieConfig("davidson", 0.7), lambda p, q: p / (p + q + 0.7 * math.sqrt(p * q))),
        (TieConfig("rao-kupper", 1.6), lambda p, q: p / (p + 1.6 * q)),
    ],
)
def test_compare_with_a_fitted_tie_parameter(scorer: ImageRewardScorer, tie: TieConfig, win: Any) -> None:
    scorer.tie = tie
    a, b = SEEDED_IMAGES[:2]
    preference = scorer.compare("cat", a, b)
    p, q = (math.exp(scorer.scale * reward) for reward in preference.rewards)
    assert preference.a_better == pytest.approx(win(p, q), abs=1e-9)
    assert preference.b_better == pytest.approx(win(q, p), abs=1e-9)
    assert preference.a_better + preference.tie + preference.b_better == pytest.approx(1)
    assert preference.tie > 0.1


def test_compare_survives_rewards_that_are_far_apart(scorer: ImageRewardScorer) -> None:
    scorer.scale = 1e6
    for tie in (None, TieConfig("davidson", 0.5), TieConfig("rao-kupper", 1.5)):
        scorer.tie = tie
        preference = scorer.compare("cat", SEEDED_IMAGES[0], SEEDED_IMAGES[1])
        assert sorted([preference.a_better, preference.b_better]) == pytest.approx([0, 1])


def test_impossible_tie_parameters_are_refused() -> None:
    with pytest.raises(CheckpointError, match="at least 1"):
        TieConfig("rao-kupper", 0.5)
    with pytest.raises(CheckpointError, match="unknown tie model 'thurstone'"):
        TieConfig("thurstone", 1.0)


# --- what belongs to the process ---


@pytest.mark.filterwarnings("default::image_reward.LongPromptWarning")
def test_scoring_from_threads_leaves_the_filters_of_the_process_alone(scorer: ImageRewardScorer) -> None:
    image = SEEDED_IMAGES[5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LongPromptWarning)
        before = list(warnings.filters)
        barrier = threading.Barrier(4)

        def work(number: int) -> list[float]:
            barrier.wait(60)
            return scorer.score(["cat " * 40, f"x{number}", "dog " * (50 + number)], [image] * 3)

        with ThreadPoolExecutor(4) as pool:
            rewards = list(pool.map(work, range(12)))
        assert warnings.filters == before
    assert all(row[0] == pytest.approx(rewards[0][0], abs=1e-5) for row in rewards)
    for words in ("dog", "cow"):
        with pytest.warns(LongPromptWarning) as caught:
            scorer.score(f"{words} " * 99, [image, SEEDED_IMAGES[6]])
        assert len(caught) == 1


def test_each_long_prompt_is_reported_once_a_call_from_every_thread(scorer: ImageRewardScorer) -> None:
    scorer.batch_size = 1
    ask = partial(scorer.score, ["dog " * 99] * 3, SEEDED_IMAGES[:3])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(ask) for _ in range(4)]:
                future.result()
    assert [w.category for w in caught] == [LongPromptWarning] * 4


DEFAULTS = [("float16", "cpu"), ("bfloat16", "cpu"), ("float64", "cpu"), ("float32", "meta")]


@pytest.fixture(params=DEFAULTS, ids=lambda default: "-".join(default))
def defaults(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sets the defaults of PyTorch for the rest of a test."""
    dtype, device = request.param
    before = torch.get_default_dtype()

    with ExitStack() as stack:

        def change() -> None:
            torch.set_default_dtype(getattr(torch, dtype))
            stack.enter_context(torch.device(device))  # as ``torch.set_default_device``, whose undoing breaks PyTorch 2.6

        yield change
    torch.set_default_dtype(before)


def answers(scorer: Any) -> list[float]:
    """What a scorer answers to every kind of question, as one list of numbers."""
    prompts, images = SHORT[:3], SEEDED_IMAGES[:3]
    pixels = torch.linspace(0, 1, 2 * 3 * 64 * 64, dtype=torch.float32, device="cpu").view(2, 3, 64, 64).requires_grad_()
    rewards = scorer.rewards(prompts[:2], pixels)
    rewards.sum().backward()
    preference = scorer.compare(prompts[0], *images[:2])
    return [
        *scorer.score(prompts, images),
        *scorer.matrix(prompts, images).flatten().tolist(),
        *scorer.rank(prompts[0], images).rewards,
        preference.a_better,
        *rewards.tolist(),
        pixels.grad.norm().item(),
    ]


@pytest.mark.parametrize("kind", ["ImageReward", "1.5", "BLIP", "ensemble"])
def test_the_defaults_of_pytorch_do_not_matter(kind: str, defaults: Callable[[], None], tmp_path: Path) -> None:
    weights = seeded.weights(seeded.TINY, 7)

    def made() -> Any:
        if kind == "BLIP":
            return BlipScorer.from_tensors(weights, "seeded weights", seeded.TINY.network)
        if kind == "ensemble":
            members = {"a": load(tmp_path), "b": BlipScorer.from_tensors(weights, "seeded weights", seeded.TINY.network)}
            return Ensemble(members, references=dict.fromkeys("ab", Reference(0.1, 0.3, 9, "nine images")), reward="conservative")
        return load(tmp_path) if kind == "ImageReward" else v15.load(str(tmp_path))

    ImageRewardScorer.from_tensors(weights, seeded.TINY, "seeded weights").save_pretrained(tmp_path)
    before = made()
    expected = answers(before)
    defaults()
    assert answers(before) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert answers(made()) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_scorer_that_was_loaded_in_inference_mode_gives_gradients(scorer: ImageRewardScorer, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    with torch.inference_mode():
        loaded = load(tmp_path, dtype="bfloat16")
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    loaded.rewards("cat", pixels).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


# --- copies ---


@pytest.mark.parametrize("num", [*range(2, 12), 17])
def test_copies_of_an_image_tie_and_keep_their_order(num: int, scorer: ImageRewardScorer, image_folder: Path) -> None:
    scorer.batch_size = 3
    path = str(image_folder / "b.png")
    ranking = scorer.rank("a red square", [path] * num)
    assert len(set(ranking.rewards)) == 1
    assert ranking.ranking == list(range(1, num + 1))
    mixed = [path, SEEDED_IMAGES[0], path, SEEDED_IMAGES[2], *[path] * num]
    rewards = scorer.score(["cat", "cat", "dog", "cat", *["cat"] * num], mixed)
    assert len({rewards[0], *rewards[4:]}) == 1
    assert rewards[2] != rewards[0]
    matrix = scorer.matrix(["cat", "dog", *["cat"] * num], [path, SEEDED_IMAGES[0], path])
    assert {tuple(row) for row in matrix.tolist()} == {tuple(matrix[0]), tuple(matrix[1])}
    assert (matrix[:, 0] == matrix[:, 2]).all()


# --- what is assigned ---


def test_what_is_assigned_takes_effect_and_is_saved(scorer: ImageRewardScorer, tmp_path: Path) -> None:
    a, b = SEEDED_IMAGES[:2]
    scorer.tie = TieConfig("davidson", 0.5)
    assert scorer.compare("cat", a, b).tie > 0
    scorer.config = replace(scorer.config, reward=replace(scorer.config.reward, mean=1.0, std=2.0))
    assert scorer.tie is not None
    raw = scorer.score("cat", a) * 2 + 1
    scorer.save_pretrained(tmp_path)
    saved = load(tmp_path)
    assert (saved.tie, saved.scale) == (scorer.tie, 2.0)
    assert saved.score("cat", a) * 2 + 1 == pytest.approx(raw, abs=1e-5)
    with pytest.raises(ValueError, match="other sizes makes another scorer"):
        scorer.config = replace(scorer.config, max_tokens=8)
    with pytest.raises(AttributeError):
        scorer.device = "cpu"
    scorer.network.mlp = torch.nn.Sequential(torch.nn.Linear(48, 1), torch.nn.Softplus())
    assert min(scorer.score("cat", SEEDED_IMAGES)) >= -0.5  # (softplus - 1) / 2
