from __future__ import annotations

import html
import json
import pickle
import socket
import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seeded
import shared
from image_reward.errors import CheckpointError, LongPromptWarning, PromptError
from image_reward.images import ImageTransform
from image_reward.prompts import (
    SPECIAL_TOKENS,
    ClipTokenizer,
    PromptTokenizer,
    UnreadPrompts,
    bert_tokenizer,
    check_prompts,
    transformers_tokenizer,
    vocabulary_of,
)
from image_reward.scorers import TwoTowerProcessor
from upstream import Original

SPECIAL = [
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "[MASK]",
    "[UNK]",
    "[DEC]",
    "[ENC]",
    "[dec]",
    "##ing",
    "\u0130",
    "ﬁ",
    "e\u0301",
    "猫",
    "\u200d",
    "a" * 120,
]
TEXT = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(SPECIAL)), max_size=8).map(" ".join)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the tokenizer asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def in_transformers() -> Any:
    return transformers_tokenizer()


@pytest.fixture(scope="module")
def in_python(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """BERT's tokenizer in pure Python, which the original uses: an independent implementation."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    vocabulary = tmp_path_factory.mktemp("bert") / "vocab.txt"
    words = sorted((index, word) for word, index in bert_tokenizer().get_vocab().items() if index < 30522)
    vocabulary.write_text("".join(f"{word}\n" for _, word in words), encoding="utf-8")
    tokenizer = BertTokenizerLegacy(str(vocabulary), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def ids_of(*prompts: str, **options: Any) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LongPromptWarning)
        tokens = PromptTokenizer(**options)(prompts)
    return [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)]


def test_ids_are_the_originals(original: Original) -> None:
    assert ids_of(*original.prompts) == original.token_ids


def test_padding_to_the_longest() -> None:
    tokens = PromptTokenizer()(["a red cat", "", "cat"])
    assert tokens.ids.tolist() == [[101, 1037, 2417, 4937, 102], [101, 102, 0, 0, 0], [101, 4937, 102, 0, 0]]
    assert tokens.mask.tolist() == [[True] * 5, [True] * 2 + [False] * 3, [True] * 3 + [False] * 2]
    assert (tokens.ids.dtype, tokens.mask.dtype) == (torch.int64, torch.bool)
    assert PromptTokenizer()([]).ids.shape[0] == 0


@given(st.lists(TEXT, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_what_transformers_gives(in_transformers: Any, prompts: list[str]) -> None:
    found = ids_of(*prompts)
    assert found == in_transformers(prompts, truncation=True, max_length=35)["input_ids"]
    for row, prompt in zip(found, prompts, strict=True):
        assert (row[0], row[-1]) == (101, 102)
        assert 2 <= len(row) <= 35
        assert ids_of(prompt) == [row]  # whatever it is padded with


# The two differ where Python's and Rust's tables of characters do, in recent additions to Unicode: these blocks are old.
OLD = st.one_of(
    *(
        st.characters(min_codepoint=low, max_codepoint=high, categories=["L", "M", "N", "P", "S", "Z"])
        for low, high in [
            (0x20, 0x24F),
            (0x300, 0x36F),
            (0x3A3, 0x4FF),
            (0x5D0, 0x5EA),
            (0x2010, 0x2027),
            (0x3041, 0x3096),
            (0x4E00, 0x9FA5),
            (0xAC00, 0xD7A3),
            (0x1F600, 0x1F64F),
        ]
    )
)
ASSIGNED = st.text(OLD, max_size=20)


@given(st.lists(st.one_of(ASSIGNED, st.sampled_from(SPECIAL)), max_size=8).map(" ".join))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_what_the_originals_kind_of_tokenizer_gives(in_python: Any, prompt: str) -> None:
    assert ids_of(prompt)[0] == in_python(prompt, truncation=True, max_length=35)["input_ids"]


def test_special_tokens_have_the_originals_ids() -> None:
    assert ids_of("[DEC] cat [ENC] [PAD]") == [[101, 30522, 4937, 30523, 0, 102]]


@pytest.mark.parametrize("max_length", [35, 75, 512])
def test_transformers_tokenizer_is_the_same(in_transformers: Any, max_length: int) -> None:
    options = {"padding": "max_length", "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    found = in_transformers(seeded.PROMPTS, **options)
    assert found.input_ids.shape == (len(seeded.PROMPTS), max_length)
    assert [row[mask.bool()].tolist() for row, mask in zip(found.input_ids, found.attention_mask, strict=True)] == ids_of(
        *seeded.PROMPTS, max_tokens=max_length
    )
    assert (found.input_ids[~found.attention_mask.bool()] == 0).all()


def test_transformers_tokenizer_has_blips_names() -> None:
    tokenizer = transformers_tokenizer()
    assert (tokenizer.enc_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (30523, 30522, 0)
    assert len(tokenizer) == 30524
    tokenizer.add_tokens(["zürich"])
    assert ids_of("zürich") == ids_of("zurich")  # what a program does to its own copy stays there


@pytest.mark.parametrize("prompt", [7, None, b"cat", ["cat"], ("cat",), 1.5])
def test_a_prompt_is_text(prompt: Any) -> None:
    with pytest.raises(PromptError, match=f"a prompt is a string, not {type(prompt).__name__}: "):
        PromptTokenizer()(["cat", prompt])


@pytest.mark.parametrize("prompts", ["cat", b"cat"])
def test_a_string_is_no_list_of_prompts(prompts: Any) -> None:
    """Its characters would each be scored as a prompt."""
    for ask in (PromptTokenizer(), check_prompts):
        with pytest.raises(PromptError, match=r"prompts are a list of strings; write \[b?'cat'\] for one"):
            ask(prompts)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(PromptError, match=r"'cat \\ud83d' contains half of a surrogate pair"):
        PromptTokenizer()(["cat \ud83d"])


def test_one_warning_says_what_was_cut() -> None:
    with pytest.warns(LongPromptWarning) as found:
        PromptTokenizer()(["cat", seeded.LONG_PROMPT, seeded.LONG_PROMPT, "word " * 40])
    assert [str(w.message) for w in found] == [
        'the last 26 of 61 tokens of the prompt "portrait of a beautiful thick muscular fitness model wearing"… are not read: '
        "the model reads 35 (2 prompts are cut)"
    ]
    with pytest.warns(LongPromptWarning, match=r'the last 1 of 36 tokens of the prompt "word.*"… are not read: the model reads 35$'):
        PromptTokenizer()(["word " * 34])
    PromptTokenizer()(["word " * 33])  # exactly 35: no warning, which would be an error here


def test_long_prompts_can_be_errors() -> None:
    tokenizer = PromptTokenizer(long_prompts="error")
    assert tokenizer(["word " * 33]).ids.shape == (1, 35)
    with pytest.raises(PromptError, match=r'the last 26 of 61 .* shorten it, or allow this with long_prompts="truncate"'):
        tokenizer(["cat", seeded.LONG_PROMPT])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_prompts": "cut"}, r"long_prompts must be one of \('truncate', 'error'\), not 'cut'"),
        ({"max_tokens": 2}, r"max_tokens counts \[CLS\] and \[SEP\] and must be at least 3, not 2"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTokenizer(**options)


def test_loaders_can_carry_it(image_folder: Any) -> None:
    preparation = TwoTowerProcessor(ImageTransform(64), PromptTokenizer(long_prompts="error"))
    pickled = pickle.dumps(preparation)
    assert len(pickled) < 1500
    again, batch = pickle.loads(pickled), preparation(["cat"], [image_folder / "a.png"])
    assert torch.equal(again(["cat"], [image_folder / "a.png"]).pixels, batch.pixels)
    assert torch.equal(again.tokenizer(["cat"]).ids, batch.ids)
    assert again.tokenizer.long_prompts == "error"


def test_a_vocabulary_of_its_own() -> None:
    vocabulary = vocabulary_of(["a red circle", "a blue circle"])
    assert vocabulary == (*SPECIAL_TOKENS, "a", "blue", "circle", "red")
    tokens = PromptTokenizer(vocabulary=vocabulary)(["a RED circle", "a red elephant on [MASK] circle"])
    assert tokens.ids.tolist() == [[2, 5, 8, 7, 3, 0, 0, 0], [2, 5, 8, 1, 1, 4, 7, 3]]
    assert PromptTokenizer(vocabulary=vocabulary).token_id("[MASK]") == 4
    assert PromptTokenizer().token_id("[MASK]") == 103


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (("a", "b"), "is \\[PAD\\], \\[UNK\\]"),
        ((*SPECIAL_TOKENS, "red", "red"), "each once"),
        ((*SPECIAL_TOKENS, "qqzz"), "'qqzz' is not one"),
    ],
)
def test_a_vocabulary_that_makes_no_sense(vocabulary: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTokenizer(vocabulary=vocabulary)


# --- CLIP's ----------------------------------------------------------------------------------------------------------------------------

FEW_MERGES = ["c a", "ca t</w>", "t h", "th e</w>", "d o", "do g</w>", "' s</w>", "! !", "i n", "in g</w>", "Ã ©</w>"]
CLIP_TEXT = st.lists(
    st.one_of(
        ASSIGNED, st.sampled_from(["the cat's", "I\u2019ll", "&amp;amp;", "CAFÉ", "cafe\u0301", "ﬁ", "!!", "\t\n", "x²3", "<|endoftext|>"])
    ),
    max_size=6,
).map(" ".join)


@pytest.fixture(scope="module", params=["few", "openai"])
def clip_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json and merges.txt: of a few merges, and of OpenAI's where they are at hand."""
    merges = FEW_MERGES if request.param == "few" else shared.openai_merges()
    return seeded.clip_tokenizer_files(tmp_path_factory.mktemp("clip"), merges)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return seeded.clip_tokenizer_files(tmp_path, FEW_MERGES)


def plain_ids(tokenizer: ClipTokenizer, prompt: str) -> list[int]:
    tokens = tokenizer([prompt])
    return tokens.ids[tokens.mask].tolist()


class Plainly:
    """OpenAI's tokenizer written anew, as simply as it can be: the first applicable merge of all, until there is none."""

    def __init__(self, folder: Path) -> None:
        self.vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
        self.ranks = {tuple(merge.split()): rank for rank, merge in enumerate(merges)}
        self.letters = list(self.vocabulary)[:256]
        self.bytes = [*range(33, 127), *range(161, 173), *range(174, 256)]
        self.bytes += [byte for byte in range(256) if byte not in self.bytes]

    def __call__(self, text: str) -> list[int]:
        import ftfy
        import regex

        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        ids = [self.vocabulary["<|startoftext|>"]]
        for word in regex.findall(words, text):
            if word in ("<|startoftext|>", "<|endoftext|>"):
                ids.append(self.vocabulary[word])
                continue
            parts = [self.letters[self.bytes.index(byte)] for byte in word.encode()]
            parts[-1] += "</w>"
            while pairs := [pair for pair in pairwise(parts) if pair in self.ranks]:
                first = min(pairs, key=self.ranks.__getitem__)
                merged: list[str] = []
                for part in parts:
                    if merged and (merged[-1], part) == first:
                        merged[-1] += part
                    else:
                        merged.append(part)
                parts = merged
            ids += [self.vocabulary[part] for part in parts]
        return [*ids, self.vocabulary["<|endoftext|>"]]


@given(prompt=CLIP_TEXT)
@settings(max_examples=150, deadline=None)
def test_any_text_gives_what_openais_algorithm_gives(clip_folder: Path, prompt: str) -> None:
    found = plain_ids(clip_tokenizer(clip_folder, "openai"), prompt)
    assert found == plainly(clip_folder)(prompt)
    assert (found[0], found[-1]) == (49406, 49407)


@given(prompt=CLIP_TEXT)
@settings(max_examples=100, deadline=None)
def test_any_text_gives_what_transformers_clip_tokenizer_gives(clip_folder: Path, prompt: str) -> None:
    assert plain_ids(clip_tokenizer(clip_folder, "transformers"), prompt) == in_transformers_clip(clip_folder)(prompt)["input_ids"]


@cache  # hypothesis asks a hundred times
def clip_tokenizer(folder: Path, convention: Any) -> ClipTokenizer:
    return ClipTokenizer.from_folder(folder, max_tokens=10_000, convention=convention)


@cache
def plainly(folder: Path) -> Plainly:
    return Plainly(folder)


@cache
def in_transformers_clip(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]]
    return CLIPTokenizer(vocab=json.loads((folder / "vocab.json").read_text(encoding="utf-8")), merges=merges)


def test_the_two_conventions_clean_differently(few: Path) -> None:
    openai, transformers = (ClipTokenizer.from_folder(few, convention=convention) for convention in ("openai", "transformers"))
    for tokenizer in (openai, transformers):
        assert plain_ids(tokenizer, "  The\n CAT ") == plain_ids(tokenizer, "the cat")
        assert plain_ids(tokenizer, "cafe\u0301") == plain_ids(tokenizer, "café")
    assert plain_ids(openai, "cat\u2019s &amp;lt; \u201ccat\u201d cafÃ©") == plain_ids(openai, 'cat\'s < "cat" café')
    assert plain_ids(transformers, "cat\u2019s") != plain_ids(transformers, "cat's")
    assert plain_ids(transformers, "&amp;") != plain_ids(transformers, "&")
    assert openai != transformers


def test_cutting_keeps_the_end_token(few: Path) -> None:
    tokenizer = ClipTokenizer.from_folder(few)
    assert tokenizer(["cat " * 75]).ids.shape == (1, 77)  # exactly: no warning, which would be an error here
    with pytest.warns(
        LongPromptWarning, match=r'the last 1 of 78 tokens of the prompt "cat.*"… are not read: the model reads 77$'
    ) as found:
        tokens = tokenizer(["cat", "cat " * 76])
    assert found[0].filename == __file__
    assert tokens.ids[1].tolist() == [49406, *[plain_ids(tokenizer, "cat")[1]] * 75, 49407]
    assert tokens.mask.sum(dim=1).tolist() == [3, 77]
    with pytest.raises(PromptError, match=r"the last 1 of 78 .* shorten it"):
        ClipTokenizer.from_folder(few, long_prompts="error")(["cat " * 76])
    assert ClipTokenizer.from_folder(few, max_tokens=3)(["cat"]).ids.shape == (1, 3)


def test_a_clip_tokenizer_travels_and_compares(few: Path) -> None:
    tokenizer = ClipTokenizer.from_folder(few, convention="openai")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    assert torch.equal(again(["the cat"]).ids, tokenizer(["the cat"]).ids)
    assert tokenizer != ClipTokenizer.from_folder(few, max_tokens=76, convention="openai")
    assert len(repr(tokenizer)) < 200
    assert (tokenizer.token_id("<|startoftext|>"), tokenizer.vocab_size) == (49406, 49408)
    other = ClipTokenizer.from_folder(seeded.clip_tokenizer_files(few, FEW_MERGES[:2]), convention="openai")
    assert other != tokenizer
    assert plain_ids(other, "dog") != plain_ids(tokenizer, "dog")


def test_a_tokenizer_json_goes_before_the_other_files(few: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What it says of padding and cutting is not done: both are this class's work."""
    from tokenizers import Tokenizer

    tokenizer = ClipTokenizer.from_folder(few)
    saved = Tokenizer.from_str(tokenizer.definition)
    saved.enable_padding(length=9)
    saved.enable_truncation(3)
    folder = tmp_path_factory.mktemp("json")
    saved.save(str(folder / "tokenizer.json"))
    assert ClipTokenizer.from_folder(folder) == tokenizer
    assert plain_ids(ClipTokenizer.from_folder(folder), "the cat dog") == plain_ids(tokenizer, "the cat dog")


def test_what_is_no_clip_tokenizer(few: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match=r"convention must be one of \('openai', 'transformers'\), not 'open'"):
        ClipTokenizer.from_folder(few, convention="open")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"max_tokens counts <\|startoftext\|> and <\|endoftext\|> and must be at least 3, not 2"):
        ClipTokenizer.from_folder(few, max_tokens=2)
    with pytest.raises(CheckpointError, match=r"has no tokenizer: it lacks tokenizer\.json, and vocab\.json with merges\.txt"):
        ClipTokenizer.from_folder(few / "missing")
    (few / "merges.txt").write_text("#version: 0.2\nq q q\n")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be read: .*; download it again"):
        ClipTokenizer.from_folder(few)
    folder = tmp_path_factory.mktemp("bert")
    bert_tokenizer().save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"is not CLIP's: it has no token <\|startoftext\|>"):
        ClipTokenizer.from_folder(folder)


def test_prompts_that_are_not_read_are_still_checked() -> None:
    tokens = UnreadPrompts()(["cat", "word " * 500, ""])
    assert (tokens.ids.tolist(), tokens.mask.tolist()) == ([[0]] * 3, [[True]] * 3)
    assert UnreadPrompts()([]).ids.shape == (0, 1)
    with pytest.raises(PromptError, match="a prompt is a string, not int"):
        UnreadPrompts()([3])  # type: ignore[list-item]
    assert UnreadPrompts() == UnreadPrompts()


def test_a_text_that_is_too_long_for_a_prompt_is_refused_before_it_is_read(scorer: Any) -> None:
    with pytest.raises(PromptError, match=r"the prompt 'cat cat .*… has 800,000 characters; at most 200,000"):
        scorer.score("cat " * 200_000, seeded.images()[0])
