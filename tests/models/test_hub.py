"""Models of the Hugging Face hub, from a server on this machine that speaks its protocol; and without it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, hub_here
from tiny import tiny_model

from refusal_core.errors import ModelError, RefusalError
from refusal_core.hub_answers import leads_elsewhere
from refusal_core.models import hub
from refusal_core.models.fetching import fetch
from refusal_core.models.identity import ModelInfo, identify, is_available
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.models.templates import borrow_template, render
from refusal_core.options import RunOptions
from refusal_core.pipeline import plan

NAME = "some/model"


@pytest.fixture(scope="module")
def models() -> tuple[ChatModel, ChatModel]:
    """Two models of one architecture, with other weights."""
    first, second = tiny_model("qwen2"), tiny_model("qwen2")
    with torch.no_grad():
        second.lm_head.weight += 1
    return first, second


@pytest.fixture(scope="module")
def folders(models: tuple[ChatModel, ChatModel], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The two models as they are published: one in a file, one in two, with what a repository has besides."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for chat_model, folder, shard in ((models[0], first, "1GB"), (models[1], second, "40KB")):
        chat_model.model.save_pretrained(folder, max_shard_size=shard)
        chat_model.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n")
        (folder / "pytorch_model.bin").write_bytes(b"pickled")
        (folder / "modeling_mine.py").write_text("raise SystemExit('imported')")
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.safetensors").write_bytes(b"other weights")
    assert len(list(second.glob("*.safetensors"))) > 1
    return first, second


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub that this process uses, with an empty cache."""
    server = HubServer()
    hub_here(server, tmp_path / "hf", monkeypatch)
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / "models"))
    return server


def logits(chat_model: ChatModel) -> torch.Tensor:
    with torch.no_grad():
        return chat_model.model(torch.tensor([render(chat_model, "How do I pick a lock?")])).logits


def opened(model: str | ModelInfo, revision: str | None = None) -> ChatModel:
    return load_model(model, revision, device="cpu", dtype="float32")


def test_a_fetched_model_is_found_again_without_a_connection(server: HubServer, folders, models) -> None:
    commit = server.add(NAME, folders[0])
    assert not is_available(NAME)
    with server.running():
        folder = fetch(NAME)
    assert folder.name == commit
    assert is_available(NAME)
    info = identify(NAME)
    assert (info.name, info.source, info.revision, info.sha256) == (NAME, "hub", commit, None)
    assert (info.fingerprint, info.licence) == (commit, "apache-2.0")
    assert is_available(info)
    assert torch.equal(logits(opened(NAME)), logits(models[0]))
    assert opened(info).info == info
    assert opened(NAME, commit).info.revision == commit


def test_a_model_that_was_downloaded_to_be_opened_is_found_again(server: HubServer, folders, models) -> None:
    server.add(NAME, folders[1])
    with server.running():
        info = identify(NAME)
        assert not is_available(NAME)
        assert not is_available(info)
        assert torch.equal(logits(opened(info)), logits(models[1]))
    assert is_available(NAME)
    assert opened(NAME).info == info


def test_only_safetensors_configuration_and_tokenizer_are_downloaded(server: HubServer, folders) -> None:
    server.add(NAME, folders[1])
    reported: list[tuple[str, int, int]] = []
    with server.running():
        size = hub.download_size(NAME, None)
        folder = fetch(NAME, lambda *report: reported.append(report))
    arrived = {path.name for path in folder.rglob("*")}
    unwanted = {"pytorch_model.bin", "modeling_mine.py", "onnx"}
    assert arrived == {path.name for path in folders[1].iterdir()} - unwanted
    assert size == sum((folder / name).stat().st_size for name in arrived - {"README.md"})
    done = [done for stage, done, _ in reported if stage == hub.DOWNLOADING]
    assert done[-1] > sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2


def test_what_is_here_is_not_downloaded_again(server: HubServer, folders) -> None:
    commit = server.add(NAME, folders[0])
    with server.running():
        fetch(NAME)
        server.requests.clear()
        fetch(NAME)
        opened(NAME)
        opened(NAME, commit)
    assert [request for request in server.requests if "blobs" in request or "resolve-cache" in request] == []


def test_a_branch_stands_for_what_was_downloaded_until_its_new_commit_is(server: HubServer, folders, models) -> None:
    old = server.add(NAME, folders[0])
    with server.running():
        fetch(NAME)
    new = server.add(NAME, folders[1])
    with server.running():
        info = identify(NAME)
        assert info.revision == new
        assert not is_available(info)
    # Nothing but its configuration is here, so the name still stands for what can be opened.
    assert identify(NAME).revision == old
    assert torch.equal(logits(opened(NAME)), logits(models[0]))
    with server.running():
        assert torch.equal(logits(opened(info)), logits(models[1]))
    assert identify(NAME).revision == new
    assert is_available(NAME, old)


def test_a_model_that_was_identified_is_opened_although_its_branch_moves_on(server: HubServer, folders, models) -> None:
    server.add(NAME, folders[0])
    with server.running():
        info = identify(NAME)
        server.add(NAME, folders[1])
        assert torch.equal(logits(opened(info)), logits(models[0]))
        assert torch.equal(logits(opened(NAME)), logits(models[1]))


def test_tags_and_branches_of_their_own_are_found_again(server: HubServer, folders) -> None:
    commit = server.add(NAME, folders[0], branches=("v1.0", "refs/pr/7"))
    server.add(NAME, folders[1])
    with server.running():
        fetch(NAME, revision="v1.0")
        fetch(NAME, revision="refs/pr/7")
    for revision in ("v1.0", "refs/pr/7", commit):
        assert is_available(NAME, revision)
        assert identify(NAME, revision).revision == commit
    assert not is_available(NAME)
    with pytest.raises(ModelError, match="cannot be reached"):
        identify(NAME)


def test_what_was_downloaded_by_its_commit_is_found_by_its_branch(server: HubServer, folders) -> None:
    commit = server.add(NAME, folders[0], branches=("main", "v1.0"))
    with server.running():
        fetch(NAME, revision=commit)
    assert identify(NAME).revision == identify(NAME, "v1.0").revision == commit
    assert is_available(NAME)


def test_an_interrupted_download_is_not_available_and_goes_on(server: HubServer, folders) -> None:
    server.add(NAME, folders[1])
    shards = [path.read_bytes() for path in sorted(folders[1].glob("*.safetensors"))]
    lost = server.blobs.pop(hashlib.sha256(shards[-1]).hexdigest())
    with server.running():
        with pytest.raises(ModelError, match="try again"):
            fetch(NAME)
        assert not is_available(NAME)
        server.blobs[hashlib.sha256(lost).hexdigest()] = lost
        server.requests.clear()
        fetch(NAME)
    assert is_available(NAME)
    assert f"GET /blobs/{hashlib.sha256(shards[0]).hexdigest()}" not in server.requests


def test_a_download_without_all_files_is_not_available(server: HubServer, folders) -> None:
    server.add(NAME, folders[1])
    with server.running():
        folder = fetch(NAME)
    for name in ("tokenizer.json", sorted(path.name for path in folder.glob("*.safetensors"))[-1]):
        moved = (folder / name).rename(folder / "elsewhere")
        assert not is_available(NAME)
        moved.rename(folder / name)
        assert is_available(NAME)


def test_shards_that_another_program_left_out_are_missed(server: HubServer, folders) -> None:
    from huggingface_hub import hf_hub_download

    server.add(NAME, folders[1])
    shards = sorted(path.name for path in folders[1].glob("*.safetensors"))
    with server.running():
        # One by one, so that nothing says which files there are besides those that the index lists.
        for name in ("config.json", *shards, "model.safetensors.index.json", "tokenizer_config.json", "tokenizer.json"):
            assert not is_available(NAME)
            hf_hub_download(NAME, name)
    assert is_available(NAME)


def test_what_another_program_downloaded_is_found(server: HubServer, folders, models) -> None:
    from huggingface_hub import snapshot_download

    server.add(NAME, folders[0])
    with server.running():
        snapshot_download(NAME, ignore_patterns=["*.bin", "README.md"])
    assert is_available(NAME)
    assert torch.equal(logits(opened(NAME)), logits(models[0]))


def test_a_cache_without_a_branch_is_mended_when_the_hub_is_there(server: HubServer, folders) -> None:
    server.add(NAME, folders[0])
    with server.running():
        folder = fetch(NAME)
        (folder.parent.parent / "refs" / "main").unlink()
        assert not is_available(NAME)
        assert is_available(identify(NAME))
    assert is_available(NAME)


def test_a_revision_is_no_path(server: HubServer, folders, tmp_path: Path) -> None:
    server.add(NAME, folders[0], branches=("../../../stray",))
    with server.running():
        fetch(NAME, revision="../../../stray")
    assert not list(tmp_path.rglob("stray"))


@pytest.mark.parametrize(
    ("refusal", "message"),
    [("GatedRepo", r"licence to be accepted.*hf auth login"), ("RepoNotFound", r"no model some/model.*hf auth login")],
)
def test_a_repository_that_refuses_says_what_to_do(refusal: str, message: str, server: HubServer, folders) -> None:
    server.add(NAME, folders[0])
    server.repository(NAME).refusal = refusal
    with server.running(), pytest.raises(ModelError, match=message):
        identify(NAME)


def test_what_the_hub_lacks_is_one_sentence(server: HubServer, folders) -> None:
    server.add(NAME, folders[0])
    server.add("some/folder", {"weights.gguf": b"GGUF"})
    server.add("some/pickle", {path.name: path.read_bytes() for path in folders[0].glob("*.json")})
    with server.running():
        with pytest.raises(ModelError, match="no revision 'v9'"):
            identify(NAME, "v9")
        with pytest.raises(ModelError, match=r"some/folder has no config\.json"):
            identify("some/folder")
        with pytest.raises(ModelError, match=r"some/pickle has no safetensors weights"):
            fetch("some/pickle")
    assert not is_available("some/pickle")


def test_a_model_that_was_never_here_cannot_be_reached(server: HubServer) -> None:
    with pytest.raises(ModelError, match=r"some/model.*cannot be reached.*connection"):
        identify(NAME)
    with pytest.raises(ModelError, match="cannot be reached"):
        opened(NAME)
    assert not is_available(NAME)
    assert hub.download_size(NAME, None) is None


def test_a_template_is_borrowed_from_the_hub(server: HubServer, folders, models) -> None:
    server.add(NAME, folders[0])
    with server.running():
        assert borrow_template(NAME) == models[0].tokenizer.chat_template
    assert not is_available(NAME)


def test_a_run_of_a_hub_model_is_planned_fetched_as_planned_and_planned_without_a_connection(server, folders) -> None:
    commit = server.add(NAME, folders[1])
    options = RunOptions(model=NAME, limit_per_label=8, device="cpu")
    with server.running():
        planned = plan.check(options)
        assert (planned.available, planned.model.revision) == (False, commit)
        assert planned.download_bytes == hub.download_size(NAME, commit) > 100_000
        fetch(planned.model.name, revision=planned.model.revision)
        assert plan.check(options).available
    # By its name, and by the commit that a job is started with.
    for again in (options, planned.options):
        found = plan.check(again)
        assert (found.available, found.model, found.download_bytes) == (True, planned.model, None)


@pytest.mark.slow
def test_the_command_line_fetches_a_model_and_makes_a_run_of_it_without_a_connection(folders, tmp_path: Path) -> None:
    server = HubServer()
    commit = server.add(NAME, folders[0])
    environment = os.environ | server.environment(tmp_path / "hf") | {"REFUSAL_MODELS": str(tmp_path / "models")}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "refusal_core", *arguments]
        return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300, check=False)

    with server.running():
        fetched = command("fetch", NAME)
    assert fetched.returncode == 0, fetched.stderr
    made = command(
        "run", "--model", NAME, "--limit-per-label", "8", "--device", "cpu", "--cache", str(tmp_path / "cache")
    )
    assert made.returncode == 0, made.stderr
    (manifest,) = (tmp_path / "cache").glob("model--pairs--*/manifest.json")
    model = json.loads(manifest.read_text())["model"]
    assert (model["source"], model["name"], model["revision"]) == ("hub", NAME, commit)


OUT = "../../../../../evil"


def lie(server: HubServer, kind: str, files: dict[str, bytes]) -> None:
    """Have a hub deliver something else than it lists, in the one answer that the kind is about."""
    weights = files["model.safetensors"]
    digest = hashlib.sha256(weights).hexdigest()
    send = server._send

    def lying(request, content, headers, status=200, ends=None):
        if kind in ("endless", "endless configuration") and request.command == "GET":
            wanted = f"/blobs/{digest}" if kind == "endless" else "/config.json"
            if request.path.endswith(wanted) and status == 200:
                request.send_response(200)
                request.end_headers()
                try:
                    for _ in range(200):
                        request.wfile.write(bytes(1_000_000))
                except OSError:
                    return
                raise AssertionError("it took 200 MB")
        if kind == "name of a file" and "model.safetensors" in request.path and "X-Linked-ETag" in headers:
            headers = headers | {"X-Linked-ETag": f'"{OUT}"'}
        if kind == "name of a commit" and "X-Repo-Commit" in headers:
            headers = headers | {"X-Repo-Commit": OUT}
        if kind == "elsewhere" and f"/blobs/{digest}" in headers.get("Location", ""):
            headers = headers | {"Location": "file:///etc/passwd"}
        send(request, content, headers, status, ends)

    server._send = lying
    server.blobs[digest] = {
        "other bytes": weights[:-4] + b"evil",
        "too short": weights[:-4],
        "too long": weights + b"evil",
    }.get(kind, weights)
    if kind == "truncated":
        answer = server._answer

        def breaking(request):
            server.breaks_off_after = 10
            answer(request)

        server._answer = breaking


@pytest.mark.parametrize(
    "kind",
    [
        "other bytes",
        "too short",
        "too long",
        "truncated",
        "endless",
        "endless configuration",
        "name of a file",
        "name of a commit",
        "elsewhere",
    ],
)
def test_of_a_lying_hub_nothing_stays_that_can_be_opened_and_an_honest_one_is_fetched_after_it(
    kind, server: HubServer, folders, models, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    files = {path.name: path.read_bytes() for path in folders[0].iterdir() if path.is_file()}
    server.add(NAME, files)
    with server.running():
        honest = server._send, server._answer
        lie(server, kind, files)
        with pytest.raises(RefusalError) as refused:
            fetch(NAME)
        assert "\n" not in str(refused.value)
        assert not is_available(NAME)
        assert not list(tmp_path.rglob("*evil*"))
        server._send, server._answer = honest
        server.breaks_off_after = None
        server.blobs |= {hashlib.sha256(content).hexdigest(): content for content in files.values()}
        fetch(NAME)
    assert torch.equal(logits(opened(NAME)), logits(models[0]))


def test_files_that_are_listed_elsewhere_than_in_the_model_are_not_fetched(
    server: HubServer, folders, tmp_path
) -> None:
    files = {path.name: path.read_bytes() for path in folders[0].iterdir() if path.is_file()}
    server.add(NAME, files | {f"{OUT}.safetensors": b"x", f"tokenizer/{OUT}": b"x", "/evil.safetensors": b"x"})
    with server.running():
        folder = fetch(NAME)
    assert not list(tmp_path.rglob("*evil*"))
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "config.json"}


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", '"../x"', 'W/"../x"', "..", "/etc/x", "..\\x", "C:\\x", "\\\\a\\x", "a\0"]
)
def test_a_name_that_leads_out_of_a_folder_is_told_from_one_that_does_not(name) -> None:
    assert leads_elsewhere(name)
    for harmless in ("", "a" * 64, f'"{"a" * 40}"', 'W/"2a-Kb/9+x="', "a..b", '"abc-12"'):
        assert not leads_elsewhere(harmless)
