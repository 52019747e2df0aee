"""Activations with a direction planted in noise, and the prompt tables they belong to."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusal_core.analysis.directions import fit_directions
from refusal_core.analysis.groups import assign_folds
from refusal_core.analysis.resampling import Draws, draw_bootstrap
from refusal_core.evidence.evaluation import evaluate
from refusal_core.runs.evidence_tables import Evidence

WIDTH = 24
QUICK = {"permutations": 199, "draws": 200, "random_directions": 200, "repeats": 2, "learning_draws": 4}
"""Options of an evaluation that takes a tenth of a second."""


def prompt_table(n: int, n_probes: int = 0, paired: bool = True, seed: int = 0) -> pd.DataFrame:
    """`n` fitted prompts and `n_probes` transfer prompts, harmful and harmless in turn, neighbours paired."""
    rng = np.random.default_rng(seed)
    total = n + n_probes
    words = np.array(
        ["how", "open", "lock", "bake", "plan", "write", "letter", "flat", "cake", "city", "garden", "road"]
    )
    fitted = np.arange(total) < n
    pair = np.array([f"pair-{k // 2}" for k in range(total)], dtype=object)
    return pd.DataFrame(
        {
            "prompt_id": [f"{k:012x}" for k in range(total)],
            "text": [
                " ".join(rng.choice(words, rng.integers(5, 12))) + "?" * int(rng.random() < 0.5) for _ in range(total)
            ],
            "label": np.where(np.arange(total) % 2 == 0, "harmful", "harmless"),
            "pair_id": pair if paired else np.where(fitted, None, pair),
            "source": np.where(fitted, "pairs", "probe-pairs"),
            "fitted": fitted,
            "n_tokens": rng.integers(30, 50, total),
            "refusal_log_odds": rng.normal(size=total),
        }
    )


def harmful_rows(prompts: pd.DataFrame) -> np.ndarray:
    return prompts["label"].eq("harmful").to_numpy()


def planted_run(
    seed: int, strengths: list[float], n: int = 64, n_probes: int = 48, paired: bool = True
) -> tuple[np.ndarray, pd.DataFrame]:
    """Noise with an offset, and at every site harm of its strength, in standard deviations, along one direction."""
    rng = np.random.default_rng(seed)
    prompts = prompt_table(n, n_probes, paired, seed)
    hidden = rng.normal(size=(n + n_probes, len(strengths), WIDTH)) + 5.0
    hidden[:, :, 0] += harmful_rows(prompts)[:, None] * np.array(strengths)
    return hidden.astype(np.float32), prompts


def evaluate_run(hidden: np.ndarray, prompts: pd.DataFrame, **options) -> Evidence:
    """The evidence of made-up activations, quickly."""
    fitted = prompts["fitted"].to_numpy()
    directions = fit_directions(hidden[fitted], harmful_rows(prompts)[fitted])
    return evaluate(hidden, prompts, directions, **(QUICK | options))[0]


def labels_and_groups(n: int, paired: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Harmful and harmless in turn; neighbours are pairs, or every prompt is by itself."""
    return np.arange(n) % 2 == 0, np.arange(n) // 2 if paired else np.arange(n)


def bootstrap_of(labels: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> Draws:
    """Bootstrap draws in ten folds."""
    fold = assign_folds(labels, groups, 10, 1, np.random.default_rng(0))
    return draw_bootstrap(labels, groups, fold, draws, np.random.default_rng(seed))
