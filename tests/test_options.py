"""Options: checked when given, the same after a round trip through the command line, and the same run as ever."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated

import pytest
from cyclopts import App

from refusal_core.cli.main import app
from refusal_core.cli.parameters import Flat
from refusal_core.errors import RefusalError
from refusal_core.options import (
    DTYPES,
    ESTIMATORS,
    BehaviourOptions,
    InterventionOptions,
    ModelOptions,
    Options,
    PositionOptions,
    RunOptions,
)
from refusal_core.pipeline.request import run_id
from refusal_core.prompts.sets import CONTRAST_SETS

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(path.parent for path in (ROOT / "cache").glob("*/manifest.json"))
KINDS = (RunOptions, ModelOptions, BehaviourOptions, InterventionOptions, PositionOptions)
AWKWARD = [
    "--seed=3",
    "-x",
    "--",
    "a b",
    "a,b",
    "ü “q”",
    "{'a': 1}",
    "[1, 2]",
    "x=y",
    "@file",
    "1",
    "true",
    "a\nb",
    "$a",
]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name[:40])
def test_the_request_of_a_shipped_run_has_its_name(folder):
    """Without the model: what tells a run from others is in its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    described = manifest["model"]
    options = RunOptions(model=described["name"], prompts=manifest["prompts"]["name"])
    identity = options.identity(
        model=described["sha256"],
        prompts=manifest["prompts"]["sha256"],
        transfer=[(chosen["name"], chosen["sha256"]) for chosen in manifest["transfer"]],
    )
    named = run_id(described["name"], options.prompts, manifest["prompts"]["counts"], identity, "float32")
    assert named == folder.name


def test_there_are_shipped_runs_to_be_found_again():
    assert len(SHIPPED) >= 3


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 1}, False),
        ({"system_prompt": "Be brief."}, False),
        ({"thinking": False}, False),
        ({"reasoning_effort": "low"}, False),
        ({"load_in": "4bit"}, False),
        ({"estimator": "whitened"}, False),
        ({"estimator": "mean-difference"}, True),
        ({"thinking": None, "load_in": None}, True),
        # What computes a run, and where, does not tell it from others.
        ({"device": "cuda:1", "engine": "ray", "actors": 3, "keep_activations": True, "token_limit": 99}, True),
    ],
)
def test_what_makes_another_run(change, same):
    def identity(**options: object) -> dict:
        return RunOptions(model="m", **options).identity("f", "p", [("t", "s")])

    assert (identity(**change) == identity()) is same


def parsed(kind: type[Options], arguments: tuple[str, ...]) -> Options:
    """Read arguments as the command line does."""

    def read(*, options=None):
        return kind() if options is None else options

    read.__annotations__["options"] = Annotated[kind | None, Flat] if kind is not RunOptions else Annotated[kind, Flat]
    program = App(default_command=read, default_parameter=app.default_parameter, result_action="return_value")
    return program(list(arguments), exit_on_error=False, print_error=False)


def drawn(kind: type[Options], rng: random.Random) -> Options:
    """Draw options at random: each at its default, or at another value that its type allows."""
    texts = [*AWKWARD, "".join(map(chr, rng.choices(range(32, 0x2FF), k=8)))]
    values = {
        "limit_per_label": range(8, 99),
        "token_limit": range(8, 999),
        "thinking": (True, False),
        "reasoning_effort": ("none", "low", "medium", "high"),
        "keep_activations": (True,),
        "load_in": ("8bit", "4bit"),
        "dtype": DTYPES,
        "estimator": tuple(ESTIMATORS),
        "seed": range(9),
        "actors": range(1, 9),
        "random_directions": range(2, 9),
        "positions": range(1, 9),
        "tokens": ("last",),
    }
    given: dict[str, object] = {"model": rng.choice(texts)} if kind is RunOptions else {}
    for name in kind.model_fields:
        if name == "engine" or rng.random() < 0.5:
            continue
        if name in ("transfer", "label", "control_layers"):
            # In a repeated option cyclopts reads a text that is JSON as such; no transfer set and no label is named so.
            repeated = range(40) if name == "control_layers" else [text for text in texts if not text.startswith("[")]
            given[name] = tuple(rng.choices(repeated, k=rng.randint(1, 3)))
        elif name == "layer_range":
            given[name] = (rng.randint(0, 9), rng.randint(0, 9))
        else:
            given[name] = rng.choice(values.get(name, texts))
    if "actors" in given:
        given["engine"] = "ray"
    return kind(**given)


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_the_same_after_a_round_trip_through_the_command_line(kind):
    rng = random.Random(0)
    for _ in range(100):
        options = drawn(kind, rng)
        assert parsed(kind, options.arguments()) == options, options.arguments()


def test_nothing_typed_becomes_an_option_of_its_own():
    options = RunOptions(model="--model", system_prompt="--seed=3; rm -rf /", revision="-r", transfer=("--", "-x"))
    assert all(argument.startswith("--") and "=" in argument for argument in options.arguments())
    assert "--system-prompt=--seed=3; rm -rf /" in options.arguments()


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (RunOptions, {}, "expected a value for model, got none"),
        (RunOptions, {"model": ""}, "expected a text that is not empty for model, got ''"),
        (RunOptions, {"model": "x", "seed": -1}, "expected 0 or more for seed, got -1"),
        (RunOptions, {"model": "x", "seed": "a"}, "expected a whole number for seed, got 'a'"),
        (RunOptions, {"model": "x", "seed": 0.5}, "expected a whole number for seed, got 0.5"),
        (RunOptions, {"model": "x", "limit_per_label": 1}, "expected 8 or more for limit_per_label, got 1"),
        (RunOptions, {"model": "x", "thinking": "perhaps"}, "expected on or off for thinking, got 'perhaps'"),
        (RunOptions, {"model": "x", "load_in": 4}, "expected 8bit or 4bit for load_in, got 4"),
        (RunOptions, {"model": "x", "limit": 9}, "there is no option 'limit'; the options are model, revision"),
        (RunOptions, {"model": "x", "transfer": "a.csv"}, "expected several values for transfer, got 'a.csv'"),
        (RunOptions, {"model": "x", "actors": 2}, "expected actors with the engine ray only, got 2 with process"),
        (RunOptions, {"model": "x", "engine": "ray", "device": "spread"}, "each actor of ray has one device"),
        (InterventionOptions, {"layer_range": (1,)}, "expected one more value for layer_range, got none"),
        (InterventionOptions, {"control_layers": ()}, "expected at least 1 value for control_layers, got ()"),
    ],
)
def test_what_is_wrong_with_an_option_is_one_sentence(kind, options, says):
    with pytest.raises(RefusalError) as caught:
        kind(**options)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_paths_may_be_paths_and_options_never_change(tmp_path):
    options = RunOptions(model=tmp_path, prompts=tmp_path / "a.csv", transfer=[tmp_path / "b.csv"])
    assert (options.model, options.transfer) == (str(tmp_path), (str(tmp_path / "b.csv"),))
    with pytest.raises(Exception, match="frozen"):
        options.seed = 3


def test_the_record_of_options_says_nothing_of_the_machine(tmp_path):
    for name in ("m", "harmful.csv", "harmless.csv", "t.csv", "x.jinja"):
        (tmp_path / name).touch()
    options = RunOptions(
        model=tmp_path / "m",
        prompts=f"{tmp_path / 'harmful.csv'},{tmp_path / 'harmless.csv'}",
        transfer=(str(tmp_path / "t.csv"),),
        chat_template=tmp_path / "x.jinja",
        seed=3,
    )
    record = options.record()
    assert str(tmp_path) not in json.dumps(record)
    assert record["prompts"] == "harmful.csv,harmless.csv"
    assert (record["model"], record["transfer"], record["chat_template"], record["seed"]) == (
        "m",
        ["t.csv"],
        "x.jinja",
        3,
    )
    assert set(record) == set(RunOptions.model_fields)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_a_label_and_one_sentence_of_help(kind):
    for name, field in kind.model_fields.items():
        assert field.title, name
        sentence = str(field.description).split(" (default:")[0]
        assert sentence.endswith("."), name
        assert ". " not in sentence, name


def test_the_help_names_every_bundled_contrast_set():
    assert not [name for name in CONTRAST_SETS if name not in str(RunOptions.model_fields["prompts"].description)]
