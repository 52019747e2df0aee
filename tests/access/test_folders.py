"""A visitor names things of the hub; of the machine's files those in the folders that the owner named."""

from __future__ import annotations

import os

import pytest

from refusal_core.access.folders import FOLDERS, check_typed, named_folders, without_paths
from refusal_core.errors import AccessError


@pytest.mark.parametrize(
    "typed",
    [
        "/etc/passwd",
        "~/.ssh/id_rsa",
        "./secret.csv",
        "../secret.csv",
        "open/../../secret.csv",
        "harmful.csv,/etc/passwd",
        "a/b/c",
        "C:/secret",
        "\\\\server\\share",
        "file:///etc/passwd",
        "hf://datasets/a/b/../../../etc/passwd",
        "/nothing/is/here",
    ],
)
def test_a_path_elsewhere_is_refused_whether_it_is_there_or_not(tmp_path, typed):
    with pytest.raises(AccessError, match="outside the folders"):
        check_typed(typed, (tmp_path,))
    with pytest.raises(AccessError, match="outside the folders"):
        check_typed(typed, ())


@pytest.mark.parametrize("typed", ["", "Qwen/Qwen2.5-1.5B-Instruct", "a/b,c/d", "pairs", "gpt2", "\0"])
def test_names_of_the_hub_pass(typed):
    check_typed(typed, ())


def test_a_path_in_a_named_folder_passes_and_a_link_out_of_it_does_not(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "secret.csv").touch()
    (tmp_path / "open" / "prompts.csv").touch()
    (tmp_path / "open" / "link.csv").symlink_to(tmp_path / "secret.csv")
    folders = named_folders({FOLDERS: os.pathsep.join([str(tmp_path / "open"), ""])})
    check_typed(f"{tmp_path}/open/prompts.csv", folders)
    for elsewhere in ("secret.csv", "open/link.csv", "open/../secret.csv", "opened.csv"):
        with pytest.raises(AccessError, match="outside the folders"):
            check_typed(f"{tmp_path}/{elsewhere}", folders)


def test_a_file_that_lies_where_the_server_was_started_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").touch()
    with pytest.raises(AccessError, match="outside the folders"):
        check_typed("prompts.csv", ())


def test_no_folder_is_open_unless_it_was_named():
    assert named_folders({}) == ()


@pytest.mark.parametrize(
    "begins", ["no model in {}", "{}: no weights", "'{}' is", "(in {})", "at '{}', it", "--model={}"]
)
@pytest.mark.parametrize(
    "path",
    [
        "/home/ada/secret models/llama",
        "~/secret/llama",
        "~ada/secret/llama",
        "./secret",
        "../../secret",
        "C:\\Users\\secret",
        "D:/secret",
        "\\\\server\\secret",
        "file:///home/secret",
        "a:/home/secret",
        "/secret",
    ],
)
def test_of_a_path_in_a_text_nothing_is_left(begins, path):
    said = without_paths(begins.format(path) + " and some more secret")
    assert "secret" not in said
    assert not set("/\\~") & set(said)
    assert said.startswith(begins.partition("{")[0].rstrip("'( "))


@pytest.mark.parametrize(
    "text",
    [
        "expected harmful and/or harmless, got 3 of 5",
        "Qwen/Qwen2.5-1.5B-Instruct is not on this machine",
        "see https://example.org/a/b and ~3 more",
        "layer 18 of 28 ... and no more; 1:2",
        "",
    ],
)
def test_a_text_without_a_path_stays(text):
    assert without_paths(text) == text
