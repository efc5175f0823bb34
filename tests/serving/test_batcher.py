from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clients import IMAGES, Gate, png

import judges
import vision_language
from conftest import tiny
from image_reward.scorers import MODELS, Ensemble, ImageRewardScorer, Reference, Scorer, load
from image_reward.scorers.together import prepare_together
from image_reward.serving.batcher import Answer, Batcher, Group, Source, groups_of
from image_reward.serving.errors import BusyError, RequestError

Asked = Callable[[Batcher], Awaitable[Any]]


def run(scorers: Sequence[Scorer[Any]], asked: Asked, max_queue: int = 100) -> Any:
    """What is asked of a batcher that lives as long as that takes."""

    async def main() -> Any:
        batcher = Batcher(scorers, 2, max_queue)
        batcher.warm_up()
        batcher.start()
        try:
            return await asyncio.wait_for(asked(batcher), 120)
        finally:
            assert batcher.num_rows == 0
            assert await asyncio.to_thread(batcher.close, 60)

    return asyncio.run(main())


def groups(images: Sequence[bytes], *prompts: str) -> list[Group]:
    return [Group(Source(image, f"images[{number}]"), prompts) for number, image in enumerate(images)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_rewards_are_those_of_the_scorer(scorer: ImageRewardScorer) -> None:
    answer = run([scorer], lambda batcher: batcher.rewards((0,), groups(IMAGES, "a cat", "a larger dog")))
    np.testing.assert_allclose(np.concatenate(answer.rewards).T, scorer.matrix(["a cat", "a larger dog"], IMAGES), rtol=0, atol=1e-5)
    assert answer.warnings == []


def test_aligned_rows_come_back_in_order(scorer: ImageRewardScorer) -> None:
    prompts, images = ["a", "b", "c", "a", "d"], [IMAGES[n] for n in (0, 1, 0, 2, 1)]

    async def asked(batcher: Batcher) -> Any:
        parts, in_order = groups_of(prompts, [Source(image, "") for image in images])
        assert [len(group.prompts) for group in parts] == [2, 2, 1]
        return in_order((await batcher.rewards((0,), parts)).rewards)

    np.testing.assert_allclose(run([scorer], asked)[0], scorer.score(prompts, images), rtol=0, atol=1e-5)


def test_copies_of_an_image_get_one_reward(scorer: ImageRewardScorer) -> None:
    copies = [IMAGES[0], IMAGES[1], IMAGES[0] + b"trailing bytes", IMAGES[0]]
    answer = run([scorer], lambda batcher: batcher.rewards((0,), groups(copies, "a cat", "a dog", "a cat")))
    assert all(own.tolist() == answer.rewards[0].tolist() for own in answer.rewards[2:])
    assert answer.rewards[0][0, 0] == answer.rewards[0][0, 2]


def test_rows_that_wait_are_batched_across_requests(scorer: ImageRewardScorer) -> None:
    async def asked(batcher: Batcher) -> list[int]:
        gate = Gate(scorer)
        tasks = [asyncio.ensure_future(batcher.rewards((0,), groups([IMAGES[0]], "a")))]
        await asyncio.to_thread(gate.wait)
        tasks += [
            asyncio.ensure_future(batcher.rewards((0,), groups([image], prompt))) for image, prompt in zip(IMAGES, "abcdef", strict=True)
        ]
        await until(lambda: sum(len(request.ready) for request in batcher._waiting) == 6)
        gate.open()
        answers = await asyncio.gather(*tasks)
        assert [answer.rewards[0][0, 0] for answer in answers[1:]] == pytest.approx(scorer.score(list("abcdef"), IMAGES), abs=1e-5)
        return gate.sizes[:2]

    assert run([scorer], asked) == [1, 6]


def test_a_duplicate_that_waits_costs_nothing(scorer: ImageRewardScorer) -> None:
    async def asked(batcher: Batcher) -> list[int]:
        gate = Gate(scorer)
        tasks = [asyncio.ensure_future(batcher.rewards((0,), groups([IMAGES[0]], "a")))]
        await asyncio.to_thread(gate.wait)
        tasks += [asyncio.ensure_future(batcher.rewards((0,), groups([IMAGES[1]], "a"))) for _ in range(4)]
        await until(lambda: sum(len(request.ready) for request in batcher._waiting) == 4)
        gate.open()
        await asyncio.gather(*tasks)
        return gate.sizes

    assert run([scorer], asked) == [1, 1]


def test_a_request_that_is_cancelled_takes_its_rows_along_and_nobody_elses(scorer: ImageRewardScorer) -> None:
    async def asked(batcher: Batcher) -> tuple[list[int], float]:
        gate = Gate(scorer)
        first = asyncio.ensure_future(batcher.rewards((0,), groups([IMAGES[0]], "a")))
        await asyncio.to_thread(gate.wait)
        leaver = asyncio.ensure_future(batcher.rewards((0,), groups(IMAGES[1:5], "a")))
        stayer = asyncio.ensure_future(batcher.rewards((0,), groups([IMAGES[5]], "a")))
        await until(lambda: sum(len(request.ready) for request in batcher._waiting) == 5)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert batcher.num_rows == 2
        gate.open()
        await first
        return gate.sizes, (await stayer).rewards[0][0, 0]

    sizes, reward = run([scorer], asked)
    assert sizes == [1, 1]
    assert reward == pytest.approx(scorer.score("a", IMAGES[5]), abs=1e-5)


def test_a_request_whose_rows_are_being_scored_can_be_cancelled(scorer: ImageRewardScorer) -> None:
    async def asked(batcher: Batcher) -> float:
        gate = Gate(scorer)
        leaver = asyncio.ensure_future(batcher.rewards((0,), groups(IMAGES[:2], "a")))
        await asyncio.to_thread(gate.wait)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        gate.open()
        return (await batcher.rewards((0,), groups([IMAGES[5]], "a"))).rewards[0][0, 0]

    assert run([scorer], asked) == pytest.approx(scorer.score("a", IMAGES[5]), abs=1e-5)


def test_few_batches_are_prepared_ahead(scorer: ImageRewardScorer) -> None:
    """Pixels take more memory than the files that they come from."""
    scorer.batch_size = 2

    async def asked(batcher: Batcher) -> int:
        gate = Gate(scorer)
        task = asyncio.ensure_future(batcher.rewards((0,), groups([png(number) for number in range(40)], "a")))
        await asyncio.to_thread(gate.wait)
        await until(lambda: len(batcher._to_prepare._waiters) == 2)  # both decoders
        most = batcher._num_ready
        gate.open()
        await task
        assert batcher._num_ready == 0
        return most

    assert run([scorer], asked) in (8, 9)  # four batches, and what the other decoder had begun


def test_requests_take_turns(scorer: ImageRewardScorer) -> None:
    """One image does not wait for all of a large request that came before it."""
    scorer.batch_size = 2

    async def asked(batcher: Batcher) -> int:
        gate = Gate(scorer)
        large = asyncio.ensure_future(batcher.rewards((0,), groups([image + bytes(n) for n, image in enumerate(IMAGES)], "a")))
        await asyncio.to_thread(gate.wait)
        small = asyncio.ensure_future(batcher.rewards((0,), groups([IMAGES[0]], "b")))
        await until(lambda: len(batcher._waiting) == 2 and all(request.ready for request in batcher._waiting))
        small.add_done_callback(lambda _: done.append(len(gate.sizes)))
        done: list[int] = []
        gate.open()
        await asyncio.gather(large, small)
        return done[0]

    assert run([scorer], asked) <= 3


def test_a_bad_image_fails_its_own_request(scorer: ImageRewardScorer) -> None:
    async def asked(batcher: Batcher) -> Any:
        bad = groups([IMAGES[0], b"not an image", b"nor this"], "a")
        return await asyncio.gather(*(batcher.rewards((0,), own) for own in (groups(IMAGES, "a"), bad)), return_exceptions=True)

    good, error = run([scorer], asked)
    assert len(good.rewards) == 6
    assert isinstance(error, RequestError)
    assert (error.status, error.field) == (422, "images[1]")
    assert "images[1]" in error.message


def test_a_row_that_fails_in_the_network_fails_no_batch_mate(scorer: ImageRewardScorer) -> None:
    score_pairs = scorer.score_pairs

    def fails_for_five_tokens(features: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rewards = score_pairs(features, ids, mask)
        return torch.where(mask.sum(dim=-1) == 5, torch.nan, rewards)

    async def asked(batcher: Batcher) -> Any:
        gate = Gate(scorer)
        scorer.score_pairs = fails_for_five_tokens
        first = asyncio.ensure_future(batcher.rewards((0,), groups([IMAGES[0]], "a")))
        await asyncio.to_thread(gate.wait)
        prompts = ("a", "a cat sat", "a cat")
        tasks = [asyncio.ensure_future(batcher.rewards((0,), groups([image], p))) for image, p in zip(IMAGES, prompts, strict=False)]
        await until(lambda: sum(len(request.ready) for request in batcher._waiting) == 3)
        gate.open()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    a, failed, b = run([scorer], asked)
    assert np.isfinite([a.rewards[0][0, 0], b.rewards[0][0, 0]]).all()
    assert isinstance(failed, RequestError)
    assert "not a finite number" in failed.message


def test_an_answer_that_cannot_be_read_fails_its_own_request(tmp_path: Path) -> None:
    judge: Any = load(judges.write(tmp_path / "judge", judges.BAD_SCORES), "cpu", "float32")
    prompts = ["a cat", "a dog", "two red birds", "a house"]

    async def asked(batcher: Batcher) -> Any:
        tasks = [asyncio.ensure_future(batcher.rewards((0,), groups([image], prompt))) for image in IMAGES[:3] for prompt in prompts]
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run([judge], asked)
    assert {type(answer) for answer in answers} == {Answer, RequestError}
    for answer, text in zip(answers, [judge.answers(prompt, [image])[0] for image in IMAGES[:3] for prompt in prompts], strict=True):
        if isinstance(answer, RequestError):
            assert (answer.status, answer.field) == (422, "model")
            assert answer.message == f"images[0]: the answer {text!r} does not state three scores from 1 to 5"
            assert answer.remedy == "try another prompt or a larger model"
        else:
            assert answer.rewards[0][0, 0] == pytest.approx(judge.reward_of(text))


def test_a_defect_fails_its_request_and_the_thread_lives_on(scorer: ImageRewardScorer) -> None:
    async def asked(batcher: Batcher) -> None:
        encode = scorer.encode_images
        scorer.encode_images = lambda _: 1 / 0
        with pytest.raises(ZeroDivisionError):
            await batcher.rewards((0,), groups(IMAGES[:2], "a"))
        scorer.encode_images = encode
        assert batcher.is_alive
        await batcher.rewards((0,), groups(IMAGES[:2], "a"))

    run([scorer], asked)


def test_the_queue_is_bounded(scorer: ImageRewardScorer) -> None:
    async def asked(batcher: Batcher) -> None:
        gate = Gate(scorer)
        first = asyncio.ensure_future(batcher.rewards((0,), groups(IMAGES[:3], "a")))
        await asyncio.to_thread(gate.wait)
        with pytest.raises(BusyError) as refused:
            await batcher.rewards((0,), groups(IMAGES[:2], "a"))
        assert refused.value.status == 429
        assert refused.value.retry_after >= 1
        second = asyncio.ensure_future(batcher.rewards((0,), groups(IMAGES[:1], "a")))
        gate.open()
        await asyncio.gather(first, second)
        await batcher.rewards((0,), groups(IMAGES[:4], "a"))

    run([scorer], asked, max_queue=4)


def test_prompts_that_are_cut_are_warned_of(scorer: ImageRewardScorer) -> None:
    answer = run([scorer], lambda batcher: batcher.rewards((0,), groups(IMAGES[:2], "word " * 60)))
    assert len(answer.warnings) == 1
    assert "are not read" in answer.warnings[0]


def test_several_models_are_asked_at_once(scorer: ImageRewardScorer) -> None:
    other = tiny(ImageRewardScorer, seed=8)
    other.name = "other"
    answer = run([scorer, other], lambda batcher: batcher.rewards((1, 0), groups(IMAGES, "a cat")))
    rewards = np.concatenate(answer.rewards, axis=1)
    np.testing.assert_allclose(rewards, [other.score("a cat", IMAGES), scorer.score("a cat", IMAGES)], rtol=0, atol=1e-5)


def test_models_that_share_a_tower_encode_an_image_once(scorer: ImageRewardScorer) -> None:
    ensemble = Ensemble({"tiny": scorer}, references={"tiny": Reference(0.5, 2.0, 9, "nine images")}).eval()

    async def asked(batcher: Batcher) -> Any:
        gate = Gate(scorer)
        gate.open()
        answer = await batcher.rewards((0, 1), groups(IMAGES, "a cat"))
        return np.concatenate(answer.rewards, axis=1), sum(gate.sizes)

    rewards, num_encoded = run([scorer, ensemble], asked)
    assert num_encoded == len(IMAGES)
    np.testing.assert_allclose(rewards, [scorer.score("a cat", IMAGES), ensemble.score("a cat", IMAGES)], rtol=0, atol=1e-5)


def test_requests_for_different_models_are_in_different_batches(scorer: ImageRewardScorer) -> None:
    other = tiny(ImageRewardScorer, seed=8)

    async def asked(batcher: Batcher) -> Any:
        return await asyncio.gather(*(batcher.rewards(models, groups([image], "a")) for models in ((0,), (1,), (0, 1)) for image in IMAGES))

    answers = [answer.rewards[0][:, 0].tolist() for answer in run([scorer, other], asked)]
    a, b = scorer.score("a", IMAGES), other.score("a", IMAGES)
    expected = [*([reward] for reward in a), *([reward] for reward in b), *map(list, zip(a, b, strict=True))]
    for answer, rewards in zip(answers, expected, strict=True):
        assert answer == pytest.approx(rewards, abs=1e-5)


def test_scorers_whose_batches_cannot_be_joined_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, vision_language.NAME, vision_language.SPEC)
    sequences = load(vision_language.NAME, "cpu")
    sequences.batch_size = 4

    async def asked(batcher: Batcher) -> Any:
        assert batcher._can_join == [False]
        bad = groups([IMAGES[0], b"not an image"], "a")
        return await asyncio.gather(
            batcher.rewards((0,), groups(IMAGES, "a", "b")),
            batcher.rewards((0,), groups(IMAGES[:1], "c")),
            batcher.rewards((0,), bad),
            return_exceptions=True,
        )

    many, one, error = run([sequences], asked)
    np.testing.assert_allclose(np.concatenate(many.rewards).T, sequences.matrix(["a", "b"], IMAGES), rtol=0, atol=1e-5)
    assert one.rewards[0][0, 0] == pytest.approx(sequences.score("c", IMAGES[0]), abs=1e-5)
    assert isinstance(error, RequestError)
    assert error.field == "images[1]"


def with_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images are prepared at once, from now on."""
    sizes: list[int] = []

    def prepare(processors: Any, prompts: Any, images: Any) -> Any:
        sizes.append(len(images))
        return prepare_together(processors, prompts, images)

    monkeypatch.setattr("image_reward.serving.batcher.prepare_together", prepare)
    return sizes


@pytest.mark.parametrize("odd", [None, ("a cat", b"no image"), ("word " * 50, IMAGES[1])], ids=["none", "a bad image", "a long prompt"])
def test_small_images_of_a_batch_are_prepared_at_once(
    odd: tuple[str, bytes] | None, scorer: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless one of them fails or is warned of, which is for its own client alone."""
    rows = [("a cat", image) for image in IMAGES[2:]] + ([odd] if odd else [])

    async def asked(batcher: Batcher) -> Any:
        gate = Gate(scorer)
        held = asyncio.ensure_future(batcher.rewards((0,), groups(IMAGES[:1], "held")))
        await asyncio.to_thread(gate.wait)
        sizes = with_sizes(monkeypatch)
        tasks = [asyncio.ensure_future(batcher.rewards((0,), groups([image], prompt))) for prompt, image in rows]
        await until(lambda: batcher.num_rows == len(rows) + 1)
        gate.open()
        await held
        return await asyncio.gather(*tasks, return_exceptions=True), sizes

    answers, sizes = run([scorer], asked)
    assert sizes == ([4] if odd is None else [5, 1, 1, 1, 1, 1])
    monkeypatch.undo()
    np.testing.assert_allclose([answer.rewards[0][0, 0] for answer in answers[:4]], scorer.score("a cat", IMAGES[2:]), rtol=0, atol=1e-5)
    assert not any(answer.warnings for answer in answers[:4])
    if odd is not None:
        assert isinstance(answers[4], RequestError) if odd[1] == b"no image" else answers[4].warnings


def test_large_images_are_not_prepared_by_the_scoring_thread(scorer: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()

    def prepare(*arguments: Any) -> Any:
        threads.add(threading.current_thread().name[:7])
        return prepare_together(*arguments)

    monkeypatch.setattr("image_reward.serving.batcher._SMALL", 10)
    monkeypatch.setattr("image_reward.serving.batcher.prepare_together", prepare)
    run([scorer], lambda batcher: batcher.rewards((0,), groups(IMAGES[:1], "a cat")))
    assert threads == {"MainThr", "decoder"}  # the first is that of the warm-up
