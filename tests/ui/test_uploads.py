"""What visitors send is read by a process of its own, once, and an archive's run comes into the cache that way."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st
from synthetic import RUN

from refusal_core import children
from refusal_core.annotations.marks import Mark, read_marks
from refusal_core.errors import MarkError, RefusalError
from refusal_core.sharing.archives import UnpackedRun, pack_run
from refusal_core.ui import uploads


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_run_that_was_sent_is_taken_in_once(cache, synthetic_cache):
    packed = io.BytesIO()
    pack_run(RUN, packed, synthetic_cache)
    assert uploads.import_sent(packed) == UnpackedRun(RUN, new=True)
    assert uploads.import_sent(packed) == UnpackedRun(RUN, new=False)
    assert [path.name for path in cache.iterdir()] == [RUN]


def test_what_is_wrong_with_it_is_said_in_the_same_sentence(cache):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("code.py", "x")
    with pytest.raises(RefusalError, match="which is no file of a run") as refused:
        uploads.import_sent(packed)
    assert "\n" not in str(refused.value)
    assert list(cache.iterdir()) == []


def test_nothing_stays_of_an_archive_that_takes_too_much(cache, synthetic_cache, monkeypatch):
    packed = io.BytesIO()
    pack_run(RUN, packed, synthetic_cache)
    # With a little less than it asks for, scipy's OpenBLAS tries for ever to get it: nowhere near that.
    monkeypatch.setattr(uploads, "LARGE", replace(children.LARGE, memory=200 * 2**20))
    with pytest.raises(RefusalError, match=r"more memory|not foreseen|not enough|cannot"):
        uploads.import_sent(packed)
    assert list(cache.iterdir()) == []


def test_a_file_is_read_once_and_so_is_one_that_cannot_be_read(monkeypatch):
    st.cache_data.clear()
    asked = []
    plain = uploads.in_child
    monkeypatch.setattr(uploads, "in_child", lambda *given, **more: asked.append(more) or plain(*given, **more))
    for _ in range(2):
        assert uploads.read_sent(read_marks, "a.csv", b"text,mark\nx,fine\n", None) == [
            Mark("2d711642b726", "x", "fine")
        ]
        with pytest.raises(MarkError, match=r"a\.csv, row 1: expected one of mislabelled"):
            uploads.read_sent(read_marks, "a.csv", b"text,mark\nx,odd\n", None)
    assert len(asked) == 2


def test_a_file_that_had_to_wait_too_long_is_read_the_next_time(monkeypatch):
    st.cache_data.clear()
    plain = uploads.in_child

    def busy(*given, **more):
        raise children.BusyError("others are reading")

    monkeypatch.setattr(uploads, "in_child", busy)
    with pytest.raises(children.BusyError):
        uploads.read_sent(read_marks, "a.csv", b"text,mark\nx,fine\n", None)
    monkeypatch.setattr(uploads, "in_child", plain)
    assert uploads.read_sent(read_marks, "a.csv", b"text,mark\nx,fine\n", None)
