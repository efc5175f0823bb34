"""The reward server that flow_grpo's trainers post pickles to, as far as one can do that safely: see ``pickles``.

``POST /`` takes ``{"images": [JPEG bytes], "prompts": [text]}`` and answers ``{"outputs": [rewards]}``, both pickled. Its clients try again
a thousand times after a 500, and take any other answer for a result, which they then fail to unpickle. So ``STATUSES`` exchanges two
answers: a busy service, elsewhere 429, is a 500, for which the trainer waits; and a defect, elsewhere 500, is a 503, which stops the
trainer, as does everything else that may be permanent.
"""

from __future__ import annotations

import pickle

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from image_reward.serving.errors import RequestError, invalid
from image_reward.serving.pickles import UnreadablePickleError, loads
from image_reward.serving.routes import BareRoute
from image_reward.serving.service import Service

router = APIRouter(route_class=BareRoute)

PLACE = ("POST", "/")
STATUSES = {429: 500, 500: 503}


@router.post("/", include_in_schema=False)
async def rewards(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await request.body()
    service.batcher.check_room(1)
    try:
        asked = await service.in_thread(len(body), loads, body)
    except UnreadablePickleError as error:
        raise RequestError(400, "body", f"it is not a pickle that is read here: {error}", "send images and prompts alone") from None
    if not isinstance(asked, dict):
        raise RequestError(400, "body", "it is not a pickled dictionary", 'send {"images": [bytes], "prompts": [text]}')
    images, prompts = asked.get("images"), asked.get("prompts")
    if not isinstance(images, list) or not all(isinstance(image, bytes | bytearray) for image in images):
        raise invalid("images", "it is not a list of the bytes of image files", "encode each image as JPEG or PNG")
    if prompts is None and not service.scorers[0].reads_prompt:
        prompts = [""] * len(images)
    if isinstance(prompts, np.ndarray) and prompts.dtype.kind == "U" and prompts.ndim == 1:
        prompts = prompts.tolist()
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise invalid("prompts", "it is neither a list nor an array of texts", "send one prompt for each image")
    service.check_number(len(images), "images")
    if len(prompts) != len(images):
        raise invalid("prompts", f"there are {len(prompts)} prompts and {len(images)} images", "send one prompt for each image")
    service.check_prompts(prompts, lambda number: f"prompts[{number}]")
    sources = await service.images([bytes(image) for image in images], lambda number: f"images[{number}]")
    scored, _ = await service.score([0], prompts, sources)
    return Response(pickle.dumps({"outputs": scored[0].tolist()}), media_type="application/octet-stream")
