"""The run's model for pages that ask it something: where it is, fetching it, and one copy for all visitors."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import streamlit as st

from refusal_core.access.folders import check_typed, named_folders
from refusal_core.errors import RefusalError
from refusal_core.intervention.experiment import TriedPrompt
from refusal_core.markdown import plain
from refusal_core.models.identity import is_available
from refusal_core.models.known import KNOWN
from refusal_core.models.opening import ChatModel
from refusal_core.options import ModelOptions
from refusal_core.pipeline.scoring import Scorer, identify_for, load_model_for, model_of_run, opened_as
from refusal_core.runs.run import Run
from refusal_core.ui.background import offer
from refusal_core.ui.jobs import Command
from refusal_core.ui.layout import addition_identity, shared, show_error
from refusal_core.ui.newest import Newest
from refusal_core.ui.turns import Turns

T = TypeVar("T")

_PATH = "live_model_path"

_MOST_READ = 4
"""The most prompts whose activations stay in memory, for visitors who move a slider."""
_MOST_OPEN = 4
"""The most runs of one model that stay open: an open run holds the keys and values of its template."""


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run with its model in memory.

    Attributes:
        scorer: scores prompts with the model.
        read: the prompts that were last read for edits, held here so that they are freed with the model.
    """

    scorer: Scorer
    read: Newest[str, TriedPrompt] = field(default_factory=lambda: Newest(_MOST_READ))

    def tried(self, text: str) -> TriedPrompt:
        """Return a prompt as it was read for edits, reading it where it is not in memory.

        Raises:
            PromptError: see :meth:`refusal_core.pipeline.scoring.Scorer.encode`.
            RefusalError: for a model that thinks before it replies.
        """
        if text not in self.read:
            self.read[text] = TriedPrompt(self.scorer, text)
        return self.read[text]


class OneModel:
    """The one model in memory, for all runs; questions to it are answered in the order asked.

    References to the model and to what reads it are held here alone, so that a model is freed before another is loaded.
    """

    def __init__(self) -> None:
        """Begin without a model."""
        self._turns = Turns()
        self._checked: set[tuple[str, tuple[str, ...]]] = set()
        self._wanted: tuple[str, ...] | None = None
        self._chat_model: ChatModel | None = None
        self._open: Newest[str, OpenRun] = Newest(_MOST_OPEN)

    def ask(self, run: Run, source: str, question: Callable[[OpenRun], T], say: Callable[[str], object]) -> T:
        """Answer a question in its turn, after opening the run's model where it is not open yet.

        Args:
            run: whose model is asked.
            source: where the run's model is, as :func:`model_source` returns it.
            question: keeps no reference to what it is given.
            say: called repeatedly with what is waited for; an exception from it abandons the question.

        Raises:
            RefusalError: when the model cannot be used, and what the question raises.
        """
        wanted = opened_as(run)
        named = None if source == run.model_name else source
        if (source, wanted) not in self._checked:
            say("Checking that this is the run's model …")
            identify_for(run, named)
            self._checked.add((source, wanted))
        with self._turns.turn(lambda before: say(f"Waiting for the model: {before} before you …")):
            if wanted != self._wanted:
                self.let_go()
                say("Opening the model; this takes a moment the first time …")
                self._chat_model = load_model_for(run, named)
                self._wanted = wanted
            return question(self._opened(run))

    def let_go(self) -> None:
        """Free the model's memory; to be called by the holder of the turn."""
        import torch

        self._wanted, self._chat_model = None, None
        self._open.clear()
        # Models hold themselves in cycles.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _opened(self, run: Run) -> OpenRun:
        opened = self._open.get(run.run_id)
        if opened is None or opened.scorer.run is not run:
            assert self._chat_model is not None
            opened = self._open[run.run_id] = OpenRun(Scorer(self._chat_model, run))
        return opened


@st.cache_resource(show_spinner=False)
def one_model() -> OneModel:
    """Return the model that all visitors share."""
    return OneModel()


@st.cache_resource(show_spinner=False)
def import_engine() -> None:
    """Begin to import what opens models and reads prompts: seconds in which a visitor looks at the page."""

    def work() -> None:
        import_module("refusal_core.activations.extraction")
        # All models are built on it; transformers imports it when it is asked for.
        _ = import_module("transformers").PreTrainedModel

    # No daemon: a process that ends in the middle of an import would crash.
    threading.Thread(target=work, name="engine", daemon=False).start()


def available_source(run: Run) -> str | None:
    """Return where the run's model is loaded from, or ``None`` where it is not on this machine."""
    try:
        name, revision = model_of_run(run)
    except RefusalError:
        path: str | None = st.session_state.get(_PATH) or None
        try:
            check_typed(path or "", named_folders())
        except RefusalError:
            return None
        return path
    return name if is_available(name, revision) else None


def model_source(run: Run) -> str | None:
    """Return where the run's model is loaded from, or ``None`` after showing what is missing."""
    try:
        name, revision = model_of_run(run)
    except RefusalError:
        return _path_of_local_model(run)
    if is_available(name, revision):
        return name
    _offer_fetch(name, revision)
    return None


def measure_here(run: Run, measurement: str, with_model: bool = True) -> None:
    """Show a button that measures something on a run in the background, once what that needs is available.

    Args:
        run: to measure on.
        measurement: as the command line calls it, such as ``behaviour``.
        with_model: whether it needs the run's model.
    """
    where: tuple[str, ...] = ()
    try:
        name, revision = model_of_run(run) if with_model else ("", None)
    except RefusalError:
        path = st.text_input(
            "Path of the model",
            key=f"measure_{measurement}_{run.run_id}",
            placeholder="a folder with config.json, or a GGUF file",
            help="The run's model came from a folder or a file of its own; it is checked against the run.",
        )
        if not path or not _is_open_to_visitors(path):
            return
        where = ModelOptions(model=str(Path(os.path.expanduser(path)).absolute())).arguments()
    else:
        if with_model and not is_available(name, revision):
            st.caption("The run's model is not on this machine; the page Live score fetches it.")
            st.page_link("pages/4_Live_score.py", label="Get the model", icon=":material/download:")
            return
    offer(
        Command(f"Measure {measurement} of {run.path.name}", f"measure {measurement}", (*where, "--", run.path.name)),
        "Measure",
        ":material/play_arrow:",
    )


def recorded(
    run: Run, load: Callable[[Run], T | None], kind: str, what: str, missing: str, icon: str, with_model: bool = True
) -> T | None:
    """Return what was measured on a run, or ``None`` after showing how to measure it, or that it is damaged.

    Args:
        run: on which it was measured.
        load: returns what was measured, ``None`` where it was not.
        kind: of the measurement, as the command line calls it.
        what: was measured, in words.
        missing: one or two sentences on what is not known without it.
        icon: of the page.
        with_model: whether measuring needs the run's model.
    """
    try:
        measured = shared((*addition_identity(run, kind), kind), lambda: load(run))
    except RefusalError as error:
        show_error(f"The {what} measured on this run cannot be used.", error)
        return None
    if measured is None:
        st.info(missing, icon=icon)
        measure_here(run, kind, with_model)
        with st.expander("On the command line", icon=":material/terminal:"):
            st.code(f"refusal measure {kind} {run.path.name}", language=None)
    return measured


def recorded_or_end(
    run: Run, load: Callable[[Run], T | None], kind: str, what: str, missing: str, icon: str, with_model: bool = True
) -> T:
    """Return what was measured on a run; otherwise the page ends with what :func:`recorded` shows, of the same."""
    measured = recorded(run, load, kind, what, missing, icon, with_model)
    if measured is None:
        st.stop()
    return measured


def _path_of_local_model(run: Run) -> str | None:
    model = run.manifest.model
    st.info(
        f"This run's model came from a local {plain(model.source)}, whose place is not stored with a run. "
        "Enter its path; it is checked against the run.",
        icon=":material/folder_open:",
    )
    path = st.text_input(
        "Path of the model",
        key=_PATH,
        placeholder="a folder with config.json, or a GGUF file",
        persist_state="session",
    )
    return path if path and _is_open_to_visitors(path) else None


def _is_open_to_visitors(path: str) -> bool:
    """Return whether a model may be opened by a path that was typed, after showing why not."""
    try:
        check_typed(path, named_folders())
    except RefusalError as error:
        show_error("This model cannot be opened.", error, severe=False)
        return False
    return True


def fetch_command(name: str, revision: str | None) -> Command:
    """Return the command that fetches a model."""
    pinned = (f"--revision={revision}",) if revision else ()
    return Command(f"Get the model {name}", "fetch", (*pinned, "--", name))


def _offer_fetch(name: str, revision: str | None) -> None:
    known = KNOWN.get(name)
    size = (
        f"{known.size / 1e9:.1f} GB to download, {known.converted_size / 1e9:.1f} GB on disk"
        if known
        else "size as on the hub"
    )
    licence = f"licence: {known.licence}" if known else "licence as on the hub"
    st.info(
        f"This needs the run's model, {plain(name)}, which is not on this machine ({size}; {licence}). "
        "Everything else works without it.",
        icon=":material/download:",
    )
    offer(fetch_command(name, revision), "Get the model", ":material/download:")
