"""Reranking as vLLM, Jina, Cohere and text-embeddings-inference serve it: the query is the prompt, the documents are images."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from image_reward.serving.api import ERRORS, BareRoute, read, rewards_of_one_prompt
from image_reward.serving.errors import invalid
from image_reward.serving.forms import check_returnable
from image_reward.serving.service import Service
from image_reward.types import Ranking

router = APIRouter(tags=["rerank"], route_class=BareRoute)

_MOST_DEPTH = 4  # of objects in each other: content, its part, image_url, and one to spare

_DOCUMENT: Any = {
    "description": "A data URL or base64; {image}, {url} or {text} that holds one; or {content: [{type: image_url, image_url: {url}}]}",
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "object"}],
}


class RerankRequest(BaseModel):
    # Clients send fields of their server that mean nothing here, such as truncation.
    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    query: str
    documents: list[Any] | dict[str, Any] | None = Field(default=None, json_schema_extra={"items": _DOCUMENT})
    texts: list[Any] | None = Field(default=None, description="As text-embeddings-inference calls the documents.")
    model: str | None = None
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False
    return_text: bool = False


_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": RerankRequest.model_json_schema()}}}}


@router.post("/rerank", responses=ERRORS, openapi_extra=_BODY, operation_id="rerank")
@router.post("/v1/rerank", responses=ERRORS, openapi_extra=_BODY, operation_id="rerank_v1")
@router.post("/v2/rerank", responses=ERRORS, openapi_extra=_BODY, operation_id="rerank_v2")
async def rerank(request: Request) -> JSONResponse:
    """Images in order of reward for a query. ``relevance_score`` is the reward."""
    service: Service = request.app.state.service
    asked = await read(request, RerankRequest)
    if (asked.documents is None) == (asked.texts is None):
        raise invalid("documents", "it is missing, or texts is there too", "send documents")
    name, documents = ("documents", asked.documents) if asked.texts is None else ("texts", asked.texts)
    if isinstance(documents, dict):  # vLLM: one object whose content is the documents
        content = documents.get("content")
        documents = [{"content": [part]} for part in content] if isinstance(content, list) else [documents]
    assert documents is not None
    service.check_number(len(documents), name)
    if asked.return_documents or asked.return_text:
        check_returnable(documents, name)
    images = [_image(document, f"{name}[{number}]") for number, document in enumerate(documents)]
    model, rewards, _ = await rewards_of_one_prompt(service, asked.model, asked.query, images, lambda n: f"{name}[{n}]", "query")
    best = Ranking.from_rewards(rewards).order[: asked.top_n]
    if asked.texts is not None:  # text-embeddings-inference
        shown = [{"index": n, "score": rewards[n]} | ({"text": asked.texts[n]} if asked.return_text else {}) for n in best]
        return JSONResponse(shown)
    results = [{"index": n, "relevance_score": rewards[n]} | ({"document": documents[n]} if asked.return_documents else {}) for n in best]
    return JSONResponse(
        {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": service.scorers[model].name,
            "usage": {"total_tokens": 0},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 0}},
            "results": results,
        }
    )


def _image(document: Any, field: str, depth: int = 0) -> str:
    """The image of a document. Raises ``RequestError``."""
    if isinstance(document, str):
        return document
    if isinstance(document, dict) and depth < _MOST_DEPTH:
        content = document.get("content")
        if isinstance(content, list) and len(content) == 1:
            return _image(content[0], field, depth + 1)
        for key in ("image_url", "image", "url", "text"):
            if (inner := document.get(key)) is not None:
                return _image(inner, field, depth + 1)
    raise invalid(
        field, "it holds no image, or several", 'send {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}]}'
    )
