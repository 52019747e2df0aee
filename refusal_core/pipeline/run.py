"""From options to a run: taken from the cache, or the model loaded, activations extracted, analysed and saved."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_core.analysis.refitting import REFITTED
from refusal_core.models.devices import choose_device, choose_dtype
from refusal_core.models.opening import ChatModel
from refusal_core.models.templates import closed_thought, default_system_prompt, tells_the_date, template_sha256
from refusal_core.options import FOLDS, RAY, REPEATS, TOKEN_POSITION, RunOptions, file_name
from refusal_core.pipeline.analysis import analyse
from refusal_core.pipeline.request import Request, prepare
from refusal_core.pipeline.steps import (
    Reading,
    RunResult,
    described_extraction,
    described_set,
    embed_prompts,
    extract_prompts,
    library_versions,
    load,
    save,
    timings,
)
from refusal_core.progress import Progress, no_progress
from refusal_core.runs import store
from refusal_core.runs.local_models import remember_model
from refusal_core.runs.manifest import (
    BorrowedTemplate,
    ComputeRecord,
    ContrastRecord,
    Manifest,
    ModelRecord,
    RefusalRecord,
    TemplateRecord,
    TransferRecord,
)
from refusal_core.runs.run import Run

if TYPE_CHECKING:
    # The engine imports torch, which a cached run does not need.
    from refusal_core.activations.engine import Engine
    from refusal_core.activations.extraction import Extraction


def run(options: RunOptions, *, cache: str | Path | None = None, progress: Progress = no_progress) -> RunResult:
    """Measure a model's refusal directions on a contrast set, or find that run in the cache.

    An interrupted extraction continues where it was when the same run is requested again.

    Args:
        options: what the run is made of and how it is made.
        cache: the folder of runs.
        progress: called for loading, extracting, testing and saving.

    Raises:
        RefusalError: of the kind that fits, for anything the caller can mend.
    """
    request = prepare(options)
    cached_run = request.find_cached(cache)
    made = _make(request, cache, progress) if cached_run is None else cached_run
    result = RunResult(made, cached=cached_run is not None)
    if request.model.path is not None:
        remember_model(result.run, request.model.path)
    return result


def _make(request: Request, cache: str | Path | None, progress: Progress) -> Run:
    """Load the model, extract activations, analyse them and save the run."""
    options = request.options
    engine = _engine(request)
    device = choose_device(options.device)
    dtype = choose_dtype(device, options.dtype)
    run_id = request.run_id(dtype)
    with store.unfinished_work(store.unfinished_run(run_id, cache), f"the run {run_id}") as folder:
        chat_model = load(
            request.model,
            device,
            dtype,
            chat_template=request.chat_template,
            reasoning_effort=options.reasoning_effort,
            load_in=options.load_in,
            progress=progress,
        )
        table, reading = request.prompt_table(), _reading(options, chat_model)
        extraction = extract_prompts(chat_model, table, reading, folder, progress, engine)
        embeddings = embed_prompts(chat_model, table)
        analysis = analyse(
            extraction.hidden,
            table,
            seed=options.seed,
            embeddings=embeddings,
            estimator=options.estimator,
            progress=progress,
        )
        manifest = _manifest(run_id, request, reading, chat_model, extraction)
        activations = extraction.hidden if options.keep_activations else None
        return save(manifest, table, analysis, activations, cache, progress)


def _engine(request: Request) -> Engine | None:
    """Return the engine that reads batches, or ``None`` for this process."""
    if request.options.engine != RAY:
        return None
    from refusal_core.activations.ray_engine import on_actors

    options, model = request.options, request.model
    return on_actors(
        model,
        options.actors,
        template=request.chat_template,
        reasoning_effort=options.reasoning_effort,
        load_in=options.load_in,
    )


def _reading(options: RunOptions, chat_model: ChatModel) -> Reading:
    """Return how the model reads prompts: today, if its chat template tells the date."""
    day = datetime.now().date().isoformat() if tells_the_date(chat_model.tokenizer) else None
    return Reading(options.system_prompt, options.thinking, day, options.token_limit)


def _manifest(
    run_id: str, request: Request, reading: Reading, chat_model: ChatModel, extraction: Extraction
) -> Manifest:
    """Return what defines a run and how it was made."""
    from refusal_core.activations.refusal_tokens import REFUSAL_OPENINGS, refusal_token_ids

    options = request.options
    return Manifest(
        run_id=run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        options=options.record(),
        model=ModelRecord(**chat_model.info.as_record()),
        prompts=ContrastRecord(**described_set(request.contrast)),
        transfer=tuple(
            TransferRecord(**described_set(chosen.prompts), left_out=chosen.left_out) for chosen in request.transfer
        ),
        template=_template_record(request, reading, chat_model),
        refusal=RefusalRecord(openings=REFUSAL_OPENINGS, token_ids=tuple(refusal_token_ids(chat_model.tokenizer))),
        compute=ComputeRecord(
            dtype=chat_model.dtype,
            load_in=options.load_in,
            engine=options.engine,
            seed=options.seed,
            folds=FOLDS,
            repeats=min(REPEATS, REFITTED[options.estimator].repeats) if options.estimator in REFITTED else REPEATS,
            **described_extraction(chat_model, extraction),
        ),
        versions=library_versions(),
        timings=timings(chat_model, extraction),
        estimator=options.estimator,
    )


def _template_record(request: Request, reading: Reading, chat_model: ChatModel) -> TemplateRecord:
    """Return what a manifest says of how prompts were put into the chat template and read."""
    borrowed = None
    if request.chat_template is not None:
        borrowed = BorrowedTemplate(source=file_name(str(request.options.chat_template)), text=request.chat_template)
    return TemplateRecord(
        sha256=template_sha256(chat_model.tokenizer),
        system_prompt=reading.system_prompt,
        default_system_prompt=default_system_prompt(chat_model.tokenizer, reading.day),
        day=reading.day,
        borrowed=borrowed,
        thinking=reading.thinking,
        reasoning_effort=request.options.reasoning_effort,
        closed_thought=closed_thought(chat_model.tokenizer, reading.thinking) or None,
        token_position=TOKEN_POSITION,
        token_limit=reading.token_limit,
    )
