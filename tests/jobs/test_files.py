from __future__ import annotations

from typing import Any

import pytest

from image_reward.errors import ImageReadError, InputError, StoreError
from image_reward.jobs.files import Access, Folder


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (RuntimeError("429 Too Many Requests"), ImageReadError, "s3://bkt/a.png cannot be read: RuntimeError: 429 Too Many Requests"),
        (PermissionError("403"), ImageReadError, r"s3://bkt/a.png may not be read \(403\)"),
        (FileNotFoundError("404"), FileNotFoundError, "no such image: s3://bkt/a.png"),
        (type("NoCredentialsError", (Exception,), {})("none"), StoreError, "there are no credentials for it"),
    ],
)
def test_what_a_library_of_an_object_store_raises_is_of_the_image(
    error: Exception, expected: type[Exception], message: str, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(bucket), "_info", fail)
    with pytest.raises(expected, match=message):
        Access().read("s3://bkt/a.png")


def test_an_empty_text_is_not_the_root_of_the_file_system() -> None:
    with pytest.raises(InputError, match="the path of the job's folder is empty; is a variable of the shell unset"):
        Folder.at("")
    assert Folder.at("/").path == "/"
