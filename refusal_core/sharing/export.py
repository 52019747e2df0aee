"""A run as the files of the published report, under their names and with their layer convention."""

from __future__ import annotations

import json
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from refusal_core.behaviour import measurement
from refusal_core.errors import RenderingError, RunError
from refusal_core.exploration.attribution import load_attribution
from refusal_core.exploration.kept_lists import load_lists, table_of_lists
from refusal_core.exploration.positions import load_positions
from refusal_core.exploration.published import PUBLISHED_NAMES
from refusal_core.exploration.subspace import load_subspace
from refusal_core.exploration.trajectory import load_trajectory
from refusal_core.figures.study import HISTOGRAMS, pictures
from refusal_core.intervention import effects, experiment
from refusal_core.intervention.judgement import load_judgement
from refusal_core.options import ESTIMATORS
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.manifest import DIRECTIONS
from refusal_core.runs.run import T_POST, Run
from refusal_core.sharing.rendering import write_images
from refusal_core.sharing.report import report_html
from refusal_core.sharing.snippets import transformer_lens_snippet, transformers_snippet

REPORT = "report.html"


VALIDATION_COLUMNS = (
    "layer",
    "magnitude",
    "harmful_mean_proj",
    "harmless_mean_proj",
    "t_statistic",
    "p_value",
    "cohens_d",
    "valid",
)
"""Columns of the published ``validation_results.csv``."""
VARIANCE_COLUMNS = (
    "layer",
    "harmful_mean",
    "harmful_std",
    "harmful_min",
    "harmful_max",
    "harmful_range",
    "harmless_mean",
    "harmless_std",
    "harmless_min",
    "harmless_max",
    "harmless_range",
    "mean_separation",
    "overlap_count",
)
"""Columns of the published ``variance_by_layer.csv``."""


def published_layers(run: Run) -> pd.DataFrame:
    """Return one row per layer under the published names, as Experiment 0 counts layers.

    Its layers are Hugging Face's ``hidden_states[layer + 1]``. That makes the last "layer" the final norm; our layer
    ``L - 1``, which the study never read, is left out.
    """
    last = run.n_layers - 1
    stats = run.layer_stats
    chosen = stats[stats["site"] != last].rename(columns=PUBLISHED_NAMES)
    chosen["layer"] = chosen["layer"].fillna(last).astype(int)
    for label in LABELS:
        chosen[f"{label}_mean_proj"] = chosen[f"{label}_mean"]
    chosen["mean_separation"] = chosen["harmful_mean"] - chosen["harmless_mean"]
    # The published test is Student's, of all fitted prompts.
    degrees_of_freedom = int(run.rows().sum()) - 2
    chosen["p_value"] = 2 * student_t.sf(chosen["t_statistic"].abs(), degrees_of_freedom)
    return chosen.reset_index(drop=True)


def export_run(run: Run, folder: str | Path) -> list[Path]:
    """Write the report's four files, and the complete tables of the run.

    ``validation_results.csv``, ``variance_by_layer.csv``, ``top10_layers.csv`` and ``summary.json`` have the published
    names, columns and layer convention. ``layer_stats.csv`` has every site and every column, ``prompts.csv`` every
    prompt and its projections, ``evidence_*.csv`` the evidence, ``behaviour.csv`` the replies where they were
    measured, ``intervention*.csv`` the effects of edits, ``subspace.csv`` the directions of the categories,
    ``positions.csv`` the other read positions, ``attribution.csv`` what adds to the direction and which tokens it would
    write, ``lists.csv`` the labelled lists that were kept with the run, ``trajectory.csv`` the projections along
    replies, ``judgement.csv`` the answers to questions about the prompts under steering; ``manifest.json`` is the
    run's, and ``report.html`` is all of it but the last six on one page.

    Raises:
        RunError: when the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    if (folder / DIRECTIONS).exists():
        raise RunError(f"{folder} is a run, and runs are never changed; choose another folder to export to")
    layers = published_layers(run)
    strongest = layers.loc[layers["cohens_d"].idxmax()] if layers["cohens_d"].notna().any() else None
    largest = layers.loc[layers["magnitude"].idxmax()]
    counts = run.manifest.prompts.counts
    summary = {
        "date": run.manifest.created,
        "model": run.model_name,
        "n_layers": run.n_layers,
        "n_harmful_prompts": counts["harmful"],
        "n_harmless_prompts": counts["harmless"],
        "valid_layers": int(layers["valid"].sum()),
        "strongest_layer": None if strongest is None else int(strongest["layer"]),
        "max_cohens_d": None if strongest is None else float(strongest["cohens_d"]),
        "max_magnitude_layer": int(largest["layer"]),
        "max_magnitude": float(largest["magnitude"]),
    }
    if run.estimator_note:
        summary["estimator"] = ESTIMATORS[run.manifest.estimator]
    if run.read_at != T_POST:
        summary["read_at"] = run.read_at
    top10 = layers.sort_values("cohens_d", ascending=False).head(10)
    evidence = run.evidence
    tables = {
        "validation_results.csv": layers[list(VALIDATION_COLUMNS)],
        "variance_by_layer.csv": layers[list(VARIANCE_COLUMNS)],
        "top10_layers.csv": top10[["layer", "magnitude", "cohens_d", "p_value", "valid"]],
        "layer_stats.csv": run.layer_stats,
        "prompts.csv": _prompts_with_projections(run),
        **{f"evidence_{name}.csv": table for name, table in evidence.to_tables().items()},
    }
    behaviour = measurement.load_behaviour(run)
    replies = None if behaviour is None else behaviour[0]
    if replies is not None:
        tables["behaviour.csv"] = run.prompts[["prompt_id", "text", "label"]].join(replies.drop(columns="prompt_id"))
    interventions = experiment.load_interventions(run)
    if interventions is not None:
        edited, _ = interventions
        tables["intervention.csv"] = edited
        tables["intervention_effects.csv"] = effects.summarise(run, edited)
        tables["intervention_candidates.csv"] = effects.candidates(run, edited)
    measured = load_subspace(run)
    if measured is not None:
        tables["subspace.csv"] = measured[0]
    positions = load_positions(run)
    if positions is not None:
        tables["positions.csv"] = positions[0]
    attribution = load_attribution(run)
    if attribution is not None:
        tables["attribution.csv"] = attribution[0]
    lists = load_lists(run)
    if lists:
        tables["lists.csv"] = table_of_lists(lists)
    followed = load_trajectory(run)
    if followed is not None:
        tables["trajectory.csv"] = followed.table
    judged = load_judgement(run)
    if judged is not None:
        tables["judgement.csv"] = judged[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_csv(folder / name, index=False)
        (folder / REPORT).write_text(report_html(run, evidence, replies, interventions), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "manifest.json").write_text(run.manifest.to_json(), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}; choose a folder that can be written") from error
    return [folder / name for name in (*tables, REPORT, "summary.json", "manifest.json")]


def export_pictures(run: Run, folder: str | Path) -> list[Path]:
    """Write the study's three figures and ``layer_distributions/``, the histogram of every site, as PNG.

    Raises:
        RenderingError: when there is no browser to draw them with, or it fails.
        RunError: when the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    drawn = {folder / f"{name}.png": picture for name, picture in pictures(run).items()}
    try:
        (folder / HISTOGRAMS).mkdir(parents=True, exist_ok=True)
        write_images(drawn)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}; choose a folder that can be written") from error
    return list(drawn)


def export_zip(run: Run, site: int) -> bytes:
    """Return a run's report as one zip: files, pictures, directions, and Python code that uses them at a site.

    Without a browser ``pictures.txt`` says why there are no pictures.
    """
    packed = BytesIO()
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        folder = Path(temporary)
        export_run(run, folder)
        try:
            export_pictures(run, folder)
        except RenderingError as error:
            (folder / "pictures.txt").write_text(f"{error}\n", encoding="utf-8")
        (folder / "use_with_transformers.py").write_text(transformers_snippet(run, site), encoding="utf-8")
        (folder / "use_with_transformer_lens.py").write_text(transformer_lens_snippet(run, site), encoding="utf-8")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{run.run_id}/{path.relative_to(folder)}")
        archive.write(run.path / DIRECTIONS, f"{run.run_id}/{DIRECTIONS}")
    return packed.getvalue()


def _prompts_with_projections(run: Run) -> pd.DataFrame:
    """Return every prompt with its in-sample and cross-fitted projections, one column per site."""
    columns: dict[str, np.ndarray] = {}
    for prefix, values in (
        ("projection", run.projections),
        ("projection_crossfit", run.projections_crossfit),
    ):
        columns |= {f"{prefix}_site_{site}": values[:, site] for site in range(run.n_sites)}
    return pd.concat([run.prompts, pd.DataFrame(columns)], axis=1)
