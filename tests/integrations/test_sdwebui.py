from __future__ import annotations

import configparser
import doctest
import importlib.util
import runpy
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from PIL import Image

import image_reward as ir
from image_reward.downloads import HubFile
from image_reward.scorers import MODELS
from webui_host import VARIANTS, Component, Host, Processed, Processing, Runner, Variant

EXTENSION = Path(__file__).parents[2] / "integrations" / "sdwebui"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "shapes").glob("*.png"))
PLAIN = "a large green square above a yellow triangle on a blue background"
PROMPT = "a large (green:1.2) square above a [yellow] triangle on a blue background <lora:shapes:0.8>"
ON = {"enabled": True, "model": "ImageReward-mini", "sort": False, "limit": "", "best": 0, "on_cpu": False}


in_every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS], indirect=True)


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Variant:
    """Of the host; what depends on no hook is tested in one alone."""
    return getattr(request, "param", VARIANTS[-1])


@pytest.fixture
def host(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(variant)
    for name, module in host.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return host


@pytest.fixture
def module(host: Host, mini: ir.Scorer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # noqa: ARG001 - it asks the host when imported
    """The script, loaded as the host loads it: the extension's folder is on the path for so long. The small model is loaded once."""
    with monkeypatch.context() as path:
        path.syspath_prepend(str(EXTENSION))
        spec = importlib.util.spec_from_file_location("image_reward_script.py", EXTENSION / "scripts" / "image_reward_script.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    load = sys.modules["image_reward_webui"].load  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "load", lambda model, device: mini if model == mini.name else load(model, device))
    yield module
    del sys.modules["image_reward_webui"]


@pytest.fixture(scope="module")
def mini() -> ir.Scorer:
    return ir.load("ImageReward-mini", "cpu")


@pytest.fixture(scope="module")
def rewards(mini: ir.Scorer) -> list[float]:
    return mini.score(PLAIN, list(EXAMPLES))


def pictures(paths: list[Path] = EXAMPLES) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def processing(module: Any, folder: Path, batches: list[list[Image.Image]] | None = None, options: Any = None, **others: Any) -> Processing:
    runner = Runner()
    runner.scripts.append((module.ImageRewardScript(), tuple({**ON, **(options or {})}.values())))
    all_images = pictures()
    return Processing(runner, folder, batches or [all_images[:4], all_images[4:8]], PROMPT, **others)


def run(host: Host, p: Processing) -> Processed:
    processed = host.process_images(p)
    assert p.scripts.errors == []
    return processed


def reward_in(text: str) -> float | None:
    values = dict(part.split(": ", 1) for part in text.splitlines()[-1].split(", "))
    return float(values["ImageReward"]) if "ImageReward" in values else None


@in_every_variant
def test_files_hold_the_rewards_of_their_images(host: Host, module: Any, tmp_path: Path, rewards: list[float]) -> None:
    processed = run(host, processing(module, tmp_path))
    for place in range(8):
        text = Image.open(tmp_path / f"{place:02}.png").text["parameters"]  # type: ignore[attr-defined]
        assert reward_in(text) == pytest.approx(rewards[place], abs=1e-4)
        assert "ImageReward model: ImageReward-mini" in text
        assert processed.infotexts[1 + place] == text == processed.images[1 + place].info["parameters"]


@in_every_variant
def test_the_grid_is_not_scored_and_nothing_is_left(host: Host, module: Any, tmp_path: Path) -> None:
    p = processing(module, tmp_path)
    processed = run(host, p)
    assert processed.index_of_first_image == 1
    for text in (processed.infotexts[0], Image.open(tmp_path / "grid.png").text["parameters"]):  # type: ignore[attr-defined]
        assert "ImageReward" not in text
    assert p.extra_generation_params == {}
    assert len(processed.images) == 9


@in_every_variant
def test_a_grid_of_previews_in_another_thread_takes_no_reward_away(host: Host, module: Any, tmp_path: Path) -> None:
    def preview(image: Image.Image) -> Image.Image:
        thread = threading.Thread(target=host.image_grid, args=([image, image],))
        thread.start()
        thread.join()
        return image

    processed = run(host, processing(module, tmp_path, overlay=preview))
    assert all(reward_in(text) is not None for text in processed.infotexts[1:])


@in_every_variant
def test_sorting_keeps_each_image_with_its_text_and_seed(host: Host, module: Any, tmp_path: Path, rewards: list[float]) -> None:
    p = processing(module, tmp_path, options={"sort": True})
    processed = run(host, p)
    order = sorted(range(8), key=lambda place: -rewards[place])
    assert [image.info["parameters"] for image in processed.images[1:]] == processed.infotexts[1:]
    assert [reward_in(text) for text in processed.infotexts[1:]] == pytest.approx([rewards[place] for place in order], abs=1e-4)
    assert processed.all_seeds == [100 + place for place in order]
    assert processed.all_subseeds == [7 + place for place in order]
    assert all(f"Seed: {seed}," in text for seed, text in zip(processed.all_seeds, processed.infotexts[1:], strict=True))
    assert len(processed.all_prompts) == len(processed.all_negative_prompts) == 8
    assert processed.comments.splitlines()[0] == f"ImageReward {rewards[order[0]]:+.4f}, seed {100 + order[0]}"
    assert processed.images[0].size[0] == 8 * 64  # the grid


def test_a_limit_leaves_images_out(host: Host, module: Any, tmp_path: Path, rewards: list[float]) -> None:
    processed = run(host, processing(module, tmp_path, options={"limit": "0"}))
    kept = [place for place in range(8) if rewards[place] >= 0]
    assert 1 < len(kept) < 8
    assert processed.all_seeds == [100 + place for place in kept]
    assert [reward_in(text) for text in processed.infotexts[1:]] == pytest.approx([rewards[place] for place in kept], abs=1e-4)
    assert f"{8 - len(kept)} of 8 images are not shown" in processed.comments
    assert len(list(tmp_path.glob("0*.png"))) == 8  # nothing is deleted


@in_every_variant
def test_a_limit_that_no_image_reaches(host: Host, module: Any, tmp_path: Path) -> None:
    processed = run(host, processing(module, tmp_path, options={"limit": 500, "sort": True}))
    assert len(processed.images) == len(processed.infotexts) == 1  # the grid
    assert processed.all_seeds == []
    assert "8 of 8 images are not shown" in processed.comments


def test_a_limit_that_is_not_a_number(host: Host, module: Any, tmp_path: Path) -> None:
    processed = run(host, processing(module, tmp_path, options={"limit": "high"}))
    assert len(processed.images) == 9
    assert "the limit 'high' is not a number" in processed.comments


def test_best_of_n(host: Host, module: Any, tmp_path: Path, rewards: list[float]) -> None:
    processed = run(host, processing(module, tmp_path, options={"best": 2.0}))
    assert processed.all_seeds == [100 + place for place in sorted(range(8), key=lambda place: -rewards[place])[:2]]
    limited = run(host, processing(module, tmp_path, options={"best": 5, "limit": "1"}))
    assert limited.all_seeds == [100 + place for place in range(8) if rewards[place] >= 1]


@in_every_variant
def test_one_image_without_a_grid(host: Host, module: Any, tmp_path: Path, rewards: list[float]) -> None:
    processed = run(host, processing(module, tmp_path, [pictures()[:1]], options={"sort": True}))
    assert reward_in(processed.infotexts[0]) == pytest.approx(rewards[0], abs=1e-4)
    empty = run(host, processing(module, tmp_path, [pictures()[:1]], options={"limit": 500}))
    assert empty.images == empty.infotexts == []


@in_every_variant
def test_an_interrupted_job(host: Host, module: Any, tmp_path: Path) -> None:
    processed = run(host, processing(module, tmp_path, options={"sort": True}, interrupt_after=1))
    assert len(processed.images) == 5
    assert sorted(processed.all_seeds) == [100, 101, 102, 103]
    nothing = run(host, processing(module, tmp_path, interrupt_after=0))
    assert nothing.images == []


@in_every_variant
@pytest.mark.parametrize("pnginfo", [True, False])
def test_masks_are_neither_scored_nor_lost(host: Host, module: Any, tmp_path: Path, pnginfo: bool) -> None:
    p = processing(module, tmp_path, options={"sort": True, "best": 3}, mask=Image.new("L", (64, 64)), pnginfo=pnginfo)
    processed = run(host, p)
    modes = [image.mode for image in processed.images]
    if pnginfo:
        assert modes == ["RGB"] * 4 + ["L"] * 8  # grid, three images, the masks
    else:
        assert modes == ["RGB"] + ["RGB", "L"] * 8
        assert "another script has changed the number of images" in processed.comments


@in_every_variant
def test_an_inpainted_image_is_scored_as_it_is_saved(host: Host, module: Any, mini: ir.Scorer, tmp_path: Path, variant: Variant) -> None:
    black = Image.new("RGB", (64, 64))
    p = processing(module, tmp_path, overlay=lambda _: black.copy())
    processed = run(host, p)
    if variant.composite_hook:
        expected = mini.score(PLAIN, black)
        assert [reward_in(text) for text in processed.infotexts[1:]] == pytest.approx([expected] * 8, abs=1e-4)
    assert len(processed.all_seeds) == 8


def test_switched_off_it_does_nothing(host: Host, module: Any, tmp_path: Path) -> None:
    processed = run(host, processing(module, tmp_path, options={"enabled": False, "sort": True, "limit": 500}))
    assert len(processed.images) == 9
    assert not any("ImageReward" in text for text in [*processed.infotexts, processed.comments])
    assert module._loaded == {}


def test_a_model_that_cannot_be_loaded_costs_no_image(host: Host, module: Any, tmp_path: Path) -> None:
    processed = run(host, processing(module, tmp_path, options={"model": "absent.pt", "sort": True, "limit": 500}))
    assert len(processed.images) == 9
    assert processed.comments == "ImageReward: no such checkpoint: absent.pt\n"


def test_the_model_is_loaded_once_and_unloaded(host: Host, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = sys.modules["image_reward_webui"].load  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "load", lambda *arguments: loads.append(arguments[0]) or load(*arguments))
    run(host, processing(module, tmp_path))
    run(host, processing(module, tmp_path))
    assert loads == ["ImageReward-mini"]
    (scorer,) = module._loaded.values()
    assert not any(weight.is_inference() for weight in scorer.parameters())
    before = host.collected
    (unload,) = host.unloaded_callbacks
    unload()
    unload()  # and again where there is none
    assert module._loaded == {}
    assert host.collected == before + 2


def test_the_page(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Component] = []
    create = Component.__init__
    monkeypatch.setattr(Component, "__init__", lambda self, *label, **arguments: (made.append(self), create(self, *label, **arguments))[1])
    script = module.ImageRewardScript()
    assert script.title() == "Image Reward"
    assert script.show(True) is script.show(False) is sys.modules["modules.scripts"].AlwaysVisible  # type: ignore[attr-defined]
    components = script.ui(False)
    assert len(components) == len(ON)
    assert components[1].arguments["value"] == "ImageReward-v1.0"
    assert [component.clicked for component in made if component.clicked] == [module.unload]


def test_files_of_the_hub_are_fetched_by_the_hosts_library(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    fetched: list[tuple[str, str]] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: fetched.append((repo, name)))
    webui = sys.modules["image_reward_webui"]
    monkeypatch.setattr(webui.ir, "load", lambda model, device: (model, device))  # type: ignore[attr-defined]
    assert webui.load(" ImageReward-v1.0 ", "cpu") == ("ImageReward-v1.0", "cpu")  # type: ignore[attr-defined]
    files = [file for file in MODELS["ImageReward-v1.0"].files.values() if isinstance(file, HubFile)]
    assert fetched == [(file.repo, file.name) for file in files]


def test_what_needs_no_host(module: Any) -> None:  # noqa: ARG001
    webui = sys.modules["image_reward_webui"]
    assert doctest.testmod(webui).failed == 0
    assert webui.plain_prompt(PROMPT) == PLAIN  # type: ignore[attr-defined]
    assert webui.plain_prompt("((a:1.1) (b (c:0.5):1.2)) BREAK <lora:x:1><hypernet:y:2> d") == "a b c d"  # type: ignore[attr-defined]
    assert webui.plain_prompt("16:9 poster, 3 (cats)") == "16:9 poster, 3 cats"  # type: ignore[attr-defined]
    assert webui.plain_prompt("[[a:b:0.3]:c:0.6] d, (x [y:z:12]:1.2) [(q:1.1):r:0.5]") == "c d, x z r"  # type: ignore[attr-defined]
    assert webui.plain_prompt(r"\[a:b:0.5\] [note] 12:30, [a|[b|c]]") == "[a:b:0.5] note 12:30, a b c"  # type: ignore[attr-defined]
    assert webui.plain_prompt("a red:1.2 AND a blue :0.8") == "a red, a blue"  # type: ignore[attr-defined]
    for text in ("nan", "x", "1 2"):
        with pytest.raises(ir.InputError, match="is not a number"):
            webui.parse_limit(text)  # type: ignore[attr-defined]


@pytest.mark.parametrize("present", [set(), {"filelock", "ftfy", "safetensors", "tokenizers", "image_reward"}])
def test_installation_leaves_the_hosts_packages_alone(present: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    launch = types.ModuleType("launch")
    ran: list[str] = []
    launch.is_installed = lambda name: name in present  # type: ignore[attr-defined]
    launch.run_pip = lambda command, desc=None: ran.append(command)  # type: ignore[attr-defined] # noqa: ARG005
    monkeypatch.setitem(sys.modules, "launch", launch)
    runpy.run_path(str(EXTENSION / "install.py"))
    assert len(ran) == (0 if present else 5)
    assert all(command.startswith("install ") and "torch" not in command for command in ran)
    assert all("--no-deps" in command for command in ran if "image-reward" in command)


def test_metadata() -> None:
    parser = configparser.ConfigParser()
    parser.read(EXTENSION / "metadata.ini")
    assert parser["Extension"]["Name"] == "image-reward"
