"""The forms in which human rankings are written down: rows -> ``Record``. A form is recognised by the names in its first row.

======================  =======================================================  ==================================================
form                    a row has                                                published as
======================  =======================================================  ==================================================
ImageRewardDB           image_path or image, prompt_id, prompt, rank, one row    the hub data set's metadata-SPLIT.parquet and JSON,
                        per image                                                and what `datasets` makes of it (8k)
ImageRewardDB list      id, prompt, generations [..], ranking [..]               test.json of the ImageReward repository
ImageRewardDB group     prompt, image [..], rank [..], optional prompt_id        what `datasets` makes of it (8k_group)
ImageRewardDB pair      prompt, img_better, img_worse                            the same (8k_pair)
HPDv2 train             prompt, file_path [2], human_preference [2] of 0 and 1   train.json of HPDv2
HPDv2 test              prompt, image_path [..], rank [..], and what each        test.json of HPDv2
                        annotator said in raw_annotations
HPDv3                   prompt, path1 (preferred), path2, optional choice_dist   the hub data set's JSON files
Pick-a-Pic              caption, jpg_0, jpg_1 (bytes), label_0, optional         the hub data set's Parquet files; Diffusion-DPO
                        label_1
GenAI-Bench             prompt, left_image, right_image, vote_type;              the hub data set's Parquet files: image_generation;
                        target_prompt, left_output_image, right_output_image     image_edition
MMRB2                   prompt_content, response_a, response_b, chosen           t2i.json
MMRB2 hub               prompt_text, response_a_images, response_b_images,       the hub data set's Parquet files
                        chosen
chosen and rejected     prompt, chosen, rejected, each an image or several       data sets for DPO
ratings, by image       prompt, image or image_path, rating, score or mos,       tables
                        optional annotator, prompt_id
ours, by comparison     prompt, images [..], ranks [..], optional id, shares,    written by `image-reward data split` and `convert`
                        category, annotations [[..], ..], ratings {..},
                        both_bad
ours, by image          prompt, image, rank, optional id                         tables
======================  =======================================================  ==================================================
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from itertools import groupby
from typing import Any

from image_reward.addresses import SCHEMES, Address, scheme
from image_reward.errors import ComparisonError
from image_reward.rows import ParquetImage, Row, is_address
from image_reward.types import LONGEST_PROMPT, Comparison

RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating")
RATING = "rating"
"""That of a comparison whose ranks come from it."""

MOST_IMAGES = 1000
"""Of one comparison. All that is done with it grows with the number of pairs, and no annotator ranks this many."""

MOST_EXAMPLES = 20
"""Places that are named of one kind of fault."""

_HIGHEST_RANK = 10**9


@dataclass(frozen=True)
class Record:
    """One comparison of a file with where it stands, or what is wrong there."""

    where: str
    """Its place in the file, for messages: a line, row, entry or id."""
    comparison: Comparison | None = None
    """None where ``problem`` or ``left_out`` says why there is none."""
    problem: str = ""
    left_out: str = ""
    """Why a row that is right says nothing of which image is better."""
    both_bad: Comparison | None = None
    """A row that is left out because both its images are bad, as a tie."""
    warning: str = ""
    """What is odd, but does not keep the comparison from being used."""
    ratings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Further ratings of the images, higher is better; NaN where there is none."""

    @classmethod
    def of(cls, comparison: Comparison) -> Record:
        """A record of a comparison that comes from no file."""
        return cls(f"id {comparison.id}", comparison)


# --- forms: rows -> comparisons ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """One way in which human rankings are written down."""

    name: str
    keys: tuple[str, ...]
    """What a row must have to be of this form."""
    read: Callable[[Iterable[Row], Address], Iterator[Record]]
    lists: tuple[str, ...] = ()
    """Keys that hold lists."""
    image_key: str = ""
    """Where a row names its images, for published forms, whose layout of folders is known."""
    unless: tuple[str, ...] = ()
    """Keys that mean something else."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        here = all(key in row for key in self.keys) and not any(key in row for key in self.unless)
        return here and all(isinstance(row[key], list) for key in self.lists)

    def records(self, rows: Iterable[Row], base: Address) -> Iterator[Record]:
        """The comparisons of the rows, and a problem for each row that has not the keys of this form."""
        problems: list[Record] = []

        def whole() -> Iterator[Row]:
            for row in rows:
                missing = [key for key in self.keys if key not in row.values]
                if missing:
                    problems.append(Record(row.where, problem=f"{missing[0]} is missing; a row has {', '.join(self.keys)}, as the first"))
                else:
                    yield row

        for record in self.read(whole(), base):
            yield from problems
            problems.clear()
            yield record
        yield from problems

    def image_folder(self, file: Address, row: Mapping[str, Any]) -> Address:
        """The file's folder, or a folder of the published layout in which the first image is.

        The hub's JSON files of ImageRewardDB stand deep inside the folder their paths start from; HPDv2 has its images in a folder named
        like the split.
        """
        first = row.get(self.image_key)
        first = first[0] if isinstance(first, list) and first else first
        if isinstance(first, str):
            start = file if not file.is_local else Address.parse(file.local.resolve())
            above = [start.parent.parent]
            for _ in range(2):
                above.append(above[-1].parent)
            for folder in (file.parent, file.parent.join(file.stem), *above):
                if not _image_problem(first) and folder.join(first).kind() == "file":
                    return folder
        return file.parent


def recognize(row: Mapping[str, Any], path: Address) -> _Form:
    """The form of a file by its first row. Raises ``ComparisonError`` that names what was looked for."""
    forms = [form for form in _FORMS if form.matches(row)]
    if len({form.name for form in forms if form.name.startswith("ours")}) > 1:
        raise ComparisonError(f"{path} mixes two forms: its first row has images and ranks, and image and rank; keep one of them")
    if forms and forms[0].name == _RATINGS_FORM and len(forms) > 1:
        keys = ", ".join(dict.fromkeys(key for form in forms for key in form.keys[1:]))
        raise ComparisonError(f"{path} has several columns of images or ratings: {keys}; rename those that are not to be read")
    if forms:
        return forms[0]
    names = ", ".join(str(name) if str(name) == str(name).strip() else repr(name) for name in row) or "nothing"
    raise ComparisonError(f"{path} is of no known form: its first row has {names:.1000}. {_nearest(row)}{_LOOKED_FOR}")


def _nearest(row: Mapping[str, Any]) -> str:
    """Which forms the row is one step away from."""
    steps = []
    for form in _FORMS:
        missing = [key for key in form.keys if key not in row]
        if not missing and (no_lists := [key for key in form.lists if not isinstance(row[key], list)]):
            steps.append(f"{no_lists[0]!r} is not a list, as in {form.name}")
        elif len(missing) == 1 and len(form.keys) > 2:
            steps.append(f"{missing[0]!r} is missing for {form.name}")
    return f"Nearly: {'; '.join(steps[:4])}. " if steps else ""


def _read_lists(
    prompt_key: str, images_key: str, ranks_key: str, id_key: str, source: str, rows: Iterable[Row], base: Address
) -> Iterator[Record]:
    """Rows that hold a whole comparison."""
    for row in rows:
        values = row.values
        origin = source or _label(values.get("source"))
        ranked = values[prompt_key], values[images_key], values[ranks_key]
        record = _checked(row.where, values.get(id_key), *ranked, origin, base, values.get("shares"))
        record = _annotated(
            record, values.get("annotations") or [], category=_label(values.get("category") or values.get("classification"))
        )
        num = len(_list(values[images_key]))
        given = values["ratings"] if isinstance(values.get("ratings"), dict) else values
        ratings = {key: tuple(map(_number, given[key])) for key in RATINGS if isinstance(given.get(key), list) and len(given[key]) == num}
        record = replace(record, ratings=ratings, warning=record.warning or _incomplete(num, values))
        rating = tuple(map(_number, _list(given.get(RATING))))
        both_bad = values.get("both_bad") is True
        if record.comparison is not None and len(rating) == num and all(map(math.isfinite, rating)):
            if _contradicts(rating, record.comparison.ranks):
                yield Record(row.where, problem="its rating and its ranks put images in different orders; correct one, or leave out rating")
                continue
            record = replace(record, comparison=replace(record.comparison, ratings=rating))
        if both_bad and record.comparison is not None and (num != 2 or len(set(record.comparison.ranks)) > 1):
            yield Record(
                row.where, problem=f"both_bad is true of images of ranks {list(record.comparison.ranks)}, not of two that are tied"
            )
            continue
        yield _neither_good(record, "both_bad is true") if both_bad else record


def _contradicts(rating: Sequence[float], ranks: Sequence[int]) -> bool:
    """Whether an image is ranked above another, and rated below it."""
    by_rank = sorted(zip(ranks, rating, strict=True))
    lowest = math.inf  # of better ranks
    for _, tied in groupby(by_rank, key=lambda pair: pair[0]):
        own = [value for _, value in tied]
        if max(own) > lowest:
            return True
        lowest = min(lowest, *own)
    return False


def _incomplete(num: int, values: Mapping[str, Any]) -> str:
    total = _number(values.get("image_amount_in_total"))
    return f"{num} of {total:g} images are here" if not math.isnan(total) and total != num else ""


def _read_better(keys: tuple[str, str], source: str, rows: Iterable[Row], base: Address, votes: str = "") -> Iterator[Record]:
    """Rows whose first image, or list of images, is preferred to the second. ``votes`` names how many votes each of the two got."""
    for row in rows:
        sides = [value if isinstance(value := row.values[key], list) else [value] for key in keys]
        if not all(sides):
            yield Record(row.where, problem=f"{keys[sides.index([])]} is empty")
            continue
        ranks = [1] * len(sides[0]) + [2] * len(sides[1])
        shares = _shares_of(row.values.get(votes))
        record = _checked(row.where, row.values.get("id"), row.values["prompt"], [*sides[0], *sides[1]], ranks, source, base, shares)
        yield _annotated(record, category=_label(row.values.get("category") or row.values.get("classification")))


def _shares_of(votes: object) -> list[float] | None:
    """HPDv3's numbers of votes, of which it says neither whose they are nor the order, but that the larger is for the preferred image."""
    counts = sorted((_number(count) for count in _list(votes)), reverse=True)
    if len(counts) != 2 or not all(0 <= count < math.inf for count in counts) or not sum(counts):
        return None
    return [count / sum(counts) for count in counts]


def _read_preferences(images_key: str, rows: Iterable[Row], base: Address) -> Iterator[Record]:
    """HPDv2 train: 1 marks the preferred image of the two."""
    ranks_of: dict[tuple[int | None, ...], list[int]] = {(1, 0): [1, 2], (0, 1): [2, 1]}
    for row in rows:
        preferred = row.values["human_preference"]
        ranks = ranks_of.get(tuple(_whole(value, lowest=0) for value in _list(preferred)))
        if ranks is None:
            yield Record(row.where, problem=f"human_preference is {_short(preferred)}, not [1, 0] or [0, 1]")
            continue
        yield _checked(row.where, None, row.values["prompt"], row.values[images_key], ranks, "HPDv2", base)


def _read_average_ranks(rows: Iterable[Row], base: Address) -> Iterator[Record]:
    """HPDv2 test: smaller is better. A file that counts from 0 anywhere is taken to count from 0 everywhere."""
    rows = list(rows)
    from_zero = any(_whole(rank, lowest=0) == 0 for row in rows for rank in _list(row.values["rank"]))
    for row in rows:
        ranks = row.values["rank"]
        if from_zero and isinstance(ranks, list):
            ranks = [rank if (whole := _whole(rank, lowest=0)) is None else whole + 1 for rank in ranks]
        record = _checked(row.where, None, row.values["prompt"], row.values["image_path"], ranks, "HPDv2", base)
        yield _annotated(record, row.values.get("raw_annotations") or row.values.get("raw_annotation") or [])


def _read_pick_a_pic(rows: Iterable[Row], base: Address) -> Iterator[Record]:
    """Pick-a-Pic: the labels are the shares of the two images, 0.5 each for a tie. Diffusion-DPO needs only the first."""
    del base  # the images are in the file itself
    for row in rows:
        a = _number(row.values["label_0"])
        b = _number(row.values["label_1"]) if "label_1" in row.values else 1 - a
        pictures = [row.values["jpg_0"], row.values["jpg_1"]]
        if not (0 <= a <= 1 and 0 <= b <= 1 and math.isclose(a + b, 1)):
            labels = f"{_short(row.values['label_0'])} and {_short(row.values.get('label_1'))}"
            yield Record(row.where, problem=f"label_0 and label_1 are {labels}; they must be shares that sum to 1")
        elif not all(isinstance(picture, ParquetImage) for picture in pictures):
            yield Record(row.where, problem="jpg_0 and jpg_1 are not bytes, which only a Parquet or Arrow file can hold")
        else:
            yield _checked(
                row.where, None, row.values["caption"], pictures, [1 + (a < b), 1 + (b < a)], "Pick-a-Pic", Address("", "."), [a, b]
            )


_BOTH_BAD = "bothbad_vote"
_VOTES = {"leftvote": [1, 2], "rightvote": [2, 1], "tievote": [1, 1], _BOTH_BAD: [1, 1]}


def _read_votes(prompt_key: str, keys: tuple[str, str], rows: Iterable[Row], base: Address) -> Iterator[Record]:
    """GenAI-Bench."""
    for row in rows:
        vote = row.values["vote_type"]
        ranks = _VOTES.get(vote) if isinstance(vote, str) else None
        if ranks is None:
            yield Record(row.where, problem=f"vote_type is {_short(vote)}, not one of {', '.join(_VOTES)}")
            continue
        pictures = [row.values[key] for key in keys]
        record = _checked(row.where, row.values.get("id"), row.values[prompt_key], pictures, ranks, "GenAI-Bench", base)
        yield _neither_good(record, f"the vote is {vote}") if vote == _BOTH_BAD else record


def _neither_good(record: Record, said: str) -> Record:
    """A tie of two bad images, left out: it is neither an order nor a tie of good images."""
    if record.comparison is None:
        return record
    return Record(record.where, left_out=f"{said}, that both images are bad", both_bad=replace(record.comparison, both_bad=True))


_CHOICES = {"A": [1, 2], "B": [2, 1]}


def _read_mmrb2(rows: Iterable[Row], base: Address) -> Iterator[Record]:
    """MMRB2: a prompt and two responses, each a list of ["text", text] and ["image", path]."""
    for row in rows:
        values = row.values
        prompt = _contents(values.get("prompt_content"), "text")
        images = [
            _contents(response.get("response_content") if isinstance(response := values[key], dict) else None, "image")
            for key in ("response_a", "response_b")
        ]
        metadata = values.get("prompt_metadata")
        yield _mmrb2(row, values.get("id", values.get("pair_id")), prompt, images, metadata, base)


def _read_mmrb2_hub(rows: Iterable[Row], base: Address) -> Iterator[Record]:
    for row in rows:
        values = row.values
        prompt = None if values.get("prompt_images") else [values["prompt_text"]]
        images = [_list(values[f"response_{side}_images"]) for side in "ab"]
        yield _mmrb2(row, values.get("pair_id"), prompt, images, None, base)


def _contents(content: object, kind: str) -> list[Any] | None:
    """The parts of a prompt or response that is of one kind only; None for others."""
    parts = _list(content)
    if not parts or not all(isinstance(part, list) and len(part) == 2 and part[0] == kind for part in parts):
        return None
    return [value for _, value in parts]


def _mmrb2(row: Row, name: object, prompt: list[Any] | None, images: Sequence[list[Any] | None], metadata: object, base: Address) -> Record:
    choice = row.values["chosen"]
    ranks = _CHOICES.get(choice.upper()) if isinstance(choice, str) else None
    if ranks is None:
        return Record(row.where, problem=f"chosen is {_short(choice)}, not A or B")
    if prompt is None or len(prompt) != 1:
        there = "prompt_content" in row.values or "prompt_text" in row.values
        remedy = "; build t2i.json, which has the prompts" if not there else ""
        return Record(row.where, problem=f"the prompt is not one text, and only pairs of text-to-image are read{remedy}")
    if not all(side is not None and len(side) == 1 for side in images):
        return Record(row.where, problem="a response is not one image, and only pairs of text-to-image are read")
    pictures = [side[0] for side in images if side]
    record = _checked(row.where, name, prompt[0], pictures, ranks, "MMRB2", base)
    return _annotated(record, category=_label(metadata.get("category") if isinstance(metadata, dict) else None))


_RATINGS_FORM = "ratings, by image"
_ANNOTATORS = ("annotator", "annotator_id", "rater", "rater_id", "worker", "worker_id", "user", "user_id")


def _read_ratings(image_key: str, rating_key: str, rows: Iterable[Row], base: Address) -> Iterator[Record]:
    """Rows that hold one rating, higher is better: those of one prompt by one annotator are a comparison; equal ratings are ties."""
    groups: dict[tuple[str, str, str], dict[Any, tuple[Row, float]]] = {}
    for row in rows:
        values, image, rating = row.values, row.values[image_key], _number(row.values[rating_key])
        problem = _id_problem(values.get("prompt_id")) or _prompt_problem(values["prompt"])
        who = next((name for key in _ANNOTATORS if (name := _label(_id(values.get(key))))), "")
        if not problem and not isinstance(image, ParquetImage) and (wrong := _image_problem(image)):
            problem = f"the image is {_short(image)}, {wrong}"
        if not problem and not math.isfinite(rating):
            remedy = "; write 1,5 as 1.5" if re.fullmatch(r"\s*-?\d*,\d+\s*", str(values[rating_key])) else ""
            problem = f"the {rating_key} is {_short(values[rating_key])}, not a number{remedy}"
        if problem:
            yield Record(row.where, problem=problem)
            continue
        group = groups.setdefault((_id(values.get("prompt_id")), values["prompt"], who), {})
        key = image if isinstance(image, ParquetImage | str) else repr(image)
        if key in group:
            by = f" by {who}" if who else "; name who rated in a column annotator, or keep one rating of each image"
            yield Record(row.where, problem=f"the image {_short(image)} is rated twice for its prompt{by}: before at {group[key][0].where}")
            continue
        group[key] = row, rating
    for (name, prompt, who), group in groups.items():
        rated = [row for row, _ in group.values()]
        if len(rated) == 1:
            yield Record(
                rated[0].where, left_out=f"it is the only rating of its prompt{f' by {who}' if who else ''}: there is nothing to compare"
            )
            continue
        rank_of = {rating: rank for rank, rating in enumerate(sorted({rating for _, rating in group.values()}, reverse=True), start=1)}
        ranks = [rank_of[rating] for _, rating in group.values()]
        category = _label(rated[0].values.get("category"))
        named = "/".join(part for part in (name, who) if part) if name else None
        record = _checked(
            rated[0].where, named, prompt, [row.values[image_key] for row in rated], ranks, _label(rated[0].values.get("source")), base
        )
        record = _annotated(record, category=category)
        if record.comparison is not None:
            record = replace(record, comparison=replace(record.comparison, ratings=tuple(rating for _, rating in group.values())))
        yield record


def _read_by_image(id_key: str, image_key: str, source: str, rows: Iterable[Row], base: Address) -> Iterator[Record]:
    """Rows that hold one image: those of one id, or without ids of one prompt, are a comparison."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if problem := _id_problem(row.values.get(id_key)) or _prompt_problem(row.values["prompt"]):
            yield Record(row.where, problem=problem)
            continue
        name = _id(row.values.get(id_key))
        groups.setdefault((name, "" if name else row.values["prompt"]), []).append(row)
    for (name, _), group in groups.items():
        first = group[0]
        prompts = {row.values["prompt"] for row in group}
        if len(prompts) > 1:
            problem = f"its rows have {len(prompts)} different prompts; one comparison has one"
            yield Record(_named(first.where, name), problem=problem)
            continue
        ratings = {key: tuple(_number(row.values.get(key)) for row in group) for key in RATINGS if any(key in row.values for row in group)}
        pictures = [row.values[image_key] for row in group]
        ranks = [row.values["rank"] for row in group]
        record = _checked(first.where, name, first.values["prompt"], pictures, ranks, source, base)
        yield replace(
            _annotated(record, category=_label(first.values.get("classification"))),
            warning=_incomplete(len(group), first.values),
            ratings=ratings,
        )


def _annotated(record: Record, annotations: object = (), category: str = "") -> Record:
    """The record with the category of its prompt, and the ranks of its annotators one by one.

    An annotation is a list of ranks, or as in HPDv2 an object that holds it as its ``rank``. One that makes no sense is left out, which
    the record's warning says: the comparison itself does not rest on it.
    """
    if record.comparison is None:
        return record
    ranks_of = [row.get("rank", row.get("annotation")) if isinstance(row, dict) else row for row in _list(annotations)]
    lists = [[_whole(rank, lowest=0) for rank in _list(ranks)] for ranks in ranks_of]
    num = len(record.comparison.images)
    shift = int(any(0 in ranks for ranks in lists))  # HPDv2 may count from 0
    good = [tuple(rank + shift for rank in ranks if rank is not None) for ranks in lists if len(ranks) == num and None not in ranks]
    bad = len(lists) - len(good) if isinstance(annotations, Sequence) else 1
    return replace(
        record,
        comparison=replace(record.comparison, category=category, annotations=tuple(good)),
        warning=f"{bad} annotations are not {num} integers, one for each image, and are left out" if bad else record.warning,
    )


# --- values: whatever stands in a row -> what it may be ------------------------------------------------------------------------------


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _short(value: object) -> str:
    return reprlib.repr(value)  # bounded in length and depth: a value may be nested as deeply as its parser allows


def _label(value: object) -> str:
    """A category or source: what cannot be encoded is replaced, since nothing is looked up by it."""
    text = "" if value is None else value if isinstance(value, str) else _short(value)
    return text.encode(errors="replace").decode()


def _id(value: object) -> str:
    return "" if value is None or value != value else str(value)  # NaN is how pandas writes that there is none


def _id_problem(value: object) -> str:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        return f"the id is {_short(value)}, not text or a number"
    return "the id is not text: " + _SURROGATE if _has_surrogate(_id(value)) else ""


def _prompt_problem(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        return f"the prompt is {_short(value)}, not text"
    if len(value) > LONGEST_PROMPT:
        return f"the prompt has {len(value):,} characters; at most {LONGEST_PROMPT:,} are read as a prompt"
    return "the prompt is not text: " + _SURROGATE if _has_surrogate(value) else ""


_SURROGATE = "it holds half of a surrogate pair, so it was cut or converted badly"


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None


def _named(where: str, name: str) -> str:
    return f"{where} (id {name})" if name else where


def _number(value: object) -> float:
    """Any number; NaN for what is none and for what is out of range."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _whole(value: object, lowest: int = 1) -> int | None:
    """A whole number from ``lowest``, written as 2, 2.0 or "2"; None for all else."""
    if isinstance(value, str):
        value = float(value) if re.fullmatch(r"\s*[0-9]{1,10}(\.0*)?\s*", value) else None
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= _HIGHEST_RANK or value != int(value):
        return None
    return int(value)


def _checked(
    where: str, name: object, prompt: object, images: object, ranks: object, source: str, base: Address, shares: object = None
) -> Record:
    """A comparison from the values of a row, or what is wrong with them."""
    if problem := _id_problem(name):
        return Record(where, problem=problem)
    where = _named(where, _id(name))
    if problem := _prompt_problem(prompt) or _ranking_problem(images, ranks) or _shares_problem(shares, _list(images)):
        return Record(where, problem=problem)
    assert isinstance(prompt, str)
    return Record(
        where,
        Comparison(
            prompt=prompt,
            images=tuple(_image(image, base) for image in _list(images)),
            ranks=tuple(rank for rank in map(_whole, _list(ranks)) if rank is not None),
            id=_id(name),
            source=source,
            shares=tuple(map(float, _list(shares))) if shares is not None else None,
        ),
    )


def _ranking_problem(images: object, ranks: object) -> str:
    for name, values in (("images", images), ("ranks", ranks)):
        if not isinstance(values, list):
            return f"the {name} are {_short(values)}, not a list"
    images, ranks = _list(images), _list(ranks)
    if len(images) != len(ranks):
        return f"{len(images)} images and {len(ranks)} ranks: there must be one rank for each image"
    if not 2 <= len(images) <= MOST_IMAGES:
        return f"a comparison has at {'least two' if len(images) < 2 else f'most {MOST_IMAGES:,}'} images, not {len(images):,}"
    for number, image in enumerate(images, start=1):
        if problem := _image_problem(image):
            return f"image {number} is {_short(image)}, {problem}"
    for number, rank in enumerate(ranks, start=1):
        if _whole(rank) is None:
            return f"the rank of image {number} is {_short(rank)}; ranks are integers from 1, 1 for the best"
    return ""


def _shares_problem(shares: object, images: Sequence[object]) -> str:
    if shares is None:
        return ""
    if not (isinstance(shares, list) and len(shares) == len(images)):
        return f"the shares are {_short(shares)}, not one number for each image"
    values = [_number(share) for share in shares]
    if not (all(0 <= value <= 1 for value in values) and math.isclose(sum(values), 1, abs_tol=1e-6)):
        return f"the shares are {_short(shares)}; they must be in [0, 1] and sum to 1"
    return ""


def _image_problem(image: object) -> str:
    if isinstance(image, ParquetImage):
        return ""
    if isinstance(image, dict):
        kinds = {"parquet": str, "row_group": int, "row": int, "column": str}  # as `write` refers to an image in a Parquet file
        kinds |= {"index": int} if "index" in image else {}
        refers = image.keys() == kinds.keys() and all(type(image[key]) is kind for key, kind in kinds.items())
        refers = refers and min(image["row_group"], image["row"], image.get("index", 0)) >= 0  # Arrow would count from the end
        return "" if refers else "not a path"
    if not isinstance(image, str) or not image.strip():
        return "not a path"
    if is_address(image) and scheme(image) not in SCHEMES:
        return f"an address that is not read here: only those of {', '.join(SCHEMES)} are; download it and name the file"
    try:
        return "not a path: it holds a NUL character" if b"\0" in os.fsencode(image) else ""
    except UnicodeEncodeError:
        return "not a path: " + _SURROGATE


def _image(image: Any, base: Address) -> str | ParquetImage:
    if isinstance(image, ParquetImage):
        return image
    if isinstance(image, dict):
        return ParquetImage(str(base.join(image["parquet"])), image["row_group"], image["row"], image["column"], image.get("index"))
    return str(base.join(image))


_FORMS = (
    _Form(
        "ImageRewardDB list",
        ("prompt", "generations", "ranking"),
        partial(_read_lists, "prompt", "generations", "ranking", "id", "ImageRewardDB"),
        image_key="generations",
    ),
    _Form(
        "ImageRewardDB",
        ("image_path", "prompt_id", "prompt", "rank"),
        partial(_read_by_image, "prompt_id", "image_path", "ImageRewardDB"),
        image_key="image_path",
    ),
    *(
        _Form(
            "ImageRewardDB group",
            ("prompt", images, "rank"),
            partial(_read_lists, "prompt", images, "rank", "prompt_id", "ImageRewardDB"),
            lists=(images, "rank"),
        )
        for images in ("image", "images")
    ),
    _Form("ImageRewardDB", ("image", "prompt_id", "prompt", "rank"), partial(_read_by_image, "prompt_id", "image", "ImageRewardDB")),
    _Form("ImageRewardDB pair", ("prompt", "img_better", "img_worse"), partial(_read_better, ("img_better", "img_worse"), "ImageRewardDB")),
    _Form(
        "HPDv2 train",
        ("prompt", "file_path", "human_preference"),
        partial(_read_preferences, "file_path"),
        ("human_preference",),
        "file_path",
    ),
    _Form(
        "HPDv2 train",
        ("prompt", "image_path", "human_preference"),
        partial(_read_preferences, "image_path"),
        ("human_preference",),
        "image_path",
    ),
    _Form("HPDv2 test", ("prompt", "image_path", "rank"), _read_average_ranks, ("image_path", "rank"), "image_path"),
    _Form(
        "HPDv3",
        ("prompt", "path1", "path2"),
        partial(_read_better, ("path1", "path2"), "HPDv3", votes="choice_dist"),
        image_key="path1",
        unless=("label", "preference", "human_preference", "choice", "vote", "winner"),
    ),
    _Form("Pick-a-Pic", ("caption", "jpg_0", "jpg_1", "label_0"), _read_pick_a_pic),
    _Form(
        "GenAI-Bench",
        ("prompt", "left_image", "right_image", "vote_type"),
        partial(_read_votes, "prompt", ("left_image", "right_image")),
        image_key="left_image",
    ),
    *(
        _Form(
            "GenAI-Bench",
            (key, "left_output_image", "right_output_image", "vote_type"),
            partial(_read_votes, key, ("left_output_image", "right_output_image")),
            image_key="left_output_image",
        )
        for key in ("prompt", "target_prompt")
    ),
    _Form("MMRB2", ("response_a", "response_b", "chosen"), _read_mmrb2),
    _Form("MMRB2 hub", ("prompt_text", "response_a_images", "response_b_images", "chosen"), _read_mmrb2_hub),
    _Form("chosen and rejected", ("prompt", "chosen", "rejected"), partial(_read_better, ("chosen", "rejected"), ""), image_key="chosen"),
    _Form("ours, by comparison", ("prompt", "images", "ranks"), partial(_read_lists, "prompt", "images", "ranks", "id", "")),
    _Form("ours, by image", ("prompt", "image", "rank"), partial(_read_by_image, "id", "image", "")),
    *(
        _Form(_RATINGS_FORM, ("prompt", image, rating), partial(_read_ratings, image, rating), image_key=image)
        for image in ("image", "image_path")
        for rating in ("rating", "score", "mos", "MOS")
    ),
)

IMAGE_COLUMNS = (
    *("image", "images", "image_path", "img_better", "img_worse", "jpg_0", "jpg_1", "chosen", "rejected", "path1", "path2"),
    *("left_image", "right_image", "left_output_image", "right_output_image", "prompt_images", "response_a_images", "response_b_images"),
)
"""Columns that may hold the bytes of images."""

COLUMNS = {key for form in _FORMS for key in (*form.keys, *form.unless)} | {
    *("id", "source", "shares", "category", "annotations", "raw_annotations", "raw_annotation", "ratings", "label_1", "choice_dist"),
    *(
        "classification",
        "image_amount_in_total",
        "both_bad",
        *RATINGS,
        "pair_id",
        "prompt_images",
        "prompt_content",
        "prompt_metadata",
        *_ANNOTATORS,
    ),
}
"""Those that are read of files with columns."""

LIST_KEY = "pairs"
"""MMRB2's file is one object that holds its rows under this key."""

_KEYS = {form.name: form.keys for form in reversed(_FORMS)}  # of forms with one name, those of the first
_LOOKED_FOR = "Looked for: " + "; ".join(f"{name} ({', '.join(keys)})" for name, keys in reversed(_KEYS.items()))
