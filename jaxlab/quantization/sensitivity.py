"""How much the model's output minds an error at each matrix: the Fisher information of every matrix's outputs.

With labels drawn from the model itself, the expected squared gradient is the second derivative of the KL divergence
that an error causes. Kept of it are, for every matrix, a weight for each token (the squared gradient over the
outputs) and a weight for each output row (the squared gradient over the tokens). Reference: GuidedQuant
(arXiv:2505.07004) for token weights; LLM Surgeon (arXiv:2312.17244) for the true Fisher.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS, linear, register_linear
from jaxlab.models.transformer import forward, logits


class Sensitivity(NamedTuple):
    """Squared gradients of log p(label) at the outputs of every matrix."""

    tokens: dict[str, Float[Array, "layers windows context"]]
    """Summed over the output rows."""
    rows: dict[str, Float[Array, "layers rows"]]
    """Mean over the tokens."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "tokens", "rows"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Tapped:
    """A matrix whose cotangents for `tokens` and `rows` are the squared gradients at its outputs."""

    weight: Any
    tokens: Array
    rows: Array


@jax.custom_vjp
def _tap(y: Array, tokens: Array, rows: Array) -> Array:
    del tokens, rows
    return y


def _tap_forward(y: Array, tokens: Array, rows: Array) -> tuple[Array, None]:
    del tokens, rows
    return y, None


def _tap_backward(residual: None, gradient: Array) -> tuple[Array, Array, Array]:
    del residual
    square = jnp.square(gradient.astype(jnp.float32))
    return gradient, square.sum(-1), square.sum((0, 1))


_tap.defvjp(_tap_forward, _tap_backward)
register_linear(
    _Tapped,
    lambda x, leaf: _tap(linear(x, leaf.weight), leaf.tokens, leaf.rows),
    lambda leaf: leaf.weight,
)


def sensitivity(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokens: Int[Array, "windows context"],
    key: jax.Array,
    *,
    progress: Callable[[int], None] = lambda windows: None,
) -> Sensitivity:
    """Squared gradients at every matrix's outputs, with labels drawn from the model.

    Args:
      params: the model, layers stacked.
      cfg: static.
      tokens: windows of text.
      key: PRNG key of the labels.
      progress: called with the number of windows done.
    """
    by_window = []
    for index, window in enumerate(tokens):
        by_window.append(_one_window(params, cfg, jnp.asarray(window), jax.random.fold_in(key, index)))
        progress(index + 1)
    count = tokens.shape[0] * tokens.shape[1]
    return Sensitivity(
        {name: jnp.stack([one[name][0] for one in by_window], axis=1) for name in LINEARS},
        {name: sum(one[name][1] for one in by_window) / count for name in LINEARS},
    )


@functools.partial(jax.jit, static_argnames="cfg")
def _one_window(
    params: dict[str, Any], cfg: ModelConfig, window: Int[Array, " context"], key: jax.Array
) -> dict[str, tuple[Array, Array]]:
    layers, context = cfg.num_layers, window.shape[0]

    def log_likelihood(taps: dict[str, tuple[Array, Array]]) -> Array:
        tapped = {name: _Tapped(params["layers"][name], *taps[name]) for name in LINEARS}
        hidden = forward({**params, "layers": {**params["layers"], **tapped}}, cfg, window[None]).hidden
        scores = logits(params, cfg, hidden).astype(jnp.float32)
        label = jax.lax.stop_gradient(jax.random.categorical(key, scores))
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(scores), label[..., None], axis=-1))

    zeros = {
        name: (jnp.zeros((layers, 1, context)), jnp.zeros((layers, params["layers"][name].shape[1])))
        for name in LINEARS
    }
    gradients = jax.grad(log_likelihood)(zeros)
    return {name: (tokens[:, 0], rows) for name, (tokens, rows) in gradients.items()}
