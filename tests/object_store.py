"""Servers of object stores on this machine, in processes of their own: moto's for S3, and an emulator of Google Cloud Storage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fsspec import get_filesystem_class
from fsspec.registry import _registry

S3 = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the tests end, however they do
server.stop()
"""
GS = """
import logging, sys
from gcp_storage_emulator.server import create_server
logging.disable()
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bkt")
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()
server.stop()
"""
VARIABLES = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_SECURITY_TOKEN")


@contextmanager
def serving(program: str) -> Iterator[str]:
    """The URL of a server that answers."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the server did not start"
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            process.wait()


def uninstall_gcsfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if gcsfs were not installed, in a process whose fsspec has used it too."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for scheme in ("gs", "gcs"):
        monkeypatch.delitem(_registry, scheme, raising=False)


def use_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point everything that speaks S3, processes started from here included, to a server, and to no configuration of whoever tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    forget()


def use_google(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point gcsfs to a server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)  # it would ask the network where it runs
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    forget("gs")


def azure(url: str) -> str:
    """What connects to Azure's emulator, with the account that it has for everybody."""
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    return f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={key};BlobEndpoint={url}/devstoreaccount1;"


def use_azurite(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point adlfs to an emulator, and make a container called ``bkt``."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure(url))
    forget("az")
    store = get_filesystem_class("az")()
    if not store.exists("bkt"):
        store.mkdir("bkt")


def forget(scheme: str = "s3") -> None:
    """Let fsspec make its file systems anew: they keep the endpoint and credentials that they were made with."""
    get_filesystem_class(scheme).clear_instance_cache()


def files_of(store: Any, folder: str) -> list[str]:
    """The names of what a folder such as ``bucket/out`` holds."""
    return sorted(path.removeprefix(f"{folder}/") for path in store.find(folder))
