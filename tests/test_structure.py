"""The arrows of the design: a room imports from the rooms below it, and only the dashboard knows Streamlit."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from streamlit import config

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "refusal_core"

ROOMS = (
    {"errors", "error_log"},
    {
        "sites",
        "files",
        "glossary",
        "markdown",
        "parquet",
        "progress",
        "options",
        "steering",
        "conversations",
        "waiting_threads",
        "hub_answers",
    },
    {"children"},
    {"analysis"},
    {"models", "prompts", "runs"},
    {"evidence", "activations", "annotations"},
    {"pipeline", "exploration"},
    {"behaviour"},
    {"intervention"},
    {"figures"},
    {"sharing", "access"},
    {"ui", "cli", "front_door"},
)
"""From the ground up; a room imports only from those on the floors below it."""
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


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


def room_of(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


IN_ROOMS = [path for path in modules(CORE) if path.parent != CORE or room_of(path) in FLOOR]


def test_every_module_is_in_a_room_of_the_design():
    assert {room_of(path) for path in modules(CORE)} - {"__init__", "__main__"} <= FLOOR.keys()


@pytest.mark.parametrize("path", IN_ROOMS, ids=lambda path: str(path.relative_to(CORE)))
def test_a_room_imports_only_from_rooms_below_it(path):
    room = room_of(path)
    others = {name.split(".")[1] for name in uses(path, "refusal_core") if "." in name} - {room, "__version__"}
    assert {other for other in others if FLOOR[other] >= FLOOR[room]} == set()


@pytest.mark.parametrize(
    "path", [path for path in IN_ROOMS if room_of(path) != "ui"], ids=lambda path: str(path.relative_to(CORE))
)
def test_the_core_does_not_know_the_dashboard(path):
    assert not uses(path, "streamlit", "pages", "app", "benchmarks")


@pytest.mark.parametrize("room", ["analysis", "prompts", "runs", "evidence", "annotations", "exploration", "figures"])
def test_what_reads_a_run_loads_no_model_library(room):
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules(CORE / room)]
    program = f"import importlib, sys; [importlib.import_module(name) for name in {names!r}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "numpy" in loaded.stdout.split()
    assert not {"torch", "transformers", "streamlit"} & {*loaded.stdout.split()}


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


def test_the_server_collects_no_garbage_listens_on_this_machine_alone_and_takes_messages_of_limited_size(monkeypatch):
    monkeypatch.chdir(ROOT)
    config.get_config_options(force_reparse=True)
    assert config.get_option("runner.postScriptGC") is False
    assert config.get_option("server.address") == "127.0.0.1"
    assert config.get_option("server.maxMessageSize") == 20
