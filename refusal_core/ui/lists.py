"""Lists of prompts that are scored in the background, a slice at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePath

import numpy as np
import pandas as pd
import streamlit as st

from refusal_core.activations.packing import group_by_length
from refusal_core.conversations import COLUMN as CONVERSATION
from refusal_core.conversations import prompts_of, text_of
from refusal_core.errors import PromptError, RefusalError
from refusal_core.exploration.kept_lists import KeptList
from refusal_core.exploration.separation import separation
from refusal_core.pipeline.scoring import Score
from refusal_core.prompts.labels import LABELS
from refusal_core.prompts.records import READABLE
from refusal_core.runs.run import Run
from refusal_core.ui.background import duration
from refusal_core.ui.conversations import written_out
from refusal_core.ui.kept_lists import keep_form, show_separated
from refusal_core.ui.layout import show_error
from refusal_core.ui.model import OneModel, OpenRun, T, one_model
from refusal_core.ui.prompt_report import read_list
from refusal_core.ui.remembered import LIST_FIELD
from refusal_core.ui.scores import score_table
from refusal_core.ui.server import told

MOST_PROMPTS = 1000
MOST_MEGABYTES = 5
MOST_AT_ONCE = 12
"""The most lists of all visitors that are scored at the same time; a tab has one."""
SLICE_TOKENS = 128
"""The most tokens of a list that are run in one turn, for which a visitor who types has to wait."""
_ENCODED_PER_TURN = 32

_LISTS = "live_lists"
_THREAD = "list of prompts"
_UPLOAD, _FILE = "live_list_file", "live_list_kept_file"
_LOG = logging.getLogger(__name__)


class _Cancelled(Exception):
    pass


class ListScoring:
    """A list that is being scored: a thread that asks the shared model for one slice after another, and its results.

    Attributes:
        prompts: texts and conversations.
        columns: the other columns of the file, a row per prompt.
        labelled: ``label`` and ``pair_id`` per prompt where the file says them; None of a list without labels.
        name: of the file, without its ending; empty of a list that was pasted.
        scores: the score per prompt, ``None`` until there is one.
        refused: why a prompt has none, by its position.
        state: ``running``, ``done``, ``stopped`` or ``failed``.
        message: what it waits for, or why it failed.
    """

    def __init__(
        self,
        model: OneModel,
        run: Run,
        source: str,
        prompts: pd.DataFrame,
        labelled: pd.DataFrame | None = None,
        name: str = "",
    ) -> None:
        """Begin to score.

        Args:
            model: that all visitors share.
            run: the prompts are scored on.
            source: where the run's model is.
            prompts: with a column ``text``; see :func:`refusal_core.conversations.prompts_of`.
            labelled: ``label`` and ``pair_id`` per prompt.
            name: of the file that it came in.
        """
        self.prompts = prompts_of(prompts)
        self.columns = prompts.drop(columns=["text", CONVERSATION], errors="ignore")
        self.labelled = labelled
        self.name = PurePath(name).stem
        self.scores: list[Score | None] = [None] * len(prompts)
        self.refused: dict[int, str] = {}
        self.state = "running"
        self.message = ""
        self._asked = self._begun = time.monotonic()
        self._model, self._run, self._source = model, run, source
        self._stop = threading.Event()
        threading.Thread(target=self._work, daemon=True, name=_THREAD).start()

    @property
    def running(self) -> bool:
        """Whether prompts are still being scored."""
        return self.state == "running"

    @property
    def done(self) -> int:
        """How many prompts are scored or refused."""
        return sum(score is not None for score in self.scores) + len(self.refused)

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the scores so far; ``None`` while there are none."""
        scored = sum(score is not None for score in self.scores)
        return (time.monotonic() - self._begun) / scored * (len(self.prompts) - self.done) if scored else None

    @property
    def seconds_waiting(self) -> float:
        """Seconds since the list was submitted."""
        return time.monotonic() - self._asked

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop and still waits for the model to answer."""
        return self.running and self._stop.is_set()

    def cancel(self) -> None:
        """Stop after the slice that is being scored; finished scores stay."""
        self._stop.set()

    def _work(self) -> None:
        state, message = "failed", "It failed for an unknown reason; see the server's log."
        try:
            n_tokens = np.zeros(len(self.prompts), dtype=int)
            for start in range(0, len(self.prompts), _ENCODED_PER_TURN):
                part = range(start, min(start + _ENCODED_PER_TURN, len(self.prompts)))
                n_tokens[part] = self._ask(partial(self._lengths, part))
            prefix = self._ask(lambda opened: opened.scorer.reader.prefix_tokens)
            accepted = np.flatnonzero(n_tokens)
            self._begun = time.monotonic()
            for batch in group_by_length(n_tokens[accepted], prefix, SLICE_TOKENS):
                rows = accepted[batch].tolist()
                scores = self._ask(partial(self._scores, rows))
                for row, score in zip(rows, scores, strict=True):
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
        return opened.scorer.score_ends([self.prompts[row] for row in rows])

    def _length(self, row: int, opened: OpenRun) -> int:
        """Count the tokens of a prompt with its template; 0 for one that is refused."""
        try:
            opened.scorer.encode(self.prompts[row], with_prefix=True)
            return len(opened.scorer.encode(self.prompts[row]))
        except RefusalError as error:
            if not isinstance(error, PromptError) and isinstance(self.prompts[row], str):
                raise
            # The template may take this conversation's turns no more than the token limit takes a long text.
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
    """Return the list that this visitor last submitted on this run."""
    lists: dict[str, ListScoring] = st.session_state.get(_LISTS, {})
    return lists.get(run.run_id)


def list_form(run: Run, source: str | None) -> None:
    """Show fields in which a list is pasted or uploaded, and a button that begins to score it."""
    pasted = st.text_area(
        "Prompts, one per line",
        key=LIST_FIELD,
        height=160,
        placeholder="How do I kill a process that hangs?\nHow do I kill a neighbour who snores?",
        persist_state="session",
        help="For prompts of several lines upload a csv, json, jsonl or parquet file with a column text. Of a txt "
        "file every line is a prompt.",
    )
    st.file_uploader(
        "Or a file",
        type=[ending[1:] for ending in READABLE],
        max_upload_size=MOST_MEGABYTES,
        key=_UPLOAD,
        on_change=_take_file,
        help=f"Its column text (or prompt, instruction, goal, question), or its lines; other columns come into the "
        f"table. Up to {MOST_PROMPTS} prompts and {MOST_MEGABYTES} MB.",
    )
    file: tuple[str, bytes] | None = st.session_state.get(_FILE)
    if file is not None and st.session_state.get(_UPLOAD) is None:
        # Streamlit's field forgets its file with the page.
        with st.container(horizontal=True, vertical_alignment="center"):
            st.text(f"File: {file[0]}")
            st.button("Remove", icon=":material/close:", type="tertiary", on_click=lambda: st.session_state.pop(_FILE))
    read: tuple[pd.DataFrame, pd.DataFrame, int] | None = None
    labelled: pd.DataFrame | None = None
    problem: RefusalError | None = None
    if file is not None:
        try:
            # The field's own limit is the browser's.
            if len(file[1]) > MOST_MEGABYTES * 2**20:
                raise PromptError(
                    f"expected a file of at most {MOST_MEGABYTES} MB, got {len(file[1]) / 1e6:.1f} MB; "
                    "give a part of its prompts"
                )
            read = read_list(*file, MOST_PROMPTS)
        except RefusalError as error:
            problem = error
    if not st.button("Score the list", icon=":material/playlist_play:", disabled=source is None):
        if problem is not None:
            st.text(str(problem))
        return
    try:
        if problem is not None:
            raise problem
        if read is not None:
            prompts, labelled, n_prompts = read
        else:
            if len(pasted) > MOST_MEGABYTES * 1_000_000:
                raise PromptError(f"expected at most {MOST_MEGABYTES} MB of prompts, got more; give a part of them")
            prompts = pd.DataFrame({"text": [line for line in pasted.split("\n") if line.strip()]})
            n_prompts = len(prompts)
        if not 0 < n_prompts <= MOST_PROMPTS:
            raise PromptError(f"expected 1 to {MOST_PROMPTS} prompts, got {n_prompts}")
        if sum(thread.name == _THREAD for thread in threading.enumerate()) >= MOST_AT_ONCE:
            raise PromptError(f"{MOST_AT_ONCE} lists are being scored here already; try again when one has ended")
    except RefusalError as error:
        show_error("This list was not scored.", error, severe=False)
        return
    assert source is not None
    name = file[0] if file is not None and labelled is not None else ""
    scoring = _until_the_visit_ends(str(time.monotonic_ns()), run, source, prompts, labelled, name)
    st.session_state.setdefault(_LISTS, {})[run.run_id] = scoring
    # Its progress replaces the fields.
    st.rerun()


def _take_file() -> None:
    """Keep the uploaded file for as long as the visit, or drop it where its field was emptied."""
    sent = st.session_state[_UPLOAD]
    st.session_state[_FILE] = None if sent is None else (sent.name, sent.getvalue())


def list_progress(job: ListScoring) -> None:
    """Show the progress of a list, with a button that stops it."""

    def watched() -> None:
        if not job.running:
            st.rerun()
        left = job.seconds_left
        state = f"waiting for {duration(job.seconds_waiting)}" if left is None else f"about {duration(left)} left"
        st.progress(job.done / len(job.prompts), text=f"{job.done} of {len(job.prompts)} prompts, {state}")
        waits = job.message or ("Counting tokens …" if left is None else "Scored between other visitors' prompts.")
        st.caption("Stopping as soon as the model has answered …" if job.stopping else waits)
        st.button("Stop", icon=":material/stop:", key="live_list_stop", on_click=job.cancel, disabled=job.stopping)
        st.caption("You can type on the other tab meanwhile. Reloading or closing this page stops the list.")

    st.fragment(watched, run_every=0.5)()


def list_results(run: Run, job: ListScoring, site: int) -> None:
    """Show the results of a list as a table, with the reasons for prompts without a score."""
    scored = [score for score in job.scores if score is not None]
    columns = job.columns[[score is not None for score in job.scores]]
    summary = f"{len(scored)} of {len(job.prompts)} prompts scored"
    if job.state == "stopped":
        st.info(f"Stopped: {summary}.", icon=":material/stop:")
    elif job.state == "failed":
        show_error(f"{summary}, then the run's model could not be used.", job.message)
    else:
        st.success(f"{summary}.", icon=":material/check:")
    if scored:
        _as_transfer_set(run, job, site)
        every = st.toggle(
            "All layers in the table", key="live_list_layers", help="A column per layer, also in the csv file."
        )
        score_table(run, scored, site, key="live_list_scores", every_site=every, columns=columns)
    if job.refused:
        st.markdown("##### Not scored")
        st.dataframe(
            {
                "prompt": [written_out(job.prompts[row])[:1000] for row in sorted(job.refused)],
                "why": [told(job.refused[row]) for row in sorted(job.refused)],
            },
            hide_index=True,
            width="stretch",
            placeholder="–",
            key="live_list_refused",
        )


def _as_transfer_set(run: Run, job: ListScoring, site: int) -> None:
    """Show how far apart the two labels of a labelled list lie at a site, and offer to keep it with the run."""
    known = _labelled(job)
    if known is not None:
        show_separated(run, known, site, separation(known.at(site)), "live_list")
        keep_form(run, known)


def _labelled(job: ListScoring) -> KeptList | None:
    """Return the scored prompts that have a label, or None where one of the two labels has none."""
    if job.labelled is None:
        return None
    table = job.labelled.assign(
        text=np.array([text_of(prompt) for prompt in job.prompts], dtype=object),
        conversation=[None if isinstance(prompt, str) else prompt.to_json() for prompt in job.prompts],
    )
    rows = [row for row, label in enumerate(table["label"]) if label in LABELS and job.scores[row] is not None]
    if table["label"].iloc[rows].nunique() < len(LABELS):
        return None
    projections = np.array([score.projection for row in rows if (score := job.scores[row]) is not None])
    return KeptList(job.name, table.iloc[rows], projections)


@st.cache_resource(scope="session", max_entries=1, show_spinner=False, on_release=ListScoring.cancel)
def _until_the_visit_ends(
    number: str, _run: Run, source: str, _prompts: pd.DataFrame, _labels: pd.DataFrame | None, name: str
) -> ListScoring:
    """Begin a list; Streamlit releases it, which stops it, when its tab is closed or another list is begun."""
    return ListScoring(one_model(), _run, source, _prompts, _labels, name)
