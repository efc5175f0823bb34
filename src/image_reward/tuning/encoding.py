"""Prompts that are encoded once, so that the text encoders, often larger than the denoiser, can leave the accelerator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from image_reward.errors import InputError
from image_reward.tuning.sampling import denoisers_of, differentiable, replaced


class EncodedPrompts:
    """What a pipeline's ``encode_prompt`` returned, prompt by prompt, on the CPU.

    The pipeline itself is run up to its denoiser for each prompt, so that the arguments are those which its call uses.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.outputs: dict[Any, tuple[Any, ...]] = {}
        self.complete = False

    @staticmethod
    def possible(pipe: Any) -> bool:
        """Whether the pipeline encodes its prompts by a method of that name."""
        encode = getattr(pipe, "encode_prompt", None)
        return callable(encode) and "prompt" in inspect.signature(encode).parameters

    def add(self, prompts: Sequence[str], arguments: Mapping[str, Any]) -> None:
        """Encode prompts as a call with these arguments does."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._replacing_encoder())
            call = stack.enter_context(differentiable(self.pipe, steps=1, active=()))
            for denoiser in denoisers_of(self.pipe):
                stack.enter_context(replaced(denoiser, "forward", _stopping(denoiser.forward)))
            for prompt in prompts:
                with suppress(_EncodedError):
                    call(prompt=[prompt], num_inference_steps=1, **arguments)

    @contextmanager
    def instead_of_encoders(self, free: bool) -> Iterator[None]:
        """In the block the pipeline's calls take what was encoded, and with ``free`` its text encoders are on the CPU."""
        names = [name for name, part in self.pipe.components.items() if name.startswith("text_encoder") and isinstance(part, nn.Module)]
        with ExitStack() as stack:
            stack.enter_context(self._replacing_encoder())
            for name in names if free else ():
                encoder = getattr(self.pipe, name)
                device = next(encoder.parameters()).device
                encoder.to("cpu")
                stack.callback(encoder.to, device)
                # The device of a pipeline is that of its first part, which must not be an encoder on the CPU.
                stack.enter_context(replaced(self.pipe, name, None))
            self.complete = free
            try:
                yield
            finally:
                self.complete = False

    def can_be_batched(self, prompts: Sequence[str]) -> bool:
        """Whether encodings of these prompts have equal shapes, so that several can be one batch."""
        shapes: dict[Any, Any] = {}
        for (prompt, arguments), output in self.outputs.items():
            if prompt not in prompts:
                continue
            if not _alike([shapes.setdefault(arguments, output), output]):
                return False
        return True

    def _replacing_encoder(self) -> Any:
        encode = self.pipe.encode_prompt
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def encoded(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = bound.arguments
            prompts = [values["prompt"]] if isinstance(values["prompt"], str) else values["prompt"]
            if prompts is None or any(_holds_tensor(value) for value in values.values()):
                return encode(*args, **kwargs)
            singles = [self._single(encode, values, prompts, row) for row in range(len(prompts))]
            device = values.get("device") or self.pipe._execution_device
            if not (self.complete or _alike(singles)):
                return encode(*args, **kwargs)
            return tuple(_joined(parts, device) for parts in zip(*singles, strict=True))

        return replaced(self.pipe, "encode_prompt", encoded)

    def _single(self, encode: Callable[..., Any], values: Mapping[str, Any], prompts: Sequence[str], row: int) -> tuple[Any, ...]:
        own = {
            name: [value[row]] if isinstance(value, list) and len(value) == len(prompts) else value
            for name, value in values.items()
            if name != "device"
        }
        own["prompt"] = [prompts[row]]
        key = (prompts[row], repr(sorted((name, value) for name, value in own.items() if name != "prompt")))
        if key not in self.outputs:
            if self.complete:
                raise InputError(f"the prompt {prompts[row]!r:.80} was not encoded before the text encoders were freed")
            arguments = {name: list(value) if isinstance(value, list) else value for name, value in own.items()}  # Z-Image changes its list
            if "device" in values:
                arguments["device"] = values["device"]
            with torch.no_grad():
                output = encode(**arguments)
            self.outputs[key] = _moved(output if isinstance(output, tuple) else (output,), "cpu")
        return self.outputs[key]


class _EncodedError(Exception):
    """Ends a pipeline's call at its denoiser."""


def _stopping(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def stop(*_: Any, **__: Any) -> None:
        raise _EncodedError

    return stop


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_moved(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _alike(singles: Sequence[tuple[Any, ...]]) -> bool:
    """Whether encodings can be put together: Qwen-Image's are as long as their prompts."""
    shapes = [[part.shape if isinstance(part, Tensor) else None for part in single] for single in singles]
    return all(each == shapes[0] for each in shapes)


def _joined(parts: Sequence[Any], device: Any) -> Any:
    """One output of several single prompts as that of their batch."""
    first = parts[0]
    if isinstance(first, list):
        return [_moved(item, device) for part in parts for item in part]
    if not isinstance(first, Tensor):
        return first
    if len(parts) == 1 or first.shape[0] != 1:  # FLUX's positions of tokens have no batch
        return first.to(device)
    return torch.cat(list(parts)).to(device)
