"""What all protocols of the service have in common: models by name, checked prompts and images, and rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from image_reward.errors import PromptError
from image_reward.prompts import check_prompts
from image_reward.scorers.base import Scorer
from image_reward.serving.batcher import Batcher, Group, Source, groups_of
from image_reward.serving.errors import RequestError, invalid
from image_reward.serving.fetching import fetch
from image_reward.serving.forms import image_bytes
from image_reward.serving.settings import Settings

_NUM_FETCHERS = 8
_WORTH_A_THREAD = 1 << 18  # bytes: parsing fewer is quicker than asking another thread to

T = TypeVar("T")


class Service:
    """Scorers, and what may be asked of them. Everything here runs in the event loop."""

    def __init__(self, scorers: Sequence[Scorer[Any]], settings: Settings) -> None:
        self.scorers = list(scorers)
        self.settings, self.limits = settings, settings.limits
        self.batcher = Batcher(self.scorers, settings.num_decoders, settings.limits.max_queue)
        self.metrics = self.batcher.metrics
        self.is_draining = False
        self._fetchers = ThreadPoolExecutor(_NUM_FETCHERS, "fetcher")  # of their own: a host that is slow holds up nothing else
        self.thumbnailers = ThreadPoolExecutor(settings.num_decoders, "thumbnailer")
        self._by_name = {scorer.name: number for number, scorer in reversed(list(enumerate(self.scorers)))}

    @property
    def is_ready(self) -> bool:
        return self.batcher.is_alive and not self.is_draining

    def model(self, name: str | None, field: str = "model") -> int:
        """The number of a model; of the first without a name. Raises ``RequestError``."""
        if name is None:
            return 0
        if name not in self._by_name:
            raise RequestError(404, field, f"no model is called {name!r:.100} here", f"use one of: {', '.join(self._by_name)}")
        return self._by_name[name]

    def check_prompts(self, prompts: Sequence[str], field: Callable[[int], str]) -> None:
        """Raise ``RequestError`` for a prompt that cannot be read, or is longer than the limit. ``field``: the name of prompt n."""
        for number, prompt in enumerate(prompts):
            try:
                check_prompts([prompt])
            except PromptError as error:
                raise invalid(field(number), str(error), "send text in UTF-8") from None
            if len(prompt) > self.limits.max_prompt:
                raise invalid(
                    field(number), f"it has {len(prompt):,} characters, more than the limit of {self.limits.max_prompt:,}", "shorten it"
                )

    def check_number(self, num_images: int, field: str) -> None:
        """Raise ``RequestError`` for no images, or too many."""
        if not num_images:
            raise invalid(field, "there is no image", "send at least one")
        if num_images > self.limits.max_images:
            raise RequestError(
                413,
                field,
                f"it holds {num_images:,} images, more than the limit of {self.limits.max_images:,}",
                "send them in several requests",
            )

    async def images(self, values: Sequence[Any], field: Callable[[int], str]) -> list[Source]:
        """Data URLs, base64, addresses, bytes or arrays -> sources. Equal texts are decoded or fetched once. Raises ``RequestError``."""
        known: dict[str, bytes] = {}
        room = self.limits.max_body  # of what is fetched for one request, as of what is sent
        sources = []
        for number, value in enumerate(values):
            content = value
            if isinstance(value, str):
                if value not in known:
                    if value[:8].lower().startswith(("http://", "https://")):
                        known[value] = await self._fetched(value, field(number), room)
                        room -= len(known[value])
                    else:
                        known[value] = await self.in_thread(len(value), image_bytes, value, field(number))
                content = known[value]
            sources.append(Source(content, field(number)))
        return sources

    async def _fetched(self, url: str, field: str, max_bytes: int) -> bytes:
        loop, hosts = asyncio.get_running_loop(), self.settings.allow_fetch
        return await loop.run_in_executor(self._fetchers, fetch, url, field, hosts, max_bytes, self.limits.read_seconds)

    async def in_thread(self, size: int, function: Callable[..., T], *arguments: Any) -> T:
        """What a function returns, from another thread if its work is large enough to hold up other requests."""
        return function(*arguments) if size < _WORTH_A_THREAD else await asyncio.to_thread(function, *arguments)

    async def score(self, models: Sequence[int], prompts: Sequence[str], images: Sequence[Source]) -> tuple[NDArray[np.float32], list[str]]:
        """Rewards [M, N] of aligned prompts and images, and warnings."""
        values, warnings = await self.estimates(models, prompts, images)
        return values[: len(models)], warnings

    async def estimates(
        self, models: Sequence[int], prompts: Sequence[str], images: Sequence[Source]
    ) -> tuple[NDArray[np.float32], list[str]]:
        """As ``score``, and below the rewards the standard deviations [N] by each of the models that has them."""
        groups, in_order = groups_of(prompts, images)
        self.check_pairs(len(prompts), "images")
        answer = await self.batcher.rewards(tuple(models), groups)
        return in_order(answer.rewards), answer.warnings

    async def matrix(self, model: int, prompts: Sequence[str], images: Sequence[Source]) -> tuple[NDArray[np.float32], list[str]]:
        """Rewards [P, I] of every prompt with every image, and warnings."""
        self.check_pairs(len(prompts) * len(images), "prompts")
        if not self.scorers[model].reads_prompt and len(prompts) > 1:
            name = self.scorers[model].name
            raise invalid("prompts", f"{name} does not read the prompt: all {len(prompts)} rows would be the same", "send one prompt")
        answer = await self.batcher.rewards((model,), [Group(image, tuple(prompts)) for image in images])
        return np.stack([rewards[0] for rewards in answer.rewards], axis=1), answer.warnings

    def check_pairs(self, num_pairs: int, field: str) -> None:
        """Raise ``RequestError`` for more rows than the queue could ever hold."""
        if num_pairs > self.limits.max_queue:
            message = f"it asks for {num_pairs:,} rewards, more than the queue holds ({self.limits.max_queue:,})"
            raise RequestError(413, field, message, "send them in several requests")
