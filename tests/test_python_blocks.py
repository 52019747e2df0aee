"""The Python of README and of the guide runs as it is written, on a tiny model in the place of the named one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from refusal_core.models.known import KNOWN
from refusal_core.runs.store import list_runs

ROOT = Path(__file__).resolve().parent.parent


def executed(page: str, folder: Path) -> dict[str, object]:
    """Run the Python blocks of a page one after the other, as a reader would paste them, and return the names."""
    text = (ROOT / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    named = [name for name in KNOWN if f'"{name}"' in code]
    assert named
    for name in named:
        code = code.replace(f'"{name}"', repr(str(folder)))
    names: dict[str, object] = {}
    exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.slow
def test_the_readme_runs_as_written(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    names = executed("README.md", tiny_folder)
    assert list_runs()[0][0].run_id == names["run"].run_id
    assert names["direction"].site == names["run"].best_site()
    assert names["model"].dtype == names["run"].manifest.compute.dtype


@pytest.mark.slow
def test_the_guide_runs_as_written_and_reads_prompts_as_its_run_does(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names = executed("docs/guide/python.md", tiny_folder)
    run, expected = names["run"], names["run"].projections[:64]
    off = run.directions.project(names["activations"]) - expected
    # Half precision leaves a little of another order of batches.
    assert (np.abs(off).max(axis=0) < 0.05 * expected.std(axis=0)).all()
    assert len(names["directions"]) == run.n_sites
    assert (tmp_path / "direction.safetensors").is_file()
