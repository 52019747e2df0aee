"""The frame around every page: title, run picker, and the run itself, opened once for all visitors."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from refusal_core.errors import RunError
from refusal_core.runs.store import MANIFEST, BrokenRun, Run, RunSummary, cache_folder, list_runs, open_run, run_titles
from refusal_core.ui import address
from refusal_core.ui.accessibility import make_accessible
from refusal_core.ui.layout import show_error

_ICON = Path(__file__).with_name("icon.png")
_SIDEBAR_PIXELS = 320
"""Wide enough for what runs are called."""

PAGES = (
    ("app.py", "Home", "home"),
    ("pages/1_Layers.py", "Layers", "layers"),
    ("pages/2_Evidence.py", "Evidence", "fact_check"),
    ("pages/3_Outliers.py", "Outliers", "find_in_page"),
    ("pages/5_Behaviour.py", "Behaviour", "forum"),
    ("pages/6_Causality.py", "Causality", "science"),
    ("pages/7_Ratings.py", "Ratings", "reviews"),
    ("pages/8_Rate.py", "Rate prompts", "rate_review"),
    ("pages/4_Live_score.py", "Live score", "edit_note"),
    ("pages/9_Compare.py", "Compare", "compare"),
    ("pages/10_Runs.py", "Runs", "folder_open"),
)


def head(title: str, line: str) -> None:
    """Begin a page that needs no run.

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
    for page, label, icon in PAGES:
        st.sidebar.page_link(page, label=label, icon=f":material/{icon}:")
    st.sidebar.space("small")
    make_accessible()
    st.title(title, anchor=False)
    st.caption(line)


def listed() -> tuple[list[RunSummary], list[BrokenRun]]:
    """The runs of the cache and what is broken in it; read again when a run comes, goes or is renamed."""
    return _listed(_cache_state())


def frame(title: str, line: str) -> Run:
    """Begin a page and return the chosen run; the page ends here when there is none to show. See :func:`head`."""
    head(title, line)
    address.follow()
    summaries, broken = listed()
    run_id = _picked(summaries, broken)
    try:
        run = shared_run(run_id)
    except RunError as error:
        show_error("This run cannot be opened.", error)
        st.stop()
    _keep_site_inside(run)
    address.write()
    return run


def shared_run(run_id: str) -> Run:
    """A run from the cache, opened once and shared by all visitors; opened anew when its manifest changes."""
    folder = cache_folder() / run_id
    manifest = folder / MANIFEST
    return _opened(run_id, str(cache_folder()), manifest.stat().st_mtime_ns if manifest.is_file() else 0)


def described_runs() -> dict[str, str]:
    """What every run of the cache that can be opened is called on screen, by its id."""
    summaries, _ = _listed(_cache_state())
    return {summary.run_id: described(summary, summaries) for summary in summaries}


def site_picker(run: Run, container: DeltaGenerator) -> int:
    """A field for the site, shared by all pages; returns the site."""
    container.number_input(
        "Layer",
        min_value=0,
        max_value=run.n_layers,
        key=address.fill("site_field", address.view().site),
        on_change=lambda: address.change(site=int(st.session_state["site_field"])),
        help=f"0 to {run.n_layers - 1} are this model's layers; {run.n_layers} is the final norm, one site more.",
    )
    return int(address.view().site or 0)


@st.cache_resource(max_entries=8, show_spinner="Opening the run …")
def _opened(run_id: str, cache: str, changed: int) -> Run:
    return open_run(run_id, cache)


@st.cache_data(max_entries=4, show_spinner="Looking for runs …")
def _listed(state: tuple) -> tuple[list[RunSummary], list[BrokenRun]]:
    return list_runs()


def _cache_state() -> tuple:
    """What changes when a run comes or goes: the manifests and when they were written."""
    folder = cache_folder()
    return (
        str(folder),
        tuple(run_titles().items()),
        *((path.name, _modified(path / MANIFEST)) for path in sorted(folder.glob("[!.]*")) if path.is_dir()),
    )


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _picked(summaries: list[RunSummary], broken: list[BrokenRun]) -> str:
    for problem in broken:
        st.sidebar.warning("A folder of the cache is not a run that can be opened:", icon=":material/warning:")
        st.sidebar.text(problem.reason)
    if not summaries:
        st.info(
            f"There are no runs in {cache_folder()} yet. Start one on the page Runs, or with "
            "`python -m refusal_core run --model MODEL`.",
            icon=":material/folder_open:",
        )
        st.page_link("pages/10_Runs.py", label="Start a run", icon=":material/play_arrow:")
        st.stop()
    by_id = {summary.run_id: summary for summary in summaries}
    chosen = address.view().run
    if chosen not in by_id:
        if chosen is not None:
            st.warning("The run in this address is not in the cache here; showing another.", icon=":material/warning:")
        address.change(run=_most_telling(summaries))
    return st.sidebar.selectbox(
        "Run",
        list(by_id),
        format_func=lambda run_id: described(by_id[run_id], summaries),
        key=address.fill("run_field", address.view().run),
        # Another run has other scales, prompts and layers.
        on_change=lambda: address.change(run=st.session_state["run_field"], site=None, band=None, prompt=None),
        help="One model on one contrast set. The page Runs makes more.",
    )


def _most_telling(summaries: list[RunSummary]) -> str:
    """The run a first-time visitor sees: matched pairs before other sets, more layers before fewer."""
    best = max(summaries, key=lambda summary: (summary.contrast_set == "pairs", summary.n_layers, summary.run_id))
    return best.run_id


def described(summary: RunSummary, summaries: list[RunSummary]) -> str:
    """A run as it is called on screen: its title, else its contrast set and model, with more where that is shared."""
    if summary.title:
        return summary.title
    name = f"{summary.contrast_set} · {summary.model.rsplit('/', 1)[-1]}"
    alike = [other for other in summaries if (other.model, other.contrast_set) == (summary.model, summary.contrast_set)]
    counts = "+".join(str(count) for count in summary.counts.values())
    return name if len(alike) == 1 else f"{name} · {counts} · {summary.run_id.split('--')[-2]} · {summary.dtype}"


def _keep_site_inside(run: Run) -> None:
    """Where the view has no site of this run, take the one that tells matched pairs best."""
    site = address.view().site
    if site is not None and 0 <= site <= run.n_layers:
        return
    telling = [column for column in ("probe_d", "cohens_d") if run.layer_stats[column].notna().any()]
    address.change(site=int(run.layer_stats[telling[0]].idxmax()) if telling else 0)
