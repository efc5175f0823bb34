"""The notebooks, run from top to bottom in a kernel of their own; each is skipped without what runs notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples/notebooks").glob("*.ipynb"))

nbclient = pytest.importorskip("nbclient", reason="for want of nbclient")
nbformat = pytest.importorskip("nbformat", reason="for want of nbformat")
pytest.importorskip("ipykernel", reason="for want of ipykernel")


def run(path: Path, folder: Path) -> dict[str, list[Any]]:
    """Source of each code cell -> its outputs. An exception in a cell is raised here, with the cell."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(outputs: dict[str, list[Any]], source: str, kind: str = "text/plain") -> str:
    """What the cell that ends with ``source`` displays."""
    (of_cell,) = [value for key, value in outputs.items() if key.endswith(source)]
    return "".join(output["data"][kind] for output in of_cell if output["output_type"] == "execute_result")


@pytest.fixture
def outputs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):  # nothing is left behind, and nothing of the user's is read
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return run(next(path for path in NOTEBOOKS if path.stem == request.param), tmp_path)


def test_they_are_kept_without_outputs() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["judge_two_generators", "score_and_rank", "train_on_your_rankings"]
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert all(not cell.outputs and cell.execution_count is None for cell in cells), path.name


@pytest.mark.filterwarnings("default")  # the libraries' own
@pytest.mark.parametrize("outputs", ["score_and_rank"], indirect=True)
def test_score_and_rank(outputs: dict[str, list[Any]]) -> None:
    assert shown(outputs, "\nranking", "text/html").count("<img") == shown(outputs, "scorer.score(prompt, images)").count(",") + 1
    assert "824,257" in shown(outputs, "\nscorer", "text/html")
    assert "first is better" in shown(outputs, "ranking[-1].image)", "text/html")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("outputs", ["train_on_your_rankings"], indirect=True)
def test_training_learns_the_taste(outputs: dict[str, list[Any]]) -> None:
    from image_reward.metrics import Interval

    accuracy = eval(shown(outputs, "\naccuracy"), {"Interval": Interval})
    assert accuracy["after"].value > accuracy["before"].value + 0.2
    assert accuracy["after"].value > 0.8


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("outputs", ["judge_two_generators"], indirect=True)
def test_the_careful_generator_wins(outputs: dict[str, list[Any]]) -> None:
    (printed,) = [output["text"] for cells in outputs.values() for output in cells if "1. " in output.get("text", "")]
    assert printed.startswith("1. careful")
    rates = eval(shown(outputs, "for generator in mini.generators}"))
    assert rates["careful"] > 0.5 > rates["hasty"]
