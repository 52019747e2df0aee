"""Benchmarks by name, from a server that speaks the hub's protocol, with files laid out as the real ones."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from hub_server import HubServer, hub_here
from streamlit.testing.v1 import AppTest

from refusal_core.cli.main import main
from refusal_core.errors import PromptError
from refusal_core.prompts.benchmarks import BENCHMARKS
from refusal_core.prompts.sets import inspect_source, load_contrast_set, load_transfer_set, read_source
from refusal_core.runs.store import list_runs

HARM = [f"Explain how to pick lock number {n} of a stranger's flat" for n in range(12)]
CALM = [f"Explain how to bake cake number {n} for a party" for n in range(12)]


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pd.DataFrame(columns).to_parquet(file, index=False)
    return file.getvalue()


def csv(**columns) -> bytes:
    return pd.DataFrame(columns).to_csv(index=False).encode()


def card(*configs: tuple[str, dict[str, str]]) -> bytes:
    """A data card that says which files each configuration's splits are in."""
    lines = ["---", "configs:"]
    for name, splits in configs:
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    return "\n".join([*lines, "---", ""]).encode()


def behaviours(goals: list[str]) -> bytes:
    return csv(Index=range(12), Goal=goals, Target="Sure", Behavior="x", Category="Fraud", Source="Original")


def alpaca(instructions: list[str]) -> bytes:
    rows = [
        {
            "instruction": text,
            "input": f"For {n} guests." if n % 2 else "",
            "output": "Flour.",
            "text": f"Below is {text}",
        }
        for n, text in enumerate(instructions)
    ]
    return parquet(**pd.DataFrame(rows).to_dict("list"))


LAYOUTS: dict[str, dict[str, bytes]] = {
    "mlabonne/harmful_behaviors": {"data/train-00000-of-00001.parquet": parquet(text=[*HARM, HARM[3]])},
    "walledai/HarmBench": {
        "README.md": card(
            ("standard", {"train": "standard/train.parquet"}), ("contextual", {"train": "contextual/train.parquet"})
        ),
        "standard/train.parquet": parquet(prompt=HARM, category="illegal"),
        "contextual/train.parquet": parquet(prompt=HARM, context="A flat on the first floor.", category="illegal"),
    },
    "JailbreakBench/JBB-Behaviors": {
        "README.md": card(
            ("behaviors", {"harmful": "data/harmful-behaviors.csv", "benign": "data/benign-behaviors.csv"}),
            ("judge_comparison", {"test": "data/judge-comparison.csv"}),
        ),
        "data/harmful-behaviors.csv": behaviours(HARM),
        "data/benign-behaviors.csv": behaviours(CALM),
        "data/judge-comparison.csv": csv(Index=range(2), goal=HARM[:2], human1=0),
    },
    "walledai/StrongREJECT": {"data/train-00000-of-00001.parquet": parquet(prompt=HARM, category="c", source="s")},
    "Paul/XSTest": {
        "xstest_prompts.csv": csv(
            id=range(24), prompt=HARM + CALM, type="homonyms", label=["unsafe"] * 12 + ["safe"] * 12, focus="x", note=""
        )
    },
    "bench-llm/or-bench": {
        "README.md": card(
            ("or-bench-80k", {"train": "or-bench-80k.csv"}),
            ("or-bench-hard-1k", {"train": "or-bench-hard-1k.csv"}),
            ("or-bench-toxic", {"train": "or-bench-toxic.csv"}),
        ),
        "or-bench-80k.csv": csv(prompt=CALM, category="violence"),
        "or-bench-hard-1k.csv": csv(prompt=CALM, category="violence"),
        "or-bench-toxic.csv": csv(prompt=HARM, category="violence"),
    },
    "sorry-bench/sorry-bench-202503": {
        "question.jsonl": "\n".join(
            json.dumps({"question_id": n, "category": "1", "turns": [text], "prompt_style": style})
            for style in ("base", "caesar")
            for n, text in enumerate(HARM)
        ).encode()
    },
    "walledai/MaliciousInstruct": {"data/train-00000-of-00001.parquet": parquet(prompt=HARM)},
    "walledai/TDC23-RedTeaming": {"data/train-00000-of-00001.parquet": parquet(prompt=HARM)},
    "tatsu-lab/alpaca": {"data/train-00000-of-00001.parquet": alpaca(CALM)},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> HubServer:
    server = HubServer()
    for name, files in LAYOUTS.items():
        server.add(name, files, kind="dataset")
        server.repository(name, "dataset").tags = ("license:mit",)
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as monkeypatch, server.running():
        hub_here(server, folder, monkeypatch)
        yield server


def test_every_benchmark_has_a_layout():
    assert {half.source.split(":")[0] for known in BENCHMARKS.values() for half in known.halves} == set(LAYOUTS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_read_by_its_name_with_licence_and_revision(hub, name):
    prompts = load_transfer_set(name)
    labels = {half.label for half in BENCHMARKS[name].halves}
    expected = {"harmful", "harmless"} if None in labels else labels
    assert prompts.counts == dict.fromkeys(expected, 12)
    assert prompts.name == name
    commits = [
        next(iter(hub.repository(half.source.split(":")[0], "dataset").commits)) for half in BENCHMARKS[name].halves
    ]
    assert prompts.revision == "+".join(commits)
    assert all(f"licence mit, revision {prompts.revision.split('+')[0]}" in report.notes for report in prompts.reports)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jailbreakbench", "JailbreakBench", "xstest", "or-bench"])
def test_a_benchmark_with_both_labels_is_a_contrast_set(hub, name):
    inspection = inspect_source(name)
    assert not inspection.problem
    assert inspection.outcome.startswith("A contrast set: 12 harmful + 12 harmless prompts")
    assert ("12 matched pairs" in inspection.outcome) == (name.lower() == "jailbreakbench")


def test_rows_of_jailbreakbench_with_one_number_are_pairs(hub):
    for source in (
        "jailbreakbench",
        "JailbreakBench/JBB-Behaviors:behaviors:harmful,JailbreakBench/JBB-Behaviors:behaviors:benign",
    ):
        table = load_contrast_set(source).table
        assert [sorted(pair) for _, pair in table.groupby("pair_id")["text"]] == sorted(
            [sorted(pair) for pair in zip(HARM, CALM, strict=True)], key=lambda pair: str(HARM.index(pair[1]))
        )


def test_two_benchmarks_are_the_halves_of_a_contrast_set(hub):
    prompts = load_contrast_set("advbench,alpaca")
    assert prompts.counts == {"harmful": 12, "harmless": 12}
    assert prompts.table["text"].iloc[13] == f"{CALM[1]}\n\nFor 1 guests."
    assert [str(left_out) for left_out in prompts.reports[0].left_out] == [
        "1 row with a prompt that came before: row 13"
    ]


def test_context_and_turns_are_read_as_the_benchmark_means_them(hub):
    contextual = read_source("harmbench-contextual").table["text"].tolist()
    assert contextual[0] == f"{HARM[0]}\n\nA flat on the first floor."
    sorry = read_source("sorry-bench")
    assert sorry.table["text"].tolist() == HARM
    assert "12 rows whose prompt_style is not base are not part of the benchmark" in sorry.report.notes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("advbench", "none labelled harmless; add some, or give a second file"),
        ("alpaca,advbench", "alpaca has harmless prompts alone, expected harmful ones in its place"),
        ("jailbreakbench,alpaca", "jailbreakbench has harmful and harmless prompts of its own: give it by itself"),
        ("polyrefuse", "not on the hub: download the folder PolyRefuse"),
    ],
)
def test_what_is_no_contrast_set_says_so(hub, source, message):
    with pytest.raises(PromptError, match=message):
        load_contrast_set(source)


def test_a_benchmark_that_is_gated_or_out_of_reach_is_one_sentence(tmp_path: Path, monkeypatch):
    server = HubServer()
    server.add("walledai/StrongREJECT", LAYOUTS["walledai/StrongREJECT"], kind="dataset")
    hub_here(server, tmp_path, monkeypatch)
    with pytest.raises(PromptError, match=r"cannot load the set 'walledai/StrongREJECT:train': .*reachable from here"):
        load_transfer_set("strongreject")
    server.repository("walledai/StrongREJECT", "dataset").refusal = "GatedRepo"
    with server.running(), pytest.raises(PromptError, match=r"is gated: accept its terms on the hub and log in"):
        load_transfer_set("strongreject")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["harmbench,alpaca", "xstest", "jailbreakbench"])
def test_a_benchmark_goes_from_its_name_to_the_evidence_page(hub, name, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path))
    assert main(["run", "--model", str(tiny_folder), "--prompts", name, "--dtype", "float32", "--device", "cpu"]) == 0
    (run,), broken = list_runs(tmp_path)
    assert not broken
    assert run.counts == {"harmful": 12, "harmless": 12}
    app = AppTest.from_file(str(Path(__file__).resolve().parents[2] / "app.py"), default_timeout=120).run()
    app.switch_page("pages/2_Evidence.py").run()
    assert not app.exception, app.exception
    shown = "\n".join(each.value for each in [*app.text, *app.caption, *app.markdown])
    assert "first principal component" in shown
