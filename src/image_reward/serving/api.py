"""The service's own protocol: /v1/score, /v1/rank, /v1/compare, /v1/matrix and /v1/models, in JSON or as forms with files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from image_reward.scorers.distribution import published_distribution
from image_reward.serving.errors import invalid
from image_reward.serving.forms import Form, parse_form, parse_json
from image_reward.serving.openapi import Image, ModelName, Prompt, of_service
from image_reward.serving.routes import BareRoute
from image_reward.serving.service import Service
from image_reward.types import Ranking

router = APIRouter(tags=["rewards"], route_class=BareRoute)


Model = Annotated[ModelName | None, Field(description="One of GET /v1/models; by default the first.")]
Images = Annotated[list[Image], Field(min_length=1), of_service("max_images")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class ScoreRequest(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "not": {"required": ["model", "models"], "properties": {"model": {"type": "string"}, "models": {"type": "array"}}}
        }
    )

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1), of_service("max_images")] = Field(
        description="One for all images, or as many as there are images, one for each."
    )
    images: Images
    model: Model = None
    models: Annotated[list[ModelName], Field(min_length=1), of_service("max_queue")] | None = Field(
        default=None, description="Several models at once, instead of `model`."
    )


class RankRequest(Strict):
    prompt: Prompt
    images: Images
    model: Model = None


class CompareRequest(Strict):
    prompt: Prompt
    a: Image
    b: Image
    model: Model = None


class MatrixRequest(Strict):
    """Prompts times images are at most as many as the queue holds (max_queue of GET /v1/models)."""

    prompts: Annotated[list[Prompt], Field(min_length=1), of_service("max_queue")]
    images: Images
    model: Model = None


class ScoreResponse(BaseModel):
    model: str
    rewards: list[float] = Field(description="Of each image; higher is better.")
    rewards_by_model: dict[str, list[float]]
    warnings: list[str]


class RankResponse(BaseModel):
    model: str
    ranking: list[int] = Field(description="The rank of each image, 1 for the best.")
    rewards: list[float]
    warnings: list[str]


class CompareResponse(BaseModel):
    model: str
    a_better: float = Field(description="Probability that people prefer a.")
    tie: float
    b_better: float
    rewards: list[float]
    spreads: list[float] | None = Field(default=None, description="The standard deviations of the rewards, from models that give them.")
    warnings: list[str]


class MatrixResponse(BaseModel):
    model: str
    rewards: list[list[float]] = Field(description="A row for each prompt, a column for each image.")
    warnings: list[str]


class ErrorDetail(BaseModel):
    status: int
    field: str
    message: str
    remedy: str


class ErrorResponse(BaseModel):
    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The body cannot be read.",
        401: "The token is missing or wrong.",
        403: "Without a token, only this machine is answered.",
        404: "No such model.",
        408: "The body took too long to arrive.",
        413: "Too many bytes, images or rewards.",
        422: "A field makes no sense.",
        429: "The queue is full: try again after the seconds in Retry-After.",
        503: "The request took too long.",
    }.items()
}

R = TypeVar("R", bound=BaseModel)

MOST_FIELDS = 100  # of a request; those that clients of other servers add included


def validated(kind: type[R], values: object) -> R:
    """Raises ``RequestError`` that names the first field at fault."""
    if isinstance(values, dict) and len(values) > MOST_FIELDS:
        raise invalid("body", f"it has {len(values):,} fields", f"leave out all but {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = [part for part in first["loc"] if isinstance(part, int) or part in kind.model_fields or first["type"] == "extra_forbidden"]
        name = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in place) or "body"
        message = first["msg"].removeprefix("Value error, ")
        remedies = {"missing": "add it", "extra_forbidden": f"leave it out; known are {', '.join(kind.model_fields)}"}
        raise invalid(name[:100], message[:1].lower() + message[1:], remedies.get(first["type"], "see /docs")) from None


def of_form(form: Form, kind: type[BaseModel]) -> dict[str, Any]:
    """The parts of a form as the fields of a request: files or texts, repeated where the field is a list."""
    values: dict[str, Any] = {}
    for name in {**form.texts, **form.files}:
        parts: list[Any] = form.files.get(name) or form.texts[name]
        field = {"image": "images", "prompts": "prompt" if "prompt" in kind.model_fields else "prompts"}.get(name, name)
        is_list = field in ("images", "models", "prompts") or (field == "prompt" and len(parts) > 1)
        if not is_list and len(parts) > 1:
            raise invalid(name, f"it is there {len(parts)} times", "send it once")
        values[field] = parts if is_list else parts[0]
    return values


async def read(request: Request, kind: type[R]) -> R:
    """The body of a request as its fields. Raises ``RequestError``."""
    service: Service = request.app.state.service
    service.batcher.check_room(1)
    body = await request.body()
    content_type = request.headers.get("content-type", "application/json")
    if content_type.lower().startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        form = await service.in_thread(len(body), parse_form, content_type, body, service.limits.max_images + service.limits.max_queue + 32)
        values: Any = of_form(form, kind)
    else:
        values = await service.in_thread(len(body), parse_json, body)
    if isinstance(values, dict):  # each element that is at fault would be an error of its own, and a million of them fill the memory
        for name, value in values.items():
            if isinstance(value, list) and name in _OF_IMAGES:
                service.check_number(len(value), name)
            elif isinstance(value, list):
                service.check_pairs(len(value), name)
    return validated(kind, values)


_OF_IMAGES = ("images", "documents", "texts")


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a request that ``read`` reads."""
    schema = kind.model_json_schema()
    file = {"type": "string", "format": "image-file", "contentMediaType": "application/octet-stream", "minLength": 1}
    form = {name: _of_part(field) for name, field in schema["properties"].items()}
    form |= {name: file for name in form if name in ("a", "b")}
    form |= {name: form[name] | {"items": file} for name in form if name == "images"}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": schema | {"properties": form}}},
        }
    }


def _of_part(field: dict[str, Any]) -> dict[str, Any]:
    """A field as parts of a form, which cannot be null: they are left out instead."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
    return field if not kinds else rest | kinds[0] if len(kinds) == 1 else rest | {"anyOf": kinds}


def numbered(name: str) -> Any:
    return lambda number: f"{name}[{number}]"


@router.post("/v1/score", response_model=ScoreResponse, responses=ERRORS, openapi_extra=described(ScoreRequest))
async def score(request: Request) -> JSONResponse:
    """The reward of each image, for one prompt or for one each."""
    service: Service = request.app.state.service
    asked = await read(request, ScoreRequest)
    if asked.models is not None and asked.model is not None:
        raise invalid("models", "model is there too", "leave out one of the two")
    names = asked.models if asked.models is not None else [asked.model]
    models = [service.model(name, f"models[{number}]" if asked.models else "model") for number, name in enumerate(names)]
    if isinstance(asked.prompt, str):
        service.check_prompts([asked.prompt], lambda _: "prompt")
        prompts = [asked.prompt] * len(asked.images)
    else:
        prompts = asked.prompt
        if len(prompts) != len(asked.images):
            message = f"there are {len(prompts)} prompts and {len(asked.images)} images"
            raise invalid("prompt", message, "send one prompt, or one for each image; /v1/matrix takes all prompts with all images")
        service.check_prompts(prompts, numbered("prompt"))
    images = await service.images(asked.images, numbered("images"))
    rewards, warnings = await service.score(list(dict.fromkeys(models)), prompts, images)
    by_model = {service.scorers[model].name: own for model, own in zip(dict.fromkeys(models), rewards.tolist(), strict=True)}
    name = service.scorers[models[0]].name
    return JSONResponse({"model": name, "rewards": by_model[name], "rewards_by_model": by_model, "warnings": warnings})


@router.post("/v1/rank", response_model=RankResponse, responses=ERRORS, openapi_extra=described(RankRequest))
async def rank(request: Request) -> JSONResponse:
    """The images of one prompt in order of reward."""
    service: Service = request.app.state.service
    asked = await read(request, RankRequest)
    model, rewards, warnings = await rewards_of_one_prompt(service, asked.model, asked.prompt, asked.images, numbered("images"))
    ranking = Ranking.from_rewards(rewards)
    return JSONResponse({"model": service.scorers[model].name} | ranking.as_dict() | {"warnings": warnings})


@router.post("/v1/compare", response_model=CompareResponse, responses=ERRORS, openapi_extra=described(CompareRequest))
async def compare(request: Request) -> JSONResponse:
    """How likely people are to prefer a to b."""
    service: Service = request.app.state.service
    asked = await read(request, CompareRequest)
    scorer = service.scorers[service.model(asked.model)]
    if not scorer.compares_rewards:
        raise invalid(
            "model",
            f"{scorer.name} compares two images in one question, which this service does not ask",
            "use `image-reward compare` or the scorer's compare(), or order the images by their rewards with /v1/rank",
        )
    model, estimates, warnings = await estimates_of_one_prompt(service, asked.model, asked.prompt, [asked.a, asked.b], lambda n: "ab"[n])
    (a, b), *deviations = estimates
    preference = service.scorers[model].preference(a, b, (deviations[0][0], deviations[0][1]) if deviations else None)
    return JSONResponse({"model": service.scorers[model].name} | preference.as_dict() | {"warnings": warnings})


@router.post("/v1/matrix", response_model=MatrixResponse, responses=ERRORS, openapi_extra=described(MatrixRequest))
async def matrix(request: Request) -> JSONResponse:
    """The reward of every prompt with every image; each image is encoded once."""
    service: Service = request.app.state.service
    asked = await read(request, MatrixRequest)
    model = service.model(asked.model)
    service.check_pairs(len(asked.prompts) * len(asked.images), "prompts")
    service.check_prompts(asked.prompts, numbered("prompts"))
    rewards, warnings = await service.matrix(model, asked.prompts, await service.images(asked.images, numbered("images")))
    return JSONResponse({"model": service.scorers[model].name, "rewards": rewards.tolist(), "warnings": warnings})


async def rewards_of_one_prompt(
    service: Service, name: str | None, prompt: str, values: Sequence[Any], field: Any, prompt_field: str = "prompt"
) -> tuple[int, list[float], list[str]]:
    """The number of the model, the rewards of images for one prompt, and warnings. Raises ``RequestError``."""
    model, estimates, warnings = await estimates_of_one_prompt(service, name, prompt, values, field, prompt_field)
    return model, estimates[0], warnings


async def estimates_of_one_prompt(
    service: Service, name: str | None, prompt: str, values: Sequence[Any], field: Any, prompt_field: str = "prompt"
) -> tuple[int, list[list[float]], list[str]]:
    """As ``rewards_of_one_prompt``: the rewards, and from a model that has them their standard deviations."""
    model = service.model(name)
    service.check_number(len(values), "images")
    service.check_prompts([prompt], lambda _: prompt_field)
    images = await service.images(values, field)
    estimates, warnings = await service.estimates([model], [prompt] * len(images), images)
    return model, estimates.tolist(), warnings


@router.get("/v1/models", tags=["models"], responses={status: ERRORS[status] for status in (401, 403, 429)})
async def models(request: Request) -> JSONResponse:
    """The models, the first of which answers where none is named, with their published distributions, and the limits of a request."""
    service: Service = request.app.state.service
    limits = service.limits
    return JSONResponse(
        {
            "models": [
                {
                    "name": scorer.name,
                    "reads_prompt": scorer.reads_prompt,
                    "has_ties": scorer.tie is not None,
                    "batch_size": scorer.batch_size,
                    "device": str(scorer.device),
                    "distribution": None if (published := published_distribution(scorer.reference)) is None else asdict(published),
                }
                for scorer in service.scorers
            ],
            "limits": {
                "max_body": limits.max_body,
                "max_images": limits.max_images,
                "max_prompt": limits.max_prompt,
                "max_queue": limits.max_queue,
                "max_seconds": limits.max_seconds,
            },
        }
    )
