from __future__ import annotations

import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import object_store
from image_reward.addresses import Address, _end_of_silence, join
from image_reward.errors import AddressError, FileSizeError, InputError, PackageError, StoreError

NAMES = ["a cat.png", "#1.png", "what?.png", "100%.png", "a+b&c=d.png", "猫 é.png", "a::b.png", "[x]*.png", "out #1", "a?generation=1"]


# --- names ---------------------------------------------------------------------------------------------------------------------------


def test_the_parts_of_an_address() -> None:
    address = Address.parse("S3://bkt/rows/a.b.PARQUET")
    assert str(address) == "s3://bkt/rows/a.b.PARQUET"
    assert (address.name, address.stem, address.suffix) == ("a.b.PARQUET", "a.b", ".PARQUET")
    assert (str(address.parent), str(address.parent.parent), str(address.parent.parent.parent)) == ("s3://bkt/rows", "s3://bkt", "s3://bkt")
    assert Address.parse("s3://bkt/rows/") == Address.parse("s3://bkt/rows")
    assert pickle.loads(pickle.dumps(address)) == address
    with pytest.raises(TypeError):
        Path(address)  # type: ignore[arg-type]
    with pytest.raises(AddressError, match="is an address, and only a path of this machine will do here"):
        _ = address.local
    local = Address.parse(Path("rows/a.csv"))
    assert (local.local, str(local.parent.join("b.csv"))) == (Path("rows/a.csv"), str(Path("rows/b.csv")))


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("s3://b/x", "1.png", "s3://b/x/1.png"),
        ("s3://b/x", "../y/./1.png", "s3://b/y/1.png"),
        ("s3://b", "../../1.png", "s3://b/1.png"),
        ("s3://b/x", "gs://c/1.png", "gs://c/1.png"),
        ("s3://b/x", "/data/1.png", "/data/1.png"),
        ("/data", "s3://b/1.png", "s3://b/1.png"),
        ("/data", "../1.png", "/data/../1.png"),
    ],
)
def test_a_name_is_relative_to_its_folder(folder: str, name: str, expected: str) -> None:
    assert join(folder, name) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/a.png", r"ftp://host/a\.png: ftp:// is not read here; known are s3://, gs://"),
        ("https://host/a.png", "https:// is not read here; download it first"),
        ("file:///a.png", "give the path alone"),
        ("s3://", "s3:// names no bucket; an address is s3://BUCKET/NAME"),
        ("s3:///a.png", "s3:///a.png names no bucket; an address is s3://BUCKET/NAME"),
        (Path("s3://bkt/a.png"), "s3:/bkt/a.png is an address as a Path"),
    ],
)
def test_what_is_no_address(text: Any, message: str) -> None:
    with pytest.raises(AddressError, match=message) as caught:
        Address.parse(text)
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


# --- files ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "s3", "gs", "az"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Address:
    """An empty folder, here and in a bucket."""
    if request.param == "local":
        return Address.parse(tmp_path)
    if request.param == "s3":
        request.getfixturevalue("bucket")
    elif request.param == "gs":
        object_store.use_google(request.getfixturevalue("gs_url"), monkeypatch)
    elif url := os.environ.get("AZURITE"):
        pytest.importorskip("adlfs")
        object_store.use_azurite(url, monkeypatch)
    else:
        pytest.skip("for want of AZURITE: the URL of Azure's emulator (npx azurite-blob)")
    return Address.parse(f"{request.param}://bkt/{tmp_path.name}/folder")


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_written_read_listed_and_removed(folder: Address, name: str) -> None:
    file = folder.join(name)
    assert file.kind() is None
    file.write(b"first")
    file.write(b"0123456789")
    assert (file.kind(), folder.kind()) == ("file", "folder")
    assert file.read(10) == b"0123456789"
    assert file.read_part(3, 4) == b"3456"
    with file.open() as stream:
        assert (stream.read(4), stream.seek(8), stream.read()) == (b"0123", 8, b"89")
    assert [(entry.name, entry.is_folder, entry.size) for entry in folder.entries()] == [(name, False, 10)]
    assert file.matches() == [file]  # what exists under the very name is no glob
    before = file.stamp()
    file.write(b"9876543210")
    assert file.stamp() != before
    with pytest.raises(FileSizeError, match=r"is larger than 9 bytes"):
        file.read(9)
    file.remove()
    assert file.kind() is None
    with pytest.raises(FileNotFoundError):
        file.read(10)


def test_globs_match_files_and_no_folders(folder: Address) -> None:
    for name in ("a.csv", "b.csv", ".c.csv", "d.txt"):
        folder.join(name).write(b"x")
    for inside in ("out.csv", "shots [v1]"):
        folder.join(inside).make_folder()
        folder.join(f"{inside}/part.csv").write(b"x")

    def found(pattern: str) -> list[str]:
        return [str(match).removeprefix(f"{folder}/") for match in folder.join(pattern).matches()]

    assert found("*.csv") == ["a.csv", "b.csv"]
    assert found("[ab].csv") == ["a.csv", "b.csv"]
    assert found("**/*.csv") == ["a.csv", "b.csv", "out.csv/part.csv", "shots [v1]/part.csv"]
    assert found("shots [v1]/*.csv") == ["shots [v1]/part.csv"]
    assert found("*.jpg") == []


def test_what_fails_while_it_is_written_leaves_what_was_there(folder: Address) -> None:
    file = folder.join("a.txt")
    file.write(b"whole")

    def fail() -> None:
        with file.writer() as stream:
            stream.write(b"half")
            raise KeyError("defect")

    with pytest.raises(KeyError, match="defect"):
        fail()
    assert file.read(10) == b"whole"
    file.write(b"anew")
    assert file.read(10) == b"anew"


# --- what is wrong with a store ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there() -> None:
    for attempt in (lambda a: a.read(9), lambda a: a.write(b"x"), lambda a: a.kind(), lambda a: a.stamp()):
        with pytest.raises(AddressError, match=r"s3://none/a\.csv cannot be .*: there is no bucket 'none' at http://127") as caught:
            attempt(Address.parse("s3://none/a.csv"))
        assert not isinstance(caught.value, StoreError)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("bucket")
def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    object_store.forget()
    with pytest.raises(StoreError, match=r"s3://bkt/a\.csv cannot be .*credentials.*; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Address.parse("s3://bkt/a.csv").read(9)


@pytest.mark.usefixtures("bucket")
def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    object_store.use_endpoint("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(StoreError, match=r"its server does not answer \(.*\); check the network and the endpoint, http://127\.0\.0\.1:9"):
        Address.parse("s3://bkt/a.csv").read(9)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@pytest.fixture
def configuration(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """fsspec's own, without what whoever tests has configured."""
    config = pytest.importorskip("fsspec.config")
    monkeypatch.setattr(config, "conf", {})
    return config.conf  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("text", "attempt", "doing"),
    [
        ("s3://bkt/a.csv", lambda address: address.read(9), "read"),
        ("s3://bkt/a.csv", lambda address: address.kind(), "read"),
        ("s3://bkt/a.csv", lambda address: address.write(b"x"), "written"),
        ("s3://bkt/folder", lambda address: address.entries(), "read"),
        ("s3://bkt/*.csv", lambda address: address.matches(), "read"),
    ],
)
def test_a_bucket_whose_server_is_silent(
    text: str,
    attempt: Callable[[Address], Any],
    doing: str,
    silent_port: int,
    configuration: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("s3fs")
    url = f"http://127.0.0.1:{silent_port}"
    object_store.use_endpoint(url, monkeypatch)
    configuration["s3"] = {"config_kwargs": {"read_timeout": 0.1, "retries": {"max_attempts": 0}}}
    with pytest.raises(StoreError, match=f"cannot be {doing}: its server does not answer") as caught:
        attempt(Address.parse(text))
    object_store.forget()
    assert re.fullmatch(
        rf"{re.escape(text)} cannot be {doing}: its server does not answer \(Read timeout .*\); check the network and the endpoint, {url}; "
        r"""a slow server gets more time by FSSPEC_S3='\{"config_kwargs": \{"read_timeout": 60\}\}'""",
        str(caught.value),
    )


def test_a_silent_server_is_asked_twice(configuration: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        object_store.use_endpoint(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
        configuration["s3"] = {"config_kwargs": {"read_timeout": 0.1}}
        with pytest.raises(StoreError, match="its server does not answer"):
            Address.parse("s3://bkt/a.csv").read_part(0, 9)
        object_store.forget()
        server.setblocking(False)
        for _ in range(2):
            server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_limits_of_azures_client(configuration: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which adlfs makes without them, and keeps where nothing is public."""
    pytest.importorskip("adlfs")
    configuration["az"] = {"read_timeout": 7}
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", object_store.azure("http://127.0.0.1:9"))
    object_store.forget("az")
    client = Address.parse("az://bkt/a").file_system().service_client
    object_store.forget("az")
    assert (client._config.retry_policy.read_retries, client._config.retry_policy.connect_retries) == (1, 1)
    connection = client._pipeline._transport.connection_config
    assert (connection.timeout, connection.read_timeout) == (5, 7)


@pytest.mark.parametrize("error", [None, ConnectionError()])
def test_what_is_not_silence_is_retried(error: Exception | None) -> None:
    _end_of_silence(attempts=9, caught_exception=error)


def test_a_server_of_the_web_that_is_silent(silent_port: int, configuration: dict[str, Any]) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    configuration["https"] = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=0.1)}}
    address = Address.parse(f"https://127.0.0.1:{silent_port}/a.png", allow_https=True)
    with pytest.raises(AddressError, match=rf"{address} cannot be read: its server does not answer \(.+\); check the network$") as caught:
        address.read(9)
    assert not isinstance(caught.value, StoreError)  # others on the web may answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_server_of_the_web_redirects_to_https_alone(status: int, configuration: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("cryptography")
    import web_server

    configuration["https"] = {"ssl": False}  # the certificate is the server's own
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {"/a.png": (200, {}, b"pixels"), "/here": (status, {"Location": "/a.png"}, b"")}
    requests: list[str] = []
    with web_server.serve(answers, tmp_path, requests) as port:
        base = f"https://127.0.0.1:{port}"
        targets = [f"http://127.0.0.1:{port}/a.png", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "ftp://host/a.png"]
        for number, target in enumerate(targets):
            answers[f"/{number}"] = (status, {"Location": target}, b"")
            answers[f"/to-{number}"] = (status, {"Location": f"{base}/{number}"}, b"")
            for path in (f"/{number}", f"/to-{number}"):
                with pytest.raises(AddressError, match=f"cannot be read: it redirects to {re.escape(target)}, which is not https"):
                    Address.parse(base + path, allow_https=True).read(9)
        assert "/a.png" not in requests
        assert Address.parse(f"{base}/here", allow_https=True).read(9) == b"pixels"


@pytest.mark.parametrize(
    ("text", "configured", "expected"),
    [
        ("s3://b/a", {}, {"config_kwargs": {"connect_timeout": 5, "read_timeout": 15}}),
        (
            "s3://b/a",
            {"s3": {"config_kwargs": {"read_timeout": 60, "max_pool_connections": 50}}},
            {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "max_pool_connections": 50}},
        ),
        ("az://b/a", {}, {"connection_timeout": 5, "read_timeout": 15}),
        ("abfs://b/a", {"az": {"read_timeout": 60, "account_name": "me"}}, {"connection_timeout": 5, "read_timeout": 60}),
        ("gs://b/a", {}, {"requests_timeout": "5, 15", "session_kwargs": {}}),
        ("gcs://b/a", {"gs": {"requests_timeout": 7}}, {"requests_timeout": 7, "session_kwargs": {}}),
        ("https://h/a", {}, {"client_kwargs": {"timeout": "5, 15"}}),
        ("https://h/a", {"https": {"client_kwargs": {"timeout": 7}}}, {"client_kwargs": {"timeout": 7}}),
        ("https://h/a", {"https": {"client_kwargs": {"trust_env": True}}}, {"client_kwargs": {"timeout": "5, 15", "trust_env": True}}),
    ],
)
def test_the_wait_for_a_silent_server_is_bounded_unless_it_is_configured(
    text: str,
    configured: dict[str, Any],
    expected: dict[str, Any],
    configuration: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Store:
        protocol = ("s3", "az", "abfs", "gs", "gcs", "https")
        retries, session = 5, "mine"

        def __init__(self, **options: Any) -> None:
            self.options = options

        _get_kwargs_from_urls = staticmethod(lambda _: {})
        _strip_protocol = staticmethod(str)

    if text.startswith(("gs", "gcs", "https")):
        aiohttp = pytest.importorskip("aiohttp")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=15)
        expected = {
            key: timeout if value == "5, 15" else value | {"timeout": timeout} if "5, 15" in str(value) else value
            for key, value in expected.items()
        }
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda _: Store)
    configuration.update(configured)
    store = Address.parse(text, allow_https=True).file_system()
    if "session_kwargs" in store.options:
        assert len(store.options["session_kwargs"].pop("trace_configs")) == 1
    assert ("trace_configs" in store.options.get("client_kwargs", {})) == text.startswith("https")
    store.options.get("client_kwargs", {}).pop("trace_configs", None)
    assert store.options == expected | {"use_listings_cache": False}
    assert store.retries == (2 if text.startswith("s3") else 5)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    object_store.uninstall_gcsfs(monkeypatch)
    with pytest.raises(PackageError, match="gs://bkt/a: gs:// needs a package that is not installed: pip install gcsfs"):
        Address.parse("gs://bkt/a").read(9)


class AzureError(Exception):
    error_code = "ContainerNotFound"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("429 Too\nMany"), AddressError, "cannot be read: RuntimeError: 429 Too Many"),
        (PermissionError("Forbidden"), AddressError, r"may not be read \(Forbidden\); check the credentials and what they allow"),
        (FileNotFoundError("404"), FileNotFoundError, "no such file: s3://bkt/a"),
        (
            AzureError("<?xml …"),
            AddressError,
            "cannot be read: there is no container 'bkt' at http://.*; create it, or correct the address",
        ),
    ],
)
def test_whatever_a_library_raises_is_one_line(
    bucket: Any, error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(bucket), "_info", fail)
    with pytest.raises(kind, match=message) as caught:
        Address.parse("s3://bkt/a").read(9)
    assert caught.value.__cause__ is None


def test_hdfs_without_java_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_java(_: str) -> None:
        raise OSError("Unable to load libjvm:\n/usr/lib/jvm/libjvm.so: cannot open shared object file")

    monkeypatch.setattr("fsspec.get_filesystem_class", without_java)
    with pytest.raises(StoreError, match=r"hdfs:///a\.csv cannot be read: hdfs:// needs Java and Hadoop; set JAVA_HOME, HADOOP_HOME and"):
        Address.parse("hdfs:///a.csv").read(1)
