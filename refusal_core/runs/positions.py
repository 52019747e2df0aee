"""The read positions of a run, and the run as it is at one of them.

A position counts from the end of the templated prompt: -1 is the last token of the template (``t_post``), where a run
reads its prompts; before it lie the template's other closing tokens, and before these the last token of the user's
instruction (``t_inst``).
"""

from __future__ import annotations

from dataclasses import replace

from refusal_core.errors import RunError, first_line
from refusal_core.files import sha256_of
from refusal_core.runs.additions import POSITION_FILES, read_addition
from refusal_core.runs.manifest import PositionsManifest
from refusal_core.runs.run import LAST_TOKEN, T_INST, T_POST, Run
from refusal_core.runs.run_files import read_tables_at


def positions_of(manifest: PositionsManifest) -> range:
    """Return the read positions, counted from the end of the templated prompt, ``t_inst`` first and -1 last."""
    return range(-1 - len(manifest.closing_tokens), 0)


def position_label(position: int, manifest: PositionsManifest) -> str:
    """Return what a position is called: ``t_inst``, a closing token as it is written, or ``t_post``."""
    name = position_name(position, manifest)
    # A token is a stranger's text, and a line break has no letter.
    return name if name in (T_INST, T_POST) else repr(manifest.closing_tokens[position])[1:-1]


def position_name(position: int, manifest: PositionsManifest) -> str:
    """Return the name that is typed for a position: ``t_inst``, ``t_post``, or the number of a token between them."""
    ends = {LAST_TOKEN: T_POST, positions_of(manifest)[0]: T_INST}
    return ends.get(position, str(position))


def known_positions(run: Run) -> dict[str, str]:
    """Return the read positions that a run is known at, by name, and the token of each, the instruction's first.

    Raises:
        RunError: when what was measured at others is damaged.
    """
    stored = read_addition(run, PositionsManifest)
    if stored is None or not stored[1].files:
        return {T_POST: T_POST}
    return {
        position_name(position, stored[1]): position_label(position, stored[1]) for position in positions_of(stored[1])
    }


def run_at(run: Run, name: str) -> Run:
    """Return a run as it is at a read position, checking the files of that against their manifest.

    Raises:
        RunError: when the run was not measured there, or what was measured is damaged.
    """
    if name == run.read_at:
        return run
    known = known_positions(run)
    if name not in known:
        raise RunError(
            f"expected a read position that {run.path.name} was measured at ({', '.join(known)}), got {name!r:.40}"
        )
    if name == T_POST:
        from refusal_core.runs.store import open_run

        return open_run(run.path.name, run.path.parent)
    stored = read_addition(run, PositionsManifest)
    assert stored is not None
    _, manifest = stored
    others = list(positions_of(manifest))[:-1]
    place = list(known).index(name)
    try:
        for file in POSITION_FILES:
            path = run.path / file
            if path.is_symlink() or sha256_of(path) != manifest.files[file]:
                raise ValueError(f"{file} is not the file that {manifest.kind}.json describes")
        shape = run.n_sites, run.manifest.model.d_model
        tables = read_tables_at(
            run.path, others[place], place, len(others), run.tables.prompts, shape, run.manifest.estimator
        )
        at = replace(run, run_id=f"{run.path.name}@{name}", tables=tables, position=others[place], read_at=name)
        at.check_evidence()
    except Exception as error:  # a malformed file, whatever its reader calls it
        raise RunError(
            f"run {run.path.name!r} cannot be read at {name}: {first_line(error)}; measure its positions again"
        ) from error
    return at
