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


def top_shapes(cfg: ModelConfig) -> _Shapes:
    """Name and shape of every leaf outside of the layers."""
    vocabulary = (cfg.vocab_size, cfg.hidden_size)
    shapes: _Shapes = {"embed": vocabulary, "final_norm": (cfg.hidden_size,)}
    return shapes if cfg.tie_embeddings else shapes | {"head": vocabulary}


def layer_shapes(cfg: ModelConfig, layer: int = 0) -> _Shapes:
    """Name and shape of every leaf of one layer; which one matters only under `cfg.layer_widths`."""
    hidden = cfg.hidden_size
    mlp, kv_heads = cfg.widths(layer)
    kv = kv_heads * cfg.head_dim
    heads = kv * (cfg.num_heads // cfg.num_kv_heads)
    shapes: _Shapes = {
        "attn_norm": (hidden,),
        "q": (heads, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, heads),
        "mlp_norm": (hidden,),
        "gate": (mlp, hidden),
        "up": (mlp, hidden),
        "down": (hidden, mlp),
    }
    if cfg.qkv_bias:
        shapes |= {"q_bias": (heads,), "k_bias": (kv,), "v_bias": (kv,)}
    if cfg.o_bias:
        shapes |= {"o_bias": (hidden,)}
    if cfg.mlp_bias:
        shapes |= {"gate_bias": (mlp,), "up_bias": (mlp,), "down_bias": (hidden,)}
    if cfg.qk_norm:
        shapes |= {"q_norm": (cfg.head_dim,), "k_norm": (cfg.head_dim,)}
    if cfg.sandwich_norms:
        shapes |= {"post_attn_norm": (hidden,), "post_mlp_norm": (hidden,)}
    return shapes


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
        _check_names("params['layers']", layers, list(shapes))
        for name, shape in shapes.items():
            _check_shape(f"params['layers'][{name!r}]", layers[name], (cfg.num_layers, *shape))
        return
    if len(layers) != cfg.num_layers:
        raise InputError(f"params['layers'] has {len(layers)} layers; cfg.num_layers is {cfg.num_layers}")
    for i, layer in enumerate(layers):
        _check_names(f"params['layers'][{i}]", layer, list(shapes))
        for name, shape in layer_shapes(cfg, i).items():
            inner = [axis for axis, of in enumerate(_AXES.get(name, ())) if of == "inner"]
            free = inner if cfg.layer_widths is None else []
            _check_shape(f"params['layers'][{i}][{name!r}]", layer[name], shape, free)


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


def check_cache(cache: Cache, cfg: ModelConfig, tokens: Array, segment_ids: Array | None) -> None:
    """Check that the cache is one of this model and batch and has room for the tokens.

    Raises:
        InputError: a wrong shape, too little room, or segments with a cache.
    """
    if segment_ids is not None:
        raise InputError("segment_ids cannot be combined with a cache: a cached row is one segment")
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
