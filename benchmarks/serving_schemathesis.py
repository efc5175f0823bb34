"""What schemathesis needs to know to try all that the OpenAPI document of the service allows, and what the document cannot say.

    image-reward serve --model ImageReward-mini &
    SCHEMATHESIS_HOOKS=serving_schemathesis PYTHONPATH=benchmarks schemathesis run http://127.0.0.1:8000/openapi.json

The document gives formats to images and to what holds them, and here they get values. JSON Schema knows neither what an image holds nor a
relation between the lengths of two lists, so a request that it allows may be refused for what ``EXCLUDED`` names, and for nothing else.
"""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import Failure

EXCLUDED = {
    "an image that decodes": r"is not an image that Pillow can read|is text, perhaps a server's message, and not an image",
    "an image as large as the model needs": r"is \d+ x \d+ pixels; the shorter side must have at least",
    "as many prompts as images": r"there are \d+ prompts and \d+ images",
    "as many data as their shape says": r"it is \[[\d, ]+\], and there are \d+ elements|it is not (UINT8|FP32) of the shape",
    "pixels in lists of equal length": r"it is not (UINT8|FP32) of the shape",
    "a matrix of at most max_queue rewards": r"it asks for [\d,]+ rewards, more than the queue holds",
    "rewards that have been enqueued": r"Not found scores for",
}


def _file(number: int, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20 + number, 20, 3), 40 * number, np.uint8)).save(buffer, form)
    return buffer.getvalue()


def _enqueued(prompts: list[str]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((len(prompts), 16, 16, 3), np.uint8))
    return json.dumps({"media_type": "image", "prompts": prompts, "reward_fn": {"image_reward": 1.0}}).encode() + b"\n" + buffer.getvalue()


_FILES = st.sampled_from([_file(number, form) for number, form in enumerate(("PNG", "JPEG", "WEBP", "BMP"))])
_TEXTS = st.builds(lambda file, head: head + base64.b64encode(file).decode(), _FILES, st.sampled_from(["", "data:image/png;base64,"]))
_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_JSON = st.recursive(_VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)

schemathesis.openapi.format("image", _TEXTS)
schemathesis.openapi.format("image-file", _FILES.map(lambda file: base64.b64encode(file).decode()))  # until ``before_call``
schemathesis.openapi.format("json", _JSON.map(json.dumps))
schemathesis.openapi.media_type("application/octet-stream", st.lists(st.text(max_size=50), min_size=1, max_size=4).map(_enqueued))


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:  # noqa: ARG001
    """Files of forms become bytes, which schemathesis itself cannot check against the document."""
    if case.media_type == "multipart/form-data" and isinstance(case.body, dict):
        for name in {"a", "b", "images"} & set(case.body):
            value = case.body[name]
            case.body[name] = [_decoded(text) for text in value] if isinstance(value, list) else _decoded(value)


def _decoded(value: Any) -> Any:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else value
    except ValueError:
        return value


@schemathesis.hook
def filter_failure(context: schemathesis.HookContext, failure: Failure, case: schemathesis.Case, response: schemathesis.Response) -> bool:  # noqa: ARG001
    if failure.title == "Schema-violating request accepted":
        # 413 is how more than maxItems is refused. In a form everything is text, and a list without elements is not there at all.
        return response.status_code != 413 and case.media_type != "multipart/form-data"
    excluded = any(re.search(pattern, response.text) for pattern in EXCLUDED.values())
    return not (excluded and failure.title == "Schema-valid request rejected")
