"""`config.json` of OPT, GPT-2, GPT-NeoX (Pythia), Phi and BERT to `ModelConfig` and back.

These have LayerNorm, biases and an MLP without a gate. References: OPT arXiv:2205.01068, GPT-2 (Radford et al. 2019),
GPT-NeoX arXiv:2204.06745, Phi arXiv:2309.05463, BERT arXiv:1810.04805.
"""

from collections.abc import Mapping
from typing import Any

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.config_fields import Fields, end_tokens, rotary_fields, rotary_parameters

LAYER_NORM_FAMILIES = ("opt", "gpt2", "gpt_neox", "phi", "bert")

_ARCHITECTURES = {
    "opt": "OPTForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "phi": "PhiForCausalLM",
    "bert": "BertModel",
}
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_OPT_OFFSET = 2

# What transformers assumes for absent fields.
_COMMON_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "num_key_value_heads": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "opt": {
        "vocab_size": 50_272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "num_attention_heads": 12,
        "activation_function": "relu",
        "enable_bias": True,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "gpt2": {
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 50_256,
        "eos_token_id": 50_256,
    },
    "gpt_neox": {
        "vocab_size": 50_432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24_576,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10_000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "phi": {
        "vocab_size": 51_200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "partial_rotary_factor": 0.5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "bert": {
        "vocab_size": 30_522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    },
}
# The names under which a family has what the others call alike.
_RENAMED = {
    "opt": {"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    "gpt2": {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "layer_norm_eps": "layer_norm_epsilon",
    },
}


def layer_norm_config(
    family: str, config: Mapping[str, Any], *, source: str, generation: Mapping[str, Any] | None
) -> ModelConfig:
    """As `config_from_hf`, for one of `LAYER_NORM_FAMILIES`."""
    values = Fields({**_COMMON_DEFAULTS, **_DEFAULTS[family], **config}, source)
    renamed = _RENAMED.get(family, {})

    def own(field: str) -> str:
        return renamed.get(field, field)

    hidden, heads = values.size(own("hidden_size")), values.size(own("num_attention_heads"))
    if hidden % heads:
        raise InputError(
            f"{source}: {own('hidden_size')} is {hidden}; it must be a multiple of "
            f"{own('num_attention_heads')}, {heads}"
        )
    mlp_size = values.size(own("intermediate_size"), 4 * hidden if family == "gpt2" else None)
    flags: dict[str, Any] = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
    if family == "opt":
        before = bool(values["do_layer_norm_before"])
        values.require(
            layer_norm_elementwise_affine=True, **({"_remove_final_layer_norm": False} if before else {})
        )
        width = values.size("word_embed_proj_dim", hidden)
        flags = dict.fromkeys(flags, bool(values["enable_bias"]))
        flags |= {"learned_positions": True, "position_offset": _OPT_OFFSET, "post_norm": not before}
        flags["embed_size"] = None if width == hidden else width
    elif family == "gpt2":
        values.require(
            scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
        )
        flags["learned_positions"] = True
    elif family == "bert":
        values.require(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
        flags |= {"learned_positions": True, "post_norm": True, "embed_norm": True, "causal": False}
        flags["token_types"] = values.size("type_vocab_size")
    else:
        flags |= _rotary(family, values, hidden // heads)
    if family == "gpt_neox":
        bias = bool(values["attention_bias"])
        flags |= {
            "qkv_bias": bias,
            "o_bias": bias,
            "parallel_residual": bool(values["use_parallel_residual"]),
        }
    if family == "phi":
        values.require(qk_layernorm=False)
        flags |= {"parallel_residual": True, "shared_norm": True, "head_bias": True}
    return ModelConfig(
        family=family,
        vocab_size=values.size("vocab_size"),
        hidden_size=hidden,
        num_layers=values.size(own("num_hidden_layers")),
        num_heads=heads,
        num_kv_heads=values.size("num_key_value_heads", heads) if family == "phi" else heads,
        head_dim=hidden // heads,
        mlp_size=mlp_size,
        max_positions=values.size(own("max_position_embeddings")),
        norm="layer",
        norm_eps=values.number(own("layer_norm_eps")),
        gated_mlp=False,
        activation=values.choice(own("hidden_act"), _ACTIVATIONS),
        tie_embeddings=family == "bert" or bool(values["tie_word_embeddings"]),
        bos_id=values["bos_token_id"],
        eos_ids=end_tokens(values["eos_token_id"], generation),
        pad_id=values["pad_token_id"],
        **flags,
    )


def layer_norm_fields(cfg: ModelConfig) -> dict[str, Any]:
    """As `config_to_hf`, for one of `LAYER_NORM_FAMILIES`, without its check."""
    activations = {ours: hf for hf, ours in reversed(_ACTIVATIONS.items()) if hf != "gelu_fast"}
    fields: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[cfg.family]],
        "model_type": cfg.family,
        "vocab_size": cfg.vocab_size,
        "tie_word_embeddings": cfg.tie_embeddings,
        "bos_token_id": cfg.bos_id,
        "eos_token_id": cfg.eos_ids[0] if len(cfg.eos_ids) == 1 else list(cfg.eos_ids) or None,
        "pad_token_id": cfg.pad_id,
    }
    alike = {
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_size,
        "max_position_embeddings": cfg.max_positions,
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": activations.get(cfg.activation),
    }
    renamed = _RENAMED.get(cfg.family, {})
    fields |= {renamed.get(name, name): value for name, value in alike.items()}
    if cfg.family == "opt":
        del fields["layer_norm_eps"]  # OPT has no such field: it is always 1e-5
        fields |= {
            "do_layer_norm_before": not cfg.post_norm,
            "word_embed_proj_dim": cfg.embed_size or cfg.hidden_size,
            "enable_bias": cfg.mlp_bias,
        }
    if cfg.family == "bert":
        fields["type_vocab_size"] = cfg.token_types
    if cfg.family in ("gpt_neox", "phi"):
        share = cfg.rotated / cfg.head_dim
        rope = rotary_parameters(cfg.rope_theta, cfg.rope_scaling)
        fields["rope_parameters"] = rope | {"partial_rotary_factor": share}
        if cfg.rope_scaling is not None:
            fields["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
        # For readers older than transformers 5.
        old = (
            ("rotary_pct", "rotary_emb_base")
            if cfg.family == "gpt_neox"
            else ("partial_rotary_factor", "rope_theta")
        )
        fields |= dict(zip(old, (share, cfg.rope_theta), strict=True))
    if cfg.family == "gpt_neox":
        fields |= {"use_parallel_residual": cfg.parallel_residual, "attention_bias": cfg.o_bias}
    if cfg.family == "phi":
        fields["num_key_value_heads"] = cfg.num_kv_heads
    return fields


def _rotary(family: str, values: Fields, head_dim: int) -> dict[str, Any]:
    if family == "gpt_neox":
        old = {"rope_theta": values["rotary_emb_base"], "partial_rotary_factor": values["rotary_pct"]}
        values = Fields({**values, **old}, values.source)
    theta, scaling, share = rotary_fields(values)
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": int(head_dim * share)}
