"""Every option of a run and of what is measured on it, once: its type, default, bounds and one sentence of help.

The command line, the form on the Runs page, the digest in a run's name, the manifest's record and the command line of a
background job all come from these fields.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from refusal_core.errors import RefusalError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(Dtype)[1:]
LoadIn = Literal["8bit", "4bit"]
ReasoningEffort = Literal["none", "low", "medium", "high"]
EditedTokens = Literal["all", "last"]
Estimator = Literal["mean-difference", "whitened", "logistic", "pair-component", "orthogonal"]
DEFAULT_ESTIMATOR: Estimator = "mean-difference"
ESTIMATORS: dict[str, str] = {
    DEFAULT_ESTIMATOR: "mean difference",
    "whitened": "whitened difference",
    "logistic": "logistic regression",
    "pair-component": "component of pair differences",
    "orthogonal": "orthogonal to the harmless mean",
}
"""What the estimators of the direction are called in a sentence, by the name that they are chosen by."""

RAY = "ray"
MINIMUM_PER_LABEL = 8
"""Fewest prompts per label that a direction is fitted on."""
TOKEN_LIMIT = 512
"""Longest templated prompt that is accepted by default; Experiment 0 cut there, we refuse."""
MOST_REPLY_TOKENS = 4096
"""Longest replies that are followed token by token."""
PRESETS = (9, 15, 18)
"""The layers at which Experiment 0 proposes to intervene."""
DEVICES = "auto, cpu, cuda, cuda:N, mps, or spread over all of them."

TOKEN_POSITION = "last token of the templated prompt, generation prompt included"
FOLDS = 10
REPEATS = 5
_IDENTITY_FORMAT = 1
"""Version of what :meth:`RunOptions.identity` returns; another one would give every request another run."""

Source = Annotated[str, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)]
"""A name, a hub id or a path; paths may be given as ``pathlib.Path``."""


def _option(default: Any, title: str, help: str, unset: str = "", **bounds: Any) -> Any:
    """Describe an option that may be left out.

    Args:
        default: its value when it is left out.
        title: its label in a form.
        help: one sentence.
        unset: what ``None`` means, in words.
        bounds: as for :func:`pydantic.Field`.
    """
    sentence = f"{help} (default: {unset})" if unset else help
    return Field(default, title=title, description=sentence, json_schema_extra={"unset": unset}, **bounds)


class Options(BaseModel):
    """Options that are checked when they are given and never change.

    Raises:
        RefusalError: with one sentence for the first option that is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_is_wrong(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise RefusalError(_sentence(error.errors()[0], tuple(cls.model_fields))) from None

    def arguments(self) -> tuple[str, ...]:
        """Return the command-line arguments that give these options, those at their defaults left out.

        A text is in one argument with its option's name, so that nothing typed can become an option of its own.
        """
        arguments: list[str] = []
        for name, field in type(self).model_fields.items():
            value, option = getattr(self, name), name.replace("_", "-")
            if value == field.get_default():
                continue
            if isinstance(value, bool):
                arguments.append(f"--{option}" if value else f"--no-{option}")
            elif not isinstance(value, tuple):
                arguments.append(f"--{option}={value}")
            elif Ellipsis in get_args(field.annotation):
                arguments += [f"--{option}={single}" for single in value]
            else:
                arguments += [f"--{option}", *map(str, value)]
        return tuple(arguments)


class RunOptions(Options):
    """What a run is made of and how it is made."""

    model: Source = Field(
        min_length=1,
        title="Model",
        description="Known name, hub id, folder of safetensors, or GGUF file.",
    )
    revision: str | None = _option(None, "Revision", "Commit, tag or branch of a hub model.", "the newest")
    prompts: Source = _option(
        "pairs",
        "Prompts",
        "Contrast set: pairs, everyday, quartets, experiment-0; a labelled csv, json, jsonl, parquet or txt file; or "
        "HARMFUL,HARMLESS as two files or hub datasets.",
        min_length=1,
    )
    transfer: tuple[Source, ...] = _option(
        (),
        "Transfer sets",
        "Labelled file or bundled set that is scored besides the quartets and never fitted on; may be repeated.",
    )
    limit_per_label: int | None = _option(
        None,
        "Prompts per label, at most",
        "Prompts per label, spread evenly over the set; matched pairs stay together.",
        "all",
        ge=MINIMUM_PER_LABEL,
    )
    text_column: str | None = _option(
        None, "Text column", "Column of the prompt files that has the texts.", "text, prompt, …"
    )
    label_column: str | None = _option(None, "Label column", "Column of the prompt files that has the labels.", "label")
    label: tuple[str, ...] = _option(
        (),
        "Meaning of labels",
        "What a label of the prompt files means, as unsafe=harmful: harmful, harmless, grey, or skip to leave its rows "
        "out; may be repeated.",
    )
    system_prompt: str | None = _option(
        None,
        "System prompt",
        "System prompt before every prompt that brings none of its own.",
        "what the chat template does by itself",
    )
    thinking: bool | None = _option(
        None, "Thinking", "For models that can think before they reply.", "what the chat template does by itself"
    )
    reasoning_effort: ReasoningEffort | None = _option(
        None,
        "Reasoning effort",
        "For models whose chat template has such a setting, such as gpt-oss.",
        "what the chat template does by itself",
    )
    chat_template: Source | None = _option(
        None,
        "Chat template of",
        "Whose chat template to borrow: a known name, hub id, model folder or .jinja file.",
        "the model's own",
    )
    load_in: LoadIn | None = _option(
        None,
        "Load in",
        "Open the weights in fewer bits with bitsandbytes, for a model that does not fit: slower on a processor and "
        "less exact.",
        "as they are",
    )
    token_limit: int = _option(
        TOKEN_LIMIT,
        "Longest prompt, in tokens",
        "Longest prompt that is accepted, in tokens with its template; a longer one is an error, nothing is ever cut.",
        ge=8,
    )
    device: str = _option("auto", "Device", DEVICES, min_length=1)
    dtype: Dtype = _option("auto", "Dtype", "What the model is computed in; auto takes what is fast on the device.")
    seed: int = _option(0, "Seed", "Seed of the folds and of everything random in the evidence.", ge=0)
    estimator: Estimator = _option(
        DEFAULT_ESTIMATOR,
        "Estimator",
        "How the direction is got from the activations; others than the mean difference take minutes for the evidence.",
    )
    engine: Literal["process", "ray"] = _option(
        "process", "Engine", "Read prompts in this process, or by Ray's actors, each with the model."
    )
    actors: int | None = _option(None, "Actors", "Number of Ray's actors.", "one per GPU, or 2", ge=1)
    keep_activations: bool = _option(
        False,
        "Keep the activations",
        "Store the activations with the run, so that it can be refitted without the model; takes disk space.",
    )

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if self.actors is not None and self.engine != RAY:
            raise RefusalError(f"expected actors with the engine {RAY} only, got {self.actors} with {self.engine}")
        if self.engine == RAY and self.device == "spread":
            raise RefusalError(f"each actor of {RAY} has one device: choose another than spread, or another engine")
        return self

    def identity(
        self, model: str, prompts: str, transfer: Sequence[tuple[str, str]], chat_template: str | None = None
    ) -> dict[str, Any]:
        """Return what tells this run from others, whatever computes it: the content of the digest in its name.

        Args:
            model: the model's fingerprint.
            prompts: SHA-256 of the contrast set.
            transfer: name and SHA-256 of every transfer set.
            chat_template: SHA-256 of the borrowed chat template.
        """
        identity: dict[str, Any] = {
            "model": model,
            "prompts": prompts,
            "transfer": [list(source) for source in transfer],
            "system_prompt": self.system_prompt,
            "token_position": TOKEN_POSITION,
            "folds": [FOLDS, REPEATS, self.seed],
            "format": _IDENTITY_FORMAT,
        }
        # Options that came later count only where they are used, so that earlier runs are still found.
        bits = None if self.load_in is None else int(self.load_in.removesuffix("bit"))
        later = {
            "thinking": self.thinking,
            "reasoning_effort": self.reasoning_effort,
            "template": chat_template,
            "quantise": bits,
            "estimator": None if self.estimator == DEFAULT_ESTIMATOR else self.estimator,
        }
        return identity | {name: value for name, value in later.items() if value is not None}

    def record(self) -> dict[str, Any]:
        """Return the options as a run's manifest has them, which travels: paths are cut down to the file's name."""
        record = self.model_dump(mode="json")
        for name in ("model", "chat_template"):
            record[name] = None if record[name] is None else file_name(record[name])
        record["prompts"] = ",".join(file_name(part.strip()) for part in record["prompts"].split(","))
        record["transfer"] = [file_name(source) for source in record["transfer"]]
        return record


class ModelOptions(Options):
    """How the model of a run is opened again."""

    model: Source | None = _option(
        None, "Model", "Where the run's model is, when it came from a folder or a GGUF file.", "the run's own"
    )
    device: str = _option("auto", "Device", DEVICES, min_length=1)
    dtype: Dtype = _option("auto", "Dtype", "What the model is computed in; auto takes the run's.")


class BehaviourOptions(Options):
    """How a model's replies to a run's prompts are read."""

    rules: Source | None = _option(
        None, "Rules", "TOML file of rules that say how openings are read.", "the bundled rules"
    )


class PositionOptions(Options):
    """What is kept of the activations at other read positions."""

    keep_activations: bool = _option(
        True,
        "Keep the activations",
        "Store the activations at the last token of the instruction and of the template beside the run, so that it can "
        "be measured again without the model; takes twice the disk space of a run's activations.",
    )


class SomePromptsOptions(Options):
    """Which of a run's prompts are measured where all of them would take too long."""

    limit_per_label: int = _option(
        64, "Prompts per label", "Prompts per label, in whole quartets or pairs where the set has any.", ge=1
    )
    source: str | None = _option(
        None,
        "Set",
        "Contrast or transfer set that the prompts are of.",
        "quartets, else probe-pairs, else the contrast set",
        min_length=1,
    )


class TrajectoryOptions(SomePromptsOptions):
    """Whose replies are followed token by token, and how far."""

    reply_tokens: int = _option(
        32, "Reply tokens", "Most tokens of a reply that are written and read.", ge=4, le=MOST_REPLY_TOKENS
    )


class ControlledOptions(SomePromptsOptions):
    """Which control directions edits of a run's model are compared with."""

    random_directions: int = _option(
        50,
        "Random directions",
        "Control directions per layer: a fifth isotropic, the others where activations vary, what was found taken off.",
        ge=2,
    )
    seed: int = _option(0, "Seed", "Seed of the control directions.", ge=0)


class JudgementOptions(ControlledOptions):
    """Where the directions of harm and of refusal are read, and added, to see what moves the model's judgement."""

    layer: int | None = _option(
        None,
        "Layer",
        "Layer at which the directions are read, and added.",
        "the one with the highest cross-fitted d in the first 80 % of the depth",
        ge=0,
    )


class InterventionOptions(ControlledOptions):
    """What is edited in a run's model, and what that is compared with."""

    control_layers: tuple[int, ...] = _option(
        PRESETS,
        "Layers of the controls",
        "Layer at which controls are measured besides the layer of the published choice; may be repeated.",
        min_length=1,
    )
    layer_range: tuple[int, int] | None = _option(
        None, "Range of layers", "First and last of a range of layers that are also ablated together.", "none"
    )
    positions: int | None = _option(
        None,
        "Closing tokens",
        "Closing tokens of the template that the published choice considers, the last ones.",
        "all of them, as published",
        ge=1,
    )
    tokens: EditedTokens = _option("all", "Edited tokens", "Edit every token, or the prompt's last.")


def file_name(source: str) -> str:
    """Return the name of a file or folder without where it lies; a known name or hub id as it is."""
    # Unlike pathlib's, silent about a home that nobody has.
    path = Path(os.path.expanduser(source))
    try:
        return path.resolve().name if path.exists() else source
    except (OSError, ValueError):  # a name that no file can have
        return source


_EXPECTED = {
    "string_type": "text",
    "string_unicode": "text in UTF-8",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "on or off",
    "bool_parsing": "on or off",
    "string_too_short": "a text that is not empty",
    "tuple_type": "several values",
}


def _sentence(error: ErrorDetails, known: tuple[str, ...]) -> str:
    """Say what is wrong with one option: what was expected and what arrived."""
    name, value, context = str(error["loc"][0]) if error["loc"] else "", error["input"], error.get("ctx", {})
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"there is no option {name!r}; the options are {', '.join(known)}"
    if kind == "missing":
        return f"expected {'a value' if len(error['loc']) < 2 else 'one more value'} for {name}, got none"
    if kind == "greater_than_equal":
        expected = f"{context['ge']} or more"
    elif kind == "literal_error":
        expected = str(context["expected"]).replace("'", "")
    elif kind == "too_short":
        expected = f"at least {context['min_length']} value"
    else:
        expected = _EXPECTED.get(kind, str(error["msg"]).removeprefix("Input should be ").lower())
    arrived = value if isinstance(value, str) and value.lstrip("-").isdigit() else repr(value)
    return f"expected {expected} for {name}, got {arrived:.80}"
