"""What is done with a scored file: keep its best rows, and look at it as a whole. Memory does not grow with rows."""

from __future__ import annotations

import glob
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_reward.addresses import Address, join, scheme
from image_reward.errors import InputError, JobError
from image_reward.jobs.arrow import text_array
from image_reward.jobs.database import database
from image_reward.jobs.files import Access, Folder, writing
from image_reward.jobs.folder import DIGEST_SIZE, DIGESTS, part_name, part_numbers, quarantined_rows, read_manifest, tables, write_rows
from image_reward.jobs.inputs import image_named
from image_reward.jobs.shards import reward_columns

if TYPE_CHECKING:
    import pyarrow

_MOST_BINS = 60
_NUM_FINE = 6000  # bins that quantiles are read from


class Scored:
    """The folder of a job. Raises ``JobError`` where there is none, or where its job is not done."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Folder.at(path)
        self.manifest = read_manifest(self.folder)
        self.names: list[str] = [scorer["name"] for scorer in self.manifest["scorers"]]
        self.columns = reward_columns(self.names)
        self.image_column: str = self.manifest["image_column"]
        self.prompt_column: str = self.manifest["input"]["prompt_column"]
        self.quarantined = quarantined_rows(self.folder)
        parts = set(part_numbers(self.folder.names()))
        self.num_lost = sum(shard not in parts for shard in self.quarantined)  # given up, and even reading them ends a worker
        self.num_rows = 0
        if parts:
            with self.database() as connection:
                (self.num_rows,) = connection.execute("SELECT count(*) FROM parts").fetchall()[0]
        if self.num_rows + self.num_lost != self.manifest["num_rows"]:
            raise JobError(
                f"{self.folder.path} holds {self.num_rows:,} of {self.manifest['num_rows']:,} rows; "
                "finish the job first, with the command that began it"
            )

    def database(self) -> AbstractContextManager[Any]:
        """The rows as ``_parts`` has them."""
        return _parts(self.folder, self._all_columns)

    @property
    def _all_columns(self) -> list[str]:
        return [*self.manifest["columns"], *self.columns, "error"]

    def sql(self, column: str) -> str:
        """What DuckDB calls a column."""
        return f"c{self._all_columns.index(column)}"

    def column(self, by: str | None) -> str:
        """The column of a scorer's rewards; with one scorer it need not be named."""
        if by is None and len(self.columns) == 1:
            return self.columns[0]
        for name, column in zip(self.names, self.columns, strict=True):
            if by in (name, column):
                return column
        said = "several scorers; name the one to go by" if by is None else f"no scorer {by!r}"
        raise JobError(f"{self.folder.path} has {said}: --by {' or '.join(self.names)}")

    def image(self, name: str) -> Any:
        """Something ``open_image`` takes, for what the image column says. Raises what reading raises."""
        access = Access(allow_https=False)
        found = image_named(self.manifest["base"], name, self.image_column, access)
        return access.read(found) if isinstance(found, str) and scheme(found) else found


@contextmanager
def _parts(folder: Folder, columns: Sequence[str]) -> Iterator[Any]:
    """A database with the rows of a job as ``parts``, and the digests of their image files as ``digests``.

    ``columns``: all that the parts have, in their order. The n-th is called ``c{n}``, because names that differ only in case are one to
    DuckDB. ``part`` and ``row`` say where a row is. ``digests`` has ``part``, ``row`` and ``digest``, in hexadecimal, for the rows whose
    image could be read. Raises ``JobError`` for a part that is damaged.
    """
    with database() as connection:
        import duckdb

        paths = [f"{folder.path}/{part_name(number)}" for number in part_numbers(folder.names())]
        if folder.remote:
            connection.register_filesystem(folder.address.file_system())
        else:
            paths = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - a string
        paths = [glob.escape(path) for path in paths]
        files = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        names = ", ".join([*(f"c{n}" for n in range(len(columns))), "row", "file"])
        part = r"regexp_extract({}, 'part-(\d+)\.parquet$', 1)::BIGINT AS part"
        characters = 2 * DIGEST_SIZE
        try:
            connection.execute(
                f"CREATE TEMP VIEW parts AS SELECT * EXCLUDE (file), {part.format('file')} "
                f"FROM read_parquet([{files}], file_row_number = true, filename = 'image_reward.file') AS p({names})"
            )
            connection.execute(  # split at once: to cut each digest out of the text of all takes the square of the rows of a part
                f"CREATE TEMP VIEW digests AS SELECT * FROM (SELECT part, unnest(found) AS digest, unnest(range(len(found))) AS row FROM "
                f"(SELECT {part.format('file_name')}, regexp_extract_all(hex(from_base64(decode(value))), '.{{{characters}}}') AS found "
                f"FROM parquet_kv_metadata([{files}]) WHERE decode(key) = '{DIGESTS.decode()}')) WHERE digest <> repeat('0', {characters})"
            )
            yield connection
        except duckdb.Error as error:
            for _ in tables(folder):  # says which part is damaged
                pass
            raise JobError(f"the rows in {folder.path} could not be queried: {error}") from error


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
        output: a .parquet, .csv or .jsonl file, whose image paths are then relative to it (in an object store: absolute); or a text
            stream, which gets JSONL with absolute paths.
        min_reward: keep rewards of at least this.
        top_fraction: keep this share of the rows that have a reward, in (0, 1], rounded up; of equal rewards the first.
        best_per_prompt: keep at most this many rows of each prompt, the best; of equal rewards the first.
        by: the scorer to go by, where there are several.

    Returns how many rows were kept. Raises ``JobError`` or ``ValueError``.
    """
    if sum(value is not None for value in (min_reward, top_fraction, best_per_prompt)) != 1:
        raise InputError("give one of min_reward, top_fraction and best_per_prompt")
    if min_reward is not None and math.isnan(min_reward):
        raise InputError("min_reward is not a number")
    if top_fraction is not None and not 0 < top_fraction <= 1:
        raise InputError(f"top_fraction must be in (0, 1], not {top_fraction}")
    if best_per_prompt is not None and best_per_prompt < 1:
        raise InputError(f"best_per_prompt must be at least 1, not {best_per_prompt}")
    scored = Scored(folder)
    reward, prompt = scored.sql(scored.column(by)), scored.sql(scored.prompt_column)
    query = f"SELECT part, row FROM parts WHERE {reward} IS NOT NULL"
    best_first = f"{reward} DESC, part, row"
    count = 0

    def parts(base: str | None) -> Iterator[pyarrow.Table]:
        nonlocal count
        with scored.database() as connection:
            if min_reward is not None:
                kept = connection.sql(f"{query} AND {reward}::DOUBLE >= ? ORDER BY part, row", params=[min_reward])
            elif top_fraction is not None:
                (num,) = connection.execute(f"SELECT count({reward}) FROM parts").fetchall()[0]
                wanted = max(min(1, num), math.ceil(round(top_fraction * num, 6)))  # rounded: 0.1 of 30 rows are 3, not 4
                kept = connection.sql(f"FROM ({query} ORDER BY {best_first} LIMIT {wanted}) ORDER BY part, row")
            else:
                place = f"row_number() OVER (PARTITION BY {prompt} ORDER BY {best_first})"
                kept = connection.sql(f"FROM ({query} QUALIFY {place} <= {best_per_prompt}) ORDER BY part, row")
            for number, rows in _by_part(kept):
                [table] = tables(scored.folder, numbers=[number])
                count += len(rows)
                yield _moved(table.take(rows), scored, base)
        if not count and (numbers := part_numbers(scored.folder.names())):  # for the columns
            [table] = tables(scored.folder, numbers=numbers[:1])
            yield _moved(table.slice(0, 0), scored, base)

    if not isinstance(output, str | os.PathLike):
        write_rows(output, "jsonl", parts(None))
        return count
    path = Address.parse(output)
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv", ".jsonl"):
        raise InputError(f"{path}: rows are written as .parquet, .csv or .jsonl; give it a name that ends so")
    if part_numbers([path.name]) and _same_place(path.parent, scored.folder.address):
        raise InputError(f"{path} is a part of the job itself; give the rows another name")
    if any(_same_place(path, file) for file in _input_files(scored)):
        raise InputError(f"{path} is what was scored, and would be overwritten; give the rows another name")
    with writing(str(path)):
        path.parent.make_folder()
    base = str(path.parent) if path.is_local else None
    with writing(str(path)), path.writer() as file:
        if suffix == ".parquet":
            _write_parquet(file, parts(base))
        else:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            write_rows(text, suffix[1:], parts(base))
            text.detach()
    return count


def _input_files(scored: Scored) -> list[Address]:
    base = Address.parse(scored.manifest["base"], allow_https=True)
    return [base.join(name) for name in scored.manifest["input"].get("files", ())]


def _same_place(one: Address, other: Address) -> bool:
    if one.is_local and other.is_local:
        return os.path.realpath(one.path) == os.path.realpath(other.path)
    return one == other


def _by_part(kept: Any) -> Iterator[tuple[int, Any]]:
    """A relation of (part, row), in this order -> parts and rows of theirs, int64; a part may come several times."""
    for batch in kept.to_arrow_reader():
        parts, rows = batch.column("part").to_numpy(), batch.column("row").to_numpy()
        starts = np.flatnonzero(np.diff(parts, prepend=-1))
        yield from zip(parts[starts].tolist(), np.split(rows, starts[1:]), strict=True)


def _write_parquet(file: Any, parts: Iterator[pyarrow.Table]) -> None:
    from pyarrow.parquet import ParquetWriter

    writer = None
    for table in parts:
        writer = writer or ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None  # a job has a part
    writer.close()


def _moved(table: pyarrow.Table, scored: Scored, base: str | None) -> pyarrow.Table:
    """Image paths that are relative to the input become relative to another folder, or absolute where that is None."""
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
    return table.replace_schema_metadata(None).set_column(place, scored.image_column, text_array(moved))


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
    """Share below -> reward, exact to a 6,000th of the range of the rewards."""
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
    if not scored.num_rows:
        raise JobError(f"{scored.folder.path} holds no row that could be read; see its quarantine.jsonl")
    error, prompt = scored.sql("error"), scored.sql(scored.prompt_column)
    with scored.database() as connection:
        kinds = connection.execute(
            f"SELECT split_part({error}, ':', 1) AS kind, count(*) AS num, arg_min({error}, (part, row)) FROM parts "
            f"WHERE {error} IS NOT NULL GROUP BY kind ORDER BY num DESC, min((part, row))"
        ).fetchall()
        num_seen, num_images = connection.execute(
            "SELECT coalesce(sum(num), 0)::BIGINT, count(*) FROM (SELECT count(*) AS num FROM digests GROUP BY digest)"
        ).fetchall()[0]
        (num_pairs,) = connection.execute(
            f"SELECT count(*) FROM (SELECT DISTINCT digest, {prompt} FROM digests JOIN parts USING (part, row))"
        ).fetchall()[0]
        scorers = [_summary(connection, scored, name, column, num_shown) for name, column in zip(scored.names, scored.columns, strict=True)]
    errors = {kind: num for kind, num, _ in kinds}
    examples = {kind: example.removeprefix(f"{kind}: ") for kind, _, example in kinds}
    if scored.num_lost:
        errors["Quarantined"] = errors.get("Quarantined", 0) + scored.num_lost
        examples.setdefault("Quarantined", "not even the row could be read")
    return JobSummary(
        scored.folder.path,
        scored.num_rows + scored.num_lost,
        sum(errors.values()),
        dict(sorted(errors.items(), key=lambda item: -item[1])),
        examples,
        num_images,
        num_seen - num_images,
        num_seen - num_pairs,
        scored.manifest["repeated_ids"],
        len(scored.quarantined),
        scorers,
    )


def _num_bins(num: int) -> int:
    """By the rule of Rice, twice the cube root of how many values there are: in more bins, few values make spikes of one or two.

    >>> [_num_bins(num) for num in (1, 2, 30, 121, 1000, 1_000_000)]
    [2, 2, 6, 8, 20, 60]
    """
    most = min(int(2 * float(np.cbrt(num))), _MOST_BINS)
    return next(bins for bins in range(most, 0, -1) if _NUM_FINE % bins == 0)


def _summary(connection: Any, scored: Scored, name: str, column: str, num_shown: int) -> RewardSummary:
    reward, prompt, image = scored.sql(column), scored.sql(scored.prompt_column), scored.sql(scored.image_column)
    num, mean, std, low, high = connection.execute(
        f"SELECT count(value), avg(value), stddev_pop(value), min(value), max(value) FROM (SELECT {reward}::DOUBLE AS value FROM parts)"
    ).fetchall()[0]
    if not num:
        return RewardSummary(name, column, 0, None, None, {}, [], [], [], [])
    high = max(high, low + 1e-6)
    edges = np.linspace(low, high, _NUM_FINE + 1)
    bins = connection.execute(
        f"SELECT least(floor(({reward}::DOUBLE - ?) / ?)::INTEGER, ?) AS bin, count(*) FROM parts WHERE {reward} IS NOT NULL GROUP BY bin",
        [low, (high - low) / (len(edges) - 1), len(edges) - 2],
    ).fetchnumpy()
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    counts[bins["bin"]] = list(bins.values())[1]
    below = np.cumsum(counts)
    num_bins = _num_bins(num)
    sizes = connection.execute("SELECT part, count(*) AS num FROM parts GROUP BY part ORDER BY part").fetchnumpy()
    starts = np.cumsum(sizes["num"]) - sizes["num"]

    def shown(order: str) -> list[ShownRow]:
        rows = connection.execute(
            f"SELECT {prompt}, {image}, {reward}, part, row FROM parts WHERE {reward} IS NOT NULL "
            f"ORDER BY {reward} {order}, part, row LIMIT {num_shown}"
        ).fetchall()
        first = dict(zip(sizes["part"].tolist(), starts.tolist(), strict=True))
        return [ShownRow(text, name, value, first[part] + row) for text, name, value, part, row in rows]

    return RewardSummary(
        name,
        column,
        num,
        mean,
        std,
        {f"{share:g}": float(edges[np.searchsorted(below, share * num) + 1]) for share in _SHARES},
        edges[:: _NUM_FINE // num_bins].tolist(),
        counts.reshape(num_bins, -1).sum(axis=1).tolist(),
        shown("DESC"),
        shown("ASC"),
    )
