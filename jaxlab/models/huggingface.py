"""`config.json` of Hugging Face to `ModelConfig` and back.

The families with RMSNorm are here, the others in `layer_norm_families`.

Both ways of writing the rotary parameters are read: `rope_parameters` (transformers 5) and `rope_theta` with
`rope_scaling` (before). Fields that a file leaves out take the values that transformers gives them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.config_fields import GLOBAL, Fields, end_tokens, rotary_fields, rotary_parameters
from jaxlab.models.layer_norm_families import LAYER_NORM_FAMILIES, layer_norm_config, layer_norm_fields

FAMILY_OF = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",  # with a vision tower, of which only the language model is used
} | {name: name for name in LAYER_NORM_FAMILIES}

NOTES = "jaxlab"
"""Key of what this library notes in `config.json`; everybody else ignores it."""

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

_SLIDING, _FULL = "sliding_attention", GLOBAL

# What transformers assumes for absent fields; sizes that every file states have no entry.
_COMMON_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "layer_types": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_QWEN_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": {**_QWEN_DEFAULTS, "head_dim": 128},
    "gemma3": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
}
# Features of a family that the forward pass does not have; they must be absent or off.
_UNSUPPORTED = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")


def config_from_hf(
    config: Mapping[str, Any], *, source: str, generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The model that a `config.json` describes.

    Args:
      config: contents of `config.json`.
      source: name of the file, for error messages.
      generation: contents of `generation_config.json`, whose end-of-sequence tokens come first.

    Returns:
      `ModelConfig`, with `add_bos` False, since that is a matter of the tokenizer.

    Raises:
      InputError: a `model_type`, activation or rope scaling that is not supported, or a field missing or of
        the wrong
        type.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILY_OF:
        raise InputError(
            f"{source}: model_type {model_type!r} is not supported; supported are {', '.join(FAMILY_OF)}"
            " (and t5, by load_t5)"
        )
    family = FAMILY_OF[model_type]
    if family in LAYER_NORM_FAMILIES:
        return layer_norm_config(family, config, source=source, generation=generation)
    text = config.get("text_config", {}) if model_type == "gemma3" else config
    values = Fields({**_COMMON_DEFAULTS, **_DEFAULTS[family], **text}, source)
    for name in _UNSUPPORTED:
        if values.get(name):
            raise InputError(f"{source}: {name} is {values[name]!r}, which is not supported")

    heads, layers, hidden = (
        values.size(name) for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    )
    head_dim = values.size("head_dim", hidden // heads)
    theta, scaling, share = rotary_fields(values)
    if share != 1.0:
        raise InputError(f"{source}: partial_rotary_factor is {share}; only 1.0 is supported")
    bias = bool(values["attention_bias"]) and family != "mistral"
    common = ModelConfig(
        family=family,
        vocab_size=values.size("vocab_size"),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=values.size("num_key_value_heads", heads),
        head_dim=head_dim,
        mlp_size=values.size("intermediate_size"),
        max_positions=values.size("max_position_embeddings"),
        norm_eps=values.number("rms_norm_eps"),
        qk_norm=family in ("qwen3", "gemma3"),
        qkv_bias=bias or family == "qwen2",
        o_bias=bias and family != "qwen2",
        mlp_bias=bool(values["mlp_bias"]) and family == "llama",
        activation=values.choice("hidden_activation" if family == "gemma3" else "hidden_act", _ACTIVATIONS),
        rope_theta=theta,
        rope_scaling=scaling,
        layer_windows=_windows(values, family, layers),
        tie_embeddings=bool(config.get("tie_word_embeddings", values["tie_word_embeddings"])),
        bos_id=values["bos_token_id"],
        eos_ids=end_tokens(config.get("eos_token_id", values["eos_token_id"]), generation),
        pad_id=values["pad_token_id"],
    )
    if family != "gemma3":
        return common
    scalar = values.number("query_pre_attn_scalar")
    return dataclasses.replace(
        common,
        norm_offset=1.0,
        sandwich_norms=True,
        attention_scale=None if scalar == head_dim else scalar**-0.5,
        embed_scale=hidden**0.5,
        rope_theta_local=_local_theta(values),
    )


def config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Contents of the `config.json` that describes `cfg`.

    Raises:
      InputError: the model has a feature that its family does not have in transformers.
    """
    if cfg.family == "t5":
        raise InputError("cfg.family is 't5', one stack of an encoder-decoder: save the whole with save_t5")
    if cfg.family in LAYER_NORM_FAMILIES:
        config = layer_norm_fields(cfg)
        _check_faithful(cfg, config)
        return config
    rope = rotary_parameters(cfg.rope_theta, cfg.rope_scaling)
    gemma = cfg.family == "gemma3"
    config = {
        "architectures": [_ARCHITECTURES[cfg.family]],
        "model_type": "gemma3_text" if gemma else cfg.family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.mlp_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "rope_theta": cfg.rope_theta,  # for readers older than transformers 5, with rope_scaling
        "rope_parameters": rope,
        "attention_bias": cfg.o_bias,
        "bos_token_id": cfg.bos_id,
        "eos_token_id": cfg.eos_ids[0] if len(cfg.eos_ids) == 1 else list(cfg.eos_ids) or None,
        "pad_token_id": cfg.pad_id,
    }
    if cfg.rope_scaling is not None:
        config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    config["hidden_activation" if gemma else "hidden_act"] = {ours: hf for hf, ours in _ACTIVATIONS.items()}[
        cfg.activation
    ]
    config |= _window_fields(cfg)
    if cfg.family == "llama":
        config["mlp_bias"] = cfg.mlp_bias
    if gemma:
        scale = cfg.attention_scale or cfg.head_dim**-0.5
        config["query_pre_attn_scalar"] = round(scale**-2)
        config["rope_local_base_freq"] = cfg.rope_theta_local
        config["rope_parameters"] = {
            _FULL: rope,
            _SLIDING: {"rope_type": "default", "rope_theta": cfg.rope_theta_local},
        }
    _check_faithful(cfg, config)
    return config


def _check_faithful(cfg: ModelConfig, config: dict[str, Any]) -> None:
    """Reading the fields back must give the same model: else the family lacks something that `cfg` has."""
    again = config_from_hf(config, source="config.json")
    for field in dataclasses.fields(ModelConfig):
        wanted, found = getattr(cfg, field.name), getattr(again, field.name)
        if field.name == "attention_scale":
            wanted, found = wanted or cfg.head_dim**-0.5, found or cfg.head_dim**-0.5
        if wanted != found and field.name != "add_bos":
            raise InputError(
                f"cfg.{field.name} is {wanted!r}, which family {cfg.family!r} of transformers cannot express"
                f" (it has {found!r})"
            )


def _local_theta(values: Fields) -> float:
    local = (values.get("rope_parameters") or {}).get(_SLIDING) or {}
    return float(local.get("rope_theta", values["rope_local_base_freq"]))


def _windows(values: Fields, family: str, layers: int) -> tuple[int | None, ...]:
    window = values["sliding_window"]
    if family == "llama" or window is None:
        return (None,) * layers
    if family == "mistral":
        return (window,) * layers
    if family in ("qwen2", "qwen3") and not values["use_sliding_window"]:
        return (None,) * layers
    types = values["layer_types"]
    if types is None and family == "gemma3":
        every = values.size("sliding_window_pattern")
        types = [_FULL if (layer + 1) % every == 0 else _SLIDING for layer in range(layers)]
    elif types is None:
        types = [_SLIDING if layer >= values["max_window_layers"] else _FULL for layer in range(layers)]
    if len(types) != layers or not set(types) <= {_SLIDING, _FULL}:
        raise InputError(
            f"{values.source}: layer_types is {types}, expected {layers} times {_SLIDING!r} or {_FULL!r}"
        )
    return tuple(window if kind == _SLIDING else None for kind in types)


def _window_fields(cfg: ModelConfig) -> dict[str, Any]:
    windows = {window for window in cfg.layer_windows if window is not None}
    if len(windows) > 1:
        raise InputError(
            f"cfg.layer_windows has windows of {sorted(windows)}; transformers has one size for all layers"
        )
    window = windows.pop() if windows else None
    if cfg.family == "llama":
        return {}
    if cfg.family == "mistral":
        return {"sliding_window": window}
    types = [_FULL if window is None else _SLIDING for window in cfg.layer_windows]
    if cfg.family == "gemma3":
        return {"layer_types": types, "sliding_window": window or cfg.max_positions}
    return {"layer_types": types, "sliding_window": window, "use_sliding_window": window is not None}
