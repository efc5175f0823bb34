"""The same requests to the service as one process and as replicas on a Ray cluster."""

from __future__ import annotations

import http.client
import io
import json
import pickle
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from clients import IMAGES, until

from conftest import tiny
from image_reward.client import Client
from image_reward.errors import ImageReadError, InputError, UnknownModelError
from image_reward.scorers import ImageRewardScorer
from image_reward.serving.server import listen
from image_reward.serving.settings import Replicas

PROMPT = "a cat"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, only_ray_cluster: None) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("model")
    tiny(ImageRewardScorer).save_pretrained(folder)
    return folder


@contextmanager
def started(engine: str, model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a process group of its own, and its address."""
    command = [sys.executable, "-m", "image_reward.cli", "serve", "--model", str(model), "--port", "0", "--engine", engine, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if match := re.fullmatch(r"serving .+ at (http://127\.0\.0\.1:\d+)\n", line):
                    break
            else:
                pytest.fail("".join(lines))
            yield process, match[1]
        finally:
            process.kill()


# --- what starts services of its own, before there is one for all tests: two clusters on one machine get in each other's way ---


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_kill_leaves_no_process_and_frees_the_port(engine: str, model: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray.serve")
    with started(engine, model) as (process, url):
        Client(url).score(PROMPT, IMAGES[0])
        port = int(url.rpartition(":")[2])
        group = members(process.pid)
        assert (len(group) == 1) == (engine == "local")
        process.kill()
        process.wait(60)
        if engine == "local":
            listen("127.0.0.1", port).close()
        until(lambda: is_free(port))  # Ray's processes notice that they are orphans, and end
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in group))


def test_a_kill_while_ray_starts_leaves_no_process(model: Path) -> None:
    pytest.importorskip("ray.serve")
    command = [sys.executable, "-m", "image_reward.cli", "serve", "--model", str(model), "--port", "0", "--engine", "ray"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: any("raylet" in name for name in names(members(process.pid))))
            group = members(process.pid)
        finally:
            process.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in group))


def names(pids: list[int]) -> list[str]:
    commands = []
    for pid in pids:
        with suppress(OSError):
            commands.append(Path(f"/proc/{pid}/comm").read_text())
    return commands


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--replica-cpus", "4000"), " cores, too few for 1 copy of 4000; use a smaller --replica-cpus"),
        (("--replicas", "3000", "--replica-cpus", "0.5"), " cores, too few for 3000 copies of 0.5"),
        (("--replica-gpus", "64"), " GPUs, too few for 1 copy of 64; use a smaller --replica-gpus"),
    ],
)
def test_more_than_there_is_is_refused(options: tuple[str, ...], message: str, model: Path) -> None:
    """Ray itself would wait for ever."""
    pytest.importorskip("ray.serve")
    command = [sys.executable, "-m", "image_reward.cli", "serve", "--model", str(model), "--port", "0", "--engine", "ray", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1, ended.stderr
    assert message in ended.stderr


def members(pid: int) -> list[int]:
    """A process and its descendants."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
    parents = {int(line.split()[0]): int(line.split()[1]) for line in lines}
    own = [pid]
    for number in own:
        own += [child for child, parent in parents.items() if parent == number]
    return own


def is_free(port: int) -> bool:
    try:
        listen("127.0.0.1", port).close()
    except InputError:
        return False
    return True


@pytest.fixture(scope="module", params=["local", "ray"])
def service(request: pytest.FixtureRequest, model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    if request.param == "ray":
        pytest.importorskip("ray.serve")
    with started(request.param, model, "--flow-grpo", "--max-body", "1000000") as (process, url):
        yield process, url
        # The last of what both must do: an end that was asked for.
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


@pytest.fixture(scope="module")
def url(service: tuple[Any, str]) -> str:
    return service[1]


@pytest.fixture(scope="module")
def local() -> ImageRewardScorer:
    return tiny(ImageRewardScorer)


def post(url: str, data: bytes, kind: str = "application/octet-stream") -> bytes:
    with urlopen(Request(url, data, {"content-type": kind}), timeout=120) as answer:
        return answer.read()


def test_a_client_gets_what_a_scorer_gives(url: str, local: ImageRewardScorer) -> None:
    client = Client(url)
    prompts = list("abcdef")
    assert client.score(prompts, IMAGES) == pytest.approx(local.score(prompts, IMAGES), abs=1e-5)
    assert client.rank(PROMPT, IMAGES).ranking == local.rank(PROMPT, IMAGES).ranking
    assert client.compare(PROMPT, *IMAGES[:2]).a_better == pytest.approx(local.compare(PROMPT, *IMAGES[:2]).a_better, abs=1e-5)
    np.testing.assert_allclose(client.matrix(prompts, IMAGES), local.matrix(prompts, IMAGES), rtol=0, atol=1e-5)


def test_what_is_refused_is_named(url: str) -> None:
    with pytest.raises(ImageReadError, match=r"not an image"):
        Client(url).score(PROMPT, [IMAGES[0], b"not an image"])
    with pytest.raises(UnknownModelError, match="no model is called"):
        Client(url, model="another").score(PROMPT, IMAGES[0])


def test_trainers_are_answered(url: str, local: ImageRewardScorer) -> None:
    asked = {"images": IMAGES[:2], "prompts": np.array(["a", "b"])}
    assert pickle.loads(post(url, pickle.dumps(asked)))["outputs"] == pytest.approx(local.score(["a", "b"], IMAGES[:2]), abs=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    np.save(file, pixels)
    head = {"media_type": "image", "prompts": ["a", "b"], "reward_fn": {"image_reward": 1.0}}
    name = json.loads(post(f"{url}/api/reward/enqueue", json.dumps(head).encode() + b"\n" + file.getvalue()))["uuid"]
    answers: list[bytes] = []

    def is_there() -> bool:
        with suppress(OSError):  # 400 until it is there
            answers.append(post(f"{url}/api/reward/pull", f"uuid={name}".encode(), "application/x-www-form-urlencoded"))
        return bool(answers)

    until(is_there)
    assert json.loads(answers[0])["scores"]["image_reward"] == pytest.approx(local.score(["a", "b"], list(pixels)), abs=1e-5)


def test_a_body_without_end_is_refused(url: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=120)
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/v1/score", (bytes(1 << 20) for _ in range(200)), encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["field"] == "body"
    connection.close()


def test_a_page_of_another_site_is_not_answered(url: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=120)
    connection.request("GET", "/v1/models", headers={"Host": "attacker.example"})
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize(
    ("replicas", "message"),
    [
        (Replicas(replicas=0), "at least 1"),
        (Replicas(replicas=3, max_replicas=2), "must not be less"),
        (Replicas(replica_cpus=0), "above 0"),
        (Replicas(replica_gpus=-1), "not below"),
    ],
)
def test_replicas_that_make_no_sense(replicas: Replicas, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replicas.check()
