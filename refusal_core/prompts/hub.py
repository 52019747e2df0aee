"""Sets of prompts on the Hugging Face hub, and folders that are laid out as such sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refusal_core.errors import PromptError
from refusal_core.hub_answers import check_answers
from refusal_core.prompts.labels import Choice
from refusal_core.prompts.reading import PromptFile, interpret
from refusal_core.prompts.records import Records, check_rows, check_size, first_line, number_rows

_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class HubSet:
    """One split of a set on the hub, or of a folder.

    Attributes:
        name: hub id or folder.
        configuration: ``None`` for the only one.
        split: ``None`` for the only one, or the one called train.
        text_column: ``None`` for the one with a usual name.
        revision: commit, tag or branch; ``None`` for the newest.
    """

    name: str
    configuration: str | None = None
    split: str | None = None
    text_column: str | None = None
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder on this machine; a name that none can have is none."""
        try:
            return Path(self.name).is_dir()
        except (OSError, ValueError):
            return False

    @property
    def label(self) -> str:
        """What errors and screens call it."""
        parts = [Path(self.name).name if self.is_folder else self.name, self.configuration, self.split]
        return ":".join(part for part in parts if part)


def parse_hub_set(source: str) -> HubSet:
    """Return the set that is written as ``ID[@REVISION][:CONFIGURATION[:SPLIT[:COLUMN]]]``.

    Parts may be empty: ``org/set::test`` is the split *test* of the only configuration.

    Raises:
        PromptError: for what is not written so.
    """
    if HubSet(source).is_folder:
        return HubSet(source)
    name, *parts = source.split(":")
    if len(parts) > 3:
        raise PromptError(
            f"expected a set as ID:CONFIGURATION:SPLIT:COLUMN, all but the first as needed, got {source!r:.120}"
        )
    name, _, revision = name.partition("@")
    configuration, split, column = (*(part.strip() or None for part in parts), None, None, None)[:3]
    return HubSet(name.strip(), configuration, split, column, revision.strip() or None)


def read_hub_set(source: HubSet, choice: Choice, only: tuple[str, str] | None = None) -> tuple[PromptFile, str | None]:
    """Read a split.

    Args:
        source: the split.
        choice: columns and labels, where they are not to be found by their names and values.
        only: a column and the one value of it whose rows are read; the others are left out and said.

    Returns:
        The prompts, and the commit that they are from; a folder has none.

    Raises:
        PromptError: when it cannot be had, or has several configurations or splits and none was named.
    """
    import datasets
    import huggingface_hub

    check_answers()
    local = source.is_folder
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.name):
        raise PromptError(f"no prompt set, file, folder or hub set is called {source.name!r:.120}")
    revision, licence = None, None
    try:
        if not local:
            api = huggingface_hub.HfApi()
            about = api.dataset_info(source.name, revision=source.revision, timeout=_TIMEOUT_SECONDS)
            revision, licence = about.sha, _licence(about.tags)
        configuration = source.configuration or _only(
            datasets.get_dataset_config_names(source.name, revision=revision), source, "configuration"
        )
        splits = datasets.get_dataset_split_names(source.name, configuration, revision=revision)
        split = source.split or ("train" if "train" in splits else _only(splits, source, "split"))
        loaded = datasets.load_dataset(source.name, configuration, split=split, revision=revision)
    except PromptError:
        raise
    except huggingface_hub.errors.GatedRepoError as error:
        raise PromptError(
            f"the set {source.label!r:.120} is gated: accept its terms on the hub and log in (hf auth login), or give "
            "a file of its prompts"
        ) from error
    except Exception as error:  # the libraries raise dozens of kinds; all mean that it is not to be had
        raise PromptError(
            f"cannot load the set {source.label!r:.120}: expected a folder, or a set on the Hugging Face hub that is "
            f"reachable from here ({type(error).__name__}: {first_line(error)})"
        ) from error
    check_rows(len(loaded), source.label, len(loaded.column_names))
    check_size(loaded.data.nbytes, source.label)
    rows = loaded.to_list()
    shape = f"{'folder' if local else 'set on the hub'}, split {split}"
    notes = [] if local else [f"licence {licence or 'not stated'}, revision {revision}"]
    places = number_rows(len(rows))
    if only is not None:
        column, value = only
        chosen = [place for place, row in enumerate(rows) if row.get(column) == value]
        notes.append(f"{len(rows) - len(chosen)} rows whose {column} is not {value} are not part of the benchmark")
        rows, places = [rows[place] for place in chosen], [places[place] for place in chosen]
    records = Records(source.label, shape, rows, places, tuple(notes))
    text_column = source.text_column or choice.text_column
    return interpret(records, replace(choice, text_column=text_column)), revision


def _licence(tags: Sequence[str] | None) -> str | None:
    return next((tag.removeprefix("license:") for tag in tags or () if tag.startswith("license:")), None)


def _only(names: list[str], source: HubSet, kind: str) -> str:
    if len(names) == 1:
        return names[0]
    raise PromptError(
        f"{source.label}: expected the name of a {kind}, as it has several: {', '.join(names)[:300]}; name it, as "
        f"{source.name if kind == 'configuration' else source.label}:{names[0]}"
    )
