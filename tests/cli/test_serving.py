"""The dashboard starts from a checkout and from an installed package."""

from __future__ import annotations

import subprocess
import sys

import pytest

from refusal_core.cli import serving
from refusal_core.errors import RefusalError


def test_a_checkout_has_its_pages_at_the_top():
    script = serving.app_script()
    assert script.name == "app.py"
    assert (script.parent / ".streamlit" / "config.toml").is_file()


def test_the_pages_of_an_installed_package_come_first(tmp_path, monkeypatch):
    installed = tmp_path / "refusal_core"
    (installed / "dashboard" / "pages").mkdir(parents=True)
    (installed / "dashboard" / "app.py").touch()
    monkeypatch.setattr(serving, "_PACKAGE", installed)
    assert serving.app_script() == installed / "dashboard" / "app.py"


def test_a_package_without_pages_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "_PACKAGE", tmp_path / "refusal_core")
    with pytest.raises(RefusalError, match="pages are missing"):
        serving.app_script()


def test_the_server_shows_the_cache_it_is_given(tmp_path, monkeypatch):
    started = {}

    def run(command, env, check):
        started.update(command=command, cache=env["REFUSAL_CACHE"], read_only=env["REFUSAL_READ_ONLY"])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert serving.serve(tmp_path, ["--server.port=8600"], {"REFUSAL_READ_ONLY": "1"}) == 0
    assert started["command"][:4] == [sys.executable, "-m", "streamlit", "run"]
    assert "--server.port=8600" in started["command"]
    assert started["cache"] == str(tmp_path)
    assert started["read_only"] == "1"
