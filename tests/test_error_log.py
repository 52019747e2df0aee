"""What nobody foresaw is kept under a reference, in a log file of limited size."""

from __future__ import annotations

import stat

import pytest

from refusal_core import error_log


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_log_path", lambda name: tmp_path / name)
    return tmp_path / "refusal-directions" / "errors.log"


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_the_details_are_under_the_reference_and_the_sentence_quotes_none_of_them(log):
    failures = [error_log.log_failure(raised(KeyError(f"secret {number}"))) for number in range(2)]
    assert len({failure.reference for failure in failures}) == 2
    for number, failure in enumerate(failures):
        assert "secret" not in str(failure)
        assert str(log) in str(failure)
        details = log.read_text().partition(f"reference {failure.reference}\n")[2]
        assert details.startswith("Traceback")
        assert f"KeyError: 'secret {number}'" in details.split("\n\n")[0]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_file_of_a_failed_write_is_named_to_whoever_started_the_program_alone(log):
    failure = error_log.log_failure(raised(OSError(28, "No space left on device", "/home/me/runs")))
    assert failure.what == "No space left on device"
    assert str(failure).startswith("No space left on device: /home/me/runs; ")


def test_the_log_stays_small(log, monkeypatch):
    monkeypatch.setattr(error_log, "MOST_BYTES", 2000)
    last = [error_log.log_failure(raised(ValueError("x" * 500))) for _ in range(30)][-1]
    files = sorted(log.parent.iterdir())
    assert [file.name for file in files] == ["errors.log", *(f"errors.log.{n}" for n in range(1, error_log.N_OLD + 1))]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert last.reference in log.read_text()


def test_where_no_log_can_be_written_the_details_are_printed(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("platformdirs.user_log_path", lambda name: tmp_path / "file" / name)
    failure = error_log.log_failure(raised(ValueError("why")))
    assert failure.log is None
    assert "details are above" in str(failure)
    assert "ValueError: why" in capsys.readouterr().err
