"""A run's evidence as one self-contained HTML page: no server, no network, no script but Plotly's own."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go

from refusal_core.behaviour import measurement
from refusal_core.evidence.answers import QUESTIONS, answer
from refusal_core.evidence.findings import notes, overview_table, verdict
from refusal_core.figures import behaviour as behaviour_figures
from refusal_core.figures import intervention as intervention_figures
from refusal_core.figures.evidence import FIGURES, cosines, overview
from refusal_core.figures.layers import separation, three_questions
from refusal_core.figures.panels import linked
from refusal_core.figures.style import page_look
from refusal_core.intervention import effects
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.manifest import InterventionManifest
from refusal_core.runs.run import T_POST, Run

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2321; max-width: 980px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.8rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
td, th { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #dadfdb; }
.fact { color: #5b6663; }
"""


def report_html(
    run: Run,
    evidence: Evidence,
    replies: pd.DataFrame | None = None,
    interventions: tuple[pd.DataFrame, InterventionManifest] | None = None,
) -> str:
    """Return the report as HTML; every text that comes from the run is escaped.

    Args:
        run: the run.
        evidence: its evidence.
        replies: the run's recorded behaviour, when there is one.
        interventions: the run's recorded interventions and their manifest, when there are some.
    """
    site = run.best_site()
    counts = run.manifest.prompts.counts
    facts = (
        f"{run.model_name}, {run.n_layers} layers; contrast set {run.contrast_name}: {counts['harmful']} harmful, "
        f"{counts['harmless']} harmless prompts; {run.manifest.compute.dtype}; "
        f"{'' if run.read_at == T_POST else f'read at {run.read_at}; '}made {run.manifest.created}."
    )
    table = overview_table(evidence)
    table.index = [run.site_label(int(site)) for site in table.index]
    parts = [
        f"<h1>{html.escape(run.model_name)} on {html.escape(run.contrast_name)}</h1>",
        f'<p class="fact">{html.escape(facts)}</p>',
        *(f'<p class="fact">{html.escape(note)}</p>' for note in (run.direction_note,) if note),
        f"<p><strong>{html.escape(verdict(evidence))}</strong></p>",
        *(f'<p class="fact">{html.escape(note)}</p>' for note in notes(run)),
        # The one copy of Plotly's script that all figures share.
        _figure(overview(run, evidence), with_script=True),
        "<h2>Projections, layer by layer</h2>",
        _figure(linked(run, site)),
        "<h2>Effect size and separation</h2>",
        _figure(three_questions(run)),
        _figure(separation(run)),
    ]
    for name, question in QUESTIONS.items():
        parts += [f"<h2>{html.escape(question)}</h2>", f"<p>{html.escape(answer(evidence, name, site))}</p>"]
        parts.append(_figure(FIGURES[name](run, evidence, site)))
        if name == "space":
            parts.append(_figure(cosines(run, evidence)))
    if replies is not None:
        numbers = measurement.correlation_by_site(run, replies)
        parts += [
            "<h2>What the model does</h2>",
            f"<p>{html.escape(measurement.describe_behaviour(run, replies, numbers, site))}</p>",
            _figure(behaviour_figures.against_refusing(run, replies, site)),
            *(
                _figure(behaviour_figures.over_layers(run, numbers, number, site))
                for number in behaviour_figures.NUMBERS
            ),
        ]
    if interventions is not None:
        edited, manifest = interventions
        summary = effects.summarise(run, edited)
        items = "".join(f"<li>{html.escape(line)}</li>" for line in effects.reading(run, edited, summary))
        parts += [
            "<h2>What changes when the direction is ablated or added</h2>",
            f"<p><strong>{html.escape(effects.headline(run, summary))}</strong></p>",
            f"<ul>{items}</ul>",
        ]
        for sweep, (*_, title) in intervention_figures.SWEEPS.items():
            parts += [f"<h3>{title}</h3>", _figure(intervention_figures.over_layers(run, summary, sweep))]
        parts.append(_figure(intervention_figures.doses(run, summary, manifest.dose_layer, manifest.dose_position)))
    parts += ["<h2>The layers in numbers</h2>", table.to_html(float_format=lambda value: f"{value:.2f}", border=0)]
    title = html.escape(f"{run.model_name} on {run.contrast_name}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _figure(figure: go.Figure, with_script: bool = False) -> str:
    figure.update_layout(page_look(dark=False))
    return str(figure.to_html(full_html=False, include_plotlyjs=with_script, config={"displaylogo": False}))
