from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_reward.cli import main


def test_sets_of_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["prompts", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("ImageReward", "DrawBench", "PartiPrompts", "HPSv2", "GenEval", "1,632"))
    assert main(["prompts", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["num_prompts"] == 100
    assert main(["prompts", "show", "ImageReward"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0]) == {"id": "005695-0057", "prompt": "a concept art of a vehicle, cyberpunk"}
    (tmp_path / "again.jsonl").write_text("\n".join(lines))
    assert main(["prompts", "show", str(tmp_path / "again.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines() == lines
