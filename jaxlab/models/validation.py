"""What the forward pass expects, checked where users come in, so that a mistake is named, not broadcast."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxlab.errors import InputError
from jaxlab.models.cache import Cache, cache_shape
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import is_linear_leaf

_Shapes = dict[str, tuple[int, ...]]


def require_gated_blocks(cfg: ModelConfig, what: str) -> None:
    """For what knows the blocks of Llama and its kin alone.

    Args:
      cfg: static.
      what: needs such blocks, for the message.

    Raises:
      InputError: the blocks have no gate, another norm than RMSNorm, or another order of norms and branches.
    """
    plain = not (cfg.post_norm or cfg.parallel_residual) and cfg.causal and cfg.norm == "rms"
    if not (plain and cfg.gated_mlp):
        raise InputError(
            f"the model is of family {cfg.family!r}; {what} needs blocks with RMSNorm and a gated MLP, as those of "
            "llama, mistral, qwen2, qwen3 and gemma3"
        )


def top_shapes(cfg: ModelConfig) -> _Shapes:
    """Name and shape of every leaf outside of the layers."""
    width = cfg.embed_size or cfg.hidden_size
    vocabulary = (cfg.vocab_size, width)
    shapes: _Shapes = {"embed": vocabulary}
    if cfg.learned_positions:
        shapes["positions"] = (cfg.max_positions + cfg.position_offset, cfg.hidden_size)
    if cfg.token_types:
        shapes["token_types"] = (cfg.token_types, cfg.hidden_size)
    if cfg.embed_norm:
        shapes |= _norm("embed_norm", cfg)
    if cfg.embed_size is not None:
        shapes |= {"project_in": (cfg.hidden_size, width), "project_out": (width, cfg.hidden_size)}
    if not cfg.post_norm:
        shapes |= _norm("final_norm", cfg)
    if not cfg.tie_embeddings:
        shapes["head"] = vocabulary
    return shapes | {"head_bias": (cfg.vocab_size,)} if cfg.head_bias else shapes


def layer_shapes(cfg: ModelConfig, layer: int = 0) -> _Shapes:
    """Name and shape of every leaf of one layer; which one matters only under `cfg.layer_widths`."""
    hidden = cfg.hidden_size
    mlp, kv_heads = cfg.widths(layer)
    kv = kv_heads * cfg.head_dim
    heads = kv * (cfg.num_heads // cfg.num_kv_heads)
    shapes: _Shapes = _norm("attn_norm", cfg) | {
        "q": (heads, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, heads),
    }
    if not cfg.shared_norm:
        shapes |= _norm("mlp_norm", cfg)
    if cfg.gated_mlp:
        shapes["gate"] = (mlp, hidden)
    shapes |= {"up": (mlp, hidden), "down": (hidden, mlp)}
    if cfg.qkv_bias:
        shapes |= {"q_bias": (heads,), "k_bias": (kv,), "v_bias": (kv,)}
    if cfg.o_bias:
        shapes |= {"o_bias": (hidden,)}
    if cfg.mlp_bias:
        shapes |= {"gate_bias": (mlp,)} if cfg.gated_mlp else {}
        shapes |= {"up_bias": (mlp,), "down_bias": (hidden,)}
    if cfg.qk_norm:
        shapes |= {"q_norm": (cfg.head_dim,), "k_norm": (cfg.head_dim,)}
    if cfg.sandwich_norms:
        shapes |= _norm("post_attn_norm", cfg) | _norm("post_mlp_norm", cfg)
    return shapes


def _norm(name: str, cfg: ModelConfig) -> _Shapes:
    width = (cfg.hidden_size,)
    return {name: width, f"{name}_bias": width} if cfg.norm == "layer" else {name: width}


def check_params(params: dict[str, Any], cfg: ModelConfig) -> None:
    """Compare names and shapes of all leaves with the configuration.

    Leaves of registered classes are taken as they are. Where `cfg.layer_widths` is None, the widths inside a
    block (heads, MLP) of a tuple of layers may differ from the configuration, so that a model and its pruned
    versions share one; what touches the residual stream may not.

    Raises:
        InputError: a leaf is missing, unknown, or of a wrong shape.
    """
    top = top_shapes(cfg)
    _check_names("params", params, [*top, "layers"])
    for name, shape in top.items():
        _check_shape(f"params[{name!r}]", params[name], shape)

    layers, shapes = params["layers"], layer_shapes(cfg)
    if not isinstance(layers, tuple):
        if cfg.layer_widths is not None:
            raise InputError(
                "params['layers'] is stacked, but cfg.layer_widths gives each layer its own widths: "
                "make it a tuple of layers"
            )
        check_leaves("params['layers']", layers, stacked_shapes(shapes, cfg.num_layers))
        return
    if len(layers) != cfg.num_layers:
        raise InputError(f"params['layers'] has {len(layers)} layers; cfg.num_layers is {cfg.num_layers}")
    for i, layer in enumerate(layers):
        _check_names(f"params['layers'][{i}]", layer, list(shapes))
        for name, shape in layer_shapes(cfg, i).items():
            inner = [axis for axis, of in enumerate(_AXES.get(name, ())) if of == "inner"]
            free = inner if cfg.layer_widths is None else []
            _check_shape(f"params['layers'][{i}][{name!r}]", layer[name], shape, free)


def stacked_shapes(shapes: _Shapes, layers: int) -> _Shapes:
    """Shapes of the leaves of so many layers, stacked."""
    return {name: (layers, *shape) for name, shape in shapes.items()}


def check_leaves(where: str, found: dict[str, Any], shapes: _Shapes) -> None:
    """Check that `found`, which messages call `where`, has these leaves and no others.

    Raises:
        InputError: a leaf is missing, unknown, or of a wrong shape.
    """
    _check_names(where, found, list(shapes))
    for name, shape in shapes.items():
        _check_shape(f"{where}[{name!r}]", found[name], shape)


def check_tokens(
    tokens: Int[Array, "batch time"],
    cfg: ModelConfig,
    **aligned: Int[Array, "batch time"] | None,
) -> None:
    """Check tokens, and the arrays that must have their shape.

    Raises:
        InputError: a wrong rank, dtype or length, or (unless traced) an id outside the vocabulary.
    """
    if tokens.ndim != 2:
        raise InputError(f"tokens has shape {tokens.shape}; it must be [batch, time]")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(f"tokens has dtype {tokens.dtype}; token ids are integers (int32)")
    if not 1 <= tokens.shape[1] <= cfg.max_positions:
        raise InputError(
            f"tokens has {tokens.shape[1]} positions; the model takes 1 to {cfg.max_positions} "
            "(cfg.max_positions): cut the text into windows"
        )
    for name, other in aligned.items():
        if other is not None and other.shape != tokens.shape:
            raise InputError(f"{name} has shape {other.shape}; it must be that of tokens, {tokens.shape}")
    ids = concrete(tokens)
    if ids is not None and ids.size and not (0 <= ids.min() and ids.max() < cfg.vocab_size):
        raise InputError(
            f"tokens holds ids from {ids.min()} to {ids.max()}; the vocabulary has {cfg.vocab_size}: "
            "was the text encoded with another model's tokenizer?"
        )


def check_positions(
    positions: Int[Array, "batch time"] | None, token_types: Int[Array, "batch time"] | None, cfg: ModelConfig
) -> None:
    """Check that what has embeddings in a table lies within it.

    Raises:
        InputError: kinds of tokens for a model that has none, or (unless traced) a value outside of its table.
    """
    if token_types is not None and not cfg.token_types:
        raise InputError("token_types is given, but cfg.token_types is 0: the model knows no kinds of tokens")
    learned = positions if cfg.learned_positions else None
    for name, size, array in (
        ("positions", cfg.max_positions, learned),
        ("token_types", cfg.token_types, token_types),
    ):
        values = None if array is None else concrete(array)
        if values is not None and values.size and not 0 <= values.min() <= values.max() < size:
            raise InputError(
                f"{name} goes from {values.min()} to {values.max()}; the model has embeddings for 0 to {size - 1}"
            )


def check_causal(cfg: ModelConfig, what: str) -> None:
    """Check that the model predicts the next token.

    Raises:
        InputError: it is an encoder.
    """
    if not cfg.causal:
        raise InputError(f"{what}: family {cfg.family!r} is an encoder; it does not predict the next token")


def check_cache(cache: Cache, cfg: ModelConfig, tokens: Array, segment_ids: Array | None) -> None:
    """Check that the cache is one of this model and batch and has room for the tokens.

    Raises:
        InputError: a wrong shape, too little room, or segments with a cache.
    """
    if segment_ids is not None:
        raise InputError("segment_ids cannot be combined with a cache: a cached row is one segment")
    check_causal(cfg, "cache")
    batch, time = tokens.shape
    slots = cache.keys.shape[2]
    expected = cache_shape(cfg, batch, slots)
    if cache.keys.shape != expected or cache.values.shape != expected or cache.length.shape != (batch,):
        raise InputError(
            f"cache has keys {cache.keys.shape}, values {cache.values.shape}, length {cache.length.shape}; "
            f"these tokens need {expected} and ({batch},): make it with init_cache(cfg, {batch}, size)"
        )
    length = concrete(cache.length)
    used = 0 if length is None else int(length.max())
    if used + time > slots:
        raise InputError(f"cache has {slots} slots, {used} of them used; {time} more tokens do not fit")
    if cfg.learned_positions and used + time > cfg.max_positions:
        raise InputError(
            f"cache holds {used} tokens; {time} more exceed the model's {cfg.max_positions} learned positions"
        )


def concrete(array: Array) -> np.ndarray | None:
    """The values, or None while they are traced or lie on another host."""
    if isinstance(array, jax.core.Tracer):
        return None
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return np.asarray(array)


_AXES = {
    "q": ("inner", "hidden"),
    "k": ("inner", "hidden"),
    "v": ("inner", "hidden"),
    "o": ("hidden", "inner"),
    "gate": ("inner", "hidden"),
    "up": ("inner", "hidden"),
    "down": ("hidden", "inner"),
    **{f"{name}_bias": ("inner",) for name in ("q", "k", "v", "gate", "up")},
}


def _check_names(where: str, found: dict[str, Any], expected: list[str]) -> None:
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        raise InputError(
            f"{where}: missing {missing}, unexpected {unknown}; this configuration has exactly {expected}"
        )


def _check_shape(where: str, leaf: Any, expected: tuple[int, ...], free: list[int] | None = None) -> None:
    if is_linear_leaf(leaf):
        return
    found = tuple(leaf.shape)
    free = free or []
    same_rank = len(found) == len(expected)
    if not same_rank or any(found[i] != expected[i] for i in range(len(expected)) if i not in free):
        raise InputError(f"{where} has shape {found}; this configuration has {expected}")
