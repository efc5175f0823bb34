"""What a request can be refused for: a status, the field at fault, what is wrong and what to do."""

from __future__ import annotations

import json
import re
from typing import Any

from image_reward.errors import ImageReadError, ImageRewardError, PromptError, RewardError, UnknownModelError


class RequestError(Exception):
    """A request that is refused. It becomes a response with a JSON body: ``{"error": {status, field, message, remedy}}``."""

    def __init__(self, status: int, field: str, message: str, remedy: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.field, self.message, self.remedy, self.retry_after = status, field, message, remedy, retry_after

    @property
    def headers(self) -> dict[str, str]:
        retry = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return retry | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def as_dict(self) -> dict[str, Any]:
        return {"error": {"status": self.status, "field": self.field, "message": self.message, "remedy": self.remedy}}

    def body(self) -> bytes:
        return json.dumps(self.as_dict()).encode()


class BusyError(RequestError):
    """The queue is full, or the memory set aside for requests is: 429, with the seconds after which to try again."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(429, "request", message, f"send it again in {retry_after} s", retry_after)


def invalid(field: str, message: str, remedy: str) -> RequestError:
    """A request that is understood and makes no sense."""
    return RequestError(422, field, message, remedy)


_OPTIONS = {
    "pass allow_truncated=True to accept it as it is": "send the whole file, or start the service with --allow-truncated",
    "raise max_pixels if you trust it": "send a smaller image, or start the service with a larger --max-pixels",
    "(lower min_side to score it anyway)": "",
    'shorten it, or allow this with long_prompts="truncate"': "shorten it",
}
"""Remedies of the package that a client of a service cannot apply."""


def of_package(error: BaseException, field: str) -> RequestError | None:
    """What an error of the package means to a client; None for a defect, and for what the machine and not the request is to blame for."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return RequestError(503, field, "the memory of the service does not suffice", "send smaller images, or fewer at once", 5)
    if not isinstance(error, ImageRewardError):
        return None
    message = str(error)
    for option, remedy in _OPTIONS.items():
        message = message.replace(option, remedy)
    message, _, remedy = re.sub(r"\s+$", "", message).rpartition("; ")
    if not message:
        message, remedy = remedy, ""
    default = {
        ImageReadError: "send an image that Pillow can read, such as PNG, JPEG or WebP",
        PromptError: "send another prompt",
        RewardError: "use another model, or start the service with --dtype float32",
        UnknownModelError: "GET /v1/models lists the names",
    }
    status = 404 if isinstance(error, UnknownModelError) else 422
    return RequestError(
        status, field, message, remedy or next((text for kind, text in default.items() if isinstance(error, kind)), "see /docs")
    )
