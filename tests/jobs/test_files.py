from __future__ import annotations

from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from image_reward.errors import ImageReadError
from image_reward.jobs import files
from image_reward.jobs.files import Access


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (RuntimeError("429 Too Many Requests"), ImageReadError, "memory://a.png cannot be fetched: RuntimeError: 429 Too Many Requests"),
        (PermissionError("403"), PermissionError, "403"),
        (FileNotFoundError("404"), FileNotFoundError, "404"),
    ],
)
def test_what_a_library_of_an_object_store_raises_is_of_the_image(
    error: Exception, expected: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(files, "OBJECT_STORES", ("memory",))
    monkeypatch.setattr(MemoryFileSystem, "size", fail)
    with pytest.raises(expected, match=message):
        Access().read("memory://a.png")
