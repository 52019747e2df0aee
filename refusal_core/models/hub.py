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

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download, try_to_load_from_cache
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
from refusal_core.files import sha256_of, write_atomically
from refusal_core.hub_answers import check_answers
from refusal_core.models.folder_checks import has_tokenizer
from refusal_core.progress import Progress, no_progress, quiet_libraries

DOWNLOADING = "downloading (bytes)"
HUB_ERRORS = (HTTPError, OSError, ValueError)
_TIMEOUT_SECONDS = 5
_LARGEST_TEXT = 50_000_000
"""Bytes of a model's configuration, card or chat template."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
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
)
_CARD = "README.md"

check_answers()


@dataclass(frozen=True)
class HubSnapshot:
    """One commit of a hub model in the local cache; at least its config.json is there.

    Attributes:
        branch: the branch or tag that the commit was found under; None where a commit was asked for.
    """

    repo: str
    folder: Path
    commit: str
    branch: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all files that are needed to open the model are in the cache."""
        if not self.has_weights or not has_tokenizer(self.folder):
            return False
        try:
            with quiet_libraries():
                _download_files(self, local_files_only=True)
        except LocalEntryNotFoundError:
            return False
        return True

    @property
    def has_weights(self) -> bool:
        """Whether all safetensors files of the model are in the cache."""
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            return any(not _SHARD.search(path.name) for path in self.folder.glob("*.safetensors"))
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return all((self.folder / shard).is_file() for shard in shards)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False


def find_snapshot(repo: str, revision: str | None = None, offline: bool = False) -> HubSnapshot:
    """Find the commit that a hub id stands for, and download its configuration; its weights may not be here.

    Asks the hub first, for at most 5 seconds, and the local cache when the hub cannot be reached.

    Args:
        repo: OWNER/NAME.
        revision: branch, tag or commit; by default the hub's default branch.
        offline: ask the cache alone. A branch or tag then stands for the commit that was downloaded for it last.

    Raises:
        ModelError: when there is no such model or revision, or when neither hub nor cache knows it.
    """
    branch = None if _COMMIT.fullmatch(revision or "") else revision or constants.DEFAULT_REVISION
    cached = _cached_snapshot(repo, revision, branch)
    if cached and (offline or branch is None):
        return cached
    if offline:
        raise ModelError(f"{repo} is not in the local cache of the Hugging Face hub.")
    try:
        with quiet_libraries():
            commit = str(HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_SECONDS).sha)
            bar = _reporting_bar(no_progress, _LARGEST_TEXT)
            config = hf_hub_download(
                repo, "config.json", revision=commit, etag_timeout=_TIMEOUT_SECONDS, tqdm_class=bar
            )
            with contextlib.suppress(*HUB_ERRORS, EntryNotFoundError):
                hf_hub_download(repo, _CARD, revision=commit, etag_timeout=_TIMEOUT_SECONDS, tqdm_class=bar)
    except (*HUB_ERRORS, EntryNotFoundError) as error:
        if cached and not isinstance(error, RevisionNotFoundError):
            return cached
        raise _explained(repo, revision, error) from error
    snapshot = HubSnapshot(repo, Path(config).parent, commit, branch)
    if branch is not None and (cached is None or cached.commit != commit) and snapshot.is_whole:
        _check_hashes(snapshot)
        _point(branch, snapshot)
    return snapshot


def download_size(repo: str, revision: str | None) -> int | None:
    """Return the bytes that :func:`download_snapshot` would bring, or None when the hub does not say."""
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
    except HUB_ERRORS:
        return None
    files = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    return sum(files[name] for name in filter_repo_objects(files, allow_patterns=list(_WANTED))) or None


def download_snapshot(repo: str, revision: str | None, progress: Progress) -> Path:
    """Download the safetensors, configuration and tokenizer of a hub model into the hub's own cache.

    After an interruption the files that are whole are not downloaded again.

    Args:
        repo: OWNER/NAME.
        revision: branch, tag or commit; by default the hub's default branch.
        progress: called with the bytes that have arrived.

    Returns:
        Their folder, named as the commit.

    Raises:
        ModelError: when the hub cannot be reached or the model has no safetensors.
    """
    snapshot = find_snapshot(repo, revision)
    if not snapshot.is_whole:
        try:
            with quiet_libraries():
                most = download_size(repo, snapshot.commit)
                bar = _reporting_bar(progress, most)
                _download_files(snapshot, etag_timeout=_TIMEOUT_SECONDS, tqdm_class=bar)
        except (*HUB_ERRORS, EntryNotFoundError) as error:
            if snapshot.has_weights:  # another program may have left out files that nobody needs
                return snapshot.folder
            raise _explained(repo, revision, error) from error
        if not snapshot.has_weights:
            raise ModelError(f"{repo} has no safetensors weights; pickled ones (.bin, .pt) are never opened.")
        _check_hashes(snapshot)
        for branch in _branches_at(snapshot):
            _point(branch, snapshot)
    return snapshot.folder


def download_chat_template(repo: str) -> Path:
    """Download what may hold the chat template of a hub model into the hub's own cache, and return its folder.

    Raises:
        ModelError: when there is no such model, or the hub cannot be reached and the cache does not know it.
    """
    snapshot = find_snapshot(repo)
    with quiet_libraries(), contextlib.suppress(*HUB_ERRORS, EntryNotFoundError):
        snapshot_download(
            repo,
            revision=snapshot.commit,
            allow_patterns=["chat_template.jinja", "additional_chat_templates/*.jinja", "tokenizer_config.json"],
            etag_timeout=_TIMEOUT_SECONDS,
            tqdm_class=_reporting_bar(no_progress, _LARGEST_TEXT),
        )
    return snapshot.folder


def download_file(repo: str, filename: str, sha256: str, folder: Path, progress: Progress) -> Path:
    """Download one large file of known SHA-256 into `folder`, continuing where an interruption left it.

    Raises:
        ModelError: when the hub holds another file under that name or delivers a damaged one.
        HUB_ERRORS: the hub's own errors, when it cannot be reached.
    """
    arriving = folder / f"{filename}.arriving"
    with quiet_libraries():
        info = HfApi().model_info(repo, files_metadata=True, timeout=_TIMEOUT_SECONDS)
        offered = {file.rfilename: file.lfs for file in info.siblings or [] if file.lfs}.get(filename)
        if offered is None or offered.sha256 != sha256:
            raise ModelError(f"the {filename} of {repo} on the Hugging Face hub is another file than the pinned one")
        try:
            with open(arriving, "ab") as file:
                http_get(
                    hf_hub_url(repo, filename, revision=info.sha),
                    file,
                    resume_size=file.tell(),
                    headers=build_hf_headers(),
                    expected_size=offered.size,
                    tqdm_class=_reporting_bar(progress, offered.size),
                )
        except ModelError:
            arriving.unlink()
            raise
    if sha256_of(arriving) != sha256:
        arriving.unlink()
        raise ModelError(f"the Hugging Face hub delivered a damaged {filename}")
    os.replace(arriving, folder / filename)
    return folder / filename


def _cached_snapshot(repo: str, revision: str | None, branch: str | None) -> HubSnapshot | None:
    try:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError as error:
        raise ModelError(
            f"{repo!r:.120} is no hub id: expected OWNER/NAME, as in Qwen/Qwen2.5-1.5B-Instruct"
        ) from error
    if not isinstance(config, str):
        return None
    return HubSnapshot(repo, Path(config).parent, Path(config).parent.name, branch)


def _download_files(snapshot: HubSnapshot, **options: Any) -> None:
    """Bring the wanted files of a commit into the cache; with `local_files_only`, check that they are there."""
    snapshot_download(
        snapshot.repo,
        revision=snapshot.commit,
        allow_patterns=list(_WANTED),
        ignore_patterns=["*/*"],
        **options,
    )


def _check_hashes(snapshot: HubSnapshot) -> None:
    """Compare the files of a commit with the hashes that the hub lists, which its library does not do.

    Raises:
        ModelError: for a file that is another one; it is removed from the cache.
    """
    try:
        with quiet_libraries():
            info = HfApi().model_info(
                snapshot.repo, revision=snapshot.commit, files_metadata=True, timeout=_TIMEOUT_SECONDS
            )
    except HUB_ERRORS:
        return
    for file in info.siblings or []:
        path = snapshot.folder / file.rfilename
        expected = file.lfs.sha256 if file.lfs else file.blob_id
        if "/" in file.rfilename or not path.is_file() or expected is None:
            continue
        if (sha256_of(path) if file.lfs else _git_sha1(path)) != expected:
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            raise ModelError(
                f"the Hugging Face hub delivered another {file.rfilename!r:.80} of {snapshot.repo} than it lists: it "
                "was removed, fetch the model again"
            )


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _branches_at(snapshot: HubSnapshot) -> set[str]:
    """Return the branches and tags that stand for a commit: the one asked for, and those that the hub names."""
    asked = {snapshot.branch} if snapshot.branch else set()
    try:
        with quiet_libraries():
            refs = HfApi().list_repo_refs(snapshot.repo)
    except HUB_ERRORS:
        return asked
    return asked | {ref.name for ref in (*refs.branches, *refs.tags) if ref.target_commit == snapshot.commit}


def _point(branch: str, snapshot: HubSnapshot) -> None:
    """Let a branch or tag stand for a commit whose files are in the cache, as `git` and the hub's library do.

    The hub's library does so for downloads by branch. Here files are downloaded by commit, so that all are of the same
    one, and a branch is pointed at it when they are complete: until then it stands for what can be opened.
    """
    reference = snapshot.folder.parent.parent / "refs" / branch
    if ".." in Path(branch).parts or Path(branch).is_absolute():
        return
    with contextlib.suppress(OSError):  # a cache that cannot be written to can still be read
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, snapshot.commit)


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


def _reporting_bar(progress: Progress, most: int | None) -> type[tqdm[Any]]:
    """Make a tqdm class that reports bytes to `progress`, prints nothing, and raises ModelError beyond `most`."""

    class ReportingBar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        monitor_interval = 0  # no thread that watches it

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            if most is not None and self.unit == "B" and self.n + (n or 0) > most:
                raise ModelError(
                    f"the Hugging Face hub delivers more than the {most / 1e6:.1f} MB that are to come: it was cut off"
                )
            shown: bool | None = super().update(n)
            return shown

        def display(self, *args: Any, **options: Any) -> None:
            if self.unit == "B":
                progress(DOWNLOADING, int(self.n), int(self.total or 0))

        def __del__(self) -> None:
            # The hub's library leaves some bars open. tqdm closes them, and so displays them, when they are collected:
            # at the end of the program, when a progress that starts a thread would wait for it for ever.
            pass

    return ReportingBar
