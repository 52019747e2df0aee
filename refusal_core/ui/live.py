"""The parts of the Live score page: the model, the scores, and what is shown of them."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from refusal_core.errors import PromptError, RefusalError
from refusal_core.figures.courses import Course, courses
from refusal_core.figures.histograms import histogram, token_strip
from refusal_core.figures.style import LINE_COLOURS
from refusal_core.outliers import nearest_prompts
from refusal_core.runs import Run
from refusal_core.scoring import Score
from refusal_core.ui.layout import chart
from refusal_core.ui.model import one_model

MOST_PINS = len(LINE_COLOURS) - 1

_PINS, _LAST = "live_pins", "live_last"


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
    slot = st.empty()
    try:
        score = one_model().ask(run, source, lambda opened: opened.scorer.score(text), slot.caption)
    except PromptError as error:
        st.warning("This prompt was not scored.", icon=":material/warning:")
        st.text(str(error))
        return None
    except RefusalError as error:
        st.error("The run's model cannot be used.", icon=":material/error:")
        st.text(str(error))
        return None
    slot.empty()
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


def _shortened(text: str, limit: int) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= limit else one_line[: limit - 1] + "…"
