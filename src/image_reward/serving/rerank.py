"""Reranking as vLLM, Jina, Cohere and text-embeddings-inference serve it: the query is the prompt, the documents are images."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from image_reward.serving.api import ERRORS, MOST_FIELDS, read, rewards_of_one_prompt
from image_reward.serving.errors import invalid
from image_reward.serving.forms import check_returnable
from image_reward.serving.openapi import IMAGE, ModelName, Prompt, Schema, list_of, whole
from image_reward.serving.routes import BareRoute
from image_reward.serving.service import Service
from image_reward.types import Ranking

router = APIRouter(tags=["rerank"], route_class=BareRoute)

_KEYS = ("content", "image_url", "image", "url", "text")
"""Where the image of a document may be: in the first of these that is there and not null."""


def _holding(**inner: Schema) -> list[Schema]:
    """An object that holds its image under one of some keys, for each of them."""
    kinds = []
    for key, value in inner.items():
        earlier = {name: {"type": "null"} for name in _KEYS[: _KEYS.index(key)]}
        kinds.append({"type": "object", "title": key, "required": [key], "properties": earlier | {key: value}})
    return kinds


_OR_URL: Schema = {"anyOf": [IMAGE, {"type": "object", "title": "url", "required": ["url"], "properties": {"url": IMAGE}}]}
_ALONE = _holding(image_url=_OR_URL, image=_OR_URL, url=IMAGE, text=IMAGE)
_PART: Schema = {"anyOf": [IMAGE, *_ALONE]}
_ONE_PART: Schema = {"type": "array", "items": _PART, "minItems": 1, "maxItems": 1}
_DOCUMENTS = list_of({"anyOf": [IMAGE, *_holding(content=_ONE_PART), *_ALONE]})
_ONE_DOCUMENT = [*_holding(content=list_of(_PART)), *_ALONE]  # vLLM: one object whose content is the documents
_EITHER: dict[str, Any] = {
    "oneOf": [
        {
            "title": "documents",
            "required": ["documents"],
            "properties": {"documents": {"type": ["array", "object"]}, "texts": {"type": "null"}},
        },
        {"title": "texts", "required": ["texts"], "properties": {"texts": {"type": "array"}, "documents": {"type": "null"}}},
    ]
}


class RerankRequest(BaseModel):
    # Clients send fields of their server that mean nothing here, such as truncation.
    model_config = ConfigDict(
        extra="ignore", strict=True, protected_namespaces=(), json_schema_extra=_EITHER | {"maxProperties": MOST_FIELDS}
    )

    query: Prompt
    documents: (
        Annotated[list[Any], WithJsonSchema(_DOCUMENTS)] | Annotated[dict[str, Any], WithJsonSchema({"anyOf": _ONE_DOCUMENT})] | None
    ) = None
    texts: Annotated[list[Any], WithJsonSchema(_DOCUMENTS)] | None = Field(
        default=None, description="As text-embeddings-inference calls the documents."
    )
    model: ModelName | None = None
    top_n: Annotated[int, Field(ge=1), whole] | None = None
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


def _image(document: Any, field: str) -> str:
    """The image of a document. Raises ``RequestError``."""
    if isinstance(document, dict) and (content := document.get("content")) is not None:
        document = content[0] if isinstance(content, list) and len(content) == 1 else None
    if isinstance(document, dict):
        document = next((document[key] for key in _KEYS if document.get(key) is not None), None)
        if isinstance(document, dict):
            document = document.get("url")
    if isinstance(document, str):
        return document
    raise invalid(
        field, "it holds no image, or several", 'send {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}]}'
    )
