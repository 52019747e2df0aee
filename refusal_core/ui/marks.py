"""Marks on prompts: buttons and keys, the note, and marks as a csv file."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from refusal_core.annotations import marks, raters
from refusal_core.annotations.marks import KINDS, Mark
from refusal_core.errors import RefusalError
from refusal_core.runs.run import Run
from refusal_core.runs.store import cache_folder
from refusal_core.ui import address
from refusal_core.ui.layout import show_error
from refusal_core.ui.outliers import read, step
from refusal_core.ui.server import may_change, person, require_owner
from refusal_core.ui.uploads import annotation_file, read_sent

_KEYS = {"mislabelled": "M", "ambiguous": "A", "fine": "F"}
_UNDO, _FAILED, _AUTHOR = "marks_undo", "marks_failed", "marks_author"
_NOTE = "marks_note_"


def current_marks() -> pd.DataFrame:
    """Return the current marks; none, with an error on the page, when they cannot be read."""
    try:
        path = marks.marks_path(cache_folder())
        state = path.stat() if path.is_file() else None
        return _read(str(path), (state.st_mtime_ns, state.st_size) if state else None)
    except RefusalError as error:
        show_error("The marks cannot be read.", error)
        return marks.marks_table([])


def with_marks(prompts: pd.DataFrame, current: pd.DataFrame) -> pd.DataFrame:
    """Return a table of prompts with ``mark`` and ``marked_note``, empty where there is none."""
    joined = marks.kinds_by_prompt(current).reindex(prompts["prompt_id"])
    return prompts.assign(mark=joined["mark"].fillna("").to_numpy(), marked_note=joined["note"].fillna("").to_numpy())


def judge(run: Run, listed: pd.DataFrame, chosen: list[str], row: int | None, current: pd.DataFrame) -> None:
    """Show the buttons that mark the chosen prompts, the note, and the buttons to the next and previous prompt.

    Args:
        run: the prompts belong to.
        listed: the prompts of the list.
        chosen: prompt_ids of the rows chosen in it.
        row: the prompt that is read.
        current: all marks.
    """
    own, misnamed = marks.marks_by(current, _author()), _misnamed()
    if failed := st.session_state.pop(_FAILED, None):
        show_error("This mark was not saved.", failed)
    if not may_change():
        st.caption("Marks are the owner's to change here.")
    elif row is not None:
        reading = run.prompts["prompt_id"][row]
        together = chosen if len(chosen) > 1 else [reading]
        texts = dict(zip(run.prompts["prompt_id"], run.prompts["text"], strict=True))
        marked = {prompt_id: texts[prompt_id] for prompt_id in together}
        notes = own["note"].reindex(together).fillna("").to_dict()
        mark = own.loc[reading] if reading in own.index else None
        note_key = f"{_NOTE}{reading}"
        st.session_state.setdefault(note_key, "" if mark is None else mark["note"])
        if len(together) > 1:
            st.markdown(f"**{len(together)} prompts chosen: a mark is for all of them.**")
        with st.container(horizontal=True, gap="small", key="marks_buttons"):
            for kind, meaning in KINDS.items():
                # A button belongs to its prompt, so that a key pressed twice marks none that was not read.
                st.button(
                    kind,
                    key=f"marks_{kind}_{reading}",
                    type="primary" if mark is not None and mark["mark"] == kind else "secondary",
                    shortcut=_KEYS[kind],
                    help=meaning.capitalize() + ".",
                    disabled=misnamed is not None,
                    on_click=_mark,
                    args=(reading, marked, kind, note_key, notes),
                )
        st.text_input(
            "Note",
            key=note_key,
            max_chars=marks.LONGEST_NOTE,
            placeholder="why (optional)",
            on_change=_note,
            args=(reading, texts[reading], None if mark is None else mark["mark"], note_key),
            persist_state="session",
            help="Saved with the mark of the prompt that is read. It can be typed before or after marking.",
        )
        _others(current[current["prompt_id"].eq(reading) & current["author"].ne(_author())])
        ids = listed["prompt_id"].tolist()
        st.caption(f"{ids.index(reading) + 1} of {len(ids)} in the list" if reading in ids else "not in the list")
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Previous", icon=":material/arrow_back:", shortcut="P", on_click=step, args=(-1,), disabled=listed.empty
        )
        st.button(
            "Next", icon=":material/arrow_forward:", shortcut="N", on_click=step, args=(1,), disabled=listed.empty
        )
        if row is not None and may_change():
            st.button(
                "Remove mark",
                icon=":material/ink_eraser:",
                key=f"marks_none_{reading}",
                shortcut="X",
                help="Removes the mark and its note.",
                disabled=misnamed is not None or not any(prompt_id in own.index for prompt_id in marked),
                on_click=_mark,
                args=(reading, marked, "", note_key, {}),
            )
        st.button(
            "Undo",
            icon=":material/undo:",
            shortcut="U",
            help="Restores the state before your last mark in this tab.",
            disabled=not st.session_state.get(_UNDO),
            on_click=_undo,
        )
    st.toggle(
        "Next prompt after marking",
        key="marks_go_on",
        value=True,
        persist_state="session",
    )
    if may_change() and not person():
        st.text_input(
            "Your name, or a code",
            key=_AUTHOR,
            max_chars=marks.LONGEST_AUTHOR,
            placeholder="nobody's (optional)",
            on_change=_change_author,
            persist_state="session",
            help="Marks are saved under it, so that several people's marks on a prompt all stay.",
        )
    if may_change() and misnamed is not None:
        show_error("Nothing can be marked under this name.", misnamed, severe=False)


def files(current: pd.DataFrame) -> None:
    """Offer all marks as csv, and a field for marks from one."""
    # No count in its name: with another name it would be another expander, and folded again.
    with st.expander("All marks", icon=":material/bookmarks:"):
        counts = current["mark"].value_counts()
        st.caption(
            "Marks belong to prompts, not to runs: every run on the same prompts shows them. "
            + (", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "Nothing is marked yet")
            + "."
        )
        st.download_button(
            "Download the marks",
            marks.to_csv(current),
            "marks.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            disabled=current.empty,
        )
        file = annotation_file("Add marks from a csv with a mark column, and a prompt_id or text column", "marks_file")
        if file is None or not may_change():
            return
        try:
            added = read_sent(marks.read_marks, file.name, file.getvalue(), None)
        except RefusalError as error:
            show_error("These marks cannot be used.", error)
            return
        # Whoever sends marks without authors answers for them.
        added = [mark if mark.author else replace(mark, author=_author()) for mark in added]
        here = set(zip(current["prompt_id"], current["author"], strict=True))
        replaced = sum(mark.key in here for mark in added)
        st.button(
            f"Add {len(added)} marks",
            icon=":material/upload:",
            help=f"{replaced} of them replace a mark that is here.",
            disabled=not added or _misnamed() is not None,
            on_click=_add,
            args=(added,),
        )


@st.cache_data(max_entries=4, show_spinner=False)
def _read(path: str, state: tuple[int, int] | None) -> pd.DataFrame:
    return marks.load_marks()


def _author() -> str:
    """Return who marks in this tab; nobody where they did not say, or said what cannot be a name."""
    typed = _named()
    return raters.normalise_name(typed) if typed.strip() and _misnamed() is None else marks.NOBODY


def _named() -> str:
    """Return who has logged in, or what was typed as a name where nobody does."""
    return person() or str(st.session_state.get(_AUTHOR) or "")


def _misnamed() -> RefusalError | None:
    """Return why what was typed as a name cannot be one; while it cannot, nothing is marked."""
    typed = _named()
    try:
        if typed.strip():
            raters.normalise_name(typed)
    except RefusalError as error:
        return error
    return None


def _change_author() -> None:
    """Forget the notes on screen, which are somebody else's from now on."""
    for key in [key for key in st.session_state if str(key).startswith(_NOTE)]:
        del st.session_state[key]


def _others(given: pd.DataFrame) -> None:
    """Show what others marked the prompt as."""
    for mark in given.itertuples():
        note = f": {mark.note}" if mark.note else ""
        st.text(f"{mark.mark}, by {mark.author or 'somebody who gave no name'}{note}")


def _mark(reading: str, prompts: dict[str, str], kind: str, note_key: str, notes: dict[str, str]) -> None:
    """Mark prompts; one that has a note of its own keeps it.

    Args:
        reading: prompt_id of the prompt that is read.
        prompts: texts by prompt_id.
        kind: empty removes their marks and notes.
        note_key: of the field for the note.
        notes: the saved ones, by prompt_id.
    """
    # A key may still reach the buttons of the prompt before, which the browser keeps until the page is drawn.
    if address.view().prompt != reading:
        return
    typed = st.session_state.get(note_key, "") if kind else ""
    notes = {prompt_id: typed if prompt_id == reading else notes.get(prompt_id) or typed for prompt_id in prompts}
    given = [Mark(prompt_id, text, kind, notes[prompt_id], author=_author()) for prompt_id, text in prompts.items()]
    if _save(given) and kind:
        if st.session_state.get("marks_go_on", True):
            step(1)
    elif not kind:
        st.session_state[note_key] = ""


def _note(reading: str, text: str, mark: str | None, note_key: str) -> None:
    """Save a note with the prompt's mark; without a mark it waits for one."""
    if mark is not None:
        _save([Mark(reading, text, mark, st.session_state[note_key], author=_author())])


def _add(new: list[Mark]) -> None:
    _save(new)


def _save(new: list[Mark]) -> bool:
    """Save marks and remember the state before; return whether that worked."""
    try:
        require_owner()
        if (misnamed := _misnamed()) is not None:
            raise misnamed
        rows = marks.load_marks()[list(marks.COLUMNS)].itertuples(index=False, name=None)
        before = {mark.key: mark for mark in (Mark(*row) for row in rows)}
        earlier = [before.get(mark.key, Mark(mark.prompt_id, mark.text, "", author=mark.author)) for mark in new]
        marks.save_marks(new)
    except RefusalError as error:
        st.session_state[_FAILED] = str(error)
        return False
    st.session_state.setdefault(_UNDO, []).append(earlier)
    return True


def _undo() -> None:
    earlier = st.session_state[_UNDO].pop()
    try:
        require_owner()
        marks.save_marks(earlier)
    except RefusalError as error:
        st.session_state[_FAILED] = str(error)
        return
    for mark in earlier:
        if mark.author == _author():
            st.session_state[f"{_NOTE}{mark.prompt_id}"] = mark.note
    # Of many, which a file brought, none is the one to look at.
    if len(earlier) == 1:
        read(earlier[0].prompt_id)
