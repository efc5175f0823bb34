"""Requests in the shapes of the documentation of vLLM, Jina, Cohere and text-embeddings-inference."""

from __future__ import annotations

from typing import Any

import pytest
from clients import URLS
from fastapi.testclient import TestClient

from image_reward.scorers import ImageRewardScorer

VLLM = [{"content": [{"type": "image_url", "image_url": {"url": url}}]} for url in URLS]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(
    "documents",
    [
        VLLM,
        {"content": [part for document in VLLM for part in document["content"]]},
        URLS,
        [{"image": url} for url in URLS],
        [{"text": url} for url in URLS],
        [{"url": url} for url in URLS],
    ],
    ids=["vLLM", "vLLM in one object", "Cohere", "Jina", "text", "url"],
)
def test_documents(documents: Any, path: str, client: TestClient, scorer: ImageRewardScorer) -> None:
    from clients import IMAGES

    answer = client.post(path, json={"model": "tiny", "query": "a cat", "documents": documents, "top_n": 4, "truncate_prompt_tokens": -1})
    assert answer.status_code == 200
    ranking = scorer.rank("a cat", IMAGES)
    results = answer.json()["results"]
    assert [result["index"] for result in results] == ranking.order[:4]
    assert [result["relevance_score"] for result in results] == pytest.approx([ranking.rewards[n] for n in ranking.order[:4]], abs=1e-5)
    assert {"id", "model", "usage", "meta"} <= set(answer.json())


def test_documents_can_be_returned(client: TestClient) -> None:
    results = client.post("/v1/rerank", json={"query": "a", "documents": VLLM[:2], "return_documents": True}).json()["results"]
    assert [result["document"] for result in results] == [VLLM[result["index"]] for result in results]


@pytest.mark.parametrize("extra", ['"\\ud800"', "1e400", "-1e999"])
def test_documents_that_cannot_be_returned(extra: str, client: TestClient) -> None:
    document = f'[{{"image": "{URLS[0]}", "title": {extra}}}]'
    for name, field in (("documents", "return_documents"), ("texts", "return_text")):
        answer = client.post("/rerank", content=f'{{"query": "a", "{name}": {document}, "{field}": true}}')
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, name)
        assert client.post("/rerank", content=f'{{"query": "a", "{name}": {document}}}').status_code == 200


def test_text_embeddings_inference(client: TestClient, scorer: ImageRewardScorer) -> None:
    from clients import IMAGES

    ask = {"query": "a cat", "texts": URLS, "truncate": False, "raw_scores": True}
    results = client.post("/rerank", json=ask).json()
    ranking = scorer.rank("a cat", IMAGES)
    assert [result["index"] for result in results] == ranking.order
    assert set(results[0]) == {"index", "score"}
    assert client.post("/rerank", json=ask | {"return_text": True}).json()[0]["text"] == URLS[ranking.order[0]]


@pytest.mark.parametrize(
    ("ask", "status", "field"),
    [
        ({"query": "a"}, 422, "documents"),
        ({"query": "a", "documents": URLS, "texts": URLS}, 422, "documents"),
        ({"query": "a", "documents": []}, 422, "documents"),
        ({"query": "a", "documents": [URLS[0], {"content": []}]}, 422, "documents[1]"),
        ({"query": "a", "documents": [URLS[0], 3]}, 422, "documents[1]"),
        ({"query": "a", "documents": [URLS[0], "just text"]}, 422, "documents[1]"),
        ({"query": "a", "documents": {"content": [{"type": "text", "text": "a"}]}}, 422, "documents[0]"),
        ({"query": "a", "documents": URLS, "top_n": 0}, 422, "top_n"),
        ({"query": "a" * 20_000, "documents": URLS}, 422, "query"),
        ({"documents": URLS}, 422, "query"),
        ({"query": "a", "documents": URLS, "model": "other"}, 404, "model"),
        ({"query": "a", "documents": ["http://example.org/a.png"]}, 422, "documents[0]"),
    ],
)
def test_refusals(ask: dict[str, Any], status: int, field: str, client: TestClient) -> None:
    answer = client.post("/v1/rerank", json=ask)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
