"""The application: every protocol on one service, behind the guard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from html import escape
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from image_reward.scorers.base import Scorer
from image_reward.serving import api, browse, cosmos, flow_grpo, kserve, openapi, page, rerank
from image_reward.serving.browse import ScoredRows
from image_reward.serving.errors import RequestError
from image_reward.serving.guard import Guard
from image_reward.serving.routes import BareRoute
from image_reward.serving.service import Service
from image_reward.serving.settings import Settings


class _Application(FastAPI):
    """FastAPI without the layers that guard and bare routes have no use for: bounds of bodies, answers to defects, exit stacks."""

    def build_middleware_stack(self) -> ASGIApp:
        statuses = {flow_grpo.PLACE: flow_grpo.STATUSES} if self.state.service.settings.flow_grpo else {}
        return Guard(ExceptionMiddleware(self.router, self.exception_handlers), self.state.service, statuses)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.completed(super().openapi(), self.state.service)
        return self.openapi_schema


def create_app(scorers: Sequence[Scorer[Any]], settings: Settings | None = None, scored: ScoredRows | None = None) -> FastAPI:
    """The ASGI application that serves these scorers, the first of which answers where none is named. They are tried once here.

    ``scored``: rows that the page shows under Browse.

    Raises what scoring raises.
    """
    service = Service(scorers, settings or Settings())
    service.batcher.warm_up()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        service.is_draining = True
        await asyncio.to_thread(service.batcher.close, service.limits.drain_seconds)

    app = _Application(
        title="image-reward",
        version=version("image-reward"),
        description="How much people would like images made for a prompt.",
        docs_url=None,
        redirect_slashes=False,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service, app.state.scored = service, scored
    app.router.route_class = BareRoute
    app.add_exception_handler(HTTPException, _refused_by_router)
    for module in (api, rerank, kserve, *([cosmos] if service.settings.cosmos else []), browse, page):
        app.router.routes.extend(module.router.routes)  # include_router would look for each route twice
    if service.settings.flow_grpo:
        app.router.routes.extend(flow_grpo.router.routes)
    app.add_api_route("/health/live", live, methods=["GET"], tags=["health"])
    app.add_api_route("/health/ready", ready, methods=["GET"], tags=["health"], responses={503: {"description": "It is stopping."}})
    for path, answer in (("/", page.index), ("/health/live", live), ("/health/ready", ready)):
        app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", metrics, methods=["GET"], tags=["health"], response_class=Response)
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    return app


async def _refused_by_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    remedy = "use another method; see /docs" if error.status_code == 405 else "see /docs"
    refused = RequestError(error.status_code, "path", str(error.detail).lower(), remedy)
    request.app.state.service.metrics.rejected.labels("invalid").inc()
    return JSONResponse(refused.as_dict(), error.status_code, headers=dict(error.headers or {}))


async def live(request: Request) -> JSONResponse:
    """Whether the process works: if not, it should be started again."""
    alive = request.app.state.service.batcher.is_alive
    return JSONResponse({"live": alive}, 200 if alive else 503)


async def ready(request: Request) -> JSONResponse:
    """Whether requests should be sent here: not while it is stopping."""
    is_ready = request.app.state.service.is_ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


async def metrics(request: Request) -> Response:
    """Counters in the format of Prometheus."""
    return Response(request.app.state.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def docs(request: Request) -> HTMLResponse:
    """The OpenAPI document for readers, without a script or a style from elsewhere."""
    document = request.app.openapi()
    parts = [f"<h1>{escape(document['info']['title'])} {escape(document['info']['version'])}</h1>"]
    parts.append(f"<p>{escape(document['info']['description'])} The same for programs: <a href='/openapi.json'>/openapi.json</a>.</p>")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>")
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                fields = json.dumps(content["schema"].get("properties", content["schema"]), indent=1)
                parts.append(f"<details><summary>{escape(kind)}</summary><pre>{escape(fields)}</pre></details>")
    page = "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    page += "<title>image-reward: the service</title>" + "".join(parts)
    return HTMLResponse(page, headers={"content-security-policy": "default-src 'none'"})
