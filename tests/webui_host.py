"""A stand-in for Stable Diffusion WebUI: the modules that its extensions import, and a run of its process_images in the order of hooks.

The order and the arguments were recorded from A1111's processing.py, from Forge (dfdcbab6) and from reForge (3b56b268). What differs among
them is a ``Variant``.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin


@dataclass(frozen=True)
class Variant:
    name: str
    composite_hook: bool
    """Whether ``postprocess_image_after_composite`` is called."""
    image_has_index: bool
    """Whether the hook's argument says the place of the image in its batch."""
    grid_uses_main_prompt: bool
    """Whether the text of the grid is asked for as such, and not as that of image 0."""


VARIANTS = [
    Variant("A1111", composite_hook=False, image_has_index=False, grid_uses_main_prompt=True),
    Variant("Forge", composite_hook=True, image_has_index=True, grid_uses_main_prompt=True),
    Variant("reForge", composite_hook=True, image_has_index=False, grid_uses_main_prompt=False),
]


class Component:
    """Any component of gradio."""

    def __init__(self, label: str = "", **arguments: Any) -> None:  # noqa: ARG002
        self.arguments = arguments
        self.clicked: Callable[[], None] | None = None

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def click(self, fn: Callable[[], None], inputs: list[Any], outputs: list[Any]) -> None:  # noqa: ARG002
        self.clicked = fn


class Script:
    """The base class of modules.scripts: hooks that do nothing."""

    def before_process(self, p: Any, *args: Any) -> None: ...
    def process(self, p: Any, *args: Any) -> None: ...
    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None: ...
    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None: ...
    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None: ...
    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None: ...
    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None: ...
    def postprocess(self, p: Any, processed: Any, *args: Any) -> None: ...


class Runner:
    """Calls a hook of each script with its arguments; an error in a script is reported, and the host goes on."""

    def __init__(self) -> None:
        self.scripts: list[tuple[Script, tuple[Any, ...]]] = []
        self.errors: list[Exception] = []

    def call(self, hook: str, *arguments: Any, **keywords: Any) -> None:
        for script, args in self.scripts:
            try:
                getattr(script, hook)(*arguments, *args, **keywords)
            except Exception as error:
                self.errors.append(error)


@dataclass
class Processing:
    """The attributes of StableDiffusionProcessing that matter here."""

    scripts: Runner
    folder: Path
    generated: list[list[Image.Image]]
    """The images of each batch."""
    prompt: str
    main_seed: int = 100
    overlay: Callable[[Image.Image], Image.Image] | None = None
    mask: Image.Image | None = None
    pnginfo: bool = True
    interrupt_after: int | None = None
    """Batches."""
    extra_generation_params: dict[str, Any] = field(default_factory=dict)
    negative_prompt: str = "ugly"
    batch_index: int = 0
    prompts: list[str] = field(default_factory=list)
    negative_prompts: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    subseeds: list[int] = field(default_factory=list)


@dataclass
class Processed:
    images: list[Image.Image]
    infotexts: list[str]
    index_of_first_image: int
    all_prompts: list[str]
    all_negative_prompts: list[str]
    all_seeds: list[int]
    all_subseeds: list[int]
    extra_generation_params: dict[str, Any]
    comments: str = ""


class Host:
    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.grid_callbacks: list[Callable[[Any], None]] = []
        self.unloaded_callbacks: list[Callable[[], None]] = []
        self.collected = 0

    def modules(self) -> dict[str, types.ModuleType]:
        names = ("modules", "modules.scripts", "modules.shared", "modules.devices", "modules.script_callbacks", "gradio")
        made = {name: types.ModuleType(name) for name in names}
        callbacks = {"on_image_grid": self.grid_callbacks.append, "on_script_unloaded": self.unloaded_callbacks.append}
        vars(made["modules.scripts"]).update(Script=Script, AlwaysVisible=object())
        vars(made["modules.shared"]).update(device="cpu")
        vars(made["modules.devices"]).update(torch_gc=self.torch_gc)
        vars(made["modules.script_callbacks"]).update(callbacks)
        vars(made["gradio"]).update(dict.fromkeys(("Accordion", "Checkbox", "Dropdown", "Textbox", "Slider", "Button"), Component))
        vars(made["modules"]).update({name.split(".")[1]: module for name, module in made.items() if "." in name})
        return made

    def torch_gc(self) -> None:
        self.collected += 1

    def image_grid(self, images: list[Image.Image]) -> Image.Image:
        for callback in self.grid_callbacks:
            callback(types.SimpleNamespace(imgs=images, cols=1, rows=1))
        width, height = images[0].size
        grid = Image.new("RGB", (width * len(images), height))
        for place, image in enumerate(images):
            grid.paste(image, (place * width, 0))
        return grid

    def process_images(self, p: Processing) -> Processed:
        count = sum(len(batch) for batch in p.generated)
        p.scripts.call("before_process", p)
        all_prompts, all_negative_prompts = [p.prompt] * count, [p.negative_prompt] * count
        all_seeds, all_subseeds = [p.main_seed + i for i in range(count)], [7 + i for i in range(count)]
        p.scripts.call("process", p)
        images: list[Image.Image] = []
        infotexts: list[str] = []
        saved = 0

        def infotext(index: int = 0, use_main_prompt: bool = False) -> str:
            seed = all_seeds[0] if use_main_prompt and self.variant.grid_uses_main_prompt else p.seeds[index]
            values = {"Steps": 20, "Seed": seed, **p.extra_generation_params}
            listed = ", ".join(f"{key}: {quoted(value)}" for key, value in values.items() if value is not None)
            return f"{p.prompts[index]}\nNegative prompt: {p.negative_prompt}\n{listed}"

        def save(image: Image.Image, name: str, text: str) -> None:
            info = PngImagePlugin.PngInfo()
            info.add_text("parameters", text)
            image.save(p.folder / f"{name}.png", pnginfo=info)

        def texted(image: Image.Image, text: str) -> Image.Image:
            if p.pnginfo:
                image.info["parameters"] = text
            return image

        for n, batch in enumerate(p.generated):
            if p.interrupt_after == n:
                break
            here = slice(saved, saved + len(batch))
            p.prompts, p.negative_prompts = all_prompts[here], all_negative_prompts[here]
            p.seeds, p.subseeds = all_seeds[here], all_subseeds[here]
            keywords = {"batch_number": n, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.subseeds}
            p.scripts.call("before_process_batch", p, **keywords)
            p.prompts = [prompt.split("<")[0] for prompt in all_prompts[here]]  # without extra networks
            p.scripts.call("process_batch", p, **keywords)
            p.scripts.call("postprocess_batch", p, images=None, batch_number=n)
            p.prompts = all_prompts[here]
            for i, made in enumerate(batch):
                p.batch_index = i
                pp = types.SimpleNamespace(image=made, **({"index": i} if self.variant.image_has_index else {}))
                p.scripts.call("postprocess_image", p, pp)
                image = p.overlay(pp.image) if p.overlay else pp.image
                if self.variant.composite_hook:
                    pp = types.SimpleNamespace(image=image)
                    p.scripts.call("postprocess_image_after_composite", p, pp)
                    image = pp.image
                save(image, f"{saved:02}", infotext(i))
                saved += 1
                infotexts.append(infotext(i))
                images.append(texted(image, infotexts[-1]))
                if p.mask is not None:
                    images.append(p.mask.copy())
        first = 0
        if len(images) > 1:
            grid = self.image_grid(images)
            text = infotext(use_main_prompt=True)
            infotexts.insert(0, text)
            images.insert(0, texted(grid, text))
            save(grid, "grid", infotext(use_main_prompt=True))
            first = 1
        processed = Processed(
            images, infotexts, first, all_prompts, all_negative_prompts, all_seeds, all_subseeds, p.extra_generation_params
        )
        p.scripts.call("postprocess", p, processed)
        return processed


def quoted(value: Any) -> str:
    """As the host writes a value into the text of parameters."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
