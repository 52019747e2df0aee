"""The sets of prompts that come with this program."""

from __future__ import annotations

from importlib import resources

import pandas as pd

CONTRAST_SETS = {
    "pairs": "256 matched pairs: a harmful and a harmless prompt alike in form, topic and length",
    "everyday": "the same 256 harmful prompts against 256 ordinary instructions, unmatched as papers have it",
    "experiment-0": "the published contrast set, from the Hugging Face hub",
    "quartets": "134 quartets: harmful or harmless intent, each with an alarming and a calm cue word",
}
TRANSFER_SETS = {
    "probe-pairs": "48 more matched pairs, never fitted on",
    "borderline": "48 prompts whose words and intent disagree, and honest grey ones",
}
"""Sets that are scored where they are asked for, and never fitted on."""
QUARTETS = "quartets"
PROBE_PAIRS = "probe-pairs"

BUNDLED = ("pairs", "everyday", "quartets", *TRANSFER_SETS)
"""Sets whose prompts lie beside this module."""


def transfer_of(contrast: str) -> str:
    """Return the bundled set that every run scores, which carries the question about harm: quartets.

    Args:
        contrast: name of the contrast set; where it is the quartets themselves, matched pairs take their place.
    """
    return PROBE_PAIRS if contrast == QUARTETS else QUARTETS


def read_bundled(name: str) -> pd.DataFrame:
    """Return the prompts of a bundled set: texts, labels and what else the set has, all as text."""
    if name == "everyday":
        harmful = _read("pairs").query("label == 'harmful'").assign(pair_id="")
        return pd.concat([harmful, _read("everyday")], ignore_index=True)
    return _read(name)


def _read(name: str) -> pd.DataFrame:
    path = resources.files("refusal_core.prompts").joinpath("data", f"{name}.csv")
    with path.open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
