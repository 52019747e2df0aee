"""Long work on a page: a button that starts it and, while it runs, its progress, its log and a button to cancel it."""

from __future__ import annotations

import streamlit as st

from refusal_core.errors import RefusalError
from refusal_core.markdown import plain
from refusal_core.progress.file import WAITING
from refusal_core.ui import jobs
from refusal_core.ui.jobs import Command, Job
from refusal_core.ui.layout import show_error
from refusal_core.ui.server import may_change

_MINUTE, _HOUR = 60, 3600


def offer(command: Command, label: str, icon: str = ":material/play_arrow:") -> None:
    """Show a button that starts a command, or the command's progress while it runs.

    The page is drawn again when the command ends, so a caller shows this only while the command's product is missing.

    Args:
        command: what is started.
        label: of the button.
        icon: of the button.
    """
    job = jobs.status(command.name)
    if job is not None and job.state == "running":
        watch(job)
        return
    if job is not None and job.state != "done":
        how_it_ended(job)
    again = {"failed": "Try again", "cancelled": "Continue"}.get(job.state if job else "", label)
    start_button(command, again, icon)


def start_button(command: Command, label: str, icon: str, place: str = "here") -> None:
    """Show a button that starts a command; ``place`` distinguishes the buttons of one page."""
    if not may_change():
        st.caption("The owner of this dashboard can start this.")
        return
    if st.button(label, icon=icon, type="primary", key=f"start_{place}_{command.name}"):
        try:
            jobs.start(command)
        except RefusalError as error:
            show_error("This cannot be started.", error)
        else:
            st.rerun()


def how_it_ended(job: Job) -> None:
    """Show why a job failed, or that it was cancelled."""
    if job.state == "failed":
        show_error("The last attempt failed.", job.message)
        _log(job)
    elif job.state == "cancelled":
        st.info("Stopped. Finished work is saved: started again, it continues there.", icon=":material/pause:")


@st.fragment(run_every=1.0)
def watch(job: Job, place: str = "here") -> None:
    """Show a running job: a bar with stage, count and time left, its log, and a button that cancels it.

    Args:
        job: to watch.
        place: distinguishes the jobs of one page.
    """
    now = jobs.status(job.name)
    if now is None or now.state != "running":
        st.rerun()
        return
    st.progress(min(now.done / now.total, 1.0) if now.total else 0.0, text=plain(describe(now)))
    if may_change():
        _cancel_button(now, place)
    _log(now)


def _cancel_button(job: Job, place: str) -> None:
    st.button(
        "Cancel",
        icon=":material/stop_circle:",
        key=f"cancel_{place}_{job.name}",
        on_click=jobs.cancel,
        args=(job.name,),
        help="Stops the process. Finished work is saved: started again, it continues there.",
    )


def describe(job: Job) -> str:
    """Describe a job's progress, as in ``extracting: 120 of 608 prompts · running for 40 s``."""
    stage, _, unit = (job.stage or "starting").rstrip(")").partition(" (")
    if not job.total:
        where = f"{stage} …"
    elif unit == "bytes":
        where = f"{stage}: {job.done / 1e6:.0f} of {job.total / 1e6:.0f} MB"
    else:
        where = f"{stage}: {job.done} of {job.total} {unit}"
    parts = [where, f"{'for' if stage == WAITING else 'running for'} {duration(job.seconds)}"]
    if job.seconds_left is not None:
        parts.append(f"about {duration(job.seconds_left)} left of this stage")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration as ``40 s``, ``2 min`` or ``1 h 5 min``."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    hours, rest = divmod(round(seconds / _MINUTE) * _MINUTE, _HOUR)
    return (f"{hours} h " if hours else "") + f"{rest // _MINUTE} min"


def _log(job: Job) -> None:
    # It quotes whatever the program and its libraries print.
    if not may_change():
        return
    with st.expander("Log", icon=":material/terminal:"):
        st.code(jobs.log(job.name) or "nothing printed yet", language=None, wrap_lines=True)
