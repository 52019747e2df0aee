"""What adds to a run's directions and which tokens they would write, as it was measured, and sentences that say so."""

from __future__ import annotations

import pandas as pd

from refusal_core.analysis.subspace import SIGNIFICANT
from refusal_core.errors import RunError
from refusal_core.runs.additions import read_addition
from refusal_core.runs.manifest import AttributionManifest
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import (
    ADDED,
    ATTENTION,
    BLOCK,
    DIFFERENCE,
    EMBEDDING,
    LOWERED,
    LOWERED_MEAN,
    MLP,
    RAISED,
    RAISED_MEAN,
)

_PARTS = {EMBEDDING: "the first block's input", ATTENTION: "attention", MLP: "MLP", BLOCK: "block"}
_MIXER = "mixer"
NOT_HERE = "After the final norm there is no sum: it divides each prompt by a length of its own. Choose a layer."

Measured = tuple[pd.DataFrame, AttributionManifest]


def load_attribution(run: Run) -> Measured | None:
    """Return what adds to a run's directions and the manifest, or ``None`` when that was not measured.

    Raises:
        RunError: when it is damaged, or has other parts or tokens than it should.
    """
    stored = read_addition(run, AttributionManifest)
    if stored is None:
        return None
    table, manifest = stored
    if manifest.reason is None and len(manifest.parts) != run.n_layers:
        raise RunError(f"run {run.run_id!r}: attribution.json is of a model of other depth; measure it again")
    # A whole number may be stored as any type of number.
    table = table.astype({"site": "int64", "block": "Int64", "rank": "Int64"})
    known = ["measure", "part", "block", "rank"]
    rows = table[known].astype(object).where(table[known].notna(), None).groupby(table["site"])
    for site, of_site in rows:
        own = [row for row in of_site.itertuples(index=False, name=None) if row[0] in (ADDED, DIFFERENCE)]
        written = [row for row in of_site.itertuples(index=False, name=None) if row not in own]
        if (own and own != _parts_up_to(int(str(site)), manifest)) or not _is_complete(written):
            raise RunError(
                f"run {run.run_id!r}: attribution.parquet is incomplete at site {site} or has rows twice; measure it "
                "again"
            )
    return table, manifest


def _parts_up_to(site: int, manifest: AttributionManifest) -> list[tuple[object, ...]]:
    """Return measure, part, block and rank of the rows of parts at a layer; none where there can be none."""
    if site >= len(manifest.parts):
        return []
    parts = [(part, block) for block, own in enumerate(manifest.parts[: site + 1]) for part in own]
    return [
        *((ADDED, part, block, None) for part, block in [(EMBEDDING, None), *parts]),
        (DIFFERENCE, None, None, None),
    ]


def _is_complete(rows: list[tuple[object, ...]]) -> bool:
    """Return whether a site has the tokens of either end, in order, and their means, once; or none of them."""
    ranks = [row[3] for row in rows if row[0] == RAISED]
    tokens = [(end, None, None, rank) for end in (RAISED, LOWERED) for rank in range(1, len(ranks) + 1)]
    means = [(end, None, None, None) for end in (RAISED_MEAN, LOWERED_MEAN)]
    return not rows or (bool(ranks) and rows == [*tokens, *means])


def added_at(measured: Measured, site: int) -> pd.DataFrame:
    """Return one row per part at a layer: ``part, block`` and what it adds, in activation units; empty without any."""
    table = measured[0]
    return table[table["measure"].eq(ADDED) & table["site"].eq(site)].reset_index(drop=True)


def kind_name(measured: Measured, part: str) -> str:
    """Return what a part is called.

    In a model whose blocks hand on a state the place of attention may be taken by a convolution, or by a recurrent
    layer: what mixes tokens, all of these.
    """
    return _MIXER if part == ATTENTION and measured[1].recurrent else _PARTS[part]


def part_name(measured: Measured, part: str, block: object) -> str:
    """Return what a part is called in a sentence, such as ``the MLP of block 20``."""
    kind = kind_name(measured, part)
    if part == EMBEDDING:
        return kind
    return f"{kind} {block}" if part == BLOCK else f"the {kind} of block {block}"


def _difference(measured: Measured, site: int) -> pd.Series | None:
    table = measured[0]
    rows = table[table["measure"].eq(DIFFERENCE) & table["site"].eq(site)]
    return None if rows.empty else rows.iloc[0]


def _held_out(run: Run, site: int) -> pd.Series | None:
    """Return the evidence of a layer, whose draws refit the direction; of an imported one there is nothing to refit."""
    return run.evidence.sites.loc[site] if run.has_evidence and not run.directions.imported else None


def _is_clear(run: Run, whole: pd.Series) -> bool:
    """Return whether the direction is shown to separate held-out prompts, so that there is something to attribute.

    Two prompts are in each other's directions, and draws that leave directions as they are see half of what varies by
    that where the labels are alike: the evidence is asked too.
    """
    held_out = _held_out(run, int(whole["site"]))
    return bool(whole["number_low"] > 0 and (held_out is None or held_out["crossfit_d_low"] > 0))


def _how_far(run: Run, whole: pd.Series) -> str:
    held_out = _held_out(run, int(whole["site"]))
    if held_out is not None:
        numbers, unit = held_out[["crossfit_d", "crossfit_d_low", "crossfit_d_high"]], "d "
    else:
        numbers, unit = whole[["number", "number_low", "number_high"]], ""
    return " ({}{:.2f}, {:.2f} to {:.2f})".format(unit, *numbers) if numbers.notna().all() else ""


def verdict(run: Run, measured: Measured, site: int) -> str:
    """Say which part adds most to the held-out difference of the labels at a layer, if one is told apart."""
    if measured[1].reason is not None:
        return "What adds to the direction cannot be said here."
    if site >= run.n_layers:
        return NOT_HERE
    where, whole = run.site_label(site), _difference(measured, site)
    if whole is None:
        return f"At {where} there is no direction."
    if not _is_clear(run, whole):
        return f"At {where} it is not shown that the direction separates held-out prompts{_how_far(run, whole)}."
    parts = added_at(measured, site).sort_values("number", ascending=False, kind="stable")
    first = parts.iloc[0]
    near = int(parts["number_high"].iloc[1:].ge(first["number_low"]).sum())
    name = part_name(measured, first["part"], first["block"])
    if not first["number_low"] > 0:
        return f"At {where} many parts add to the direction, none of them shown by itself."
    if near:
        return f"At {where} {name} adds most to the direction, not told apart from {near} other part{'s' * (near > 1)}."
    return f"At {where} {name} adds more to the direction than any other part."


def what_adds(run: Run, measured: Measured, site: int) -> str:
    """Say how much the largest parts add to the held-out difference of the labels at a layer, and what adds against it.

    Intervals hold for all parts at once, so that the largest may be picked out.
    """
    if measured[1].reason is not None:
        return f"Missing: {measured[1].reason}."
    if site >= run.n_layers:
        return NOT_HERE
    whole = _difference(measured, site)
    if whole is None or not _is_clear(run, whole):
        return verdict(run, measured, site)
    parts = added_at(measured, site).sort_values("number", ascending=False, kind="stable")
    shown = parts[parts["number_low"].gt(0)]
    against = parts[parts["number_high"].lt(0)]
    sentences = [
        f"Held out, harmful prompts project {_spelt(whole)} activation units above harmless ones, the sum of "
        f"{len(parts)} parts."
    ]
    if len(shown):
        largest = "; ".join(_part_spelt(measured, row, whole["number"]) for _, row in shown.head(3).iterrows())
        more = f" of the {len(shown)} parts that are shown to add" if len(shown) > 3 else ""
        sentences.append(f"The largest{more}: {largest}.")
    else:
        sentences.append("None of them is shown to add by itself.")
    if len(against):
        most = _part_spelt(measured, against.iloc[-1], whole["number"])
        sentences.append(f"{len(against)} of them {'adds' if len(against) == 1 else 'add'} against it, most {most}.")
    return " ".join(sentences)


def _part_spelt(measured: Measured, row: pd.Series, whole: float) -> str:
    percent = round(100 * row["number"] / whole)
    share = f"{percent} %" if percent else "less than 1 %"
    return f"{part_name(measured, row['part'], row['block'])} {_spelt(row)}, {share}"


def _spelt(row: pd.Series) -> str:
    return f"{row['number']:.2f} ({row['number_low']:.2f} to {row['number_high']:.2f})"


def which_tokens(run: Run, measured: Measured, site: int) -> str:
    """Say whether the tokens that a direction raises and lowers most stand out from those of control directions."""
    table = measured[0]
    at_site = table[table["site"].eq(site)]
    if not at_site["measure"].eq(RAISED).any():
        return f"At {run.site_label(site)} there is no direction."
    said, n_tokens = [], int(at_site["measure"].eq(RAISED).sum())
    for mean, verb, way in ((RAISED_MEAN, "raises", "above"), (LOWERED_MEAN, "lowers", "below")):
        row = at_site[at_site["measure"].eq(mean)].iloc[0]
        stands_out = "farther than" if row["p"] <= SIGNIFICANT else "not shown to be farther than"
        said.append(
            f"the {n_tokens} tokens that the direction {verb} most lie {row['number']:.1f} standard deviations {way} "
            f"the vocabulary's mean on average, {stands_out} those of control directions ({row['chance_low']:.1f} to "
            f"{row['chance_high']:.1f} in 95 %, p = {row['p']:.3f})"
        )
    return (
        f"At {run.site_label(site)} {said[0]}; {said[1]}. Each p is of {measured[1].controls} control directions, "
        "corrected for all layers and both ends."
    )


def what_controls_are(run: Run) -> str:
    """Say what the directions are that a run's direction is compared with."""
    if not run.directions.are_of_means:
        return "Control directions lie where activations vary within the labels."
    return "Control directions are those of permuted labels, whole pairs flipped or not."


def token_table(measured: Measured, site: int) -> pd.DataFrame:
    """Return one row per rank: the tokens that a site's direction raises and lowers most, as they are written."""
    table = measured[0]
    columns: dict[str, pd.Series] = {}
    for end in (RAISED, LOWERED):
        rows = table[table["measure"].eq(end) & table["site"].eq(site)].set_index("rank")
        # A token is a stranger's text, and a space or line break has no letter.
        columns[f"{end}_token"] = rows["token"].map(repr)
        columns[f"{end}_by"] = rows["number"].astype(float)
        if rows["again"].notna().any():
            columns[f"{end}_again"] = rows["again"].astype(float)
    return pd.DataFrame(columns).reset_index()


def part_table(measured: Measured, site: int) -> pd.DataFrame:
    """Return one row per part at a layer, the largest first, under the columns' names on screen.

    Parts have no share of a difference that may be 0 or below.
    """
    parts = added_at(measured, site).sort_values("number", ascending=False, kind="stable", ignore_index=True)
    difference = _difference(measured, site)
    whole = difference["number"] if difference is not None and difference["number_low"] > 0 else float("nan")
    return pd.DataFrame(
        {
            "part": [
                part_name(measured, part, block) for part, block in zip(parts["part"], parts["block"], strict=True)
            ],
            "added": parts["number"].astype(float),
            "added_low": parts["number_low"].astype(float),
            "added_high": parts["number_high"].astype(float),
            "added_share": parts["number"].astype(float) / whole,
        }
    )


def tokens_over_layers(measured: Measured) -> pd.DataFrame:
    """Return one row per site: ``site, raised_mean, lowered_mean`` and where 95 % of control directions lie."""
    table = measured[0]
    means = table[table["measure"].isin([RAISED_MEAN, LOWERED_MEAN])]
    over = means.pivot(index="site", columns="measure", values="number").reindex(columns=[RAISED_MEAN, LOWERED_MEAN])
    ends = means[means["measure"].eq(RAISED_MEAN)].set_index("site")[["chance_low", "chance_high"]]
    return over.join(ends).reset_index()
