"""Runs that earlier versions wrote, in the present format; what is on disk stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refusal_core.runs.evidence_tables import QUARTETS_COLUMNS, WORDING_COLUMNS
from refusal_core.runs.manifest import FORMAT_VERSION

if TYPE_CHECKING:
    # Manifests are listed without.
    import pandas as pd

_COPIES_OF_1 = ["harmful_mean_proj", "harmless_mean_proj", "mean_separation", "p_value"]
"""Columns that said once more what others say: means of projections, their difference, and a p-value that underflows
where its logarithm does not."""
_LAYER_STATS_OF_1 = {
    "cohens_d": "in_sample_d",
    "auroc": "in_sample_auroc",
    "overlap_count": "mean_crossings",
    **{
        f"{label}_{number}": f"{label}_projection_{number}"
        for label in ("harmful", "harmless")
        for number in ("mean", "std", "min", "max", "range")
    },
}


def migrated_manifest(content: dict[str, Any], version: int) -> dict[str, Any]:
    """Return the content of a run's manifest as the present format has it.

    Args:
        content: as read from ``manifest.json``.
        version: its ``format_version``.
    """
    if version < 2:
        content = _manifest_from_1(content)
    compute = content.get("compute")
    # Also in runs of the first days of format 2.
    if isinstance(compute, dict) and "quantise" in compute:
        bits = compute["quantise"]
        compute = {name: value for name, value in compute.items() if name != "quantise"}
        content = content | {"compute": compute | {"load_in": None if bits is None else f"{bits}bit"}}
    return content | {"format_version": FORMAT_VERSION}


def migrated_evidence(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return a run's tables of evidence under their present names; what was not measured then is an empty table.

    Args:
        tables: by name, as they were stored.
    """
    import pandas as pd

    renamed = {"detectable_from" if name == "onset" else name: table for name, table in tables.items()}
    later = {"wording": WORDING_COLUMNS, "quartets": QUARTETS_COLUMNS}
    empty = {name: pd.DataFrame(columns=list(columns), dtype=float) for name, columns in later.items()}
    return empty | renamed if renamed else {}


def _manifest_from_1(content: dict[str, Any]) -> dict[str, Any]:
    """Call where a borrowed template comes from ``source``, which was ``from``."""
    template = content.get("template")
    borrowed = template.get("borrowed") if isinstance(template, dict) else None
    if not isinstance(template, dict) or not isinstance(borrowed, dict):
        return content
    renamed = {"source" if name == "from" else name: value for name, value in borrowed.items()}
    return content | {"template": template | {"borrowed": renamed}}


def migrated_addition(kind: str, table: pd.DataFrame, version: int) -> pd.DataFrame:
    """Return the table of a later measurement as the present format has it.

    Args:
        kind: of the measurement, see :attr:`.AdditionManifest.kind`.
        table: as it was stored.
        version: the ``format_version`` that it was stored in.

    Raises:
        ValueError: when the edited layers are no numbers.
    """
    if kind != "intervention":
        return table
    if version < 2:
        # The layers of an edit were text, as "0,1,2".
        return table.assign(layers=[tuple(map(int, filter(None, text.split(",")))) for text in table["layers"]])
    return table.assign(layers=[tuple(layers.tolist()) for layers in table["layers"]])


def migrated_addition_manifest(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a later measurement's manifest as the present format has it.

    Args:
        content: as read from ``<kind>.json``.
    """
    prompts = content.get("prompts")
    if not isinstance(prompts, dict) or "limit" not in prompts:
        return content
    return content | {"prompts": {"limit_per_label" if name == "limit" else name: prompts[name] for name in prompts}}


def migrated_layer_stats(table: pd.DataFrame, version: int) -> pd.DataFrame:
    """Return a run's table of layers as the present format has it; no number changes.

    Args:
        table: as read from ``layer_stats.parquet``.
        version: the ``format_version`` of the run's manifest.
    """
    if version < 2:
        table = table.drop(columns=_COPIES_OF_1, errors="ignore").rename(columns=_LAYER_STATS_OF_1)
    return table
