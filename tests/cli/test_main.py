"""The command line as a user meets it: results, errors in one line, exit status, and what it takes to start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from synthetic import RUN, save_subspace

from refusal_core.cli.main import app, main
from refusal_core.exploration.subspace import load_subspace
from refusal_core.options import RunOptions
from refusal_core.progress.file import WAITING
from refusal_core.runs.additions import save_addition
from refusal_core.runs.schemas import ESTIMATED
from refusal_core.runs.store import list_runs, open_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_command_line_from_run_to_delete(tiny_folder, tmp_path, capsys):
    cache = ["--cache", str(tmp_path / "cache")]
    command = [
        "run",
        "--model",
        str(tiny_folder),
        "--prompts",
        "pairs",
        "--limit-per-label",
        "8",
        "--device",
        "cpu",
        *cache,
    ]
    assert main(command) == 0
    first = capsys.readouterr()
    run_id = first.out.splitlines()[-1]
    assert "prompts/s" in first.out
    assert main(command) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[-1] == run_id
    assert "found in the cache" in again[0]
    assert main(["list", *cache]) == 0
    assert run_id in capsys.readouterr().out
    assert main(["show", run_id, *cache]) == 0
    assert "layer 3 of 4" in capsys.readouterr().out
    assert main(["verify", run_id, *cache]) == 0
    capsys.readouterr()

    (tmp_path / "mine.csv").write_text("text\nfirst one\nsecond one\n")
    scoring = ["score", run_id, "--model", str(tiny_folder), "--device", "cpu", "--json", *cache]
    assert main([*scoring, "--file", str(tmp_path / "mine.csv")]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert [entry["text"] for entry in scores] == ["first one", "second one"]
    assert len(scores[0]["projection"]) == len(scores[0]["percentile"]["harmless"]) == 5
    assert isinstance(scores[0]["refusal_log_odds"], float)

    measuring = ["measure", "subspace", run_id, "--model", str(tiny_folder), "--device", "cpu", *cache]
    assert main(measuring) == 0
    assert "measured at 5 sites" in capsys.readouterr().out
    assert main(measuring) == 0
    assert "nothing was computed" in capsys.readouterr().out
    assert main(["show", run_id, "--subspace", *cache]) == 0
    said = capsys.readouterr().out
    assert "the mean difference reaches AUROC" in said
    assert "Missing: it takes two categories" in said
    assert main(["show", run_id, "--subspace", "--json", *cache]) == 0
    assert json.loads(capsys.readouterr().out)["numbers"][0]["subject"] == "mean difference"

    measuring = ["measure", "positions", run_id, "--model", str(tiny_folder), "--device", "cpu", *cache]
    assert main([*measuring, "--no-keep-activations"]) == 0
    assert "read positions; `refusal show" in capsys.readouterr().out
    assert main(measuring) == 0
    assert "nothing was computed" in capsys.readouterr().out
    assert main(["show", run_id, "--positions", *cache]) == 0
    assert "At t_inst, layer" in capsys.readouterr().out
    assert main(["show", run_id, "--positions", "--json", *cache]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["numbers"][0]["position"] == -1 - len(shown["closing_tokens"])
    at = open_run(run_id, tmp_path / "cache").at("t_inst")
    assert main(["show", run_id, "--position", "t_inst", "--json", *cache]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["run_id"], shown["sites"][2]["magnitude"]) == (at.run_id, at.layer_stats["magnitude"][2])
    scoring = ["score", run_id, at.prompts["text"][0], "--position", "t_inst", "--json", "--model", str(tiny_folder)]
    assert main([*scoring, "--device", "cpu", *cache]) == 0
    assert json.loads(capsys.readouterr().out)[0]["projection"][2] == pytest.approx(at.projections[0, 2], abs=1e-3)
    assert main(["show", run_id, "--position", "t_inst", "--subspace", *cache]) == 1
    assert "the subspace was not measured on the run" in capsys.readouterr().err

    measuring = ["measure", "attribution", run_id, "--model", str(tiny_folder), "--device", "cpu", *cache]
    assert main(measuring) == 0
    assert "refusal show" in capsys.readouterr().out
    assert main(measuring) == 0
    assert "nothing was computed" in capsys.readouterr().out
    assert main(["show", run_id, "--attribution", *cache]) == 0
    assert "standard deviations above the vocabulary's mean on average" in capsys.readouterr().out
    assert main(["show", run_id, "--attribution", "--json", *cache]) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == [["attention", "mlp"]] * 4

    measuring = ["measure", "trajectory", run_id, "--model", str(tiny_folder), "--device", "cpu", *cache]
    assert main([*measuring, "--limit-per-label", "8", "--reply-tokens", "4"]) == 0
    assert "refusal show" in capsys.readouterr().out
    assert main(measuring) == 0
    assert "nothing was computed" in capsys.readouterr().out
    assert main(["show", run_id, "--trajectory", *cache]) == 0
    assert "At layer" in capsys.readouterr().out
    assert main(["show", run_id, "--trajectory", "--json", *cache]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"run_id", "site", "curves", "gaps"}

    measuring = ["measure", "judgement", run_id, "--model", str(tiny_folder), "--device", "cpu", *cache]
    assert main([*measuring, "--limit-per-label", "8", "--random-directions", "4"]) == 0
    assert "refusal show" in capsys.readouterr().out
    assert main(measuring) == 0
    assert "nothing was computed" in capsys.readouterr().out
    assert main(["show", run_id, "--judgement", *cache]) == 0
    assert "prompts of 8 quartets, pairs or single prompts per label, and here are 4" in capsys.readouterr().out
    assert main(["show", run_id, "--judgement", "--json", *cache]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"run_id", "changes", "answered"}

    assert main(["report", run_id, str(tmp_path / "out"), *cache]) == 0
    assert (tmp_path / "out" / "judgement.csv").is_file()
    assert (tmp_path / "out" / "subspace.csv").is_file()
    assert (tmp_path / "out" / "positions.csv").is_file()
    assert (tmp_path / "out" / "attribution.csv").is_file()
    assert (tmp_path / "out" / "trajectory.csv").is_file()
    capsys.readouterr()
    assert main(["delete", run_id, *cache]) == 0
    assert not (tmp_path / "cache" / run_id).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--model", "no-such-model"], "no-such-model"),
        (["run", "--model", "MODEL", "--prompts", "no-such-file.csv"], "no-such-file.csv"),
        (["run", "--model", "MODEL", "--limit-per-label", "2"], "8 or more"),
        (["run", "--model", "MODEL", "--device", "warp"], "warp"),
        (["show", "no-such-run"], "no-such-run"),
        (["verify", "../../etc"], "no run name"),
        (["delete", "no-such-run"], "nothing was deleted"),
        (["report", "no-such-run", "x"], "no-such-run"),
        (["score", "no-such-run", "hello"], "no-such-run"),
        (["fetch", "no-such-model"], "no-such-model"),
        (["fetch", "../.."], "no hub id"),
        (["fetch", "Owner/Name:latest"], "no hub id"),
        (["fetch", "no-such-model", "--progress-file", "no/such/folder/x"], "cannot be written"),
        (["run", "--model", "MODEL", "--chat-template", "~nobody-of-that-name/x.jinja"], "no template"),
        (["run", "--model", "MODEL", "--chat-template", "x" * 300], "no template"),
        (["run", "--model", "MODEL", "--progress-file", "SAME/progress.json"], "turn of this work cannot be taken"),
        (["run", "--model", "x" * 300], "no model named"),
        (["run", "--model", "MODEL", "--seed", "-1"], "0 or more for seed"),
        (["run", "--model", "MODEL", "--system-prompt", "\udcff"], "expected text in UTF-8"),
        (["run", "--model", "MODEL", "--prompts", "x" * 300], "no prompt set"),
        (["run", "--model", "MODEL", "--text-column", "ask"], "a text column can be chosen for prompts of your own"),
        (["run", "--model", "MODEL", "--label", "bad=harmful", "--transfer", "borderline"], "(pairs, borderline) have"),
        (["run", "--model", "MODEL", "--label-column", "kind", "--transfer", "SAME/x.csv"], "x.csv"),
        (["prompts", "everyday", "--text-column", "ask"], "bundled sets (everyday) have theirs"),
        (["run", "--model", "MODEL", "--limit-per-label", "8", "--token-limit", "40"], "pairs, row "),
        (["run", "--model", "MODEL", "--transfer", "SAME/pairs.csv"], "name of the contrast set"),
        (["run", "--model", "MODEL", "--transfer", "SAME/contrast.csv"], "name of the contrast set"),
        (["run", "--model", "MODEL", "--transfer", "SAME/quartets.csv"], "name of another transfer set"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(arguments, message, tiny_folder, tmp_path, capsys, monkeypatch):
    for name in ("pairs", "contrast", "quartets"):
        (tmp_path / f"{name}.csv").write_text("text,label\nA prompt of one's own,harmful\n")
    (tmp_path / ".turn").mkdir()
    arguments = [
        str(tiny_folder) if argument == "MODEL" else argument.replace("SAME", str(tmp_path)) for argument in arguments
    ]
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_work_that_is_watched_takes_turns(tiny_folder, tmp_path):
    said, cache = tmp_path / "progress.json", tmp_path / "cache"
    command = ["run", "--model", str(tiny_folder), "--limit-per-label", "8", "--device", "cpu", "--cache", str(cache)]
    working = threading.Thread(target=main, args=([*command, "--progress-file", str(said)],))
    with FileLock(tmp_path / ".turn"):
        working.start()
        deadline = time.monotonic() + 60
        while not said.exists() or json.loads(said.read_text())["stage"] != WAITING:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1.5)
        assert json.loads(said.read_text())["stage"] == WAITING
        assert working.is_alive()
    working.join()
    assert json.loads(said.read_text())["state"] == "done"
    assert len(list(cache.glob("[!.]*"))) == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(28, "No space left on device", "runs"), "No space left on device: runs"),
        (RecursionError("too deep"), "not foreseen (RecursionError)"),
        (KeyError("secret of a file"), "not foreseen (KeyError)"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_its_details_are_in_a_log(tmp_path, monkeypatch, capsys, error, says):
    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("refusal_core.cli.runs.store.verify_run", fails)
    monkeypatch.setattr("platformdirs.user_log_path", lambda name: tmp_path / name)
    assert main(["verify", "a-run"]) == 1
    said = capsys.readouterr().err
    log = tmp_path / "refusal-directions" / "errors.log"
    assert says in said
    assert said.count("\n") == 1
    assert str(log) in said
    assert "secret" not in said
    assert "Traceback" in log.read_text()


VERBS = {
    *(
        "run",
        "prompts",
        "list",
        "show",
        "evidence",
        "score",
        "refit",
        "import-direction",
        "fetch",
        "verify",
        "rename",
        "delete",
    ),
    *("restore", "pack", "unpack", "push", "pull", "report", "measure", "dashboard"),
}


def run_program(*arguments: str, program: str = "from refusal_core.cli.main import main; main(sys.argv[1:])"):
    """Run the command line in a process of its own; what it imported is on the last line of stderr."""
    script = f"import sys; {program}; print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"pydantic", "pandas", "numpy"}),
        (["--version"], {"pydantic", "pandas", "numpy"}),
        (["run", "--help"], {"scipy", "sklearn"}),
        (["list"], {"pandas", "numpy", "pyarrow"}),
        (["show", RUN], {"sklearn"}),
    ],
)
def test_a_verb_imports_what_it_needs_and_no_more(arguments, absent, synthetic_cache, monkeypatch):
    monkeypatch.setenv("REFUSAL_CACHE", str(synthetic_cache))
    # Runs are held to their schemas when they are listed first.
    list_runs(synthetic_cache)
    done = run_program(*arguments)
    assert done.stdout
    imported = {*done.stderr.splitlines()[-1].split()}
    assert "refusal_core" in imported
    assert not imported & {"torch", "transformers", "streamlit", "plotly", *absent}


def test_the_help_has_every_verb_and_every_verb_its_own(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert {name for name in app if not name.startswith("-")} == VERBS
    for verb in VERBS:
        assert f" {verb} " in shown
        assert main([verb, "--help"]) == 0
        assert f"Usage: refusal {verb}" in capsys.readouterr().out


def test_the_help_of_run_has_every_option():
    # In a process of its own: the console takes its width from the environment once.
    command = [sys.executable, "-m", "refusal_core", "run", "--help"]
    printed = subprocess.run(command, env={**os.environ, "COLUMNS": "300"}, capture_output=True, text=True, check=True)
    shown = " ".join(printed.stdout.replace("│", " ").split())
    for name, field in RunOptions.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert str(field.description) in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["bogus"], "bogus"),
        (["run"], "--model"),
        (["run", "--model", "x", "--bogus", "1"], "--bogus"),
        (["show"], "RUN"),
        (["show", RUN, "--behaviour", "--ratings"], "Mutually exclusive"),
        (["measure", "bogus", RUN], "bogus"),
    ],
)
def test_a_command_that_cannot_be_understood_is_one_line_and_status_2(arguments, message, capsys):
    status = main(arguments)
    captured = capsys.readouterr()
    if not arguments:
        assert (status, captured.err) == (0, "")
        assert "Usage: refusal" in captured.out
        return
    assert status == 2
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", RUN, "--behaviour"], "behaviour was not measured"),
        (["show", RUN, "--verdicts", "v.csv"], "give --behaviour as well"),
        (["show", RUN, "--export", "out.csv"], "only ratings take --export: give --ratings as well"),
        (
            ["show", RUN, "--file", "a.csv", "--rating-column", "harm"],
            "only ratings take --file and --rating-column: give",
        ),
        (["show", RUN, "--behaviour", "--rater-column", "who"], "only ratings take --rater-column: give"),
        (["show", RUN, "--intervention"], "no intervention was measured"),
        (["show", RUN, "--subspace"], "subspace was not measured"),
        (["show", RUN, "--trajectory"], "not followed on the run"),
        (["show", RUN, "--judgement"], "judgements were not measured on the run"),
        (["show", RUN, "--attribution"], "adds to the direction was not measured"),
        (["show", RUN, "--positions"], "read positions were not measured"),
        (["score", RUN], "either a prompt or a file"),
        (["score", RUN, "a", "--file", "b.csv"], "either a prompt or a file"),
    ],
)
def test_what_a_run_does_not_have_is_said(arguments, message, synthetic_cache, monkeypatch, capsys):
    monkeypatch.setenv("REFUSAL_CACHE", str(synthetic_cache))
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_names_of_categories_and_reasons_are_printed_without_control_characters(synthetic_cache, tmp_path, capsys):
    shutil.copytree(synthetic_cache / RUN, tmp_path / RUN)
    run = open_run(RUN, tmp_path)
    save_subspace(run)
    table, manifest = load_subspace(run)
    named = manifest.model_copy(update={"categories": tuple(f"{name}\x1b[2J" for name in manifest.categories)})
    save_addition(run, table.replace({name: f"{name}\x1b[2J" for name in manifest.categories}), named)
    assert main(["show", RUN, "--subspace", "--cache", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{manifest.categories[0]}\\x1b[2J" in printed
    assert "\x1b" not in printed
    reasoned = manifest.model_copy(update={"categories": (), "reason": "\x1b[2Jfew\nprompts"})
    save_addition(run, table[table["measure"].isin(ESTIMATED)], reasoned)
    assert main(["show", RUN, "--subspace", "--cache", str(tmp_path)]) == 0
    assert "Missing: \\x1b[2Jfew\\nprompts." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["list"], None),
        (["show", RUN], {"run_id", "model", "sites"}),
        (["show", RUN, "--ratings"], {"run_id", "ratings", "sites"}),
        (["evidence", RUN], {"run_id", "verdict", "answers", "sites", "reasons"}),
    ],
)
def test_json_is_plain_and_complete(arguments, keys, synthetic_cache, monkeypatch, capsys):
    monkeypatch.setenv("REFUSAL_CACHE", str(synthetic_cache))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert main([*arguments, "--json"]) == 0
    value = json.loads(capsys.readouterr().out, parse_constant=refuse)
    if keys is None:
        (listed,) = value
        assert listed["run_id"] == RUN
        assert listed["counts"] == {"harmful": 16, "harmless": 16}
        return
    assert set(value) == keys
    if "ratings" not in keys:
        assert [site["site"] for site in value["sites"]] == list(range(7))


def test_an_interrupted_command_says_so_and_ends_with_130(monkeypatch, capsys):
    def interrupt(cache=None):
        raise KeyboardInterrupt

    monkeypatch.setattr("refusal_core.runs.store.list_runs", interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_no_error(synthetic_cache):
    command = [sys.executable, "-m", "refusal_core", "show", RUN, "--json", "--cache", str(synthetic_cache)]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
