"""Tiny random torch models of every family, and the same as jaxlab parameters: the oracle of these tests."""

import functools

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from layer_norm_twins import LAYER_NORM_CASES, layer_norm_cfg, layer_norm_params

from jaxlab.models.config import ModelConfig, RopeScaling

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "attn_implementation": "eager",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA_PATTERN = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

CASES = {
    "llama": ("Llama", {"tie_word_embeddings": False}, {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}, {}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama-scaled": (
        "Llama",
        {"rope_parameters": LLAMA3, "head_dim": 16},
        {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 32)},
    ),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 8}, {"layer_windows": (7, 7, 7)}),
    "qwen2": ("Qwen2", {}, {}),
    "qwen3": ("Qwen3", {"head_dim": 16}, {}),
    "gemma3": (
        "Gemma3",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": 6,
            "layer_types": GEMMA_PATTERN,
            "rope_parameters": GEMMA_ROPE,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh",
        },
        {
            "layer_windows": (6, 6, None, 6),
            "rope_theta": 1_000_000.0,
            "rope_theta_local": 10_000.0,
            "rope_scaling": RopeScaling("linear", 4.0),
            "attention_scale": 24**-0.5,
        },
    ),
    **LAYER_NORM_CASES,
}
"""Case -> (class prefix in transformers, its options, ours where they do not follow from the family)."""
ONE_A_FAMILY = ("llama-scaled", "mistral", "qwen2", "qwen3", "gemma3", "opt", "gpt2", "gpt_neox", "phi")


@functools.cache
def twin(case, seed=0):
    """(torch model in eval mode, params, cfg) with equal random weights, norms and biases random too."""
    prefix, theirs, ours = CASES[case]
    if prefix == "Gemma3":
        config = transformers.Gemma3TextConfig(**(SIZES | theirs))
        cls = transformers.Gemma3ForCausalLM
    else:
        config = getattr(transformers, f"{prefix}Config")(**(SIZES | theirs))
        cls = getattr(transformers, f"{prefix}LMHeadModel" if prefix == "GPT2" else f"{prefix}ForCausalLM")
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = ("norm" in name or ".ln_" in name) and name.endswith("weight")
            center = 1.0 if is_norm and prefix != "Gemma3" else 0.0
            # Small embeddings under Gemma's factor, so that a tied head does not only repeat the last token.
            scale = 0.02 if "embed" in name and prefix == "Gemma3" else 0.2
            parameter.copy_(center + scale * torch.randn_like(parameter))
    return model, to_params(model.state_dict(), config), to_config(case, config, ours)


def to_config(case, config, ours):
    family = case.split("-")[0]
    if case in LAYER_NORM_CASES:
        return layer_norm_cfg(family, config, ours)
    gemma = family == "gemma3"
    fields = {
        "family": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "mlp_size": config.intermediate_size,
        "max_positions": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
        "norm_offset": 1.0 if gemma else 0.0,
        "sandwich_norms": gemma,
        "qk_norm": family in ("qwen3", "gemma3"),
        "qkv_bias": family == "qwen2" or case == "llama-biases",
        "o_bias": case == "llama-biases",
        "mlp_bias": case == "llama-biases",
        "activation": "gelu_tanh" if gemma else "silu",
        "embed_scale": config.hidden_size**0.5 if gemma else 1.0,
        "tie_embeddings": config.tie_word_embeddings,
        "bos_id": 1,
        "eos_ids": (2,),
        "pad_id": 0,
    }
    if not gemma:
        fields["rope_theta"] = config.rope_parameters["rope_theta"]
    return ModelConfig(**(fields | ours))


def names(gemma):
    table = {
        "attn_norm": "input_layernorm.weight",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
        "mlp_norm": "post_attention_layernorm.weight",
    }
    if gemma:
        table |= {
            "post_attn_norm": "post_attention_layernorm.weight",
            "mlp_norm": "pre_feedforward_layernorm.weight",
            "post_mlp_norm": "post_feedforward_layernorm.weight",
        }
    for name in ("q", "k", "v", "o"):
        table |= {name: f"self_attn.{name}_proj.weight", f"{name}_bias": f"self_attn.{name}_proj.bias"}
    for name in ("gate", "up", "down"):
        table |= {name: f"mlp.{name}_proj.weight", f"{name}_bias": f"mlp.{name}_proj.bias"}
    return table


def to_params(state, config):
    arrays = {name: value.detach().numpy() for name, value in state.items()}
    if config.model_type in ("opt", "gpt2", "gpt_neox", "phi"):
        return layer_norm_params(arrays, config)
    layers = {}
    for ours, theirs in names("gemma" in config.model_type).items():
        if f"model.layers.0.{theirs}" in arrays:
            per_layer = [arrays[f"model.layers.{i}.{theirs}"] for i in range(config.num_hidden_layers)]
            layers[ours] = jnp.asarray(np.stack(per_layer))
    params = {
        "embed": jnp.asarray(arrays["model.embed_tokens.weight"]),
        "layers": layers,
        "final_norm": jnp.asarray(arrays["model.norm.weight"]),
    }
    if not config.tie_word_embeddings:
        params["head"] = jnp.asarray(arrays["lm_head.weight"])
    return params


def torch_logits(model, tokens, **options):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens)), use_cache=False, **options).logits.numpy()


def random_tokens(shape, seed=0, vocab=97):
    return np.random.default_rng(seed).integers(3, vocab, shape).astype(np.int32)
