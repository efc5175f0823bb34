"""Prompts -> token ids, without a network connection, and the treatment of prompts that are too long."""

from __future__ import annotations

import html
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from image_reward.errors import CheckpointError, InputError, LongPromptWarning, PromptError
from image_reward.types import LONGEST_PROMPT, Convention, LongPrompts, check_convention


@dataclass(frozen=True)
class Tokens:
    """Token ids of some prompts, padded to the longest of them."""

    ids: Tensor
    """[N, L], int64"""
    mask: Tensor
    """[N, L], bool: False for padding"""


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@cache
def bert_tokenizer() -> Tokenizer:
    """BLIP's tokenizer: the lower-casing WordPiece of bert-base-uncased, plus [DEC] and [ENC], from the vocabulary in this package."""
    vocabulary = files("image_reward").joinpath("assets/bert-base-uncased-vocab.txt").read_text(encoding="utf-8").split("\n")
    words = {word: index for index, word in enumerate(vocabulary) if word}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))  # as the library's own for BERT, whose copying takes twice as long
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(*((token, words[token]) for token in ("[SEP]", "[CLS]")))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, "[DEC]", "[ENC]"])
    return tokenizer


def transformers_tokenizer() -> Any:
    """The same tokenizer as a transformers object, for programs that call ``model.blip.tokenizer(..., padding="max_length")``."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bert_tokenizer().to_str()),  # a copy: transformers changes it in place
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        bos_token="[DEC]",
        additional_special_tokens=["[ENC]"],
        model_max_length=512,
    )
    tokenizer.enc_token_id = tokenizer.convert_tokens_to_ids("[ENC]")
    return tokenizer


# Python's own way to silence warnings changes the filters of the whole process, so threads would interfere. A context
# variable holds for one thread (or one asynchronous task) alone.
_COLLECTED: ContextVar[list[str] | None] = ContextVar("_COLLECTED", default=None)


@contextmanager
def long_prompt_warnings_collected() -> Iterator[list[str]]:
    """Within the block, and in this thread alone, what a ``LongPromptWarning`` would say is added to the list instead."""
    collected: list[str] = []
    token = _COLLECTED.set(collected)
    try:
        yield collected
    finally:
        _COLLECTED.reset(token)


@contextmanager
def long_prompt_warnings_suppressed() -> Iterator[None]:
    """Within the block, and in this thread alone, long prompts are cut without a warning, because they have been reported already."""
    with long_prompt_warnings_collected():
        yield


def report_long_prompts(num_tokens: Mapping[str, int], max_tokens: int, long_prompts: LongPrompts) -> None:
    """One ``LongPromptWarning`` for those prompts that have more tokens than the model reads, or with "error" a ``PromptError``."""
    num_cut = {prompt: num - max_tokens for prompt, num in num_tokens.items() if num > max_tokens}
    if not num_cut:
        return
    prompt, most = max(num_cut.items(), key=lambda item: item[1])
    message = (
        f"the last {most} of {most + max_tokens} tokens of the prompt {json.dumps(prompt[:60], ensure_ascii=False)}"
        f"{'…' if len(prompt) > 60 else ''} are not read: the model reads {max_tokens}"
    )
    if long_prompts == "error":
        raise PromptError(f'{message}; shorten it, or allow this with long_prompts="truncate"')
    others = f" ({len(num_cut)} prompts are cut)" if len(num_cut) > 1 else ""
    if (collected := _COLLECTED.get()) is not None:
        collected.append(message + others)
    else:
        warnings.warn(message + others, LongPromptWarning, stacklevel=3)


@dataclass
class BaseTokenizer(ABC):
    """Prompts -> ``Tokens``. Picklable, so that loader processes can carry it; equal ones give the same tokens.

    A prompt longer than ``max_tokens`` (counting the tokens that enclose it) loses its end, as in the original, and a
    ``LongPromptWarning`` says how many tokens were cut; with ``long_prompts="error"`` it is a ``PromptError`` instead.
    """

    max_tokens: int
    long_prompts: LongPrompts = "truncate"

    first: ClassVar[str]
    """The token that every prompt begins with."""
    last: ClassVar[str]
    """The token that every prompt ends with, also one that is cut."""

    def __post_init__(self) -> None:
        if self.long_prompts not in get_args(LongPrompts):
            raise InputError(f"long_prompts must be one of {get_args(LongPrompts)}, not {self.long_prompts!r}")
        if self.max_tokens < 3:
            raise InputError(f"max_tokens counts {self.first} and {self.last} and must be at least 3, not {self.max_tokens}")

    @abstractmethod
    def token_id(self, token: str) -> int:
        """The id of a token of the vocabulary."""

    @abstractmethod
    def words(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole prompts, without the two that enclose them."""

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        check_prompts(prompts)
        first, last = self.token_id(self.first), self.token_id(self.last)
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}  # prompts often repeat: one for many images
        distinct = list(place)
        words = self.words(distinct)
        report_long_prompts({p: len(row) + 2 for p, row in zip(distinct, words, strict=True)}, self.max_tokens, self.long_prompts)
        rows = [[first, *row[: self.max_tokens - 2], last] for row in words]
        length = max((len(row) for row in rows), default=2)
        padded = [row + [0] * (length - len(row)) for row in rows]
        ids = torch.tensor(padded, dtype=torch.int64, device="cpu").view(len(rows), length)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device="cpu")
        mask = torch.arange(length, device="cpu") < lengths[:, None]
        index = torch.tensor([place[prompt] for prompt in prompts], dtype=torch.int64, device="cpu")
        return Tokens(ids[index], mask[index])


@dataclass
class PromptTokenizer(BaseTokenizer):
    """BLIP's tokenizer, from the vocabulary in this package.

    With a ``vocabulary`` of its own, a subset of BERT's that begins with ``SPECIAL_TOKENS``, ids are places in it and all other tokens are
    [UNK].
    """

    max_tokens: int = 35
    vocabulary: tuple[str, ...] | None = None

    first = "[CLS]"
    last = "[SEP]"

    def __post_init__(self) -> None:
        if self.vocabulary is not None:
            check_vocabulary(self.vocabulary)
        super().__post_init__()

    def token_id(self, token: str) -> int:
        number = bert_tokenizer().token_to_id(token) if self.vocabulary is None else self.vocabulary.index(token)
        assert number is not None, token
        return number

    def words(self, prompts: Sequence[str]) -> list[list[int]]:
        encodings = bert_tokenizer().encode_batch(list(prompts), add_special_tokens=False)
        if self.vocabulary is None:
            return [encoding.ids for encoding in encodings]
        place = {token: i for i, token in enumerate(self.vocabulary)}
        return [[place.get(token, place["[UNK]"]) for token in encoding.tokens] for encoding in encodings]


@dataclass
class ClipTokenizer(BaseTokenizer):
    """CLIP's byte-pair encoding, from a model folder's own files: ``ClipTokenizer.from_folder(path)``.

    Programs prepare text differently. "openai", which OpenCLIP shares, repairs mis-encoded characters with ftfy, straightens quotes,
    resolves HTML entities, collapses white space and lower-cases; "transformers" composes characters (NFC), collapses white space and
    lower-cases. A scorer must follow the program whose scores it reproduces.
    """

    max_tokens: int = 77
    definition: str = field(kw_only=True, repr=False)
    """The tokenizer as the JSON of the tokenizers library (``tokenizer.json``)."""
    convention: Convention = field(default="transformers", kw_only=True)

    first = "<|startoftext|>"
    last = "<|endoftext|>"

    def __post_init__(self) -> None:
        check_convention(self.convention)
        super().__post_init__()

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        max_tokens: int = 77,
        long_prompts: LongPrompts = "truncate",
        convention: Convention = "transformers",
    ) -> ClipTokenizer:
        """From ``tokenizer.json``, or else from ``vocab.json`` and ``merges.txt``. Raises ``CheckpointError`` for unusable files."""
        whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
            raise CheckpointError(f"{folder} has no tokenizer: it lacks tokenizer.json, and vocab.json with merges.txt; download it again")
        try:
            tokenizer = Tokenizer.from_file(str(whole)) if whole.is_file() else _byte_pair_encoding(vocabulary, merges)
        except Exception as error:  # the library raises bare Exceptions
            raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}; download it again") from None
        if missing := [token for token in (cls.first, cls.last) if tokenizer.token_to_id(token) is None]:
            raise CheckpointError(f"the tokenizer in {folder} is not CLIP's: it has no token {missing[0]}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(max_tokens, long_prompts, definition=tokenizer.to_str(), convention=convention)

    def token_id(self, token: str) -> int:
        number = _clip_tokenizer(self.definition, self.convention).token_to_id(token)
        assert number is not None, token
        return number

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(_clip_tokenizer(self.definition, self.convention).get_vocab().values()) + 1

    def words(self, prompts: Sequence[str]) -> list[list[int]]:
        texts = [_clean_as_openai(prompt) for prompt in prompts] if self.convention == "openai" else list(prompts)
        encodings = _clip_tokenizer(self.definition, self.convention).encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


@lru_cache(maxsize=4)
def _clip_tokenizer(definition: str, convention: Convention) -> Tokenizer:
    tokenizer = Tokenizer.from_str(definition)
    if convention == "openai":
        tokenizer.normalizer = normalizers.Sequence([])  # the text is clean; composing characters again could change it
    return tokenizer


def _byte_pair_encoding(vocabulary: Path, merges: Path) -> Tokenizer:
    end = ClipTokenizer.last
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges), unk_token=end, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([token for token in (ClipTokenizer.first, end) if tokenizer.token_to_id(token) is not None])
    return tokenizer


def _clean_as_openai(prompt: str) -> str:
    """The text cleaning of OpenAI's CLIP and of OpenCLIP, before tokenization."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip().lower()


@dataclass
class UnreadPrompts:
    """Replaces the tokenizer of scorers that do not read the prompt: any text becomes one token, and none is too long."""

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        check_prompts(prompts)
        ids = torch.zeros(len(prompts), 1, dtype=torch.int64, device="cpu")
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def vocabulary_of(prompts: Iterable[str]) -> tuple[str, ...]:
    """The tokens that occur in prompts, as the vocabulary of a model trained on these alone: ``SPECIAL_TOKENS``, then the rest in order.

    >>> vocabulary_of(["a cat", "a red cat"])[5:]
    ('a', 'cat', 'red')
    """
    tokens = {
        token for encoding in bert_tokenizer().encode_batch(sorted(set(prompts)), add_special_tokens=False) for token in encoding.tokens
    }
    return (*SPECIAL_TOKENS, *sorted(tokens - set(SPECIAL_TOKENS)))


def check_vocabulary(vocabulary: tuple[str, ...]) -> None:
    """Raise ``InputError`` for a vocabulary that ``PromptTokenizer`` cannot use."""
    strange = [token for token in vocabulary if bert_tokenizer().token_to_id(token) is None]
    if strange or vocabulary[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS or len(set(vocabulary)) < len(vocabulary):
        raise InputError(
            f"a vocabulary is {', '.join(SPECIAL_TOKENS)} and then tokens of bert-base-uncased, each once"
            + (f"; {strange[0]!r:.60} is not one" if strange else "")
        )


def check_prompts(prompts: Iterable[object]) -> None:
    """Raise ``PromptError`` unless this is a list of texts. A single string is refused: its characters would be taken for prompts."""
    if isinstance(prompts, str | bytes):
        raise PromptError(f"prompts are a list of strings; write [{prompts!r:.60}] for one")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt is a string, not {type(prompt).__name__}: {prompt!r:.60}")
        if len(prompt) > LONGEST_PROMPT:
            raise PromptError(
                f"the prompt {prompt[:40]!r}… has {len(prompt):,} characters; at most {LONGEST_PROMPT:,} are read as a prompt"
            )
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise PromptError(
                f"the prompt {prompt!r:.60} contains half of a surrogate pair, which is not a character; decode its source again"
            ) from None
