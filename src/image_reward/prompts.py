"""Prompts -> token ids, without a network connection, and what happens to a prompt that is too long."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor

from image_reward.errors import LongPromptWarning, PromptError

LongPrompts = Literal["truncate", "error"]


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
    wordpiece = BertWordPieceTokenizer(words, lowercase=True)
    wordpiece.add_special_tokens(["[DEC]", "[ENC]"])
    return Tokenizer.from_str(wordpiece.to_str())


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


@dataclass
class PromptTokenizer:
    """Prompts -> ``Tokens``. Small and picklable, so that loader processes can carry it.

    A prompt longer than ``max_tokens`` (counting [CLS] and [SEP]) loses its end, as in the original, and a ``LongPromptWarning`` says how
    many tokens were cut; with ``long_prompts="error"`` it is a ``PromptError`` instead.

    With a ``vocabulary`` of its own, a subset of BERT's that begins with ``SPECIAL_TOKENS``, ids are places in it and all other tokens are
    [UNK].
    """

    max_tokens: int = 35
    long_prompts: LongPrompts = "truncate"
    vocabulary: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.vocabulary is not None:
            strange = [token for token in self.vocabulary if bert_tokenizer().token_to_id(token) is None]
            if strange or self.vocabulary[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS or len(set(self.vocabulary)) < len(self.vocabulary):
                raise ValueError(
                    f"a vocabulary is {', '.join(SPECIAL_TOKENS)} and then tokens of bert-base-uncased, each once"
                    + (f"; {strange[0]!r} is none" if strange else "")
                )
        if self.long_prompts not in get_args(LongPrompts):
            raise ValueError(f"long_prompts must be one of {get_args(LongPrompts)}, not {self.long_prompts!r}")
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens counts [CLS] and [SEP] and must be at least 3, not {self.max_tokens}")

    def token_id(self, token: str) -> int:
        """The id of a token of this vocabulary."""
        found = bert_tokenizer().token_to_id(token) if self.vocabulary is None else self.vocabulary.index(token)
        assert found is not None, token
        return found

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        check_prompts(prompts)
        cls, sep = self.token_id("[CLS]"), self.token_id("[SEP]")
        encodings = bert_tokenizer().encode_batch(list(prompts), add_special_tokens=False)
        if self.vocabulary is None:
            words = [encoding.ids for encoding in encodings]
        else:
            place = {token: i for i, token in enumerate(self.vocabulary)}
            words = [[place.get(token, place["[UNK]"]) for token in encoding.tokens] for encoding in encodings]
        self._report_long_prompts(prompts, [len(row) + 2 for row in words])
        rows = [[cls, *row[: self.max_tokens - 2], sep] for row in words]
        length = max((len(row) for row in rows), default=2)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return Tokens(ids, mask)

    def _report_long_prompts(self, prompts: Sequence[str], lengths: Sequence[int]) -> None:
        cut = {prompt: length - self.max_tokens for prompt, length in zip(prompts, lengths, strict=True) if length > self.max_tokens}
        if not cut:
            return
        prompt, most = max(cut.items(), key=lambda item: item[1])
        message = (
            f"the last {most} of {most + self.max_tokens} tokens of the prompt {json.dumps(prompt[:60], ensure_ascii=False)}"
            f"{'…' if len(prompt) > 60 else ''} are not read: the model reads {self.max_tokens}"
        )
        if self.long_prompts == "error":
            raise PromptError(f'{message}; shorten it, or allow this with long_prompts="truncate"')
        others = f" ({len(cut)} prompts are cut)" if len(cut) > 1 else ""
        warnings.warn(message + others, LongPromptWarning, stacklevel=2)


def vocabulary_of(prompts: Iterable[str]) -> tuple[str, ...]:
    """The tokens that prompts are made of, for a model that need know no others: ``SPECIAL_TOKENS``, then the rest in order.

    >>> vocabulary_of(["a cat", "a red cat"])[5:]
    ('a', 'cat', 'red')
    """
    tokens = {
        token for encoding in bert_tokenizer().encode_batch(sorted(set(prompts)), add_special_tokens=False) for token in encoding.tokens
    }
    return (*SPECIAL_TOKENS, *sorted(tokens - set(SPECIAL_TOKENS)))


def check_prompts(prompts: Iterable[object]) -> None:
    """Raise ``PromptError`` unless this is a list of texts. A single string is refused: its characters would pass for prompts."""
    if isinstance(prompts, str | bytes):
        raise PromptError(f"prompts are a list of strings; write [{prompts!r:.60}] for one")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt is a string, not {type(prompt).__name__}: {prompt!r:.60}")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise PromptError(
                f"the prompt {prompt!r:.60} holds half of a surrogate pair, which is no character; decode its source anew"
            ) from None
