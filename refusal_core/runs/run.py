"""A run, opened: what defines it, and its tables, which cannot be changed by accident."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from refusal_core.analysis.directions import Directions
from refusal_core.errors import RunError, first_line
from refusal_core.files import sha256_of
from refusal_core.options import ESTIMATORS
from refusal_core.progress import Progress, no_progress
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.manifest import ACTIVATIONS, Manifest
from refusal_core.runs.migrations import migrated_evidence
from refusal_core.runs.run_files import (
    EVIDENCE_TABLES,
    RunTables,
    extra_columns,
    map_activations,
    read_table,
    read_table_at,
)
from refusal_core.runs.schemas import check_evidence
from refusal_core.sites import best_layer, site_label

if TYPE_CHECKING:
    import refusal_core

LEFT_OUT = "left-out"
"""The transfer set of a refit: what it is not fitted on any more."""
T_INST, T_POST = "t_inst", "t_post"
LAST_TOKEN = -1
"""The read position of a run itself, counted from the end of the templated prompt: the template's last token."""


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """One model on one contrast set under one set of options, as read from its folder.

    The tables are handed out as copies that share their memory until they are written to, so that a change to one
    never reaches the run; its arrays cannot be written to.

    Attributes:
        run_id: its name, which is that of its folder; at another read position with that behind it: ``RUN@t_inst``.
        path: its folder.
        manifest: what defines the run and how it was made.
        tables: its tables and arrays.
        position: the read position, counted from the end of the templated prompt; see :meth:`at`.
        read_at: its name.
    """

    run_id: str
    path: Path
    manifest: Manifest
    tables: RunTables
    position: int = LAST_TOKEN
    read_at: str = T_POST

    def __repr__(self) -> str:
        """Return it in one line."""
        fitted, scored = int(self.rows().sum()), int((~self.rows()).sum())
        return f"<Run {self.run_id}: {self.n_layers} layers, {fitted} prompts fitted on, {scored} scored>"

    @property
    def positions(self) -> dict[str, str]:
        """The read positions that the run is known at, by name, and the token of each; ``t_post`` alone for most runs.

        Raises:
            RunError: when what was measured at others is damaged.
        """
        from refusal_core.runs.positions import known_positions

        return known_positions(self)

    def at(self, position: str) -> Run:
        """Return the run as it is at a read position: directions, projections, statistics and evidence of that token.

        Args:
            position: a name of :attr:`positions`; at ``t_post`` it is the run itself.

        Raises:
            RunError: when the run was not measured there, or what was measured is damaged.
        """
        from refusal_core.runs.positions import run_at

        return run_at(self, position)

    def check_own_position(self, what: str) -> None:
        """Raise RunError unless this is the run itself, with whose direction ``what`` is measured."""
        if self.position != LAST_TOKEN:
            raise RunError(
                f"{what}: expected a run at {T_POST}, the template's last token, where this is measured; got "
                f"{self.run_id} at {self.read_at}"
            )

    @property
    def prompts(self) -> pd.DataFrame:
        """One row per prompt, fitted ones first.

        The columns are ``prompt_id, text, label, category, pair_id, source, note, fitted, n_tokens, first_token,
        refusal_log_odds``; where there is any, ``conversation`` (:func:`refusal_core.conversations.prompts_of`) and
        ``extra`` (:attr:`extra`).
        """
        return self.tables.prompts.copy(deep=False)

    @cached_property
    def extra(self) -> pd.DataFrame:
        """What the users' files say besides of each prompt, a column per column of theirs, as texts."""
        return extra_columns(self.tables.prompts)

    @property
    def projections(self) -> np.ndarray:
        """``(prompt, site)`` float64 in activation units, rows as in :attr:`prompts`."""
        return self.tables.projections

    @property
    def projections_crossfit(self) -> np.ndarray:
        """``(prompt, site)`` float64, 0 at the training folds' midpoint; NaN for transfer prompts."""
        return self.tables.projections_crossfit

    @property
    def layer_stats(self) -> pd.DataFrame:
        """One row per site; see :func:`refusal_core.analysis.effect_sizes.layer_statistics`."""
        return self.tables.layer_stats.copy(deep=False)

    @property
    def directions(self) -> Directions:
        """The direction at every site."""
        return self.tables.directions

    @property
    def n_sites(self) -> int:
        """How many sites there are: the layers and the final norm."""
        return int(self.projections.shape[1])

    @property
    def n_layers(self) -> int:
        """How many layers the model has."""
        return self.n_sites - 1

    @property
    def model_name(self) -> str:
        """What the model is called."""
        return self.manifest.model.name

    @property
    def contrast_name(self) -> str:
        """What the contrast set is called."""
        return self.manifest.prompts.name

    @property
    def imported(self) -> str:
        """What has to be known of imported directions; empty for a run whose directions were fitted."""
        record = self.manifest.direction
        if record is None:
            return ""
        return (
            f"Imported direction: {record.file!r:.80} (SHA-256 {record.sha256[:12]}, layers as {record.numbering}, "
            f"{len(record.sites)} of {self.n_sites} sites). Whether it was made from these prompts is not known "
            "here: a number called in-sample or cross-fitted is that of the imported vectors on all prompts of the "
            "contrast set."
        )

    @property
    def estimator_note(self) -> str:
        """What has to be known of another estimator than the difference of means; empty for a run of that."""
        if self.directions.are_of_means or self.directions.imported:
            return ""
        return (
            f"Direction ({ESTIMATORS[self.directions.estimator]}): not the mean difference; its magnitude is the "
            "distance of the labels' means along it. What is measured of harm against refusing, of categories and of "
            "how many directions there are is of mean differences all the same."
        )

    @property
    def direction_note(self) -> str:
        """What has to be known of directions that are no mean differences of the run's prompts; else empty."""
        return self.imported or self.estimator_note

    @property
    def keeps_activations(self) -> bool:
        """Whether the run was stored with its activations, which are those of its own read position."""
        return ACTIVATIONS in self.manifest.files and self.position == LAST_TOKEN

    def site_label(self, site: int) -> str:
        """Return ``layer 18 of 28``, or ``final norm``."""
        return site_label(site, self.n_layers)

    def rows(self, label: str | None = None, source: str | None = None) -> np.ndarray:
        """Return ``(prompt,)`` bool: the fitted prompts, of one label if one is named.

        Args:
            label: ``harmful``, ``harmless`` or ``grey``.
            source: a transfer set, whose prompts are returned in place of the fitted ones.
        """
        table = self.tables.prompts
        chosen = table["fitted"] if source is None else table["source"].eq(source) & ~table["fitted"]
        if label is not None:
            chosen = chosen & table["label"].eq(label)
        return np.asarray(chosen.to_numpy())

    @cached_property
    def transfer_sources(self) -> list[str]:
        """Names of the transfer sets, in order."""
        return list(self.prompts.loc[~self.prompts["fitted"], "source"].unique())

    @property
    def has_evidence(self) -> bool:
        """Whether tables of evidence were stored with the run."""
        return self.position != LAST_TOKEN or any(name.startswith("evidence_") for name in self.manifest.files)

    @property
    def evidence(self) -> Evidence:
        """The tables of evidence that were stored with the run, read when they are first asked for.

        Raises:
            RunError: when the run has none, or they cannot be read, as those of a run that was deleted since.
        """
        tables = self._evidence.to_tables()
        return Evidence(**{name: table.copy(deep=False) for name, table in tables.items()})

    def check_evidence(self) -> None:
        """Raise RunError unless its tables of evidence, if it has any, are what those of a run are."""
        if self.has_evidence:
            _ = self._evidence

    @cached_property
    def _evidence(self) -> Evidence:
        names = [name for name in self.manifest.files if name.startswith("evidence_")]
        try:
            if self.position == LAST_TOKEN:
                tables = {name: read_table(self.path / name) for name in names}
            else:
                names = [f"evidence_{name}.parquet" for name in EVIDENCE_TABLES]
                tables = {name: read_table_at(self.path, name, self.position) for name in names}
            tables = {name.removeprefix("evidence_").removesuffix(".parquet"): table for name, table in tables.items()}
            tables = migrated_evidence(tables)
            check_evidence(tables, self.n_sites, self.tables.prompts["prompt_id"])
        except Exception as error:  # a malformed file, whatever its reader calls it
            raise RunError(f"run {self.run_id!r}: its evidence cannot be read ({first_line(error)})") from error
        return Evidence.from_tables(tables)

    def best_site(self) -> int:
        """Return the layer with the highest cross-fitted d: the first of several, and layer 0 where none is known.

        The final norm is no candidate, since nothing can be edited there.
        """
        return best_layer(self.tables.layer_stats["crossfit_d"].to_numpy(float))

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per prompt and site: the prompt's columns, ``site``, and the two projections.

        ``projection`` and ``projection_crossfit`` are in activation units; the latter is missing for transfer prompts.
        """
        rows = np.repeat(np.arange(len(self.tables.prompts)), self.n_sites)
        table = self.tables.prompts.iloc[rows].reset_index(drop=True)
        table["site"] = np.tile(np.arange(self.n_sites), len(self.tables.prompts))
        table["projection"] = self.projections.ravel()
        table["projection_crossfit"] = self.projections_crossfit.ravel()
        return table

    def load_model(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        progress: Progress = no_progress,
    ) -> refusal_core.ChatModel:
        """Open the run's model as it was opened for the run: the same commit, dtype, bits and chat template.

        Args:
            model: where it is, for one that came from a folder or a GGUF file and is not where it was.
            device: where it is opened; see :func:`refusal_core.load_model`.
            dtype: ``auto`` takes the run's.
            progress: called while it is downloaded or converted.

        Raises:
            RefusalError: when it cannot be found or opened, or is not the run's model.
        """
        import refusal_core

        # Opening takes rooms above this one; the front door knows where they are.
        opened: refusal_core.ChatModel = refusal_core.__getattr__("load_model_for")(
            self, model, device, dtype, progress
        )
        return opened

    def _repr_html_(self) -> str:
        """Return the run as a card, for notebooks."""
        # The card needs rooms above this one; the front door knows where it is.
        import refusal_core

        return str(refusal_core.__getattr__("card_html")(self))

    def load_activations(self) -> np.ndarray | None:
        """Return ``(prompt, site, d_model)`` float32 activations, or ``None`` when they were not stored.

        They are checked against the manifest, and then read from the file as they are used.

        Raises:
            RunError: when they are not what the manifest describes.
        """
        if not self.keeps_activations:
            return None
        path = self.path / ACTIVATIONS
        try:
            if sha256_of(path) != self.manifest.files[ACTIVATIONS]:
                raise ValueError("its SHA-256 differs")
            return map_activations(path, (len(self.tables.prompts), *self.directions.unit_direction.shape))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"run {self.run_id!r}: {ACTIVATIONS} is not the file the manifest describes ({error}); "
                "delete the run and make it again"
            ) from error
