"""A disk that is full at any write is a sentence; what was there stays, nothing half-written does, and it works after.

The system refuses to write a file beyond a size, as a full disk does: with another number and the same effect.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making import make_run
from synthetic import RUN

from refusal_core.annotations import marks, raters
from refusal_core.annotations.marks import Mark
from refusal_core.behaviour import measurement
from refusal_core.errors import RefusalError
from refusal_core.exploration.kept_lists import keep_list
from refusal_core.models.opening import load_model
from refusal_core.runs import store
from refusal_core.sharing.archives import pack_run, unpack_run
from refusal_core.ui import jobs, uploads

resource = pytest.importorskip("resource", reason="Windows limits no file's size")
ID = "0123456789ab"


@contextmanager
def full_after(n_bytes: int) -> Iterator[None]:
    """Let no file become longer than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def cache(synthetic_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    shutil.copytree(synthetic_cache, folder)
    pack_run(RUN, tmp_path / "packed.zip", folder)
    keep(folder, "one")
    monkeypatch.setenv("REFUSAL_CACHE", str(folder))
    return folder


def keep(cache: Path, name: str) -> None:
    """Keep a labelled list with the run."""
    run = store.open_run(RUN, cache)
    prompts = pd.DataFrame({"text": ["One", "Two"], "label": ["harmful", "harmless"]}, dtype=object)
    keep_list(run, name, prompts, np.zeros((2, run.n_sites)))


WRITES: dict[str, Callable[[Path], object]] = {
    "mark": lambda cache: marks.save_marks([Mark(ID, "x" * 300, "fine")], cache),
    "rating": lambda cache: raters.save_rating("Ana", ID, "x" * 300, 3, cache),
    "rename": lambda cache: store.rename_run(RUN, "A title", cache),
    "note": lambda cache: store.note_run(RUN, "A note", cache),
    "upload": lambda cache: uploads.store_upload("a.csv", b"text\n" * 100, cache),
    "pack": lambda cache: pack_run(RUN, cache.parent / "again.zip", cache),
    "unpack": lambda cache: unpack_run(cache.parent / "packed.zip", cache.parent / "other"),
    "list": lambda cache: keep(cache, "another"),
    "job": lambda cache: jobs.start(jobs.Command("A job", "list", ())),
}


def state(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for locks, which stay, and marks, where a line that was begun counts as none."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock" and path.suffix not in (".lock", ".log")
    }
    return {name: content for name, content in files.items() if not name.endswith("marks.jsonl")}


@pytest.mark.parametrize("n_bytes", [0, 8])
@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(cache: Path, name: str, n_bytes: int):
    before = state(cache.parent)
    with full_after(n_bytes), pytest.raises(RefusalError) as refused:
        WRITES[name](cache)
    assert "\n" not in str(refused.value)
    assert state(cache.parent) == before
    assert marks.load_marks(cache).empty
    WRITES[name](cache)
    assert state(cache.parent) != before or len(marks.load_marks(cache)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("work", "n_bytes"), [("run", 3_000), ("behaviour", 0), ("behaviour", 3_000)])
def test_work_on_a_full_disk_says_so_closes_its_files_and_goes_on_with_room(
    work: str, n_bytes: int, tiny_folder: Path, tiny_run: store.Run, tmp_path: Path
):
    shutil.copytree(tiny_run.path, tmp_path / tiny_run.run_id)
    copied, asked = store.open_run(tiny_run.run_id, tmp_path), {"dtype": "float32", "device": "cpu", "cache": tmp_path}

    def make() -> object:
        if work == "run":
            return make_run(tiny_folder, "pairs", limit_per_label=8, **asked).run
        return measurement.record(copied, load_model(tiny_folder, dtype="float32", device="cpu"))

    with full_after(n_bytes), pytest.raises(RefusalError, match="File too large"):
        make()
    # A file that nobody closed is a warning when it is collected, and a warning is an error here.
    gc.collect()
    assert not list(tmp_path.rglob(".partial-*"))
    make()
    assert not list(tmp_path.rglob(".unfinished-*"))
