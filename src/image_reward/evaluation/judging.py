"""A judge's verdicts on pairs of images: each pair is asked in both orders, and every answer is kept, so that a run that ends goes on.

The verdicts go to a file that ``read_verdicts`` reads; the answers beside it, a line each as they come.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from image_reward.errors import AnswerError, ImageRewardError, InputError
from image_reward.evaluation.verdicts import check_ids, check_pairs, order_of
from image_reward.files import is_only_writer, synced_whole
from image_reward.metrics import PositionBias, position_bias
from image_reward.scorers.base import inference, keys_of
from image_reward.scorers.identity import identity_of
from image_reward.scorers.judge import Judge
from image_reward.scorers.outcomes import in_parts, is_out_of_memory
from image_reward.types import Comparison

ANSWERS = ".answers.jsonl"
"""The end of the name of the file of answers, in place of that of the file of verdicts."""


@dataclass(frozen=True)
class Judged:
    """What became of the pairs."""

    output: str
    num_pairs: int
    errors: dict[str, str]
    """Of the pairs without a verdict, by id: why"""
    num_asked: int
    """Questions that were asked now, and not in an earlier run: two for each pair."""
    bias: PositionBias | None
    """Of the pairs with verdicts, if there are any."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"num_errors": len(self.errors)}


class Question(NamedTuple):
    """A pair in one order."""

    id: str
    swapped: bool


def judge_pairs(
    judge: Judge, comparisons: Sequence[Comparison], output: Path, on_pair: Callable[[int, int], None] = lambda _done, _total: None
) -> Judged:
    """Ask a judge which image of each pair is better, in both orders, and write its verdicts.

    A pair has no verdict, and ``null`` in the file, where an image cannot be read or an answer is not in the form that was asked for; the
    others have theirs. What an earlier run with this output has answered is not asked again; its images are read again, since other pixels
    or another prompt are another question.

    Raises ``ComparisonError`` for comparisons of more than two images, or without ids of their own, and ``InputError`` where the answers
    beside the output are those of another judge, or being written by another process.
    """
    check_pairs(comparisons)
    check_ids(comparisons)
    judge.check_evaluating()
    with _Answers(output.with_name(output.stem + ANSWERS), identity_of(judge)) as log:
        return _judged(judge, comparisons, output, log, on_pair)


def _judged(judge: Judge, comparisons: Sequence[Comparison], output: Path, log: _Answers, on_pair: Callable[[int, int], None]) -> Judged:
    pairs = {comparison.id: comparison for comparison in comparisons}
    todo = [Question(id, swapped) for id in pairs for swapped in (False, True)]
    errors: dict[Question, str] = {}
    num_done, num_asked, batch_size = 0, 0, judge.batch_size
    with inference():
        while todo:
            questions, todo = todo[:batch_size], todo[batch_size:]
            on_pair(num_done // 2, len(pairs))
            num_done += len(questions)
            questions, batch = _prepared(judge, questions, pairs, errors)
            keys = [_digest(key) for key in keys_of(batch) or ()] if questions else []
            new = [row for row, question in enumerate(questions) if log.keys.get(question) != keys[row]]
            parts = _written(judge, batch.select(new)) if new else []
            for rows, answers in parts:
                log.add([(questions[new[row]], keys[new[row]], answer) for row, answer in zip(rows, answers, strict=True)])
            num_asked += len(new)
            if len(parts) > 1:
                batch_size = min(len(rows) for rows, _ in parts)
    on_pair(len(pairs), len(pairs))
    verdicts: dict[str, list[str] | None] = {}
    reasons: dict[str, str] = {}
    for id in pairs:
        try:
            labels = []
            for question in (Question(id, False), Question(id, True)):
                if question in errors:
                    raise AnswerError(errors[question])
                labels.append(judge.verdict_of(log.answers[question]).label)
            verdicts[id] = labels
        except AnswerError as error:
            verdicts[id], reasons[id] = None, str(error)
    with synced_whole(output) as stream:
        stream.write((json.dumps(verdicts, indent=0) + "\n").encode())
    both = [labels for labels in verdicts.values() if labels]
    bias = position_bias([order_of(one) for one, _ in both], [order_of(other) for _, other in both]) if both else None
    return Judged(str(output), len(pairs), reasons, num_asked, bias)


def _written(judge: Judge, batch: Any) -> list[tuple[range, list[str]]]:
    """The answers to a batch, in as many parts as memory asks for."""
    try:
        return list(in_parts(lambda batches: judge.written(batches[0]), [batch]))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"there is not enough memory on {judge.device} to judge a single pair; use another device or dtype. What is answered is kept"
        ) from None


def _prepared(
    judge: Judge, questions: Sequence[Question], pairs: dict[str, Comparison], errors: dict[Question, str]
) -> tuple[list[Question], Any]:
    """A batch of those questions that can be asked; what is wrong with the others goes to ``errors``."""

    def batch_of(questions: Sequence[Question]) -> Any:
        shown = [pairs[id].images[::-1] if swapped else pairs[id].images for id, swapped in questions]
        return judge.prepare_pairs([pairs[id].prompt for id, _ in questions], shown)

    try:
        return list(questions), batch_of(questions)
    except (ImageRewardError, OSError, MemoryError):  # of one or more: each is tried alone
        usable = []
        for question in questions:
            try:
                batch_of([question])
                usable.append(question)
            except (ImageRewardError, OSError, MemoryError) as error:
                errors[question] = f"{type(error).__name__}: {error}"
        return usable, batch_of(usable) if usable else None


def _digest(key: Hashable) -> str:
    """Of what a row of a batch asks: equal for the same tokens and the same pixels."""
    return hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()


class _Answers:
    """The file of answers: a line that says whose they are, then a line for each. A line that was cut off by a kill is dropped.

    It is locked while it is open: two that write to it would ask every question twice.
    """

    def __init__(self, file: Path, judge: dict[str, Any]) -> None:
        self.file, self.judge = file, {"judge": judge}
        self.answers: dict[Question, str] = {}
        self.keys: dict[Question, str] = {}
        """What was asked, as ``_digest`` gives it."""

    def __enter__(self) -> _Answers:
        self.stream = self.file.open("a+b")
        try:
            if not is_only_writer(self.stream):
                raise InputError(f"another process is writing to {self.file}; wait for it, or name another output")
            self._read()
        except BaseException:
            self.stream.close()
            raise
        return self

    def _read(self) -> None:
        self.stream.seek(0)
        content = self.stream.read()
        first, end, rest = content.partition(b"\n")
        if not content:
            self._write(self.judge)
            self.stream.flush()
            return
        if not end or self._object(first, 1) != self.judge:
            raise InputError(f"{self.file} holds no answers of this judge in this dtype; name another output, or delete it to ask again")
        *lines, cut = rest.split(b"\n")
        for number, line in enumerate(lines, start=2):
            values = self._object(line, number)
            match values:
                case {"id": str(id), "swapped": bool(swapped), "key": str(key), "answer": str(answer)}:
                    self._keep(Question(id, swapped), key, answer)
                case _:
                    raise InputError(f"{self.file}: line {number} is not an answer; delete the file to ask again")
        self.stream.truncate(len(content) - len(cut))  # the file is known as one of answers

    def _object(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise InputError(f"{self.file}: line {number} is not a JSON object; delete the file to ask again")
        return value

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def add(self, answers: Sequence[tuple[Question, str, str]]) -> None:
        for question, key, answer in answers:
            self._keep(question, key, answer)
            self._write(question._asdict() | {"key": key, "answer": answer})
        self.stream.flush()

    def _keep(self, question: Question, key: str, answer: str) -> None:
        self.keys[question], self.answers[question] = key, answer

    def _write(self, line: dict[str, Any]) -> None:
        self.stream.write(json.dumps(line).encode() + b"\n")
