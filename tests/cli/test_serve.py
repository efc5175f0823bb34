from __future__ import annotations

import threading
from pathlib import Path

import pytest

from image_reward.cli import main, serve

TOKEN = "0123456789abcdef"


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["serve", "--model", "ImageReward-mini", *arguments])
    return code, capsys.readouterr().err


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "give --token-file"),
        (["--host", "::"], "give --token-file"),
        (["--host", "0.0.0.0", "--without-token", "--flow-grpo"], "--flow-grpo-from-anywhere"),
        (["--port", "70000"], "--port must be"),
        (["--decoders", "0"], "--decoders must be"),
        (["--max-body", "0"], "--max-body must be a number above 0"),
        (["--drain-seconds", "inf"], "--drain-seconds must be a number above 0"),
        (["--replicas", "2"], "need --engine ray"),
        (["--max-images", "10", "--max-queue", "5"], "must not be more than"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = failure(capsys, *arguments)
    assert code == 2
    assert message in errors


def test_a_token_and_none_exclude_each_other(token_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--token-file", str(token_file), "--without-token"]) == 2
    assert "--token-file and --without-token exclude each other" in capsys.readouterr().err


def test_flow_grpo_knows_no_token(token_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = failure(capsys, "--flow-grpo", "--token-file", str(token_file))
    assert (code, "exclude each other" in errors) == (2, True)


@pytest.mark.parametrize("content", ["", "short", "two words of length", "a-tökén-of-some-length"])
def test_a_file_that_holds_no_token(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    code, errors = failure(capsys, "--token-file", str(path))
    assert (code, "holds no token" in errors) == (1, True)
    assert failure(capsys, "--token-file", str(tmp_path / "none"))[0] == 1


def test_the_token_is_a_line(token_file: Path) -> None:
    assert serve._token(token_file) == TOKEN


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve, "_PACKAGES", ("no_such_package",))
    code, errors = failure(capsys)
    assert code == 1
    assert "pip install 'image-reward[serve]'" in errors


def test_a_folder_to_browse_is_that_of_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = failure(capsys, "--browse", str(tmp_path))
    assert (code, "it has no manifest.json" in errors) == (1, True)


@pytest.mark.parametrize(("display", "opened"), [("", []), (":0", ["http://127.0.0.1:8000"])])
def test_the_page_is_opened_where_there_is_a_display(display: str, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere, ``webbrowser`` would start a browser for text, which takes the terminal."""
    asked: list[str] = []
    done = threading.Event()
    monkeypatch.setattr(serve.sys, "platform", "linux")
    monkeypatch.setattr(serve.webbrowser, "open", lambda url: (asked.append(url), done.set()))
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    serve.Serve(model=["ImageReward-mini"], open=True)._say("tiny", "http://0.0.0.0:8000")
    assert done.wait(60 if opened else 0) is bool(opened)
    assert asked == opened
