"""Tiny random models of many architectures, with a tokenizer and chat template, for tests in seconds.

chat_model = tiny_model("qwen2")          # 4 blocks, width 32, float32, on the CPU, the same every time
tokenizer = tiny_tokenizer(GEMMA_LIKE)    # byte-level BPE; CHATML, GEMMA_LIKE, LLAMA_LIKE or None
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from refusal_core.models.identity import ModelInfo
from refusal_core.models.opening import ChatModel, wrap_model

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a tiny model.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_LIKE = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
LLAMA_LIKE = (
    "{{ bos_token }}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_TRAINING_TEXT = (
    "How do I pick the lock of a stranger's flat? How do I pick the right lock for my flat?",
    "Write a letter that threatens my neighbour. Write a letter that thanks my neighbour.",
    "Explain how to make a cake without eggs, and how to tell whether it is done.",
    "system user assistant model You are a helpful assistant.",
)
_SHARED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    # Wide enough that blocks, attention and positions all show in the hidden states.
    "initializer_range": 0.2,
}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""As narrow as a model can be read in 4 bits on every CPU."""
_GROUPED: dict[str, Any] = _SHARED | {"num_key_value_heads": 2, "head_dim": 8}
_TWO_HEADS = {"num_key_value_heads": 2}
# Shorter than the template's beginning, and so than every prompt.
_SLIDING = {"sliding_window": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", _GROUPED | _SLIDING),
    "qwen2": ("Qwen2Config", _SHARED | _TWO_HEADS),
    "qwen2_windows": (
        "Qwen2Config",
        _SHARED | _TWO_HEADS | _SLIDING | {"use_sliding_window": True, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", _GROUPED),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        _SHARED | _TWO_HEADS | _EXPERTS | {"shared_expert_intermediate_size": 32},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", _GROUPED | _EXPERTS),
    "mixtral": ("MixtralConfig", _GROUPED | _SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("GemmaConfig", _GROUPED),
    "gemma2": ("Gemma2Config", _GROUPED | _SLIDING),
    "gemma3": ("Gemma3TextConfig", _GROUPED | _SLIDING),
    "phi": ("PhiConfig", _SHARED),
    "phi3": ("Phi3Config", _SHARED | _TWO_HEADS | _SLIDING),
    "olmo2": ("Olmo2Config", _SHARED | _TWO_HEADS),
    "olmo3": ("Olmo3Config", _SHARED | _TWO_HEADS | _SLIDING),
    "granite": ("GraniteConfig", _SHARED | _TWO_HEADS | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "cohere": ("CohereConfig", _SHARED | _TWO_HEADS),
    "cohere2": ("Cohere2Config", _GROUPED | _SLIDING),
    "smollm3": ("SmolLM3Config", _SHARED | _TWO_HEADS),
    "gpt_oss": ("GptOssConfig", _GROUPED | _SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm4": ("Glm4Config", _GROUPED),
    "deepseek_v3": ("DeepseekV3Config", _SHARED | _LATENT),
    "stablelm": ("StableLmConfig", _SHARED | _TWO_HEADS),
    "gpt_neox": ("GPTNeoXConfig", _SHARED),
    "gpt_neox_serial": ("GPTNeoXConfig", _SHARED | {"use_parallel_residual": False}),
    "gpt2": ("GPT2Config", _SHARED),
    "opt": ("OPTConfig", _SHARED | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "bloom": ("BloomConfig", _SHARED),
    "falcon": ("FalconConfig", _SHARED),
    "falcon_alibi": ("FalconConfig", _SHARED | {"alibi": True, "multi_query": False}),
    "falcon_grouped": ("FalconConfig", _SHARED | {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
ARCHITECTURES = tuple(_CONFIGS)
_LINEAR: dict[str, Any] = _GROUPED | {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_MAMBA: dict[str, Any] = (
    _SHARED
    | _TWO_HEADS
    | {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    }
)
_SHARED_EXPERT = _EXPERTS | {"shared_expert_intermediate_size": 32}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
_STATES_AND_ATTENTION = {"layer_types": ["linear_attention", "full_attention"] * 2}
_HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3NextConfig", _LINEAR | _SHARED_EXPERT),
    "qwen3_5": ("Qwen3_5TextConfig", _LINEAR),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", _LINEAR | _SHARED_EXPERT),
    "lfm2": ("Lfm2Config", _SHARED | _TWO_HEADS | _CONVOLUTIONS),
    "lfm2_moe": ("Lfm2MoeConfig", _SHARED | _TWO_HEADS | _EXPERTS | _CONVOLUTIONS | {"num_dense_layers": 1}),
    "granite_hybrid": (
        "GraniteMoeHybridConfig",
        _MAMBA | _STATES_AND_ATTENTION | {"num_local_experts": 4, "shared_intermediate_size": 64},
    ),
    "jamba": (
        "JambaConfig",
        _SHARED
        | _TWO_HEADS
        | {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
    "bamba": ("BambaConfig", _MAMBA | {"attn_layer_indices": [1, 3]}),
    "minimax": (
        "MiniMaxConfig",
        _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 16} | _STATES_AND_ATTENTION,
    ),
    "falcon_h1": ("FalconH1Config", _MAMBA | {"mamba_d_ssm": 64, "head_dim": 8}),
    "olmo_hybrid": ("OlmoHybridConfig", _LINEAR),
    "nemotron_h": (
        "NemotronHConfig",
        _GROUPED
        | {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16}
        | {"layers_block_type": ["mamba", "moe", "attention", "mlp"]},
    ),
}
"""Models of which some layers, or a part of each, hand a state on from token to token."""
HYBRIDS = tuple(_HYBRIDS)
_CONFIGS |= _HYBRIDS
_STATE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "state_size": 8, "initializer_range": 0.2}
_CONFIGS["mamba"] = ("MambaConfig", _STATE)
_CONFIGS["falcon_mamba"] = ("FalconMambaConfig", _STATE)
_CONFIGS["mamba2"] = ("Mamba2Config", _STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16})
_CONFIGS["rwkv"] = (
    "RwkvConfig",
    {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 4, "rescale_every": 2, "context_length": 512},
)
_CONFIGS["xlstm"] = (
    "xLSTMConfig",
    {"hidden_size": 32, "num_hidden_layers": 4, "num_heads": 4, "chunk_size": 16, "autocast_kernel_dtype": "float32"},
)
_CONFIGS["recurrent_gemma"] = ("RecurrentGemmaConfig", _GROUPED | {"lru_width": 32, "attention_window_size": 64})
_CONFIGS["gemma3n"] = ("Gemma3nTextConfig", _GROUPED | {"laurel_rank": 4, "activation_sparsity_pattern": None})


def tiny_model(architecture: str = "llama", template: str | None = CHATML, **overrides: Any) -> ChatModel:
    """A random ChatModel of 4 blocks and width 32 in float32; `overrides` go into its configuration.

    The same arguments give the same weights; the global random state is left alone.
    """
    tokenizer = tiny_tokenizer(template)
    model = _random_model(tiny_config(architecture, **overrides))
    return wrap_model(model, tokenizer, tiny_info(architecture, model.config))


def tiny_config(architecture: str, **overrides: Any) -> transformers.PreTrainedConfig:
    """The configuration of a tiny model, with the tiny tokenizer's vocabulary."""
    class_name, settings = _CONFIGS[architecture]
    tokenizer = tiny_tokenizer()
    tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    return getattr(transformers, class_name)(**(settings | tokens | overrides))


def tiny_info(architecture: str, config: transformers.PreTrainedConfig) -> ModelInfo:
    """What `identify` would say of a tiny model, were it in a folder."""
    return ModelInfo(
        name=f"tiny-{architecture}",
        source="folder",
        revision=None,
        sha256="0" * 64,
        architecture=type(config).__name__.replace("Config", "ForCausalLM"),
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        quantisation=None,
        licence=None,
    )


def tiny_tokenizer(template: str | None = CHATML, adds_bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for any text; with `adds_bos` it begins plain text with a BOS token."""
    backend = Tokenizer.from_str(_trained_backend())
    if adds_bos:
        bos = SPECIAL_TOKENS[0]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


@lru_cache(maxsize=1)
def _trained_backend() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_TRAINING_TEXT, trainer)
    return backend.to_str()


def _random_model(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


PLANTED_LAYER, READING_LAYER = 2, 4
PLANTED_SIGN = "!"


def planted_model(refusal: str = "I cannot", answer: str = "Sure", template: str = CHATML) -> ChatModel:
    """A Llama of 6 blocks whose weights are set by hand: it refuses if and only if one direction is strong enough.

    A prompt with :data:`PLANTED_SIGN` in it moves the residual stream along one dimension after block
    :data:`PLANTED_LAYER`, at every later token. Block :data:`READING_LAYER` holds that against a threshold; above it
    the reply is `refusal`, below it `answer`; no token may be in the two together twice. Block 0 spreads what tokens
    look like, which says nothing of refusing but tells prompts with the sign from others.
    """
    harm, noticed, constant, refuse, chain, looks = 0, 1, 2, 3, 4, range(32, 256)
    tokenizer = tiny_tokenizer(template)
    config = tiny_config(
        "llama",
        # Wide, so that a random direction is nearly orthogonal to the planted one.
        hidden_size=256,
        head_dim=64,
        num_hidden_layers=6,
        num_key_value_heads=4,
        mlp_bias=True,
        tie_word_embeddings=False,
    )
    model = _random_model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "norm" in name else 0.0)
        embed, head, blocks = model.model.embed_tokens.weight, model.lm_head.weight, model.model.layers
        # Large and the same for all tokens, so that the norms scale every state alike.
        embed[:, constant] = 28.0
        embed[:, looks] = 0.5 * torch.randn(len(embed), len(looks), generator=generator)
        embed[tokenizer.encode(PLANTED_SIGN)[0], harm] = 40.0
        # With queries and keys of 0 every token attends to all before it alike.
        for dimension in looks:
            blocks[0].self_attn.v_proj.weight[dimension, dimension] = 1.0
            blocks[0].self_attn.o_proj.weight[dimension, dimension] = 8.0
        blocks[PLANTED_LAYER].self_attn.v_proj.weight[0, harm] = 1.0
        blocks[PLANTED_LAYER].self_attn.o_proj.weight[noticed, 0] = 30.0
        mlp = blocks[READING_LAYER].mlp
        mlp.gate_proj.weight[0, noticed], mlp.gate_proj.bias[0] = 8.0, -7.0
        mlp.up_proj.bias[0] = 1.0
        mlp.down_proj.weight[refuse, 0] = 1.0
        # Either reply is a chain of tokens, each of which has a dimension of its own that calls for the next.
        for reply, caller, strength in ((refusal, refuse, 2.0), (answer, constant, 0.35)):
            for token in [*tokenizer.encode(reply), tokenizer.eos_token_id]:
                head[token, caller] = strength
                embed[token, chain], caller, strength, chain = 30.0, chain, 2.0, chain + 1
    return wrap_model(model, tokenizer, tiny_info("llama", config))


REFUSED_SIGN = "#"


def planted_judge() -> ChatModel:
    """The planted model, refusing prompts with :data:`REFUSED_SIGN` in them, whatever :data:`PLANTED_SIGN` says.

    What it notices of the latter moves its answer to the question whether a request is harmful towards Yes, and to the
    question whether it is harmless towards No. So the directions of harm and of refusal are two, and each causes one
    thing.
    """
    chat_model = planted_model()
    noticed, declined, declining, asks, asked, answer = 1, *range(20, 25)
    tokenizer, model = chat_model.tokenizer, chat_model.model
    first, read = model.model.layers[PLANTED_LAYER].self_attn, model.model.layers[READING_LAYER].mlp
    embed, head = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        embed[tokenizer.encode(REFUSED_SIGN)[0], declined] = 40.0
        for token in {*tokenizer.encode("harmful")} - {*tokenizer.encode("harmless")}:
            embed[token, asks] = 40.0
        for value, (sign, written) in enumerate(((declined, declining), (asks, asked)), start=1):
            first.v_proj.weight[value, sign] = 1.0
            first.o_proj.weight[written, value] = 30.0
        read.gate_proj.weight[0, noticed], read.gate_proj.weight[0, declining] = 0.0, 8.0
        read.gate_proj.weight[1, noticed] = 8.0
        read.up_proj.weight[1, asked], read.up_proj.bias[1] = 2.0, -1.0
        # Little, so that the final norm scales what calls for the reply as before.
        read.down_proj.weight[answer, 1] = 0.02
        for token, sign in (("Y", 5.0), ("y", 5.0), ("N", -5.0), ("n", -5.0)):
            head[tokenizer.encode(token)[0], answer] = sign
    return chat_model


def write_tiny_gguf(path: Path, packed: bool = False) -> ChatModel:
    """Write a tiny Qwen2 model as a GGUF file and return the model; `packed` quantises its matrices to Q8_0."""
    chat_model = tiny_model("qwen2", tie_word_embeddings=False)
    config, tokenizer = chat_model.model.config, chat_model.tokenizer
    writer = GGUFWriter(path, "qwen2")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if packed else LlamaFileType.ALL_F32)
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHATML)
    for name, weights in chat_model.model.state_dict().items():
        if packed and weights.ndim == 2:
            blocks = quantize(weights.numpy(), GGMLQuantizationType.Q8_0)
            writer.add_tensor(_gguf_tensor_name(name), blocks, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(_gguf_tensor_name(name), weights.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return chat_model


def _gguf_tensor_name(name: str) -> str:
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers", "blk"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ):
        name = name.replace(ours, theirs)
    return name
