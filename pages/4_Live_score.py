"""Type a prompt and see where it projects at all layers, as soon as one pauses."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import kept_lists, lists, live, model
from refusal_core.ui.frame import frame, site_picker

run = frame(
    "Live score",
    "Type a prompt of your own and see its projection at all layers, among the run's prompts.",
    at_positions=True,
)
source = model.model_source(run)
one, many = live.tabs()

# No fragment: a script run that waits for the model is superseded by a newer text, a fragment is not.
if one.open:
    with one:
        field, layer = st.columns([4, 1], vertical_alignment="bottom")
        text = live.prompt_field(field, disabled=source is None, page="live")
        site = site_picker(run, layer)
        tools = st.container(horizontal=True, vertical_alignment="center")
        with tools:
            live.tools(run, disabled=source is None)
        line = st.empty()
        score = None
        if source is not None:
            live.pin_wanted(run, source, line)
            score = live.scored(run, source, text, line)
        with tools:
            live.history_tool(run, site)
        if score is not None:
            words, numbers = st.columns([3, 2], gap="medium")
            with words:
                live.show_place(run, score, site)
                condition = live.reply_picker(run, site)
                reply = st.empty()
            with numbers:
                live.show_numbers(run, score, site)
        live.pin_controls(run, score)
        live.show_comparison(run, score, site)
        live.show_figures(run, score, site)
        if source is not None and score is not None and condition is not None:
            live.show_reply(run, source, score, condition, reply)
else:
    with many:
        site = site_picker(run, st.columns([1, 4])[0])
        job = lists.list_of(run)
        if job is not None and job.running:
            lists.list_progress(job)
        else:
            lists.list_form(run, source)
            if job is not None:
                lists.list_results(run, job, site)
            kept_lists.show_kept(run, site, unfolded=job is None)
live.keep_texts(run)
