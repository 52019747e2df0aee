"""Marking prompts: the buttons and keys, the note, and marks as a csv file."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from refusal_core.annotations import marks
from refusal_core.annotations.marks import KINDS, Mark
from refusal_core.errors import RefusalError
from refusal_core.prompts.sets import MOST_BYTES
from refusal_core.runs.store import Run, cache_folder
from refusal_core.ui import address
from refusal_core.ui.layout import show_error
from refusal_core.ui.outliers import read, step

_KEYS = {"mislabelled": "M", "ambiguous": "A", "fine": "F"}
_UNDO, _FAILED = "marks_undo", "marks_failed"


def kept_marks() -> pd.DataFrame:
    """The marks in force; empty, and said so, when they cannot be read."""
    try:
        path = marks.marks_file(cache_folder())
        state = path.stat() if path.is_file() else None
        return _kept(str(path), (state.st_mtime_ns, state.st_size) if state else None)
    except RefusalError as error:
        show_error("The marks cannot be read.", error)
        return marks.table_of([])


def with_marks(prompts: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """A table of prompts with ``mark`` and ``marked_note``, empty where there is none."""
    found = kept.reindex(prompts["prompt_id"])
    return prompts.assign(mark=found["mark"].fillna("").to_numpy(), marked_note=found["note"].fillna("").to_numpy())


def judge(run: Run, found: pd.DataFrame, chosen: list[str], row: int | None, kept: pd.DataFrame) -> None:
    """Mark the chosen prompts, with a note, and go on to the next.

    Args:
        found: the prompts of the list.
        chosen: prompt_ids of the rows chosen in it.
        row: the prompt that is read.
    """
    if failed := st.session_state.pop(_FAILED, None):
        show_error("This mark was not kept.", failed)
    if row is not None:
        reading = run.prompts["prompt_id"][row]
        together = chosen if len(chosen) > 1 else [reading]
        texts = dict(zip(run.prompts["prompt_id"], run.prompts["text"], strict=True))
        marked = {each: texts[each] for each in together}
        notes = kept["note"].reindex(together).fillna("").to_dict()
        current = kept.loc[reading] if reading in kept.index else None
        note_key = f"marks_note_{reading}"
        st.session_state.setdefault(note_key, "" if current is None else current["note"])
        if len(together) > 1:
            st.markdown(f"**{len(together)} prompts chosen: a mark is for all of them.**")
        with st.container(horizontal=True, gap="small", key="marks_buttons"):
            for kind, meaning in KINDS.items():
                # Each button belongs to its prompt, so that a key pressed twice marks none that was not read.
                st.button(
                    kind,
                    key=f"marks_{kind}_{reading}",
                    type="primary" if current is not None and current["mark"] == kind else "secondary",
                    shortcut=_KEYS[kind],
                    help=meaning.capitalize() + ".",
                    on_click=_mark,
                    args=(reading, marked, kind, note_key, notes),
                )
        st.text_input(
            "Note",
            key=note_key,
            max_chars=marks.LONGEST_NOTE,
            placeholder="why, if it needs saying",
            on_change=_note,
            args=(reading, texts[reading], None if current is None else current["mark"], note_key),
            persist_state="session",
            help="Kept with the mark of the prompt that is read. It can be typed before or after marking.",
        )
        listed = found["prompt_id"].tolist()
        st.caption(
            f"{listed.index(reading) + 1} of {len(listed)} in the list" if reading in listed else "not in the list"
        )
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Previous", icon=":material/arrow_back:", shortcut="P", on_click=step, args=(-1,), disabled=found.empty
        )
        st.button("Next", icon=":material/arrow_forward:", shortcut="N", on_click=step, args=(1,), disabled=found.empty)
        if row is not None:
            st.button(
                "Take back",
                icon=":material/ink_eraser:",
                key=f"marks_none_{reading}",
                shortcut="X",
                help="Removes the mark and its note.",
                disabled=not any(each in kept.index for each in marked),
                on_click=_mark,
                args=(reading, marked, "", note_key, {}),
            )
        st.button(
            "Undo",
            icon=":material/undo:",
            shortcut="U",
            help="Puts back what was there before your last mark in this tab.",
            disabled=not st.session_state.get(_UNDO),
            on_click=_undo,
        )
    st.toggle(
        "Go to the next after marking",
        key="marks_go_on",
        value=True,
        persist_state="session",
        help="Of the list, in its order.",
    )


def files(kept: pd.DataFrame) -> None:
    """All marks as csv, and marks from one."""
    # No count in its name: with another name it would be another one, and folded again.
    with st.expander("All marks", icon=":material/bookmarks:"):
        counts = kept["mark"].value_counts()
        st.caption(
            "Marks belong to prompts, not to runs: every run on the same prompts shows them. "
            + (", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "Nothing is marked yet")
            + "."
        )
        st.download_button(
            "Download the marks",
            marks.to_csv(kept),
            "marks.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            disabled=kept.empty,
        )
        file = st.file_uploader(
            "Add marks from a csv with a mark column, and a prompt_id or text column",
            type="csv",
            max_upload_size=MOST_BYTES // 1_000_000,
            key="marks_file",
        )
        if file is None:
            return
        try:
            added = marks.read_marks(file)
        except RefusalError as error:
            show_error("These marks cannot be used.", error)
            return
        replaced = sum(each.prompt_id in kept.index for each in added)
        st.button(
            f"Add {len(added)} marks",
            icon=":material/upload:",
            help=f"{replaced} of them are in place of a mark that is here.",
            disabled=not added,
            on_click=_add,
            args=(added,),
        )


@st.cache_data(max_entries=4, show_spinner=False)
def _kept(path: str, state: tuple[int, int] | None) -> pd.DataFrame:
    return marks.kept()


def _mark(reading: str, prompts: dict[str, str], kind: str, note_key: str, notes: dict[str, str]) -> None:
    """Mark prompts; one that has a note of its own keeps it.

    Args:
        prompts: texts by prompt_id.
        kind: empty takes their marks and notes away.
        notes: those kept, by prompt_id.
    """
    # A key may still reach the buttons of the prompt before, which the browser keeps until the page is drawn.
    if address.view().prompt != reading:
        return
    typed = st.session_state.get(note_key, "") if kind else ""
    notes = {each: typed if each == reading else notes.get(each) or typed for each in prompts}
    if _keep([Mark(each, text, kind, notes[each]) for each, text in prompts.items()]) and kind:
        if st.session_state.get("marks_go_on", True):
            step(1)
    elif not kind:
        st.session_state[note_key] = ""


def _note(reading: str, text: str, mark: str | None, note_key: str) -> None:
    """A note on a prompt that is marked goes into its mark at once; on another it waits for one."""
    if mark is not None:
        _keep([Mark(reading, text, mark, st.session_state[note_key])])


def _add(new: list[Mark]) -> None:
    _keep(new)


def _keep(new: list[Mark]) -> bool:
    """Keep marks and remember what was there; whether that went well."""
    try:
        before = marks.kept()
        earlier = [
            Mark(*before.loc[each.prompt_id, list(marks.COLUMNS)])
            if each.prompt_id in before.index
            else Mark(each.prompt_id, each.text, "")
            for each in new
        ]
        marks.keep(new)
    except RefusalError as error:
        st.session_state[_FAILED] = str(error)
        return False
    st.session_state.setdefault(_UNDO, []).append(earlier)
    return True


def _undo() -> None:
    earlier = st.session_state[_UNDO].pop()
    try:
        marks.keep(earlier)
    except RefusalError as error:
        st.session_state[_FAILED] = str(error)
        return
    for each in earlier:
        st.session_state[f"marks_note_{each.prompt_id}"] = each.note
    # Of many, as a file brings them, none is the one to look at.
    if len(earlier) == 1:
        read(earlier[0].prompt_id)
