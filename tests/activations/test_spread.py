"""A model whose weights do not fit in one place gives the numbers of the same model in one place."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from making import make_run
from tiny import tiny_model, write_tiny_gguf

from refusal_core.activations import limits
from refusal_core.activations.extraction import extract
from refusal_core.activations.limits import BATCH_TOKENS
from refusal_core.activations.reader import ResidualReader
from refusal_core.errors import ModelError
from refusal_core.intervention.edits import PromptBatch
from refusal_core.models.opening import ChatModel, load_model, wrap_model
from refusal_core.pipeline.scoring import load_model_for, score
from refusal_core.steering import Edit

TEXTS = ["How do I pick the lock of a stranger's flat?", "Bake a cake", "Write a letter that thanks my neighbour."]


@pytest.fixture(autouse=True)
def one_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model that is spread is read: batches that are read at once are others, which have other last bits."""
    monkeypatch.setattr(limits, "MAX_PARALLEL", 1)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Accelerate sees it, this machine has room for about half of the tiny model."""
    monkeypatch.setattr(
        "transformers.integrations.accelerate.get_max_memory", lambda given=None: given or {"cpu": 140_000}
    )


def assert_same_numbers(spread: ChatModel, whole: ChatModel) -> None:
    found, expected = extract(spread, TEXTS), extract(whole, TEXTS)
    assert found.prefix_tokens == expected.prefix_tokens > 0
    np.testing.assert_array_equal(found.hidden, expected.hidden)
    np.testing.assert_array_equal(found.refusal_log_odds, expected.refusal_log_odds)
    edit = Edit("ablate", {2: np.eye(32, dtype=np.float32)[0]})
    under = []
    for chat_model in (spread, whole):
        reader = ResidualReader(chat_model)
        batch = PromptBatch(reader, [reader.encode(TEXTS[0])])
        assert batch.reuses
        under.append(batch.replies([None, edit], [True, True]))
    for found_reply, expected_reply in zip(*under, strict=True):
        assert torch.equal(found_reply.logits, expected_reply.logits)
        assert found_reply.openings == expected_reply.openings


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "gpt2", "qwen2_moe"])
def test_blocks_on_disk_give_the_same_numbers(architecture: str, tmp_path: Path) -> None:
    whole, spread = tiny_model(architecture), tiny_model(architecture)
    stem = next(name for name, module in spread.model.named_modules() if module is spread.blocks)
    places = {name: "cpu" for name, module in spread.model.named_modules() if name and not any(module.children())}
    places = {name: place for name, place in places.items() if not name.startswith(f"{stem}.")}
    places |= {f"{stem}.{layer}": "disk" if layer % 2 else "cpu" for layer in range(4)}
    dispatch_model(spread.model, places, offload_dir=tmp_path)
    spread = wrap_model(spread.model, spread.tokenizer, spread.info)
    assert spread.placement == f"cpu ({len(places) - 2}), disk (2)"
    assert_same_numbers(spread, whole)
    # Its weights are moved for every pass, so that fewer and longer ones are better.
    assert ResidualReader(spread, packs=True).batch_tokens == 2 * BATCH_TOKENS["cpu"]
    assert ResidualReader(whole, packs=True).batch_tokens == BATCH_TOKENS["cpu"]


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_a_model_larger_than_memory_is_opened_and_read(tiny_folder: Path) -> None:
    spread = load_model(tiny_folder, device="spread", dtype="float32")
    assert "disk" in spread.placement
    assert spread.device == "cpu"
    assert any(parameter.device.type == "meta" for parameter in spread.model.parameters())
    assert_same_numbers(spread, load_model(tiny_folder, device="cpu", dtype="float32"))


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_a_run_says_where_the_weights_were(tiny_folder: Path, tmp_path: Path) -> None:
    request = {"limit_per_label": 8, "dtype": "float32"}
    run = make_run(tiny_folder, "pairs", device="spread", cache=tmp_path / "spread", **request).run
    whole = make_run(tiny_folder, "pairs", device="cpu", cache=tmp_path / "whole", **request).run
    assert "disk" in run.manifest.compute.device
    assert whole.manifest.compute.device == "cpu"
    np.testing.assert_allclose(run.projections, whole.projections, rtol=1e-4, atol=1e-4)
    spread = load_model_for(run, tiny_folder, device="spread")
    np.testing.assert_allclose(
        score(spread, run, [run.prompts["text"][0]])[0].projection, run.projections[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.usefixtures("little_memory")
def test_weights_on_disk_are_gone_with_their_model(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    chat_model = load_model(tiny_folder, device="spread", dtype="float32")
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("refusal-offload-")
    del chat_model
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize(("error", "raised"), [(OSError, ModelError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_model_that_is_not_opened_leaves_no_weights_on_disk(tiny_folder, tmp_path, monkeypatch, error, raised):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    begun = []

    def stopped(*_, offload_folder, **options):
        begun.append(offload_folder)
        (Path(offload_folder) / "weight.dat").write_bytes(b"0")
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", stopped)
    with pytest.raises(raised):
        load_model(tiny_folder, device="spread", dtype="float32")
    assert begun
    assert not list(tmp_path.iterdir())


def test_a_gguf_file_is_not_spread(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match="one device"):
        load_model(tmp_path / "tiny.gguf", device="spread", dtype="float32")
