"""How much the model's output minds an error at each matrix: the Fisher information of every matrix's
outputs.

With labels drawn from the model itself, the expected squared gradient is the second derivative of the KL
divergence that an error causes. Kept of it are, for every matrix, a weight for each token (the squared
gradient over the outputs) and a weight for each output row (the squared gradient over the tokens). Reference:
GuidedQuant (arXiv:2505.07004) for token weights; LLM Surgeon (arXiv:2312.17244) for the true Fisher.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.kernels.block_feedback import inverse_cholesky
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS, dense, linear, register_linear
from jaxlab.models.rope import layer_geometry
from jaxlab.models.stacking import take_layer
from jaxlab.models.transformer import INPUT_SITES, block, embed, forward, logits
from jaxlab.quantization.rotation import random_signs, rotate_hessian

_TOKENS_AT_ONCE = 1024


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
    batch = max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    parts = []
    for start in range(0, len(tokens), batch):
        windows = jnp.asarray(tokens[start : start + batch])
        parts.append(_one_batch(params, cfg, windows, jax.random.fold_in(key, start)))
        jax.block_until_ready(parts[-1])
        progress(start + len(windows))
    count = tokens.shape[0] * tokens.shape[1]
    return Sensitivity(
        {name: jnp.concatenate([part[name][0] for part in parts], axis=1) for name in LINEARS},
        {name: jnp.sum(jnp.stack([part[name][1] for part in parts]), axis=0) / count for name in LINEARS},
    )


def token_weights(
    fisher: Sensitivity, *, power: float = 0.5
) -> dict[str, Float[Array, "layers windows context"]]:
    """Weights of the calibration tokens for the second moments, with mean 1 before `power` is taken.

    The squared gradients are heavy-tailed: the first token of a window, which all others attend to, may count a
    thousand times an average one. Their square root (power 1/2) keeps enough tokens in play for the moments to be
    well estimated from few windows; for the v matrices of SmolLM2 it gave a lower divergence than power 1.

    Args:
      fisher: see `sensitivity`.
      power: 0 (all tokens alike) to 1 (the Fisher information itself).
    """
    return {
        name: (tokens / jnp.mean(tokens, axis=(1, 2), keepdims=True)) ** power
        for name, tokens in fisher.tokens.items()
    }


@functools.partial(jax.jit, static_argnames="cfg")
def _one_batch(
    params: dict[str, Any], cfg: ModelConfig, windows: Int[Array, "batch context"], key: jax.Array
) -> dict[str, tuple[Array, Array]]:
    def log_likelihood(taps: dict[str, tuple[Array, Array]]) -> Array:
        tapped = {name: _Tapped(params["layers"][name], *taps[name]) for name in LINEARS}
        hidden = forward({**params, "layers": {**params["layers"], **tapped}}, cfg, windows).hidden
        scores = logits(params, cfg, hidden).astype(jnp.float32)
        label = jax.lax.stop_gradient(jax.random.categorical(key, scores))
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(scores), label[..., None], axis=-1))

    layers = cfg.num_layers
    zeros = {
        name: (jnp.zeros((layers, *windows.shape)), jnp.zeros((layers, params["layers"][name].shape[1])))
        for name in LINEARS
    }
    return jax.grad(log_likelihood)(zeros)


def matrix_costs(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokens: Int[Array, "windows context"],
    fisher: Sensitivity,
    key: jax.Array,
    *,
    damping: float = 0.01,
) -> dict[str, Float[Array, " layers"]]:
    """Predicted KL divergence (nats a token) for each unit of distortion in a matrix, relative to its
    weights' variance.

    With error feedback an error of relative size D in every weight leaves D * sum_r F_r s_r^2 * sum_c 1 /
    U_cc^2 / 2,
    where F_r is the row's squared gradient, s_r^2 its variance, and U the factor of the rotated,
    token-weighted second
    moment's inverse (H^-1 = U^T U), so that 1 / U_cc^2 is the part of input c that later inputs do not
    explain.

    The moments need many more tokens than a matrix is wide: with fewer, the unexplained parts, and so the costs of
    wide matrices, come out far too small, and a plan made with them starves those matrices.

    Args:
      params: the model, layers stacked.
      cfg: static.
      tokens: the first windows of those that `fisher` was taken on.
      fisher: see `sensitivity`.
      key: PRNG key of the rotations.
      damping: share of the mean diagonal added to the second moment, > 0.
    """
    frequencies, layer_windows = layer_geometry(cfg)
    hidden = embed(params, cfg, jnp.asarray(tokens))
    count = tokens.shape[0]
    costs: list[dict[str, Array]] = []
    for index in range(cfg.num_layers):
        layer, weights, rows, geometry = take_layer(
            (params["layers"], fisher.tokens, fisher.rows, (frequencies, layer_windows)), index
        )
        weights = {name: weight[:count] for name, weight in weights.items()}
        hidden, cost = _layer_costs(layer, cfg, hidden, *geometry, weights, rows, key, damping)
        costs.append(cost)
    return {name: jnp.stack([cost[name] for cost in costs]) for name in LINEARS}


@functools.partial(jax.jit, static_argnames="cfg")
def _layer_costs(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Array,
    frequencies: Array,
    window: Array,
    weights: dict[str, Array],
    rows: dict[str, Array],
    key: Array,
    damping: Array,
) -> tuple[Array, dict[str, Array]]:
    site_of = {name: site for site, names in INPUT_SITES.items() for name in names}

    def one(inputs: tuple[Array, dict[str, Array]]) -> tuple[Array, dict[str, Array]]:
        hidden, weights = inputs
        after, _, taps = block(layer, cfg, hidden[None], inverse_frequencies=frequencies, window=window)
        inputs_of = {name: taps[site_of[name]][0] for name in LINEARS}
        return after[0], {name: x.T @ (x * weights[name][:, None]) for name, x in inputs_of.items()}

    after, moments = jax.lax.map(one, (hidden, weights))

    def cost(name: str) -> Array:
        w = dense(layer[name]).astype(jnp.float32)
        moment = jnp.mean(moments[name], axis=0) / hidden.shape[1]
        factor = inverse_cholesky(rotate_hessian(moment, random_signs(key, w.shape[1])), damping=damping)
        per_row = jnp.sum(rows[name] * jnp.mean(jnp.square(w), axis=1)) / jnp.sum(rows[name])
        return per_row * jnp.sum(1 / jnp.square(jnp.diagonal(factor))) / 2

    return after, {name: cost(name) for name in LINEARS}
