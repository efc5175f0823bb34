from __future__ import annotations

import sys
from pathlib import Path

import pytest

from image_reward.errors import JobError
from image_reward.jobs.database import database


def test_it_spills_to_a_folder_that_goes_with_it() -> None:
    with database() as connection:
        (folder,) = connection.execute("SELECT current_setting('temp_directory')").fetchone()
        connection.execute("CREATE TABLE numbers AS SELECT range AS n FROM range(1000)")
        assert connection.execute("SELECT sum(n) FROM numbers").fetchone() == (499_500,)
        assert Path(folder).is_dir()
    assert not Path(folder).exists()
    with database() as connection:
        assert connection.execute("SELECT count(*) FROM information_schema.tables").fetchone() == (0,)


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(JobError, match=r"pip install 'image-reward\[jobs\]'"), database():
        pass
