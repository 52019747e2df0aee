"""Runs on the Hugging Face hub: a run is a data set of two files, its packed archive and a card.

What comes from there is a stranger's, and passes the checks that every archive passes.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

from refusal_core.errors import RunError, first_line
from refusal_core.evidence.findings import verdict
from refusal_core.files import PARTIAL, sha256_of
from refusal_core.markdown import plain
from refusal_core.models.hub import HUB_ERRORS
from refusal_core.progress import quiet_libraries
from refusal_core.runs.run import Run
from refusal_core.runs.store import open_run, writable_cache
from refusal_core.sharing.archives import LARGEST, UnpackedRun, pack_run, unpack_run

ARCHIVE = "run.zip"
"""Name of a run's archive in its data set."""
UNKNOWN = "unknown"
_CARD = "README.md"
_DATASET = "dataset"
_TIMEOUT_SECONDS = 10
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,39}")


def push_run(
    run_id: str, repo: str, cache: str | Path | None = None, licence: str = UNKNOWN, public: bool = False
) -> str:
    """Put a run on the hub, as a data set that holds it alone, and return its address at that commit.

    A data set that is there gets a new commit, and stays as public as it is.

    Args:
        run_id: of the run.
        repo: OWNER/NAME.
        cache: folder of the runs; by default the one in use.
        licence: of what is put there, as the hub spells it.
        public: whether everybody may see a data set that is new.

    Raises:
        RunError: when there is no such run, it is damaged, or the hub does not take it.
    """
    if not _LICENCE.fullmatch(licence):
        raise RunError(f"expected a licence as the hub spells it, such as mit or cc-by-4.0, got {licence!r:.60}")
    with tempfile.TemporaryDirectory(prefix=PARTIAL) as folder:
        archive = Path(folder) / ARCHIVE
        pack_run(run_id, archive, cache, private=False)
        card = dataset_card(open_run(run_id, cache), repo, sha256_of(archive), licence)
        files = [CommitOperationAdd(_CARD, card.encode()), CommitOperationAdd(ARCHIVE, archive)]
        try:
            with quiet_libraries():
                api = HfApi()
                api.create_repo(repo, repo_type=_DATASET, private=not public, exist_ok=True)
                made = api.create_commit(repo, files, commit_message=f"Run {run_id}", repo_type=_DATASET)
        except (*HUB_ERRORS, RuntimeError) as error:
            raise _explained(repo, "put there", error) from error
    return str(made.commit_url)


def pull_run(repo: str, revision: str | None = None, cache: str | Path | None = None) -> UnpackedRun:
    """Put a run of the hub into the cache once it passes every check; nothing is left of one that is refused.

    Args:
        repo: OWNER/NAME of its data set.
        revision: branch, tag or commit; by default the newest commit.
        cache: folder of the runs; by default the one in use.

    Raises:
        RunError: when the hub has none, or something is wrong with it.
    """
    folder = writable_cache(cache)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as partial:
        try:
            with quiet_libraries():
                about = HfApi().dataset_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
                listed = {file.rfilename: file for file in about.siblings or ()}.get(ARCHIVE)
                if listed is None:
                    raise RunError(f"the data set {repo} has no {ARCHIVE}, so there is no run of this program in it")
                if (listed.size or 0) > LARGEST:
                    raise RunError(f"the run in {repo} has {(listed.size or 0) / 1e9:.1f} GB, more than a run has")
                archive = hf_hub_download(repo, ARCHIVE, repo_type=_DATASET, revision=about.sha, local_dir=partial)
        except (*HUB_ERRORS, EntryNotFoundError) as error:
            raise _explained(repo, "got", error) from error
        if listed.lfs is not None and sha256_of(Path(archive)) != listed.lfs.sha256:
            raise RunError(f"{ARCHIVE} did not come from {repo} as the hub lists it; get it again")
        return unpack_run(archive, folder)


def dataset_card(run: Run, repo: str, sha256: str, licence: str = UNKNOWN) -> str:
    """Return the card of a run's data set, in Markdown with the hub's heading; names of strangers are quoted.

    Args:
        run: that the data set holds.
        repo: OWNER/NAME.
        sha256: of its archive.
        licence: of the data set, as the hub spells it.
    """
    manifest = run.manifest
    model, prompts = manifest.model, manifest.prompts
    counts = " + ".join(f"{count} {label}" for label, count in prompts.counts.items())
    sets = [f"contrast set {_quoted(prompts.name)}, {counts} prompts, SHA-256 `{prompts.sha256 or 'not recorded'}`"]
    sets += [f"scored, not fitted on: {_quoted(source)}" for source in run.transfer_sources]
    heading = {"license": licence, "pretty_name": run.run_id, "tags": ["refusal-directions", "interpretability"]}
    lines = [
        "---",
        # JSON is YAML; only the hub's own keys are there.
        *(f"{name}: {json.dumps(value)}" for name, value in heading.items()),
        "viewer: false",
        "---",
        "",
        f"# {_quoted(run.run_id)}",
        "",
        "A run of the program refusal-directions: how a chat model tells harmful requests from harmless ones, layer by "
        "layer. Its prompts are part of it, and many of them ask for harm.",
        "",
        # It names sets of prompts.
        *([plain(" ".join(verdict(run.evidence).split())), ""] if run.has_evidence else []),
        f"- model {_quoted(model.name)}, revision {_quoted(model.revision or model.sha256 or 'not recorded')}, "
        f"{run.n_layers} layers, licence {_quoted(model.licence or 'not stated')}",
        *(f"- {line}" for line in sets),
        f"- read in {_quoted(manifest.compute.dtype)}, made {_quoted(manifest.created)}",
        "",
        "The licence above is of this data set; the model's, and those of the sets of prompts, hold beside it.",
        "",
        "```sh",
        f"refusal pull {repo}",
        "```",
        "",
        "| file | SHA-256 |",
        "| --- | --- |",
        f"| `{ARCHIVE}` | `{sha256}` |",
        *(f"| `{name}`, in it | `{digest}` |" for name, digest in sorted(manifest.files.items())),
        "",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """Return a stranger's text as Markdown shows it letter by letter, on one line."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _explained(repo: str, done: str, error: Exception) -> RunError:
    if isinstance(error, HFValidationError):
        return RunError(f"expected a data set as OWNER/NAME, got {repo!r:.100}")
    if isinstance(error, GatedRepoError):
        return RunError(f"the data set {repo} asks for its terms to be accepted: do so on the hub, then log in")
    if isinstance(error, RepositoryNotFoundError):
        return RunError(
            f"the Hugging Face hub has no data set {repo} that you may see (for a private one: `hf auth login`)"
        )
    return RunError(
        f"the data set {repo} cannot be {done} ({first_line(error)}): check its name, the connection, and that you are "
        "logged in (`hf auth login`) as one who may do that"
    )
