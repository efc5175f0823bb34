"""UnifiedReward: what is asked, how answers are read, and what becomes of those that cannot be."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

import hub as hubs
import image_reward as ir
import judges
import qwen
import seeded
from image_reward.cli import main
from image_reward.errors import AnswerError, CheckpointError, DownloadError, ImageReadError, InputError, PromptError, UnknownModelError
from image_reward.scorers import MODELS, UnifiedReward, score_together
from image_reward.scorers.outcomes import RefusedRowsError
from image_reward.scorers.qwen_chat import ChatFiles
from image_reward.scorers.unified_reward import PAIRWISE, POINTWISE, Scores, unified_reward_from_files, verdict_of
from image_reward.scorers.vision_language import empty_network
from scorer_checks import check_commands, check_ensemble, check_saved_ensemble

PROMPTS = ["a cat", "two red birds\non a  wire", "a dog", "a cat"]
IMAGES = [("rings", 401, 300, 3), ("gradient", 225, 300, 5), ("checker", 97, 61, 7), ("noise", 300, 301, 4)]


def images() -> list[Image.Image]:
    return [seeded.image(*arguments) for arguments in IMAGES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judges.write(tmp_path_factory.mktemp("unified") / "good", judges.SCORES)


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a judge some of whose answers cannot be read."""
    return judges.write(tmp_path_factory.mktemp("unified") / "bad", judges.BAD_SCORES)


@pytest.fixture
def judge(folder: Path) -> UnifiedReward:
    return ir.load(folder, "cpu", "float32")  # type: ignore[return-value]


@pytest.fixture
def bad(bad_folder: Path) -> UnifiedReward:
    return ir.load(bad_folder, "cpu", "float32")  # type: ignore[return-value]


def refused(judge: UnifiedReward, prompt: str = "a cat") -> list[bool]:
    """Of each of the images, whether the answer cannot be read; some can and some cannot."""
    rows = []
    for answer in judge.answers(prompt, images()):
        try:
            Scores.of(answer)
            rows.append(False)
        except AnswerError:
            rows.append(True)
    assert 0 < sum(rows) < len(rows)
    return rows


# --- what is asked, and how it is read ---


def test_the_question_is_the_originals_byte_for_byte(judge: UnifiedReward) -> None:
    """The digest is of the text in the original's program, evaluated, with the prompt "{prompt}"."""
    assert hashlib.sha256(POINTWISE.encode()).hexdigest() == "75d52d3ae771f89b682db3b74cdaca1c7bde373a39162bc1c9dabd63cdc9b851"
    assert judge.prepare.template.of("a cat") == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        + POINTWISE.replace("{prompt}", "a cat")
        + "<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("space", ["", "\n", "  \n\n"])
def test_an_answer_of_three_scores(space: str) -> None:
    """The first is the example in the original's program."""
    text = "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 2.371500015258789\nStyle Score (1-5): 2.802500009536743"
    scores = Scores.of(space + text + space)
    assert scores == (2.694700002670288, 2.371500015258789, 2.802500009536743)
    assert scores.mean == pytest.approx(2.6229, abs=1e-4)
    assert Scores.of("Alignment Score (1-5): 1\nCoherence Score (1-5): 5\nStyle Score (1-5): 5.0").mean == pytest.approx(11 / 3)


GOOD = "Alignment Score (1-5): 3\nCoherence Score (1-5): 4\nStyle Score (1-5): 2"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "3",
        GOOD.rpartition("\n")[0],
        f"{GOOD}\nStyle Score (1-5): 2",
        f"{GOOD} out of 5",
        f"Here you are:\n{GOOD}",
        f"{GOOD}\n\nI hope this helps.",
        GOOD.replace("3", "0.99"),
        GOOD.replace(": 4", ": 5.01"),
        GOOD.replace(": 4", ": 40"),
        GOOD.replace(": 4", ": nan"),
        GOOD.replace(": 4", ": 4e0"),
        GOOD.replace(": 4", ": -4"),
        GOOD.replace(": 4", ": 4."),
        GOOD.replace(": 4", ": ٤"),
        GOOD.replace(": 4", ":4"),
        GOOD.replace(": 4", ": X"),
        GOOD.replace("\n", "\n\n"),
        GOOD.replace("Coherence", "Alignment"),
        GOOD.lower(),
        "\n".join(reversed(GOOD.split("\n"))),
        GOOD.replace("(1-5)", "(0-5)"),
        GOOD.replace(": 3", ": 3" + "0" * 40),
    ],
)
def test_an_answer_of_any_other_form_is_an_error(answer: str) -> None:
    with pytest.raises(AnswerError, match="does not state three scores from 1 to 5; try") as raised:
        Scores.of(answer)
    assert repr(answer)[:300] in str(raised.value)


def test_the_reward_is_the_mean_of_the_scores(judge: UnifiedReward) -> None:
    answers = judge.answers(PROMPTS, images())
    scores = judge.judge(PROMPTS, images())
    assert scores == [Scores.of(answer) for answer in answers]
    assert len(set(scores)) > 1
    assert judge.score(PROMPTS, images()) == pytest.approx([score.mean for score in scores])
    ranking = judge.rank("a cat", images())
    assert ranking.rewards == pytest.approx([score.mean for score in judge.judge("a cat", images())])
    with pytest.raises(InputError, match="writes its judgement as text, through which no gradient passes"):
        judge.rewards("a cat", torch.rand(1, 3, 64, 64))


# --- answers that cannot be read ---


def test_an_answer_that_was_cut_off_is_none_wherever_it_was(folder: Path) -> None:
    """ "Style Score (1-5): 2" might have become 2.75."""
    judge: Any = ir.load(folder, "cpu", "float32")
    question = ("a cat", images()[0])
    reward, whole = judge.score(*question), judge.answers("a cat", images()[:1])[0]
    num_refused = 0
    for most_tokens in range(1, 40):
        judge.decoding = replace(judge.decoding, most_tokens=most_tokens)
        try:
            assert judge.score(*question) == reward
        except AnswerError:
            num_refused += 1
            written = judge.answers("a cat", images()[:1])[0]
            assert written.endswith(" […]")
            assert whole.startswith(written.removesuffix(" […]"))
        else:
            assert judge.answers("a cat", images()[:1]) == [whole]
    assert 0 < num_refused < 39


def test_a_judge_compares_two_images(judge: UnifiedReward) -> None:
    one, two, three, *_ = images()
    for wrong in ((one,), (one, two, three)):
        with pytest.raises(ValueError, match=f"a judge compares pairs of images, not {len(wrong)}"):
            judge.verdicts("a cat", [wrong])  # type: ignore[list-item]


def test_score_names_the_image_and_quotes_the_answer(
    bad: UnifiedReward, bad_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = refused(bad)
    paths = []
    for number, image in enumerate(images()):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    answers = bad.answers("a cat", paths)
    first = rows.index(True)
    for ask in (bad.score, bad.rank, bad.judge, lambda prompt, paths: score_together([bad], [prompt] * 4, paths)):
        with pytest.raises(AnswerError) as raised:
            ask("a cat", paths)
        assert str(raised.value).startswith(f"{paths[first]}: the answer {answers[first]!r:.300} does not state three scores")
    good = [path for path, is_refused in zip(paths, rows, strict=True) if not is_refused]
    assert len(bad.score("a cat", good)) == len(good)
    with pytest.raises(RefusedRowsError) as refusal:
        bad(bad.prepare(["a cat"] * 4, paths))
    assert refusal.value.rewards[0].isnan().tolist() == rows
    assert main(["score", "a cat", *paths, "--model", str(bad_folder), "--dtype", "float32", "--device", "cpu"]) == 1
    shown = capsys.readouterr()
    assert f"image-reward: {paths[first]}: the answer " in shown.err
    assert "defect" not in shown.err


def test_in_a_job_it_is_an_error_of_its_row(
    bad: UnifiedReward, bad_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = refused(bad)
    answers = bad.answers("a cat", images())
    for number, image in enumerate(images()):
        image.save(tmp_path / f"{number}.png")
    lines = [f"a cat,{number}.png\n" for number in range(4)] + ["a <|im_end|> cat,0.png\n", "a cat,none.png\n", "a cat,0.png\n"]
    (tmp_path / "rows.csv").write_text("prompt,image\n" + "".join(lines))
    # Beside another scorer, whose rewards are not lost.
    asked = ["score-files", str(tmp_path / "rows.csv"), str(tmp_path / "out"), "--model", str(bad_folder), "--model", "ImageReward-mini"]
    assert main([*asked, "--dtype", "float32", "--device", "cpu", "--workers", "0", "--format", "jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_errors"] == sum(rows) + 2 + rows[0]
    scored = [json.loads(line) for line in (tmp_path / "out" / "rewards.jsonl").read_text().splitlines()]
    for row, answer, is_refused in zip([*scored[:4], scored[6]], [*answers, answers[0]], [*rows, rows[0]], strict=True):
        if is_refused:
            assert row["error"].startswith(f"AnswerError: the answer {answer!r:.300} does not state three scores")
            assert row["reward:bad"] is None
        else:
            assert row["error"] is None
            assert row["reward:bad"] == pytest.approx(Scores.of(answer).mean)
        assert row["reward:ImageReward-mini"] is not None
    assert scored[4]["error"].startswith("PromptError")
    assert scored[5]["error"].startswith("FileNotFoundError")


def test_in_an_ensemble_it_has_no_reward_either(bad: UnifiedReward) -> None:
    mini: Any = ir.load("ImageReward-mini", "cpu")
    reference = ir.scorers.Reference(3.0, 1.0, 10, "made up")
    ensemble = ir.scorers.Ensemble({"bad": bad, "mini": mini}, references={"bad": reference, "mini": reference})
    rows = refused(bad)
    with pytest.raises(AnswerError, match=r"the answer .* does not state three scores"):
        ensemble.score("a cat", images())
    good = [image for image, is_refused in zip(images(), rows, strict=True) if not is_refused]
    assert len(ensemble.score("a cat", good)) == len(good)


# --- every way to ask ---


def test_rewards_do_not_depend_on_how_they_are_asked(judge: UnifiedReward, folder: Path) -> None:
    expected = judge.score(PROMPTS, images())
    judge.batch_size = 3
    assert judge.score(PROMPTS, images()) == expected
    assert [judge.score(prompt, image) for prompt, image in zip(PROMPTS, images(), strict=True)] == expected
    assert judge.matrix(["a cat"], images())[0].tolist() == judge.score("a cat", images())
    sizes = []

    def forward(_: Any, __: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    judge.network.model.register_forward_pre_hook(forward, with_kwargs=True)
    assert judge.score(PROMPTS, images()) == expected
    spread: Any = ir.load(folder, "auto", "float32")
    assert spread.is_spread
    assert spread.score(PROMPTS, images()) == expected
    assert not spread.batch_size_by_trial


def test_beside_other_scorers_and_in_commands(
    judge: UnifiedReward, folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_ensemble(judge, PROMPTS, images(), 3.0)
    check_saved_ensemble(folder, "good", images(), tmp_path)
    paths = [str(image_folder / f"{letter}.png") for letter in "abc"]
    rewards = judge.score("a cat", paths)
    options = ["--dtype", "float32"]
    check_commands(folder, paths, rewards, tmp_path, capsys, options=options, refused="<|im_end|>", largest_difference=5, is_text=True)


# --- loading ---


def test_tied_embeddings_and_weights_in_parts(tmp_path: Path) -> None:
    """The smaller Qwen3-VLs have no language head of their own."""
    tied: Any = ir.load(judges.write(tmp_path / "tied", tie_word_embeddings=True), "cpu")
    assert tied.network.lm_head.weight is tied.network.model.language_model.embed_tokens.weight
    assert {weight.dtype for weight in tied.parameters()} == {torch.bfloat16}
    assert (tied.name, tied.batch_size) == ("tied", 8)


def test_files_that_do_not_belong_together(folder: Path, tmp_path: Path) -> None:
    without = qwen.tokenizer(judges.MERGES, [token for token in qwen.SPECIAL_TOKENS if token != "<|vision_start|>"]).to_str()
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"config": {"model_type": "llava_onevision"}},
            "is of model_type 'llava_onevision', and UnifiedReward 2.0 is a qwen2_5_vl or qwen3_vl",
        ),
        ({"tokenizer": without}, r"has no special token <\|vision_start\|>"),
        ({"tokenizer": None}, "lacks tokenizer.json"),
        ({"generation_config": '{"eos_token_id": "end"}'}, "eos_token_id must be a token, or a list of them, not 'end'"),
        ({"generation_config": '{"eos_token_id": [99999]}'}, "eos_token_id must be a token"),
        ({"preprocessor_config": '{"size": 5}'}, "size must be an object with shortest_edge and longest_edge, not 5"),
        ({"preprocessor_config": '{"max_pixels": "many"}'}, "max_pixels must be a number of pixels, not 'many'"),
        ({"preprocessor_config": '{"min_pixels": 5000, "max_pixels": 4000}'}, "would have at least 5,000 pixels and at most 4,000"),
    ]
    for number, (change, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message):
            ir.load(qwen.changed(folder, tmp_path / str(number), **change), "cpu")
    older = qwen.changed(folder, tmp_path / "older", preprocessor_config='{"min_pixels": 4096, "max_pixels": 16384, "size": null}')
    (older / "generation_config.json").unlink()
    judge: Any = unified_reward_from_files(ChatFiles.in_folder(older))
    own: Any = ir.load(folder, "cpu")
    assert judge.prepare.patches == own.prepare.patches
    assert judge.decoding == own.decoding
    (older / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"max_position_embeddings is 16,384, and images and answer alone may have 33,280"):
        ir.load(
            qwen.changed(
                older,
                tmp_path / "short",
                {"text_config": json.loads((older / "config.json").read_text())["text_config"] | {"max_position_embeddings": 16384}},
            ),
            "cpu",
        )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with hubs.serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield served


def test_by_name_and_by_hub_id(hub: hubs.Hub, folder: Path, judge: UnifiedReward) -> None:
    """The published config.json does not say that it is a judge's."""
    config = {name: value for name, value in json.loads((folder / "config.json").read_text()).items() if name != "format"}
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    content |= {"config.json": json.dumps(config).encode(), "tokenizer_config.json": b"{}"}
    repo = "CodeGoat24/UnifiedReward-2.0-qwen3vl-2b"
    hub.files = {f"{repo}/{name}": data for name, data in content.items()}
    for model in ("UnifiedReward-2.0-Qwen3-VL-2B", repo):
        loaded = ir.load(model, "cpu", "float32")
        assert isinstance(loaded, UnifiedReward)
        assert loaded.score(PROMPTS, images()) == judge.score(PROMPTS, images())
    for status, words in ((401, "401"), (403, "hf auth login"), (404, "By hand: fetch ")):
        hub.status = status
        with pytest.raises(DownloadError, match=words):
            ir.load("UnifiedReward-2.0-Qwen3-VL-4B", "cpu")


@pytest.mark.parametrize("repo", ["CodeGoat24/UnifiedReward-qwen-7b", "CodeGoat24/UnifiedReward-2.0-Think-qwen3vl-8b"])
def test_judges_that_are_asked_in_another_form_are_refused_before_they_are_downloaded(hub: hubs.Hub, repo: str) -> None:
    """Their configs say Qwen, and VQAScore would give rewards that mean nothing."""
    with pytest.raises(UnknownModelError, match=f"{repo} is a UnifiedReward that is asked, and answers, in another form than those which"):
        ir.load(repo, "cpu")
    assert not hub.requests


SIZES = {  # of the base models: hidden, intermediate, layers, heads, groups; of the image tower: hidden, intermediate, depth; tied
    "2B": (2048, 6144, 28, 16, 8, 1024, 4096, 24, True),
    "4B": (2560, 9728, 36, 32, 8, 1024, 4096, 24, True),
    "8B": (4096, 12288, 36, 32, 8, 1152, 4304, 27, False),
    "32B": (5120, 25600, 64, 64, 8, 1152, 4304, 27, False),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_full_size_layouts(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the published checkpoints, without storage."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    hidden, intermediate, layers, heads, groups, image_hidden, image_intermediate, depth, tied = SIZES[size]
    text = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads}
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    text |= {"num_key_value_heads": groups, "head_dim": 128, "vocab_size": 151_936, "rope_scaling": rope}
    vision = {"hidden_size": image_hidden, "intermediate_size": image_intermediate, "depth": depth, "num_heads": 16, "patch_size": 16}
    vision |= {"out_hidden_size": hidden, "deepstack_visual_indexes": [1, 2, 3], "num_position_embeddings": 2304, "spatial_merge_size": 2}
    config: Any = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    network: Any = empty_network(lambda: Qwen3VLForConditionalGeneration(config))
    spec = MODELS[f"UnifiedReward-2.0-Qwen3-VL-{size}"]
    num_weights = sum(math.prod(tensor.shape) for name, tensor in network.state_dict().items() if not (tied and name == "lm_head.weight"))
    assert spec.least_size == 2 * num_weights
    assert spec.files["tokenizer"].repo == f"CodeGoat24/UnifiedReward-2.0-qwen3vl-{size.lower()}"  # type: ignore[union-attr]
    assert main(["models", "info", f"UnifiedReward-2.0-Qwen3-VL-{size}"]) == 0
    shown = capsys.readouterr().out
    assert "MIT" in shown
    assert "1 to 5" in shown


# --- bad input ---


def test_unusable_prompts_and_images(judge: UnifiedReward) -> None:
    for marker in ("<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>"):
        with pytest.raises(PromptError, match=r"contains <.*remove it from the prompt"):
            judge.score(f"a cat {marker}", images()[0])
        with pytest.raises(PromptError, match="contains <"):
            judge.answers(f"a cat {marker}", images()[:1])
    with pytest.raises(ImageReadError, match="a strip of more than 200 to 1"):
        judge.score("a cat", Image.new("RGB", (4020, 20)))
    with pytest.raises(PromptError, match=r"makes a text of .* tokens"):
        judge.score("word " * 40_000, images()[0])


# --- pairs ---


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judges.write(tmp_path_factory.mktemp("unified") / "pairs", judges.SHARES)


def test_the_question_about_two_images_is_the_originals_byte_for_byte(judge: UnifiedReward) -> None:
    assert hashlib.sha256(PAIRWISE.encode()).hexdigest() == "828e9ab2f81c3b6d42fb68dd5b8ea1b7647063c4b5d79a98d003ff25de5c5ca8"
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert judge.prepare_pairs.template.text == f"<|im_start|>user\n{image}{image}{PAIRWISE}<|im_end|>\n<|im_start|>assistant\n"
    a, b = images()[:2]
    batch = judge.prepare_pairs(["a cat"] * 3, [(a, b), (b, a), (a, a)])
    assert (batch.images, len(batch.pixels)) == (((0, 1), (1, 0), (0, 0)), 2)


EVEN = "\n\n".join(f"{part} Score:\n Image 1: 0.5\n Image 2: 0.5" for part in ("Alignment", "Coherence", "Style"))


def test_what_an_answer_says_of_two_images() -> None:
    """The first is the example in the original's program."""
    first = [("0.435699999332428", "0.564300000667572"), ("0.4180000126361847", "0.5820000171661377")]
    first.append(("0.40790000557899475", "0.5921000242233276"))
    parts = zip(("Alignment", "Coherence", "Style"), first, strict=True)
    verdict = verdict_of("\n\n".join(f"{part} Score:\n Image 1: {one}\n Image 2: {other}" for part, (one, other) in parts) + "\n")
    assert verdict.share == pytest.approx(0.42053, abs=1e-5)
    assert verdict.label == "B>A"
    assert verdict_of(EVEN).label == "A=B"
    # Which is better in some parts and worse in others by as much, is neither.
    even = EVEN.replace("1: 0.5\n Image 2: 0.5", "1: 0.7\n Image 2: 0.3", 1)
    assert verdict_of("0.3\n Image 2: 0.7".join(even.rsplit("0.5\n Image 2: 0.5", 1))).label == "A=B"
    assert verdict_of(EVEN.replace("1: 0.5\n Image 2: 0.5", "1: 0.502\n Image 2: 0.498")).label == "A>B"
    for other in ("0.49", "0.51"):  # in binary they miss 1 by a little more than 0.01
        assert verdict_of(EVEN.replace("1: 0.5\n Image 2: 0.5", f"1: 0.5\n Image 2: {other}")).label == ("A>B" if other < "0.5" else "B>A")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Image 1 is better.",
        f"{EVEN}\n\nImage 1 is better.",
        EVEN.rpartition("\n")[0],
        EVEN.rpartition("\n\n")[0],
        EVEN.replace("1: 0.5", "1: 0.6"),
        EVEN.replace("0.5", "5"),
        EVEN.replace("1: 0.5\n Image 2: 0.5", "1: -0.5\n Image 2: 1.5"),
        EVEN.replace("1: 0.5\n Image 2: 0.5", "1: 1.005\n Image 2: 0"),
        EVEN.replace("Image 2", "Image 3"),
        EVEN.replace("\n\n", "\n"),
        EVEN.replace("Style", "Alignment"),
        GOOD,
    ],
)
def test_other_answers_say_nothing_of_two_images(answer: str) -> None:
    with pytest.raises(AnswerError, match="does not divide 1 between two images in each of three parts"):
        verdict_of(answer)


def test_compare_asks_in_both_orders(pair_folder: Path) -> None:
    judge: Any = ir.load(pair_folder, "cpu", "float32")
    shares = set()
    for a, b in ((0, 1), (0, 2), (1, 3)):
        one, other = images()[a], images()[b]
        verdicts = judge.verdicts("a cat", [(one, other), (other, one)])
        preference = judge.compare("a cat", one, other)
        assert preference.a_better == pytest.approx((verdicts[0].share + 1 - verdicts[1].share) / 2)
        assert judge.compare("a cat", other, one).a_better == pytest.approx(preference.b_better)
        assert (preference.tie, preference.images) == (0.0, (one, other))
        shares.add(preference.a_better)
    assert len(shares) > 1
    batch = judge.prepare_pairs(["a cat"], [(images()[0], images()[1])])
    inputs = judge.chat_inputs(batch)
    whole = judge.network.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=list(judge.decoding.ends), pad_token_id=0)
    text = judge.prepare.template.tokenizer.decode(whole[0, inputs["input_ids"].shape[1] :].tolist())
    assert judge.written(batch) == [text]
    with pytest.raises(AnswerError, match=r"^<PIL image RGB 401x300>: the answer"):
        judge.score("a cat", images()[0])  # this one divides 1 between images
    with pytest.raises(PromptError, match="contains <"):
        judge.compare("<|im_end|>", images()[0], images()[1])
