from __future__ import annotations

import hashlib
import os

import pytest

from refusal_core.files import PARTIAL, atomic_folder, sha256_of, write_atomically


def test_the_digest_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()


def test_a_file_is_replaced_by_a_complete_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "é")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
    other = tmp_path / "other"
    other.write_text("")
    assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("dies_in", ["fsync", "write"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, dies_in):
    path = tmp_path / "file"
    path.write_text("old")
    content: str | bytes = "new"
    if dies_in == "fsync":
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("no space")))
    else:
        content = "\ud800"
    with pytest.raises((OSError, UnicodeEncodeError)):
        write_atomically(path, content)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_on_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    events = []
    sync, rename = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("sync"), sync(descriptor)))
    monkeypatch.setattr(type(tmp_path), "replace", lambda *paths: (events.append("rename"), rename(*paths))[1])
    write_atomically(tmp_path / "file", "x")
    assert events[:2] == ["sync", "rename"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with atomic_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "target").exists()
        assert folder.name.startswith(PARTIAL)
    assert os.listdir(tmp_path) == ["target"]
    assert (tmp_path / "target" / "file").read_text() == "x"


def test_nothing_is_left_of_a_folder_that_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "target"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_there_already_stays(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").write_text("x")
    with pytest.raises(OSError, match="target"), atomic_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("x")
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(tmp_path / "target") == ["old"]
