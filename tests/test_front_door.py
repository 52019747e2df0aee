"""What ``import refusal_core`` offers: these names, typed, and none of the heavy libraries until they are needed."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

import refusal_core as rc

ROOT = Path(__file__).resolve().parent.parent
NAMES = {
    "ChatModel",
    "Conversation",
    "Direction",
    "Directions",
    "RefusalError",
    "Run",
    "RunOptions",
    "Score",
    "Turn",
    "fit_directions",
    "list_runs",
    "load_model",
    "open_run",
    "run",
    "score",
}


def test_the_namespace_is_what_is_documented():
    assert set(rc.__all__) == NAMES
    assert {name for name in dir(rc) if not name.startswith("_")} == NAMES
    for name in NAMES:
        assert inspect.getdoc(getattr(rc, name)), name


def test_type_checkers_are_told_of_every_name():
    (told,) = [node for node in ast.parse(inspect.getsource(rc)).body if isinstance(node, ast.If)]
    homes = {alias.name: part.module for part in told.body for alias in part.names}
    assert homes.keys() == NAMES
    for name, home in homes.items():
        assert getattr(importlib.import_module(home), name) is getattr(rc, name)


def test_the_version_is_the_same_wherever_it_is_told():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert rc.__version__ == version
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_another_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        rc.runn  # noqa: B018


def test_the_package_says_that_it_is_typed():
    assert resources.files("refusal_core").joinpath("py.typed").is_file()


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import refusal_core", {"numpy", "pandas", "torch", "transformers", "streamlit", "plotly"}),
        ("import refusal_core as rc; rc.fit_directions", {"torch", "transformers", "streamlit", "plotly"}),
        ("import refusal_core as rc; rc.open_run, rc.list_runs", {"torch", "transformers", "streamlit", "plotly"}),
        ("import refusal_core as rc; rc.RefusalError, rc.Conversation", {"numpy", "pandas", "torch", "transformers"}),
        ("import refusal_core as rc; rc.RunOptions", {"torch", "transformers", "streamlit", "plotly"}),
        # What the first page shows needs no model.
        ("from refusal_core.ui import downloads, frame, home, lists", {"torch", "transformers"}),
    ],
)
def test_only_what_is_needed_is_imported(program, absent):
    command = [sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "refusal_core" in loaded
    assert not absent & {*loaded}
