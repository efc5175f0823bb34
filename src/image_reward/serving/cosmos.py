"""The reward service of cosmos-rl: a batch of images is enqueued, and its rewards are pulled later.

``POST /api/reward/enqueue`` takes a line of JSON and then a .npy file, uint8 [B, H, W, 3]. ``/api/reward/pull`` answers 400 until the
rewards are there. The name ``image_reward`` is that of the first model; other names are those of /v1/models. Weights of rewards are the
client's to apply.
"""

from __future__ import annotations

import asyncio
import io
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

from image_reward.serving.api import ERRORS
from image_reward.serving.errors import BusyError, RequestError, invalid, of_package
from image_reward.serving.forms import Form, parse_form, parse_json
from image_reward.serving.openapi import Schema
from image_reward.serving.routes import BareRoute
from image_reward.serving.service import Service

router = APIRouter(tags=["cosmos-rl"], prefix="/api/reward", route_class=BareRoute)

DEFAULT = "image_reward"
_MOST_RESULTS = 10_000
_SECONDS_KEPT = 3600.0


@dataclass
class _Job:
    names: list[str]
    info: dict[str, Any]
    task: asyncio.Task[NDArray[np.float32]] | None = None
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


class Jobs:
    """What was enqueued and not yet forgotten: finished ones go after an hour, and the oldest where there are too many."""

    def __init__(self, max_bytes: int) -> None:
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._max_bytes = max_bytes
        self._num_bytes = 0  # of images that wait, whose requests have been answered

    def start(self, job: _Job, num_bytes: int, work: Callable[[], Coroutine[Any, Any, NDArray[np.float32]]]) -> str:
        """The name of a job, which is in work from now on. Raises ``BusyError``."""
        self._forget()
        if len(self._jobs) >= _MOST_RESULTS or self._num_bytes + num_bytes > self._max_bytes:
            raise BusyError("too many batches are in work", 5)
        name = str(uuid.uuid4())
        self._jobs[name] = job
        self._num_bytes += num_bytes
        job.task = asyncio.create_task(work())
        job.task.add_done_callback(lambda _: self._end(num_bytes))
        return name

    def _end(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes

    def get(self, name: str) -> _Job | None:
        return self._jobs.get(name)

    def _forget(self) -> None:
        now = time.monotonic()
        finished = [name for name, job in self._jobs.items() if job.task is not None and job.task.done()]
        for number, name in enumerate(finished):
            if now - self._jobs[name].started > _SECONDS_KEPT or len(self._jobs) >= _MOST_RESULTS > number:
                del self._jobs[name]


def _jobs(request: Request) -> Jobs:
    if not hasattr(request.app.state, "cosmos_jobs"):
        request.app.state.cosmos_jobs = Jobs(request.app.state.service.limits.max_memory)
    jobs: Jobs = request.app.state.cosmos_jobs
    return jobs


async def _form(request: Request) -> Form:
    service: Service = request.app.state.service
    body = await request.body()
    return await service.in_thread(len(body), parse_form, request.headers.get("content-type", ""), body, 16)


def _described(**fields: Schema) -> dict[str, Any]:
    """A form whose first field is needed."""
    schema = {"type": "object", "required": list(fields)[:1], "properties": fields}
    return {"requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}}}


_JSON: Schema = {"type": "string", "format": "json", "contentMediaType": "application/json"}
_UUID: Schema = {"type": "string", "format": "uuid", "description": "What enqueue has answered; 400 for any other."}
_BYTES = {
    "requestBody": {
        "required": True,
        "description": "A line of JSON (media_type, prompts, reward_fn), and then a .npy file, uint8 [B, H, W, 3].",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "enqueued-images"}}},
    }
}


@router.post("/ping", responses=ERRORS, openapi_extra=_described(info_data=_JSON))
async def ping(request: Request) -> JSONResponse:
    """Whether the service is there."""
    service: Service = request.app.state.service
    data = (await _form(request)).text("info_data").encode()
    await service.in_thread(len(data), parse_json, data, "info_data")
    return JSONResponse({"message": "Ping request received"})


@router.post("/enqueue", responses=ERRORS, openapi_extra=_BYTES)
async def enqueue(request: Request) -> JSONResponse:
    """Score a batch of images in the background."""
    service: Service = request.app.state.service
    service.batcher.check_room(1)
    head, newline, data = (await request.body()).partition(b"\n")
    if not newline:
        raise RequestError(400, "body", "it is one line", "send a line of JSON and then a .npy file")
    asked = await service.in_thread(len(head), parse_json, head)
    if not isinstance(asked, dict):
        raise RequestError(400, "body", "its first line is not an object", "send media_type, prompts and reward_fn")
    if asked.get("media_type", "image") != "image":
        raise invalid("media_type", f"it is {asked['media_type']!r:.40}", "send images; videos are not scored")
    rewards = asked.get("reward_fn")
    if not isinstance(rewards, dict) or not rewards or not all(_is_number(weight) for weight in rewards.values()):
        raise invalid("reward_fn", "it is not an object of names and weights", f'send {{"{DEFAULT}": 1.0}}')
    models = [service.model(None if name == DEFAULT else name, f"reward_fn.{name:.100}") for name in rewards]
    images = await service.in_thread(len(data), _images, data)
    prompts = asked.get("prompts")
    if isinstance(prompts, str):
        prompts = [prompts] * len(images)
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts) or len(prompts) != len(images):
        raise invalid("prompts", f"it is not a list of {len(images)} texts", "send one prompt for each image")
    service.check_number(len(images), "body")
    service.check_prompts(prompts, lambda number: f"prompts[{number}]")
    service.check_pairs(len(images), "body")
    service.batcher.check_room(len(images))
    info = {
        "shape": list(images.shape),
        "dtype": f"torch.{images.dtype}",
        "min": f"{float(images.min()):.3f}",
        "max": f"{float(images.max()):.3f}",
    }
    job = _Job(list(rewards), info)
    name = _jobs(request).start(job, images.nbytes, lambda: _score(service, job, models, prompts, images))
    return JSONResponse({"uuid": name})


async def _score(service: Service, job: _Job, models: list[int], prompts: list[str], images: NDArray[Any]) -> NDArray[np.float32]:
    sources = await service.images(list(images), lambda number: f"body[{number}]")
    different = list(dict.fromkeys(models))
    rewards, _ = await service.score(different, prompts, sources)
    job.seconds = time.monotonic() - job.started
    return rewards[[different.index(model) for model in models]]


def _images(data: bytes) -> NDArray[Any]:
    """The array of a .npy file. Raises ``RequestError``."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read_header(file)
    except Exception:  # of many kinds: NumPy has Python's parser read the header
        raise RequestError(400, "body", "what follows its first line is not a .npy file", "write it with numpy.save") from None
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3, 4):
        raise invalid("body", f"its array is {dtype} {list(shape)}", "send uint8 [B, H, W, 3]")
    if min(shape) < 1 or math.prod(shape) != len(data) - file.tell():
        raise invalid("body", f"its array {list(shape)} is empty, or not as long as its shape says", "send the whole file")
    return np.frombuffer(data, np.uint8, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@router.post(
    "/pull",
    responses=ERRORS,
    openapi_extra=_described(uuid=_UUID, type={"type": "string", "description": "A name of reward_fn; by default the first."}),
)
async def pull(request: Request) -> JSONResponse:
    """The rewards of a batch; 400 until they are there."""
    form = await _form(request)
    name = form.text("uuid")
    job = _jobs(request).get(name)
    if job is None or job.task is None or not job.task.done():
        error = RequestError(400, "uuid", f"Not found scores for {name:.100}", "pull again in a second")
        return JSONResponse({"message": error.message} | error.as_dict(), 400)
    kinds = form.texts.get("type", job.names[:1])
    if len(kinds) != 1 or kinds[0] not in job.names:
        raise RequestError(404, "type", f"{kinds[-1]!r:.100} was not asked for", f"use one of: {', '.join(job.names)}")
    try:
        rewards = job.task.result()
    except Exception as error:
        refused = of_package(error, "body")
        if refused is None:
            raise
        raise refused from None
    return JSONResponse(
        {
            "scores": {kinds[0]: rewards[job.names.index(kinds[0])].tolist()},
            "input_info": job.info,
            "duration": f"{job.seconds:.2f}",
            "decoded_duration": "0.00",
            "type": kinds[0],
        }
    )
