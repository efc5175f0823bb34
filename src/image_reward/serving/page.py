"""The page for people at ``/``: HTML from templates, a style sheet and modules of JavaScript; no build step, nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from image_reward.image_files import IMAGE_SUFFIXES
from image_reward.serving.errors import RequestError
from image_reward.serving.routes import BareRoute

router = APIRouter(include_in_schema=False, route_class=BareRoute)

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOLDER = files("image_reward.serving").joinpath("page")
_FILES = {entry.name: kind for entry in _FOLDER.iterdir() for suffix, kind in _TYPES.items() if entry.name.endswith(suffix)}

OPEN_PATHS = frozenset({"/", *(f"/page/{name}" for name in _FILES)})
"""What is sent without a token to whoever asks: the page, which then asks for the token, and its parts. They name no model."""

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@router.get("/")
async def index(request: Request) -> HTMLResponse:
    service = request.app.state.service
    return HTMLResponse(_index(service.settings.token is not None, request.app.state.scored is not None), headers=_HEADERS)


@router.get("/page/{name}")
async def part(request: Request, name: str) -> Response:  # noqa: ARG001
    if name not in _FILES:
        raise RequestError(404, "path", "not found", "see /docs")
    return Response(_content(name), media_type=_FILES[name], headers=_HEADERS)


@cache
def _content(name: str) -> bytes:
    return _FOLDER.joinpath(name).read_bytes()


@cache
def _index(needs_token: bool, has_scored: bool) -> str:
    environment = Environment(loader=PackageLoader("image_reward.serving", "page"), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("index.html").render(
        version=version("image-reward"), suffixes=" ".join(sorted(IMAGE_SUFFIXES)), needs_token=needs_token, has_scored=has_scored
    )
