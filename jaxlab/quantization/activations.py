"""What calibration text looks like at the inputs of a block's matrices: the inputs themselves and their moments."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from jaxlab.models.config import ModelConfig
from jaxlab.models.fast_products import fast_transposed_product
from jaxlab.models.transformer import attention_part, block, mlp_part

_TOKENS_AT_ONCE = 2048

Part = Literal["block", "attention", "mlp"]
PART_OF: dict[str, Part] = {
    "attention_input": "attention",
    "attention_output": "attention",
    "mlp_input": "mlp",
    "mlp_hidden": "mlp",
}


@functools.partial(jax.jit, static_argnames=("cfg", "part", "sites"))
def block_inputs(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Float[Array, "windows context hidden"],
    frequencies: Float[Array, " half_dim"],
    window: Array,
    *,
    part: Part = "block",
    sites: tuple[str, ...] | None = None,
) -> tuple[Float[Array, "windows context hidden"], dict[str, BFloat16[Array, "batches size tokens"]]]:
    """Runs one block on many windows.

    Args:
      layer: the block's parameters.
      cfg: static.
      hidden: residual stream before the block, or before its part.
      frequencies: the layer's row of `layer_geometry(cfg)[0]`.
      window: its entry of `layer_geometry(cfg)[1]`.
      part: the whole block, or its first or second half.
      sites: those of `INPUT_SITES` to return; None is all in this part.

    Returns:
      The residual stream after the block, and the inputs of the matrices at each site, the tokens of all windows in
      order, cut into batches, last in memory.
    """
    windows, context, size = hidden.shape
    at_once = max(
        divisor
        for divisor in range(1, windows + 1)
        if windows % divisor == 0 and divisor * context <= max(context, _TOKENS_AT_ONCE)
    )

    def one(hidden: Array) -> tuple[Array, dict[str, Array]]:
        if part == "block":
            after, _, taps = block(layer, cfg, hidden, inverse_frequencies=frequencies, window=window)
        elif part == "attention":
            after, taps = attention_part(layer, cfg, hidden, inverse_frequencies=frequencies, window=window)
        else:
            after, taps = mlp_part(layer, cfg, hidden)
        wanted = taps if sites is None else sites
        return after, {
            site: taps[site].reshape(-1, taps[site].shape[-1]).T.astype(jnp.bfloat16) for site in wanted
        }

    after, inputs = jax.lax.map(one, hidden.reshape(-1, at_once, context, size))
    return after.reshape(hidden.shape), inputs


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
