"""Scoring: the projections of a text at every site of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refusal_core.analysis.effect_sizes import percentile
from refusal_core.conversations import COLUMN as CONVERSATION
from refusal_core.conversations import Prompt, prefix_of, text_of, words_of
from refusal_core.errors import ModelError, PromptError, RunError
from refusal_core.models.identity import ModelInfo, identify
from refusal_core.models.known import KNOWN
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.models.templates import template_sha256
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.local_models import remember_model, remembered_model
from refusal_core.runs.manifest import ModelRecord
from refusal_core.runs.run import LAST_TOKEN, Run

if TYPE_CHECKING:
    # It imports torch, which pages import when a model is asked first.
    from refusal_core.activations.reader import ResidualReader

EMPTY = "expected a prompt, got an empty text"
MOST_PER_TOKEN = 100
"""Characters of a token: a text of more than so many times the token limit is refused without being tokenized."""


@dataclass(frozen=True, eq=False)
class Score:
    """Where one prompt falls among a run's prompts.

    Attributes:
        prompt: a text or a conversation.
        projection: ``(site,)`` float64 at the run's read position, in activation units.
        percentile: for each label, ``(site,)`` percent of its fitted prompts that project below this one.
        refusal_log_odds: log-odds that the reply opens as refusals do.
        first_token: the likeliest first token of the reply.
        tokens: the prompt's own tokens, without the template's; empty where only the read position was read, as of
            several prompts.
        token_projection: ``(token, site)`` projection of each of them.
    """

    prompt: Prompt
    projection: np.ndarray
    percentile: dict[str, np.ndarray]
    refusal_log_odds: float
    first_token: str
    tokens: list[str]
    token_projection: np.ndarray

    @property
    def text(self) -> str:
        """The user's last turn."""
        return text_of(self.prompt)

    def to_json(self) -> dict[str, Any]:
        """Return the score as plain numbers and texts, and a conversation as its messages."""
        more = {} if isinstance(self.prompt, str) else {CONVERSATION: self.prompt.messages}
        return {
            "text": self.text,
            **more,
            "projection": self.projection.tolist(),
            "percentile": {label: values.tolist() for label, values in self.percentile.items()},
            "refusal_log_odds": self.refusal_log_odds,
            "first_token": self.first_token,
        }


def model_of_run(run: Run) -> tuple[str, str | None]:
    """Return name and revision under which the run's model is identified; see :func:`.identity.identify`.

    Only names and hub ids are taken from a run, because a run folder may be a stranger's and no path of theirs is
    followed. A model that came from a folder or a GGUF file is looked for where it was when this cache saw it last.

    Raises:
        RunError: for a model that has neither a known name nor a hub id, and is not where it was.
    """
    model = run.manifest.model
    if model.source == "fetched" and model.name in KNOWN:
        return model.name, None
    if model.source == "hub" and not Path(model.name).exists():
        return model.name, model.revision
    place = remembered_model(run) if model.source in ("folder", "gguf") else None
    if place is not None:
        return str(place), None
    raise RunError(f"the model {model.name!r} of this run is a local {model.source}; say where it is")


def identify_for(run: Run, model: str | Path | None = None) -> ModelInfo:
    """Find the model a run was made with, without loading it.

    Args:
        run: the run.
        model: where its model is, for one that :func:`model_of_run` cannot name.

    Raises:
        ModelError: when what is there is not the run's model.
    """
    name, revision = (model, None) if model is not None else model_of_run(run)
    info = identify(name, revision)
    if info.fingerprint != fingerprint_of(run):
        if model is None and info.path is not None:
            # Another model has taken its place: the next time the path is asked for.
            remember_model(run, None)
        raise ModelError(
            f"{name} is not the model of this run: expected {run.model_name} with fingerprint "
            f"{fingerprint_of(run)[:12]}, got {info.fingerprint[:12]}"
        )
    return info


def _as_described(model: ModelInfo | ModelRecord) -> str:
    """Return a model's name and what tells its weights from others, in words."""
    weights = f"weights {model.quantisation}" if model.quantisation else "weights as published"
    return f"{model.name} ({model.n_layers} layers of width {model.d_model}, {weights}, {model.fingerprint[:12]})"


def fingerprint_of(run: Run) -> str:
    """Return the :attr:`~refusal_core.models.identity.ModelInfo.fingerprint` of the model a run was made with."""
    return run.manifest.model.fingerprint


def opened_as(run: Run) -> tuple[str, ...]:
    """Return what tells a run's model, as it is opened for it, from others: runs alike in it may share one."""
    compute, template = run.manifest.compute, run.manifest.template
    return fingerprint_of(run), compute.dtype, str(compute.load_in), str(template.sha256)


def load_model_for(
    run: Run,
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = no_progress,
) -> ChatModel:
    """Load the model a run was made with, as it was opened; see :meth:`.Run.load_model`.

    Raises:
        ModelError: when ``model`` is not the run's model.
    """
    compute, prompting = run.manifest.compute, run.manifest.template
    return load_model(
        identify_for(run, model),
        device=device,
        dtype=compute.dtype if dtype == "auto" else dtype,
        progress=progress,
        template=None if prompting.borrowed is None else prompting.borrowed.text,
        reasoning_effort=prompting.reasoning_effort,
        load_in=compute.load_in,
    )


def reader_for(run: Run, chat_model: ChatModel) -> ResidualReader:
    """Return a reader that prompts the run's model as the run did: its system prompt, thinking or not, its day.

    Raises:
        ModelError: when it is not the run's model; see :func:`check_model`.
    """
    from refusal_core.activations.reader import ResidualReader

    check_model(run, chat_model)
    template = run.manifest.template
    return ResidualReader(chat_model, template.system_prompt, template.thinking, template.day)


def check_model(run: Run, chat_model: ChatModel) -> None:
    """Raise ModelError when a model's weights or its chat template are not those that the run was made with.

    Weights are told apart by the SHA-256 of their files or their commit, and by the bits that they were opened in.
    """
    expected, opened = run.manifest.model, chat_model.info
    if (opened.fingerprint, opened.quantisation) != (expected.fingerprint, expected.quantisation):
        raise ModelError(
            f"the model in memory is not the one of this run: expected {_as_described(expected)}, "
            f"got {_as_described(opened)}"
        )
    if template_sha256(chat_model.tokenizer) != run.manifest.template.sha256:
        raise ModelError(f"the chat template of {chat_model.info.name} is not the one this run was made with")


class Scorer:
    """Scores texts against one run with its model in memory. Not for two threads at a time."""

    def __init__(self, chat_model: ChatModel, run: Run) -> None:
        """Prepare the run's model to read as the run did.

        Raises:
            ModelError: when it is not the run's model.
        """
        self.run = run
        self.reader = reader_for(run, chat_model)

    def encode(self, prompt: Prompt, with_prefix: bool = False) -> list[int]:
        """Return the token ids of a prompt with its template; see :meth:`.ResidualReader.encode`.

        Raises:
            PromptError: for an empty text, or one longer than the run's token limit.
        """
        if not text_of(prompt).strip():
            raise PromptError(EMPTY)
        limit = self.run.manifest.template.token_limit
        n_characters, most = len(words_of(prompt)), limit * MOST_PER_TOKEN
        if n_characters > most:
            # Tokenizing megabytes takes minutes and gigabytes.
            raise PromptError(
                f"the prompt is {n_characters} characters long, expected at most {limit} tokens with its template, of "
                f"{MOST_PER_TOKEN} characters each at the most; shorten it"
            )
        ids = self.reader.encode(prompt, with_prefix)
        if len(ids) > limit:
            raise PromptError(
                f"the prompt is {len(ids)} tokens long with its template, expected at most {limit}; shorten it"
            )
        return ids

    def score(self, prompt: Prompt) -> Score:
        """Score one prompt at every site, and each of its tokens.

        Raises:
            PromptError: see :meth:`encode`.
        """
        self.encode(prompt, with_prefix=True)
        read = self.reader.read_tokens(prompt, self.run.position)
        states = read.at_position[None]
        (score,) = _scores(self.run, [prompt], states, [read.first_token], [read.refusal_log_odds])
        token_projection = self.run.directions.project(read.states)
        return self._after_prefix(replace(score, tokens=read.tokens, token_projection=token_projection))

    def score_ends(self, prompts: Sequence[Prompt]) -> list[Score]:
        """Score prompts of one length in one pass, at the run's read position alone: ``tokens`` is left empty.

        Raises:
            PromptError: see :meth:`encode`.
        """
        sequences, position = [self.encode(prompt) for prompt in prompts], self.run.position
        read = self.reader.read_last(sequences, -position)
        states = read.states
        if position != LAST_TOKEN:
            places = [self.reader.place_of(position, ids) for ids in sequences]
            states = np.stack([of_prompt[:, place] for of_prompt, place in zip(states, places, strict=True)])
        scores = _scores(self.run, prompts, states, read.first_token, read.refusal_log_odds.tolist())
        return [self._after_prefix(score) for score in scores]

    def _after_prefix(self, score: Score) -> Score:
        """Return a score whose reply is measured after what the prompt makes it begin with."""
        if not prefix_of(score.prompt):
            return score
        read = self.reader.read_last([self.encode(score.prompt, with_prefix=True)])
        return replace(score, refusal_log_odds=float(read.refusal_log_odds[0]), first_token=read.first_token[0])


def score(chat_model: ChatModel, run: Run, prompts: Sequence[Prompt], progress: Progress = no_progress) -> list[Score]:
    """Score texts and conversations in the order given.

    One prompt is scored at each of its tokens. Several are read together, at the run's read position alone, as its
    prompts are.

    Args:
        chat_model: the run's model.
        run: the run.
        prompts: texts and conversations.
        progress: called as several prompts are read.

    Raises:
        ModelError: when the model is not the run's, or its template does not take a conversation.
        PromptError: naming the position of a prompt that is empty, or longer than the run's token limit.
    """
    from refusal_core.activations.extraction import extract

    if len(prompts) < 2:
        scorer = Scorer(chat_model, run)
        return [scorer.score(prompt) for prompt in prompts]
    check_model(run, chat_model)
    origins = [f"text {position}" for position in range(1, len(prompts) + 1)]
    for origin, prompt in zip(origins, prompts, strict=True):
        if not text_of(prompt).strip():
            raise PromptError(f"{origin}: {EMPTY}")
    template = run.manifest.template
    read = extract(
        chat_model,
        prompts,
        template.system_prompt,
        template.thinking,
        template.token_limit,
        progress,
        origins,
        day=template.day,
        closing=run.position != LAST_TOKEN,
    )
    return _scores(run, prompts, read.at_end[run.position], read.first_token, read.refusal_log_odds.tolist())


def _scores(
    run: Run,
    prompts: Sequence[Prompt],
    states: np.ndarray,
    first_tokens: Sequence[str],
    refusal_log_odds: Sequence[float],
) -> list[Score]:
    """Return where prompts project, and how many of the run's prompts project below each; without their tokens.

    Args:
        run: the run.
        prompts: texts and conversations.
        states: ``(prompt, site, d_model)`` at the run's read position in each templated prompt.
        first_tokens: the likeliest first token of each reply.
        refusal_log_odds: ``(prompt,)``.
    """
    projections = run.directions.project(states)
    fitted = {label: run.projections[run.rows(label)] for label in LABELS}
    percentiles = {
        label: np.stack([percentile(projections[:, site], values[:, site]) for site in range(run.n_sites)], axis=1)
        for label, values in fitted.items()
    }
    return [
        Score(
            prompt=prompt,
            projection=projections[row],
            percentile={label: values[row] for label, values in percentiles.items()},
            refusal_log_odds=log_odds,
            first_token=first_token,
            tokens=[],
            token_projection=np.empty((0, run.n_sites)),
        )
        for row, (prompt, first_token, log_odds) in enumerate(zip(prompts, first_tokens, refusal_log_odds, strict=True))
    ]
