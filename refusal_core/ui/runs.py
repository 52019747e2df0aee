"""The parts of the Runs page: jobs, the table of runs, actions on a run, and importing."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import pandas as pd
import streamlit as st

from refusal_core.behaviour.measurement import BEHAVIOUR
from refusal_core.errors import RefusalError
from refusal_core.intervention.experiment import INTERVENTION
from refusal_core.markdown import plain
from refusal_core.runs import store
from refusal_core.runs.manifest import LAYER_STATS
from refusal_core.runs.run_files import read_table
from refusal_core.runs.store import BrokenRun, RunSummary
from refusal_core.sharing.archives import pack_run
from refusal_core.sites import best_layer
from refusal_core.ui import address, jobs
from refusal_core.ui.attribution import KIND as ATTRIBUTION
from refusal_core.ui.background import duration, how_it_ended, offer, start_button, watch
from refusal_core.ui.frame import default_run, described, listed, shared_run
from refusal_core.ui.harm import KIND as POSITIONS
from refusal_core.ui.judgement import KIND as JUDGEMENT
from refusal_core.ui.layout import show_error
from refusal_core.ui.model import measure_here
from refusal_core.ui.selection import chosen_row
from refusal_core.ui.server import may_change, require_owner, told
from refusal_core.ui.slow_downloads import limited
from refusal_core.ui.subspace import KIND as SUBSPACE
from refusal_core.ui.trajectory import KIND as TRAJECTORY
from refusal_core.ui.uploads import import_sent
from refusal_core.ui.vectors import command_for_vectors

_FIELD, _BROKEN, _NOTICE, _IMPORTED = "runs_chosen", "runs_broken", "runs_notice", "runs_imported"
_SELDOM = ("broken", "note", "origin")
"""Columns that are there where some run has something in them."""
_MOST_MEGABYTES = 1000
"""The most of a packed run that can be uploaded here: the browser holds it in memory. The command line takes more."""
_COLUMNS = {
    "title": st.column_config.TextColumn(
        "run", width=232, help="The title it was given, else its contrast set and model."
    ),
    "model": st.column_config.TextColumn("model", width=172, help="The model whose activations were read."),
    "set": st.column_config.TextColumn("set", width=68, help="The prompts the direction was fitted on."),
    "prompts": st.column_config.TextColumn("prompts", help="Harmful + harmless prompts of the contrast set."),
    "d": st.column_config.NumberColumn(
        "d", format="%.2f", help="The highest cross-fitted d of its layers; of imported vectors their own d."
    ),
    "layers": st.column_config.NumberColumn("layers", help="Blocks of the model; the final norm is one site more."),
    "dtype": st.column_config.TextColumn("dtype", help="The number format that the model was computed in."),
    "made": st.column_config.TextColumn("made", help="The day on which the run was made, in UTC."),
    "size": st.column_config.NumberColumn("MB", format="%.1f", help="What the run's folder takes on disk."),
    "note": st.column_config.TextColumn("note", width=160, help="Its note, with tags as #words."),
    "origin": st.column_config.TextColumn(
        "made from", width=160, help="The run that it is a refit of, or the vectors."
    ),
    "broken": st.column_config.TextColumn("broken", width=300, help="Why a folder of the cache cannot be opened."),
}


def running_jobs() -> None:
    """Show the running jobs with their progress."""
    for job in jobs.all_jobs():
        if job.state == "running":
            with st.container(border=True):
                st.markdown(f"**{plain(told(job.command.title))}**")
                watch(job, "above")


def recent_jobs() -> None:
    """Show the recent jobs: their results, and a button for another try where one makes sense."""
    ended = [job for job in jobs.all_jobs() if job.state != "running"]
    if not ended:
        return
    st.subheader("Recent jobs", anchor=False)
    for job in ended:
        with st.container(border=True):
            when = datetime.fromtimestamp(job.began, UTC).strftime("%d %B %Y, %H:%M UTC")
            st.markdown(f"**{plain(told(job.command.title))}**")
            st.caption(f"{job.state} after {duration(job.seconds)} · started {when}")
            how_it_ended(job)
            with st.container(horizontal=True):
                made = _run_of(job)
                if made is not None:
                    _open_button(made, f"open_{job.name}")
                if job.state != "done":
                    label = "Continue" if job.state == "cancelled" else "Try again"
                    start_button(job.command, label, ":material/play_arrow:", "recent")
                if not may_change():
                    continue
                st.button(
                    "Dismiss",
                    icon=":material/close:",
                    key=f"dismiss_{job.name}",
                    on_click=jobs.forget,
                    args=(job.name,),
                    help="Removes this from the list. Its results stay.",
                )


def run_table() -> RunSummary | BrokenRun | None:
    """Show the runs and broken folders of the cache, and return the one that is chosen."""
    summaries, broken = listed()
    entries: dict[str, RunSummary | BrokenRun] = {summary.run_id: summary for summary in summaries}
    entries |= {problem.name: problem for problem in broken}
    if not entries:
        st.info(
            "There are no runs in the cache yet. Start one, or import one that someone sent.",
            icon=":material/folder_open:",
        )
        return None
    table = pd.DataFrame([_row(entry) for entry in entries.values()], index=list(entries), columns=list(_COLUMNS))
    seldom = {name: table[name].astype(object).where(table[name].notna(), "") for name in _SELDOM}
    table = table.assign(**seldom)
    columns = {name: column for name, column in _COLUMNS.items() if name not in _SELDOM or seldom[name].ne("").any()}
    find = st.text_input(
        "Find runs",
        key="runs_find",
        live="300ms",
        icon=":material/search:",
        placeholder="part of a name, model, set, note or #tag",
    )
    words = find.casefold().split()
    said = [" ".join(map(str, (name, *row))).casefold() for name, row in zip(entries, table.to_numpy(), strict=True)]
    table = table[[all(word in text for word in words) for text in said]]
    if table.empty:
        st.caption("No run has these words.")
    if summaries and address.view().run is None:
        address.change(run=default_run(summaries))
    height: Literal["content"] | int = "content" if len(table) < 12 else 440
    clicked = chosen_row(table, columns, "runs_table", _chosen(summaries, broken), height)
    if clicked is not None:
        _choose(clicked, broken)
    chosen = _chosen(summaries, broken)
    # Filled each time: a run's name on screen changes when another is added, and a field would keep the old one.
    st.selectbox(
        "Chosen",
        list(entries),
        format_func=lambda name: _title(entries[name]),
        key=address.fill(_FIELD, chosen),
        on_change=lambda: _choose(st.session_state[_FIELD], broken),
        help="The run that all pages show. A row of the table can be chosen, too.",
    )
    return entries[chosen]


def _choose(name: str, broken: list[BrokenRun]) -> None:
    """Choose a run for all pages, or a broken folder, which this page alone can show."""
    if any(problem.name == name for problem in broken):
        st.session_state[_BROKEN] = name
        return
    st.session_state.pop(_BROKEN, None)
    if name != address.view().run:
        address.open_run(name)


def _chosen(summaries: list[RunSummary], broken: list[BrokenRun]) -> str:
    """Return the broken folder that was chosen, else the run that all pages show."""
    chosen, viewed = st.session_state.get(_BROKEN), address.view().run
    if any(problem.name == chosen for problem in broken):
        return str(chosen)
    if any(summary.run_id == viewed for summary in summaries):
        return str(viewed)
    return default_run(summaries) if summaries else broken[0].name


def chosen_run(entry: RunSummary | BrokenRun) -> None:
    """Show the actions on a run, or on a folder that is not a run."""
    notice = st.session_state.pop(_NOTICE, None)
    if notice is not None:
        st.success(plain(notice), icon=":material/check:")
    if isinstance(entry, BrokenRun):
        show_error("This folder of the cache is not a run that can be opened.", entry.reason)
        if may_change():
            _delete(entry.name, entry.name)
        return
    st.subheader(plain(_title(entry)), anchor=False)
    st.text(" · ".join(filter(None, (entry.run_id, entry.origin, entry.note))))
    with st.container(horizontal=True):
        _open_button(entry.run_id, "open_chosen")
        if may_change():
            _rename(entry)
            _note(entry)
        st.download_button(
            "Pack and download",
            data=limited(lambda: _packed(entry.run_id)),
            file_name=f"{entry.run_id}.zip",
            mime="application/zip",
            icon=":material/download:",
            on_click="ignore",
            key=f"pack_{entry.run_id}",
            help=f"The run as one zip file ({entry.size_bytes / 1e6:.1f} MB before packing), which Import reads.",
        )
        verify = st.button(
            "Verify", icon=":material/verified:", help="Compare every file with its hash in the run's manifest."
        )
        if may_change():
            _delete(entry.run_id, _title(entry))
    if verify:
        try:
            files = store.verify_run(entry.run_id)
            st.success(f"{len(files)} files match the manifest.", icon=":material/verified:")
        except RefusalError as error:
            show_error("This run is damaged.", error)
    _measurements(entry.run_id)


def deleted_runs() -> None:
    """Show the runs that were deleted lately, with a button that restores each."""
    names = store.deleted_runs() if may_change() else []
    if not names:
        return
    with st.expander("Deleted runs", icon=":material/restore_from_trash:"):
        for name in names:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.text(name)
                if st.button("Restore", icon=":material/undo:", key=f"restore_{name}"):
                    _done(partial(store.restore_run, name), f"Restored {name}.")


def import_a_run() -> None:
    """Show a field for a packed run, which is checked and added to the cache."""
    st.caption(
        "A zip file from Pack and download. It is checked before it is added: names, sizes, and all hashes against its "
        "manifest. Nothing in it is executed."
    )
    sent = st.file_uploader("A packed run", type="zip", key="runs_import", max_upload_size=_MOST_MEGABYTES)
    if sent is None:
        return
    if st.button("Import", icon=":material/upload_file:", type="primary"):
        st.session_state.pop(_IMPORTED, None)
        try:
            require_owner()
            with st.spinner("Checking the run …"):
                st.session_state[_IMPORTED] = sent.file_id, import_sent(sent)
        except RefusalError as error:
            show_error("This file was refused; nothing was imported.", error)
    of, imported = st.session_state.get(_IMPORTED, (None, None))
    if of != sent.file_id:
        return
    if imported.new:
        st.success("Imported: all files match the manifest.", icon=":material/check:")
    else:
        st.info("This run is here already, with the same files; nothing was changed.", icon=":material/check:")
    st.text(imported.run_id)
    _open_button(imported.run_id, "open_imported")


def import_vectors_for(chosen: RunSummary | BrokenRun | None) -> None:
    """Show fields for vectors that someone made, to be put to the questions on the chosen run's prompts."""
    st.subheader("Someone else's direction", anchor=False)
    if not isinstance(chosen, RunSummary):
        st.caption("Choose a run of the model that the vectors are of: its prompts are taken.")
        return
    try:
        run = shared_run(chosen.run_id)
    except RefusalError as error:
        show_error("This run cannot be opened.", error)
        return
    command = command_for_vectors(run)
    if command is None:
        return
    job = jobs.status(command.name)
    made = _run_of(job) if job is not None else None
    if made is None:
        offer(command, "Import the vectors", ":material/upload_file:")
    else:
        st.success("Imported, as a run of its own.", icon=":material/check:")
        _open_button(made, "open_vectors")


def _row(entry: RunSummary | BrokenRun) -> dict[str, object]:
    if isinstance(entry, BrokenRun):
        return {"title": entry.name, "broken": told(entry.reason)}
    return {
        "title": _title(entry),
        "model": entry.model,
        "set": entry.contrast_set,
        "prompts": " + ".join(str(count) for count in entry.counts.values()),
        "d": _highest_d(entry.run_id, entry.created),
        "layers": entry.n_layers,
        "dtype": entry.dtype,
        "made": entry.created[:10],
        "size": entry.size_bytes / 1e6,
        "note": entry.note,
        "origin": entry.origin,
    }


@st.cache_data(max_entries=512, show_spinner=False)
def _highest_d(run_id: str, created: str) -> float:
    """Return the highest cross-fitted d of a run's layers; NaN where it has none or cannot be read."""
    del created  # a run that is made again under its name is read again
    try:
        d = read_table(store.cache_folder() / run_id / LAYER_STATS)["crossfit_d"].to_numpy(float)
    except Exception:  # a malformed file, whatever its reader calls it: it is said where the run is opened
        return float("nan")
    return float(d[best_layer(d)])


def _title(entry: RunSummary | BrokenRun) -> str:
    return entry.name if isinstance(entry, BrokenRun) else described(entry, listed()[0])


def _open_button(run_id: str, key: str) -> None:
    if st.button("Open", icon=":material/open_in_new:", type="primary", key=key):
        address.open_run(run_id)
        st.switch_page("app.py")


def _stored(entry: RunSummary, text: str) -> str:
    """Return a key of fields for a stored text, other for another text: what somebody else saved meanwhile is shown."""
    return f"{entry.run_id}_{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}"


def _rename(entry: RunSummary) -> None:
    stored = _stored(entry, entry.title)
    with st.popover("Rename", icon=":material/edit:"):
        title = st.text_input(
            "Title",
            value=entry.title,
            max_chars=store.LONGEST_TITLE,
            key=f"title_{stored}",
            help="Shown instead of the run's name, which stays, so that the same request finds the same run.",
        )
        if st.button("Save title", key=f"rename_{stored}"):
            _done(lambda: store.rename_run(entry.run_id, title), f"Renamed to {title}." if title else "Title removed.")


def _note(entry: RunSummary) -> None:
    stored = _stored(entry, entry.note)
    with st.popover("Note", icon=":material/sell:"):
        note = st.text_input(
            "Note and tags",
            value=entry.note,
            max_chars=store.LONGEST_NOTE,
            key=f"note_{stored}",
            placeholder="#paper the run of figure 2",
            help="One line, kept beside the run, which is not changed. Words with # are tags: all are found above.",
        )
        if st.button("Save note", key=f"save_note_{stored}"):
            _done(lambda: store.note_run(entry.run_id, note), "Note saved." if note else "Note removed.")


def _delete(name: str, title: str) -> None:
    with st.popover("Delete", icon=":material/delete:"):
        st.text(f"Delete {title}?")
        st.caption(
            f"With all that was measured on this run. It can be restored for {store.DAYS_IN_BIN} days, here below."
        )
        if st.button("Delete the run", icon=":material/delete:", type="primary", key=f"delete_{name}"):
            if address.view().run == name:
                address.open_run(None)
            _done(lambda: store.delete_run(name), f"Deleted {title}.")


def _done(do: Callable[[], object], notice: str) -> None:
    """Do something that changes the cache and draw the page again with a notice."""
    try:
        require_owner()
        do()
    except RefusalError as error:
        show_error("This did not work.", error)
        return
    st.session_state[_NOTICE] = notice
    st.rerun()


def _packed(run_id: str) -> bytes:
    packed = io.BytesIO()
    pack_run(run_id, packed)
    return packed.getvalue()


def _measurements(run_id: str) -> None:
    """Show what was measured on a run, or a button that measures it."""
    try:
        run = shared_run(run_id)
    except RefusalError as error:
        show_error("This run cannot be opened.", error)
        return
    kinds = {
        BEHAVIOUR: ("how the model answers", True),
        INTERVENTION: ("what edits of the model change", True),
        SUBSPACE: ("how many directions there are", not run.keeps_activations),
        POSITIONS: ("where harm and refusing are read", True),
        ATTRIBUTION: ("what adds to the direction", True),
        TRAJECTORY: ("the projection along replies", True),
        JUDGEMENT: ("whether steering moves judgement or refusing", True),
    }
    measured = [name for name in kinds if (run.path / f"{name}.json").exists()]
    if measured:
        st.markdown(f":material/check: Measured on this run: {', '.join(kinds[name][0] for name in measured)}.")
    for name, (what, with_model) in kinds.items():
        if name in measured:
            continue
        with st.expander(f"Not measured yet: {what}", icon=":material/science:"):
            measure_here(run, name, with_model)


def _run_of(job: jobs.Job) -> str | None:
    """Return the run that a finished job made or worked on: the last one of the cache that its log names."""
    here = {summary.run_id for summary in listed()[0]}
    named = [line.strip() for line in jobs.log(job.name).splitlines()] if job.state == "done" else []
    return next((line for line in reversed([*job.command.arguments, *named]) if line in here), None)
