"""The families with LayerNorm for `torch_twins`: their options, and their tensors as jaxlab parameters."""

import jax.numpy as jnp
import numpy as np

from jaxlab.models.config import ModelConfig, RopeScaling

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
_SEQUENTIAL = {
    "use_parallel_residual": False,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_new",
    "rope_parameters": {
        "rope_type": "linear",
        "rope_theta": 5000.0,
        "factor": 2.0,
        "partial_rotary_factor": 1.0,
    },
}

LAYER_NORM_CASES = {
    "opt": ("OPT", {"ffn_dim": 48}, {}),
    "opt-350m": (
        "OPT",
        {"ffn_dim": 48, "do_layer_norm_before": False, "word_embed_proj_dim": 16, "enable_bias": False},
        {"post_norm": True, "embed_size": 16, "qkv_bias": False, "o_bias": False, "mlp_bias": False},
    ),
    "gpt2": ("GPT2", {"n_inner": 48}, {}),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": _ROPE}, {"rotary_dim": 4, "parallel_residual": True}),
    "gpt_neox-sequential": (
        "GPTNeoX",
        _SEQUENTIAL,
        {
            "qkv_bias": False,
            "o_bias": False,
            "activation": "gelu_tanh",
            "rope_theta": 5000.0,
            "rope_scaling": RopeScaling("linear", 2.0),
        },
    ),
    "phi": (
        "Phi",
        {"rope_parameters": _ROPE | {"rope_theta": 20_000.0}, "tie_word_embeddings": False},
        {"rotary_dim": 4, "rope_theta": 20_000.0, "parallel_residual": True, "shared_norm": True},
    ),
}
_ACTIVATION = {"opt": "relu", "gpt2": "gelu_tanh", "gpt_neox": "gelu", "phi": "gelu_tanh"}
_FLAGS = {
    "opt": {"learned_positions": True, "position_offset": 2},
    "gpt2": {"learned_positions": True},
    "phi": {"head_bias": True},
}

_TOP = {
    "opt": {
        "embed": "model.decoder.embed_tokens.weight",
        "positions": "model.decoder.embed_positions.weight",
        "project_in": "model.decoder.project_in.weight",
        "project_out": "model.decoder.project_out.weight",
        "final_norm": "model.decoder.final_layer_norm.weight",
        "final_norm_bias": "model.decoder.final_layer_norm.bias",
    },
    "gpt2": {
        "embed": "transformer.wte.weight",
        "positions": "transformer.wpe.weight",
        "final_norm": "transformer.ln_f.weight",
        "final_norm_bias": "transformer.ln_f.bias",
    },
    "gpt_neox": {
        "embed": "gpt_neox.embed_in.weight",
        "final_norm": "gpt_neox.final_layer_norm.weight",
        "final_norm_bias": "gpt_neox.final_layer_norm.bias",
    },
    "phi": {
        "embed": "model.embed_tokens.weight",
        "final_norm": "model.final_layernorm.weight",
        "final_norm_bias": "model.final_layernorm.bias",
        "head_bias": "lm_head.bias",
    },
}
_MODULES = {
    "opt": {
        "attn_norm": "self_attn_layer_norm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "mlp_norm": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    },
    "gpt2": {
        "attn_norm": "ln_1",
        "qkv": "attn.c_attn",
        "o": "attn.c_proj",
        "mlp_norm": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    "gpt_neox": {
        "attn_norm": "input_layernorm",
        "qkv": "attention.query_key_value",
        "o": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    "phi": {
        "attn_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.dense",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
}
_LAYERS = {
    "opt": "model.decoder.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "phi": "model.layers",
}


def layer_norm_cfg(family, config, ours):
    fields = {
        "family": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads if family == "phi" else config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "mlp_size": 48,
        "max_positions": config.max_position_embeddings,
        "norm": "layer",
        "norm_eps": 1e-5,
        "gated_mlp": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "activation": _ACTIVATION[family],
        "tie_embeddings": config.tie_word_embeddings,
        "bos_id": 1,
        "eos_ids": (2,),
        "pad_id": 0,
    }
    return ModelConfig(**(fields | _FLAGS.get(family, {}) | ours))


def layer_norm_params(arrays, config):
    """Tensors by their names in transformers (weights, or their gradients) as parameters."""
    family = config.model_type
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    layers = [
        _layer(arrays, family, f"{_LAYERS[family]}.{i}", heads, head_dim)
        for i in range(config.num_hidden_layers)
    ]
    params = {ours: jnp.asarray(arrays[theirs]) for ours, theirs in _TOP[family].items() if theirs in arrays}
    params["layers"] = {name: jnp.asarray(np.stack([layer[name] for layer in layers])) for name in layers[0]}
    if not config.tie_word_embeddings:
        params["head"] = jnp.asarray(arrays["lm_head.weight"])
    return params


def _layer(arrays, family, prefix, heads, head_dim):
    leaves = {}
    for name, module in _MODULES[family].items():
        for ending, suffix in ((".weight", ""), (".bias", "_bias")):
            if f"{prefix}.{module}{ending}" not in arrays:
                continue
            array = arrays[f"{prefix}.{module}{ending}"]
            if family == "gpt2" and array.ndim == 2:
                array = array.T
            if name != "qkv":
                leaves[name + suffix] = array
                continue
            rows = np.arange(3 * heads * head_dim)
            if family == "gpt2":
                which = rows // (heads * head_dim)
            else:
                which = rows // head_dim % 3  # each head has its q, then its k, then its v
            for number, letter in enumerate("qkv"):
                leaves[letter + suffix] = array[which == number]
    return leaves
