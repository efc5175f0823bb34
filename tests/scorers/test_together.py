"""Any scorer fits: one that reads image and prompt as one sequence answers what two towers answer, alone and beside them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import seeded
import vision_language
from conftest import tiny
from image_reward.cli import main
from image_reward.evaluation import evaluate
from image_reward.images import ImageOptions
from image_reward.jobs import score_files
from image_reward.scorers import MODELS, BlipScorer, Ensemble, ImageRewardScorer, Reference, load, score_together
from image_reward.scorers.precision import compile_scorer, quantize
from image_reward.scorers.together import prepare_together, processors_of, rewards_of_tensors, rewards_together
from image_reward.types import Comparison

IMAGES = [
    Image.fromarray(np.array(seeded.image(*arguments)))
    for arguments in [("rings", 64, 48, 1), ("noise", 40, 90, 2), ("checker", 64, 64, 3)]
]
PROMPTS = ["a cat", "ein größerer Hund", ""]
UNIT = Reference(0.0, 1.0, 9, "nine images")


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch) -> vision_language.VisionLanguageScorer:
    monkeypatch.setitem(MODELS, vision_language.NAME, vision_language.SPEC)
    return load(vision_language.NAME, "cpu")  # type: ignore[return-value]


@pytest.fixture
def blip() -> BlipScorer:
    return BlipScorer.from_tensors(seeded.weights(seeded.TINY, 8), "seeded weights", seeded.TINY.network)


# --- a scorer of another shape ---


def test_it_answers_every_question(sequences: Any) -> None:
    one_by_one = [[sequences.score(prompt, image) for image in IMAGES] for prompt in PROMPTS]
    assert np.std(one_by_one) > 0.05
    sequences.batch_size = 2
    assert sequences.score(PROMPTS, IMAGES) == pytest.approx(np.diagonal(one_by_one), abs=1e-5)
    np.testing.assert_allclose(sequences.matrix(PROMPTS, IMAGES), one_by_one, rtol=0, atol=1e-5)
    assert max(sequences.seen) == 2
    ranking = sequences.rank(PROMPTS[0], IMAGES)
    assert ranking.rewards == pytest.approx(one_by_one[0], abs=1e-5)
    assert sorted(ranking.ranking) == [1, 2, 3]
    preference = sequences.compare(PROMPTS[0], *IMAGES[:2])
    assert preference.a_better == pytest.approx(1 / (1 + np.exp(one_by_one[0][1] - one_by_one[0][0])), abs=1e-5)
    copies = sequences.rank(PROMPTS[0], [IMAGES[0]] * 5)
    assert copies.ranking == [1, 2, 3, 4, 5]
    assert sequences.score("a cat", []) == []


def test_what_it_cannot_do_is_said(sequences: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny-vision-language gives no gradients to pixels, so it has no rewards\(\); score\(\) takes"):
        sequences.rewards("a cat", torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="has no format of this package"):
        sequences.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"int8 is for scorers with an image tower.* use bfloat16"):
        quantize(sequences)
    with pytest.raises(ValueError, match=r"compile is for scorers with an image tower"):
        compile_scorer(sequences)


def test_its_batches_travel_and_are_its_own(sequences: Any) -> None:
    batch = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(sequences.prepare))(PROMPTS, IMAGES)))
    assert len({len(ids) for ids in batch.ids}) == 3
    with torch.inference_mode():
        rewards = sequences(batch)
        assert sequences(batch.select([2, 0])).tolist() == pytest.approx(rewards[[2, 0]].tolist(), abs=1e-5)


def test_it_is_a_member_of_an_ensemble_beside_two_towers(sequences: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mini = load("ImageReward-mini", "cpu")
    references = {"mini": Reference(0.2, 0.5, 9, "nine images"), "sequences": Reference(-0.1, 0.3, 9, "nine images")}
    ensemble = Ensemble({"mini": mini, "sequences": sequences}, references=references).eval()
    prompts = ["a red circle", "a blue square", "a red circle"]
    separate = [np.array(scorer.score(prompts, IMAGES)) for scorer in (mini, sequences)]
    expected = ((separate[0] - 0.2) / 0.5 + (separate[1] + 0.1) / 0.3) / 2
    opened = count_opened(monkeypatch)
    assert ensemble.score(prompts, IMAGES) == pytest.approx(expected, abs=1e-5)
    assert len(opened) == 3  # once for both
    np.testing.assert_allclose(np.diagonal(ensemble.matrix(prompts, IMAGES)), expected, rtol=0, atol=1e-5)
    assert ensemble.rank(prompts[0], IMAGES).rewards[0] == pytest.approx(expected[0], abs=1e-5)
    sequences.seen.clear()
    ensemble.batch_size = 2
    assert ensemble.score(prompts, IMAGES) == pytest.approx(expected, abs=1e-5)
    assert max(sequences.seen) == 2
    with pytest.raises(ValueError, match=r"tiny-vision-language gives no gradients"):
        ensemble.rewards("a cat", torch.rand(1, 3, 8, 8))


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fills with what is opened of the images that are given, and not of images that are open already."""
    from image_reward.scorers import together, two_tower

    opened: list[Any] = []
    real = together.open_image

    def counting(image: Any, options: ImageOptions) -> Image.Image:
        if any(image is given for given in IMAGES):
            opened.append(image)
        return real(image, options).copy()

    for module in (together, two_tower, vision_language):
        monkeypatch.setattr(module, "open_image", counting)
    return opened


def test_people_and_it_are_compared(sequences: Any) -> None:
    comparisons = [Comparison(prompt, tuple(IMAGES), (1, 2, 3), id=prompt) for prompt in PROMPTS[:2]]
    found = evaluate({"x": sequences}, comparisons, num_resamples=100)
    rewards = sequences.matrix(PROMPTS[:2], IMAGES)
    right = [row[a] > row[b] for row in rewards for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found.scorers["x"].metrics["pairwise_accuracy_pooled"].value == pytest.approx(np.mean(right))


def test_a_job_in_processes_of_its_own(sequences: Any, tmp_path: Path) -> None:
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
    rows = [(f"{prompt} {row}", f"{row % 3}.png") for row, prompt in enumerate(["a cat", "a dog"] * 4)]
    lines = [*(f"{prompt},{image}" for prompt, image in rows), "a bird,missing.png"]
    (tmp_path / "rows.csv").write_text("\n".join(["prompt,image", *lines]) + "\n")
    done = score_files(tmp_path / "rows.csv", tmp_path / "out", vision_language.load, workers=1, decoders=1, device="cpu", shard_size=5)
    assert (done.num_rows, done.num_errors) == (9, 1)
    table = pq.read_table(sorted((tmp_path / "out").glob("part-*.parquet"))).to_pydict()
    expected = sequences.score([prompt for prompt, _ in rows], [IMAGES[int(image[0])] for _, image in rows])
    assert table["reward"][:8] == pytest.approx(expected, abs=1e-5)
    assert "no such image" in table["error"][8]


def test_its_half_precision_is_verified(sequences: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
    arguments = [str(tmp_path), "--prompt", "a cat", "--model", sequences.name, "--dtype", "bfloat16", "--max-flips", "1"]
    assert main(["verify-precision", *arguments]) == 0
    assert "bfloat16" in capsys.readouterr().out


# --- sharing ---


@pytest.mark.filterwarnings("ignore::image_reward.LongPromptWarning")
def test_a_shared_tower_encodes_once_whatever_the_order_of_rows(blip: BlipScorer) -> None:
    class Shared(BlipScorer):
        @property
        def image_tower(self) -> Any:
            return self.blip.visual_encoder

    one, two = (Shared(blip.blip, seeded.TINY.network).eval() for _ in range(2))
    two.prepare.tokenizer.max_tokens = 3  # reads other tokens of the same images
    encoded: list[int] = []
    blip.blip.visual_encoder.register_forward_pre_hook(lambda _, arguments: encoded.append(len(arguments[0])))
    prompts = [PROMPTS[0], "a cat", "dog", "a big dog", "sea"]
    images = [IMAGES[k] for k in (2, 0, 2, 1, 2)]  # unlike numbers of prompts, in no order
    together = score_together([one, two], prompts, images)
    assert encoded == [3]
    assert together[0] == pytest.approx(one.score(prompts, images), abs=1e-5)
    assert together[1] == pytest.approx(two.score(prompts, images), abs=1e-5)
    two.prepare.transform = type(two.prepare.transform)(64, fit="pad")  # other pixels: other features
    encoded.clear()
    together = score_together([one, two], prompts, images)
    assert encoded == [3, 3]
    assert together[1] == pytest.approx(two.score(prompts, images), abs=1e-5)


def test_rewards_of_tensors_share_crops_and_towers(blip: BlipScorer, scorer: ImageRewardScorer) -> None:
    pixels = torch.rand(2, 3, 70, 64, requires_grad=True)
    scorers = [blip, scorer, Ensemble({"blip": blip}, references={"blip": UNIT}).eval()]
    encoded: list[int] = []
    blip.blip.visual_encoder.register_forward_pre_hook(lambda _, arguments: encoded.append(len(arguments[0])))
    found = rewards_of_tensors(scorers, ["cat", "dog"], pixels)
    assert encoded == [2]
    for rewards, each in zip(found, scorers, strict=True):
        assert rewards.tolist() == pytest.approx(each.rewards(["cat", "dog"], pixels).tolist(), abs=1e-5)
    sum(rewards.sum() for rewards in found).backward()
    assert pixels.grad is not None


# --- one path: the same pair has the same reward, whoever asks ---

SQUARES = [Image.fromarray(np.random.RandomState(n).randint(0, 256, (64, 64, 3), dtype=np.uint8)) for n in range(4)]  # need no resizing
WORDS = ["cat", "a large dog", "", "the sea at night"]
_SCORERS: dict[str, Any] = {}


def scorer_of(kind: str) -> Any:
    if not _SCORERS:
        mini, itc = tiny(ImageRewardScorer), BlipScorer.from_tensors(seeded.weights(seeded.TINY, 8), "seeded", seeded.TINY.network)
        _SCORERS.update(mini=mini, itc=itc, both=Ensemble({"mini": mini, "itc": itc}, references={"mini": UNIT, "itc": UNIT}).eval())
    return _SCORERS[kind]


@pytest.mark.parametrize("kind", ["mini", "itc", "both"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9), batch_size=st.integers(1, 5), data=st.data()
)
def test_every_way_to_a_reward_gives_the_same(kind: str, pairs: list[tuple[int, int]], batch_size: int, data: st.DataObject) -> None:
    scorer = scorer_of(kind)
    scorer.batch_size = batch_size
    prompts, images = [WORDS[p] for p, _ in pairs], [SQUARES[i] for _, i in pairs]
    scored = scorer.score(prompts, images)
    matrix = scorer.matrix(WORDS, SQUARES)
    assert scored == pytest.approx([matrix[pair] for pair in pairs], abs=1e-5)
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images]).requires_grad_()
    assert scorer.rewards(prompts, pixels).tolist() == pytest.approx(scored, abs=1e-5)
    assert score_together([scorer, scorer_of("mini")], prompts, images)[0] == pytest.approx(scored, abs=1e-5)
    batches = prepare_together(processors_of([scorer]), prompts, images)  # as jobs do, which choose rows and halve batches
    rows = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=9))
    chosen = [batch.select(rows) for batch in batches]
    assert rewards_together([scorer], chosen)[0].tolist() == pytest.approx([scored[row] for row in rows], abs=1e-5)
    learned = scorer(scorer.prepare(prompts, images))  # as training does
    assert learned.requires_grad
    assert learned.tolist() == pytest.approx(scored, abs=1e-5)


def test_copies_under_other_names_get_one_reward(scorer: ImageRewardScorer, tmp_path: Path) -> None:
    scorer.batch_size = 2
    images: list[Any] = []
    for number in range(7):
        SQUARES[0].save(tmp_path / f"{number}.png", compress_level=number)
        images += [tmp_path / f"{number}.png", SQUARES[0].copy(), np.array(SQUARES[0]), SQUARES[1 + number % 3]]
    rewards = scorer.score("cat", images)
    assert len({reward for number, reward in enumerate(rewards) if number % 4 != 3}) == 1
    assert scorer.rank("cat", images[::4]).ranking == [1, 2, 3, 4, 5, 6, 7]
    assert len(set(scorer.matrix(["cat", "dog"], images[::4])[1].tolist())) == 1
    batch = scorer.prepare(["cat"] * 7, images[::4])
    assert len(batch.pixels) == 1
    assert len(set(score_together([scorer, scorer], ["cat"] * 7, images[::4])[1])) == 1
