"""How much the model's output minds an error at each matrix: the Fisher information of every matrix's
outputs.

With labels drawn from the model itself, the expected squared gradient is the second derivative of the KL
divergence that an error causes. Kept of it are, for every matrix, a weight for each token (the squared
gradient over the outputs) and the second moment of the gradient over the outputs, which says how the errors of
different output rows add up. Reference: GuidedQuant (arXiv:2505.07004) for token weights; YAQA (arXiv:2505.22988)
for the second moment of the gradients; LLM Surgeon (arXiv:2312.17244) for the true Fisher.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.kernels.block_feedback import inverse_cholesky, wait_for
from jaxlab.models.config import ModelConfig
from jaxlab.models.draws import draw
from jaxlab.models.fast_products import FastMatrix, fast_head, fast_transposed_product, with_fast_products
from jaxlab.models.linear import LINEARS, dense, linear
from jaxlab.models.rope import layer_geometry
from jaxlab.models.stacking import take_layer
from jaxlab.models.taps import add_to_layer, run_and_keep, sweep_back
from jaxlab.models.transformer import SITE_OF, embed, rms_norm
from jaxlab.quantization.activations import block_inputs, second_moment
from jaxlab.quantization.rotation import random_signs, rotate_hessian

_TOKENS_AT_ONCE = 512


class Sensitivity(NamedTuple):
    """Gradients g of log p(label) at the outputs of every matrix, label drawn from the model."""

    tokens: dict[str, Float[Array, "layers windows context"]]
    """||g||^2 of each token."""
    outputs: dict[str, Float[Array, "layers rows rows"]]
    """Mean of g g^T / ||g|| over the tokens."""


def sensitivity(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokens: Int[Array, "windows context"],
    key: jax.Array,
    *,
    progress: Callable[[int], None] = lambda windows: None,
) -> Sensitivity:
    """Gradients at every matrix's outputs, with labels drawn from the model.

    Products with the weights are taken in bfloat16 (see `jaxlab.models.fast_products`).

    Args:
      params: the model, layers stacked.
      cfg: static.
      tokens: windows of text.
      key: PRNG key of the labels.
      progress: called with the number of windows done.
    """
    batch = max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    fast, head = params | {"layers": with_fast_products(params["layers"])}, fast_head(params)
    shapes = {name: params["layers"][name].shape[:2] for name in LINEARS}
    outputs = {name: jnp.zeros((layers, rows, rows)) for name, (layers, rows) in shapes.items()}
    squares: list[dict[str, Array]] = []
    for start in range(0, len(tokens), batch):
        windows = jnp.asarray(tokens[start : start + batch])
        outputs, square = _add(outputs, fast, head, cfg, windows, jax.random.fold_in(key, start))
        squares.append(jax.block_until_ready(square))
        progress(start + len(windows))
    count = tokens.shape[0] * tokens.shape[1]
    by_token = {name: jnp.concatenate([square[name] for square in squares], axis=1) for name in LINEARS}
    return Sensitivity(
        {name: square.reshape(-1, *tokens.shape) for name, square in by_token.items()},
        {name: total / count for name, total in outputs.items()},
    )


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=0)
def _add(
    outputs: dict[str, Float[Array, "layers rows rows"]],
    params: dict[str, Any],
    head: FastMatrix,
    cfg: ModelConfig,
    windows: Int[Array, "batch context"],
    key: jax.Array,
) -> tuple[dict[str, Array], dict[str, Float[Array, "layers tokens"]]]:
    """Adds to the sums of g g^T / ||g||; also ||g||^2 of each token."""
    last, states = run_and_keep(params, cfg, windows)

    def log_likelihood(last: Array) -> Array:
        log_p = jax.nn.log_softmax(
            linear(rms_norm(last, params["final_norm"], cfg), head).astype(jnp.float32)
        )
        label = draw(key, jax.lax.stop_gradient(jnp.exp(log_p)))
        return jnp.sum(jnp.take_along_axis(log_p, label[..., None], axis=-1))

    def visit(
        sums: tuple[dict[str, Array], dict[str, Array]],
        index: Array,
        inputs: dict[str, Array],
        shown: list[dict[str, Array]],
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        del inputs
        outputs, squares = dict(sums[0]), dict(sums[1])
        for name, gradients in shown[0].items():
            wide = gradients.astype(jnp.float32)
            square = jnp.sum(wide * wide, axis=0)
            scaled = wide * jax.lax.rsqrt(jnp.sqrt(square) + 1e-30)
            outputs[name] = add_to_layer(outputs[name], index, fast_transposed_product(scaled, scaled))
            squares[name] = add_to_layer(squares[name], index, square)
        return outputs, squares

    squares = {name: jnp.zeros((len(total), windows.size)) for name, total in outputs.items()}
    cotangent = jax.grad(log_likelihood)(last)
    return sweep_back(
        params, cfg, states, [cotangent], visit, (outputs, squares), kept="tokens", precision="bfloat16"
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

    Returns:
      The weights; all 1 for a matrix that no prediction minds, such as one that is pruned away.
    """
    weights = {}
    for name, tokens in fisher.tokens.items():
        mean = jnp.mean(tokens, axis=(1, 2), keepdims=True)
        weights[name] = jnp.where(mean > 0, tokens / jnp.where(mean > 0, mean, 1), 1) ** power
    return weights


def matrix_costs(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokens: Int[Array, "windows context"],
    fisher: Sensitivity,
    key: jax.Array,
    *,
    damping: float = 0.01,
    output_damping: float = 0.1,
    progress: Callable[[int], None] = lambda layers: None,
) -> dict[str, Float[Array, " layers"]]:
    """Predicted KL divergence (nats a token) for each unit of distortion in a matrix, relative to its
    weights' variance.

    The Fisher information of a matrix is taken as c B (x) A, with A = E[||g|| x x^T] over its inputs, B = E[g g^T /
    ||g||] over its outputs and c such that the trace is right. With feedback on both sides an error of relative size
    D in every weight then leaves D * c / 2 * sum_r s_r^2 / U_rr^2 * sum_i 1 / U_ii^2, with s_r^2 the variance of row r
    and U the factors of B^-1 and A^-1 (B^-1 = U^T U), so that 1 / U^2 is the part of an input or output that later
    ones do not explain.

    The moments need many more tokens than a matrix is wide: with fewer, the unexplained parts, and so the costs of
    wide matrices, come out far too small, and a plan made with them starves those matrices.

    Args:
      params: the model, layers stacked.
      cfg: static.
      tokens: the first windows, or all, of those that `fisher` was taken on.
      fisher: see `sensitivity`.
      key: PRNG key of the rotations.
      damping: share of the mean diagonal added to the inputs' moment, > 0.
      output_damping: the same for the outputs' moment.
      progress: called with the number of layers done.
    """
    geometry = layer_geometry(cfg)
    hidden = embed(params, cfg, jnp.asarray(tokens))
    costs: list[dict[str, Array]] = []
    for index in range(cfg.num_layers):
        layer, squares, outputs, place = take_layer(
            (params["layers"], fisher.tokens, fisher.outputs, geometry), index
        )
        after, inputs = block_inputs(with_fast_products(layer), cfg, hidden, *place)
        cost = {}
        for name in LINEARS:
            cost[name] = _cost(
                dense(layer[name]),
                inputs[SITE_OF[name]],
                squares[name][: len(tokens)],
                outputs[name],
                key,
                damping,
                output_damping,
            )
        hidden = after
        costs.append(jax.block_until_ready(cost))
        progress(index + 1)
    return {name: jnp.stack([cost[name] for cost in costs]) for name in LINEARS}


@jax.jit
def _cost(
    w: Array,
    inputs: Float[Array, "batches columns tokens"],
    squares: Float[Array, "windows context"],
    outputs: Float[Array, "rows rows"],
    key: Array,
    damping: Array,
    output_damping: Array,
) -> Float[Array, ""]:
    w, outputs = w.astype(jnp.float32), outputs.astype(jnp.float32)
    lengths = jnp.sqrt(squares)
    moment = second_moment(inputs, None, lengths)[0]
    powers = jnp.sum(jnp.square(inputs.astype(jnp.float32)), axis=1).reshape(-1)
    trace = jnp.mean(squares.reshape(-1) * powers)
    factor = inverse_cholesky(rotate_hessian(moment, random_signs(key, w.shape[1])), damping=damping)
    output_factor = inverse_cholesky(wait_for(outputs, factor), damping=output_damping)
    ratio = trace / (jnp.trace(moment) * jnp.trace(outputs))
    by_row = jnp.mean(jnp.square(w), axis=1) / jnp.square(jnp.diagonal(output_factor))
    cost = ratio * jnp.sum(by_row) * jnp.sum(1 / jnp.square(jnp.diagonal(factor))) / 2
    return jnp.where(trace > 0, cost, 0)  # no prediction minds a matrix that is pruned away
