"""Server time of what a visitor does on the pages and what a page sends, on made-up runs; what Chromium then takes."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from streamlit.testing.v1 import AppTest

from benchmarks import chromium
from benchmarks.rounds import Bench, Row
from refusal_core.analysis.effect_sizes import layer_statistics
from refusal_core.annotations import raters
from refusal_core.behaviour.openings import read_rules
from refusal_core.figures.panels import AXES
from refusal_core.options import TOKEN_POSITION
from refusal_core.pipeline.analysis import analyse
from refusal_core.prompts.sets import prompt_id
from refusal_core.runs import store
from refusal_core.runs.additions import save_addition
from refusal_core.runs.manifest import (
    BehaviourCompute,
    BehaviourManifest,
    ComputeRecord,
    ContrastRecord,
    Manifest,
    ModelRecord,
    RulesRecord,
    TemplateRecord,
    TransferRecord,
)
from refusal_core.runs.run_files import RunTables

SECTION = "dashboard"
SIZES = {512: 200, 25_000: 1000}
"""Prompts of a run, and the milliseconds that one interaction may take the server."""
MOST_SENT = 2.0
"""Megabytes that a page may send."""
_LAYERS, _WIDTH, _RATED = 28, 48, 60
_ROOT = Path(__file__).resolve().parent.parent
_SHIPPED = _ROOT / "cache" / "qwen2.5-coder-1.5b-instruct--pairs--256x256--06ca610e--float32"
"""What edits of its model change was measured on this run, which has 512 fitted prompts."""

Act = Callable[[AppTest, int], object]


def rows(bench: Bench) -> list[Row]:
    """Milliseconds of the server's processor a rerun, and megabytes of a page; the model of the bench is not asked.

    A rerun is of the whole page, also where a browser asks for a fragment of it alone. What a page takes when it is
    first seen, by the first visitor, stands beside it and has no limit. Seconds in Chromium follow.
    """
    found = []
    for count, most in SIZES.items():
        with _cache() as folder:
            _made_up(count, folder, seed=1)
            run_id = _made_up(count, folder, seed=0)
            for page, acts in _PAGES.items():
                found += _of_page(page, f"{count} prompts, {page}", run_id, acts, most, bench.rounds)
    with _cache() as folder:
        shutil.copytree(_SHIPPED, folder / _SHIPPED.name)
        for page, acts in _SHIPPED_PAGES.items():
            most = SIZES[min(SIZES)]
            found += _of_page(page, f"a shipped run, {page}", _SHIPPED.name, acts, most, bench.rounds)
    return found + chromium.rows(bench.rounds)


def _of_page(page: str, name: str, run_id: str, acts: dict[str, Act], most: float, rounds: int) -> list[Row]:
    """What a page takes when it is first seen, what it sends, and what each act on it takes."""
    app, (wall, busy) = _opened(page, run_id)
    sent = sum(node.proto.ByteSize() for node in _elements(app)) / 1e6
    found = [
        Row(SECTION, f"{name}: first seen", "no limit", [busy], "ms", f"{wall:.0f} ms by the clock"),
        Row(SECTION, f"{name}: sent", f"<= {MOST_SENT:g} MB", [sent], "MB"),
    ]
    for act_name, act in acts.items():
        walls, busies = _timed(app, act, rounds)
        note = f"{np.median(walls):.0f} ms by the clock"
        found.append(Row(SECTION, f"{name}: {act_name}", f"<= {most} ms", busies, "ms", note, {"clock": walls}))
    return found


def _again(app: AppTest, place: int) -> object:
    return app


def _layer(app: AppTest, place: int) -> object:
    field = next(each for each in app.number_input if each.label == "Layer")
    return field.set_value((7 * place + 3) % (_LAYERS + 1))


def _band(app: AppTest, place: int) -> object:
    field = next(each for each in app.number_input if each.label == "Lowest projection")
    return field.set_value(-0.1 * (place + 1))


def _search(app: AppTest, place: int) -> object:
    field = next(each for each in app.text_input if each.label == "Search the texts")
    return field.set_value(f"number {place + 1}")


def _follow(app: AppTest, place: int) -> object:
    view = app.session_state["view"]
    app.session_state["view"] = replace(view, prompt=_prompts(24)["prompt_id"][place])
    return app


def _axes(app: AppTest, place: int) -> object:
    field = next(each for each in app.selectbox if each.label == "Axes")
    return field.set_value(tuple(AXES)[(place + 1) % len(AXES)])


def _numbers(app: AppTest, place: int) -> object:
    view = app.session_state["view"]
    app.session_state["view"] = replace(view, question=("harm", "fit")[place % 2])
    return app


def _next(app: AppTest, place: int) -> object:
    return next(each for each in app.button if each.label == "Next").click()


def _ranks_layer(app: AppTest, place: int) -> object:
    app.session_state["view"] = replace(app.session_state["view"], part="Rank of the prompts")
    return _layer(app.run(), place) if not place else _layer(app, place)


def _part(app: AppTest, place: int) -> object:
    field = app.segmented_control(key="part_field")
    return field.set_value(field.options[(place + 1) % len(field.options)])


def _measure(app: AppTest, place: int) -> object:
    field = next(each for each in app.selectbox if each.label == "Measure")
    return field.select_index(1 + place % (len(field.options) - 1))


def _rate(app: AppTest, place: int) -> object:
    if not place:
        next(each for each in app.text_input if each.label.startswith("Your name")).set_value("Benchmark")
        app.segmented_control(key="rate_size").set_value(0)
        next(each for each in app.button if each.label == "Begin").click()
        app.run()
    return next(each for each in app.button if (each.key or "").startswith(f"rate_{1 + place % 7}_")).click()


def _other_run(app: AppTest, place: int) -> object:
    field = next(each for each in app.selectbox if each.label == "Chosen")
    return field.select_index(((field.index or 0) + 1) % len(field.options))


_PAGES: dict[str, dict[str, Act]] = {
    "Home": {"drawn again": _again},
    "1_Layers": {"another layer": _layer, "other axes": _axes, "a prompt followed": _follow},
    "2_Evidence": {"another layer": _layer, "another question": _numbers},
    "3_Outliers": {"another layer": _layer, "another band": _band, "next prompt": _next, "a search": _search},
    "5_Behaviour": {
        "drawn again": _again,
        "another layer": _layer,
        "a prompt followed": _follow,
        "another part": _part,
    },
    "7_Ratings": {"another layer": _layer, "a prompt followed": _follow},
    "8_Rate": {"a prompt rated": _rate},
    "9_Compare": {"drawn again": _again, "another layer": _ranks_layer, "another part": _part},
    "10_Runs": {"another run": _other_run},
}
_SHIPPED_PAGES: dict[str, dict[str, Act]] = {"6_Causality": {"another layer": _layer, "another measure": _measure}}


def _opened(page: str, run_id: str) -> tuple[AppTest, tuple[float, float]]:
    """A page, and the milliseconds by the clock and of the processor that it took."""
    app = AppTest.from_file(str(_ROOT / "app.py"), default_timeout=300)
    app.query_params["run"] = run_id
    first = _run(app)
    if page != "Home":
        app.switch_page(f"pages/{page}.py")
        first = _run(app)
    return app, first


def _timed(app: AppTest, act: Act, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds by the clock and of the processor in each round, after one that is not counted."""
    taken = []
    for place in range(rounds + 1):
        act(app, place)
        taken.append(_run(app))
    wall, busy = zip(*taken[1:], strict=True)
    return list(wall), list(busy)


def _run(app: AppTest) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    app.run()
    taken = 1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - processor)
    assert not app.exception, app.exception
    return taken


def _elements(app: AppTest) -> Iterator[Any]:
    for block in (app.main, app.sidebar):
        yield from (node for node in block if getattr(node, "proto", None) is not None)


@contextmanager
def _cache() -> Iterator[Path]:
    """A cache of its own, empty, for as long as it is needed."""
    before = os.environ.get("REFUSAL_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REFUSAL_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["REFUSAL_CACHE"]
            if before is not None:
                os.environ["REFUSAL_CACHE"] = before


def _made_up(count: int, cache: Path, seed: int) -> str:
    """Save a run with a planted direction, how its model replies, and what two people say of its prompts.

    Its evidence is that of its first prompts: those tables do not grow.
    """
    prompts = _prompts(count)
    is_harmful = prompts["label"].eq("harmful").to_numpy()
    hidden = np.random.default_rng(seed).normal(size=(len(prompts), _LAYERS + 1, _WIDTH)).astype(np.float32)
    hidden[:, :, 0] += np.where(is_harmful, 1, -1)[:, None] * np.linspace(0, 2, _LAYERS + 1, dtype=np.float32)
    few = np.r_[: min(SIZES), count : len(prompts)]
    analysis = analyse(hidden[few], prompts.iloc[few].reset_index(drop=True))
    projections = analysis.directions.project(hidden)
    stats = layer_statistics(projections[:count], is_harmful[:count], analysis.directions.magnitude)
    sets = [(name, table["label"].value_counts().to_dict()) for name, table in prompts.groupby("source", sort=False)]
    created = "2026-01-01T00:00:00+00:00"
    manifest = Manifest(
        run_id=f"made-up-{seed}--pairs--{count}--00000000--float32",
        created=created,
        model=ModelRecord(
            name=f"made-up-{seed}",
            source="folder",
            revision=None,
            sha256=f"{seed:064x}",
            architecture="none",
            n_layers=_LAYERS,
            d_model=_WIDTH,
            quantisation=None,
            licence=None,
        ),
        prompts=ContrastRecord(name=sets[0][0], counts=sets[0][1]),
        transfer=tuple(TransferRecord(name=name, counts=counts) for name, counts in sets[1:]),
        template=TemplateRecord(
            sha256=None,
            system_prompt=None,
            default_system_prompt=None,
            token_position=TOKEN_POSITION,
            token_limit=512,
        ),
        compute=ComputeRecord(device="cpu", dtype="float32", seed=0),
    )
    columns = analysis.layer_stats.columns.difference(stats.columns)
    stats = pd.concat([stats, analysis.layer_stats[columns]], axis=1)[analysis.layer_stats.columns]
    tables = RunTables(prompts, projections, projections, stats, analysis.directions)
    run = store.save_run(manifest, tables, analysis.evidence.to_tables(), cache=cache)
    rules = read_rules()
    measured = BehaviourManifest(
        created=created,
        compute=BehaviourCompute(device="cpu", dtype="float32"),
        opening_tokens=16,
        rules=RulesRecord(sha256=rules.sha256, phrases=rules.phrases),
    )
    save_addition(run, _replies(prompts, projections[:, -1]), measured)
    for row, prompt in prompts[:_RATED].iterrows():
        for rater in ("A", "B"):
            raters.save_rating(rater, prompt["prompt_id"], prompt["text"], 5 - 3 * (row % 2), cache)
    return run.run_id


def _replies(prompts: pd.DataFrame, projection: np.ndarray) -> pd.DataFrame:
    """Openings as long as recorded ones; what projects further is refused more often."""
    log_odds = projection + np.random.default_rng(2).normal(size=len(prompts))
    opening = np.where(
        log_odds > 0,
        "I'm sorry, but I can't assist with what you ask in " + prompts["text"].str[-24:],
        "Certainly! Here are some steps that may help you with " + prompts["text"].str[-24:],
    )
    return pd.DataFrame(
        {
            "prompt_id": prompts["prompt_id"],
            "phrase_log_odds": log_odds,
            "opening": opening,
            "opening_label": np.where(log_odds > 0, "refuses", "answers"),
        }
    )


def _prompts(count: int) -> pd.DataFrame:
    """Matched pairs to fit on and 48 probe pairs, as a run's table of prompts."""
    pairs = [("pairs", place, True) for place in range(count // 2)] + [
        ("probe-pairs", place, False) for place in range(48)
    ]
    table = pd.DataFrame(
        [
            (
                f"A {label} request for the benchmark, number {place} of {source}",
                label,
                f"{source}-{place}",
                source,
                fit,
            )
            for source, place, fit in pairs
            for label in ("harmful", "harmless")
        ],
        columns=["text", "label", "pair_id", "source", "fitted"],
    )
    table.insert(0, "prompt_id", [prompt_id(text) for text in table["text"]])
    categories = cycle(("Privacy", "Fraud", "Malware", "Harassment"))
    rng = np.random.default_rng(1)
    return table.assign(
        category=[next(categories) for _ in range(len(table))],
        note=None,
        n_tokens=rng.integers(8, 40, len(table)),
        first_token=np.where(table["label"].eq("harmful"), "I", "Sure"),
        refusal_log_odds=rng.normal(np.where(table["label"].eq("harmful"), 1.0, -1.0)),
    )
