"""Scored rows that the page shows, of the one folder that the service was started with, a hundred at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from image_reward.displays import webp
from image_reward.errors import ImageRewardError
from image_reward.images import open_image
from image_reward.scorers.together import options_of
from image_reward.serving.api import validated
from image_reward.serving.errors import RequestError
from image_reward.serving.routes import BareRoute
from image_reward.serving.service import Service

router = APIRouter(prefix="/page/scored", include_in_schema=False, route_class=BareRoute)


class ScoredRows(Protocol):
    """Rows with rewards, such as a job writes. All methods are called in threads."""

    name: str
    """What the rows are called."""
    columns: list[str]
    """The columns of rewards, one for each scorer."""
    num_rows: int

    def histogram(self, column: str) -> tuple[float | None, float | None, list[int]]:
        """The least and greatest reward, None if there is none, and the numbers of rows in equal bins between the two."""
        ...

    def page(
        self,
        column: str,
        order: str,
        descending: bool,
        low: float | None,
        high: float | None,
        text: str,
        errors: bool,
        offset: int,
        limit: int,
    ) -> tuple[int, list[dict[str, Any]]]:
        """How many rows there are with a reward in [low, high] and a text in their prompt or image, with or without those that have no
        reward, and some of them: ``part`` and ``row``, ``id``, ``prompt``, ``image``, ``reward`` and ``error``.
        """
        ...

    def picture(self, part: int, row: int) -> Any:
        """Something ``open_image`` takes. Raises ``LookupError`` for a row that does not exist, and what reading raises."""
        ...


class Query(BaseModel):
    column: str
    order: Literal["reward", "prompt", "image", "place"] = "reward"
    descending: bool = True
    low: Annotated[float | None, Field(allow_inf_nan=False)] = None
    high: Annotated[float | None, Field(allow_inf_nan=False)] = None
    text: Annotated[str, Field(max_length=1000)] = ""
    errors: bool = False
    offset: Annotated[int, Field(ge=0, lt=1 << 40)] = 0
    limit: Annotated[int, Field(gt=0, le=1000)] = 100


class Place(BaseModel):
    part: Annotated[int, Field(ge=0, lt=1 << 40)]
    row: Annotated[int, Field(ge=0, lt=1 << 40)]
    side: Annotated[int, Field(ge=16, le=4096)] = 320


def _scored(request: Request) -> ScoredRows:
    scored: ScoredRows | None = request.app.state.scored
    if scored is None:
        raise RequestError(404, "path", "no folder of scored rows is shown here", "start the service with --browse FOLDER")
    return scored


@router.get("")
async def about(request: Request) -> JSONResponse:
    scored = _scored(request)
    histograms = {}
    for column in scored.columns:
        low, high, counts = await asyncio.to_thread(scored.histogram, column)
        histograms[column] = {"low": low, "high": high, "counts": counts}
    return JSONResponse({"name": scored.name, "columns": scored.columns, "num_rows": scored.num_rows, "histograms": histograms})


@router.get("/rows")
async def rows(request: Request) -> JSONResponse:
    scored = _scored(request)
    query = validated(Query, dict(request.query_params))
    if query.column not in scored.columns:
        raise RequestError(404, "column", "it is not a column of rewards", f"use one of: {', '.join(scored.columns)}")
    num, found = await asyncio.to_thread(lambda: scored.page(**query.model_dump()))
    return JSONResponse({"num": num, "rows": found})


@router.get("/images/{part}/{row}")
async def image(request: Request, part: str, row: str) -> Response:
    """The image of a row, wherever it lies, made smaller and written anew, so that nothing but an image can be read through a row."""
    scored = _scored(request)
    place = validated(Place, {**request.query_params, "part": part, "row": row})
    service: Service = request.app.state.service
    options = replace(options_of(service.scorers[0].prepare), orient=True, allow_truncated=True)

    def small() -> bytes:
        return webp(open_image(scored.picture(place.part, place.row), options), place.side)

    try:
        content = await asyncio.get_running_loop().run_in_executor(service.thumbnailers, small)
    except LookupError:
        raise RequestError(404, "row", "it does not exist", "use one of /page/scored/rows") from None
    except OSError as error:
        raise RequestError(404, "image", f"it cannot be read: {error.strerror or type(error).__name__}", "restore the file") from None
    except ImageRewardError as error:  # whose message names the file's place on this machine
        raise RequestError(422, "image", f"it cannot be shown ({type(error).__name__})", "open the file where the rows are") from None
    headers = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
    return Response(content, media_type="image/webp", headers=headers)
