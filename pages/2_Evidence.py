"""Is it real? One picture that answers the question, then a checklist of the questions, one open at a time."""

from __future__ import annotations

import streamlit as st

from refusal_core.evidence.answers import QUESTIONS
from refusal_core.evidence.findings import notes, verdict
from refusal_core.ui import address
from refusal_core.ui.evidence import evidence_chart, evidence_or_end, question_section
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.home import answered, show_headline
from refusal_core.ui.kept_lists import kept_in_words
from refusal_core.ui.layout import folded, identity, sentences, shared

run = frame(
    "Evidence",
    "Whether the direction is real, about harm, and more than the way two datasets are written.",
    at_positions=True,
)
evidence = evidence_or_end(run)
best = run.best_site()
show_headline(run, best, answered(run, best))
st.markdown(sentences(shared((*identity(run), "verdict"), lambda: verdict(evidence))))
site = site_picker(run, st.columns([1, 3])[0])
evidence_chart(run, evidence, "overview", site)
drawn = "the imported direction the same" if evidence.imported else "the direction refitted"
st.caption(
    f"Shaded lines: 95 % bootstrap intervals of prompts, {drawn} in every draw. Harm is detectable "
    "from the first layer from which the interval on the transfer set stays above 0. The published decision layer is "
    "the first without mean crossings; it says that the two labels' texts come apart, not that harm does."
)
for note in notes(run):
    st.caption(sentences(note))
for name in QUESTIONS:
    question_section(run, evidence, name, site)
kept_in_words(run, site)
with folded("Refit with another estimator", "estimator_open", ":material/refresh:") as part:
    if part.open:
        # What fits and refits takes a second to import.
        from refusal_core.ui.refits import estimator_panel

        estimator_panel(run)
address.write()
