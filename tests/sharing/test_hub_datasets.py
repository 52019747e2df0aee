"""A run goes to the hub and comes back the same, with a card; what is wrong there is a sentence."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hub_server import HubServer, hub_here
from synthetic import RUN

from refusal_core.cli.main import main
from refusal_core.errors import RunError
from refusal_core.files import sha256_of
from refusal_core.runs.store import open_run, verify_run
from refusal_core.sharing import hub_datasets as sharing
from refusal_core.sharing.archives import UnpackedRun, pack_run

# The way in which huggingface_hub sends a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = HubServer()
    server.token = TOKEN
    hub_here(server, tmp_path / "hub", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with server.running():
        yield server


def files_at(server: HubServer, repo: str) -> dict[str, bytes]:
    repository = server.repository(repo, "dataset")
    return repository.commits[repository.branches["main"]]


def test_a_run_comes_back_the_same_and_twice_changes_nothing(hub, synthetic_cache, tmp_path, capsys):
    assert main(["push", RUN, "someone/a-run", f"--cache={synthetic_cache}", "--licence=cc-by-4.0"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.startswith(f"{hub.url}/datasets/someone/a-run/commit/")
    assert hub.repository("someone/a-run", "dataset").visibility == "private"
    assert set(files_at(hub, "someone/a-run")) == {"README.md", "run.zip"}
    assert main(["pull", "someone/a-run", f"--cache={tmp_path / 'mine'}"]) == 0
    assert capsys.readouterr().out.split() == [RUN]
    assert set(verify_run(RUN, tmp_path / "mine")) == set(verify_run(RUN, synthetic_cache))
    for path in (tmp_path / "mine" / RUN).iterdir():
        assert sha256_of(path) == sha256_of(synthetic_cache / RUN / path.name)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [RUN]
    assert sharing.pull_run("someone/a-run", cache=tmp_path / "mine") == UnpackedRun(RUN, new=False)
    # Put there again it is one commit more of the same data set.
    sharing.push_run(RUN, "someone/a-run", synthetic_cache, public=True)
    assert hub.repository("someone/a-run", "dataset").visibility == "private"
    assert len(hub.repository("someone/a-run", "dataset").commits) == 2
    first, _ = hub.repository("someone/a-run", "dataset").commits
    assert sharing.pull_run("someone/a-run", first, tmp_path / "mine") == UnpackedRun(RUN, new=False)


def test_a_data_set_is_public_where_that_is_asked_for(hub, synthetic_cache):
    sharing.push_run(RUN, "someone/public", synthetic_cache, public=True)
    assert hub.repository("someone/public", "dataset").visibility == "public"


def test_the_card_has_licence_and_hashes_and_quotes_strangers(hub, synthetic_cache, tmp_path):
    shutil.copytree(synthetic_cache, tmp_path / "cache")
    path = tmp_path / "cache" / RUN / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["name"] = "x`](https://example.com)\n# <b>"
    path.write_text(json.dumps(manifest))
    sharing.push_run(RUN, "someone/a-run", tmp_path / "cache", licence="mit")
    files = files_at(hub, "someone/a-run")
    card = files["README.md"].decode()
    assert card.startswith('---\nlicense: "mit"\n')
    assert "`x'](https://example.com) # <b>`" in card
    (tmp_path / "run.zip").write_bytes(files["run.zip"])
    assert f"| `run.zip` | `{sha256_of(tmp_path / 'run.zip')}` |" in card
    for name, digest in open_run(RUN, tmp_path / "cache").manifest.files.items():
        assert f"| `{name}`, in it | `{digest}` |" in card
    assert "refusal pull someone/a-run" in card


def test_the_card_shows_what_the_verdict_says_letter_by_letter(synthetic_cache, monkeypatch):
    monkeypatch.setattr(sharing, "verdict", lambda evidence: "On x](https://example.com)\n# <b>\n| y | d is 1.")
    card = sharing.dataset_card(open_run(RUN, synthetic_cache), "someone/a-run", "0" * 64)
    assert "On x\\](https\\:\u2060//example.com) \\# \\<b\\> \\| y \\| d is 1." in card.splitlines()


def test_what_is_on_the_hub_passes_every_check_of_an_archive(hub, synthetic_cache, tmp_path):
    packed, forged = io.BytesIO(), io.BytesIO()
    pack_run(RUN, packed, synthetic_cache)
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(forged, "w") as other:
        for entry in archive.namelist():
            content = archive.read(entry)
            other.writestr(entry, content[:-1] + b"x" if entry.endswith("layer_stats.parquet") else content)
    hub.add("someone/forged", {"run.zip": forged.getvalue()}, "dataset")
    hub.add("someone/other", {"data.parquet": b"x"}, "dataset")
    for repo, says in (("someone/forged", "layer_stats"), ("someone/other", "no run of this program")):
        with pytest.raises(RunError, match=says):
            sharing.pull_run(repo, cache=tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_what_arrives_otherwise_than_the_hub_lists_it_is_refused(hub, synthetic_cache, tmp_path, monkeypatch):
    sharing.push_run(RUN, "someone/a-run", synthetic_cache)
    monkeypatch.setattr(sharing, "sha256_of", lambda path: "0" * 64)
    with pytest.raises(RunError, match="as the hub lists it"):
        sharing.pull_run("someone/a-run", cache=tmp_path / "mine")
    monkeypatch.setattr(sharing, "LARGEST", 10)
    with pytest.raises(RunError, match="more than a run has"):
        sharing.pull_run("someone/a-run", cache=tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_what_the_hub_refuses_is_a_sentence(hub, synthetic_cache, tmp_path, monkeypatch):
    for repo, says in (("someone/nothing", "no data set someone/nothing that you may see"), ("a/b/c", "OWNER/NAME")):
        with pytest.raises(RunError, match=says):
            sharing.pull_run(repo, cache=tmp_path / "mine")
    with pytest.raises(RunError, match="expected a licence as the hub spells it"):
        sharing.push_run(RUN, "someone/a-run", synthetic_cache, licence="My own:\n- x")
    with pytest.raises(RunError, match="no run"):
        sharing.push_run("no-such-run", "someone/a-run", synthetic_cache)
    hub.token = "another"
    with pytest.raises(RunError, match="hf auth login") as refused:
        sharing.push_run(RUN, "someone/a-run", synthetic_cache)
    assert "\n" not in str(refused.value)
    assert not [request for request in hub.requests if "commit" in request]


def test_without_a_connection_it_is_a_sentence(tmp_path, synthetic_cache, monkeypatch):
    server = HubServer()
    hub_here(server, tmp_path / "hub", monkeypatch)
    for ask in (
        lambda: sharing.pull_run("a/b", cache=tmp_path / "mine"),
        lambda: sharing.push_run(RUN, "a/b", synthetic_cache),
    ):
        with pytest.raises(RunError, match="check its name, the connection"):
            ask()
    assert not Path(tmp_path / "mine").exists() or list((tmp_path / "mine").iterdir()) == []
