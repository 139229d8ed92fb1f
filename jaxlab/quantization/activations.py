"""What calibration text looks like at the inputs of a block's matrices: the inputs themselves and their moments."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from jaxlab.models.config import ModelConfig
from jaxlab.models.fast_products import fast_transposed_product
from jaxlab.models.linear import linear
from jaxlab.models.transformer import (
    add_branch,
    attention_input,
    attention_output,
    block,
    mlp_hidden,
    mlp_input,
)

_TOKENS_AT_ONCE = 2048

Branch = Literal["o", "down"]
BRANCHES: dict[str, Branch] = {"attention_output": "o", "mlp_hidden": "down"}
"""By site the matrix that reads it alone and adds to the residual stream."""
Inputs = BFloat16[Array, "batches size tokens"]
"""The tokens of all windows in order, cut into batches, last in memory."""


@functools.partial(jax.jit, static_argnames="cfg")
def block_inputs(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Float[Array, "windows context hidden"],
    frequencies: Float[Array, " half_dim"],
    window: Array,
) -> tuple[Float[Array, "windows context hidden"], dict[str, Inputs]]:
    """Runs one block on many windows.

    Args:
      layer: the block's parameters.
      cfg: static.
      hidden: residual stream before the block.
      frequencies: the layer's row of `layer_geometry(cfg)[0]`.
      window: its entry of `layer_geometry(cfg)[1]`.

    Returns:
      The residual stream after the block, and the inputs of the matrices at each of `INPUT_SITES`.
    """

    def one(hidden: Array) -> tuple[Array, dict[str, Array]]:
        after, _, taps = block(layer, cfg, hidden, inverse_frequencies=frequencies, window=window)
        return after, {site: _tokens_last(x) for site, x in taps.items()}

    after, inputs = jax.lax.map(one, _in_batches(hidden))
    return after.reshape(hidden.shape), inputs


@functools.partial(jax.jit, static_argnames=("cfg", "site"))
def site_inputs(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Float[Array, "windows context hidden"],
    frequencies: Float[Array, " half_dim"],
    window: Array,
    *,
    site: str,
) -> tuple[Inputs, BFloat16[Array, "batches some context size"] | None]:
    """The inputs at one site of a block; only what is needed for them is computed.

    Args:
      layer: the block's parameters.
      cfg: static.
      hidden: residual stream before the block, at the sites of the MLP the one after attention (`after_branch`).
      frequencies: see `block_inputs`.
      window: see `block_inputs`.
      site: one of `INPUT_SITES`.

    Returns:
      The inputs; and at the sites of `BRANCHES` the same with the tokens first, for `after_branch`.
    """

    def one(hidden: Array) -> tuple[Array, Array | None]:
        if site in ("mlp_input", "mlp_hidden"):
            x = mlp_input(layer, cfg, hidden)
            if site == "mlp_hidden":
                x = mlp_hidden(layer, cfg, x)
        else:
            x = attention_input(layer, cfg, hidden)
            if site == "attention_output":
                x = attention_output(layer, cfg, x, inverse_frequencies=frequencies, window=window)
        return _tokens_last(x), x.astype(jnp.bfloat16) if site in BRANCHES else None

    return jax.lax.map(one, _in_batches(hidden))


@functools.partial(jax.jit, static_argnames=("cfg", "site"))
def after_branch(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Float[Array, "windows context hidden"],
    inputs: BFloat16[Array, "batches some context size"],
    *,
    site: str,
) -> Float[Array, "windows context hidden"]:
    """The residual stream after the branch that ends with the matrix of `site` (see `BRANCHES`).

    Args:
      layer: the block's parameters.
      cfg: static.
      hidden: residual stream before the branch.
      inputs: at `site`, tokens first, from `site_inputs`.
      site: attention_output or mlp_hidden.
    """
    name = BRANCHES[site]

    def one(pair: tuple[Array, Array]) -> Array:
        hidden, x = pair
        return add_branch(layer, cfg, hidden, linear(x.astype(jnp.float32), layer[name]), name)

    return jax.lax.map(one, (_in_batches(hidden), inputs)).reshape(hidden.shape)


def _in_batches(
    hidden: Float[Array, "windows context hidden"],
) -> Float[Array, "batches some context hidden"]:
    windows, context, size = hidden.shape
    at_once = max(
        divisor
        for divisor in range(1, windows + 1)
        if windows % divisor == 0 and divisor * context <= max(context, _TOKENS_AT_ONCE)
    )
    return hidden.reshape(-1, at_once, context, size)


def _tokens_last(x: Float[Array, "some context size"]) -> BFloat16[Array, "size tokens"]:
    return x.reshape(-1, x.shape[-1]).T.astype(jnp.bfloat16)


@jax.jit
def second_moment(
    inputs: BFloat16[Array, "batches size tokens"],
    exact: BFloat16[Array, "batches size tokens"] | None,
    weights: Float[Array, "windows context"] | None,
) -> tuple[Float[Array, "size size"], Float[Array, "size size"] | None]:
    """Weighted means of x x^T and of x~ x^T over the tokens.

    Args:
      inputs: x, see `block_inputs`.
      exact: x~, the same tokens in another model; None leaves the second mean out.
      weights: of the tokens, >= 0; None is all the same.
    """
    batches, size, tokens = inputs.shape
    if weights is None:
        weights = jnp.ones((batches, tokens))
    root = jnp.sqrt(weights.reshape(batches, tokens))

    def add(
        total: tuple[Array, Array | None], batch: tuple[Array, Array | None, Array]
    ) -> tuple[tuple[Array, Array | None], None]:
        x, exact, root = batch
        x = x * root.astype(jnp.float32)
        moment = total[0] + fast_transposed_product(x, x)
        if total[1] is None or exact is None:
            return (moment, None), None
        return (moment, total[1] + fast_transposed_product(exact * root, x)), None

    zero = jnp.zeros((size, size))
    start = (zero, None if exact is None else zero)
    (moment, cross), _ = jax.lax.scan(add, start, (inputs, exact, root))
    weight = jnp.sum(weights)
    return moment / weight, None if cross is None else cross / weight
