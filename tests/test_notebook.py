"""The notebook of the documentation runs from its first cell to its last, on the real model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "notebooks" / "from_python.ipynb"


@pytest.mark.real
def test_every_cell_runs_and_says_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSAL_CACHE", str(ROOT / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    written = nbformat.read(NOTEBOOK, as_version=4)
    executed = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(executed, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert len(cells) > 8
    results = [output for output in cells[0].outputs if output.output_type == "execute_result"]
    assert results[0].data["text/html"].startswith("<div")
    for before, after in zip(written.cells, executed.cells, strict=True):
        if before.cell_type == "code" and "layer_stats" in before.source:
            assert after.outputs[0].data["text/plain"] == before.outputs[0].data["text/plain"] == "False"
