"""The Open Inference Protocol, version 2, as KServe and Triton speak it.

A model has two inputs of one length: ``prompt``, BYTES [N], and ``image``: BYTES [N] of image files (in JSON their base64, or data URLs),
or UINT8 [N, H, W, 3] or FP32 [N, H, W, 3] in [0, 1]. Its output is ``reward``, FP32 [N]. Inputs may be sent as binary data, as Triton's
client does; outputs are JSON.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, FailFast, Field

from image_reward.serving.api import ERRORS, MOST_FIELDS, ErrorDetail, validated
from image_reward.serving.errors import RequestError, invalid
from image_reward.serving.forms import check_returnable, parse_json
from image_reward.serving.openapi import IMAGE, PROMPT, ModelName, Schema, list_of, whole
from image_reward.serving.routes import BareRoute
from image_reward.serving.service import Service

router = APIRouter(tags=["KServe v2"], route_class=BareRoute)

_VERSION = "1"
_MOST_VALUES = 16_000_000  # of JSON: those of five images of 1,024 x 1,024 pixels
_TYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}


class Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    shape: Annotated[list[Annotated[int, whole]], FailFast()]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | None = None
    inputs: Annotated[list[Tensor], FailFast()]


class Refusal(BaseModel):
    """The protocol's error is a text; that of the guard, which knows no protocol, is an object."""

    error: str | ErrorDetail
    details: ErrorDetail | None = None


_ERRORS: dict[int | str, dict[str, Any]] = {status: answer | {"model": Refusal} for status, answer in ERRORS.items()}
_UNREADY: dict[int | str, dict[str, Any]] = {503: {"description": "It is stopping."}}
_OF_MODEL = {404: {"model": Refusal, "description": "No such model or version."}} | _UNREADY


@router.get("/v2")
async def server(request: Request) -> JSONResponse:
    """The server and the extensions of the protocol that it knows."""
    return JSONResponse({"name": "image-reward", "version": request.app.version, "extensions": ["binary_tensor_data"]})


@router.get("/v2/health/live", responses=_UNREADY)
async def live(request: Request) -> JSONResponse:
    """Whether the process works."""
    alive = request.app.state.service.batcher.is_alive
    return JSONResponse({"live": alive}, 200 if alive else 503)


@router.get("/v2/health/ready", responses=_UNREADY)
async def ready(request: Request) -> JSONResponse:
    """Whether requests should be sent here."""
    is_ready = request.app.state.service.is_ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


_SIDE: Schema = {"type": "integer", "minimum": 1, "exclusiveMaximum": 1 << 31}
_NUMBER: Schema = {"type": "integer", "minimum": 1, "x-service": "num_images"}


def _tensor(name: str, kinds: Sequence[str], data: Schema, **shape: Any) -> Schema:
    return {
        "type": "object",
        "title": name,
        "description": "Its shape and the number of its data agree. With the extension binary_tensor_data they follow the JSON.",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"const": name},
            "shape": {"type": "array", "prefixItems": [_NUMBER], "items": _SIDE, "minItems": 1, "maxItems": 4} | shape,
            "datatype": {"enum": kinds},
            "data": data,
            "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "null"}}},
        },
    }


def _pixels(number: Schema) -> Schema:
    """A flat list, or one of lists, as deep as the shape."""
    lists: list[Schema] = [{"type": "array", "minItems": 1, "items": number}]
    for _ in range(3):
        lists.append({"type": "array", "minItems": 1, "items": lists[-1]})
    return {"anyOf": lists}


_NHWC = {"minItems": 4, "prefixItems": [_NUMBER, _SIDE, _SIDE, {"enum": [1, 3, 4]}]}
_PROMPTS = _tensor("prompt", ["BYTES"], list_of(PROMPT))
_IMAGES = {
    "anyOf": [
        _tensor("image", ["BYTES"], list_of(IMAGE)),
        _tensor("image", ["UINT8"], _pixels({"type": "integer", "minimum": 0, "maximum": 255}), **_NHWC),
        _tensor("image", ["FP32"], _pixels({"type": "number", "minimum": 0, "maximum": 1}), **_NHWC),
    ]
}
_INPUTS = [
    {"type": "array", "prefixItems": pair, "items": False, "minItems": 2, "maxItems": 2}
    for pair in ([_PROMPTS, _IMAGES], [_IMAGES, _PROMPTS])
]
_REQUEST: Schema = {
    "type": "object",
    "required": ["inputs"],
    "maxProperties": MOST_FIELDS,
    "properties": {"id": {"type": ["string", "null"]}, "inputs": {"anyOf": _INPUTS}},
}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}}}

Version = Annotated[str, Field(json_schema_extra={"enum": [_VERSION]})]


# A name may hold a slash: that of a model of the hub is OWNER/NAME. So the order of routes counts.


@router.post("/v2/models/{name:path}/versions/{version}/infer", responses=_ERRORS, openapi_extra=_BODY, operation_id="kserve_version_infer")
async def version_infer(request: Request, name: ModelName, version: Version) -> JSONResponse:
    """The rewards of aligned prompts and images."""
    service: Service = request.app.state.service
    try:
        if (problem := _unknown(service, name, version)) is not None:
            raise problem
        service.batcher.check_room(1)
        body, header_length = await request.body(), request.headers.get("inference-header-content-length")
        asked, texts, images, field, place = await service.in_thread(len(body), _read, service, body, header_length)
        service.check_prompts(texts, lambda number: f"{field}[{number}]")
        rewards, _ = await service.score([service.model(name)], texts, await service.images(images, lambda number: f"{place}[{number}]"))
    except RequestError as error:
        service.metrics.rejected.labels("busy" if error.status == 429 else "invalid").inc()
        return _refused(error)
    output = {"name": "reward", "datatype": "FP32", "shape": [len(texts)], "data": rewards[0].tolist()}
    answer = {"model_name": name, "model_version": version, "outputs": [output]}
    return JSONResponse(answer | ({"id": asked.id} if asked.id is not None else {}))


@router.post("/v2/models/{name:path}/infer", responses=_ERRORS, openapi_extra=_BODY, operation_id="kserve_infer")
async def infer(request: Request, name: ModelName) -> JSONResponse:
    """The rewards of aligned prompts and images."""
    return await version_infer(request, name, _VERSION)


@router.get("/v2/models/{name:path}/versions/{version}/ready", operation_id="kserve_version_ready", responses=_OF_MODEL)
async def version_ready(request: Request, name: ModelName, version: Version) -> JSONResponse:
    """Whether a model is ready."""
    service: Service = request.app.state.service
    if (problem := _unknown(service, name, version)) is not None:
        return _refused(problem)
    return JSONResponse({"name": name, "ready": service.is_ready}, 200 if service.is_ready else 503)


@router.get("/v2/models/{name:path}/ready", operation_id="kserve_ready", responses=_OF_MODEL)
async def model_ready(request: Request, name: ModelName) -> JSONResponse:
    """Whether a model is ready."""
    return await version_ready(request, name, _VERSION)


@router.get("/v2/models/{name:path}/versions/{version}", operation_id="kserve_version", responses=_OF_MODEL)
async def model_version(request: Request, name: ModelName, version: Version) -> JSONResponse:
    """The inputs and outputs of a model."""
    if (problem := _unknown(request.app.state.service, name, version)) is not None:
        return _refused(problem)
    inputs = [{"name": key, "datatype": "BYTES", "shape": [-1]} for key in ("prompt", "image")]
    outputs = [{"name": "reward", "datatype": "FP32", "shape": [-1]}]
    return JSONResponse({"name": name, "versions": [_VERSION], "platform": "image-reward", "inputs": inputs, "outputs": outputs})


@router.get("/v2/models/{name:path}", operation_id="kserve_model", responses=_OF_MODEL)
async def model(request: Request, name: ModelName) -> JSONResponse:
    """The inputs and outputs of a model."""
    return await model_version(request, name, _VERSION)


def _unknown(service: Service, name: str, version: str) -> RequestError | None:
    try:
        service.model(name, "name")
    except RequestError as error:
        return error
    if version != _VERSION:
        return RequestError(404, "version", f"{name} has no version {version!r:.40}", f"use version {_VERSION}, or none")
    return None


def _refused(error: RequestError) -> JSONResponse:
    """The protocol's error is a text."""
    details = error.as_dict()["error"]
    return JSONResponse({"error": f"{error.field}: {error.message}; {error.remedy}", "details": details}, error.status, error.headers)


def _read(service: Service, body: bytes, header_length: str | None) -> tuple[InferRequest, list[str], list[Any], str, str]:
    """A request, its prompts and images, and the fields of the two. Raises ``RequestError``."""
    asked, binary = _divided(body, header_length)
    check_returnable(asked.id, "id")
    fields = {tensor.name: f"inputs[{number}]" for number, tensor in enumerate(asked.inputs)}
    if set(fields) != {"prompt", "image"} or len(asked.inputs) != 2:
        raise invalid("inputs", "they are not prompt and image, each once", "GET /v2/models/NAME describes them")
    values: dict[str, Any] = {}
    for tensor in asked.inputs:  # in the order of their binary data
        field = fields[tensor.name]
        if not tensor.shape or len(tensor.shape) > 4 or not all(0 <= side < 1 << 31 for side in tensor.shape):
            raise invalid(f"{field}.shape", "it is not a shape", "send the numbers of elements")
        service.check_number(tensor.shape[0], field)
        values[tensor.name], binary = _values(tensor, field, binary)
    if binary:
        raise invalid("body", f"{len(binary)} bytes follow the last input", "set binary_data_size of each input")
    prompts, images = values["prompt"], values["image"]
    if not all(isinstance(prompt, str | bytes) for prompt in prompts):
        raise invalid(f"{fields['prompt']}.datatype", "prompts are not text", "send them as BYTES")
    try:
        texts = [prompt.decode() if isinstance(prompt, bytes) else prompt for prompt in prompts]
    except UnicodeDecodeError:
        raise invalid(f"{fields['prompt']}.data", "a prompt is not UTF-8", "encode text in UTF-8") from None
    if len(texts) != len(images):
        raise invalid("inputs", f"there are {len(texts)} prompts and {len(images)} images", "send one prompt for each image")
    service.check_number(len(images), fields["image"])
    return asked, texts, images, f"{fields['prompt']}.data", f"{fields['image']}.data"


def _divided(body: bytes, header_length: str | None) -> tuple[InferRequest, bytes]:
    """The JSON of a request, and the binary data that follow it."""
    length = len(body)
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,18}", header_length) or int(header_length) > len(body):
            raise RequestError(
                400, "inference-header-content-length", "it is not the length of the JSON in bytes", "correct it, or leave it out"
            )
        length = int(header_length)
    return validated(InferRequest, parse_json(body[:length], most_values=_MOST_VALUES)), body[length:]


def _values(tensor: Tensor, field: str, binary: bytes) -> tuple[Any, bytes]:
    """The elements of an input, each a text, bytes or an array [H, W, 3], and the binary data of the inputs that follow."""
    own: bytes | None = None
    if (size := tensor.parameters.get("binary_data_size")) is not None:
        if not isinstance(size, int) or not 0 <= size <= len(binary):
            raise invalid(f"{field}.parameters.binary_data_size", "it is not a number of the bytes that are there", "correct it")
        own, binary = binary[:size], binary[size:]
    elif tensor.data is None:
        raise invalid(f"{field}.data", "it is missing", "add it, or binary data")
    if tensor.datatype == "BYTES":
        values = _texts(own, field) if own is not None else tensor.data
        assert values is not None
        if len(values) != math.prod(tensor.shape):
            raise invalid(f"{field}.shape", f"it is {tensor.shape}, and there are {len(values)} elements", "make them agree")
        if not all(isinstance(value, str | bytes) for value in values):
            raise invalid(f"{field}.data", "its elements are not text", "send text, images as base64")
        return values, binary
    if tensor.datatype not in _TYPES:
        raise invalid(f"{field}.datatype", f"it is {tensor.datatype:.20}", f"send BYTES, {' or '.join(_TYPES)}")
    if len(tensor.shape) != 4 or 0 in tensor.shape or tensor.shape[-1] not in (1, 3, 4):
        raise invalid(f"{field}.shape", f"it is {tensor.shape}", "send images as [N, H, W, 3]")
    kind = _TYPES[tensor.datatype]
    try:
        flat = np.frombuffer(own, kind) if own is not None else _flat(tensor.data, kind)
        array = flat.reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError):
        raise invalid(f"{field}.data", f"it is not {tensor.datatype} of the shape {tensor.shape}", "make shape and data agree") from None
    return list(array), binary


def _flat(data: Any, kind: np.dtype[Any]) -> Any:
    if not _is_numeric(data, 4):  # NumPy would make all elements as large as the longest text among them
        raise ValueError("of another type")
    array = np.array(data)
    if array.dtype.kind not in ("iu" if kind.kind == "u" else "iuf"):
        raise ValueError("of another type")
    if kind.kind == "u" and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise ValueError("out of range")
    return array.astype(kind)


def _is_numeric(data: list[Any], depth: int) -> bool:
    kinds = set(map(type, data))
    if list not in kinds:
        return kinds <= {int, float}
    return kinds == {list} and depth > 1 and all(_is_numeric(inner, depth - 1) for inner in data)


def _texts(data: bytes, field: str) -> list[bytes]:
    """Elements, each after its length in 4 bytes."""
    texts, at = [], 0
    while at < len(data):
        if at + 4 > len(data) or at + 4 + (size := struct.unpack_from("<I", data, at)[0]) > len(data):
            raise invalid(f"{field}.data", "an element reaches beyond the end", "send each after its length in 4 bytes, little-endian")
        texts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return texts
