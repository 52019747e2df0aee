"""The frame of a page: navigation, title, run picker, and the run itself, opened once for all visitors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from refusal_core.errors import RunError
from refusal_core.markdown import plain
from refusal_core.runs.manifest import (
    MANIFEST,
    BehaviourManifest,
    InterventionManifest,
    PositionsManifest,
    SubspaceManifest,
)
from refusal_core.runs.run import T_POST, Run
from refusal_core.runs.store import BrokenRun, RunSummary, cache_folder, list_runs, open_run, run_notes, run_titles
from refusal_core.ui import address, jobs
from refusal_core.ui.accessibility import make_accessible
from refusal_core.ui.layout import addition_identity, heading, modified, show_error
from refusal_core.ui.server import person_field, stop_unguarded, told
from refusal_core.ui.streamlit_internals import component

_NO_CHOICE = "The read position that is chosen on other pages does not apply here."
_ICON = Path(__file__).with_name("icon.png")
_SIDEBAR_PIXELS = 232
_WATCHED = "frame_watched_jobs"
_ENDED = {"done": ":material/check:", "failed": ":material/error:", "cancelled": ":material/pause:"}
_HOME = ("app.py", "Home", "home")
_NAVIGATION = {
    "Look": (
        ("pages/1_Layers.py", "Layers", "layers"),
        ("pages/13_Map.py", "Map", "scatter_plot"),
        ("pages/3_Outliers.py", "Outliers", "find_in_page"),
        ("pages/4_Live_score.py", "Live score", "edit_note"),
    ),
    "Test": (
        ("pages/2_Evidence.py", "Evidence", "fact_check"),
        ("pages/12_Subspace.py", "Subspace", "account_tree"),
        ("pages/5_Behaviour.py", "Behaviour", "forum"),
        ("pages/14_Harm.py", "Harm and refusal", "call_split"),
        ("pages/6_Causality.py", "Causality", "science"),
    ),
    "People": (
        ("pages/7_Ratings.py", "Ratings", "reviews"),
        ("pages/8_Rate.py", "Rate prompts", "rate_review"),
    ),
    "Runs": (
        ("pages/10_Runs.py", "Runs", "folder_open"),
        ("pages/9_Compare.py", "Compare", "compare"),
    ),
}
_GLOSSARY = ("pages/11_Glossary.py", "Glossary", "menu_book")
_ON_PAGES = {kind.kind for kind in (BehaviourManifest, InterventionManifest, SubspaceManifest, PositionsManifest)}
"""The measurements without which a page has nothing to show; others are a part of one."""
PAGES = (_HOME, *chain.from_iterable(_NAVIGATION.values()), _GLOSSARY)
"""File, name and icon of every page."""


def head(title: str, line: str) -> DeltaGenerator:
    """Begin a page: its navigation, title and purpose; return the place for what it shows at the right of its title.

    Args:
        title: the page's name.
        line: one sentence that says what the page is for.
    """
    st.set_page_config(
        page_title=f"{title} · Refusal directions",
        page_icon=str(_ICON),
        layout="wide",
        initial_sidebar_state=_SIDEBAR_PIXELS,
    )
    stop_unguarded()
    address.show_run(None)
    with st.sidebar:
        _page_link(*_HOME)
        for group, pages in _NAVIGATION.items():
            st.caption(group)
            for page in pages:
                _page_link(*page)
        st.space("small")
        _page_link(*_GLOSSARY)
        person_field()
        _job_indicator()
        component("close_menu")(key="close_menu")
    make_accessible()
    left, right = st.columns([3, 2], gap="medium", vertical_alignment="center")
    left.title(title, anchor=False)
    left.caption(line)
    return right


def _job_indicator() -> None:
    """Show what runs in the background, and say once when it has ended, on whichever page the visitor is."""
    running = {job.name for job in jobs.all_jobs() if job.state == "running"}
    for name in sorted(set(st.session_state.get(_WATCHED, ())) - running):
        ended = jobs.status(name)
        if ended is not None:
            st.toast(f"{plain(told(ended.command.title))}: {ended.state}", icon=_ENDED.get(ended.state))
    st.session_state[_WATCHED] = running
    if running:
        _running_jobs()


@st.fragment(run_every=2.0)
def _running_jobs() -> None:
    known = [job for job in map(jobs.status, sorted(st.session_state.get(_WATCHED, ()))) if job is not None]
    running = [job for job in known if job.state == "running"]
    if len(running) < len(known):
        # The whole page, which may show what a job has made.
        st.rerun()
    with st.container(key="job_indicator"):
        for job in running:
            share = f", {100 * min(job.done / job.total, 1.0):.0f} % of this stage" if job.total else ""
            st.caption(f":material/progress_activity: {plain(told(job.command.title))}{share}")


def _page_link(page: str, label: str, icon: str) -> None:
    st.page_link(page, label=label, icon=f":material/{icon}:")


def listed() -> tuple[list[RunSummary], list[BrokenRun]]:
    """Return the runs of the cache and its broken folders; read again when a run is added, removed or renamed."""
    return _listed(_cache_state())


def frame(title: str, line: str, at_positions: bool = False) -> Run:
    """Begin a page and return the chosen run; without a run to show the page ends.

    Args:
        title: the page's name.
        line: one sentence that says what the page is for.
        at_positions: whether the page shows the run as it is at the chosen read position; others show the run itself.
    """
    place = head(title, line).container(horizontal=True, vertical_alignment="bottom", gap="small")
    address.follow()
    summaries, broken = listed()
    run_id = _picked(summaries, broken, place)
    try:
        run = shared_run(run_id)
        if at_positions:
            run = _at_chosen_position(run, place)
        elif address.view().position is not None:
            st.caption(f"{_NO_CHOICE} Numbers are of {T_POST} unless they say otherwise.")
    except RunError as error:
        show_error("This run cannot be opened.", error)
        st.stop()
    address.show_run(run.run_id)
    _keep_site_inside(run)
    if run.direction_note:
        # The name of a file is a stranger's text.
        st.text(run.direction_note)
    address.write()
    return run


def shared_run(name: str) -> Run:
    """Return a run of the cache, opened once for all visitors and again when its manifest changes.

    Args:
        name: of the run, as :attr:`.Run.run_id` has it: at another read position with that behind it.
    """
    folder = cache_folder()
    run_id, _, position = name.partition("@")
    run = _opened(run_id, str(folder), modified(folder / run_id / MANIFEST))
    if not position:
        return run
    return _opened_at(*addition_identity(run, PositionsManifest.kind), position, run)


def read_positions(run: Run) -> dict[str, str]:
    """Return the read positions of a run, as :attr:`.Run.positions`, with what each is called on screen."""
    try:
        return _positions(*addition_identity(run, PositionsManifest.kind), run)
    except RunError:
        # The page Harm and refusal says what is wrong with them.
        return {run.read_at: run.read_at}


def described_runs() -> dict[str, str]:
    """Return the names on screen of the runs that can be opened, by name, each also at its other read positions."""
    return _described(_cache_state())


def site_picker(run: Run, container: DeltaGenerator) -> int:
    """Show a field for the site, which all pages share, and return the site."""
    container.container(key="site_place").number_input(
        "Layer",
        min_value=0,
        max_value=run.n_layers,
        key=address.fill("site_field", address.view().site),
        on_change=lambda: address.change(site=int(st.session_state["site_field"])),
        help=f"0 to {run.n_layers - 1} are this model's layers; {run.n_layers} is the final norm, one site more.",
    )
    return int(address.view().site or 0)


def site_beside_verdict(run: Run, verdict: Callable[[int], str]) -> int:
    """Show a field for the site and beside it, in large letters, what is said of that site; return the site."""
    place, says = st.columns([1, 3], gap="medium", vertical_alignment="bottom")
    site = site_picker(run, place)
    with says:
        heading(verdict(site))
    return site


@st.cache_resource(max_entries=8, show_spinner="Opening the run …")
def _opened(run_id: str, cache: str, changed: int) -> Run:
    return open_run(run_id, cache)


@st.cache_resource(max_entries=8, show_spinner="Opening the run …")
def _opened_at(run_id: str, changed: int, measured: int, position: str, _run: Run) -> Run:
    return _run.at(position)


@st.cache_data(max_entries=64, show_spinner=False)
def _positions(run_id: str, changed: int, measured: int, _run: Run) -> dict[str, str]:
    return {name: label if name == label else f"{label} ({name})" for name, label in _run.positions.items()}


@st.cache_data(max_entries=4, show_spinner=False)
def _described(state: tuple[object, ...]) -> dict[str, str]:
    summaries, _ = _listed(state)
    named = {}
    for summary in summaries:
        named[summary.run_id] = described(summary, summaries)
        if PositionsManifest.kind in summary.measured:
            with suppress(RunError):
                for position, label in read_positions(open_run(summary.run_id)).items():
                    if position != T_POST:
                        named[f"{summary.run_id}@{position}"] = f"{named[summary.run_id]} at {label}"
    return named


def _at_chosen_position(run: Run, place: DeltaGenerator) -> Run:
    """Show a field for the read position, where the run has more than one, and return the run as it is there."""
    known, chosen = read_positions(run), address.view().position
    if chosen is not None and chosen not in known:
        st.warning(
            "The read position in this address was not measured on this run; showing the run's own.",
            icon=":material/warning:",
        )
        chosen = None
        address.change(position=None)
    if len(known) == 1:
        return run
    position = chosen or T_POST
    place.selectbox(
        "Read at",
        list(known),
        format_func=known.__getitem__,
        key=address.fill("position_field", position),
        on_change=_choose_position,
        width=150,
        help="The token whose activations the direction is fitted on: t_inst is the last of the instruction, t_post "
        "the last of the template, where the reply begins. All numbers of the page are of that token.",
    )
    return shared_run(run.run_id if position == T_POST else f"{run.run_id}@{position}")


def _choose_position() -> None:
    """Look at the run at another read position, whose scale is another."""
    position = st.session_state["position_field"]
    address.change(position=None if position == T_POST else position, band=None)


def own_position_only(run: Run, what: str) -> bool:
    """Return whether a run is at another read position than its own, after saying that something is known there alone.

    Args:
        run: that the page shows.
        what: begins the sentence, with its verb.
    """
    if run.read_at == T_POST:
        return False
    st.caption(f"{what} at {T_POST} alone, not at {run.read_at}: choose {T_POST} above for it.")
    return True


@st.cache_data(max_entries=4, show_spinner="Looking for runs …")
def _listed(state: tuple[object, ...]) -> tuple[list[RunSummary], list[BrokenRun]]:
    return list_runs()


def _cache_state() -> tuple[object, ...]:
    """Return what changes when a run is added, removed or measured: its JSON files and when they were written."""
    folder = cache_folder()
    return (
        str(folder),
        tuple(run_titles().items()),
        tuple(run_notes().items()),
        *(
            (path.name, *((file.name, modified(file)) for file in sorted(path.glob("*.json"))))
            for path in sorted(folder.glob("[!.]*"))
            if path.is_dir()
        ),
    )


def _picked(summaries: list[RunSummary], broken: list[BrokenRun], place: DeltaGenerator) -> str:
    for problem in broken:
        st.sidebar.warning("A folder of the cache is not a run that can be opened:", icon=":material/warning:")
        st.sidebar.text(told(problem.reason))
    if not summaries:
        st.info("There are no runs yet. The page Runs starts one.", icon=":material/folder_open:")
        st.page_link("pages/10_Runs.py", label="Start a run", icon=":material/play_arrow:")
        st.stop()
    by_id = {summary.run_id: summary for summary in summaries}
    chosen = address.view().run
    if chosen not in by_id:
        if chosen is not None:
            st.warning("The run in this address is not in the cache here; showing another.", icon=":material/warning:")
        address.change(run=default_run(summaries))
    return str(
        place.selectbox(
            "Run",
            list(by_id),
            format_func=lambda run_id: described(by_id[run_id], summaries),
            key=address.fill("run_field", address.view().run),
            on_change=lambda: address.open_run(st.session_state["run_field"]),
            help="One model on one contrast set. The page Runs makes more.",
        )
    )


def default_run(summaries: list[RunSummary]) -> str:
    """Return the run that a first visit shows: the one with something on most pages, matched pairs before other sets.

    Among equals the wider model, then the newer run.
    """

    def rank(summary: RunSummary) -> tuple[int, bool, int, str]:
        return (
            len(_ON_PAGES & set(summary.measured)),
            summary.contrast_set == "pairs",
            summary.d_model,
            summary.created,
        )

    return max(summaries, key=rank).run_id


def described(summary: RunSummary, summaries: list[RunSummary]) -> str:
    """Return a run's name on screen: its title, else its contrast set and model, and what distinguishes it from others.

    Args:
        summary: of the run.
        summaries: of all runs.
    """
    if summary.title:
        return summary.title
    name = f"{summary.contrast_set} · {summary.model.rsplit('/', 1)[-1]}"
    alike = [other for other in summaries if (other.model, other.contrast_set) == (summary.model, summary.contrast_set)]
    distinctions = [_distinctions(other) for other in alike]
    differing = [
        mine
        for mine, all_of in zip(_distinctions(summary), zip(*distinctions, strict=True), strict=True)
        if len(set(all_of)) > 1
    ]
    # The digest differs between any two runs: it is needed only where nothing that people understand does.
    return " · ".join([name, *(differing[:-1] if _tells_apart(distinctions) else differing)])


def _distinctions(summary: RunSummary) -> tuple[str, ...]:
    """Return what may distinguish a run from others of its model and contrast set, the digest last."""
    counts = "+".join(str(count) for count in summary.counts.values())
    return counts, summary.dtype, summary.created[:10], summary.run_id.split("--")[-2]


def _tells_apart(distinctions: list[tuple[str, ...]]) -> bool:
    """Return whether no two runs share everything but the digest."""
    return len({values[:-1] for values in distinctions}) == len(distinctions)


def _keep_site_inside(run: Run) -> None:
    """Choose the run's best site where the view has none."""
    site = address.view().site
    if site is not None and 0 <= site <= run.n_layers:
        return
    address.change(site=run.best_site())
