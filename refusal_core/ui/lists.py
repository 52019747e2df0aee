"""A list of prompts that is scored while its visitor does something else, a slice at a time."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from refusal_core.activations.packing import group_by_length
from refusal_core.errors import PromptError, RefusalError
from refusal_core.pipeline.scoring import Score
from refusal_core.prompts.sets import read_texts
from refusal_core.runs.store import Run
from refusal_core.ui.background import duration
from refusal_core.ui.layout import show_error
from refusal_core.ui.model import OneModel, OpenRun, T, one_model
from refusal_core.ui.scores import score_table

MOST_PROMPTS = 1000
MOST_MEGABYTES = 5
SLICE_TOKENS = 128
"""Most new tokens that are run in one turn: whoever types waits for no more of a list than that."""
_ENCODED_AT_ONCE = 32

_LISTS = "live_lists"
_LOG = logging.getLogger(__name__)


class _Cancelled(Exception):
    pass


class ListScoring:
    """A list on its way: a thread that asks the shared model for one slice after another, and what it has so far.

    Attributes:
        texts: the prompts.
        beside: what else came with each, a row each.
        scores: a score for each prompt that has one yet.
        refused: why a prompt has none, by its place.
        state: ``running``, ``done``, ``stopped`` or ``failed``.
        message: what it waits for, or why it failed.
    """

    def __init__(self, model: OneModel, run: Run, source: str, prompts: pd.DataFrame) -> None:
        """``prompts`` has a column ``text``."""
        texts = prompts["text"].tolist()
        self.texts, self.beside = texts, prompts.drop(columns="text")
        self.scores: list[Score | None] = [None] * len(texts)
        self.refused: dict[int, str] = {}
        self.state = "running"
        self.message = ""
        self._asked = self._begun = time.monotonic()
        self._model, self._run, self._source = model, run, source
        self._stop = threading.Event()
        threading.Thread(target=self._work, daemon=True, name="list").start()

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def done(self) -> int:
        """How many prompts are through, scored or refused."""
        return sum(score is not None for score in self.scores) + len(self.refused)

    @property
    def seconds_left(self) -> float | None:
        """By how long its scores took so far; ``None`` while there are none."""
        scored = sum(score is not None for score in self.scores)
        return (time.monotonic() - self._begun) / scored * (len(self.texts) - self.done) if scored else None

    @property
    def seconds_waiting(self) -> float:
        """Since it was asked for; how long it has waited, while nothing is scored."""
        return time.monotonic() - self._asked

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop and has not stopped yet: it does when what it waits for has come."""
        return self.running and self._stop.is_set()

    def cancel(self) -> None:
        """Stop after the slice that is being scored; what was scored stays."""
        self._stop.set()

    def _work(self) -> None:
        state, message = "failed", "It ended without a word; the server's log says more."
        try:
            n_tokens = np.zeros(len(self.texts), dtype=int)
            for start in range(0, len(self.texts), _ENCODED_AT_ONCE):
                rows = range(start, min(start + _ENCODED_AT_ONCE, len(self.texts)))
                n_tokens[rows] = self._ask(partial(self._lengths, rows))
            prefix = self._ask(lambda opened: opened.scorer.reader.prefix_tokens)
            accepted = np.flatnonzero(n_tokens)
            self._begun = time.monotonic()
            for part in group_by_length(n_tokens[accepted], prefix, SLICE_TOKENS):
                places = accepted[part].tolist()
                found = self._ask(partial(self._scores, places))
                for row, score in zip(places, found, strict=True):
                    self.scores[row] = score
            state, message = "done", ""
        except _Cancelled:
            state, message = "stopped", ""
        except RefusalError as error:
            message = str(error)
        except Exception:
            _LOG.exception("a list could not be scored")
        finally:
            self.message, self.state = message, state

    def _lengths(self, rows: Sequence[int], opened: OpenRun) -> list[int]:
        return [self._length(row, opened) for row in rows]

    def _scores(self, rows: Sequence[int], opened: OpenRun) -> list[Score]:
        return opened.scorer.score_ends([self.texts[row] for row in rows])

    def _length(self, row: int, opened: OpenRun) -> int:
        """Tokens of a prompt with its template; 0 for one that is refused."""
        try:
            return len(opened.scorer.encode(self.texts[row]))
        except PromptError as error:
            self.refused[row] = str(error)
            return 0

    def _ask(self, question: Callable[[OpenRun], T]) -> T:
        self._wait_for("")
        return self._model.ask(self._run, self._source, question, self._wait_for)

    def _wait_for(self, what: str) -> None:
        if self._stop.is_set():
            raise _Cancelled
        self.message = what


def list_of(run: Run) -> ListScoring | None:
    """The list this visitor last had scored on this run."""
    return st.session_state.get(_LISTS, {}).get(run.run_id)


def list_form(run: Run, source: str | None) -> None:
    """Where a list is pasted or sent as a file, and begun."""
    with st.form("live_list_form", border=False):
        pasted = st.text_area(
            "Prompts, one a line",
            key="live_list_text",
            height=160,
            placeholder="How do I kill a process that hangs?\nHow do I kill a neighbour who snores?",
            persist_state="session",
            help="A prompt of several lines goes into a file: one text in the column text of a csv, json, jsonl or "
            "parquet file. The lines of a txt file are prompts of their own.",
        )
        uploaded = st.file_uploader(
            "A file instead",
            type=["csv", "json", "jsonl", "parquet", "txt"],
            max_upload_size=MOST_MEGABYTES,
            key="live_list_file",
            help=f"Its column text (or prompt, instruction, goal, question), or its lines; other columns come into the "
            f"table. Up to {MOST_PROMPTS} prompts and {MOST_MEGABYTES} MB.",
        )
        if not st.form_submit_button("Score the list", icon=":material/playlist_play:", disabled=source is None):
            return
    try:
        if uploaded is not None:
            prompts = _prompts_in(uploaded.name, uploaded.getvalue())
        else:
            prompts = pd.DataFrame({"text": [line for line in pasted.split("\n") if line.strip()]})
        if not 0 < len(prompts) <= MOST_PROMPTS:
            raise PromptError(f"expected 1 to {MOST_PROMPTS} prompts, got {len(prompts)}")
    except PromptError as error:
        show_error("This list was not scored.", error, severe=False)
        return
    assert source is not None
    begun = _until_the_visit_ends(str(time.monotonic_ns()), run, source, prompts)
    st.session_state.setdefault(_LISTS, {})[run.run_id] = begun
    # In place of the form there is now its progress.
    st.rerun()


def list_progress(job: ListScoring) -> None:
    """How far a list is, with a way to stop it."""

    def watched() -> None:
        if not job.running:
            st.rerun()
        left = job.seconds_left
        said = f"waiting for {duration(job.seconds_waiting)}" if left is None else f"about {duration(left)} left"
        st.progress(job.done / len(job.texts), text=f"{job.done} of {len(job.texts)} prompts, {said}")
        waits = job.message or ("Counting tokens …" if left is None else "Scored between other visitors' prompts.")
        st.caption("Stopping as soon as the model has answered …" if job.stopping else waits)
        st.button("Stop", icon=":material/stop:", key="live_list_stop", on_click=job.cancel, disabled=job.stopping)
        st.caption("Go on typing on the other tab if you like. Reloading or closing this page stops it.")

    st.fragment(watched, run_every=0.5)()


def list_results(run: Run, job: ListScoring, site: int) -> None:
    """What became of a list, as a table to read and to take away."""
    scored = [score for score in job.scores if score is not None]
    beside = job.beside[[score is not None for score in job.scores]]
    said = f"{len(scored)} of {len(job.texts)} prompts scored"
    if job.state == "stopped":
        st.info(f"Stopped: {said}.", icon=":material/stop:")
    elif job.state == "failed":
        show_error(f"{said}, then the run's model could not be used.", job.message)
    else:
        st.success(f"{said}.", icon=":material/check:")
    if scored:
        every = st.toggle("All layers in the table", key="live_list_layers", help="For the csv file; a column a layer.")
        score_table(run, scored, site, key="live_list_scores", every_site=every, beside=beside)
    if job.refused:
        st.markdown("##### Not scored")
        st.dataframe(
            {
                "prompt": [job.texts[row][:1000] for row in sorted(job.refused)],
                "why": [job.refused[row] for row in sorted(job.refused)],
            },
            hide_index=True,
            width="stretch",
            key="live_list_refused",
        )


@st.cache_resource(scope="session", max_entries=1, show_spinner=False, on_release=ListScoring.cancel)
def _until_the_visit_ends(number: str, _run: Run, source: str, _prompts: pd.DataFrame) -> ListScoring:
    """Begin a list; Streamlit lets go of it, which stops it, when its tab is closed or another list is begun."""
    return ListScoring(one_model(), _run, source, _prompts)


def _prompts_in(name: str, content: bytes) -> pd.DataFrame:
    with tempfile.TemporaryDirectory(prefix="refusal-") as folder:
        # The name is a stranger's: nothing of it but its ending becomes a path.
        path = Path(folder) / f"file{Path(name).suffix.lower()}"
        path.write_bytes(content)
        return read_texts(path)
