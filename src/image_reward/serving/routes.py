"""Routes without FastAPI's search for dependencies, which took as long as all else that the event loop does for a request."""

from __future__ import annotations

from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import Receive, Scope, Send


class BareRoute(APIRoute):
    """Its endpoint is called with the request and the parameters of the path, all of them text.

    FastAPI describes it by its signature as it does others. It solves no dependencies, and so needs none of their exit stacks.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        parameters: dict[str, Any] = scope.get("path_params", {})
        response = await self.endpoint(Request(scope, receive), **parameters)
        await response(scope, receive, send)
