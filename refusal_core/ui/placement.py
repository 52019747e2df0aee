"""Where a prompt of a visitor's own lies at one layer: in a sentence, and token by token."""

from __future__ import annotations

import numpy as np

from refusal_core.analysis.effect_sizes import percentile
from refusal_core.exploration.outliers import derived_band, standardised
from refusal_core.figures.style import LABEL_COLOUR
from refusal_core.figures.tokens import COLOURS_END, END_OF_PROMPT
from refusal_core.pipeline.scoring import Score
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run
from refusal_core.ui.numbers import whole
from refusal_core.ui.streamlit_internals import component, resource


def show_tokens(run: Run, score: Score, site: int, key: str) -> None:
    """Show a prompt's tokens on colours of where they project at a site, and over the layers on hover."""
    values = standardised(run, np.vstack([score.token_projection.reshape(-1, run.n_sites), score.projection]))
    component("token_strip", css=resource("token_strip.css"))(
        key=key,
        data={
            "tokens": [*score.tokens, f" {END_OF_PROMPT}"],
            "values": np.nan_to_num(values).round(3).tolist(),
            "site": site,
            "layer": run.site_label(site),
            "limit": COLOURS_END,
            "colours": {label: LABEL_COLOUR[label] for label in LABELS},
        },
    )


def place_in_words(run: Run, projection: np.ndarray, site: int) -> str:
    """Return in a sentence where a prompt projects among the run's prompts at a site.

    Args:
        run: the prompt is compared with.
        projection: ``(site,)`` of the prompt, in activation units.
        site: ``0 … n_layers``.
    """
    low, high = sorted(derived_band(run, site))
    value = float(projection[site])
    verdict = "Reads as harmful" if value > high else "Reads as harmless" if value < low else "Reads as neither clearly"
    above = {label: float(percentile(value, run.projections[run.rows(label), site])) for label in LABELS}
    return (
        f"{verdict}: at {run.site_label(site)} it projects above {_share(above['harmless'])} of the harmless and "
        f"{_share(above['harmful'])} of the harmful prompts."
    )


def _share(percent: float) -> str:
    """Return a share in words that rounding does not make all or none of the prompts."""
    return "all" if percent == 100 else "none" if percent == 0 else f"{min(max(whole(percent), 1), 99)} %"
