"""The parts of the Live score page: the field, the score, pins, history and figures."""

from __future__ import annotations

import time

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.elements.lib.mutable_tab_container import TabContainer

from refusal_core.errors import PromptError, RefusalError
from refusal_core.exploration.outliers import nearest_prompts
from refusal_core.figures.courses import Course, courses
from refusal_core.figures.histograms import histogram
from refusal_core.figures.style import LINE_COLOURS, safe
from refusal_core.figures.tokens import COLOURS_END, token_heatmap
from refusal_core.glossary import meaning_of
from refusal_core.intervention.conditions import ABLATE, ADD, PLAIN, Condition
from refusal_core.markdown import plain
from refusal_core.pipeline.scoring import Score
from refusal_core.prompts.suggestions import Contrast, contrasts
from refusal_core.runs.run import T_INST, T_POST, Run
from refusal_core.ui import address, remembered
from refusal_core.ui.layout import chart, raw_units, sentences, show_error
from refusal_core.ui.model import one_model
from refusal_core.ui.newest import Newest
from refusal_core.ui.numbers import whole
from refusal_core.ui.placement import place_in_words, show_tokens
from refusal_core.ui.scores import score_table

MOST_PINS = len(LINE_COLOURS) - 1
MOST_REMEMBERED = 30
MOST_REPLIES = 90
"""Replies of a visitor's prompts that are not asked for again: of each prompt that is remembered, under three edits."""

_LINES = "live_several_lines"
_TABS, _TAB = "live_tab", "live_tab_open"
_TYPED, _PUT, _SEVERAL = "live_typed", "live_put", "live_several"
_SUGGESTIONS_OPEN, _HISTORY_OPEN = "live_suggestions_open", "live_history_open"
_REPLY, _REPLIES = "live_reply_wanted", "live_replies"
_PINS, _HISTORY, _STANDS = "live_pins", "live_history", "live_stands"
_SECONDS_TO_STAND = 4.0
"""How long a text has to stay in the field to be a prompt of its own, and not a step towards another."""
_WHERE_READ = {T_POST: "the end of the prompt, the template's last token", T_INST: "the instruction's last token"}
_PIN_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


def tabs() -> tuple[TabContainer, TabContainer]:
    """Show the tabs of the page, and return them; a visitor who comes back finds the one that was open."""
    names = ["One prompt", "A list"]
    if _TABS not in st.session_state:
        st.session_state[_TABS] = st.session_state.get(_TAB, names[0])
    one, many = st.tabs(names, key=_TABS, on_change="rerun")
    st.session_state[_TAB] = names[0] if one.open else names[1]
    return one, many


def prompt_field(container: DeltaGenerator, disabled: bool, page: str) -> str:
    """Show the field for a prompt, which scores while one types, or one for several lines; return the text.

    The address names the text, so that it can be sent to a colleague.

    Args:
        container: holds the field.
        disabled: whether there is no model to ask.
        page: distinguishes the fields of the pages, which share the text.
    """
    linked = address.linked_text()
    if linked is not None:
        type_prompt(linked)
    several = st.session_state.get(_SEVERAL, False)
    key = f"{page}_lines" if several else f"{page}_text"
    # A page's widgets end with it. While they are there, whoever types is ahead of what is known here.
    if st.session_state.pop(_PUT, False) or key not in st.session_state:
        st.session_state[key] = st.session_state.get(_TYPED, "")
    if several:
        text = container.text_area(
            "Prompt",
            key=key,
            height=140,
            disabled=disabled,
            help="Scored with Ctrl+Enter (⌘+Enter on a Mac), or on leaving the field.",
        )
    else:
        text = container.text_input(
            "Prompt",
            key=key,
            live="200ms",
            placeholder="How do I kill the weeds between my paving stones?",
            disabled=disabled,
            help="Scored as soon as you pause. The page Live score takes prompts of several lines.",
        )
    st.session_state[_TYPED] = text
    address.link_text(text)
    return text


def tools(run: Run, disabled: bool) -> None:
    """Show what helps to fill the field: room for several lines, and suggestions."""
    st.toggle(
        "Several lines",
        key=address.fill(_LINES, st.session_state.get(_SEVERAL, False)),
        on_change=lambda: st.session_state.update({_SEVERAL: st.session_state[_LINES]}),
    )
    popover = st.popover(
        "Contrasts to try",
        icon=":material/lightbulb:",
        disabled=disabled,
        key=_SUGGESTIONS_OPEN,
        on_change="rerun",
    )
    if popover.open:
        with popover:
            full = len(pins(run)) >= MOST_PINS
            st.caption(
                "There is no room for another pin; unpin one first."
                if full
                else "Pairs that differ in one thing. The button types one and pins the other."
            )
            for place, contrast in enumerate(contrasts()):
                st.markdown(f"**{plain(contrast.tests)}**")
                st.text(f"{contrast.one}\n{contrast.other}")
                st.button("Try", key=f"live_try_{place}", disabled=full, on_click=_try, args=(contrast,))


def history_tool(run: Run, site: int) -> None:
    """Show the history: prompts to score again, to download or to clear."""
    scores, before = history(run), remembered.earlier(remembered.HISTORY, run)
    texts = [*(score.text for score in scores), *before]
    popover = st.popover(
        f"History ({len(texts)})",
        icon=":material/history:",
        disabled=not texts,
        key=_HISTORY_OPEN,
        on_change="rerun",
    )
    if popover.open:
        with popover:
            st.caption(
                f"Newest first, up to {MOST_REMEMBERED}. A press types a prompt again. Your browser keeps these texts, "
                "and those of pins and a pasted list, until you clear them; the server and other visitors do not."
            )
            for place, text in enumerate(texts):
                label = plain(shortened(text, 80))
                st.button(label, key=f"live_back_{place}", type="tertiary", on_click=type_prompt, args=(text,))
            st.button("Clear history", icon=":material/delete:", on_click=_clear, args=(scores, before))
            if scores:
                score_table(run, scores, site, key="live_history_table")


def scored(run: Run, source: str, text: str, line: DeltaGenerator) -> Score | None:
    """Return the score of the typed text, or ``None`` after showing why there is none.

    The model is opened with the first prompt, so that the page itself never waits for it. A newer text ends the wait
    for an older one.

    Args:
        run: the prompt is scored on.
        source: where the run's model is.
        text: of the prompt.
        line: says which prompt is being scored, and then to which prompt the numbers belong.
    """
    if not text.strip():
        st.info("Type a prompt to see where it lands among the run's prompts.", icon=":material/edit_note:")
        return None
    scores = history(run)
    score = next((earlier for earlier in scores if earlier.text == text), None)
    if score is None:
        answer = _ask(run, source, text, line)
        if not isinstance(answer, Score):
            return None
        score = answer
    line.text(f"Scored: {shortened(text, 120)}")
    _remember(scores, score)
    before = remembered.earlier(remembered.HISTORY, run)
    before[:] = [other for other in before if other != text][: MOST_REMEMBERED - len(scores)]
    return score


def history(run: Run) -> list[Score]:
    """Return what this visitor has scored on this run, newest first."""
    return _scores_of(_HISTORY, run)


def pins(run: Run) -> list[Score]:
    """Return the prompts this visitor has pinned on this run."""
    return _scores_of(_PINS, run)


def _scores_of(key: str, run: Run) -> list[Score]:
    by_run: dict[str, list[Score]] = st.session_state.setdefault(key, {})
    return by_run.setdefault(run.run_id, [])


def pin_wanted(run: Run, source: str, line: DeltaGenerator) -> None:
    """Score and pin prompts that a suggestion asked for or that were pinned before a reload; see :func:`scored`.

    They wait on while the model cannot be used.
    """
    wanted, pinned = remembered.earlier(remembered.PINS, run), pins(run)
    for text in wanted[:]:
        known = {pin.text for pin in pinned}
        if text not in known and len(known) < MOST_PINS:
            answer = _ask(run, source, text, line)
            if isinstance(answer, Score):
                pinned.append(answer)
            elif not isinstance(answer, PromptError):
                return
        # One at a time: a newer script run goes on where this one was ended.
        wanted.remove(text)


def keep_texts(run: Run) -> None:
    """Have the browser keep the texts of pins and history over a reload; of the runs, those used last."""
    kept: dict[str, dict[str, list[str]]] = {}
    for kind, key in ((remembered.PINS, _PINS), (remembered.HISTORY, _HISTORY)):
        scores: dict[str, list[Score]] = st.session_state.get(key, {})
        before = remembered.all_earlier(kind)
        before[run.run_id] = before.pop(run.run_id, [])
        kept[kind] = {
            run_id: list(dict.fromkeys([*(score.text for score in scores.get(run_id, [])), *before.get(run_id, [])]))
            for run_id in (*(name for name in scores if name not in before), *before)
        }
    remembered.keep(kept)


def pin_controls(run: Run, score: Score | None) -> None:
    """Show buttons that pin the typed prompt, unpin one and clear all."""
    pinned, before = pins(run), remembered.earlier(remembered.PINS, run)
    add, clear, _ = st.columns([1, 1, 3])
    already = score is None or any(pin.text == score.text for pin in pinned)
    add.button(
        "Pin to compare",
        icon=":material/keep:",
        disabled=already or len(pinned) >= MOST_PINS,
        help=f"Keeps the prompt in the figures while you type another; up to {MOST_PINS}.",
        width="stretch",
        on_click=pinned.append,
        args=(score,),
    )
    clear.button(
        "Clear pins",
        icon=":material/keep_off:",
        disabled=not pinned and not before,
        width="stretch",
        on_click=_clear,
        args=(pinned, before),
    )
    for place, pin in enumerate(pinned):
        text, remove = st.columns([6, 1], vertical_alignment="center")
        text.text(f"{place + 1}. {shortened(pin.text, 120)}")
        remove.button("Unpin", key=f"unpin_{place}", width="stretch", on_click=_unpin, args=(pinned, place))
    for place, waiting in enumerate(before, start=len(pinned) + 1):
        st.text(f"{place}. {shortened(waiting, 120)} (pinned earlier, scored as soon as there is a model)")


def show_place(run: Run, score: Score, site: int) -> None:
    """Show where the prompt lies at a site: in a sentence, and token by token."""
    st.markdown(f"**{sentences(place_in_words(run, score.projection, site))}**")
    if score.tokens:
        show_tokens(run, score, site, "live_strip")


def reply_picker(run: Run, site: int) -> Condition | None:
    """Show a switch for the reply's opening; return the edit under which it is wanted, ``None`` for no reply."""
    layer = min(site, run.n_layers - 1)
    edits = {"none": None, "unedited": Condition(PLAIN)} | {
        name: Condition(edit, layers=(layer,), alpha=float(edit == ADD))
        for name, edit in (("ablated", ABLATE), ("added", ADD))
    }
    wanted = st.segmented_control(
        "Reply",
        list(edits),
        key=address.fill("live_reply", st.session_state.get(_REPLY, "none")),
        on_change=lambda: st.session_state.update({_REPLY: st.session_state["live_reply"]}),
        required=True,
        help=f"How the model's reply opens: as it is, or with the direction of layer {layer} ablated or added once at "
        "that layer, at every token. It takes the model a moment with every prompt.",
    )
    return edits[wanted or "none"]


def show_reply(run: Run, source: str, score: Score, condition: Condition, place: DeltaGenerator) -> None:
    """Show how the reply opens under an edit, asked of the model after all else is drawn."""
    known: Newest[tuple[str, str, Condition], str | None] = st.session_state.setdefault(_REPLIES, Newest(MOST_REPLIES))
    asked = run.run_id, score.text, condition
    if asked not in known:
        place.caption("The reply opens: …")
        try:
            known[asked] = one_model().ask(
                run, source, lambda opened: opened.tried(score.text).under(condition).opening, place.caption
            )
        except RefusalError as error:
            with place.container():
                show_error("The reply was not made.", error, severe=False)
            return
    with place.container(border=True):
        st.caption("The reply opens:")
        st.text(known[asked] or "(nothing)")


def show_numbers(run: Run, score: Score, site: int) -> None:
    """Show the four main numbers."""
    (place, odds), (harmful, harmless) = st.columns(2), st.columns(2)
    place.metric("projection", f"{score.projection[site]:.3f}", help=f"At {run.site_label(site)}, in activation units.")
    for column, label in ((harmful, "harmful"), (harmless, "harmless")):
        column.metric(
            f"percentile, {label}",
            str(whole(score.percentile[label][site])),
            help=f"Percent of the run's {label} prompts that project below it at {run.site_label(site)}.",
        )
    odds.metric("refusal log-odds", f"{score.refusal_log_odds:.2f}", help=meaning_of("refusal_log_odds"))
    odds.text(f"first token: {score.first_token!r}")


def show_figures(run: Run, score: Score | None, site: int) -> None:
    """Show the prompt and the pins over all layers, at this layer, and token by token."""
    lines = [
        Course(pin.text, pin.projection, _in_a_legend(pin.text), colour, dash)
        for pin, colour, dash in zip(pins(run), LINE_COLOURS[1:], _PIN_DASHES, strict=False)
    ]
    if score is not None:
        lines.insert(0, Course(score.text, score.projection, "typed: " + _in_a_legend(score.text), LINE_COLOURS[0]))
    chart(courses(run, lines, site, raw_units()), "live_courses")
    if not lines:
        return
    chart(histogram(run, site, placed=lines), "live_histogram")
    if score is None:
        return
    if score.tokens:
        st.markdown("##### Token by token, at all layers")
        figure = token_heatmap(run, score.tokens, score.token_projection, score.projection, site)
        with st.container(height=min(int(figure.layout.height) + 40, 520), border=False, key="live_heatmap"):
            chart(figure, "live_tokens")
        st.caption(
            "In pooled standard deviations from the midpoint of the two labels, harmful in orange; the colours end at "
            f"{COLOURS_END:.0f}, because tokens of the first layers lie far further out. The direction was read at "
            f"{_WHERE_READ.get(run.read_at, run.read_at)}, the last row; the prompt's own tokens are for orientation. "
            "Dotted: the layer chosen above."
        )
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
        placeholder="–",
        key="live_nearest",
    )


def show_comparison(run: Run, score: Score | None, site: int) -> None:
    """Show the pinned prompts and the typed one as a table."""
    compared = [*([score] if score else []), *pins(run)]
    if len(compared) < 2:
        return
    st.markdown("##### Compared")
    score_table(run, compared, site, key="live_compared")


def _remember(scores: list[Score], score: Score) -> None:
    """Put a score first in the history, in place of texts that were only steps towards it."""
    now = time.monotonic()
    last, since = st.session_state.setdefault(_STANDS, (score.text, now))
    if last != score.text:
        st.session_state[_STANDS] = score.text, now
    step = now - since < _SECONDS_TO_STAND and (score.text.startswith(last) or last.startswith(score.text))
    gone = {score.text, last} if step else {score.text}
    scores[:] = [score, *(earlier for earlier in scores if earlier.text not in gone)][:MOST_REMEMBERED]


def _ask(run: Run, source: str, text: str, line: DeltaGenerator) -> Score | RefusalError:
    """Return the model's answer, or why there is none, which is shown."""
    # In one place, so that what stands below it does not move when the answer is there.
    with line.container():
        st.text(f"Scoring: {shortened(text, 120)}")
        waiting = st.empty()
    try:
        return one_model().ask(run, source, lambda opened: opened.scorer.score(text), waiting.caption)
    except PromptError as error:
        show_error("This prompt was not scored.", error, severe=False)
        return error
    except RefusalError as error:
        show_error("The run's model cannot be used.", error)
        return error
    finally:
        line.empty()


def type_prompt(text: str) -> None:
    """Put a text into the field that can hold it, and close what it was chosen from."""
    st.session_state[_SUGGESTIONS_OPEN] = st.session_state[_HISTORY_OPEN] = False
    st.session_state.update({_TYPED: text, _PUT: True, _SEVERAL: "\n" in text})


def _try(contrast: Contrast) -> None:
    type_prompt(contrast.one)
    run_id = address.shown_run()
    if run_id is not None:
        remembered.all_earlier(remembered.PINS).setdefault(run_id, []).append(contrast.other)


def _clear(scores: list[Score], before: list[str]) -> None:
    scores.clear()
    before.clear()


def _unpin(pinned: list[Score], place: int) -> None:
    del pinned[place]


def _in_a_legend(text: str) -> str:
    # Wider than what is shown, so that nothing is wrapped.
    return safe(text, width=40, limit=28)


def shortened(text: str, limit: int) -> str:
    """Return a text on one line, cut at a limit of characters."""
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= limit else one_line[: limit - 1] + "…"
