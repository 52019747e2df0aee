"""Starting a run from the browser: what is asked for, checked before it starts, then begun in the background."""

from __future__ import annotations

import streamlit as st

from refusal_core.errors import RefusalError
from refusal_core.models.devices import DTYPES
from refusal_core.models.known import KNOWN
from refusal_core.models.opening import QUANTISED
from refusal_core.pipeline.plan import Plan, Request, check
from refusal_core.prompts.sets import CONTRAST_SETS, LABELS, MINIMUM_PER_LABEL, READABLE, TOKEN_LIMIT
from refusal_core.ui import jobs
from refusal_core.ui.background import offer
from refusal_core.ui.jobs import Command
from refusal_core.ui.layout import plain
from refusal_core.ui.model import fetch_command
from refusal_core.ui.uploads import keep_upload

_OTHER = "another model"
_BUNDLED, _TYPED, _UPLOADED = "bundled", "from the hub or this machine", "an uploaded file"
_CHECKED = "runs_checked"
_THINKING = {None: "as the template has it", "on": "on", "off": "off"}


def start_a_run() -> None:
    """The form; what it asks for is checked first and, when it can be made, offered to be started."""
    model = _model()
    try:
        prompts = _prompts()
    except RefusalError as error:
        _wrong(error)
        return
    request = _request(model, prompts)
    if st.button("Check", icon=":material/fact_check:", disabled=not (model and prompts), key="runs_check"):
        with st.spinner("Looking for the model and reading the prompts …"):
            st.session_state[_CHECKED] = (request, _checked(request))
    checked, found = st.session_state.get(_CHECKED, (None, None))
    if checked != request:
        st.caption("Checking takes seconds and downloads no weights; the run starts only when you say so.")
    elif isinstance(found, Plan):
        _offer(request, found)
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
        placeholder="Qwen/Qwen2.5-1.5B-Instruct, or a path on the machine this runs on",
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
            placeholder="mlabonne/harmful_behaviors,mlabonne/harmless_alpaca",
            help="A labelled file on the machine this runs on, or two files or hub datasets with a comma between them.",
        ).strip()
    sent = other.file_uploader(
        "A labelled file",
        type=[ending[1:] for ending in READABLE],
        key="runs_upload",
        help="With a text and a label (harmful or harmless) in each row; txt: label, tab, text on each line.",
    )
    return "" if sent is None else str(keep_upload(sent.name, sent.getvalue()))


def _request(model: str, prompts: str) -> Request:
    with st.expander("Options", icon=":material/tune:"):
        left, middle, right = st.columns(3)
        limit = left.number_input(
            "Prompts a label, at most",
            min_value=MINIMUM_PER_LABEL,
            value=None,
            placeholder="all",
            key="runs_limit",
            help="Spread evenly over the set; matched pairs stay together.",
        )
        dtype = middle.selectbox(
            "Dtype",
            ["auto", *DTYPES],
            key="runs_dtype",
            help="auto takes what this machine's processor or accelerator does fast.",
        )
        thinking = right.selectbox(
            "Thinking",
            list(_THINKING),
            format_func=_THINKING.__getitem__,
            key="runs_thinking",
            help="For models that can think before they reply.",
        )
        system_prompt = st.text_area(
            "System prompt",
            key="runs_system",
            placeholder="what the chat template does by itself",
            height=68,
        )
        left, middle, right = st.columns(3)
        token_limit = left.number_input(
            "Longest prompt, in tokens",
            min_value=8,
            value=TOKEN_LIMIT,
            key="runs_tokens",
            help="With its template; a longer prompt is an error, nothing is ever cut.",
        )
        seed = middle.number_input(
            "Seed", min_value=0, value=0, key="runs_seed", help="Of the folds and all that is random in the evidence."
        )
        revision = right.text_input(
            "Revision", key="runs_revision", placeholder="the newest", help="Commit, tag or branch of a hub model."
        )
        left, middle, _ = st.columns(3)
        template = left.text_input(
            "Chat template of",
            key="runs_template",
            placeholder="the model itself",
            help="Borrow another model's, for a base model that has none: a known name, a hub id, a model's folder or "
            "a .jinja file. Without one a base model reads bare prompts.",
        )
        quantise = middle.selectbox(
            "Bits",
            [None, *QUANTISED],
            format_func=lambda bits: "as they are" if bits is None else f"{bits}, by bitsandbytes",
            key="runs_quantise",
            help="Opens weights in fewer bits, for a model that does not fit: slower on a processor, and less exact.",
        )
        left, right = st.columns(2)
        text_column = left.text_input("Text column", key="runs_text_column", placeholder="text, prompt, …")
        label_column = right.text_input("Label column", key="runs_label_column", placeholder="label")
        keep = st.checkbox(
            "Keep the activations",
            key="runs_keep",
            help="Stored with the run, so that directions can be fitted again without the model; takes disk space.",
        )
    return Request(
        model=model,
        prompts=prompts,
        revision=revision or None,
        limit=limit,
        system_prompt=system_prompt or None,
        thinking=thinking,
        template=template.strip() or None,
        quantise=quantise,
        dtype=dtype,
        token_limit=token_limit,
        seed=seed,
        keep_activations=keep,
        text_column=text_column or None,
        label_column=label_column or None,
    )


def _checked(request: Request) -> Plan | RefusalError:
    try:
        return check(request)
    except RefusalError as error:
        return error


def _offer(request: Request, plan: Plan) -> None:
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
    if not plan.available:
        size = f"{plan.download_bytes / 1e9:.1f} GB" if plan.download_bytes else "a size the hub does not tell"
        st.info(f"The model is not on this machine yet: {size} to download. Then check again.", icon=":material/cloud:")
        offer(fetch_command(info.name, info.revision), "Get the model", ":material/download:")
        return
    command = Command(f"{info.name} on {plan.contrast_set} ({counts})", request.arguments)
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
    st.text(str(error))
