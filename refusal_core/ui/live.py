"""The parts of the Live score page: the model, the scores, and what is shown of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from refusal_core.errors import PromptError, RefusalError
from refusal_core.figures.courses import Course, courses
from refusal_core.figures.histograms import histogram, token_strip
from refusal_core.figures.style import LINE_COLOURS
from refusal_core.known_models import KNOWN
from refusal_core.models import is_available
from refusal_core.outliers import nearest_prompts
from refusal_core.runs import Run
from refusal_core.scoring import Score, Scorer, load_model_for, model_of_run
from refusal_core.ui.jobs import JobStatus, fetch_status, start_fetch
from refusal_core.ui.layout import chart, plain

MOST_PINS = len(LINE_COLOURS) - 1

_PINS, _LAST = "live_pins", "live_last"


@dataclass(frozen=True, eq=False)
class SharedScorer:
    """One scorer for all visitors; the lock lets one forward pass run at a time."""

    scorer: Scorer
    lock: threading.Lock


def model_source(run: Run) -> str | None:
    """Where the run's model is to be loaded from, or ``None`` after having said what is missing."""
    try:
        name, revision = model_of_run(run)
    except RefusalError:
        return _path_of_local_model(run)
    if is_available(name, revision):
        return name
    _offer_fetch(name, revision)
    return None


def scored(run: Run, source: str, text: str) -> Score | None:
    """The score of what is typed, or ``None`` after having said why there is none.

    The model is opened with the first prompt, so that the page itself never waits for it.
    """
    if not text.strip():
        st.info("Type a prompt to see where it lands among the run's prompts.", icon=":material/edit_note:")
        return None
    last = st.session_state.get(_LAST)
    if last is not None and last[0] == (run.run_id, text):
        return last[1]
    try:
        shared = _loaded(run.run_id, run, source)
        with shared.lock:
            score = shared.scorer.score(text)
    except PromptError as error:
        st.warning("This prompt was not scored.", icon=":material/warning:")
        st.text(str(error))
        return None
    except RefusalError as error:
        st.error("The run's model cannot be used.", icon=":material/error:")
        st.text(str(error))
        return None
    st.session_state[_LAST] = ((run.run_id, text), score)
    return score


def pins(run: Run) -> list[Score]:
    """The prompts this visitor has pinned on this run."""
    return st.session_state.setdefault(_PINS, {}).setdefault(run.run_id, [])


def pin_controls(run: Run, score: Score | None) -> None:
    """Pin what is typed, and let go of pins."""
    pinned = pins(run)
    pin, clear, _ = st.columns([1, 1, 3])
    already = score is None or any(each.text == score.text for each in pinned)
    pin.button(
        "Pin to compare",
        icon=":material/keep:",
        disabled=already or len(pinned) >= MOST_PINS,
        help=f"Keeps the prompt in the figures while you type another; up to {MOST_PINS}.",
        width="stretch",
        on_click=pinned.append,
        args=(score,),
    )
    clear.button("Clear pins", icon=":material/keep_off:", disabled=not pinned, width="stretch", on_click=pinned.clear)
    for place, each in enumerate(pinned):
        text, remove = st.columns([6, 1], vertical_alignment="center")
        text.text(f"{place + 1}. {_shortened(each.text, 120)}")
        remove.button("Unpin", key=f"unpin_{place}", width="stretch", on_click=_unpin, args=(pinned, place))


def show_numbers(run: Run, score: Score, site: int) -> None:
    """The four numbers people look at first."""
    place, harmful, harmless, odds = st.columns(4)
    place.metric("projection", f"{score.projection[site]:.3f}", help=f"At {run.site_label(site)}, in activation units.")
    for column, label in ((harmful, "harmful"), (harmless, "harmless")):
        column.metric(
            f"percentile, {label}",
            f"{score.percentile[label][site]:.0f}",
            help=f"Percent of the run's {label} prompts that project below it at {run.site_label(site)}.",
        )
    odds.metric(
        "refusal log-odds",
        f"{score.refusal_log_odds:.2f}",
        help="Log-odds that the reply opens with a token that refusals open with (I, As): a tendency, not a refusal.",
    )
    odds.text(f"first token: {score.first_token!r}")


def show_figures(run: Run, score: Score | None, site: int) -> None:
    """The prompt and the pins over all layers, at this layer, and token by token."""
    lines = [
        Course(each.text, each.projection, _shortened(each.text, 28), colour, "dash")
        for each, colour in zip(pins(run), LINE_COLOURS[1:], strict=False)
    ]
    if score is not None:
        lines.insert(0, Course(score.text, score.projection, "typed: " + _shortened(score.text, 28), LINE_COLOURS[0]))
    raw = st.toggle("Activation units", key="live_raw", help="Off: a scale on which layers compare.")
    chart(courses(run, lines, site, raw), "live_courses")
    if not lines:
        return
    chart(histogram(run, site, placed=lines), "live_histogram")
    if score is None:
        return
    st.markdown(f"##### Token by token at {run.site_label(site)}")
    if score.tokens:
        chart(token_strip(score.tokens, score.token_projection[:, site], run, site), "live_tokens")
        st.caption("The direction was read at the last token of the template; earlier tokens are for orientation.")
    st.markdown("##### Nearest prompts of the run, over all layers")
    st.dataframe(
        nearest_prompts(run, score.projection, 8),
        column_order=["text", "label", "category", "distance", "source"],
        column_config={
            "text": st.column_config.TextColumn("prompt", width="large"),
            "distance": st.column_config.NumberColumn(
                "distance", format="%.2f", help="Root mean square over layers, in pooled standard deviations."
            ),
            "source": st.column_config.TextColumn("set"),
        },
        hide_index=True,
        width="stretch",
        key="live_nearest",
    )


def show_comparison(run: Run, score: Score | None, site: int) -> None:
    """The pinned prompts and the typed one as a table."""
    compared = [*([score] if score else []), *pins(run)]
    if len(compared) < 2:
        return
    st.markdown("##### Compared")
    st.dataframe(
        pd.DataFrame(
            {
                "prompt": [each.text for each in compared],
                "projection": [each.projection[site] for each in compared],
                "percentile, harmful": [each.percentile["harmful"][site] for each in compared],
                "percentile, harmless": [each.percentile["harmless"][site] for each in compared],
                "refusal log-odds": [each.refusal_log_odds for each in compared],
                "first token": [each.first_token for each in compared],
            }
        ),
        hide_index=True,
        width="stretch",
        key="live_compared",
    )


def _unpin(pinned: list[Score], place: int) -> None:
    del pinned[place]


@st.cache_resource(max_entries=1, show_spinner="Opening the model; this takes a moment the first time …")
def _loaded(run_id: str, _run: Run, source: str) -> SharedScorer:
    chat_model = load_model_for(_run, None if source == _run.model_name else source)
    return SharedScorer(Scorer(chat_model, _run), threading.Lock())


def _path_of_local_model(run: Run) -> str | None:
    model = run.manifest["model"]
    st.info(
        f"This run's model came from a local {plain(model['source'])}, and where that was is not stored with a run. "
        "Say where it is to score prompts; it is checked against the run.",
        icon=":material/folder_open:",
    )
    path = st.text_input(
        "Path of the model", key="live_model_path", placeholder="a folder with config.json, or a GGUF file"
    )
    return path or None


@st.fragment(run_every=1.0)
def _offer_fetch(name: str, revision: str | None) -> None:
    known = KNOWN.get(name)
    size = (
        f"{known.size / 1e9:.1f} GB to download, {known.converted_size / 1e9:.1f} GB on disk"
        if known
        else "size as on the hub"
    )
    licence = f"licence: {known.licence}" if known else "licence as on the hub"
    st.info(
        f"Scoring needs the run's model, {plain(name)}, which is not on this machine ({size}; {licence}). "
        "Everything else works without it.",
        icon=":material/download:",
    )
    status = fetch_status(name, revision)
    if status is not None and status.state == "done":
        # Fetched and gone again is as good as never fetched.
        if is_available(name, revision):
            st.rerun()
        status = None
    if status is not None and status.state == "running":
        share = min(status.done / status.total, 1.0) if status.total else 0.0
        st.progress(share, text=_progress_in_words(status))
        return
    if status is not None and status.state == "failed":
        st.error("The last attempt failed.", icon=":material/error:")
        st.text(status.message)
    st.button("Get the model", icon=":material/download:", type="primary", on_click=start_fetch, args=(name, revision))


def _progress_in_words(status: JobStatus) -> str:
    """A stage is named with the unit it is counted in, as in ``downloading (bytes)``."""
    stage, _, unit = status.stage.rstrip(")").partition(" (")
    if not status.total:
        return f"{stage} …"
    if unit == "bytes":
        return f"{stage}: {status.done / 1e6:.0f} of {status.total / 1e6:.0f} MB"
    return f"{stage}: {status.done} of {status.total} {unit}"


def _shortened(text: str, limit: int) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= limit else one_line[: limit - 1] + "…"
