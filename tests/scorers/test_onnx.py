from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest

import image_reward as ir
from image_reward.cli import main
from image_reward.comparisons import shapes
from image_reward.errors import CheckpointError
from image_reward.scorers import onnx as exporting
from image_reward.scorers.onnx import export_onnx

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


def test_what_cannot_be_exported(mini: ir.Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="int8 cannot be exported; load it in float32"):
        export_onnx(ir.load(NAME, "cpu", "int8"), tmp_path / "int8.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"pip install 'image-reward\[export\]'"):
        export_onnx(mini, tmp_path / "mini.onnx")
