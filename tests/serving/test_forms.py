from __future__ import annotations

from typing import Any

import pytest

from image_reward.serving.errors import RequestError
from image_reward.serving.forms import parse_form, parse_json

MULTIPART = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'


class Searched(bytes):
    """Counts how often something is looked for in it."""

    num = 0

    def find(self, *arguments: Any) -> int:
        self.num += 1
        return super().find(*arguments)


@pytest.mark.parametrize("false", [b"\r\n--xy", b"\r\n--x-", b"\r\n--x" + b" " * 300])
def test_false_boundaries_do_not_keep_a_thread_busy(false: bytes) -> None:
    body = Searched(PART + false * 100_000 + b"\r\n--x--")
    with pytest.raises(RequestError, match="holds its boundary too often") as caught:
        parse_form(MULTIPART, body, 32)
    assert caught.value.status == 413
    assert body.num < 3000


def test_some_false_boundaries_are_content() -> None:
    content = b"\r\n--xy" * 900
    assert parse_form(MULTIPART, PART + content + b"\r\n--x--", 32).texts == {"prompt": [content.decode()]}


def test_many_parts_end_the_search() -> None:
    body = Searched((PART + b"a\r\n") * 10_000 + b"--x--")
    with pytest.raises(RequestError, match="more than 32 parts"):
        parse_form(MULTIPART, body, 32)
    assert body.num < 200


@pytest.mark.parametrize("element", [b"[]", b"{}", b'"ab"', b"1.5"])
def test_json_of_too_many_values_is_not_built(element: bytes) -> None:
    with pytest.raises(RequestError, match="more than 1,000,000 values") as caught:
        parse_json(b"[" + (element + b",") * 1_000_001 + b"1]")
    assert caught.value.status == 413


def test_long_texts_are_not_many_values() -> None:
    assert len(parse_json(b'["' + b"A" * 2_000_000 + b'"]')[0]) == 2_000_000
