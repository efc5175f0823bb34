"""The bodies of requests: JSON, forms and data URLs, all in memory. Nothing is written to a disk, and file names are not looked at."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from image_reward.serving.errors import RequestError, invalid

_DATA_URL = re.compile(r"data:[\w.+-]*(?:/[\w.+-]+)?(?:;[\w.+=-]+)*?(;base64)?,", re.ASCII)
_SPACE = re.compile(r"\s+")
_PARAMETER = re.compile(r';\s*([\w!#$%&*+.^`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s"]*))', re.ASCII)
_MOST_HEADERS = 8  # of a part
_LONGEST_HEAD = 1 << 14  # bytes of them
_LONGEST_BOUNDARY = 256
_MOST_FALSE_MARKS = 1000  # that begin like a boundary
_MOST_VALUES = 1_000_000  # of JSON


@dataclass
class Form:
    """The parts of a form by name, in order; files as bytes, everything else as text."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """The one text of a name. Raises ``RequestError``."""
        values = self.texts.get(name, [])
        if len(values) != 1:
            raise invalid(name, "it is missing" if not values else f"it is there {len(values)} times", "send it once")
        return values[0]


def parse_json(body: bytes, field: str = "body", most_values: int = _MOST_VALUES) -> Any:
    """Raises ``RequestError`` for what is not strict JSON (NaN and Infinity are not numbers of it) or holds too many values."""
    if len(body) > most_values and sum(map(body.count, (b",", b"[", b"{"))) > most_values:  # whose memory is up to thirty times theirs
        raise RequestError(413, field, f"it may have more than {most_values:,} values", "send fewer in one request, images as base64")

    def refuse(constant: str) -> None:
        raise RequestError(400, field, f"it holds {constant}, which JSON does not know", "send finite numbers alone")

    try:
        return json.loads(body, parse_constant=refuse)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it is not UTF-8, or nested too deeply"
        raise RequestError(
            400, field, f"it is not JSON: {reason}", "send JSON with content-type application/json, or a multipart form"
        ) from None


def check_returnable(value: Any, field: str) -> None:
    """Raise ``RequestError`` for what Python reads from JSON and cannot write: halves of surrogate pairs, and numbers beyond range."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        message = "it holds half of a surrogate pair, a number beyond range, or too many levels, and cannot be sent back"
        raise invalid(field, message, "correct it, or do not ask for it back") from None


def parse_form(content_type: str, body: bytes, max_parts: int) -> Form:
    """A form of either encoding. Raises ``RequestError``."""
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=max_parts, errors="strict")
        except ValueError as error:
            raise RequestError(400, "body", f"it is not a form: {str(error).lower()}", "see /docs") from None
        form = Form()
        for name, value in pairs:
            form.texts.setdefault(name, []).append(value)
        return form
    return _parse_multipart(content_type, body, max_parts)


def _parse_multipart(content_type: str, body: bytes, max_parts: int) -> Form:
    """RFC 7578 on a whole body: its boundaries are searched for, where a parser of streams would look at every byte.

    What looks like a boundary and is none is content. By chance that does not happen, so a body that is full of it is refused.
    """
    boundary = _parameters(content_type).get("boundary", "").encode("latin-1")
    if not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        raise RequestError(400, "content-type", "it names no boundary", "let the HTTP library write the header of the form")
    form = Form()
    mark = b"\r\n--" + boundary
    num_marks = num_parts = 0
    start = None  # of a part; what precedes the first boundary means nothing
    at = -2 if body.startswith(mark[2:]) else body.find(mark)
    while at != -1:
        num_marks += 1
        if num_marks > max_parts + _MOST_FALSE_MARKS:
            raise RequestError(413, "body", "it has too many parts, or holds its boundary too often", "use a boundary that is in no part")
        after = at + len(mark)
        is_last = body.startswith(b"--", after)
        line = body.find(b"\r\n", after, after + _LONGEST_BOUNDARY)
        if is_last or (line >= 0 and not body[after:line].strip(b" \t")):  # and not longer than the boundary, which is content
            if start is not None:
                num_parts += 1
                if num_parts > max_parts:
                    raise RequestError(413, "body", f"it has more than {max_parts} parts", "send fewer images at once")
                _add_part(form, body, start, at)
            if is_last:
                return form
            start = line + 2
        at = body.find(mark, after)
    if start is None:
        raise RequestError(400, "body", "it is not a multipart form", "let the HTTP library write the form")
    raise RequestError(400, "body", "the form breaks off before its last boundary", "send the whole form")


def _add_part(form: Form, body: bytes, start: int, end: int) -> None:
    """The part between two places of a body: headers, an empty line, and its content."""
    head_end = start - 2 if body.startswith(b"\r\n", start) else body.find(b"\r\n\r\n", start, min(end, start + _LONGEST_HEAD))
    lines = body[start : max(start, head_end)].decode("utf-8", "replace").split("\r\n")
    if head_end < start - 2 or len(lines) > _MOST_HEADERS:
        raise RequestError(400, "body", f"a part of it has no end of its headers, or more than {_MOST_HEADERS}", "see /docs")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    disposition = _parameters(headers.get("content-disposition", ""))
    name = disposition.get("name", "").removesuffix("[]")
    if not name:
        raise RequestError(400, "body", "a part of it has no name", "name the parts as /docs does")
    content = body[head_end + 4 : end]
    is_file = "filename" in disposition or "filename*" in disposition
    if is_file or headers.get("content-type", "").lower().startswith(("image/", "application/octet-stream")):
        form.files.setdefault(name, []).append(content)
        return
    try:
        form.texts.setdefault(name, []).append(content.decode())
    except UnicodeDecodeError:
        raise RequestError(400, name, "it is not UTF-8", "encode text in UTF-8, or send it as a file") from None


def _parameters(header: str) -> dict[str, str]:
    r"""
    >>> _parameters('form-data; name="a;\\"b"; filename=x.png')
    {'name': 'a;"b', 'filename': 'x.png'}
    """
    return {
        match[1].lower(): match[3] if match[2] is None else re.sub(r'\\(["\\])', r"\1", match[2]) for match in _PARAMETER.finditer(header)
    }


def image_bytes(text: str, field: str) -> bytes:
    """A data URL, or bare base64 -> the bytes of an image file. Raises ``RequestError`` that names the field."""
    head = _DATA_URL.match(text[:200])
    if head is None and text[:5].lower() == "data:":
        raise invalid(field, "its data URL is malformed", "send data:image/png;base64,…")
    if head and not head[1]:
        raise invalid(field, "its data URL is not in base64", "send data:image/png;base64,…")
    encoded = _SPACE.sub("", text[head.end() :] if head else text)
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        what = "its data URL" if head else "it is neither a data URL nor an address, and"
        raise invalid(field, f"{what} is not base64", "send data:image/png;base64,… or the base64 alone") from None
    if not content:
        raise invalid(field, "it is empty", "send the bytes of an image file in base64")
    return content
