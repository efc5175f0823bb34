from __future__ import annotations

from pathlib import Path

import pytest
import stubs

from image_reward.errors import JobError


@pytest.mark.parametrize("content", ["junk", "[]", "{}\nnull\n", '{"0": "x"}', "[" * 100_000, '{"0": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("name", ["manifest.json", "tries.json", "quarantine.jsonl"])
def test_a_damaged_file_of_a_job_is_named(name: str, content: str, tmp_path: Path) -> None:
    stubs.draw(tmp_path / "images", 1)
    (tmp_path / "rows.csv").write_text("prompt,image\na cat,images/0.png\n")
    stubs.score_here(tmp_path / "rows.csv", tmp_path / "out", stubs.load)
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(JobError, match=name):
        stubs.score_here(tmp_path / "rows.csv", tmp_path / "out", stubs.load)
