"""The rows of a scored folder, a page at a time, for what shows them to people."""

from __future__ import annotations

import os
import threading
from typing import Any

from image_reward.addresses import Entry
from image_reward.jobs.folder import part_numbers, value_at
from image_reward.jobs.results import Scored

_NUM_BINS = 48
_SHOWN = 10_000  # characters of an id, a prompt, a name or an error


class ScoredPages:
    """What can be asked of the folder of a job, by several threads at once. Raises ``JobError`` as ``Scored`` does."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._scored = Scored(folder)
        self.name = self._scored.folder.address.name or self._scored.folder.path
        self.columns = self._scored.columns
        self.num_rows = self._scored.num_rows
        names = self._scored.manifest["columns"]
        self._id = self._scored.sql("id") if "id" in names else "NULL"
        self._prompt, self._image, self._error = map(self._scored.sql, (self._scored.prompt_column, self._scored.image_column, "error"))

        self._lock = threading.Lock()
        self._parts: list[Entry] = []
        """As they were when the histograms were counted."""
        self._histograms: dict[str, tuple[float | None, float | None, list[int]]] = {}

    def histogram(self, column: str) -> tuple[float | None, float | None, list[int]]:
        """The least and greatest reward, None if there is none, and the numbers of rows in 48 equal bins between the two.

        They are counted once, until a part of the folder changes.
        """
        with self._lock:
            folder = self._scored.folder
            parts = [entry for entry in folder.address.entries() if part_numbers([entry.name])] if folder.exists() else []
            if parts != self._parts:
                self._parts, self._histograms = parts, {}
            if column not in self._histograms:
                self._histograms[column] = self._histogram(column)
            return self._histograms[column]

    def _histogram(self, column: str) -> tuple[float | None, float | None, list[int]]:
        reward = f"{self._scored.sql(column)}::DOUBLE"
        counts = [0] * _NUM_BINS
        if not self.num_rows:
            return None, None, counts
        with self._scored.database() as connection:
            low, high = connection.execute(f"SELECT min({reward}), max({reward}) FROM parts").fetchall()[0]
            if low is not None:
                bins = connection.execute(
                    f"SELECT least(floor(({reward} - ?) / ?)::INTEGER, {_NUM_BINS - 1}) AS bin, count(*) FROM parts "
                    f"WHERE {reward} IS NOT NULL GROUP BY bin",
                    [low, (high - low) / _NUM_BINS or 1.0],
                )
                for number, num in bins.fetchall():
                    counts[number] = num
        return low, high, counts

    def page(
        self,
        column: str,
        order: str = "reward",
        descending: bool = True,
        low: float | None = None,
        high: float | None = None,
        text: str = "",
        errors: bool = False,
        offset: int = 0,
        limit: int = 100,
    ) -> tuple[int, list[dict[str, Any]]]:
        """How many rows there are with a reward in [low, high] and a text in their prompt or image, whatever its case, with or without
        those that have no reward, and ``limit`` of them: ``part``, ``row``, ``id``, ``prompt``, ``image``, ``reward`` and ``error``.

        ``order``: reward, prompt, image or place; rows without reward are last.
        """
        if not self.num_rows:
            return 0, []
        reward = f"{self._scored.sql(column)}::DOUBLE"
        bounds = [(f"{reward} >= ?", low), (f"{reward} <= ?", high)]
        passes = " AND ".join([f"{reward} IS NOT NULL", *(condition for condition, bound in bounds if bound is not None)])
        values: list[Any] = [bound for _, bound in bounds if bound is not None]
        where = f"(({passes}) OR {reward} IS NULL)" if errors else f"({passes})"
        if text:
            where += f" AND (contains(lower({self._prompt}), lower(?)) OR contains(lower({self._image}), lower(?)))"
            values += [text, text]
        direction = "DESC" if descending else "ASC"
        by = {"reward": reward, "prompt": self._prompt, "image": self._image}
        place = "part, row" if order != "place" else f"part {direction}, row {direction}"
        ordered = f"{by[order]} {direction} NULLS LAST, {place}" if order in by else place
        shown = ", ".join(f"left({name}, {_SHOWN})" for name in (f"{self._id}::VARCHAR", self._prompt, self._image))
        with self._scored.database() as connection:
            (num,) = connection.execute(f"SELECT count(*) FROM parts WHERE {where}", values).fetchall()[0]
            rows = connection.execute(
                f"SELECT part, row, {shown}, {reward}, left({self._error}, {_SHOWN}) FROM parts WHERE {where} "
                f"ORDER BY {ordered} LIMIT {int(limit)} OFFSET {int(offset)}",
                values,
            ).fetchall()
        keys = ("part", "row", "id", "prompt", "image", "reward", "error")
        return num, [dict(zip(keys, row, strict=True)) for row in rows]

    def picture(self, part: int, row: int) -> Any:
        """Something ``open_image`` takes. Raises ``LookupError`` for a row that does not exist, and what reading raises."""
        name = value_at(self._scored.folder, part, row, self._scored.image_column)
        if name is None:
            raise LookupError(f"no image in row {row} of part {part}")
        return self._scored.image(name)
