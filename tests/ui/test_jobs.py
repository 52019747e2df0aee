"""Jobs as real processes, of small programs that behave well, badly, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from refusal_core.errors import ModelError, RefusalError
from refusal_core.progress.file import ProgressFile
from refusal_core.ui import jobs
from refusal_core.ui.background import duration
from refusal_core.ui.jobs import Command

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from refusal_core.errors import ModelError
from refusal_core.progress.file import ProgressFile

verb, watched, folder, *rest = sys.argv[1:]
folder = Path(folder)
with (folder / "started").open("a") as file:
    file.write("x")
signal.signal(signal.SIGTERM, signal.SIG_IGN if verb == "stubborn" else signal.default_int_handler)
if verb == "silent":
    print("error: expected this, got that")
    os._exit(1)
print("rest:", *rest, flush=True)
with ProgressFile(watched.removeprefix("--progress-file=")) as progress:
    progress("counting (things)", 1, 4)
    if verb == "fail":
        raise ModelError("no such model")
    if verb == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    progress("counting (things)", 4, 4)
print("the end", flush=True)
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """An empty cache, a small program in place of the command line, and no process left behind."""
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(jobs, "_PROGRAM", (sys.executable, str(program)))
    monkeypatch.setenv("PYTHONPATH", str(jobs._ROOT))
    yield tmp_path
    for job in jobs.all_jobs():
        jobs.cancel(job.name)


def command(folder: Path, verb: str = "count", *rest: str) -> Command:
    return Command(f"{verb} things", verb, (str(folder), *rest))


def until(holds, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def ended(name: str) -> jobs.Job:
    return until(lambda: (job := jobs.status(name)) and job.state != "running" and job)


def begun(folder: Path, verb: str = "count", *rest: str) -> str:
    """Start a job and wait until it has reported something."""
    asked = command(folder, verb, *rest)
    jobs.start(asked)
    until(lambda: jobs.status(asked.name).stage)
    return asked.name


def test_a_progress_file_is_whole_at_every_moment_and_says_how_it_ended(tmp_path):
    path = tmp_path / "p.json"
    with ProgressFile(path) as progress:
        progress("downloading (bytes)", 3, 9)
        assert json.loads(path.read_text())["done"] == 3
    assert json.loads(path.read_text())["state"] == "done"
    with pytest.raises(ModelError), ProgressFile(path):
        raise ModelError("no such model")
    failed = json.loads(path.read_text())
    assert (failed["state"], failed["message"]) == ("failed", "no such model")
    with pytest.raises(KeyboardInterrupt), ProgressFile(path):
        raise KeyboardInterrupt
    assert json.loads(path.read_text())["state"] == "cancelled"
    assert sorted(os.listdir(tmp_path)) == ["p.json", "program.py"]


def test_the_rate_leaves_out_what_was_found_finished(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("refusal_core.progress.file.time.monotonic", lambda: now[0])
    progress = ProgressFile(tmp_path / "p.json")
    for done in (0, 400, *range(402, 502, 2)):
        progress("extracting (prompts)", done, 1000)
        now[0] += 1.0
    assert json.loads((tmp_path / "p.json").read_text())["rate"] == pytest.approx(2.0)


def test_no_job_is_none():
    assert jobs.status(Command("", "run", ()).name) is None
    assert jobs.all_jobs() == []
    with pytest.raises(RefusalError, match="no job"):
        jobs.status("../../etc")


def test_a_job_reports_and_ends_without_whoever_started_it(folder):
    name = begun(folder, "count", "--a=1", "--", "-x")
    job = jobs.status(name)
    assert (job.state, job.stage, job.done, job.total) == ("running", "counting (things)", 1, 4)
    assert job.command.title == "count things"
    assert jobs.log(name) == "rest: --a=1 -- -x"
    (folder / "go").touch()
    job = ended(name)
    assert (job.state, job.done, job.message) == ("done", 4, "")
    assert 0 < job.seconds < 20
    assert until(lambda: jobs.log(name).endswith("the end"))


def test_a_job_is_running_as_soon_as_it_is_started(folder, monkeypatch):
    looked, cmdline = [], psutil.Process.cmdline

    def late(process):
        # What Linux says of a process between its fork and its program.
        looked.append(process.pid)
        return [] if len(looked) < 4 else cmdline(process)

    monkeypatch.setattr(psutil.Process, "cmdline", late)
    jobs.start(command(folder))
    assert jobs.status(command(folder).name).state == "running"
    assert len(looked) > 4


def test_a_job_outlives_the_server_that_started_it_and_the_next_one_watches_it(folder):
    server = (
        "import sys\nfrom refusal_core.ui import jobs\n"
        f"jobs._PROGRAM = {jobs._PROGRAM!r}\n"
        f"jobs.start(jobs.Command('count things', 'count', ({str(folder)!r},)))\n"
    )
    subprocess.run([sys.executable, "-c", server], check=True, cwd=folder, env=os.environ)
    name = command(folder).name
    until(lambda: jobs.status(name).stage)
    assert jobs.status(name).state == "running"
    jobs.start(command(folder))
    (folder / "go").touch()
    assert ended(name).state == "done"
    assert (folder / "started").read_text() == "x"


@pytest.mark.parametrize("place", ["before", "after"])
def test_of_a_server_killed_while_it_starts_a_job_the_next_one_knows_the_job(folder, monkeypatch, place):
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    server = (
        "import os, signal, sys\nfrom refusal_core.ui import jobs\n"
        f"jobs._PROGRAM = {jobs._PROGRAM!r}\npopen = jobs._popen\n"
        f"jobs._popen = lambda command: ({'None' if place == 'before' else 'popen(command)'}, {kill})\n"
        f"jobs.start(jobs.Command('count things', 'count', ({str(folder)!r},)))\n"
    )
    ended_by = subprocess.run([sys.executable, "-c", server], check=False, cwd=folder, env=os.environ).returncode
    assert ended_by == -signal.SIGKILL
    name = command(folder).name
    assert jobs.status(name).state == "running"
    if place == "before":
        monkeypatch.setattr(jobs, "_SECONDS_TO_START", 0.0)
        assert "start it again" in jobs.status(name).message
        jobs.start(command(folder))
    until(lambda: jobs.status(name).stage)
    (folder / "go").touch()
    assert ended(name).state == "done"
    assert (folder / "started").read_text() == "x"


def test_two_visitors_and_two_servers_start_one_job(folder):
    asked = command(folder)
    server = (
        "import sys\nfrom refusal_core.ui import jobs\n"
        f"jobs._PROGRAM = {jobs._PROGRAM!r}\n"
        f"jobs.start(jobs.Command('count things', 'count', ({str(folder)!r},)))\n"
    )
    other = subprocess.Popen([sys.executable, "-c", server], env=os.environ, cwd=folder)
    visitors = [threading.Thread(target=jobs.start, args=(asked,)) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert other.wait(30) == 0
    until(lambda: jobs.status(asked.name).stage)
    assert (folder / "started").read_text() == "x"
    assert len(jobs.all_jobs()) == 1
    jobs.start(command(folder, "count", "--other"))
    assert len(jobs.all_jobs()) == 2


def test_what_fails_says_why_and_can_be_started_again(folder):
    asked = command(folder, "fail")
    for attempt in ("x", "xx"):
        jobs.start(asked)
        job = ended(asked.name)
        assert (job.state, job.message) == ("failed", "no such model")
        assert (folder / "started").read_text() == attempt


def test_a_command_that_ends_before_it_reports_has_its_last_words_shown(folder):
    asked = command(folder, "silent")
    jobs.start(asked)
    assert ended(asked.name).message == "expected this, got that"


def test_a_process_that_died_without_a_word_has_failed(folder):
    asked = command(folder, "die")
    jobs.start(asked)
    job = ended(asked.name)
    assert job.state == "failed"
    assert "killed" in job.message
    assert "memory" in job.message
    assert "start it again" in job.message


def test_a_clock_that_is_set_back_or_ahead_changes_no_duration(folder, monkeypatch):
    name = begun(folder)
    jobs._path(name, ".progress").write_text(
        json.dumps({"stage": "s (things)", "done": 1, "total": 21, "rate": 2.0, "clock": time.monotonic()})
    )
    for other_time in (time.time() - 100_000, time.time() + 100_000):
        with monkeypatch.context() as patched:
            patched.setattr(jobs.time, "time", lambda shown=other_time: shown)
            job = jobs.status(name)
            assert 0 < job.seconds < 20
            assert 5 < job.seconds_left <= 10
    (folder / "go").touch()
    assert 0 < ended(name).seconds < 20


def test_a_job_of_a_version_that_wrote_no_clock_is_watched_to_its_end(folder):
    name = begun(folder)
    for ending, written in ((".json", {"began": time.time() - 100}), (".progress", {"updated": time.time() - 10})):
        path = jobs._path(name, ending)
        content = json.loads(path.read_text()) | written | {"rate": 0.1}
        del content["clock"]
        path.write_text(json.dumps(content))
    job = jobs.status(name)
    assert job.state == "running"
    assert 100 <= job.seconds < 120
    # Three things at one in ten seconds, since the progress was written.
    assert 0 < job.seconds_left <= 20
    (folder / "go").touch()
    assert ended(name).state == "done"


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux alone ends processes for memory")
def test_of_server_and_job_the_job_ends_first_where_memory_runs_out(folder):
    pid = jobs._record(begun(folder))["pid"]
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > int(Path("/proc/self/oom_score_adj").read_text())


def test_a_job_whose_folder_is_deleted_ends_and_can_be_started_again(folder):
    name = begun(folder)
    process = psutil.Process(jobs._record(name)["pid"])
    shutil.rmtree(folder / "cache" / ".jobs")
    assert jobs.all_jobs() == []
    (folder / "go").touch()
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    jobs.start(command(folder))
    assert ended(name).state == "done"


def test_another_process_with_the_pid_of_one_that_died_is_not_taken_for_it(folder):
    name = begun(folder)
    record = jobs._record(name)
    os.kill(record["pid"], signal.SIGKILL)
    ended(name)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        jobs._write(jobs._path(name, ".json"), record | {"pid": stranger.pid})
        assert jobs.status(name).state == "failed"
        jobs.cancel(name)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("verb", ["count", "stubborn"])
def test_a_cancelled_job_ends_and_can_go_on(folder, monkeypatch, verb):
    monkeypatch.setattr(jobs, "_SECONDS_TO_END", 0.5)
    name = begun(folder, verb)
    pid = jobs._record(name)["pid"]
    jobs.cancel(name)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    job = jobs.status(name)
    assert (job.state, job.done, job.message) == ("cancelled", 1, "")
    (folder / "go").touch()
    jobs.start(command(folder, verb))
    assert ended(name).state == "done"


def test_the_last_jobs_are_kept_newest_first(folder, monkeypatch):
    monkeypatch.setattr(jobs, "_KEPT", 3)
    (folder / "go").touch()
    for place in range(5):
        asked = command(folder, "count", f"--place={place}")
        jobs.start(asked)
        ended(asked.name)
    kept = [job.command.arguments[-1] for job in jobs.all_jobs()]
    assert kept == ["--place=4", "--place=3", "--place=2", "--place=1"][: len(kept)]
    assert 3 <= len(kept) <= 4
    files = {path.suffix for path in (folder / "cache" / ".jobs").iterdir()}
    assert files == {"", ".json", ".log", ".progress"}
    jobs.forget(asked.name)
    assert jobs.status(asked.name) is None


def test_of_many_jobs_the_next_is_refused_until_one_ends(folder, monkeypatch):
    monkeypatch.setattr(jobs, "MOST_AT_ONCE", 0)
    with pytest.raises(RefusalError, match="under way already"):
        jobs.start(command(folder))
    monkeypatch.setattr(jobs, "MOST_AT_ONCE", 1)
    jobs.start(command(folder))


def test_a_running_job_is_not_forgotten(folder):
    name = begun(folder)
    jobs.forget(name)
    assert jobs.status(name).state == "running"


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"title": 1, "verb": 3, "arguments": 2, "pid": "x"}', "[" * 100_000]
)
def test_an_unreadable_record_is_no_job(folder, content):
    (folder / "cache" / ".jobs").mkdir(parents=True)
    name = command(folder).name
    (folder / "cache" / ".jobs" / f"{name}.json").write_text(content)
    (folder / "cache" / ".jobs" / "notes.json").write_text("{}")
    assert jobs.status(name) is None
    assert jobs.all_jobs() == []
    (folder / "go").touch()
    jobs.start(command(folder))
    assert ended(name).state == "done"


def test_where_no_record_can_be_kept_nothing_is_started(folder):
    (folder / "cache").write_text("a file")
    with pytest.raises(RefusalError, match="cannot be kept"):
        jobs.start(command(folder))
    assert not (folder / "started").exists()


def test_the_command_line_is_what_runs(folder, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("REFUSAL_CACHE", str(folder / "cache"))
    asked = Command("Behaviour", "measure behaviour", ("--", "-no-such-run"))
    jobs.start(asked)
    job = ended(asked.name)
    assert job.state == "failed"
    assert "'-no-such-run' is no run name" in job.message


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".progress", '{"done": 1e999}'),
        (".progress", '{"clock": 1e999, "state": "done"}'),
        (
            ".json",
            '{"title": "", "verb": "count", "arguments": [], "pid": 1e999, "began": 1, "clock": 1, "cancelled": false}',
        ),
    ],
)
def test_a_number_beyond_all_bounds_takes_no_page_down(folder, ending, content):
    (folder / "go").touch()
    name = command(folder).name
    jobs.start(command(folder))
    ended(name)
    jobs._path(name, ending).write_text(content)
    assert all(duration(job.seconds) for job in jobs.all_jobs())
