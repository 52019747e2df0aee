"""The arrows of the design: pages know figures and runs, figures know runs, nothing in the core knows the dashboard."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from streamlit import config

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "refusal_core"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def uses(path: Path, *packages: str) -> set[str]:
    return {name for name in imported(path) if any(name == p or name.startswith(f"{p}.") for p in packages)}


def modules(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


OUTSIDE_UI = [path for path in modules(CORE) if path.relative_to(CORE).parts[0] != "ui"]


@pytest.mark.parametrize("path", OUTSIDE_UI, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_does_not_know_the_dashboard(path):
    assert not uses(path, "streamlit", "refusal_core.ui", "pages", "app", "benchmarks")


@pytest.mark.parametrize("path", modules(CORE / "figures"), ids=lambda path: path.name)
def test_figures_know_runs_and_nothing_that_computes_them(path):
    assert not uses(
        path,
        "torch",
        "transformers",
        "refusal_core.pipeline",
        "refusal_core.activations",
        "refusal_core.models",
    )


@pytest.mark.parametrize(
    "name", ["statistics", "directions", "crossfit", "runs", "prompts", "published", "export", "ratings", "comparison"]
)
def test_reading_a_run_needs_no_model_library(name):
    assert not uses(CORE / f"{name}.py", "torch", "transformers")


@pytest.mark.parametrize(
    "path", [*modules(CORE, ROOT / "pages", ROOT / "benchmarks"), ROOT / "app.py"], ids=lambda path: path.name
)
def test_nothing_is_unpickled_or_evaluated(path):
    assert not uses(path, "pickle", "dill", "cloudpickle", "joblib")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "pd.read_pickle", "numpy.load", "np.load"}
            assert not any(keyword.arg == "unsafe_allow_html" for keyword in node.keywords)


def test_the_server_collects_no_garbage_after_a_rerun_and_listens_on_this_machine_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    config.get_config_options(force_reparse=True)
    assert config.get_option("runner.postScriptGC") is False
    assert config.get_option("server.address") == "127.0.0.1"
