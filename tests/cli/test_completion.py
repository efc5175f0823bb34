from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from image_reward.cli import COMMANDS, main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_knows_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in script] == []
    assert "prompt-is-text" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash")
def test_bash_accepts_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", str(tmp_path / "script")], check=True)
