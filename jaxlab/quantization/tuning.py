"""Distillation of a quantized model: its row scales and norms are tuned on text, its codes stay.

Both are stored anyway, so that it costs no bits. What is lowered is the divergence from the exact model's predictions,
end to end, with errors of different matrices playing together as no matrix-by-matrix quantizer sees them. Reference:
QuIP# (arXiv:2402.04396), section 5, for tuning what is not code.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.fast_products import FastMatrix, fast_head, with_fast_products
from jaxlab.models.linear import LINEARS, linear, register_linear
from jaxlab.models.transformer import forward
from jaxlab.quantization.pvq import PVQTensor

_TOKENS_AT_ONCE = 512
_CHUNK = 256
_WARMUP = 3


class Tuning(NamedTuple):
    """Relative changes, 0 where nothing changes."""

    rows: dict[str, Float[Array, "layers rows"]]
    """Of the rows of every matrix."""
    norms: dict[str, Float[Array, "layers size"]]
    """Of every norm's factor in the blocks."""
    final_norm: Float[Array, " hidden"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "factor"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Scaled:
    """A matrix whose rows are multiplied by factors."""

    weight: FastMatrix
    factor: Float[Array, " rows"]


register_linear(
    _Scaled,
    lambda x, leaf: linear(x, leaf.weight) * leaf.factor,
    lambda leaf: leaf.weight.weight.astype(jnp.float32) * leaf.factor[:, None],
)


def tune(
    exact: dict[str, Any],
    layers: dict[str, Any],
    cfg: ModelConfig,
    tokens: Int[Array, "windows context"],
    *,
    learning_rate: float = 2e-3,
    progress: Callable[[int, float], None] = lambda windows, divergence: None,
) -> Tuning:
    """One pass of Adam over the windows, on the mean divergence of the quantized model from the exact one.

    Products with the weights are taken in bfloat16 (see `jaxlab.models.fast_products`).

    Args:
      exact: the model that was quantized, layers stacked.
      layers: the quantized matrices, dense and stacked; norms and the rest are taken from `exact`.
      cfg: static.
      tokens: windows of text, best not those that the codes were chosen on.
      learning_rate: of the relative changes, > 0; rises over the first steps and falls to 0 by a cosine.
      progress: called with the number of windows done and the divergence of the last ones, nats a token.

    Raises:
      InputError: there are no windows, or the learning rate is not positive.
    """
    if tokens.ndim != 2 or not len(tokens):
        raise InputError(f"tokens has shape {tokens.shape}; at least one window is needed")
    if not learning_rate > 0:
        raise InputError(f"learning_rate is {learning_rate}; it must be > 0")
    batch = max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    steps = -(-len(tokens) // batch)
    fixed = _Fixed(
        {name: leaf for name, leaf in exact.items() if name != "layers"},
        with_fast_products(exact["layers"]),
        with_fast_products(exact["layers"] | {name: layers[name] for name in LINEARS}),
        fast_head(exact),
    )
    tuning = Tuning(
        {name: jnp.zeros(layers[name].shape[:2]) for name in LINEARS},
        {name: jnp.zeros_like(leaf) for name, leaf in exact["layers"].items() if name.endswith("norm")},
        jnp.zeros_like(exact["final_norm"]),
    )
    rate = learning_rate * _schedule(steps)
    state = _optimizer().init(tuning)
    for step in range(steps):
        windows = jnp.asarray(tokens[step * batch : (step + 1) * batch])
        tuning, state, divergence = _step(tuning, state, fixed, cfg, windows, jnp.float32(rate[step]))
        progress(min(len(tokens), (step + 1) * batch), float(divergence))
    return tuning


def tuned_norm(weight: Array, change: Array, cfg: ModelConfig) -> Array:
    """A norm's weights after a relative change of its factor (`cfg.norm_offset` + weight)."""
    return ((cfg.norm_offset + weight) * (1 + change) - cfg.norm_offset).astype(weight.dtype)


def tuned_tensor(tensor: PVQTensor, change: Float[Array, " rows"]) -> PVQTensor:
    """A quantized matrix after relative changes of its rows."""
    scale = tensor.scale.astype(jnp.float32) * (1 + change)
    return dataclasses.replace(tensor, scale=scale.astype(jnp.float16))


class _Fixed(NamedTuple):
    """What does not change."""

    top: dict[str, Any]
    exact: dict[str, Any]
    quantized: dict[str, Any]
    head: FastMatrix


def _schedule(steps: int) -> np.ndarray:
    """Factors of the learning rate: a short linear rise, then a cosine to 0."""
    step = np.arange(steps)
    return np.minimum((step + 1) / _WARMUP, 0.5 * (1 + np.cos(np.pi * step / steps)))


def _optimizer() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.9, b2=0.99)


@functools.partial(jax.jit, static_argnames="cfg")
def _step(
    tuning: Tuning,
    state: optax.OptState,
    fixed: _Fixed,
    cfg: ModelConfig,
    tokens: Array,
    rate: Array,
) -> tuple[Tuning, optax.OptState, Array]:
    target = forward({**fixed.top, "layers": fixed.exact}, cfg, tokens).hidden

    def divergence(tuning: Tuning) -> Array:
        scaled = {name: _Scaled(fixed.quantized[name], 1 + tuning.rows[name]) for name in LINEARS}
        norms = {
            name: tuned_norm(fixed.quantized[name], change, cfg) for name, change in tuning.norms.items()
        }
        final = tuned_norm(fixed.top["final_norm"], tuning.final_norm, cfg)
        params = {**fixed.top, "final_norm": final, "layers": fixed.quantized | scaled | norms}
        return _divergence(target, forward(params, cfg, tokens).hidden, fixed.head)

    value, gradient = jax.value_and_grad(divergence)(tuning)
    change, state = _optimizer().update(gradient, state)
    return jax.tree.map(lambda x, d: x - rate * d, tuning, change), state, value


def _divergence(target: Array, hidden: Array, head: FastMatrix) -> Float[Array, ""]:
    """Mean KL(target || hidden) over the positions, with the scores of `_CHUNK` positions there at a time."""

    @jax.checkpoint
    def one(pair: tuple[Array, Array]) -> Array:
        log_p, log_q = (jax.nn.log_softmax(linear(x, head)) for x in pair)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    flat = tuple(x.reshape(-1, x.shape[-1]) for x in (target, hidden))
    return jnp.mean(jax.lax.map(one, flat, batch_size=_CHUNK))
