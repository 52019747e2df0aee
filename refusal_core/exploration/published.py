"""The published tables of Experiment 0, read-only, to compare runs with.

Pierucci (2025), Qwen/Qwen2.5-1.5B-Instruct, 256 + 256 prompts, 28 layers (MIT). The csv files are the reference; they
are rounded to about three digits, and p-values below 1e-308 have underflowed.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

import pandas as pd

from refusal_core.prompts.labels import LABELS

PUBLISHED_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
PUBLISHED_LAYERS = 28
PUBLISHED_BAND = (14.0, 20.0)
PUBLISHED_BAND_LAYER = 18


PUBLISHED_NAMES = {
    "in_sample_d": "cohens_d",
    "mean_crossings": "overlap_count",
    **{
        f"{label}_projection_{number}": f"{label}_{number}"
        for label in LABELS
        for number in ("mean", "std", "min", "max", "range")
    },
}
"""What the study calls a column of :attr:`refusal_core.runs.run.Run.layer_stats`, where it is not the same."""


@lru_cache(maxsize=1)
def published_table() -> pd.DataFrame:
    """Return the 28 published rows under our names, ``site`` first.

    They are those of ``validation_results.csv`` and ``variance_by_layer.csv``. The study read Hugging Face
    ``hidden_states[layer + 1]``, so its layer 27 is our final norm, site 28. Columns that a run does not have keep
    their published names.
    """
    validation = _csv("validation_results.csv")
    variance = _csv("variance_by_layer.csv")
    table = validation.merge(variance, on="layer", validate="one_to_one")
    last = table["layer"] == PUBLISHED_LAYERS - 1
    table.insert(0, "site", table["layer"].where(~last, PUBLISHED_LAYERS))
    return table.rename(columns={theirs: ours for ours, theirs in PUBLISHED_NAMES.items()})


def _csv(name: str) -> pd.DataFrame:
    with resources.files("refusal_core.exploration").joinpath("published_tables", name).open(encoding="utf-8") as file:
        return pd.read_csv(file)
