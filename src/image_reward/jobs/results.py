"""What is done with a scored file: keep its best rows, and look at it as a whole. Memory does not grow with rows."""

from __future__ import annotations

import heapq
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_reward.errors import JobError
from image_reward.jobs.arrow import text_array
from image_reward.jobs.buckets import Buckets, group_starts
from image_reward.jobs.files import Access, Folder, digest, join, scheme, whole_file, writing
from image_reward.jobs.folder import DIGEST_SIZE, digests_of, part_numbers, quarantined_rows, read_manifest, tables, write_rows
from image_reward.jobs.rows import image_named
from image_reward.jobs.shards import reward_columns

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray

_NUM_BINS = 60
_NUM_KINDS = 1000  # of errors that are told apart


class Scored:
    """The folder of a job. Raises ``JobError`` where there is none, or where its job is not done."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Folder(os.fspath(path).rstrip("/"))
        self.manifest = read_manifest(self.folder)
        self.names: list[str] = [scorer["name"] for scorer in self.manifest["scorers"]]
        self.columns = reward_columns(self.names)
        self.image_column: str = self.manifest["image_column"]
        self.prompt_column: str = self.manifest["input"]["prompt_column"]
        self.num_rows = sum(len(table) for table in tables(self.folder, ["error"]))
        self.quarantined = quarantined_rows(self.folder)
        parts = set(part_numbers(self.folder.names()))
        self.num_lost = sum(shard not in parts for shard in self.quarantined)  # given up, and even reading them ends a worker
        if self.num_rows + self.num_lost != self.manifest["num_rows"]:
            raise JobError(
                f"{self.folder.path} holds {self.num_rows:,} of {self.manifest['num_rows']:,} rows; "
                "finish the job first, with the command that began it"
            )

    def column(self, by: str | None) -> str:
        """The column of a scorer's rewards; with one scorer it need not be named."""
        if by is None and len(self.columns) == 1:
            return self.columns[0]
        for name, column in zip(self.names, self.columns, strict=True):
            if by in (name, column):
                return column
        said = "several scorers; name the one to go by" if by is None else f"no scorer {by!r}"
        raise JobError(f"{self.folder.path} has {said}: --by {' or '.join(self.names)}")

    def rewards(self, column: str) -> Iterator[NDArray[Any]]:
        """Rewards of each part, float32, NaN where there is none."""
        for table in tables(self.folder, [column]):
            yield table.column(0).to_numpy()

    def image(self, name: str) -> Any:
        """Something ``open_image`` takes, for what the image column says. Raises what reading raises."""
        access = Access(allow_https=False)
        found = image_named(self.manifest["base"], name, self.image_column, access)
        return access.read(found) if isinstance(found, str) and scheme(found) else found


# --- keeping rows --------------------------------------------------------------------------------------------------------------------


def filter_rows(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | Any,
    *,
    min_reward: float | None = None,
    top_fraction: float | None = None,
    best_per_prompt: int | None = None,
    by: str | None = None,
) -> int:
    """Write the rows of a scored file that are good enough, in their order. Rows with an error are never kept.

    Args:
        folder: what ``score_files`` wrote, whole.
        output: a .parquet, .csv or .jsonl file, whose image paths are then relative to it; or a text stream, which gets JSONL with
            absolute paths.
        min_reward: keep rewards of at least this.
        top_fraction: keep this share of the rows that have a reward, in (0, 1], rounded up; of equal rewards the first.
        best_per_prompt: keep so many rows of each prompt, the best; of equal rewards the first.
        by: the scorer to go by, where there are several.

    Returns how many rows were kept. Raises ``JobError`` or ``ValueError``.
    """
    if sum(value is not None for value in (min_reward, top_fraction, best_per_prompt)) != 1:
        raise ValueError("give one of min_reward, top_fraction and best_per_prompt")
    scored = Scored(folder)
    column = scored.column(by)
    if min_reward is not None:
        if math.isnan(min_reward):
            raise ValueError("min_reward is not a number")
        least = min_reward
        keep: Callable[[int, NDArray[Any]], NDArray[Any]] = lambda _, rewards: rewards >= np.float64(least)  # noqa: E731
    elif top_fraction is not None:
        if not 0 < top_fraction <= 1:
            raise ValueError(f"top_fraction must be in (0, 1], not {top_fraction}")
        keep = _Top(scored, column, top_fraction)
    else:
        assert best_per_prompt is not None
        if best_per_prompt < 1:
            raise ValueError(f"best_per_prompt must be at least 1, not {best_per_prompt}")
        kept = _best_per_prompt(scored, column, best_per_prompt)
        keep = lambda start, rewards: kept[start : start + len(rewards)]  # noqa: E731

    count = 0

    def parts(base: str | None) -> Iterator[pyarrow.Table]:
        nonlocal count
        start = 0
        for table in tables(scored.folder):
            mask = keep(start, table.column(column).to_numpy())
            start += len(table)
            table = _moved(table.filter(mask).replace_schema_metadata(None), scored, base)
            count += len(table)
            yield table

    if not isinstance(output, str | os.PathLike):
        write_rows(output, "jsonl", parts(None))
        return count
    path = Path(output)
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv", ".jsonl"):
        raise ValueError(f"{path}: rows are written as .parquet, .csv or .jsonl; give it a name that ends so")
    if part_numbers([path.name]) and os.path.realpath(path.parent) == os.path.realpath(scored.folder.path):
        raise ValueError(f"{path} is a part of the job itself; give the rows another name")
    with writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(str(path)), whole_file(path) as file:
        if suffix == ".parquet":
            _write_parquet(file, parts(str(path.parent)))
        else:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            write_rows(text, suffix[1:], parts(str(path.parent)))
            text.detach()
    return count


def _write_parquet(file: Any, parts: Iterator[pyarrow.Table]) -> None:
    from pyarrow.parquet import ParquetWriter

    writer = None
    for table in parts:
        writer = writer or ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None  # a job has a part
    writer.close()


def _moved(table: pyarrow.Table, scored: Scored, base: str | None) -> pyarrow.Table:
    """Image paths that are relative to the input become relative to another folder, or absolute."""
    root: str = scored.manifest["base"]
    if scheme(root):
        moved = [name and join(root, name) for name in table.column(scored.image_column).to_pylist()]
    else:
        moved = [
            name
            if not name or scheme(name) or Path(name).is_absolute()
            else os.path.relpath(join(root, name), base)
            if base
            else join(root, name)
            for name in table.column(scored.image_column).to_pylist()
        ]
    place = table.schema.get_field_index(scored.image_column)
    return table.set_column(place, scored.image_column, text_array(moved))


def _sortable(rewards: NDArray[Any]) -> NDArray[Any]:
    """float32 -> uint32 in the same order: the trick of radix sort on IEEE numbers."""
    bits = np.ascontiguousarray(rewards, dtype=np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


class _Top:
    """Keeps the best so many rewards, found in two passes that count the upper and then the lower halves of their bits."""

    def __init__(self, scored: Scored, column: str, fraction: float) -> None:
        def keys() -> Iterator[NDArray[Any]]:
            for rewards in scored.rewards(column):
                yield _sortable(rewards[~np.isnan(rewards)])

        upper = sum((np.bincount(found >> 16, minlength=1 << 16) for found in keys()), np.zeros(1 << 16, dtype=np.int64))
        num = int(upper.sum())
        wanted = max(min(1, num), math.ceil(round(fraction * num, 6)))  # rounded: 0.1 of 30 rows are 3, not 4
        high, wanted = _place_from_the_end(upper, wanted)
        lower = sum(
            (np.bincount(found[found >> 16 == high] & 0xFFFF, minlength=1 << 16) for found in keys()), np.zeros(1 << 16, dtype=np.int64)
        )
        low, self.num_equal = _place_from_the_end(lower, wanted)
        self.threshold = (high << 16) | low

    def __call__(self, start: int, rewards: NDArray[Any]) -> NDArray[Any]:
        del start
        keys = _sortable(rewards)
        valid = ~np.isnan(rewards)
        equal = valid & (keys == self.threshold)
        first = equal & (np.cumsum(equal) <= self.num_equal)
        self.num_equal -= int(first.sum())
        return (valid & (keys > self.threshold)) | first


def _place_from_the_end(counts: NDArray[Any], wanted: int) -> tuple[int, int]:
    """The bin in which the ``wanted``-th greatest value is, and which of the bin's values it is."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, wanted)) if wanted else 0
    found = len(counts) - 1 - place
    return found, wanted - (int(above[place - 1]) if place else 0)


def _best_per_prompt(scored: Scored, column: str, count: int) -> NDArray[Any]:
    """Which rows are kept: bool [num_rows]."""
    kept = np.zeros(scored.num_rows, dtype=bool)
    with Buckets([("reward", "<f4"), ("row", "<u8")]) as buckets:
        start = 0
        for table in tables(scored.folder, [scored.prompt_column, column]):
            rewards = table.column(column).to_numpy()
            valid = np.flatnonzero(~np.isnan(rewards))
            prompts = table.column(scored.prompt_column).to_pylist()
            buckets.add(b"".join(_text_digest(prompts[row]) for row in valid), reward=rewards[valid], row=valid + start)
            start += len(table)
        for records in buckets:
            order = np.lexsort((records["row"], -records["reward"], records["low"], records["high"]))
            records = records[order]
            starts = group_starts(records)
            firsts = np.flatnonzero(starts)
            place = np.arange(len(records)) - (np.repeat(firsts, np.diff([*firsts, len(records)])) if len(records) else 0)
            kept[records["row"][place < count]] = True
    return kept


def _text_digest(text: object) -> bytes:
    return digest(str(text).encode("utf-8", "surrogatepass"))


# --- looking at it as a whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownRow:
    """A row that has a reward."""

    prompt: str | None
    image: str
    reward: float
    row: int
    """Its place in the input, from 0."""


@dataclass(frozen=True)
class RewardSummary:
    """The rewards of one scorer."""

    name: str
    column: str
    num: int
    mean: float | None
    std: float | None
    quantiles: dict[str, float]
    """Share below -> reward, exact to a bin of the histogram's width."""
    bins: list[float]
    """Edges of a histogram."""
    counts: list[int]
    best: list[ShownRow]
    worst: list[ShownRow]


@dataclass(frozen=True)
class JobSummary:
    """A scored file as a whole."""

    folder: str
    num_rows: int
    num_errors: int
    errors: dict[str, int]
    """Kind -> rows, most frequent first."""
    examples: dict[str, str]
    """Kind -> the first such error."""
    num_images: int
    """Different contents of image files among the rows whose image could be read."""
    num_copies: int
    """Rows whose image has a content that an earlier row's had."""
    num_repeated_pairs: int
    """Rows whose prompt and image content are those of an earlier row."""
    num_repeated_ids: int
    num_quarantined: int
    scorers: list[RewardSummary]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def summarize(folder: str | os.PathLike[str], num_shown: int = 12) -> JobSummary:
    """Distribution, best and worst, errors by kind, and what occurs more than once. Raises ``JobError``."""
    scored = Scored(folder)
    errors: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with Buckets([]) as images, Buckets([]) as pairs:
        for table in tables(scored.folder):
            for error in table.column("error").drop_null().to_pylist():
                kind = error.partition(":")[0]
                kind = kind if kind in errors or len(errors) < _NUM_KINDS else "others"
                errors[kind] += 1
                examples.setdefault(kind, error.removeprefix(f"{kind}: "))
            found = digests_of(table)
            prompts = table.column(scored.prompt_column).to_pylist()
            seen = [
                (found[DIGEST_SIZE * n : DIGEST_SIZE * (n + 1)], prompt)
                for n, prompt in enumerate(prompts)
                if any(found[DIGEST_SIZE * n : DIGEST_SIZE * (n + 1)])
            ]
            images.add(b"".join(content for content, _ in seen))
            pairs.add(b"".join(digest(content + _text_digest(prompt)) for content, prompt in seen))
        num_seen = num_images = num_pairs = 0
        for records in images:
            num_seen += len(records)
            num_images += int(group_starts(records).sum())
        for records in pairs:
            num_pairs += int(group_starts(records).sum())
    if scored.num_lost:
        errors["Quarantined"] += scored.num_lost
        examples.setdefault("Quarantined", "not even the row could be read")
    return JobSummary(
        scored.folder.path,
        scored.num_rows + scored.num_lost,
        sum(errors.values()),
        dict(errors.most_common()),
        examples,
        num_images,
        num_seen - num_images,
        num_seen - num_pairs,
        scored.manifest["repeated_ids"],
        len(scored.quarantined),
        [_summary(scored, name, column, num_shown) for name, column in zip(scored.names, scored.columns, strict=True)],
    )


def _summary(scored: Scored, name: str, column: str, num_shown: int) -> RewardSummary:
    num, total, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for rewards in scored.rewards(column):
        rewards = rewards[~np.isnan(rewards)].astype(np.float64)
        if len(rewards):
            num, total = num + len(rewards), total + float(rewards.sum())
            low, high = min(low, float(rewards.min())), max(high, float(rewards.max()))
    if not num:
        return RewardSummary(name, column, 0, None, None, {}, [], [], [], [])
    mean = total / num
    fine = np.zeros(100 * _NUM_BINS, dtype=np.int64)
    span = (low, high if high > low else low + 1e-6)
    best: list[tuple[float, int, ShownRow]] = []
    worst: list[tuple[float, int, ShownRow]] = []
    row = 0
    for table in tables(scored.folder, list(dict.fromkeys([scored.prompt_column, scored.image_column, column]))):
        values = table.column(column).to_numpy().astype(np.float64)
        valid = np.flatnonzero(~np.isnan(values))
        squares += float(((values[valid] - mean) ** 2).sum())
        fine += np.histogram(values[valid], bins=len(fine), range=span)[0]
        order = valid[np.argsort(values[valid], kind="stable")]
        for heap, places, sign in ((best, order[::-1][:num_shown], 1.0), (worst, order[:num_shown], -1.0)):
            for place in places:
                key = (sign * float(values[place]), -(row + int(place)))
                if len(heap) < num_shown or key > heap[0][:2]:
                    shown = ShownRow(
                        prompt=table.column(scored.prompt_column)[int(place)].as_py(),
                        image=table.column(scored.image_column)[int(place)].as_py(),
                        reward=float(values[place]),
                        row=row + int(place),
                    )
                    (heapq.heappush if len(heap) < num_shown else heapq.heapreplace)(heap, (*key, shown))
        row += len(table)
    edges = np.linspace(*span, len(fine) + 1)
    below = np.cumsum(fine)
    quantiles = {f"{share:g}": float(edges[np.searchsorted(below, share * num) + 1]) for share in _SHARES}
    return RewardSummary(
        name,
        column,
        num,
        mean,
        math.sqrt(squares / num),
        quantiles,
        edges[::100].tolist(),
        fine.reshape(_NUM_BINS, 100).sum(axis=1).tolist(),
        [shown for *_, shown in sorted(best, key=lambda entry: entry[:2], reverse=True)],
        [shown for *_, shown in sorted(worst, key=lambda entry: entry[:2], reverse=True)],
    )
