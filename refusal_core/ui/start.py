"""The form that starts a run: options are checked first, then the run is begun in the background."""

from __future__ import annotations

from typing import Any

import streamlit as st

from refusal_core.access.folders import check_typed, named_folders
from refusal_core.children import LARGE, in_child
from refusal_core.errors import RefusalError
from refusal_core.markdown import plain
from refusal_core.models.known import KNOWN
from refusal_core.options import RunOptions
from refusal_core.pipeline.plan import Plan, settle_dtype, survey
from refusal_core.prompts.benchmarks import BENCHMARKS
from refusal_core.prompts.bundled import CONTRAST_SETS
from refusal_core.prompts.labels import LABELS
from refusal_core.prompts.records import READABLE
from refusal_core.ui import jobs
from refusal_core.ui.background import offer
from refusal_core.ui.jobs import Command
from refusal_core.ui.model import fetch_command
from refusal_core.ui.options import option_widget
from refusal_core.ui.prompt_report import chosen_columns
from refusal_core.ui.server import told
from refusal_core.ui.uploads import LARGEST, store_upload, uploads_folder

_OTHER = "another model"
_BUNDLED, _TYPED, _UPLOADED = "bundled", "from the hub or this machine", "an uploaded file"
_CHECKED = "runs_checked"
_ROWS = (
    ("limit_per_label", "dtype", "thinking", "reasoning_effort"),
    ("system_prompt",),
    ("token_limit", "seed", "revision"),
    ("estimator",),
    ("chat_template", "load_in"),
    ("keep_activations",),
)
"""Options below the model and the prompts, row by row."""


def start_a_run() -> None:
    """Draw the form; what it asks for is checked first and, when it can be made, offered to be started."""
    model = _model()
    try:
        prompts = _prompts()
    except RefusalError as error:
        _wrong(error)
        return
    options = _options(model, prompts, _columns(prompts))
    if isinstance(options, RefusalError):
        _wrong(options)
        return
    if st.button("Check", icon=":material/fact_check:", disabled=options is None, key="runs_check"):
        with st.spinner("Looking for the model and reading the prompts …"):
            st.session_state[_CHECKED] = (options, _checked(options))
    checked, found = st.session_state.get(_CHECKED, (None, None))
    if options is None or checked != options:
        st.caption("Checking takes seconds and downloads no weights; the run starts only when you say so.")
    elif isinstance(found, Plan):
        _offer(found)
    else:
        _wrong(found)


def _model() -> str:
    choose, other = st.columns(2, vertical_alignment="bottom")
    known = choose.selectbox(
        "Model",
        [*KNOWN, _OTHER],
        key="runs_model",
        help="A model this program knows by name, or any chat model with safetensors weights, or a GGUF file.",
    )
    if known != _OTHER:
        return known
    return other.text_input(
        "Hub id, folder or GGUF file",
        key="runs_model_path",
        placeholder="Qwen/Qwen2.5-1.5B-Instruct, or a path in a folder that is open to visitors",
    ).strip()


def _prompts() -> str:
    choose, other = st.columns(2, vertical_alignment="bottom")
    kind = choose.selectbox(
        "Prompts",
        [_BUNDLED, _TYPED, _UPLOADED],
        key="runs_prompts_kind",
        help="The contrast set: harmful and harmless prompts that the direction is fitted on.",
    )
    if kind == _BUNDLED:
        return other.selectbox(
            "Set",
            list(CONTRAST_SETS),
            format_func=lambda name: f"{name}: {CONTRAST_SETS[name]}",
            key="runs_set",
            help="experiment-0 is downloaded from the Hugging Face hub.",
        )
    if kind == _TYPED:
        return other.text_input(
            "A file, or HARMFUL,HARMLESS",
            key="runs_prompts_path",
            placeholder="jailbreakbench, or advbench,alpaca",
            help="A benchmark by its name, a labelled hub dataset, a file in a folder that is open to visitors, or two "
            f"of these with a comma between them. The benchmarks: {', '.join(BENCHMARKS)}.",
        ).strip()
    sent = other.file_uploader(
        "A labelled file",
        type=[ending[1:] for ending in READABLE],
        max_upload_size=LARGEST // 1_000_000,
        key="runs_upload",
        help="With a text and a label (harmful or harmless) in each row; txt: label, tab, text on each line.",
    )
    return "" if sent is None else str(store_upload(sent.name, sent.getvalue()))


def _columns(prompts: str) -> dict[str, Any]:
    try:
        _check_paths(prompts)
    except RefusalError:
        return {}  # said below, where the form still stands
    return chosen_columns(prompts)


def _check_paths(*typed: str) -> None:
    """Raise AccessError for a path that is not open to visitors, before anything there is looked at."""
    folders = (*named_folders(), uploads_folder())
    for name in typed:
        if name not in KNOWN and name not in CONTRAST_SETS:
            check_typed(name, folders)


def _options(model: str, prompts: str, columns: dict[str, Any]) -> RunOptions | RefusalError | None:
    """Return what the form asks for, or what is wrong with it; ``None`` while model or prompts are missing."""
    with st.expander("Options", icon=":material/tune:"):
        given = dict(columns)
        for row in _ROWS:
            for place, name in zip(st.columns(len(row)), row, strict=True):
                given[name] = option_widget(place, RunOptions, name, f"runs_{name}")
    if not (model and prompts):
        return None
    try:
        _check_paths(model, prompts, given["chat_template"] or "")
        return RunOptions(model=model, prompts=prompts, **given)
    except RefusalError as error:
        return error


def _checked(options: RunOptions | None) -> Plan | RefusalError | None:
    try:
        return None if options is None else settle_dtype(in_child(survey, options, limits=LARGE, online=True))
    except RefusalError as error:
        return error


def _offer(plan: Plan) -> None:
    info = plan.model
    counts = " + ".join(f"{plan.counts[label]} {label}" for label in LABELS)
    quantised = f", {info.quantisation}" if info.quantisation else ""
    st.success(
        plain(
            f"{info.name}: {info.architecture}, {info.n_layers} layers × {info.d_model}{quantised}; licence: "
            f"{info.licence or 'not stated'}. {plan.contrast_set}: {counts} prompts; {plan.n_transfer} more are scored."
        ),
        icon=":material/check:",
    )
    if plan.cached is not None:
        st.info("This run is in the cache already; making it again would change nothing.", icon=":material/check:")
        st.text(plan.cached)
        return
    if not plan.available:
        size = f"{plan.download_bytes / 1e9:.1f} GB" if plan.download_bytes else "a size the hub does not tell"
        st.info(f"The model is not on this machine yet: {size} to download. Then check again.", icon=":material/cloud:")
        offer(fetch_command(info.name, info.revision), "Get the model", ":material/download:")
        return
    command = Command(f"{info.name} on {plan.contrast_set} ({counts})", "run", plan.options.arguments())
    job = jobs.status(command.name)
    if job is None or job.state != "running":
        # How an earlier attempt ended is told below, once.
        if st.button("Start the run", icon=":material/play_arrow:", type="primary", key="runs_start"):
            _begin(command)
    else:
        st.caption("This run is under way: see the top of the page.")


def _begin(command: Command) -> None:
    try:
        jobs.start(command)
    except RefusalError as error:
        _wrong(error)
    else:
        st.rerun()


def _wrong(error: RefusalError | None) -> None:
    st.error("This run cannot be made as it is asked for.", icon=":material/error:")
    st.text(told(error))
