"""Second moments of the inputs of every weight matrix, on which quantization and pruning build."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.models.config import ModelConfig
from jaxlab.models.transformer import Params, Taps, embed, run_layers
from jaxlab.models.validation import check_params, check_tokens


class SecondMoments(NamedTuple):
    """Sums over tokens; add those of several batches, and divide `sums` by `token_count` for means.

    `sums[site]` is float32 [L, in, in] (for a tuple of layers a tuple of [in, in]): the sum of x x^T over the
    inputs x of the matrices `INPUT_SITES[site]`.
    """

    sums: dict[str, Float[Array, "L inputs inputs"]]
    token_count: Float[Array, ""]


def second_moments(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    *,
    mask: Bool[Array, "batch time"] | None = None,
) -> SecondMoments:
    """Run the model once and sum x x^T at all four input sites of all layers.

    Args:
        params: the model.
        cfg: static.
        tokens: int32.
        mask: tokens that count; None is all.

    Raises:
        InputError: see `forward`; a mask of another shape.
    """
    check_params(params, cfg)
    check_tokens(tokens, cfg, mask=mask)
    return _second_moments(params, cfg, jnp.asarray(tokens), mask)


@partial(jax.jit, static_argnames="cfg")
def _second_moments(params: Params, cfg: ModelConfig, tokens: Array, mask: Array | None) -> SecondMoments:
    weights = jnp.ones(tokens.shape) if mask is None else jnp.asarray(mask, jnp.float32)

    def moments(taps: Taps) -> dict[str, Array]:
        return {site: _weighted_moment(x, weights) for site, x in taps.items()}

    _, _, collected = run_layers(params, cfg, embed(params, cfg, tokens), collect=moments)
    if isinstance(collected, tuple):
        collected = {site: tuple(layer[site] for layer in collected) for site in collected[0]}
    return SecondMoments(collected, weights.sum())


def _weighted_moment(
    x: Float[Array, "batch time inputs"], weights: Float[Array, "batch time"]
) -> Float[Array, "inputs inputs"]:
    rows = x.reshape(weights.size, x.shape[-1])
    weighted = rows * weights.reshape(-1, 1).astype(x.dtype)
    return jnp.einsum("ni,nj->ij", weighted, rows, preferred_element_type=jnp.float32)
