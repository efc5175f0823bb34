"""Ensembles against arithmetic done by hand, and against the contract of a scorer."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seeded
from conftest import tiny
from image_reward.cli import main
from image_reward.errors import CheckpointError, LongPromptWarning, PromptError
from image_reward.scorers import BlipScorer, Ensemble, ImageRewardScorer, Reference, load, load_all, score_together
from image_reward.scorers.ensemble import published_reference

ONE, TWO = Reference(0.5, 2.0, 10, "ten images"), Reference(0.1, 0.25, 10, "the same images")
WEIGHTS = {"one": 3.0, "two": 1.0}
PENALTY = 0.5


@pytest.fixture
def members() -> dict[str, Any]:
    return {
        "one": tiny(ImageRewardScorer),
        "two": BlipScorer.from_tensors(seeded.weights(seeded.TINY, 8), "seeded weights", seeded.TINY.network),
    }


def ensemble_of(members: dict[str, Any], **options: Any) -> Ensemble:
    return Ensemble(members, WEIGHTS, {"one": ONE, "two": TWO}, penalty=PENALTY, **options).eval()


def by_hand(members: dict[str, Any], prompts: list[str], images: list[Any]) -> tuple[Any, Any, Any]:
    one = (np.array(members["one"].score(prompts, images)) - 0.5) / 2.0
    two = (np.array(members["two"].score(prompts, images)) - 0.1) / 0.25
    mean = 0.75 * one + 0.25 * two
    disagreement = np.sqrt(0.75 * (one - mean) ** 2 + 0.25 * (two - mean) ** 2)
    return mean, disagreement, mean - PENALTY * disagreement


def test_mean_disagreement_and_conservative_reward(members: dict[str, Any]) -> None:
    prompts, images = ["cat", "a dog", "sea"], seeded.images()[1:4]
    mean, disagreement, conservative = by_hand(members, prompts, images)
    found = ensemble_of(members).judge(prompts, images)
    np.testing.assert_allclose(found.mean, mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.disagreement, disagreement, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.conservative, conservative, rtol=0, atol=1e-5)
    assert disagreement.min() > 0.01
    assert ensemble_of(members).score(prompts, images) == pytest.approx(mean, abs=1e-5)
    assert ensemble_of(members, reward="conservative").score(prompts, images) == pytest.approx(conservative, abs=1e-5)
    assert ensemble_of(members).judge("cat", images[:1]).mean.item() == pytest.approx(mean[0], abs=1e-5)


def test_the_contract(members: dict[str, Any], image_folder: Path) -> None:
    ensemble = ensemble_of(members, reward="conservative")
    images = [str(image_folder / f"{name}.png") for name in "abc"]
    rewards = ensemble.score("cat", images)
    assert rewards == pytest.approx([ensemble.score("cat", image) for image in images], abs=1e-5)
    assert ensemble.score([], []) == []
    ranking = ensemble.rank("cat", images)
    assert ranking.rewards == pytest.approx(rewards, abs=1e-5)
    assert rewards[ranking.order[0]] == max(rewards)
    preference = ensemble.compare("cat", *images[:2])
    assert (preference.a_better > 0.5) == (rewards[0] > rewards[1])
    matrix = ensemble.matrix(["cat", "a dog"], images)
    assert matrix.shape == (2, 3)
    assert matrix[0].tolist() == pytest.approx(rewards, abs=1e-5)
    assert matrix[1, 2] == pytest.approx(ensemble.score("a dog", images[2]), abs=1e-5)
    prepare = pickle.loads(pickle.dumps(ensemble.prepare))
    batch = pickle.loads(pickle.dumps(prepare(["cat"] * 3, images)))
    assert len(batch) == 3
    with torch.inference_mode():
        assert ensemble(batch.to("cpu")).tolist() == pytest.approx(rewards, abs=1e-5)
    with pytest.raises(ValueError, match="2 prompts and 3 images"):
        ensemble.judge(["cat", "dog"], images)
    with pytest.warns(LongPromptWarning):
        ensemble.prepare.check([seeded.LONG_PROMPT])


def test_gradients(members: dict[str, Any]) -> None:
    ensemble = ensemble_of(members, reward="conservative")
    pixels = torch.rand(2, 3, 80, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rewards = ensemble.rewards(["cat", "a dog"], pixels)
    apart = torch.stack([member.rewards(["cat", "a dog"], pixels) for member in members.values()])
    torch.testing.assert_close(rewards, ensemble.judgement(apart).conservative)
    rewards.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    alone = Ensemble({"one": members["one"]}, references={"one": ONE}, reward="conservative").eval()  # never disagrees with itself
    pixels.grad = None
    alone.rewards("cat", pixels).sum().backward()
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().max() > 0


def test_members_share_decoded_images_and_towers(members: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared(BlipScorer):
        @property
        def image_tower(self) -> object:
            return self.blip

    one, two = (Shared(members["two"].blip, seeded.TINY.network) for _ in range(2))
    ensemble = Ensemble({"a": one, "b": two}, references={"a": ONE, "b": TWO}).eval()
    opened: list[Any] = []
    from image_reward.scorers import two_tower

    real = two_tower.open_image
    monkeypatch.setattr(two_tower, "open_image", lambda *arguments: opened.append(arguments[0]) or real(*arguments))
    encoded: list[int] = []
    one.blip.visual_encoder.register_forward_pre_hook(lambda _, arguments: encoded.append(len(arguments[0])))
    images = seeded.images()[:3]
    ensemble.score("cat", images)
    assert (len(opened), encoded) == (3, [3])
    encoded.clear()
    ensemble.matrix(["cat", "a dog"], images)
    assert sum(encoded) == 3
    encoded.clear()
    ensemble.rewards("cat", torch.rand(2, 3, 64, 64))
    assert encoded == [2]


def test_the_references_of_this_package() -> None:
    for name, mean in [("ImageReward-v1.0", -0.10527), ("CLIP", 0.25844)]:
        reference = published_reference(name)
        assert reference is not None
        assert reference.mean == pytest.approx(mean, abs=1e-5)
        assert reference.num_images == 6000
        assert "6 generators x 100 prompts x 10 images" in reference.origin
    assert published_reference("BLIP") is None


def test_what_makes_no_sense(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"two has no reference .*Reference\.from_rewards\(rewards, origin\).* references=\{'two'"):
        Ensemble(members)  # "one" is on the scale of ImageReward-v1.0
    with pytest.raises(ValueError, match="'three' is not a member; those are one, two"):
        Ensemble(members, {"three": 1.0})
    with pytest.raises(ValueError, match="weights must be positive"):
        Ensemble(members, {"one": -1.0})
    with pytest.raises(ValueError, match="reward must be one of"):
        ensemble_of(members, reward="median")
    with pytest.raises(ValueError, match="penalty must be at least 0"):
        Ensemble(members, penalty=-1.0)
    with pytest.raises(ValueError, match="an ensemble cannot be one"):
        Ensemble({"again": ensemble_of(members)})
    with pytest.raises(ValueError, match="at least two images"):
        Reference.from_rewards([1.0], "one image")
    with pytest.raises(CheckpointError, match="do all images tie"):
        Reference.from_rewards([1.0, 1.0], "two images")


def described(**changes: Any) -> dict[str, Any]:
    member = {"model": "tiny", "weight": 2, "reference": {"mean": 0.5, "std": 2, "num_images": 10, "origin": "ten images"}}
    return {"format": "image-reward-ensemble", "version": 1, "members": [member, {"model": "ImageReward-mini"}], **changes}


def test_from_a_file(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(ImageRewardScorer).save_pretrained(tmp_path / "tiny")
    file = tmp_path / "both.json"
    mini = {"model": "ImageReward-mini", "reference": {"mean": 0.0, "std": 1.0, "num_images": 2, "origin": "made up"}}
    file.write_text(json.dumps(described(members=[described()["members"][0], mini], reward="conservative", penalty=2)))
    ensemble = load(file, "cpu", batch_size=2)
    assert isinstance(ensemble, Ensemble)
    assert (ensemble.name, ensemble.batch_size, ensemble.reward, ensemble.penalty) == ("both", 2, "conservative", 2.0)
    images = [str(image_folder / f"{name}.png") for name in "abc"]
    one, two = (np.array(member.score("cat", images)) for member in load_all([tmp_path / "tiny", "ImageReward-mini"], "cpu"))
    mean = 2 / 3 * (one - 0.5) / 2 + 1 / 3 * two
    assert ensemble.judge("cat", images).mean.tolist() == pytest.approx(mean, abs=1e-5)
    assert main(["score", "cat", *images, "--model", str(file), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert [row["reward"] for row in rows] == pytest.approx(ensemble.score("cat", images), abs=1e-5)
    assert main(["models", "verify", str(file)]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", r"both\.json is not JSON"),
        ("{}", r"both\.json is not of a known kind of model: its \"format\" or \"model_type\" is None; known are image-re"),
        (json.dumps(described(version=2)), "has format version 2; this release of image-reward reads version 1"),
        (json.dumps(described(weights=[1])), "unknown key 'weights'"),
        (json.dumps(described(members=[{"weight": 1}])), "_MemberConfig lacks 'model'"),
        (json.dumps(described(members=5)), "members of _EnsembleConfig must be a list of objects, not 5"),
        (json.dumps(described(members=[])), r"both\.json: an ensemble needs members"),
        (json.dumps(described(members=described()["members"][:1] * 2)), "a member is there twice"),
        (json.dumps(described(reward="median")), r"both\.json: reward must be one of"),
        (json.dumps(described(members=[{"model": "ImageReward-mini"}])), r"both\.json: ImageReward-mini has no reference"),
        (json.dumps(described(members=[{"model": "x" * 5000}])), r"both\.json: no model, file or folder is called"),
        (json.dumps(described(members=[{"model": "a\0b"}])), r"both\.json: no model, file or folder is called"),
    ],
)
def test_files_that_describe_no_ensemble(text: str, message: str, tmp_path: Path) -> None:
    tiny(ImageRewardScorer).save_pretrained(tmp_path / "tiny")
    (tmp_path / "both.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "both.json")
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: gone\.json"):
        load("gone.json")


def test_a_member_that_is_not_there_is_named_with_the_file_that_names_it(tmp_path: Path) -> None:
    for model in ("gone.pt", "x" * 5000 + ".pt"):
        (tmp_path / "both.json").write_text(json.dumps(described(members=[{"model": model}])))
        with pytest.raises(FileNotFoundError, match=rf"both\.json: no such checkpoint: {model}"):
            load(tmp_path / "both.json")


def test_beside_other_scorers_it_shares_their_images_and_towers() -> None:
    members = {"one": tiny(ImageRewardScorer, 7), "two": tiny(ImageRewardScorer, 8)}
    references = {name: Reference(0.0, 2.0, 10, "none") for name in members}
    ensemble = Ensemble(members, references=references)
    passes = []
    members["one"].network.blip.visual_encoder.register_forward_hook(lambda *_: passes.append(1))
    prompts, images = seeded.PROMPTS[:2], seeded.images()[:2]
    together = score_together([members["one"], ensemble], prompts, images)
    assert len(passes) == 1
    one, two = (member.score(prompts, images) for member in members.values())
    assert together[0] == pytest.approx(one, abs=1e-5)
    assert together[1] == pytest.approx([(a + b) / 4 for a, b in zip(one, two, strict=True)], abs=1e-5)


def test_a_member_that_is_an_ensemble_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "both.json"
    file.write_text(json.dumps(described(members=[{"model": "both.json"}])))
    with pytest.raises(
        CheckpointError, match=r"^\S+both\.json: the member \S+both\.json is an ensemble itself; give its members in its place"
    ):
        load(file, "cpu")


def test_a_matrix_for_an_ensemble_that_reads_no_prompt(members: dict[str, Any]) -> None:
    ensemble = ensemble_of(members)
    ensemble.reads_prompt = False
    with pytest.raises(ValueError, match="ensemble does not read the prompt: all 2 rows would be the same"):
        ensemble.matrix(["cat", "dog"], seeded.images()[:1])
    with pytest.raises(PromptError, match="a prompt is a string, not int"):
        ensemble.matrix([1], [])  # type: ignore[list-item]


def test_a_folder_of_a_published_name_does_not_get_its_reference(tmp_path: Path) -> None:
    member = BlipScorer.from_tensors(seeded.weights(seeded.TINY, 8), "seeded weights", seeded.TINY.network)
    assert published_reference("CLIP") is not None
    tiny(ImageRewardScorer).save_pretrained(tmp_path / "CLIP")
    member.name = load(tmp_path / "CLIP", "cpu").name
    assert member.name == str(tmp_path / "CLIP")
    with pytest.raises(ValueError, match="has no reference to normalise its rewards on"):
        Ensemble({"CLIP": member})


def test_fewer_images_than_prompts_are_refused(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 images: aligned lists must have the same length"):
        score_together(list(members.values()), ["cat", "dog"], seeded.images()[:1])
