"""Vectors that someone sent, as directions of a run's model: the form that asks for their run."""

from __future__ import annotations

import streamlit as st

from refusal_core.errors import RefusalError
from refusal_core.pipeline.vector_files import ENDINGS, NUMBERINGS
from refusal_core.runs.run import Run
from refusal_core.ui.jobs import Command
from refusal_core.ui.layout import show_error
from refusal_core.ui.model import model_source
from refusal_core.ui.uploads import LARGEST, store_vectors

_SAYS_ITSELF = "the file says it"


def command_for_vectors(run: Run) -> Command | None:
    """Show fields for a file of vectors and how it counts layers, and return the command that imports it.

    Args:
        run: of the model that the vectors are of; its prompts are taken.

    Returns:
        ``None`` while something is missing, after showing what.
    """
    st.caption(
        "A refusal direction, control vector or steering vector of this run's model, made elsewhere, gets a run of its "
        "own: the same evidence, outliers, live scores and interventions, on the prompts of the run chosen here:"
    )
    st.text(run.run_id)
    sent = st.file_uploader(
        "A file of vectors",
        type=[ending[1:] for ending in ENDINGS],
        max_upload_size=LARGEST // 1_000_000,
        key="vectors_file",
        help="One vector, or one for each layer. Pickles (.pt, .bin) are refused: opening one runs what its author "
        "wrote.",
    )
    choose, other = st.columns(2, vertical_alignment="bottom")
    numbering = choose.selectbox(
        "How it counts layers",
        [None, *NUMBERINGS],
        format_func=lambda name: f"{name}: {NUMBERINGS[name]}" if name else _SAYS_ITSELF,
        key="vectors_numbering",
        help="GGUF control vectors count blocks, and files of this program say their layers; others have to be told. "
        "A layer off by one is a different direction, so nothing is guessed.",
    )
    layer = other.number_input(
        "Layer, for a file of one vector",
        value=None,
        min_value=-run.n_layers - 1,
        max_value=run.n_layers,
        step=1,
        key="vectors_layer",
        help="In the file's own numbering. Negative layers count from the end.",
    )
    if sent is None:
        return None
    arguments = [f"--run={run.run_id}"]
    if numbering is not None:
        arguments.append(f"--layers={numbering}")
    if layer is not None:
        arguments.append(f"--layer={layer}")
    if not run.keeps_activations:
        st.caption("Activations were not stored with this run, so its model reads the prompts again: minutes.")
        source = model_source(run)
        if source is None:
            return None
        if source != run.model_name:
            arguments.append(f"--model={source}")
    try:
        file = store_vectors(sent.name, sent.getvalue())
    except RefusalError as error:
        show_error("This file cannot be imported.", error)
        return None
    return Command(f"Import {file.name} for {run.run_id}", "import-direction", (*arguments, "--", str(file)))
