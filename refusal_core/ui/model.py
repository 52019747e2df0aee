"""The run's model for pages that ask it something: where it is, getting it, and one copy for all visitors."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import streamlit as st

from refusal_core.errors import RefusalError
from refusal_core.intervention import TriedPrompt
from refusal_core.known_models import KNOWN
from refusal_core.models import is_available
from refusal_core.runs import Run
from refusal_core.scoring import Scorer, load_model_for, model_of_run
from refusal_core.ui.background import offer
from refusal_core.ui.jobs import Command
from refusal_core.ui.layout import plain


@dataclass(frozen=True, eq=False)
class SharedScorer:
    """One scorer for all visitors; the lock lets one forward pass run at a time.

    ``read`` has the prompts that were last read for edits: beside the model, so that they go when it goes.
    """

    scorer: Scorer
    lock: threading.Lock
    read: dict[str, TriedPrompt] = field(default_factory=dict)


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


def shared_scorer(run: Run, source: str) -> SharedScorer:
    """The scorer of a run, its model opened with the first question.

    Raises:
        RefusalError: when the model cannot be used.
    """
    return _loaded(run.run_id, run, source)


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


def fetch_command(name: str, revision: str | None) -> Command:
    """The command that makes a model ready to open."""
    pinned = (f"--revision={revision}",) if revision else ()
    return Command(f"Get the model {name}", ("fetch", *pinned, "--", name))


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
    offer(fetch_command(name, revision), "Get the model", ":material/download:")
