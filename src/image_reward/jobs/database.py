"""DuckDB: what must be sorted, grouped or counted over more rows than memory holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from image_reward.errors import JobError

_MEMORY = "1GiB"  # beyond which it spills to a temporary folder
ROW_NUMBER = "file_row_number"
"""DuckDB's name for the place of a row in its file, which therefore no column can have."""


@contextmanager
def database() -> Iterator[Any]:
    """A connection to an empty database, which ends with the block. Raises ``JobError`` where DuckDB is not installed."""
    try:
        import duckdb
    except ImportError:
        raise JobError("this needs DuckDB: pip install 'image-reward[jobs]'") from None
    with tempfile.TemporaryDirectory() as folder:
        options = {"memory_limit": _MEMORY, "temp_directory": folder, "preserve_insertion_order": "false"}
        with duckdb.connect(":memory:", config=options) as connection:
            yield connection
