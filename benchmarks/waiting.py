"""What people wait for besides the model's passes: a run, the command line, the first page, lists, evidence."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.rounds import Bench, Row, in_turn
from refusal_core.activations.extraction import extract
from refusal_core.models.opening import load_model
from refusal_core.pipeline.analysis import analyse
from refusal_core.pipeline.scoring import Scorer, score
from refusal_core.runs.run import Run
from refusal_core.runs.store import open_run

SECTION = "waiting"
SITES, WIDTH = 29, 1536
"""Of the made-up activations that evidence is computed of: those of a 1.5B."""
_ROOT = Path(__file__).resolve().parent.parent
_REFUSAL = ("-m", "refusal_core")
_FIRST_PAGE = """
import time
from streamlit.testing.v1 import AppTest

AppTest.from_file("app.py", default_timeout=300).run()
print(time.time())
"""


def rows(bench: Bench) -> list[Row]:
    """Make a run from the command line, and time what its user waits for; what takes minutes is measured once."""
    with tempfile.TemporaryDirectory() as name:
        model, cache = _model_of(bench, Path(name) / "model"), str(Path(name) / "cache")
        seconds, run_id = _timed(cache, *_REFUSAL, "run", *_options(bench, model))
        run = open_run(run_id, cache)
        return [
            _over_passes(run, seconds),
            *_programs(bench, run, cache),
            _first_prompt(bench, run, model),
            _list(bench, run, model),
            _evidence(run),
        ]


def _model_of(bench: Bench, folder: Path) -> str:
    """Return what the command line is to open; a model that is in memory alone is saved."""
    info = bench.chat_model.info
    if info.source in ("fetched", "hub"):
        return info.name
    if info.path is not None:
        return info.path
    bench.chat_model.model.save_pretrained(folder)
    bench.chat_model.tokenizer.save_pretrained(folder)
    return str(folder)


def _options(bench: Bench, model: str) -> list[str]:
    limit = max(2, len(bench.texts) // 2)
    options = {
        "model": model,
        "prompts": "pairs",
        "limit-per-label": limit,
        "dtype": bench.chat_model.dtype,
        "device": bench.chat_model.device,
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def _timed(cache: str, *arguments: str) -> tuple[float, str]:
    """Run Python in a process of its own; return its seconds, and the last line that it printed."""
    os.makedirs(cache, exist_ok=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env={**os.environ, "REFUSAL_CACHE": cache},
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - start, (done.stdout.splitlines() or [""])[-1]


def _over_passes(run: Run, seconds: float) -> Row:
    """The whole command over the forward passes of its prompts."""
    timings = run.manifest.timings
    assert timings is not None
    note = (
        f"{len(run.prompts)} prompts, transfer sets included: {seconds:.1f} s, of which passes "
        f"{timings.extract_seconds:.1f} and opening the model {timings.load_seconds:.1f}"
    )
    return Row(
        SECTION,
        "a run from the command line over its passes",
        "<= 1.6 x",
        [seconds / timings.extract_seconds],
        note=note,
    )


def _programs(bench: Bench, run: Run, cache: str) -> list[Row]:
    """Programs from their start to their end; the first of each warms the disk."""
    programs = {
        "refusal --help": ("<= 0.3 s", [*_REFUSAL, "--help"]),
        "refusal list": ("<= 0.3 s", [*_REFUSAL, "list"]),
        "refusal show": ("<= 0.3 s", [*_REFUSAL, "show", run.run_id]),
    }
    found = []
    for name, (wanted, arguments) in programs.items():
        _timed(cache, *arguments)
        before = _processor_seconds()
        seconds = [_timed(cache, *arguments)[0] for _ in range(bench.rounds)]
        note = f"{(_processor_seconds() - before) / bench.rounds:.2f} s of processor time"
        found.append(Row(SECTION, name, wanted, seconds, "s", note))
    _timed(cache, "-c", _FIRST_PAGE)
    pages = []
    for _ in range(bench.rounds):
        start = time.time()
        # The process goes on to import what the model needs.
        pages.append(float(_timed(cache, "-c", _FIRST_PAGE)[1]) - start)
    found.append(Row(SECTION, "the first page, Python's start included", "<= 2 s", pages, "s"))
    return found


def _processor_seconds() -> float:
    """Return what programs that have ended took of the processors."""
    times = os.times()
    return times.children_user + times.children_system


def _first_prompt(bench: Bench, run: Run, model: str) -> Row:
    """Opening the model, and a first typed prompt; torch is imported already."""
    own, seconds = bench.chat_model, []
    before = time.process_time()
    for _ in range(bench.rounds):
        start = time.perf_counter()
        opened = load_model(model, device=own.device, dtype=own.dtype)
        Scorer(opened, run).score(bench.texts[0])
        seconds.append(time.perf_counter() - start)
    note = f"{(time.process_time() - before) / bench.rounds:.1f} s of processor time"
    return Row(SECTION, "a first typed prompt, opening the model included", "<= 3 s", seconds, "s", note)


def _list(bench: Bench, run: Run, model: str) -> Row:
    """Scoring a list over the extraction of the same prompts."""
    template = run.manifest.template
    texts = bench.texts
    opened = load_model(model, device=bench.chat_model.device, dtype=bench.chat_model.dtype)

    def read() -> np.ndarray:
        options = (template.system_prompt, template.thinking, template.token_limit)
        return extract(opened, texts, *options, day=template.day).hidden

    expected = run.directions.project(read())
    scores = np.array([scored.projection for scored in score(opened, run, texts)])
    apart = float(np.abs(scores - expected).max())
    seconds = in_turn({"list": lambda: score(opened, run, texts), "extraction": read}, bench.rounds)
    ratio = np.array(seconds["list"]) / np.array(seconds["extraction"])
    note = f"{len(texts)} prompts; to {apart:.0e} the same numbers"
    return Row(SECTION, "a list over the extraction of its prompts", "<= 1.1 x", ratio.tolist(), "x", note, seconds)


def _evidence(run: Run) -> Row:
    """Evidence of the run's prompts with made-up activations, in the time of all cores."""
    is_harmful = run.prompts["label"].eq("harmful").to_numpy()
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((SITES, len(run.prompts), WIDTH), dtype=np.float32)
    # Later sites tell the labels apart better.
    hidden[:, :, 0] += 4 * np.linspace(0, 1, SITES, dtype=np.float32)[:, None] * is_harmful
    start, busy = time.perf_counter(), time.process_time()
    analyse(hidden.transpose(1, 0, 2), run.prompts)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    n_fitted = int(run.rows().sum())
    note = f"{busy:.1f} s of processor time; and {len(run.prompts) - n_fitted} prompts of transfer sets"
    return Row(SECTION, f"evidence of {n_fitted} x {SITES} x {WIDTH}", "<= 6 s", [seconds], "s", note)
