"""Downloads with the real huggingface_hub library, from a hub on this machine."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest
import torch
from huggingface_hub import constants, file_download, hf_hub_download

import hub as hubs
import seeded
from image_reward import checkpoints
from image_reward.downloads import HubFile, WebFile, fetch, find_local, verify
from image_reward.errors import CheckpointError, DownloadError
from image_reward.scorers import MODELS, ImageRewardScorer, ModelSpec, load
from image_reward.scorers.build import build_imagereward

IMAGE = seeded.image("rings", 96, 64, 3)
HANGS = 600  # s: only what hangs takes as long
CONTENT = np.random.RandomState(0).bytes(300_000)
PATH = "owner/tiny/tiny.pt"
FILE = HubFile("owner/tiny", "tiny.pt", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))  # it waits a second before it tries again
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:  # noqa: ARG001 - an empty cache
    with hubs.serve(**{PATH: CONTENT}) as hub:
        point_at(hub.url, monkeypatch)
        yield hub


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def partial_of(cache: Path) -> Path:
    return cache / "models--owner--tiny" / "blobs" / f"{FILE.sha256}.partial"


def test_download_then_find(hub: hubs.Hub, cache: Path) -> None:
    assert find_local(FILE) is None
    path = fetch(FILE)
    assert path.read_bytes() == CONTENT
    assert cache in path.parents
    assert not partial_of(cache).exists()
    assert len(hub.asked("GET")) == 1
    num_requests = len(hub.requests)
    assert fetch(FILE) == find_local(FILE) == path
    assert len(hub.requests) == num_requests  # without the network


def test_a_cut_download_goes_on_where_it_stopped(hub: hubs.Hub, cache: Path) -> None:
    hub.cut_after = 123_456
    with pytest.raises(DownloadError, match=r"tiny\.pt could not be downloaded from http://.*/owner/tiny/resolve/main/tiny\.pt: .*503"):
        fetch(FILE)
    arrived = partial_of(cache).stat().st_size
    assert partial_of(cache).read_bytes() == CONTENT[:arrived]
    assert 100_000 < arrived <= 123_456
    hub.status = 200
    num_before = len(hub.asked("GET"))
    assert fetch(FILE).read_bytes() == CONTENT
    assert [headers.get("range") for headers in hub.asked("GET")[num_before:]] == [f"bytes={arrived}-"]


def test_a_server_that_ignores_ranges(hub: hubs.Hub, cache: Path) -> None:
    hub.ranges = False
    partial_of(cache).parent.mkdir(parents=True)
    partial_of(cache).write_bytes(CONTENT[:50_000])
    assert fetch(FILE).read_bytes() == CONTENT
    assert [headers.get("range") for headers in hub.asked("GET")] == ["bytes=50000-"]


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more"], ids=["complete", "too long"])
def test_odd_partial_files(left: bytes, hub: hubs.Hub, cache: Path) -> None:
    partial_of(cache).parent.mkdir(parents=True)
    partial_of(cache).write_bytes(left)
    assert fetch(FILE).read_bytes() == CONTENT
    assert len(hub.asked("GET")) == (0 if left == CONTENT else 1)


def test_wrong_content_is_deleted(hub: hubs.Hub, cache: Path) -> None:
    hub.files[PATH] = CONTENT[::-1]
    with pytest.raises(
        CheckpointError, match=rf"what http://.*/tiny\.pt sent has sha256 \w{{64}} instead of {FILE.sha256}; it was deleted, try"
    ):
        fetch(FILE)
    assert not partial_of(cache).exists()
    assert find_local(FILE) is None
    hub.files[PATH] = CONTENT
    assert fetch(FILE).read_bytes() == CONTENT


def test_another_size_is_refused_before_the_download(hub: hubs.Hub) -> None:
    hub.claimed_size = 7
    with pytest.raises(
        CheckpointError, match=r"offers 7 bytes instead of 300,000; the server is not the hub or is out of date: check HF_END"
    ):
        fetch(FILE)
    assert not hub.asked("GET")


def test_a_server_that_is_no_hub_is_refused_before_the_download(hub: hubs.Hub) -> None:
    hub.commit = None
    with pytest.raises(DownloadError, match=r"was not answered by a model hub: check HF_ENDPOINT\. By hand: fetch http://"):
        fetch(FILE)
    assert not hub.asked("GET")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "404 Not Found"),
        (401, r"401 Unauthorized.* \(if it asks for a token: `hf auth login`, or set HF_TOKEN\)"),
        (403, r"403 Forbidden.* \(if it asks for a token: `hf auth login`, or set HF_TOKEN\)"),
        (500, "500 Internal Server Error"),
    ],
)
def test_refusals(status: int, message: str, hub: hubs.Hub) -> None:
    hub.status = status
    by_hand = (
        r"\. By hand: fetch http://\S+/tiny\.pt \(300,000 bytes\) on another machine and put it at /.*/image-reward/owner/tiny/tiny\.pt$"
    )
    with pytest.raises(DownloadError, match=rf"tiny\.pt could not be downloaded from http://\S+: .*{message}.*{by_hand}"):
        fetch(FILE)


def test_a_file_that_is_not_there(hub: hubs.Hub) -> None:
    del hub.files[PATH]
    with pytest.raises(DownloadError, match=r"Entry Not Found for url"):
        fetch(FILE)


@pytest.mark.usefixtures("cache")
def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)  # nothing listens there
    with pytest.raises(
        DownloadError, match=r"tiny\.pt could not be downloaded from http://127\.0\.0\.1:9/.*: .*refused.*\. By hand: fetch"
    ):
        fetch(FILE)


def test_offline_mode(hub: hubs.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DownloadError, match=r"tiny\.pt of owner/tiny is not on this machine and offline mode \(HF_HUB_OFFLINE\) is on\. By hand"
    ):
        fetch(FILE)
    placed = HubFile(FILE.repo, FILE.name, FILE.size, FILE.sha256, str(tmp_path / "original"))
    with pytest.raises(DownloadError, match=r"and put it at /.*/original/tiny\.pt$"):
        fetch(placed)
    (tmp_path / "original").mkdir()
    (tmp_path / "original/tiny.pt").write_bytes(CONTENT[:9])
    with pytest.raises(DownloadError, match=r"\(/.*/original/tiny\.pt has 9 bytes\.\)$"):
        fetch(placed)
    (tmp_path / "original/tiny.pt").write_bytes(CONTENT)  # as told
    assert fetch(placed) == tmp_path / "original/tiny.pt"
    FILE.place.parent.mkdir(parents=True)
    FILE.place.write_bytes(CONTENT)
    assert fetch(FILE) == FILE.place
    assert not hub.requests


def test_places_are_searched_in_order(hub: hubs.Hub, tmp_path: Path) -> None:
    original, given = tmp_path / "original", tmp_path / "given"
    placed = HubFile(FILE.repo, FILE.name, FILE.size, FILE.sha256, str(original))
    for folder in (original, given):
        folder.mkdir()
        (folder / "tiny.pt").write_bytes(CONTENT)
    assert fetch(placed) == original / "tiny.pt"  # the original package's: no second download of gigabytes
    assert fetch(placed, given) == given / "tiny.pt"
    assert not hub.requests
    (given / "tiny.pt").write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match=r"given/tiny\.pt is not tiny\.pt of owner/tiny: it has sha256"):
        fetch(placed, given)


def test_the_remedy_for_a_bad_file_in_the_cache_works(hub: hubs.Hub) -> None:
    """What is in the snapshot is a link: deleting it would leave the bad blob to be linked again."""
    path = fetch(FILE)
    path.resolve().write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match=r"; delete .*/blobs/.* and download it again") as raised:
        fetch(FILE)
    Path(str(raised.value).split("; delete ")[1].split(" and ")[0]).unlink()
    assert fetch(FILE).read_bytes() == CONTENT
    path.resolve().write_bytes(CONTENT[:9])  # a wrong size is replaced at once
    assert fetch(FILE).read_bytes() == CONTENT
    assert len(hub.asked("GET")) == 3


def test_a_full_disk_keeps_what_arrived(hub: hubs.Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def until_full(_: str, stream: BinaryIO, **__: object) -> None:
        stream.write(CONTENT[:100_000])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", until_full)
        with pytest.raises(DownloadError, match=r"too full for tiny\.pt at /.*/hub: No space left.*set HF_HUB_CACHE .* is kept"):
            fetch(FILE)
    assert partial_of(cache).read_bytes() == CONTENT[:100_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=199_999))
    num_before = len(hub.asked("GET"))
    with pytest.raises(DownloadError, match="199,999 bytes are free and 200,000 are needed"):
        fetch(FILE)
    assert len(hub.asked("GET")) == num_before
    assert partial_of(cache).stat().st_size == 100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    assert fetch(FILE).read_bytes() == CONTENT


@pytest.mark.parametrize("redirected", [False, True])
def test_the_token_stays_with_the_hub(redirected: bool, hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hubs.serve(**{PATH: CONTENT}) as other:
        hub.elsewhere = other.url if redirected else ""
        assert fetch(FILE).read_bytes() == CONTENT
        sender = other if redirected else hub
        assert [headers.get("authorization") for headers in sender.asked("GET")] == [None if redirected else "Bearer hf_secret"]
        assert not any("authorization" in headers for _, _, headers in other.requests)
    assert hub.asked("HEAD")[0]["authorization"] == "Bearer hf_secret"


@pytest.mark.usefixtures("cache")
def test_threads_download_once(hub: hubs.Hub) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(FILE)), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(hub.asked("GET")) == 1


def test_two_processes_and_a_mirror(hub: hubs.Hub, tmp_path: Path) -> None:
    program = f"from image_reward.downloads import HubFile, fetch; print(fetch({FILE!r}))"
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=HANGS) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    paths = {Path(out.strip()) for out, _ in outputs}
    assert len(paths) == 1
    assert paths.pop().read_bytes() == CONTENT
    assert len(hub.asked("GET")) == 1


# --- files of which less is known ----------------------------------------------------------------------------------------------------

UNPINNED = HubFile("owner/tiny", "tiny.pt")


def test_the_hubs_own_hash_and_size_are_what_a_download_must_have(hub: hubs.Hub) -> None:
    path = fetch(UNPINNED)
    assert path.read_bytes() == CONTENT
    num_requests = len(hub.requests)
    assert fetch(UNPINNED) == path
    assert len(hub.requests) == num_requests
    path.resolve().write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match=rf"tiny\.pt of owner/tiny: it has sha256 \w{{64}} instead of {FILE.sha256}; delete"):
        fetch(UNPINNED)


def test_content_that_is_not_what_the_hub_said(hub: hubs.Hub) -> None:
    hub.claimed_etag = "0" * 64
    with pytest.raises(CheckpointError, match=rf"sent has sha256 {FILE.sha256} instead of 0{{64}}; it was deleted"):
        fetch(UNPINNED)
    hub.claimed_etag, hub.claimed_size = None, 299_999
    with pytest.raises(
        DownloadError, match=r"tiny\.pt could not be downloaded .*By hand: fetch http://\S+/tiny\.pt on another machine and"
    ):
        fetch(UNPINNED)


def test_a_small_file_has_gits_hash(hub: hubs.Hub) -> None:
    hub.claimed_etag = "0" * 40
    assert fetch(UNPINNED).read_bytes() == CONTENT


# --- servers that lie ----------------------------------------------------------------------------------------------------------------

OTHER = b"the content of another file"
LIES = {
    "an absolute path": "/{victims}/precious",
    "a quoted absolute path": '"/{victims}/precious"',
    "a path upwards": "../../../../victims/precious",
    "a weak path upwards": 'W/"../../../../victims/new"',
    "backslashes": "..\\..\\victims\\precious",
    "two dots": "..",
    "a dot": ".",
    "nothing": "",
    "a null character": "a\0b",
    "a long name": "a" * 5_000,
    "a longer one": "a" * 200_000,
    "a folded line": "a\r\n b: c",
    "another header": "a\r\nLocation: file:///{victims}/precious",
    "other letters": "\u732b/../\U0001f600",
    "capitals": "A" * 64,
    "one digit more": "0" * 65,
    "a newline at the end": "0" * 40 + "\n",
    "the hash of another": hashlib.sha256(OTHER).hexdigest(),
    "the name of another blob": "ab" * 20,
    "a hash of the wrong content": "0" * 64,
    "a negative size": "-7",
    "a huge size": "9" * 400,
    "more than a disk": str(10**18),
    "a size that is off by one": str(len(CONTENT) - 1),
    "no number": "\u0663\u0664",
    "a number with an underscore": "300_000",
    "a file of this machine": "file:///{victims}/precious",
    "another host that is not there": "http://127.0.0.1:9/x",
    "a host alone": "//127.0.0.1:9/x",
    "no place at all": "http://",
    "itself": "/owner/tiny/resolve/main/tiny.pt",
    "a program": "javascript:alert(1)",
}
HEADERS = ["ETag", "X-Linked-Etag", "X-Repo-Commit", "X-Linked-Size", "Content-Length", "Content-Range", "Location", "Content-Disposition"]


def everything_in(folder: Path) -> dict[str, bytes | str]:
    """What each file of a folder holds, and each link points to."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def victims(hub: hubs.Hub, cache: Path, tmp_path: Path) -> Path:  # noqa: ARG001 - the cache is where the hub's files go
    """A folder outside the cache that a server would like to write to; and in the cache, other files of the same repository."""
    folder = tmp_path / "victims"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    blobs = cache / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    for name in (hashlib.sha256(OTHER).hexdigest(), "ab" * 20):
        (blobs / name).write_bytes(OTHER)
    return folder


def assert_only_the_cache_grew(before: dict[str, bytes | str], tmp_path: Path) -> None:
    after = everything_in(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not {name for name in set(after) - set(before) if not name.startswith(("hub/models--owner--tiny/", "hub/image-reward/"))}


@pytest.mark.parametrize("methods", [("HEAD",), ("GET",), ("HEAD", "GET")], ids=" and ".join)
@pytest.mark.parametrize("header", [*HEADERS, "all"])
def test_no_lie_of_a_hub_writes_outside_the_cache(
    header: str, methods: tuple[str, ...], hub: hubs.Hub, victims: Path, tmp_path: Path
) -> None:
    before = everything_in(tmp_path)
    hub.methods = methods
    repository = tmp_path / "hub" / "models--owner--tiny"
    for lie in LIES.values():
        value = lie.format(victims=victims)
        hub.lies = dict.fromkeys(HEADERS, value) if header == "all" else {header: value}
        try:
            content = fetch(UNPINNED).read_bytes()
        except DownloadError:
            pass
        except CheckpointError as error:
            assert "it was deleted" in str(error)  # noqa: PT017
        else:
            assert content == CONTENT or (content == OTHER and header in ("X-Linked-Etag", "all")), lie
        assert_only_the_cache_grew(before, tmp_path)
        for left in ("snapshots", "refs"):
            shutil.rmtree(repository / left, ignore_errors=True)
        for name in everything_in(tmp_path).keys() - before.keys():
            (tmp_path / name).unlink()


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_that_lead_nowhere(status: int, hub: hubs.Hub, victims: Path, tmp_path: Path) -> None:
    before = everything_in(tmp_path)
    hub.status = status
    for place in (
        "/owner/tiny/resolve/main/tiny.pt",
        f"file://{victims}/precious",
        "http://127.0.0.1:9/",
        "//127.0.0.1:9/",
        "x:/",
        "",
        "?",
    ):
        hub.lies = {"Location": place}
        with pytest.raises(DownloadError, match=r"tiny\.pt could not be downloaded from |was not answered by a model hub"):
            fetch(FILE)
        assert_only_the_cache_grew(before, tmp_path)


@pytest.mark.parametrize("file", [FILE, UNPINNED], ids=["pinned", "unpinned"])
def test_a_server_that_sends_without_end(file: HubFile, hub: hubs.Hub, cache: Path) -> None:
    hub.says_length, hub.padding = False, 1 << 30
    with pytest.raises(DownloadError, match="the server sends more than the 300,000 bytes that the file has"):
        fetch(file)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < len(CONTENT)
    hub.padding = 0
    assert fetch(file).read_bytes() == CONTENT


@pytest.mark.usefixtures("hub")
def test_a_partial_file_that_is_a_link_is_not_written_through(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    partial_of(cache).parent.mkdir(parents=True)
    partial_of(cache).symlink_to(tmp_path / "precious")
    with pytest.raises(DownloadError, match="symbolic link"):
        fetch(FILE)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_what_the_hubs_own_library_finds(hub: hubs.Hub) -> None:
    path = fetch(FILE)
    assert hf_hub_download("owner/tiny", "tiny.pt", local_files_only=True) == str(path)
    hub.claimed_etag = "ab" * 20
    hub.files["owner/tiny/folder/config.json"] = b"{}"
    path = fetch(HubFile("owner/tiny", "folder/config.json"))
    assert path.is_symlink()
    assert hf_hub_download("owner/tiny", "folder/config.json", local_files_only=True) == str(path)


@pytest.mark.parametrize("repo", ["../evil", "owner/../evil", "/etc", "owner", "owner/", "owner/tiny/more", "owner/a\0b", "owner/..", ""])
def test_repositories_that_are_paths(repo: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a repository"):
        HubFile(repo, "tiny.pt")


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../b", "a//b", "", ".", "..", "a\0b", "a\nb", "a" * 300, "a\\..\\b"])
def test_names_that_are_paths(name: str) -> None:
    with pytest.raises(ValueError, match="does not end in the name of a file"):
        HubFile("owner/tiny", name)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "https://../x", "https://host/..", "https://host/a%2F..", "https://host/a%00b", "https:///x", "x", ""]
)
def test_addresses_that_are_paths(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not the address of a file on the web|does not end in the name of a file"):
        WebFile(url)


# --- files outside the hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(cache: Path) -> Iterator[hubs.Hub]:  # noqa: ARG001 - an empty cache
    with hubs.serve(**{"models/a+b.pth": CONTENT}) as web:
        yield web


def test_a_web_file(web: hubs.Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    file = WebFile(f"{web.url}/models/a+b.pth", len(CONTENT), FILE.sha256)
    assert find_local(file) is None
    path = fetch(file)
    assert (path.name, path.read_bytes()) == ("a+b.pth", CONTENT)
    assert cache / "image-reward" in path.parents
    assert sorted(other.suffix for other in path.parent.iterdir()) == [".lock", ".pth"]
    num_requests = len(web.requests)
    assert fetch(file) == path
    assert len(web.requests) == num_requests == 2
    assert not any("authorization" in headers for _, _, headers in web.requests)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match=r"a\+b\.pth is not a\+b\.pth of 127.0.0.1:\d+: it has sha256 .* delete /.*/a\+b\.pth and"):
        fetch(file)


def test_the_name_of_a_quoted_url() -> None:
    assert WebFile("https://example.org/raw/main/sac%2Blogos.pth?download=1").name == "sac+logos.pth"


@pytest.mark.parametrize("pinned", [True, False])
def test_a_cut_web_download_goes_on_where_it_stopped(pinned: bool, web: hubs.Hub) -> None:
    file = WebFile(f"{web.url}/models/a+b.pth", *((len(CONTENT), FILE.sha256) if pinned else ()))
    web.cut_after = 123_456
    with pytest.raises(DownloadError, match=r"a\+b\.pth could not be downloaded from http://\S+: .*503.* put it at /.*/a\+b\.pth$"):
        fetch(file)
    assert find_local(file) is None
    web.status = 200
    num_before = len(web.asked("GET"))
    assert fetch(file).read_bytes() == CONTENT
    (asked,) = (headers.get("range", "") for headers in web.asked("GET")[num_before:])
    assert 100_000 < int(asked.removeprefix("bytes=").rstrip("-")) <= 123_456


def test_a_web_file_that_was_replaced_between_two_attempts(web: hubs.Hub) -> None:
    file = WebFile(f"{web.url}/models/a+b.pth")
    web.cut_after = 123_456
    with pytest.raises(DownloadError):
        fetch(file)
    web.status, web.files["models/a+b.pth"] = 200, CONTENT[::-1]
    assert fetch(file).read_bytes() == CONTENT[::-1]  # not the head of one with the tail of the other


def test_a_server_that_does_not_say_how_long_a_file_is(web: hubs.Hub) -> None:
    web.says_length = False
    with pytest.raises(DownloadError, match=r"does not state its length, so a broken download could pass for a complete one\. By hand"):
        fetch(WebFile(f"{web.url}/models/a+b.pth"))
    file = WebFile(f"{web.url}/models/a+b.pth", None, FILE.sha256)
    web.cut_after = 123_456
    with pytest.raises(CheckpointError, match=rf"instead of {FILE.sha256}; it was deleted, try again"):
        fetch(file)
    web.status = 200
    assert fetch(file).read_bytes() == CONTENT


def test_what_is_wrong_with_a_web_file(web: hubs.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{web.url}/models/a+b.pth"
    with pytest.raises(CheckpointError, match=r"offers 300,000 bytes instead of 7; what is published there has changed\. By hand: fetch"):
        fetch(WebFile(url, 7))
    assert not web.asked("GET")
    with pytest.raises(CheckpointError, match=rf"sent has sha256 {FILE.sha256} instead of abc; it was deleted, try again"):
        fetch(WebFile(url, None, "abc"))
    for status in (401, 404, 500):
        web.status = status
        with pytest.raises(DownloadError, match=rf"a\+b\.pth could not be downloaded from {url.replace('+', '.')}: .*{status}") as raised:
            fetch(WebFile(url))
        assert "token" not in str(raised.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"a\+b\.pth of 127.0.0.1:\d+ is not on this machine and offline mode"):
        fetch(WebFile(url))
    kept = WebFile(url.replace("+", "%2B"), original_cache=str(tmp_path))
    assert kept.name == "a+b.pth"
    for name in ("a%2Bb.pth", "a+b.pth"):  # image-reward 1.5 keeps it under the name that is in the address
        (tmp_path / name).write_bytes(CONTENT)
        assert fetch(kept) == fetch(kept, tmp_path) == tmp_path / name
        verify(tmp_path / name, kept)
        (tmp_path / name).unlink()


# --- files that must be what they are said to be --------------------------------------------------------------------------------------


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``tiny-v1`` in the table of names, its file in the original package's cache."""
    path = tmp_path / "cache" / "tiny.pt"
    path.parent.mkdir()
    torch.save(seeded.weights(seeded.TINY, 7), path)
    file = HubFile("owner/tiny", "tiny.pt", path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), str(path.parent))
    spec = ModelSpec("a tiny network", "Apache-2.0", "any", build_imagereward, {"weights": file}, seeded.TINY)
    monkeypatch.setitem(MODELS, "tiny-v1", spec)
    return path


def test_a_registered_file_is_verified(registered: Path, scorer: ImageRewardScorer) -> None:
    assert load("tiny-v1").score("cat", IMAGE) == pytest.approx(scorer.score("cat", IMAGE), abs=1e-5)
    content = bytearray(registered.read_bytes())
    content[-3000] ^= 1
    registered.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"tiny\.pt is not tiny\.pt of owner/tiny: it has sha256 \w{64} instead of \w{64}; delete /.*"
    ):
        load("tiny-v1")
    registered.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="it has 3 bytes instead of"):
        verify(registered, MODELS["tiny-v1"].files["weights"])


def test_a_file_that_passed_is_hashed_again_when_it_may_have_changed(registered: Path) -> None:
    file = MODELS["tiny-v1"].files["weights"]
    good, time = registered.read_bytes(), registered.stat().st_mtime_ns
    bad = good[:-1] + bytes([good[-1] ^ 1])
    verified = Path(os.environ["XDG_CACHE_HOME"], "image-reward/verified.json")

    def replace_with(content: bytes, time: int) -> None:  # which changes neither size nor, if so asked, the time
        registered.write_bytes(content)
        os.utime(registered, ns=(time, time))

    for damaged in ("[1, 2", "[]"):  # or from another program
        replace_with(good, time)
        verify(registered, file)
        replace_with(bad, time)
        verify(registered, file)  # size and time are as they were, so it is not read
        verified.write_text(damaged)
        with pytest.raises(CheckpointError, match="it has sha256"):
            verify(registered, file)
        verified.unlink()
    replace_with(good, time)
    verify(registered, file)
    replace_with(bad, time + 1)
    with pytest.raises(CheckpointError, match="it has sha256"):
        verify(registered, file)


def test_a_home_that_cannot_be_written_costs_only_time(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    verify(registered, MODELS["tiny-v1"].files["weights"])


# --- what load() makes of it ---------------------------------------------------------------------------------------------------------


def test_a_registered_name(hub: hubs.Hub, scorer: ImageRewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    torch.save(seeded.weights(seeded.TINY, 7), file)
    hub.files["owner/tiny/v1.pt"] = content = file.getvalue()
    spec = HubFile("owner/tiny", "v1.pt", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(MODELS, "tiny-v1", ModelSpec("tiny", "Apache-2.0", "any", build_imagereward, {"weights": spec}, seeded.TINY))
    loaded = load("tiny-v1")
    assert loaded.name == "tiny-v1"
    assert loaded.score("cat", IMAGE) == pytest.approx(scorer.score("cat", IMAGE), abs=1e-5)


def test_a_hub_id(hub: hubs.Hub, scorer: ImageRewardScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer.save_pretrained(tmp_path / "tiny")
    for name in (checkpoints.CONFIG_NAME, checkpoints.WEIGHTS_NAME):
        hub.files[f"owner/ours/{name}"] = (tmp_path / "tiny" / name).read_bytes()
    loaded = load("owner/ours")
    assert (loaded.name, loaded.config) == ("owner/ours", seeded.TINY)
    assert loaded.score("cat", IMAGE) == pytest.approx(scorer.score("cat", IMAGE), abs=1e-5)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("owner/ours").config == seeded.TINY
    with pytest.raises(DownloadError, match=r"owner/gone is neither a file here nor a model that could be downloaded: "):
        load("owner/gone")
