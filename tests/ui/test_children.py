"""What a stranger sends is read in a process of its own, and what that may not take does not reach the server."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from synthetic import RUN

from refusal_core.errors import RefusalError
from refusal_core.sharing.archives import UnpackedRun, pack_run
from refusal_core.ui import children


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_run_that_was_sent_is_taken_in_once(cache, synthetic_cache):
    packed = io.BytesIO()
    pack_run(RUN, packed, synthetic_cache)
    assert children.import_in_child(packed) == UnpackedRun(RUN, new=True)
    assert children.import_in_child(packed) == UnpackedRun(RUN, new=False)
    assert [path.name for path in cache.iterdir()] == [RUN]


def test_what_is_wrong_with_it_is_said_in_the_same_sentence(cache):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("code.py", "x")
    with pytest.raises(RefusalError, match="which is no file of a run") as refused:
        children.import_in_child(packed)
    assert "\n" not in str(refused.value)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("limit", "value"), [("MOST_MEMORY", 300 * 2**20), ("MOST_SECONDS", 1)])
def test_a_reader_that_takes_too_much_is_ended_and_the_server_goes_on(
    cache, synthetic_cache, monkeypatch, limit, value
):
    packed = io.BytesIO()
    pack_run(RUN, packed, synthetic_cache)
    if limit == "MOST_SECONDS":
        endless = children._PROGRAM.replace("from refusal", "while True: pass\nfrom refusal")
        monkeypatch.setattr(children, "_PROGRAM", endless)
    monkeypatch.setattr(children, limit, value)
    with pytest.raises(RefusalError, match=r"more memory|not foreseen|not enough|too long|cannot"):
        children.import_in_child(packed)
    assert list(cache.iterdir()) == []
