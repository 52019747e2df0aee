"""Packed runs: what is sent is what arrives, and what a stranger could send instead is refused in one sentence."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from synthetic import RUN, behaviour_manifest, save_positions, save_subspace

from refusal_core import parquet as parquet_files
from refusal_core.cli.main import main
from refusal_core.errors import RunError
from refusal_core.runs import run_files, store
from refusal_core.runs.additions import save_addition
from refusal_core.sharing import archives
from refusal_core.sharing.archives import pack_run, unpack_run


@pytest.fixture
def sent(synthetic_cache) -> dict[str, bytes]:
    """The files of a packed run by name in the archive."""
    packed = io.BytesIO()
    pack_run(RUN, packed, synthetic_cache)
    with zipfile.ZipFile(packed) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], **options: object) -> io.BytesIO:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content, **options)
    packed.seek(0)
    return packed


def resigned(files: dict[str, bytes], **changed: bytes) -> dict[str, bytes]:
    """The files with some replaced and the manifest's hashes made to match, as a forger would."""
    files = dict(files)
    manifest = json.loads(files[f"{RUN}/manifest.json"])
    for name, content in changed.items():
        file = name.replace("__", ".")
        files[f"{RUN}/{file}"] = content
        manifest["files"][file] = hashlib.sha256(content).hexdigest()
    files[f"{RUN}/manifest.json"] = json.dumps(manifest).encode()
    return files


def with_manifest(files: dict[str, bytes], changes: dict) -> dict[str, bytes]:
    manifest = json.loads(files[f"{RUN}/manifest.json"])
    return files | {f"{RUN}/manifest.json": json.dumps(manifest | changes).encode()}


def parquet(table: pd.DataFrame) -> bytes:
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    return content.getvalue()


def refused(packed: io.BytesIO | Path, cache: Path) -> str:
    """The one sentence an archive is refused with; nothing of it is left."""
    before = sorted(path.name for path in cache.iterdir()) if cache.exists() else []
    with pytest.raises(RunError) as caught:
        unpack_run(packed, cache)
    assert sorted(path.name for path in cache.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message
    assert "delete the run" not in message
    return message


@pytest.mark.slow
def test_what_is_packed_is_what_arrives(synthetic_cache, tmp_path):
    shutil.copytree(synthetic_cache, tmp_path / "mine")
    run = store.open_run(RUN, tmp_path / "mine")
    replies = run.prompts[["prompt_id"]].assign(phrase_log_odds=0.5, opening="Sure", opening_label="answers")
    save_addition(run, replies, behaviour_manifest("Sorry"))
    save_subspace(run)
    save_positions(run, activations=True)
    file = tmp_path / "sent.zip"
    pack_run(RUN, file, tmp_path / "mine")
    imported = unpack_run(file, tmp_path / "cache")
    assert (imported.run_id, imported.new) == (RUN, True)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [RUN]
    arrived = {path.name: path.read_bytes() for path in (tmp_path / "cache" / RUN).iterdir()}
    assert arrived == {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert {"behaviour.parquet", "subspace.parquet", "positions.parquet", "positions.safetensors"} <= arrived.keys()
    assert not unpack_run(file, tmp_path / "cache").new


def test_a_folder_zipped_by_hand_is_a_packed_run(synthetic_cache, tmp_path):
    made = shutil.make_archive(str(tmp_path / "by-hand"), "zip", synthetic_cache, RUN)
    assert unpack_run(made, tmp_path / "cache").run_id == RUN


def test_the_command_line_packs_imports_and_renames(synthetic_cache, tmp_path, capsys):
    file, cache = str(tmp_path / "sent.zip"), str(tmp_path / "cache")
    assert main(["pack", RUN, file, "--cache", str(synthetic_cache)]) == 0
    assert main(["unpack", file, "--cache", cache]) == 0
    assert main(["unpack", file, "--cache", cache]) == 0
    assert "here already" in capsys.readouterr().out
    assert main(["rename", RUN, "Mine", "--cache", cache]) == 0
    assert main(["list", "--cache", cache]) == 0
    assert "“Mine”" in capsys.readouterr().out
    assert main(["pack", RUN, str(tmp_path / "sent.txt"), "--cache", cache]) == 1
    assert main(["pack", "no-such-run", file, "--cache", cache]) == 1
    assert main(["pack", RUN, str(tmp_path / "no" / "sent.zip"), "--cache", cache]) == 1
    assert main(["unpack", str(tmp_path / "nothing.zip"), "--cache", cache]) == 1
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.parquet",
        f"{RUN}/../../escaped.parquet",
        "/etc/escaped.parquet",
        f"{RUN}\\escaped.parquet",
        f"{RUN}/deep/escaped.parquet",
        f"{RUN}/.hidden.parquet",
        f"{RUN}/Manifest.json",
        f"{RUN}/PROMPTS.parquet",
        f"{RUN}/manifest.json ",
        f"{RUN}/code.py",
        f"{RUN}/notes.json",
        "manifest.json",
        "__MACOSX/x.parquet",
    ],
)
def test_names_that_are_no_file_of_a_run_are_refused(sent, tmp_path, name):
    assert "no file of a run" in refused(zipped(sent | {name: b"x"}), tmp_path / "cache")
    assert not list(tmp_path.rglob("escaped*"))


def test_links_passwords_and_strange_compression_are_refused(sent, tmp_path):
    link = zipfile.ZipInfo(f"{RUN}/evidence_x.parquet")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    packed = zipped(sent)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "link" in refused(packed, tmp_path / "cache")
    secret = bytearray(zipped(sent).getvalue())
    secret[secret.index(b"PK\x01\x02") + 8] |= 1
    assert "password" in refused(io.BytesIO(secret), tmp_path / "cache")
    assert "compressed" in refused(zipped(sent, compress_type=zipfile.ZIP_LZMA), tmp_path / "cache")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_there_twice_is_refused(sent, tmp_path):
    packed = zipped(sent)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(f"{RUN}/prompts.parquet", b"other")
    assert "twice" in refused(packed, tmp_path / "cache")
    two = sent | {name.replace(RUN, "another"): content for name, content in sent.items()}
    assert "more than one run" in refused(zipped(two), tmp_path / "cache")


def test_bombs_are_refused_before_they_are_unpacked(sent, tmp_path, monkeypatch):
    bomb = sent | {f"{RUN}/activations.safetensors": bytes(64 * 2**20)}
    monkeypatch.setattr(archives.shutil, "copyfileobj", lambda *arguments: pytest.fail("unpacked"))
    assert "hardly compress" in refused(zipped(bomb), tmp_path / "cache")
    assert "expected at most" in refused(zipped(sent | {f"{RUN}/manifest.json": bytes(2**21)}), tmp_path / "cache")
    monkeypatch.setattr(archives, "LARGEST", 1000)
    assert "unpacked this would be" in refused(zipped(sent), tmp_path / "cache")
    many = {f"{RUN}/evidence_{place}.parquet": b"" for place in range(100)}
    assert "has 1" in refused(zipped(sent | many), tmp_path / "cache")


def test_no_more_is_read_than_is_declared(sent, tmp_path):
    packed = bytearray(zipped(sent, compress_type=zipfile.ZIP_STORED).getvalue())
    size = len(sent[f"{RUN}/prompts.parquet"]).to_bytes(4, "little")
    entry = packed.index(b"PK\x01\x02")
    while packed[entry + 46 :][: len(RUN) + 16] != f"{RUN}/prompts.parquet".encode():
        entry = packed.index(b"PK\x01\x02", entry + 1)
    assert packed[entry + 24 : entry + 28] == size
    packed[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    refused(io.BytesIO(packed), tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04" + bytes(40)])
def test_what_is_no_zip_file_is_refused(tmp_path, content):
    assert "no zip file" in refused(io.BytesIO(content), tmp_path / "cache")


def test_a_truncated_or_damaged_archive_is_refused(sent, tmp_path):
    whole = zipped(sent).getvalue()
    assert "no zip file" in refused(io.BytesIO(whole[: len(whole) // 2]), tmp_path / "cache")
    damaged = bytearray(whole)
    damaged[200:260] = bytes(60)
    refused(io.BytesIO(damaged), tmp_path / "cache")


def test_an_empty_archive_is_refused(tmp_path):
    assert "has 0" in refused(zipped({}), tmp_path / "cache")


@pytest.mark.parametrize("file", ["prompts.parquet", "directions.safetensors", "evidence_sites.parquet"])
def test_a_file_that_is_not_the_manifest_s_is_refused_before_it_is_read(sent, tmp_path, monkeypatch, file):
    content = bytearray(sent[f"{RUN}/{file}"])
    content[len(content) // 2] ^= 1
    for reader in ("read_table", "load_file"):
        monkeypatch.setattr(run_files, reader, lambda *arguments: pytest.fail("read"))
    message = refused(zipped(sent | {f"{RUN}/{file}": bytes(content)}), tmp_path / "cache")
    assert file in message
    assert "SHA-256 differs" in message


def test_a_file_that_is_missing_or_that_no_manifest_lists_is_refused(sent, tmp_path):
    without = {name: content for name, content in sent.items() if "prompts" not in name}
    assert "lacks its file prompts.parquet" in refused(zipped(without), tmp_path / "cache")
    more = sent | {f"{RUN}/evidence_more.parquet": b"x"}
    assert "evidence_more.parquet is not in the run's manifest" in refused(zipped(more), tmp_path / "cache")
    unmanifested = {name: content for name, content in sent.items() if "manifest" not in name}
    assert "not a run" in refused(zipped(unmanifested), tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 99}, "newer|update the program"),
        ({"format_version": float("inf")}, "cannot be read"),
        ({"run_id": "another"}, "of another run"),
        ({"files": {}}, "belong together"),
        ({"files": {"../../x": "0"}}, "belong together"),
        ({"files": 3}, "cannot be read"),
        ({"model": None}, "lacks"),
        ({"transfer": [{"name": "x", "counts": {"harmful": "<b>"}}]}, "counts"),
    ],
)
def test_a_manifest_that_no_page_could_read_is_refused(sent, tmp_path, changes, says):
    message = refused(zipped(with_manifest(sent, changes)), tmp_path / "cache")
    assert any(part in message for part in says.split("|"))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_manifest_that_is_no_manifest_is_refused(sent, tmp_path, content):
    refused(zipped(sent | {f"{RUN}/manifest.json": content}), tmp_path / "cache")


def test_garbage_under_the_right_hash_is_refused_in_one_sentence(sent, tmp_path):
    rng = np.random.default_rng(0)
    for file in ("prompts__parquet", "projections__parquet", "evidence_sites__parquet", "directions__safetensors"):
        for content in (b"", b"garbage", rng.bytes(4000), b"PAR1" + rng.bytes(4000) + b"PAR1", b"\xff" * 4000):
            message = refused(zipped(resigned(sent, **{file: content})), tmp_path / "cache")
            assert "cannot be read" in message
    with_hidden = resigned(sent, activations__safetensors=rng.bytes(4000))
    assert "cannot be read" in refused(zipped(with_hidden), tmp_path / "cache")


def test_tables_of_another_shape_are_refused(sent, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "BUDGET", 1_000_000)
    prompts = pd.read_parquet(io.BytesIO(sent[f"{RUN}/prompts.parquet"]))
    hidden = tmp_path / "hidden.safetensors"
    save_file({"activations": np.zeros((2, 3, 4), np.float32)}, hidden)
    endless = io.BytesIO()
    pq.write_table(pa.table({"x": pa.array(np.zeros(2**20, np.int8))}), endless)
    for changed, says in (
        ({"prompts__parquet": parquet(prompts.drop(columns="text"))}, "lacks the column text"),
        ({"prompts__parquet": parquet(prompts.assign(text=1))}, "values of another kind"),
        ({"prompts__parquet": parquet(prompts.assign(n_tokens="<b>"))}, "values of another kind"),
        ({"prompts__parquet": parquet(prompts[1:])}, "cannot be read"),
        ({"layer_stats__parquet": endless.getvalue()}, "stands for"),
        ({"activations__safetensors": hidden.read_bytes()}, "of shape"),
    ):
        assert says in refused(zipped(resigned(sent, **changed)), tmp_path / "cache")


def test_measurements_beside_a_run_are_checked_too(sent, tmp_path):
    alone = sent | {f"{RUN}/behaviour.json": b"{}"}
    assert "do not belong together" in refused(zipped(alone), tmp_path / "cache")
    content = b"garbage"
    described = {"format_version": 1, "run_id": RUN, "sha256": hashlib.sha256(content).hexdigest()}
    forged = sent | {f"{RUN}/behaviour.json": json.dumps(described).encode(), f"{RUN}/behaviour.parquet": content}
    assert "behaviour.json lacks" in refused(zipped(forged), tmp_path / "cache")


def test_a_run_whose_name_is_taken_is_refused(sent, tmp_path):
    cache = tmp_path / "cache"
    assert unpack_run(zipped(sent), cache).new
    other = with_manifest(sent, {"created": "2027-01-01T00:00:00+00:00"})
    assert "is here already" in refused(zipped(other), cache)
    (cache / RUN / "manifest.json").write_text("{")
    assert "is here already" in refused(zipped(sent), cache)


def test_a_disk_that_is_full_leaves_the_file_that_was_there(synthetic_cache, tmp_path, monkeypatch):
    file = tmp_path / "sent.zip"
    file.write_bytes(b"before")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(RunError, match="No space left on device"):
        pack_run(RUN, file, synthetic_cache)
    assert file.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["sent.zip"]


def test_pipes_and_devices_are_no_archives(synthetic_cache, tmp_path):
    pipe = tmp_path / "sent.zip"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(RunError, match="no ordinary file"):
            unpack_run(path, tmp_path / "cache")
    with pytest.raises(RunError, match="no ordinary file"):
        pack_run(RUN, pipe, synthetic_cache)


def test_a_note_travels_with_its_run_and_leaves_the_receiver_s_alone(synthetic_cache, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(synthetic_cache, here)
    store.note_run(RUN, "odd at layer 3 #quartets", here)
    packed, plain = io.BytesIO(), io.BytesIO()
    pack_run(RUN, packed, here)
    pack_run(RUN, plain, here, private=False)
    assert not any(name.endswith("note.json") for name in zipfile.ZipFile(plain).namelist())
    assert unpack_run(packed, there).new
    assert store.run_notes(there) == {RUN: "odd at layer 3 #quartets"}
    assert not (there / RUN / "note.json").exists()
    store.note_run(RUN, "my own", there)
    assert not unpack_run(packed, there).new
    assert store.run_notes(there) == {RUN: "my own"}


def test_a_run_whose_note_has_no_place_is_here_all_the_same(synthetic_cache, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(synthetic_cache, here)
    store.note_run(RUN, "odd at layer 3", here)
    packed = io.BytesIO()
    pack_run(RUN, packed, here)
    there.mkdir()
    (there / ".notes.json").write_text("damaged")
    assert unpack_run(packed, there).new
    assert store.open_run(RUN, there).run_id == RUN


@pytest.mark.parametrize(
    "note", [b"{}", b'{"note": 3}', b"[", b'{"note": "a\\u0007"}', json.dumps({"note": "x" * 999}).encode()]
)
def test_a_note_that_is_none_is_refused_with_its_run(sent, tmp_path, note):
    assert "note" in (said := refused(zipped(sent | {f"{RUN}/note.json": note}), tmp_path)) or "printable" in said
