"""What the OpenAPI document says of requests beyond their types: which texts are images, and the limits and models of this very service.

Routes are described before there is a service. So a schema names under ``x-service`` what it takes from one, and ``completed`` puts the
keywords of JSON Schema in its place.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from image_reward.serving.service import Service
from image_reward.types import LONGEST_PROMPT

Schema = dict[str, Any]

_SIGN = r"(?:\s*[A-Za-z0-9+/])"
_BASE64 = rf"(?:data:[\w.+-]*(?:/[\w.+-]+)?(?:;[\w.+=-]+)*;base64,)?(?:{_SIGN}{{4}})*{_SIGN}{{2}}(?:{_SIGN}{{2}}|{_SIGN}\s*=|\s*=\s*=)\s*"
_ADDRESS = "[Hh][Tt][Tt][Pp][Ss]?://.+"

PROMPT: Schema = {"x-service": "prompt"}
IMAGE: Schema = {"x-service": "image"}


def list_of(items: Schema, most: str = "max_images") -> Schema:
    """A list that is not empty, and of as many elements as a limit allows."""
    return {"type": "array", "items": items, "minItems": 1, "x-service": most}


def of_service(name: str) -> Any:
    """A field whose schema takes something from the service."""
    return Field(json_schema_extra={"x-service": name})


def _image(value: object) -> object:
    if not isinstance(value, str | bytes):
        raise ValueError("an image is text: a data URL, base64 or an address")
    return value


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Image = Annotated[Any, BeforeValidator(_image), WithJsonSchema(IMAGE)]
Prompt = Annotated[str, WithJsonSchema(PROMPT)]
ModelName = Annotated[str, of_service("models")]
whole = BeforeValidator(_whole)
"""Of a field of integers: 2.0 is one in JSON Schema, and not in Pydantic where that is strict."""


def completed(document: Schema, service: Service) -> Schema:
    """An OpenAPI document with what its schemas take from the service."""
    limits = service.limits
    schemas = {
        "Prompt": {
            "type": "string",
            "maxLength": min(limits.max_prompt, LONGEST_PROMPT),
            "description": "Text that can be encoded in UTF-8: without halves of surrogate pairs.",
        },
        "Image": {
            "type": "string",
            "format": "image",
            "pattern": f"^(?:{_BASE64}{'|' + _ADDRESS if service.settings.allow_fetch else ''})$",
            "description": "A data URL or base64 of a file that Pillow reads; or its address, where the service fetches from the host.",
        },
    }
    known: dict[str, Schema] = {
        "prompt": {"$ref": "#/components/schemas/Prompt"},
        "image": {"$ref": "#/components/schemas/Image"},
        "max_images": {"maxItems": limits.max_images},
        "num_images": {"maximum": limits.max_images},
        "max_queue": {"maxItems": limits.max_queue},
        "models": {"enum": list(dict.fromkeys(scorer.name for scorer in service.scorers))},
    }

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(element) for element in value]
        if not isinstance(value, dict):
            return value
        whole = {key: fill(inner) for key, inner in value.items() if key != "x-service"}
        return whole | known[value["x-service"]] if "x-service" in value else whole

    filled: Schema = fill(document)
    filled.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return filled
