"""The verb ``prompts``, and the options that say what is in a file of prompts."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from refusal_core.cli.parameters import AsJson, print_json, printable
from refusal_core.options import RunOptions
from refusal_core.prompts.labels import Choice, parse_labels
from refusal_core.prompts.report import PromptReport

TextColumn = Annotated[str | None, Parameter(help=RunOptions.model_fields["text_column"].description)]
LabelColumn = Annotated[str | None, Parameter(help=RunOptions.model_fields["label_column"].description)]
Labels = Annotated[tuple[str, ...], Parameter(name="--label", help=RunOptions.model_fields["label"].description)]

_SHOWN_CHARACTERS = 100


def prompts(
    source: Annotated[
        str, Parameter(help="Bundled set, file, set on the hub, or two sources without labels as HARMFUL,HARMLESS.")
    ],
    /,
    *,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    label: Labels = (),
    as_json: AsJson = False,
) -> None:
    """Show which prompts would be read from a source, which are left out, and why."""
    from refusal_core.prompts.sets import inspect_source

    inspection = inspect_source(source, Choice(text_column, label_column, parse_labels(label)))
    if as_json:
        reports = [asdict(report) for report in inspection.reports]
        print_json({"reports": reports, "contrast_set": not inspection.problem, "outcome": inspection.outcome})
        return
    for report in inspection.reports:
        _print_report(report)
    print(inspection.outcome)


def print_left_out(report: PromptReport) -> None:
    """Say on stderr which rows of a file are not read."""
    for left_out in report.left_out:
        print(f"{report.source}: left out: {left_out}", file=sys.stderr)


def _print_report(report: PromptReport) -> None:
    facts = report.facts()
    width = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        print(f"{name:<{width}}{printable(value)}")
    print("First prompts")
    for label, text in report.first_rows:
        shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
        print(f"  {label or '–':<10}{printable(shown)}")
    print()
