"""The manifest of a run, and of what was measured on it later: its files, what was asked for, and how it was made.

A manifest may be a stranger's. What does not have the types below is refused in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from refusal_core.errors import RunError
from refusal_core.options import DEFAULT_ESTIMATOR, MOST_REPLY_TOKENS, Estimator, LoadIn, ReasoningEffort

MANIFEST = "manifest.json"
PROMPTS = "prompts.parquet"
PROJECTIONS = "projections.parquet"
LAYER_STATS = "layer_stats.parquet"
DIRECTIONS = "directions.safetensors"
ACTIVATIONS = "activations.safetensors"
REQUIRED = (PROMPTS, PROJECTIONS, LAYER_STATS, DIRECTIONS)

FORMAT_VERSION = 2
"""What new runs are written as; older ones are migrated in memory (:mod:`refusal_core.runs.migrations`)."""


class _Record(BaseModel):
    """A part of a manifest; entries that this version does not know are left alone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    def to_json(self) -> str:
        """Return it as the text of a file."""
        return self.model_dump_json(indent=2) + "\n"


def _iso_date(text: str) -> str:
    date.fromisoformat(text)
    return text


def _both_labels(counts: dict[str, int]) -> dict[str, int]:
    missing = {"harmful", "harmless"} - counts.keys()
    if missing:
        raise ValueError(f"has no count of {' and '.join(sorted(missing))} prompts")
    return counts


class ModelRecord(_Record):
    """The model of a run; see :class:`refusal_core.models.opening.ModelInfo`."""

    name: str
    source: str
    revision: str | None
    sha256: str | None
    architecture: str
    n_layers: PositiveInt
    d_model: PositiveInt
    quantisation: str | None
    licence: str | None

    @property
    def fingerprint(self) -> str:
        """What tells the model's weights from all others: their SHA-256, or their commit on the hub."""
        return self.sha256 or self.revision or ""


class SetRecord(_Record):
    """A prompt set of a run; ``counts`` are prompts per label."""

    name: str
    revision: str | None = None
    sha256: str | None = None
    counts: dict[str, NonNegativeInt]


class ContrastRecord(SetRecord):
    """The set that the directions are fitted on."""

    counts: Annotated[dict[str, NonNegativeInt], AfterValidator(_both_labels)]


class TransferRecord(SetRecord):
    """A set that is scored; ``left_out`` of its prompts are in the contrast set as well."""

    left_out: NonNegativeInt = 0


class BorrowedTemplate(_Record):
    """A chat template that is not the model's own, and where it comes from."""

    source: str
    text: str


class TemplateRecord(_Record):
    """How a prompt is put into the model's form.

    Attributes:
        sha256: of the chat template; missing for a model that is read without one.
        default_system_prompt: what the template says where it is given no system prompt.
        day: the date that the template told the model, where it tells one.
        thinking: whether the model was told to think; ``None`` for what the template does by itself.
        reasoning_effort: what the template was told to ask for; ``None`` for what it does by itself.
        closed_thought: what was put behind the prompt so that the model does not think, where its template cannot say.
    """

    sha256: str | None
    system_prompt: str | None
    default_system_prompt: str | None
    day: Annotated[str, AfterValidator(_iso_date)] | None = None
    borrowed: BorrowedTemplate | None = None
    thinking: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    closed_thought: str | None = None
    token_position: str
    token_limit: PositiveInt


class RefusalRecord(_Record):
    """The reply openings, and the tokens they begin with, whose log-odds are the refusal log-odds."""

    openings: tuple[str, ...]
    token_ids: tuple[NonNegativeInt, ...]


class ComputeRecord(_Record):
    """What a run was computed on and how; ``None`` for what runs of earlier versions did not record."""

    device: str
    dtype: str
    load_in: LoadIn | None = None
    weights: str | None = None
    engine: str | None = None
    batch_tokens: int | None = None
    batch_note: str | None = None
    pack_note: str | None = None
    prefix_tokens: int | None = None
    prefix_note: str | None = None
    seed: int
    folds: int | None = None
    repeats: int | None = None


class TimingsRecord(_Record):
    """How long a run took."""

    load_seconds: float
    extract_seconds: float
    prompts_per_second: float


class RefitRecord(_Record):
    """What a refit is a refit of.

    Attributes:
        parent: the name of the run that prompts were left out of, or whose estimator was another one.
        left_out: how many prompts.
        sha256: of their ids.
        activations: ``stored`` or ``extracted again``.
    """

    parent: str
    left_out: NonNegativeInt
    sha256: str
    activations: str


class DirectionRecord(_Record):
    """The vectors that a run is on where its directions were imported, not fitted.

    Attributes:
        file: name of the file that they came in.
        sha256: of that file.
        numbering: how it counts layers; see :mod:`refusal_core.pipeline.vector_files`.
        sites: the sites that have a vector.
        parent: the run whose prompts and activations they were put to.
        activations: ``stored`` or ``extracted again``.
    """

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    numbering: Annotated[str, Field(pattern="^(blocks|block-inputs|hidden-states|sites)$")]
    sites: tuple[NonNegativeInt, ...]
    parent: str
    activations: str


class Manifest(_Record):
    """What defines a run and how it was made: ``manifest.json``.

    Attributes:
        created: ISO 8601, in UTC.
        options: what the run was asked for with; ``None`` where it was not recorded.
        direction: where its directions came from; ``None`` for those fitted on its contrast set.
        estimator: that these were fitted by; runs of earlier versions, which do not say, are of mean differences.
        files: SHA-256 of every file of the run, by name.
    """

    format_version: PositiveInt = FORMAT_VERSION
    run_id: str
    created: str
    options: dict[str, Any] | None = None
    model: ModelRecord
    prompts: ContrastRecord
    transfer: tuple[TransferRecord, ...]
    template: TemplateRecord
    refusal: RefusalRecord | None = None
    compute: ComputeRecord
    versions: dict[str, str] = Field(default_factory=dict)
    timings: TimingsRecord | None = None
    refit: RefitRecord | None = None
    direction: DirectionRecord | None = None
    estimator: Estimator = DEFAULT_ESTIMATOR
    files: dict[str, str] = Field(default_factory=dict)


class AdditionManifest(_Record):
    """What all manifests of later measurements have in common.

    Attributes:
        kind: what was measured: ``<kind>.parquet`` lies beside the run's own files, ``<kind>.json`` is this.
        of_prompts: whether it holds wherever the prompts are read; what is measured with the run's direction does not.
        run_id, sha256: the run it belongs to, and the digest of the table; set when it is saved.
    """

    kind: ClassVar[str]
    of_prompts: ClassVar[bool] = False

    format_version: PositiveInt = FORMAT_VERSION
    run_id: str = ""
    sha256: str = ""
    created: str
    versions: dict[str, str] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)


class BehaviourCompute(_Record):
    """What replies were computed on."""

    device: str
    dtype: str


class ThinkingRecord(_Record):
    """How many tokens a model was given to think, and how many prompts' thinking did not end within them."""

    limit: PositiveInt
    unclosed: NonNegativeInt


class RulesRecord(_Record):
    """The rules that replies were read by, and the refusal phrases whose probability was measured."""

    sha256: str
    phrases: tuple[str, ...]


class BehaviourManifest(AdditionManifest):
    """How a run's replies were measured: ``behaviour.json``."""

    kind = "behaviour"
    of_prompts = True

    compute: BehaviourCompute
    opening_tokens: PositiveInt
    thinking: ThinkingRecord | None = None
    rules: RulesRecord


class InterventionCompute(BehaviourCompute):
    """What edited replies were computed on."""

    seed: int


class InterventionPrompts(_Record):
    """The set that some prompts are of, and the most of its prompts per label."""

    source: str
    limit_per_label: PositiveInt


class ControlsRecord(_Record):
    """The layers that control directions were tried at, and the directions."""

    layers: tuple[int, ...]
    names: tuple[str, ...]


class InterventionRules(_Record):
    """The rules that replies were read by."""

    sha256: str


class InterventionManifest(AdditionManifest):
    """How edits of a run's model were measured: ``intervention.json``.

    Attributes:
        tokens: which tokens were edited.
        positions: the template's closing tokens that the published rule chose from, counted from the end.
        dose_layer, dose_position: the direction whose dose was varied.
    """

    kind = "intervention"

    compute: InterventionCompute
    prompts: InterventionPrompts
    tokens: str
    positions: tuple[int, ...]
    dose_layer: int
    dose_position: int
    controls: ControlsRecord
    opening_tokens: PositiveInt
    rules: InterventionRules


class SubspaceManifest(AdditionManifest):
    """How the directions of a run's space were counted and compared: ``subspace.json``.

    Attributes:
        activations: ``stored`` or ``extracted again``.
        seed, draws: of permutations, bootstrap and exchanged categories.
        categories: that have a direction of their own.
        reason: why there is none, or None.
    """

    kind = "subspace"

    activations: str
    seed: int
    draws: PositiveInt
    categories: tuple[str, ...]
    reason: str | None = None


class RepliesRecord(_Record):
    """The replies that harm and refusal were compared by.

    Attributes:
        sha256: of the run's behaviour.
        counts: prompts per label and reply, of those that draws are taken of.
        reason: why refusing has no direction of its own, or None.
    """

    sha256: str
    counts: dict[str, NonNegativeInt]
    reason: str | None = None


class PositionsManifest(AdditionManifest):
    """How a run's prompts were read at other positions: ``positions.json``.

    Attributes:
        compute: what the prompts were read on.
        seed, draws: of bootstrap and permutations.
        closing_tokens: the template's closing tokens, as text; the last read position is the last of them, and the
            first one lies before them all.
        activations_sha256: of the file of activations, or None where they were not kept.
        files: SHA-256 of the files that have what the run is at other positions than its own, by name; empty where that
            was not kept.
        replies: that harm and refusal were compared by, or None where the run had none.
    """

    kind = "positions"
    of_prompts = True

    compute: BehaviourCompute
    seed: int
    draws: PositiveInt
    closing_tokens: Annotated[tuple[str, ...], Field(min_length=1)]
    activations_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    files: dict[str, str] = Field(default_factory=dict)
    replies: RepliesRecord | None = None


Parts = tuple[Literal["block"]] | tuple[Literal["attention"], Literal["mlp"]]
"""What adds to the residual stream in a block: attention and MLP, or the block as one."""


class AttributionManifest(AdditionManifest):
    """How it was measured what adds to a run's directions and what these would write: ``attribution.json``.

    Attributes:
        compute: what the prompts were read on.
        seed, draws, controls: of the bootstrap, its draws, and the control directions per site.
        prompts: how many prompts of the contrast set were read.
        parts: of every block, what adds to the residual stream.
        reason: why nothing is attributed to parts, or None.
        recurrent: whether blocks of the model hand on a state, so that parts in the place of attention may be no
            attention.
    """

    kind = "attribution"

    compute: BehaviourCompute
    seed: int
    draws: PositiveInt
    controls: PositiveInt
    prompts: PositiveInt
    parts: tuple[Parts, ...] = ()
    reason: str | None = None
    recurrent: bool = False


class ListsManifest(AdditionManifest):
    """That labelled lists of the user's own were scored and kept with the run: ``lists.json``."""

    kind = "lists"


class TrajectoryManifest(AdditionManifest):
    """How projections along replies were measured: ``trajectory.json``.

    Attributes:
        compute: what prompts and replies were read on.
        prompts: the set that they are of, and the number of its prompts per label.
        fitted: whether the direction was fitted on it, so that the numbers are in-sample.
        reply_tokens: most tokens of a reply.
        seed: of the bootstrap.
        rules: that replies were read by.
    """

    kind = "trajectory"

    compute: BehaviourCompute
    prompts: InterventionPrompts
    fitted: bool
    reply_tokens: Annotated[PositiveInt, Field(le=MOST_REPLY_TOKENS)]
    seed: NonNegativeInt
    rules: InterventionRules


class JudgementManifest(AdditionManifest):
    """How it was measured what moves the model's judgement and what its refusing: ``judgement.json``.

    Attributes:
        compute: what edited replies were computed on.
        prompts: the set that prompts are of, and the number of its prompts per label.
        questions: the two questions about each request; ``{request}`` stands for it.
        layer: at which the directions were read, and added.
        distance: how much was added, in activation units: what lies between the labels' means.
        controls: the control directions.
        replies: that refusal was fitted on, or None where the run had none.
    """

    kind = "judgement"

    compute: InterventionCompute
    prompts: InterventionPrompts
    questions: tuple[str, str]
    layer: NonNegativeInt
    distance: float
    controls: tuple[str, ...]
    replies: RepliesRecord | None = None


KINDS: tuple[type[AdditionManifest], ...] = (
    BehaviourManifest,
    InterventionManifest,
    SubspaceManifest,
    PositionsManifest,
    AttributionManifest,
    ListsManifest,
    TrajectoryManifest,
    JudgementManifest,
)
"""What may be measured on a run later; the files are called after :attr:`AdditionManifest.kind`."""

AnyManifest = TypeVar("AnyManifest", bound=_Record)


def format_version_of(content: Mapping[str, Any]) -> int:
    """Return the format version that a manifest states.

    Raises:
        KeyError, ValueError: when it states none, or no positive integer.
    """
    version = content["format_version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"expected a positive integer as format_version, got {version!r:.40}")
    return version


def parse_manifest(kind: type[AnyManifest], content: Mapping[str, Any], where: str, mend: str) -> AnyManifest:
    """Check a manifest of the current format that was read from a file.

    Args:
        kind: what it is to be.
        content: the file's content, as JSON has it.
        where: begins the message, such as ``run 'x': the manifest``.
        mend: ends it: what to do.

    Raises:
        RunError: naming the first entry that is missing or of another type.
    """
    try:
        # As JSON, in which lists stand for tuples and nothing else is converted.
        return kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise RunError(f"{where} {_fault(error)}; {mend}") from error


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"lacks {place}"
    if first["type"] in ("model_type", "dict_type"):
        return f"lacks the entries of {place}"
    reason = first["msg"].removeprefix("Value error, ").splitlines()[0]
    return f"has {first['input']!r:.40} for {place}: {reason[:1].lower()}{reason[1:120]}"
