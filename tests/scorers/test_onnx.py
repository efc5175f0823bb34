from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import image_reward as ir
from image_reward.cli import main
from image_reward.comparisons import shapes
from image_reward.errors import CheckpointError, InputError
from image_reward.scorers import onnx as exporting
from image_reward.scorers.identity import identity_of
from image_reward.scorers.onnx import export_onnx

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")  # of the extra export

# PyTorch's exporter writes of itself in warnings, which the function leaves alone: filters belong to the whole process.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:# The axis name:UserWarning", "ignore::DeprecationWarning")
NAME = "ImageReward-mini"


@pytest.fixture(scope="module")
def mini() -> ir.Scorer:
    return ir.load(NAME, "cpu")


@pytest.fixture(scope="module")
def exported(mini: ir.Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "mini.onnx"
    assert 0 <= export_onnx(mini, path) < 1e-5
    return path


@pytest.mark.parametrize(
    ("num_images", "prompt"), [(1, ""), (1, "a red circle"), (2, "circle"), (8, shapes.comparisons(1, seed=3)[0].prompt)]
)
def test_it_computes_what_pytorch_does(mini: ir.Scorer, exported: Path, num_images: int, prompt: str) -> None:
    drawn = [image for comparison in shapes.comparisons(4, seed=3) for image in comparison.images][:num_images]
    prompts = [prompt, "a large green square", *["a red circle above a blue star"] * 6][:num_images]
    batch = mini.prepare(prompts, drawn)
    assert len(batch.pixels) == num_images
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (rewards,) = session.run(None, {"pixels": batch.pixels.numpy(), "ids": batch.ids.numpy(), "mask": batch.mask.numpy()})
    assert rewards.tolist() == pytest.approx(mini.score(prompts, drawn), abs=1e-5)


def test_it_says_what_it_is(mini: ir.Scorer, exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["name"] == NAME
    assert said["opset"] == str(model.opset_import[0].version) == "18"
    assert json.loads(said["config"])["max_tokens"] == json.loads(said["tokenizer"])["max_tokens"] == mini.prepare.tokenizer.max_tokens
    assert json.loads(said["tokenizer"])["vocabulary"][:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    shown = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert shown == {"pixels": ["images", 3, 64, 64], "ids": ["images", "tokens"], "mask": ["images", "tokens"]}


def test_a_file_that_computes_something_else_is_not_kept(mini: ir.Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_to_onnx", lambda *_: onnx.ModelProto())
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot run the file, so it was deleted"):
        export_onnx(mini, tmp_path / "broken.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_found(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(exporting, "_to_onnx", lambda *_: onnx.load(exported))
    monkeypatch.setattr(exporting, "TOLERANCE", 1e-12)
    out = tmp_path / "wrong.onnx"
    assert main(["export", str(out), "--model", NAME]) == 1
    assert "from PyTorch's (at most 1e-12 is accepted); it was deleted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_int8_cannot_be_exported(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match="int8 cannot be exported; load it in float32"):
        export_onnx(ir.load(NAME, "cpu", "int8"), tmp_path / "int8.onnx")


def test_export_without_its_packages(mini: ir.Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"pip install 'image-reward\[export\]'"):
        export_onnx(mini, tmp_path / "mini.onnx")


# --- the file as a scorer ---


@pytest.fixture(scope="module")
def loaded(exported: Path) -> ir.Scorer:
    return ir.load(exported)


def test_a_loaded_file_scores_as_what_it_was_exported_from(mini: ir.Scorer, loaded: ir.Scorer) -> None:
    drawn = [image for comparison in shapes.comparisons(4, seed=3) for image in comparison.images]
    prompts = ["a red circle", "a large green square above a blue star"]
    assert loaded.score(prompts[1], drawn) == pytest.approx(mini.score(prompts[1], drawn), abs=1e-5)
    assert loaded.matrix(prompts, drawn) == pytest.approx(mini.matrix(prompts, drawn), abs=1e-5)
    assert loaded.rank(prompts[0], drawn).ranking == mini.rank(prompts[0], drawn).ranking
    theirs, ours = mini.compare(prompts[0], *drawn[:2]), loaded.compare(prompts[0], *drawn[:2])
    assert ours.a_better == pytest.approx(theirs.a_better, abs=1e-5)
    assert loaded.score(prompts[0], []) == []
    assert (loaded.name, loaded.config, loaded.prepare) == ("mini", mini.config, mini.prepare)


def test_commands_take_the_file(
    mini: ir.Scorer, exported: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(image_folder / f"{name}.png") for name in "abc"]
    expected = mini.score("a red circle", images)
    assert main(["rank", "a red circle", *images, "--model", str(exported), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert [row["reward"] for row in rows] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "a red circle", "image": image}) + "\n" for image in images))
    ir.score_files(tmp_path / "rows.jsonl", tmp_path / "out", str(exported), workers=0)
    (result,) = (tmp_path / "out").rglob("*.parquet")
    assert pq.read_table(result).column("reward").to_pylist() == pytest.approx(expected, abs=1e-5)


def test_another_file_has_another_identity(loaded: ir.Scorer, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    model.doc_string = "changed"
    onnx.save_model(model, tmp_path / "mini.onnx")
    ours, other = identity_of(loaded), identity_of(ir.load(tmp_path / "mini.onnx"))
    assert {name for name in ours if ours[name] != other[name]} == {"weights"}


def test_what_an_onnx_file_cannot(loaded: ir.Scorer, exported: Path) -> None:
    for options, message in (
        ({"dtype": "bfloat16"}, "computes in float32"),
        ({"dtype": "int8"}, "computes in float32"),
        ({"compile": True}, "compile is for scorers with an image tower"),
        ({"exact": True}, "load the model it was exported from"),
        ({"config": "config.json"}, "carries its own"),
        ({"device": "meta"}, "computed on the CPU"),
    ):
        with pytest.raises(InputError, match=message):
            ir.load(exported, **options)
    with pytest.raises(ValueError, match="gives no gradients to pixels"):
        loaded.rewards("a", torch.zeros(1, 3, 64, 64))


def test_a_file_that_is_no_scorer_is_named(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: none\.onnx"):
        ir.load("none.onnx")
    (tmp_path / "half.onnx").write_bytes(exported.read_bytes()[:10_000])
    with pytest.raises(CheckpointError, match=r"half\.onnx is damaged, or not an ONNX file \(.*image-reward export"):
        ir.load(tmp_path / "half.onnx")
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save_model(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match=r"foreign\.onnx is an ONNX file of another program"):
        ir.load(tmp_path / "foreign.onnx")
    (tmp_path / "CAPITALS.ONNX").write_bytes(exported.read_bytes())
    assert ir.load(tmp_path / "CAPITALS.ONNX").name == "CAPITALS"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="pip install onnxruntime"):
        ir.load(exported)


def changed_config(model: onnx.ModelProto, text: str) -> None:
    next(entry for entry in model.metadata_props if entry.key == "config").value = text


def another_architecture(model: onnx.ModelProto) -> None:
    config = next(entry for entry in model.metadata_props if entry.key == "config")
    config.value = json.dumps(json.loads(config.value) | {"architecture": "Other"})


def other_pixels(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def two_outputs(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["rewards"], ["more"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["images"]))


def not_finite(model: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims)[:1] == [96])
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(list(weight.dims), np.nan, dtype=np.float32), weight.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_architecture, r"changed\.onnx is of architecture 'Other', which this release does not know"),
        (lambda model: changed_config(model, ""), r"the config in the metadata of .*changed\.onnx is not JSON"),
        (lambda model: changed_config(model, "[1]"), r"the config in the metadata of .*changed\.onnx is not a config of this package"),
        (other_pixels, r"changed\.onnx does not compute a finite reward"),
        (two_outputs, r"changed\.onnx does not compute a finite reward"),
        (not_finite, r"changed\.onnx does not compute a finite reward"),
    ],
)
def test_a_changed_file_is_refused_when_it_is_loaded(
    exported: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = onnx.load(exported)
    change(model)
    onnx.save_model(model, tmp_path / "changed.onnx")
    with pytest.raises(CheckpointError, match=message):
        ir.load(tmp_path / "changed.onnx")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scorer: pickle.loads(pickle.dumps(scorer))], ids=["copied", "pickled"])
def test_a_copy_opens_the_file_again(exported: Path, tmp_path: Path, copied: Callable[[ir.Scorer], ir.Scorer]) -> None:
    path = tmp_path / "mini.onnx"
    path.write_bytes(exported.read_bytes())
    original = ir.load(path, batch_size=3)
    drawn = shapes.comparisons(1, seed=3)[0].images
    other = copied(original)
    assert other.score("a red circle", drawn) == original.score("a red circle", drawn)
    assert (other.name, other.batch_size) == (original.name, 3)
    model = onnx.load(exported)
    model.doc_string = "changed"
    onnx.save_model(model, path)
    with pytest.raises(CheckpointError, match="has changed since it was loaded; load it again"):
        copied(original)


def test_models_verify_and_info_say_what_is_known(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify", str(exported)]) == 0
    assert capsys.readouterr().out == f"{exported} is valid: it computes finite rewards\n"
    assert main(["models", "info", str(exported), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["max_tokens"] == 24
    assert "parameters" not in facts
