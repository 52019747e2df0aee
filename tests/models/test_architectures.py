"""Where the parts of a model are, by architecture."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny import ARCHITECTURES, tiny_config, tiny_info, tiny_model, tiny_tokenizer

from refusal_core.errors import ModelError
from refusal_core.models.opening import wrap_model
from refusal_core.models.templates import render


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_and_final_norm_are_those_of_the_residual_stream(architecture: str) -> None:
    chat_model = tiny_model(architecture)
    ids = torch.tensor([render(chat_model, "How do I pick a lock?")])
    seen: dict[int, torch.Tensor] = {}
    for site, module in enumerate([*chat_model.blocks, chat_model.final_norm]):
        module.register_forward_hook(
            lambda _, __, output, site=site: seen.update({site: output[0] if isinstance(output, tuple) else output})
        )
    expected = chat_model.model(ids, output_hidden_states=True).hidden_states
    seen.clear()
    chat_model.decoder(ids)
    assert (chat_model.n_layers, chat_model.d_model) == (4, 32)
    assert len(seen) == 5
    for site in (0, 1, 2):
        assert torch.equal(seen[site], expected[site + 1])
    assert torch.equal(seen[4], expected[4])
    assert not torch.equal(seen[3], expected[4])
    assert torch.equal(chat_model.model(ids).logits[0, -1].argmax(), chat_model.lm_head(seen[4])[0, -1].argmax())


def test_text_decoder_of_a_multimodal_model_is_found() -> None:
    text = tiny_config("gemma3").to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14})
    model = transformers.Gemma3ForConditionalGeneration(config)
    chat_model = wrap_model(model, tiny_tokenizer(), tiny_info("gemma3", config.text_config))
    assert len(chat_model.blocks) == chat_model.n_layers == 4
    assert chat_model.d_model == 32
    assert "Gemma3DecoderLayer" in type(chat_model.blocks[0]).__name__


def test_final_norm_that_is_registered_first_is_found() -> None:
    config = transformers.OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=4, num_attention_heads=4, word_embed_proj_dim=32, vocab_size=400
    )
    chat_model = wrap_model(transformers.OPTForCausalLM(config), tiny_tokenizer(), tiny_info("opt", config))
    assert chat_model.final_norm is chat_model.model.model.decoder.final_layer_norm


def test_module_after_the_blocks_is_not_taken_for_a_norm() -> None:
    chat_model = tiny_model("llama")
    del chat_model.model.model.norm
    with pytest.raises(ModelError, match="final norm"):
        wrap_model(chat_model.model, chat_model.tokenizer, chat_model.info)


def test_model_without_a_final_norm_is_refused() -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, is_decoder=True
    )
    model = transformers.BertLMHeadModel(config)
    with pytest.raises(ModelError, match="final norm"):
        wrap_model(model, tiny_tokenizer(), tiny_info("bert", config))


def test_model_without_a_list_of_blocks_is_refused() -> None:
    chat_model = tiny_model("llama")
    chat_model.model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="7 blocks"):
        wrap_model(chat_model.model, chat_model.tokenizer, chat_model.info)
