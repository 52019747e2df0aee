"""What interventions say: means over prompts with intervals, the band of the controls, and the published choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from refusal_core.analysis.controls import COVARIANCE
from refusal_core.analysis.inference import interval, prediction_reach, share_interval
from refusal_core.intervention.conditions import (
    ABLATE,
    ADD,
    COLUMNS,
    FOUND,
    OWN,
    PLAIN,
    at_its_own_layer,
    candidate_layers,
)
from refusal_core.options import PRESETS
from refusal_core.prompts.labels import HARMFUL, HARMLESS, LABELS
from refusal_core.runs.run import Run

MEASURES = {
    "change": "change of the refusal log-odds",
    "log_odds": "refusal log-odds",
    "refusing": "share of prompts with refusal log-odds above 0",
    "refuses": "share of openings that refuse",
    "degenerate": "share of openings that are degenerate",
    "kl": "KL divergence (nats)",
}
"""What is averaged over prompts: name of the column and what it is."""

MOST_KL = 0.1
"""More divergence than this on harmless prompts, and the published rule does not choose a layer."""

EFFECT = "an effect"

_SHARES = ("refusing", "refuses", "degenerate")
_BOUNDS = {**dict.fromkeys(_SHARES, (0.0, 1.0)), "kl": (0.0, np.inf)}
FEWEST_CONTROLS = 3
_SETTING = ["edit", "layers", "alpha", "own", "length_of", "label"]
"""What a condition has in common with its controls, which stand for every layer and token a direction is read at.

``own``: whether each layer takes its own direction. ``length_of``: the token whose length an added vector has.
"""
_FEWEST_PROMPTS = 5


def summarise(run: Run, table: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Means of every condition over each label's prompts, with 95 % intervals and the controls' band.

    Intervals of shares are exact, the others bootstrap intervals. Of one kind of control, a band is where one more
    direction falls with a probability of 95 %, if controls are normal: the prediction interval ``m ± t s √(1 + 1/n)``
    over the ``n`` controls of the same edit (Hahn & Meeker 1991, section 4.7). Quantiles of some twenty directions
    would be too narrow. Isotropic directions do nearly nothing: pooled with those that lie where activations vary, they
    would make a band that the latter leave too often. The band reaches as far as that of any kind. Beside it stands the
    rank p of the change among the controls that lie where activations vary: the share, the change itself counted, of
    changes that are as large or larger in size (Phipson & Smyth 2010).

    Args:
        run: the run.
        table: of :func:`refusal_core.intervention.experiment.record`.
        draws: bootstrap draws.
        seed: of everything random.

    Returns:
        One row a condition and label: the condition's columns, ``label, n``, each of :data:`MEASURES` with ``_low`` and
        ``_high``, ``_band_low`` and ``_band_high``, ``change_p``, ``change_first_half`` of every other prompt and
        ``refuses_second_half`` of the ``n_second_half`` others, and ``n_controls``, those of the kind with the
        most. NaN where nothing was measured; no band of fewer than three controls of a kind.
    """
    rng = np.random.default_rng(seed)
    joined = table.merge(run.prompts[["prompt_id", "label"]], on="prompt_id", validate="many_to_one")
    joined["condition"] = joined.groupby(COLUMNS, sort=False).ngroup()
    known = joined["opening_label"].notna()
    joined["log_odds"] = joined["refusal_log_odds"]
    joined["refusing"] = joined["refusal_log_odds"].gt(0).astype(float)
    for name in ("refuses", "degenerate"):
        joined[name] = joined["opening_label"].eq(name).astype(float).where(known)
    described = joined.drop_duplicates("condition").set_index("condition")[COLUMNS]
    parts = []
    for label in LABELS:
        prompts = joined[joined["label"].eq(label)]
        values = {
            name: prompts.pivot(index="condition", columns="prompt_id", values=name)
            for name in MEASURES
            if name != "change"
        }
        plain = values["log_odds"].loc[described.index[described["edit"].eq(PLAIN)][0]]
        values["change"] = values["log_odds"] - plain
        n = len(plain)
        shares = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
        part = described.loc[values["change"].index].assign(label=label, n=n)
        for name in MEASURES:
            each = values[name].to_numpy(float)
            mean = each.mean(axis=1)
            part[name] = mean
            part[f"{name}_low"], part[f"{name}_high"] = (
                share_interval(np.round(mean * n), n)
                if name in _SHARES
                else interval(shares @ each.T, mean, *_BOUNDS.get(name, ()))
            )
        # A layer that is chosen by a number is not reported by that number's own prompts.
        second = np.arange(n) % 2 == 1
        part["change_first_half"] = values["change"].to_numpy(float)[:, ~second].mean(axis=1)
        part["refuses_second_half"] = (
            values["refuses"].to_numpy(float)[:, second].mean(axis=1) if second.any() else np.nan
        )
        part["n_second_half"] = int(second.sum())
        parts.append(part)
    return _with_bands(pd.concat(parts, ignore_index=True))


def select(effects: pd.DataFrame, edit: str, label: str, direction: str = FOUND, **setting: object) -> pd.DataFrame:
    """The rows of an edit on a label's prompts; ``setting`` fixes further columns of the condition."""
    rows = effects["edit"].eq(edit) & effects["label"].eq(label) & effects["direction"].eq(direction)
    for name, value in setting.items():
        rows &= effects[name].eq(value)
    return effects[rows]


def over_layers(effects: pd.DataFrame, edit: str, label: str) -> pd.DataFrame:
    """The sweep: each layer's own direction ablated, or added once, at that layer alone; ``site`` is the layer."""
    alone = at_its_own_layer(effects) & effects["position"].eq(-1)
    rows = select(effects[alone], edit, label, alpha=1.0 if edit == ADD else 0.0)
    return rows.assign(site=rows["read_at"]).sort_values("site")


def over_doses(effects: pd.DataFrame, layer: int, position: int, label: str) -> pd.DataFrame:
    """What adding a direction at its layer does, by ``alpha``; without anything added, 0."""
    added = select(effects[at_its_own_layer(effects)], ADD, label, position=position, read_at=layer)
    return pd.concat([added, select(effects, PLAIN, label)]).sort_values("alpha")


def candidates(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The table that the published rule chooses from (Arditi et al. 2024, appendix C).

    Returns:
        One row a ``position`` and layer ``read_at``, the least ``bypass`` first. ``bypass``: mean refusal log-odds of
        harmful prompts with the direction ablated at every layer. ``induce``: of harmless prompts with it added once at
        its own layer. ``kl``: mean divergence on harmless prompts, ablated. ``allowed``: ``kl`` at most
        :data:`MOST_KL`, and ``induce`` at least 0.
    """
    found = pd.DataFrame({name: values.mean(axis=1) for name, values in _by_prompt(run, table).items()}).reset_index()
    found["allowed"] = _allowed(found["induce"], found["kl"])
    return found.sort_values("bypass", ignore_index=True)


def _by_prompt(run: Run, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return ``bypass``, ``induce`` and ``kl`` of the candidates, one row each and one column per prompt."""
    joined = table[table["direction"].eq(FOUND)].merge(run.prompts[["prompt_id", "label"]], on="prompt_id")
    candidate = joined["read_at"].isin(candidate_layers(run.n_layers)) & joined["read_at"].ne(OWN)
    ablated = candidate & joined["edit"].eq(ABLATE) & joined["layers"].str.len().eq(run.n_layers)
    added = candidate & joined["edit"].eq(ADD) & joined["alpha"].eq(1.0) & at_its_own_layer(joined)
    harmful, harmless = joined["label"].eq(HARMFUL), joined["label"].eq(HARMLESS)
    numbers = {
        name: joined[rows].pivot(index=["position", "read_at"], columns="prompt_id", values=column)
        for name, rows, column in (
            ("bypass", ablated & harmful, "refusal_log_odds"),
            ("induce", added & harmless, "refusal_log_odds"),
            ("kl", ablated & harmless, "kl"),
        )
    }
    known = numbers["bypass"].index.intersection(numbers["induce"].index).intersection(numbers["kl"].index)
    return {name: values.loc[known] for name, values in numbers.items()}


def _allowed(induce: Any, kl: Any) -> Any:
    return (kl <= MOST_KL) & (induce >= 0)


def published_choice(run: Run, table: pd.DataFrame) -> pd.Series | None:
    """The candidate that the published rule chooses: the least bypass of those allowed; ``None`` when none is."""
    allowed = candidates(run, table).query("allowed")
    return None if allowed.empty else allowed.iloc[0]


@dataclass(frozen=True)
class Stability:
    """What the published rule would choose of other prompts like these.

    Attributes:
        again: share of the bootstrap draws over prompts in which it chooses the same layer and token.
        nothing: share in which it chooses nothing.
        kl: interval of the chosen candidate's divergence, in nats.
    """

    again: float
    nothing: float
    kl: tuple[float, float]


def choice_stability(run: Run, table: pd.DataFrame, draws: int = 1000, seed: int = 0) -> Stability | None:
    """Redraw the prompts of either label and let the published rule choose again; ``None`` where it chooses nothing."""
    chosen = published_choice(run, table)
    if chosen is None:
        return None
    values, rng, means = _by_prompt(run, table), np.random.default_rng(seed), {}
    shares: dict[str, np.ndarray] = {}
    for name, of_prompts in values.items():
        n = of_prompts.shape[1]
        label = HARMFUL if name == "bypass" else HARMLESS
        shares.setdefault(label, rng.multinomial(n, np.full(n, 1 / n), size=draws) / n)
        means[name] = shares[label] @ of_prompts.to_numpy(float).T
    bypass = np.where(_allowed(means["induce"], means["kl"]), means["bypass"], np.inf)
    place = values["bypass"].index.get_loc((chosen["position"], chosen["read_at"]))
    nothing = np.isinf(bypass).all(axis=1)
    low, high = interval(means["kl"][:, place], chosen["kl"], 0.0, np.inf)
    again = ~nothing & (bypass.argmin(axis=1) == place)
    return Stability(float(again.mean()), float(nothing.mean()), (float(low), float(high)))


def verdict(row: pd.Series, measure: str = "change") -> str:
    """Whether a number of one condition is an effect: told from no change, and outside what controls do."""
    nothing = row[f"{measure}_low"] <= 0 <= row[f"{measure}_high"]
    if row["n"] < _FEWEST_PROMPTS:
        return f"fewer than {_FEWEST_PROMPTS} prompts say nothing"
    if row["n_controls"] < FEWEST_CONTROLS:
        return "no controls were measured here"
    if row[f"{measure}_band_low"] <= row[measure] <= row[f"{measure}_band_high"]:
        return "no more than control directions do"
    return "not told from no change" if nothing else EFFECT


def where(run: Run, row: pd.Series) -> str:
    """The edit of one condition, in words."""
    layers = row["layers"]
    direction = "the direction" if row["direction"] == FOUND else f"the {row['direction']} direction"
    if row["read_at"] != OWN and len(layers) > 1:
        direction += f" of {run.site_label(row['read_at'])}"
    elif len(layers) == 1 and row["position"] != -1:
        direction += f" of token {row['position']}"
    elif len(layers) > 1:
        direction = "each layer's own direction"
    if row["edit"] == PLAIN:
        return "no edit"
    done = (
        "ablated" if row["edit"] == ABLATE else "added once" if row["alpha"] == 1 else f"added {row['alpha']:+g} times"
    )
    if len(layers) == run.n_layers:
        return f"{direction} {done} at all {run.n_layers} layers"
    if len(layers) == 1:
        return f"{direction} {done} at {run.site_label(layers[0])}"
    return f"{direction} {done} at layers {', '.join(map(str, layers))} of {run.n_layers}"


def asked_for(run: Run, table: pd.DataFrame, effects: pd.DataFrame) -> list[pd.Series]:
    """The rows the study asks about: ablating at its layers, at all, the published choice, and adding at its layers."""
    chosen = published_choice(run, table)
    rows = []
    for edit, label in ((ABLATE, "harmful"), (ADD, "harmless")):
        swept = over_layers(effects, edit, label)
        rows += [row for _, row in swept[swept["site"].isin(PRESETS)].iterrows()]
        together = select(effects, edit, label)
        together = together[together["layers"].str.len().gt(1)]
        of_choice = together["read_at"].eq(-2 if chosen is None else chosen["read_at"])
        of_choice &= together["position"].eq(-1 if chosen is None else chosen["position"])
        rows += [row for _, row in together[together["read_at"].eq(OWN) | of_choice].iterrows()]
    return rows


def headline(run: Run, effects: pd.DataFrame) -> str:
    """The interventions in a few sentences: the strongest layers, and at which layers they are effects.

    The strongest layer is chosen on every other prompt, and what it does is told of the rest.
    """
    strongest, found = [], []
    for edit, label, done in ((ABLATE, "harmful", "Ablated"), (ADD, "harmless", "Added")):
        swept = over_layers(effects, edit, label)
        changes = swept["change_first_half"]
        row = swept.loc[changes.idxmin() if edit == ABLATE else changes.idxmax()]
        before, n = select(effects, PLAIN, label)["refuses_second_half"].iloc[0], int(row["n_second_half"])
        if n:
            after = row["refuses_second_half"]
            low, high = 100 * share_interval(np.round(after * n), n)
            strongest.append(
                f"{done} at {run.site_label(row['site'])} alone, which half of the {label} prompts chose, the "
                f"direction moves the share of the other {n} whose replies open with a refusal from "
                f"{100 * before:.0f} % to {100 * after:.0f} % ({low:.0f} to {high:.0f} %)."
            )
        controlled = swept[swept["n_controls"] >= FEWEST_CONTROLS]
        layers = [str(row["site"]) for _, row in controlled.iterrows() if verdict(row) == EFFECT]
        found.append(f"{'ablating' if edit == ABLATE else 'adding'} is an effect at {', '.join(layers) or 'none'}")
    tried = ", ".join(map(str, controlled["site"]))
    against = f"Against controls at layers {tried}: {'; '.join(found)}." if tried else "No controls were measured."
    return f"{' '.join(strongest)} {against}"


def reading(run: Run, table: pd.DataFrame, effects: pd.DataFrame) -> list[str]:
    """What the interventions say, a sentence each: the layers of the study, all layers, and the published choice."""
    said = []
    for row in asked_for(run, table, effects):
        sentence = (
            f"{where(run, row).capitalize()}: the refusal log-odds of {row['label']} prompts change by "
            f"{row['change']:+.2f} ({row['change_low']:+.2f} to {row['change_high']:+.2f})"
        )
        if row["n_controls"] >= FEWEST_CONTROLS:
            sentence += f", controls {row['change_band_low']:+.2f} to {row['change_band_high']:+.2f}"
            if np.isfinite(row["change_p"]):
                sentence += f", rank p {row['change_p']:.3f} among {row['n_controls']} of them"
        sentence += f": {verdict(row)}."
        if np.isfinite(row["refuses"]):
            before = select(effects, PLAIN, row["label"])["refuses"].iloc[0]
            sentence += f" Openings that refuse: {100 * before:.0f} % to {100 * row['refuses']:.0f} %."
        said.append(sentence)
    chosen = published_choice(run, table)
    if chosen is None:
        said.append(f"No layer passes the published rule (divergence at most {MOST_KL}, inducing at least 0).")
    else:
        said.append(
            f"The published rule chooses {run.site_label(int(chosen['read_at']))} at token {int(chosen['position'])}: "
            f"bypass {chosen['bypass']:.2f}, induce {chosen['induce']:.2f}, divergence {chosen['kl']:.3f}."
        )
        stability = choice_stability(run, table)
        if stability is not None:
            low, high = stability.kl
            said.append(
                f"Of other prompts like these it would choose that again in {100 * stability.again:.0f} % of bootstrap "
                f"draws, and nothing in {100 * stability.nothing:.0f} %; the divergence lies between {low:.3f} and "
                f"{high:.3f}, where {MOST_KL} is allowed."
            )
    return said


def numbers(run: Run, effects: pd.DataFrame) -> pd.DataFrame:
    """The found direction's conditions as a table to read, controls' band beside each; candidates elsewhere."""
    kept = effects[effects["direction"].eq(FOUND)]
    alone = kept["position"].eq(-1) & kept["layers"].str.len().le(1)
    kept = kept[kept["read_at"].eq(OWN) | alone | kept["refuses"].notna()]
    columns = ["label"]
    for name in ("change", "refusing", "refuses", "degenerate", "kl"):
        columns += [name, f"{name}_low", f"{name}_high", f"{name}_band_low", f"{name}_band_high"]
    columns.insert(columns.index("change_band_high") + 1, "change_p")
    shown = kept[columns].copy()
    shown.insert(0, "condition", [where(run, row) for _, row in kept.iterrows()])
    return shown.assign(verdict=[verdict(row) for _, row in kept.iterrows()])


def _with_bands(effects: pd.DataFrame) -> pd.DataFrame:
    """Each row beside the band of the controls of the same edit on the same label's prompts."""
    several = effects["layers"].str.len().gt(1)
    effects = effects.assign(
        own=effects["read_at"].eq(OWN) & several, length_of=effects["position"].where(effects["edit"].eq(ADD), -1)
    )
    others = effects[effects["direction"].ne(FOUND)]
    kind = others["direction"].str.split(" ").str[0].rename("kind")
    controls = others.groupby([*_SETTING, kind])[list(MEASURES)]
    mean, spread, count = controls.mean(), controls.std(), controls.count()
    with np.errstate(invalid="ignore"):
        reach = prediction_reach(spread, count)
    bands = {"n_controls": count["change"].groupby(_SETTING).max()}
    for name in MEASURES:
        lowest, highest = _BOUNDS.get(name, (-np.inf, np.inf))
        enough = count[name] >= FEWEST_CONTROLS
        bands[f"{name}_band_low"] = (mean - reach)[name].where(enough).groupby(_SETTING).min().clip(lower=lowest)
        bands[f"{name}_band_high"] = (mean + reach)[name].where(enough).groupby(_SETTING).max().clip(upper=highest)
    joined = effects.join(pd.DataFrame(bands), on=_SETTING)
    joined["n_controls"] = joined["n_controls"].fillna(0).astype(int)
    return joined.assign(change_p=_rank_p(joined, others[kind.eq(COVARIANCE)])).drop(columns=["own", "length_of"])


def _rank_p(effects: pd.DataFrame, controls: pd.DataFrame) -> list[float]:
    """Return each row's p: its change's rank, by size, among the controls of the same edit."""
    others = {setting: rows.to_numpy() for setting, rows in controls.groupby(_SETTING)["change"]}
    return [
        rank_p(change, others.get(tuple(setting), np.empty(0)))
        for *setting, change in effects[[*_SETTING, "change"]].itertuples(index=False)
    ]


def rank_p(change: float, controls: np.ndarray) -> float:
    """Return the share of changes, the change itself counted, that are as large or larger in size.

    Phipson & Smyth 2010, as :func:`refusal_core.analysis.inference.permutation_p`.

    Args:
        change: that is compared.
        controls: ``(control,)`` those of controls of one kind; of fewer than three it is NaN.
    """
    if len(controls) < FEWEST_CONTROLS:
        return np.nan
    return float((1 + (np.abs(controls) >= abs(change)).sum()) / (1 + len(controls)))
