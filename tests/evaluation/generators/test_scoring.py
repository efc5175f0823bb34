from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seeded
from image_reward.errors import LongPromptWarning
from image_reward.evaluation.generators import Images, find_images, read_results, score_images, select
from image_reward.evaluation.generators import scoring as scoring_module
from image_reward.evaluation.generators.scoring import scorer_fingerprint
from image_reward.prompt_sets import Prompt
from image_reward.scorers import ImageRewardScorer, load

PROMPTS = [Prompt("p1", "a cat", "animals"), Prompt("p2", "a green car", "things")]


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
    found, reused = score_images([scorer, other], images, select(PROMPTS, images.counts), on_image=lambda n, of: done.append((n, of)))
    assert found == {"tiny": expected(scorer, images), "OTHER/tiny": expected(other, images)}
    assert (reused, done) == (0, [(4, 8), (8, 8)])
    with pytest.raises(ValueError, match="several scorers are called tiny; use each once"):
        score_images([scorer, scorer], images, select(PROMPTS, images.counts))


def test_a_long_prompt_is_warned_of_once(scorer: ImageRewardScorer, images: Images) -> None:
    prompts = [Prompt("p1", seeded.LONG_PROMPT), PROMPTS[1]]
    with pytest.warns(LongPromptWarning) as caught:
        score_images([scorer, other_scorer()], images, select(prompts, images.counts))
    assert len(caught) == 1


def test_saved_results_are_used_while_nothing_changed(
    scorer: ImageRewardScorer, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def counting(scorers: Any, prompts: Any, paths: Any) -> Any:
        scored.extend(f"{s.name}:{Path(path).parent.name}/{Path(path).stem}" for s in scorers for path in paths)
        return original(scorers, prompts, paths)

    original = scoring_module.score_together
    monkeypatch.setattr(scoring_module, "score_together", counting)
    selection, folder = select(PROMPTS, images.counts), tmp_path / "results"

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
    selection = select(PROMPTS, images.counts)
    (tmp_path / "results" / "tiny").mkdir(parents=True)
    published = [{"id": prompt.id, "prompt": prompt.prompt, "mean_score": 1.0, "rewards": [1.0, 1.0]} for prompt in PROMPTS]
    (tmp_path / "results" / "tiny" / "a.json").write_text(json.dumps(published))  # without fingerprints
    with pytest.raises(ValueError, match=r"a\.json does not identify its images.*read it with --results"):
        score_images([scorer], images, selection, tmp_path / "results")
    shutil.rmtree(tmp_path / "results")
    score_images([scorer], images, selection, tmp_path / "results")
    with pytest.raises(ValueError, match="has other prompts for 1 ids: p1; p1 is 'a cat' there, and 'a dog' elsewhere"):
        score_images([scorer], images, select([Prompt("p1", "a dog"), PROMPTS[1]], images.counts), tmp_path / "results")
    strange = Images({"a/b": images.paths["a"]})
    with pytest.raises(ValueError, match="'a/b' cannot be saved"):
        score_images([scorer], strange, selection, tmp_path / "results")


def test_a_scorer_of_int8_has_a_fingerprint_of_its_own() -> None:
    pytest.importorskip("torchao")
    exact, rounded = (load("ImageReward-mini", "cpu", dtype) for dtype in ("float32", "int8"))
    assert scorer_fingerprint(exact) != scorer_fingerprint(rounded)
    assert scorer_fingerprint(rounded) == scorer_fingerprint(load("ImageReward-mini", "cpu", "int8"))
