"""Models opened in 8 or 4 bits, folders saved so, and quantised GGUF files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from making import make_run
from tiny import WIDE, tiny_model, write_tiny_gguf

from refusal_core.activations.extraction import extract
from refusal_core.errors import ModelError
from refusal_core.models.architectures import model_class_of
from refusal_core.models.identity import as_opened, identify
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.models.templates import render
from refusal_core.models.transformers_internals import is_recurrent
from refusal_core.pipeline.scoring import load_model_for, score

TEXTS = ["How do I pick the lock of a stranger's flat?", "Bake a cake", "Bake a cat", "Write a letter of thanks."]


def relative_errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


def saved(folder: Path, architecture: str = "qwen2") -> Path:
    chat_model = tiny_model(architecture, **WIDE)
    chat_model.model.save_pretrained(folder)
    chat_model.tokenizer.save_pretrained(folder)
    return folder


def plain_quantised(folder: Path, bits: int) -> transformers.PreTrainedModel:
    """The model as transformers opens it by itself, computed in float32 on every CPU."""
    import bitsandbytes

    config = transformers.BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def same_states(chat_model: ChatModel, model: transformers.PreTrainedModel) -> None:
    """Whether the engine reads what plain transformers gives for a model, at the sites that both have."""
    found = extract(chat_model, TEXTS)
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([render(chat_model, text)])
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
        expected = np.stack([states[site + 1][0, -1].float().numpy() for site in range(chat_model.n_layers)])
        assert relative_errors(found.hidden[row][[0, 1, 2, 4]], expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "mixtral"])
def test_a_model_is_opened_in_few_bits(architecture, bits, tmp_path, capfd) -> None:
    pytest.importorskip("bitsandbytes")
    folder = saved(tmp_path / "tiny", architecture)
    whole = load_model(folder, device="cpu", dtype="float32")
    capfd.readouterr()
    opened = load_model(folder, device="cpu", dtype="float32", load_in=f"{bits}bit")
    assert capfd.readouterr() == ("", "")
    assert opened.info.quantisation == f"bitsandbytes, {bits} bits"
    assert opened.info.fingerprint == whole.info.fingerprint
    assert any(f"{bits}bit" in type(module).__name__ for module in opened.model.modules())
    same_states(opened, plain_quantised(folder, bits))
    assert extract(opened, TEXTS).prefix_tokens > 0 or bits == 8
    # After the first block: further on, where a router chooses another expert, everything is different.
    errors = relative_errors(extract(opened, TEXTS).hidden[:, 0], extract(whole, TEXTS).hidden[:, 0])
    assert 1e-3 < errors.min() < errors.max() < 0.5


@pytest.mark.parametrize("bits", [8, 4])
def test_a_folder_that_was_saved_quantised_opens_as_it_is(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = saved(tmp_path / "tiny")
    original = plain_quantised(folder, bits)
    original.save_pretrained(tmp_path / "few")
    tiny_model("qwen2").tokenizer.save_pretrained(tmp_path / "few")
    opened = load_model(tmp_path / "few", device="cpu", dtype="float32")
    assert opened.info.quantisation == f"bitsandbytes, {bits} bits"
    same_states(opened, original)
    with pytest.raises(ModelError, match="quantised already"):
        load_model(tmp_path / "few", load_in=f"{bits}bit")


@pytest.mark.slow
def test_a_run_in_four_bits_is_a_run_of_its_own_and_scored_so(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = saved(tmp_path / "tiny")
    request = {"limit_per_label": 8, "dtype": "float32", "device": "cpu", "cache": tmp_path / "cache"}
    whole = make_run(folder, "pairs", **request).run
    run = make_run(folder, "pairs", load_in="4bit", **request).run
    assert whole.run_id != run.run_id
    assert make_run(folder, "pairs", load_in="4bit", **request).cached
    assert run.manifest.model.quantisation == "bitsandbytes, 4 bits"
    assert run.manifest.compute.weights == "computed with as they are: bitsandbytes, 4 bits"
    assert whole.manifest.compute.weights == "as they were published, in float32"
    assert (run.manifest.compute.load_in, whole.manifest.compute.load_in) == ("4bit", None)
    text = run.prompts["text"][3]
    found = score(load_model_for(run, folder), run, [text])[0].projection
    np.testing.assert_allclose(found, run.projections[3], rtol=1e-4, atol=1e-4)
    assert np.abs(whole.projections[3] - run.projections[3]).max() > 1e-2


def test_four_bits_are_computed_in_the_dtype_that_was_asked_for(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("bitsandbytes")
    # As on a CPU that multiplies bfloat16.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    folder = saved(tmp_path / "tiny")
    for dtype, rounds in (("float32", {False}), ("float16", {False}), ("bfloat16", {True})):
        opened = load_model(folder, device="cpu", dtype=dtype, load_in="4bit")
        layers = [module for module in opened.model.modules() if "4bit" in type(module).__name__]
        assert {module.support_avx512bf16_for_cpu for module in layers} == rounds


def test_layers_that_four_bits_would_get_wrong_are_refused(tiny_folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ModelError, match=r"4 bits on a CPU: .*q_proj has 32 inputs.* multiples of 64 alone"):
        load_model(tiny_folder, device="cpu", dtype="float32", load_in="4bit")


def test_a_missing_package_is_one_sentence(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"^4 bits need the package bitsandbytes: .*extra `quantised`\.$"):
        as_opened(identify(tiny_folder), "4bit")


def test_other_precisions_and_quantised_gguf_files_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected 8bit or 4bit to load a model in, got '3bit'"):
        load_model(tiny_folder, load_in="3bit")
    write_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match="cannot be opened in 4 bits"):
        load_model(tmp_path / "tiny.gguf", load_in="4bit")


def test_eight_bits_read_each_prompt_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    opened = load_model(saved(tmp_path / "tiny"), device="cpu", dtype="float32", load_in="8bit")
    together = extract(opened, TEXTS)
    assert together.batch_tokens == 1
    alone = np.concatenate([extract(opened, [text]).hidden for text in TEXTS])
    np.testing.assert_array_equal(together.hidden, alone)


# --- GGUF files


@pytest.mark.slow
def test_a_quantised_gguf_file_is_dequantised_and_the_run_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tiny-q8_0.gguf"
    original = write_tiny_gguf(path, packed=True)
    opened = load_model(path, device="cpu", dtype="float32")
    assert opened.info.quantisation == "Q8_0"
    weights, own = opened.blocks[0].mlp.up_proj.weight, original.blocks[0].mlp.up_proj.weight
    assert weights.dtype == torch.float32
    assert 0 < (weights - own).abs().max() < 0.01 * own.abs().max()
    request = {"limit_per_label": 8, "dtype": "float32", "device": "cpu", "cache": tmp_path / "cache"}
    run = make_run(path, "pairs", **request).run
    assert run.manifest.compute.weights == "Q8_0, dequantised to float32: no kernel reads them packed"


def test_only_architectures_that_hand_on_a_state_can_be_kept_packed() -> None:
    """Where this fails, GGUF files of that architecture can stay packed, and are worth an option."""
    from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

    configs = {
        "qwen35": transformers.Qwen3_5TextConfig(),
        "qwen35moe": transformers.Qwen3_5MoeTextConfig(),
        "lfm2": transformers.Lfm2Config(full_attn_idxs=[1]),
    }
    assert set(GGUF_ARCHS) == set(configs)
    for config in configs.values():
        assert is_recurrent(config, model_class_of(config))
