"""Labelled lists as transfer sets: what the direction makes of one, and those that are kept with a run."""

from __future__ import annotations

import streamlit as st

from refusal_core.errors import RefusalError, RunError
from refusal_core.exploration.kept_lists import LONGEST_NAME, KeptList, keep_list, load_lists, remove_list
from refusal_core.exploration.separation import Separation, separation
from refusal_core.figures import transfer as figures
from refusal_core.markdown import plain
from refusal_core.runs.manifest import ListsManifest
from refusal_core.runs.run import Run
from refusal_core.ui.frame import own_position_only
from refusal_core.ui.layout import addition_identity, chart, csv_button, show_error
from refusal_core.ui.outliers import separation_in_words
from refusal_core.ui.server import may_change, require_owner

_KEPT = "The lists that are kept with this run were read"
_CHOSEN, _NOT_KEPT, _NOT_REMOVED = "kept_list_chosen", "kept_list_not_kept", "kept_list_not_removed"


def show_separated(run: Run, known: KeptList, site: int, told: Separation, key: str) -> None:
    """Show how far apart the two labels of a list lie at a site.

    Args:
        run: the prompts were scored on.
        known: prompts of both labels.
        site: where they project.
        told: how far apart they lie there.
        key: distinguishes the figures of a page.
    """
    st.markdown(
        f"{_counts(told)} at {run.site_label(site)}: {separation_in_words(told)}",
        help="The list as a transfer set: nothing was fitted on it. In brackets 95 % intervals, the AUROC's by "
        "Newcombe's method, the others by bootstrap, pairs as one, the direction as it is. Of a list whose prompts the "
        "direction was fitted on they say nothing.",
    )
    values, labels = known.projections[:, site], known.prompts["label"].to_numpy(str)
    drawn = {"roc": figures.roc(values, labels), "histogram": figures.by_label(run, site, values, labels)}
    for column, (name, figure) in zip(st.columns(2), drawn.items(), strict=True):
        with column:
            chart(figure, f"{key}_{name}")


def keep_form(run: Run, known: KeptList) -> None:
    """Show a field for a name and a button that keeps a list with the run."""
    if failed := st.session_state.pop(_NOT_KEPT, None):
        show_error("This list was not kept.", failed, severe=False)
    if not may_change() or own_position_only(run, "Lists are kept with a run as they project"):
        return
    name, press = st.columns([3, 2], vertical_alignment="bottom")
    key = f"live_list_name_{known.name}"
    st.session_state.setdefault(key, known.name[:LONGEST_NAME])
    name.text_input(
        "Name of the list",
        key=key,
        max_chars=LONGEST_NAME,
        help="The list's labelled prompts and where they project are kept beside the run under this name. They go "
        "with the run when it is packed, not when it is pushed; the run's own numbers stay as they are.",
    )
    press.button("Keep with this run", icon=":material/bookmark_add:", on_click=_keep, args=(run, known, key))


def show_kept(run: Run, site: int, unfolded: bool) -> None:
    """Show the lists that are kept with the run, one at a time.

    Args:
        run: that they are kept with.
        site: where they project.
        unfolded: whether they can be seen at once.
    """
    if failed := st.session_state.pop(_NOT_REMOVED, None):
        show_error("This list was not removed.", failed, severe=False)
    lists = _kept_or_none(run)
    if not lists:
        return
    by_name = {kept.name: kept for kept in lists}
    with st.expander(f"Kept with this run ({len(lists)})", icon=":material/bookmarks:", expanded=unfolded):
        if st.session_state.get(_CHOSEN) not in by_name:
            st.session_state[_CHOSEN] = lists[0].name
        kept = by_name[st.selectbox("List", list(by_name), key=_CHOSEN)]
        show_separated(run, kept, site, _told(run, kept, site), "kept_list")
        with st.container(horizontal=True, vertical_alignment="center"):
            csv_button(lambda: kept.at(site).drop(columns=["fitted", "prompt_id"]), f"{run.run_id}--{kept.name}")
            if may_change():
                with st.popover("Remove", icon=":material/delete:", type="tertiary"):
                    st.caption("The list's prompts and projections are removed from this run and cannot be restored.")
                    st.button("Remove this list", key="kept_list_remove", on_click=_remove, args=(run, kept.name))


def kept_in_words(run: Run, site: int) -> None:
    """Say what the direction makes of every list that is kept with the run, where there are such."""
    lists = _kept_or_none(run)
    if not lists:
        return
    st.subheader("Lists kept with this run", anchor=False)
    for kept in lists:
        told = _told(run, kept, site)
        st.markdown(f"- **{plain(kept.name)}**, {_counts(told)}: {separation_in_words(told)}")
    st.caption(
        f"At {run.site_label(site)}, with 95 % intervals. These lists were chosen by whoever kept them and are no part "
        "of the evidence above; of prompts that the direction was fitted on they say nothing. Live score shows their "
        "curves."
    )


def _counts(told: Separation) -> str:
    return f"{told.counts['harmful']} harmful, {told.counts['harmless']} harmless"


def _kept_or_none(run: Run) -> list[KeptList] | None:
    """Return the lists that are kept with the run, or None after showing why there are none to be seen."""
    if (run.path / f"{ListsManifest.kind}.json").exists() and own_position_only(run, _KEPT):
        return None
    try:
        return _kept(*addition_identity(run, ListsManifest.kind), run)
    except RunError as error:
        show_error("The lists that are kept with this run cannot be read.", error)
        return None


@st.cache_resource(max_entries=8, show_spinner=False)
def _kept(run_id: str, changed: int, kept: int, _run: Run) -> list[KeptList]:
    return load_lists(_run)


def _told(run: Run, kept: KeptList, site: int) -> Separation:
    return _separation(*addition_identity(run, ListsManifest.kind), kept.name, site, kept)


@st.cache_data(max_entries=64, show_spinner=False)
def _separation(run_id: str, changed: int, kept: int, name: str, site: int, _list: KeptList) -> Separation:
    return separation(_list.at(site))


def _keep(run: Run, known: KeptList, key: str) -> None:
    try:
        require_owner()
        st.session_state[_CHOSEN] = keep_list(run, st.session_state[key], known.prompts, known.projections)
    except RefusalError as error:
        st.session_state[_NOT_KEPT] = str(error)
        return
    st.toast("Kept with this run", icon=":material/bookmark_added:")


def _remove(run: Run, name: str) -> None:
    try:
        require_owner()
        remove_list(run, name)
    except RefusalError as error:
        st.session_state[_NOT_REMOVED] = str(error)
