from __future__ import annotations

import pickle
import socket
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seeded
from image_reward.errors import LongPromptWarning, PromptError
from image_reward.images import ImageTransform
from image_reward.prompts import SPECIAL_TOKENS, PromptTokenizer, bert_tokenizer, check_prompts, transformers_tokenizer, vocabulary_of
from image_reward.scorers.base import Preparation

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


def test_ids_are_the_originals(reference: dict[str, Any]) -> None:
    assert ids_of(*seeded.PROMPTS) == reference["token_ids"]


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
    with pytest.raises(PromptError, match=r"'cat \\ud83d' holds half of a surrogate pair"):
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
    preparation = Preparation(ImageTransform(64), PromptTokenizer(long_prompts="error"))
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
        ((*SPECIAL_TOKENS, "qqzz"), "'qqzz' is none"),
    ],
)
def test_a_vocabulary_that_makes_no_sense(vocabulary: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTokenizer(vocabulary=vocabulary)
