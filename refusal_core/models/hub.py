"""The Hugging Face hub: which commit an id stands for, and its files, without ever running code from it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, filter_repo_objects
from tqdm import tqdm

from refusal_core.errors import ModelError
from refusal_core.progress import Progress, quiet_libraries

DOWNLOADING = "downloading (bytes)"
HUB_ERRORS = (HTTPError, OSError, ValueError)
_TIMEOUT_SECONDS = 5
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Only these leave the hub: nothing that is unpickled or run.
_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "README.md",
)


@dataclass(frozen=True)
class HubSnapshot:
    """One commit of a hub model in the local cache; at least its config.json is there."""

    folder: Path
    commit: str

    @property
    def has_weights(self) -> bool:
        """Whether all safetensors files of the model are in the cache."""
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            return any(self.folder.glob("*.safetensors"))
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((self.folder / shard).is_file() for shard in shards)


def find_snapshot(repo: str, revision: str | None = None, offline: bool = False) -> HubSnapshot:
    """The commit that a hub id (and branch, tag or commit) stands for, with its configuration only.

    Asks the hub first, for at most 5 seconds, and the local cache when it cannot be reached or `offline` is
    set.
    Raises ModelError when there is no such model or revision, or when neither knows it.
    """
    cached = _cached_snapshot(repo, revision)
    if cached and (offline or _COMMIT.fullmatch(revision or "")):
        return cached
    if offline:
        raise ModelError(f"{repo} is not in the local cache of the Hugging Face hub.")
    try:
        with quiet_libraries():
            commit = str(HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_SECONDS).sha)
            config = hf_hub_download(repo, "config.json", revision=commit, etag_timeout=_TIMEOUT_SECONDS)
            with contextlib.suppress(*HUB_ERRORS, EntryNotFoundError):
                hf_hub_download(repo, "README.md", revision=commit, etag_timeout=_TIMEOUT_SECONDS)
    except (*HUB_ERRORS, EntryNotFoundError) as error:
        if cached and not isinstance(error, RevisionNotFoundError):
            return cached
        raise _explained(repo, revision, error) from error
    return HubSnapshot(Path(config).parent, commit)


def download_size(repo: str, revision: str | None) -> int | None:
    """Bytes that :func:`download_snapshot` would bring, or ``None`` when the hub does not say."""
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
    except HUB_ERRORS:
        return None
    files = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    return sum(files[name] for name in filter_repo_objects(files, allow_patterns=list(_WANTED))) or None


def download_snapshot(repo: str, revision: str | None, progress: Progress) -> Path:
    """Download the safetensors, configuration and tokenizer of a hub model into the hub's own cache.

    Returns their folder. After an interruption the files that are whole are not downloaded again.
    Raises ModelError when the hub cannot be reached or the model has no safetensors.
    """
    snapshot = find_snapshot(repo, revision)
    try:
        with quiet_libraries():
            folder = snapshot_download(
                repo,
                revision=snapshot.commit,
                allow_patterns=list(_WANTED),
                ignore_patterns=["*/*"],
                etag_timeout=_TIMEOUT_SECONDS,
                tqdm_class=_reporting_bar(progress),
            )
    except (*HUB_ERRORS, EntryNotFoundError) as error:
        if not snapshot.has_weights:
            raise _explained(repo, revision, error) from error
        folder = str(snapshot.folder)
    if not HubSnapshot(Path(folder), snapshot.commit).has_weights:
        raise ModelError(f"{repo} has no safetensors weights; pickled ones (.bin, .pt) are never opened.")
    return Path(folder)


def download_chat_template(repo: str) -> Path:
    """Bring what may hold the chat template of a hub model into the hub's own cache, and return its folder.

    Raises ModelError when there is no such model, or the hub cannot be reached and the cache does not know it.
    """
    snapshot = find_snapshot(repo)
    with quiet_libraries(), contextlib.suppress(*HUB_ERRORS, EntryNotFoundError):
        snapshot_download(
            repo,
            revision=snapshot.commit,
            allow_patterns=["chat_template.jinja", "tokenizer_config.json"],
            etag_timeout=_TIMEOUT_SECONDS,
        )
    return snapshot.folder


def download_file(repo: str, filename: str, sha256: str, folder: Path, progress: Progress) -> Path:
    """Download one large file of known SHA-256 into `folder`, continuing where an interruption left it.

    Raises ModelError when the hub holds another file under that name or delivers a damaged one, and the hub's
    own errors (HUB_ERRORS) when it cannot be reached.
    """
    arriving = folder / f"{filename}.arriving"
    with quiet_libraries():
        info = HfApi().model_info(repo, files_metadata=True, timeout=_TIMEOUT_SECONDS)
        offered = {file.rfilename: file.lfs for file in info.siblings or [] if file.lfs}.get(filename)
        if offered is None or offered.sha256 != sha256:
            raise ModelError(f"the {filename} of {repo} on the Hugging Face hub is another file than the pinned one")
        with open(arriving, "ab") as file:
            http_get(
                hf_hub_url(repo, filename, revision=info.sha),
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=offered.size,
                tqdm_class=_reporting_bar(progress),
            )
    with open(arriving, "rb") as arrived:
        received = hashlib.file_digest(arrived, "sha256").hexdigest()
    if received != sha256:
        arriving.unlink()
        raise ModelError(f"the Hugging Face hub delivered a damaged {filename}")
    os.replace(arriving, folder / filename)
    return folder / filename


def _cached_snapshot(repo: str, revision: str | None) -> HubSnapshot | None:
    try:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError as error:
        raise ModelError(
            f"{repo!r:.120} is no hub id: expected OWNER/NAME, as in Qwen/Qwen2.5-1.5B-Instruct"
        ) from error
    return HubSnapshot(Path(config).parent, Path(config).parent.name) if isinstance(config, str) else None


def _explained(repo: str, revision: str | None, error: Exception) -> ModelError:
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{repo} asks for its licence to be accepted: do so at https://huggingface.co/{repo}, "
            "then run `hf auth login`."
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"The Hugging Face hub has no model {repo} that you may see (for a private one: `hf auth login`)."
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{repo} has no revision {revision!r} on the Hugging Face hub.")
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return ModelError(f"{repo} has no config.json, so it is not a transformers model.")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(
        f"{repo} is no folder here, it is not complete in the local cache, and the Hugging Face hub cannot "
        f"be reached ({reason}): check the name and the connection, and try again."
    )


def _reporting_bar(progress: Progress) -> type[tqdm[Any]]:
    """A tqdm class that reports bytes to `progress` and prints nothing."""

    class ReportingBar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})

        def display(self, *args: Any, **options: Any) -> None:
            if self.unit == "B":
                progress(DOWNLOADING, int(self.n), int(self.total or 0))

    return ReportingBar
