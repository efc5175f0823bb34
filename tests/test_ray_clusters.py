from __future__ import annotations

import socket
from pathlib import Path

import pytest

from image_reward.cli import main
from image_reward.errors import InputError
from image_reward.ray_clusters import connect


@pytest.fixture
def closed() -> str:
    """An address at which nobody listens."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{own.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nobody_listens_there_is_an_error_at_once(scheme: str, closed: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(
        InputError, match=rf"no Ray cluster answers at {scheme}{closed}: .*; see `ray status` there and correct the address"
    ):
        connect(scheme + closed)


@pytest.mark.parametrize(
    "address", ["no-such-host.invalid:6379", "127.0.0.1:70000", "127.0.0.1:-1", "127.0.0.1:", ":6379x", "a" * 70 + ".com:6379", "..:6379"]
)
def test_addresses_that_cannot_be_connected_to(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=f"no Ray cluster answers at {address}: "):
        connect(address)


def test_a_job_says_so_in_one_line(closed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    (tmp_path / "rows.csv").write_text("prompt,image\na,b.png\n")
    arguments = ["score-files", str(tmp_path / "rows.csv"), str(tmp_path / "out"), "--model", "ImageReward-mini"]
    assert main([*arguments, "--engine", "ray", "--ray-address", closed]) != 0
    assert f"image-reward: no Ray cluster answers at {closed}" in capsys.readouterr().err
