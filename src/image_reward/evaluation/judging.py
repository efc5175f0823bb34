"""A judge's verdicts on pairs of images: each pair is asked in both orders, and every answer is kept, so that a run that ends goes on.

The verdicts go to a file that ``read_verdicts`` reads; the answers beside it, a line each as they come.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from image_reward.errors import AnswerError, ImageRewardError, InputError
from image_reward.evaluation.verdicts import check_pairs, order_of
from image_reward.files import is_only_writer, synced_whole
from image_reward.images import describe
from image_reward.metrics import PositionBias, position_bias
from image_reward.scorers.base import inference
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
    others have theirs. Answers of an earlier run with this output are not asked for again.

    Raises ``ComparisonError`` for comparisons of more than two images, and ``InputError`` where the answers beside the output are those of
    another judge, about other pairs, or being written by another process.
    """
    check_pairs(comparisons)
    judge.check_evaluating()
    with _Answers(output.with_name(output.stem + ANSWERS), _subject(judge, comparisons)) as log:
        return _judged(judge, comparisons, output, log, on_pair)


def _judged(judge: Judge, comparisons: Sequence[Comparison], output: Path, log: _Answers, on_pair: Callable[[int, int], None]) -> Judged:
    pairs = {comparison.id: comparison for comparison in comparisons}
    todo = [question for id in pairs for question in (Question(id, False), Question(id, True)) if question not in log.answers]
    errors: dict[Question, str] = {}
    num_done, batch_size = 2 * len(pairs) - len(todo), judge.batch_size
    num_asked = len(todo)
    with inference():
        while todo:
            asked, todo = todo[:batch_size], todo[batch_size:]
            on_pair(num_done // 2, len(pairs))
            num_done += len(asked)
            asked, batch = _prepared(judge, asked, pairs, errors)
            parts = _written(judge, batch) if asked else []
            log.add({asked[row]: answer for rows, answers in parts for row, answer in zip(rows, answers, strict=True)})
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


def _subject(judge: Judge, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Of whom and about what answers are: none of another judge, or about other pairs, may be added to them."""
    whole = hashlib.blake2b(digest_size=16)
    for comparison in comparisons:
        whole.update(repr((comparison.id, comparison.prompt, [describe(image) for image in comparison.images])).encode())
    return {"judge": identity_of(judge), "pairs": whole.hexdigest()}


class _Answers:
    """The file of answers: a line that says whose they are, then a line for each. A line that was cut off by a kill is dropped.

    It is locked while it is open: two that write to it would ask every question twice.
    """

    def __init__(self, file: Path, subject: dict[str, Any]) -> None:
        self.file, self.subject = file, subject
        self.answers: dict[Question, str] = {}

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
        lines = list(self._lines())
        if not lines:
            self._write(self.subject)
        elif lines[0] != self.subject:
            theirs = lines[0].get("judge")
            kind = (
                "about other pairs" if theirs == self.subject["judge"] else f"of another judge or dtype, {(theirs or {}).get('name')!r:.80}"
            )
            raise InputError(f"{self.file} holds answers {kind}; name another output, or delete that file to ask again")
        for number, line in enumerate(lines[1:], start=2):
            if not (isinstance(line.get("id"), str) and isinstance(line.get("swapped"), bool) and isinstance(line.get("answer"), str)):
                raise InputError(f"{self.file}: line {number} is not an answer; delete the file to ask again")
            self.answers[Question(line["id"], line["swapped"])] = line["answer"]

    def _lines(self) -> Iterator[dict[str, Any]]:
        self.stream.seek(0)
        content = self.stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise InputError(f"{self.file}: line {number} is not a JSON object; delete the file to ask again")
            yield value
        self.stream.truncate(len(whole))

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def add(self, answers: dict[Question, str]) -> None:
        self.answers |= answers
        for question, answer in answers.items():
            self._write(question._asdict() | {"answer": answer})
        self.stream.flush()

    def _write(self, line: dict[str, Any]) -> None:
        self.stream.write(json.dumps(line).encode() + b"\n")
