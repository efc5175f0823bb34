from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow.parquet import write_table

import seeded
from image_reward.errors import LongPromptWarning
from image_reward.evaluation.generators import (
    HumanRanking,
    Images,
    Selection,
    benchmark,
    find_images,
    holds_results,
    published_ranking,
    read_manifest,
    read_ranking,
    read_results,
    score_images,
    scorer_fingerprint,
    select,
)
from image_reward.evaluation.prompt_sets import Prompt, prompt_set
from image_reward.scorers import ImageRewardScorer, load

PROMPTS = [Prompt("p1", "a cat", "animals"), Prompt("p2", "a green car", "things")]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")
    return root


def counts(images: Images) -> dict[str, dict[str, int]]:
    return {generator: {name: len(paths) for name, paths in held.items()} for generator, held in images.paths.items()}


# --- images ---


def test_images_by_the_names_of_their_files(tmp_path: Path) -> None:
    touch(tmp_path, "a/p1_0.png", "a/p1_10.webp", "a/p1_2.jpg", "a/p2.png", "a/._p1_3.png", "b/p1_0.PNG", "b/p3_0.png", "b/p1_x.png")
    touch(tmp_path, "b/notes.txt", "README.md", ".hidden/p1_0.png")
    found = find_images(tmp_path, PROMPTS)
    assert {g: {name: [p.name for p in paths] for name, paths in held.items()} for g, held in found.paths.items()} == {
        "a": {"p1": ["p1_0.png", "p1_2.jpg", "p1_10.webp"], "p2": ["p2.png"]},
        "b": {"p1": ["p1_0.PNG"]},
    }
    assert [path.name for path in found.extra] == ["README.md", "notes.txt", "p1_x.png", "p3_0.png"]


def test_images_that_could_be_two_things(tmp_path: Path) -> None:
    touch(tmp_path / "twice", "a/p1_0.png", "a/p1_0.jpg")
    with pytest.raises(ValueError, match=r"p1_0\.png and p1_0\.jpg are the same image of prompt 'p1'"):
        find_images(tmp_path / "twice", PROMPTS)
    touch(tmp_path / "either", "a/x_1.png")
    with pytest.raises(ValueError, match=r"x_1\.png is of prompt 'x_1', or of 'x'"):
        find_images(tmp_path / "either", [Prompt("x", "one"), Prompt("x_1", "two")])
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        find_images(tmp_path / "none", PROMPTS)
    touch(tmp_path / "flat", "p1_0.png")
    with pytest.raises(ValueError, match="holds no folders; it should have one for each generator"):
        find_images(tmp_path / "flat", PROMPTS)


def test_missing_images_are_named() -> None:
    held = {"a": {"p1": 3, "p2": 3}, "b": {"p1": 1}, "c": {"p1": 3, "p2": 3}}
    with pytest.raises(ValueError) as caught:
        select(PROMPTS, held)
    assert "b: 2 of 2 prompts: p1 (1 of 3), p2 (0 of 3)" in str(caught.value)
    assert "a:" not in str(caught.value)
    assert "--allow-missing" in str(caught.value)
    assert select(PROMPTS, held, allow_missing=True) == Selection(PROMPTS[:1], [1], ["p2"], {"a": 5, "c": 5})
    with pytest.raises(ValueError, match=r"a: 1 of 2 prompts: p2 \(0 of 1\)"):
        select(PROMPTS, {"a": {"p1": 2}})  # a prompt that nobody made images for
    with pytest.raises(ValueError, match="no prompt that all generators have an image of"):
        select(PROMPTS, {"a": {"p1": 2}, "b": {"p2": 2}}, allow_missing=True)
    assert select(PROMPTS, {"a": {"p1": 4, "p2": 2}, "b": {"p1": 4, "p2": 2}}) == Selection(PROMPTS, [4, 2], [], {})


MANIFEST = [
    {"generator": "a", "prompt_id": "p1", "prompt": "a cat", "image": "x/1.png"},
    {"generator": "a", "prompt_id": "p2", "prompt": "a green car", "image": "x/2.png"},
    {"generator": "b", "prompt_id": "p1", "prompt": "a cat", "image": "y.png"},
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_manifest(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"images.{suffix}"
    if suffix == "parquet":
        write_table(pyarrow.Table.from_pylist(MANIFEST), path)
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, MANIFEST)))
    else:
        path.write_text("\n".join(",".join(row) for row in [list(MANIFEST[0]), *(list(row.values()) for row in MANIFEST)]))
    touch(tmp_path, "x/1.png", "x/2.png", "y.png")
    prompts, images = read_manifest(path)
    assert prompts == [Prompt("p1", "a cat"), Prompt("p2", "a green car")]
    assert images.paths == {
        "a": {"p1": [tmp_path / "x/1.png"], "p2": [tmp_path / "x/2.png"]},
        "b": {"p1": [tmp_path / "y.png"]},
    }


def test_manifest_with_prompts_given(tmp_path: Path) -> None:
    path = touch(tmp_path, "1", "z", "x/1.png") / "images.jsonl"

    def read(*rows: dict[str, str], prompts: list[Prompt] | None = None) -> Any:
        path.write_text("\n".join(map(json.dumps, rows)))
        return read_manifest(path, prompts)

    prompts, images = read(
        {"generator": "a", "prompt": "a cat", "image": "1"}, {"generator": "a", "prompt": "x", "image": "2"}, prompts=PROMPTS
    )
    assert prompts == PROMPTS
    assert images == Images({"a": {"p1": [tmp_path / "1"]}}, [tmp_path / "2"])
    row = MANIFEST[0]
    same = [Prompt("p1", "a cat"), Prompt("p3", "a cat")]
    for rows, given, message in [
        ([row | {"prompt": "a dog"}], PROMPTS, "row 1: the prompt of 'p1' is 'a dog' there, but 'a cat' in the prompts"),
        ([row, row], PROMPTS, "row 2 names .*1.png, which row 1 names for a too"),
        ([row, row | {"prompt": "a dog", "image": "z"}], None, "row 2 has another prompt for 'p1' than a row before it"),
        ([{"generator": "a", "prompt_id": "p1", "image": "z"}], None, "row 1 has no prompt; add them, or give the prompts"),
        ([{"generator": "a", "image": "z"}], PROMPTS, "row 1 has generator, image; a row needs"),
        ([row | {"image": ""}], PROMPTS, "row 1 has generator, prompt_id, prompt; a row needs"),
        ([{"generator": "a", "prompt": "a cat", "image": "z"}], same, r"several prompts read 'a cat' \(p1, p3\); give the prompt_id"),
        ([], PROMPTS, "holds no rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(*rows, prompts=given)
    with pytest.raises(FileNotFoundError, match=r"images\.jsonl, row 1: no such image: .*gone\.png"):
        read(row | {"image": "gone.png"}, prompts=PROMPTS)


# --- rewards ---


def write_results(folder: Path, rewards: dict[str, dict[str, list[list[float]]]], prompts: list[Prompt] = PROMPTS) -> Path:
    for scorer, by_generator in rewards.items():
        (folder / scorer).mkdir(parents=True, exist_ok=True)
        for generator, values in by_generator.items():
            table = [
                {"id": p.id, "prompt": p.prompt, "mean_score": sum(v) / len(v), "rewards": v} for p, v in zip(prompts, values, strict=True)
            ]
            (folder / scorer / f"{generator}.json").write_text(json.dumps(table))
    return folder


REWARDS = {"a": [[1.0, 3.0], [0.0, 1.0]], "b": [[0.0, 1.0], [2.0, 2.0]], "c": [[-1.0, -3.0], [0.0, 1.0]]}


def test_results(tmp_path: Path) -> None:
    folder = write_results(tmp_path, {"S": REWARDS})
    assert holds_results(folder)
    prompts, rewards = read_results(folder)
    assert [(prompt.id, prompt.prompt) for prompt in prompts] == [("p1", "a cat"), ("p2", "a green car")]
    assert rewards["S"]["b"] == {"p1": [0.0, 1.0], "p2": [2.0, 2.0]}
    assert read_results(folder, PROMPTS)[0] == PROMPTS  # with their categories
    original = tmp_path / "S" / "S-benchmark-sd2-1-result.json"  # as the original's program calls it
    original.write_text((folder / "S" / "a.json").read_text())
    assert list(read_results(folder)[1]["S"]) == ["sd2-1", "a", "b", "c"]
    touch(tmp_path / "images", "a/p1_0.png")
    assert not holds_results(tmp_path / "images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(prompt="a dog"), "has other prompts for 1 ids: p1; p1 is 'a dog' there, and 'a cat' elsewhere"),
        (lambda rows: rows[1].update(id="p1"), "has 1 ids more than once: p1"),
        (lambda rows: rows[1].update(id="p9"), "has 1 prompts that are not among those given: p9"),
        (lambda rows: rows[0].update(rewards=[1.0, float("nan")]), "prompt p1: reward 1 is nan; rewards must be finite"),
        (lambda rows: rows[0].update(rewards=[]), r"prompt p1: the rewards are \[\], not a list of numbers"),
        (lambda rows: rows[0].update(rewards=[True, 1.0]), "reward 0 is True"),
        (lambda rows: rows[0].update(mean_score=0.0), "prompt p1: mean_score is 0.0, but the mean of its rewards is 2"),
        (lambda rows: rows[0].pop("rewards"), "holds no results: it should be a list of objects with id, prompt and rewards"),
    ],
)
def test_results_that_make_no_sense(tmp_path: Path, change: Any, message: str) -> None:
    path = write_results(tmp_path, {"S": REWARDS}) / "S" / "a.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message) as caught:
        read_results(tmp_path, PROMPTS)
    assert str(path) in str(caught.value)


def test_scorers_need_the_same_generators(tmp_path: Path) -> None:
    write_results(tmp_path, {"S": REWARDS, "T": {"a": REWARDS["a"]}})
    with pytest.raises(ValueError, match="T lacks results of b, c, which others have"):
        read_results(tmp_path)
    with pytest.raises(ValueError, match="holds no results"):
        read_results(touch(tmp_path / "empty", "x/y.txt"))
    with pytest.raises(FileNotFoundError, match="no such folder of results"):
        read_results(tmp_path / "none")


# --- scoring ---


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Two generators, two prompts, two images each."""
    for number, generator in enumerate(("a", "b")):
        (tmp_path / "images" / generator).mkdir(parents=True)
        for i, prompt in enumerate(PROMPTS):
            for n in range(2):
                kind, width, height, _ = seeded.IMAGES[2 * i + n]
                seeded.image(kind, width // 4, height // 4, 10 * number + n).save(tmp_path / "images" / generator / f"{prompt.id}_{n}.png")
    return find_images(tmp_path / "images", PROMPTS)


def other_scorer() -> ImageRewardScorer:
    return ImageRewardScorer.from_tensors(seeded.weights(seeded.TINY, 3), seeded.TINY, "seeded weights", name="OTHER/tiny")


def expected(scorer: ImageRewardScorer, images: Images) -> dict[str, dict[str, Any]]:
    return {
        generator: {p.id: pytest.approx(scorer.score(p.prompt, [str(path) for path in paths[p.id]]), abs=1e-5) for p in PROMPTS}
        for generator, paths in images.paths.items()
    }


def test_scores_of_several_scorers(scorer: ImageRewardScorer, images: Images) -> None:
    done = []
    other = other_scorer()
    scorer.batch_size = 1  # parts of two prompts
    found, reused = score_images([scorer, other], images, select(PROMPTS, counts(images)), on_image=lambda n, of: done.append((n, of)))
    assert found == {"tiny": expected(scorer, images), "OTHER/tiny": expected(other, images)}
    assert (reused, done) == (0, [(4, 8), (8, 8)])
    with pytest.raises(ValueError, match="several scorers are called tiny"):
        score_images([scorer, scorer], images, select(PROMPTS, counts(images)))


def test_a_long_prompt_is_warned_of_once(scorer: ImageRewardScorer, images: Images) -> None:
    prompts = [Prompt("p1", seeded.LONG_PROMPT), PROMPTS[1]]
    with pytest.warns(LongPromptWarning) as caught:
        score_images([scorer, other_scorer()], images, select(prompts, counts(images)))
    assert len(caught) == 1


def test_saved_results_are_used_while_nothing_changed(
    scorer: ImageRewardScorer, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    from image_reward.evaluation import generators

    def counting(scorers: Any, prompts: Any, paths: Any) -> Any:
        scored.extend(f"{s.name}:{Path(path).parent.name}/{Path(path).stem}" for s in scorers for path in paths)
        return original(scorers, prompts, paths)

    original = generators.score_together
    monkeypatch.setattr(generators, "score_together", counting)
    selection, folder = select(PROMPTS, counts(images)), tmp_path / "results"

    def run(*scorers: ImageRewardScorer) -> tuple[Any, int]:
        scored.clear()
        return score_images(scorers, images, selection, folder)

    first, reused = run(scorer)
    assert (len(scored), reused) == (8, 0)
    assert run(scorer) == (first, 8)
    assert scored == []
    assert read_results(folder, PROMPTS)[1] == first  # in the published form
    rows = json.loads((folder / "tiny" / "a.json").read_text())
    assert [set(row) for row in rows] == [{"id", "prompt", "mean_score", "rewards", "fingerprint"}] * 2
    assert rows[0]["mean_score"] == pytest.approx(np.mean(rows[0]["rewards"]))

    other = other_scorer()
    both, reused = run(scorer, other)  # only the new one scores
    assert (both["tiny"], reused, set(scored)) == (
        first["tiny"],
        8,
        {f"OTHER/tiny:{g}/p{p}_{n}" for g in "ab" for p in (1, 2) for n in (0, 1)},
    )
    assert sorted(path.name for path in folder.iterdir()) == ["OTHER--tiny", "tiny"]

    shutil.copy(images.paths["b"]["p1"][0], images.paths["a"]["p2"][1])  # another image under the same name
    changed, reused = run(scorer)
    assert (scored, reused) == (["tiny:a/p2_0", "tiny:a/p2_1"], 6)
    assert changed == {"tiny": expected(scorer, images)}

    list(scorer.parameters())[-1].data += 0.1  # other weights under the same name
    assert run(scorer)[1] == 0
    assert run(other)[1] == 6  # its own are as they were, but for the image that changed


def test_saved_results_of_something_else_are_refused(scorer: ImageRewardScorer, images: Images, tmp_path: Path) -> None:
    selection = select(PROMPTS, counts(images))
    write_results(tmp_path / "results", {"tiny": {"a": REWARDS["a"]}})
    with pytest.raises(ValueError, match=r"a\.json does not say which images it is of.*read it with --results"):
        score_images([scorer], images, selection, tmp_path / "results")
    shutil.rmtree(tmp_path / "results")
    score_images([scorer], images, selection, tmp_path / "results")
    with pytest.raises(ValueError, match="has other prompts for 1 ids: p1; p1 is 'a cat' there, and 'a dog' elsewhere"):
        score_images([scorer], images, select([Prompt("p1", "a dog"), PROMPTS[1]], counts(images)), tmp_path / "results")
    strange = Images({"a/b": images.paths["a"]})
    with pytest.raises(ValueError, match="'a/b' cannot be saved"):
        score_images([scorer], strange, selection, tmp_path / "results")


# --- people ---


def test_human_rankings(tmp_path: Path) -> None:
    path = tmp_path / "human.json"
    path.write_text('{"a": 7, "b": 9, "c": 7, "d": 1}')
    assert read_ranking(path, ["a", "b", "c"], higher_is_better=True).ranks == {"a": 2, "b": 1, "c": 2}
    assert read_ranking(path, ["a", "b", "d"], higher_is_better=False).ranks == {"a": 2, "b": 3, "d": 1}
    with pytest.raises(ValueError, match="lacks e; it has a, b, c, d"):
        read_ranking(path, ["a", "e"], higher_is_better=True)
    path.write_text('{"a": "first"}')
    with pytest.raises(ValueError, match="should be a JSON object"):
        read_ranking(path, ["a"], higher_is_better=True)


def test_published_wins_are_for_the_paper_s_generators_and_prompts() -> None:
    prompts = prompt_set("ImageReward")
    found = published_ranking(["openjourney", "Stable Diffusion 2.1-base", "DALLE2", "vd", "mine"], prompts[:10])
    assert found is not None
    assert found.values == {"openjourney": 507, "Stable Diffusion 2.1-base": 463, "DALLE2": 390, "vd": 340}
    assert list(found.ranks.values()) == [1, 2, 3, 4]
    assert published_ranking(["openjourney", "sd2-1"], prompts) is None
    assert published_ranking(["openjourney", "sd2-1", "dalle2"], PROMPTS) is None


# --- statistics ---


def measured(**options: Any) -> Any:
    rewards = {"S": {g: dict(zip(("p1", "p2"), values, strict=True)) for g, values in REWARDS.items()}}
    return benchmark(rewards, Selection(PROMPTS, [2, 2], [], {}), num_resamples=500, **options)


def test_statistics_by_hand() -> None:
    found = measured()
    assert (found.num_prompts, found.num_images, found.images_per_prompt) == (2, 4, (2, 2))
    (scorer,) = found.scorers
    by_name = {generator.name: generator for generator in scorer.generators}
    assert [g.name for g in scorer.generators] == ["a", "b", "c"]  # a and b tie; in the order given
    assert [g.rank for g in scorer.generators] == [1, 1, 3]
    assert [g.mean.value for g in scorer.generators] == pytest.approx([1.25, 1.25, -0.75])
    assert [g.median for g in scorer.generators] == pytest.approx([1.0, 1.5, -0.5])
    # p1: a beats b in 3.5 of 4 and c in 4; b beats c in 4. p2: a beats b in 0 of 4 and draws with c; b beats c in 4.
    assert np.array(scorer.win_matrix) == pytest.approx(np.array([[0.5, 3.5 / 8, 6 / 8], [4.5 / 8, 0.5, 1], [2 / 8, 0, 0.5]]))
    assert by_name["a"].win_rate.value == pytest.approx((3.5 / 8 + 6 / 8) / 2)
    assert by_name["a"].prompt_win_rate.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert by_name["c"].prompt_win_rate.value == pytest.approx((0 + 0 + 0.5 + 0) / 4)
    assert [b.value for b in by_name["a"].best_of] == pytest.approx([1.25, 2.0])
    assert by_name["a"].by_category == {"animals": 2.0, "things": 0.5}
    # two prompts: the resampled mean of a is 0.5, 1.25 or 2 (with 1/4, 1/2, 1/4)
    assert (by_name["a"].mean.low, by_name["a"].mean.high) == (0.5, 2.0)
    assert (by_name["c"].rank_low, by_name["c"].rank_high) == (2, 3)  # where only p2 is drawn, it ties with a
    assert [(d.a, d.b, d.value) for d in scorer.differences] == [("a", "b", 0.0), ("a", "c", 2.0), ("b", "c", 2.0)]
    assert all(d.p_value <= d.p_holm <= 1 for d in scorer.differences)
    assert scorer.spearman is None


def test_agreement_with_people() -> None:
    human = HumanRanking.of("me", {"b": 3.0, "a": 2.0, "c": 1.0})
    (scorer,) = measured(human=human).scorers
    assert scorer.spearman.value == pytest.approx(0.8660254)  # ranks 1.5, 1.5, 3 against 2, 1, 3
    assert scorer.kendall_tau_b.value == pytest.approx(2 / np.sqrt(6))
    assert -1 <= scorer.spearman.low <= scorer.spearman.value <= scorer.spearman.high <= 1
    (scorer,) = measured(human=HumanRanking.of("me", {"a": 1.0, "b": 1.0})).scorers
    assert scorer.spearman is None  # they are tied


def test_fewer_images_and_a_single_generator() -> None:
    rewards = {"S": {"a": {"p1": [1.0, 3.0, 5.0], "p2": [0.0]}}}
    found = benchmark(rewards, Selection(PROMPTS, [2, 1], ["p3"], {"a": 1}), num_resamples=10)
    (generator,) = found.scorers[0].generators
    assert generator.mean.value == pytest.approx((2.0 + 0.0) / 2)
    assert len(generator.best_of) == 1
    assert generator.win_rate is generator.prompt_win_rate is None
    assert found.scorers[0].differences == []
    assert found.images_per_prompt == (1, 2)
    assert found.per_prompt[0].rewards == {"S": {"a": [1.0, 3.0]}}
    with pytest.raises(ValueError, match="rewards must be finite"):
        benchmark({"S": {"a": {"p1": [float("nan")], "p2": [0.0]}}}, Selection(PROMPTS, [1, 1], [], {}), num_resamples=10)


def test_as_dict_is_json() -> None:
    found = measured(human=HumanRanking.of("me", {"b": 3.0, "a": 2.0, "c": 1.0}))
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["per_prompt"][1]["rewards"]["S"]["b"] == [2.0, 2.0]
    assert "per_prompt" not in found.as_dict(per_prompt=False)


def test_a_scorer_of_int8_has_a_fingerprint_of_its_own() -> None:
    exact, rounded = (load("ImageReward-mini", "cpu", dtype) for dtype in ("float32", "int8"))
    assert scorer_fingerprint(exact) != scorer_fingerprint(rounded)
    assert scorer_fingerprint(rounded) == scorer_fingerprint(load("ImageReward-mini", "cpu", "int8"))
