"""The notebook runs from top to bottom on the built-in sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks/fashion_mnist.ipynb"
QUICK = """
DATA = "sample"
QUICK = {"limit": 200, "image_size": 32, "epochs": 1, "weights": "random", "units": 16}
"""


def test_it_is_short_and_has_no_output() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) <= 10
    assert all(len(cell["source"]) <= 16 and not cell["outputs"] for cell in code)


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = QUICK
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    printed = "".join(output.get("text", "") for output in shown)
    assert printed.count("test accuracy") == 2
    assert "Traceback" not in printed
    tables = [o for o in shown if "<table" in o.get("data", {}).get("text/html", "")]
    assert len(tables) == 2  # confusion and prediction
