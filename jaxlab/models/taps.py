"""Gradients at the outputs of weight matrices, taken as cotangents of dummy inputs; no weight gradient is computed.

A `Tapped` leaf acts like its matrix. Differentiate with respect to its `dummy` (zeros), and what comes back is not a
derivative but what was asked for: the gradients g of all tokens, or the sum of g g^T over them. `sweep_back` does so
for all blocks of a model, last to first, and hands over what each one shows before it goes on to the next, so that
nothing of a block lives longer than that.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.kernels.syrk import syrk_accumulate, tokens_last
from jaxlab.models.config import ModelConfig
from jaxlab.models.fast_products import fast_transposed_product
from jaxlab.models.linear import dense, linear, matrix_names, matrix_shape, register_linear
from jaxlab.models.transformer import Taps, block_by_index, default_positions, embed

Kept = Literal["tokens", "moment"]
Precision = Literal["float32", "bfloat16"]
Carry = TypeVar("Carry")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "dummy", "counted"],
    meta_fields=["kept", "precision"],
)
@dataclasses.dataclass(frozen=True)
class Tapped:
    """A matrix with a dummy input whose cotangent tells about the gradient g at the matrix's outputs.

    Attributes:
        weight: any leaf that `linear` takes.
        dummy: zeros, see `dummy`.
        counted: tokens whose gradients are taken, those of the others count as zero; None is all.
        kept: static. With "tokens" the cotangent is g itself, a column a token, the batch's rows of tokens one after
            the other; with "moment" the sum of g g^T over the tokens.
        precision: static; what g is rounded to.
    """

    weight: Any
    dummy: Float[Array, "outputs kept"]
    counted: Bool[Array, "batch time"] | None = None
    kept: Kept = "tokens"
    precision: Precision = "bfloat16"


def dummy(outputs: int, tokens: int, kept: Kept, precision: Precision) -> Float[Array, "outputs kept"]:
    """Zeros as `Tapped` wants them: `[outputs, tokens]` in the given precision, or float32 `[outputs, outputs]`."""
    return jnp.zeros((outputs, tokens), precision) if kept == "tokens" else jnp.zeros((outputs, outputs))


def columns(x: Float[Array, "batch time width"], precision: Precision) -> Float[Array, "width tokens"]:
    """Rounded, a column a token, the batch's rows of tokens one after the other."""
    return tokens_last(x.reshape(-1, x.shape[-1]).astype(precision))


def outer_sum(x: Float[Array, "width tokens"]) -> Float[Array, "width width"]:
    """Sum over the tokens of x x^T, in float32; symmetric, from bfloat16 up to rounding.

    In bfloat16 computing both halves is faster on a CPU than mirroring one.
    """
    return fast_transposed_product(x, x) if x.dtype == jnp.bfloat16 else syrk_accumulate(None, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tap(kept: Kept, precision: Precision, y: Array, dummy: Array, counted: Array | None) -> Array:
    del kept, precision, dummy, counted
    return y


def _forward(
    kept: Kept, precision: Precision, y: Array, dummy: Array, counted: Array | None
) -> tuple[Array, Array | None]:
    del kept, precision, dummy
    return y, counted


def _backward(
    kept: Kept, precision: Precision, counted: Array | None, gradient: Array
) -> tuple[Array, Array, None]:
    seen = gradient if counted is None else gradient * counted[..., None]
    shown = columns(seen, precision)
    return gradient, shown if kept == "tokens" else outer_sum(shown), None


_tap.defvjp(_forward, _backward)
register_linear(
    Tapped,
    lambda x, leaf: _tap(leaf.kept, leaf.precision, linear(x, leaf.weight), leaf.dummy, leaf.counted),
    lambda leaf: dense(leaf.weight),
)


def add_to_layer(
    total: Float[Array, "layers *shape"], index: Int[Array, ""], new: Float[Array, "*shape"]
) -> Float[Array, "layers *shape"]:
    """`total` with `new` added to one layer; in place where `visit` does it to what it carries."""
    here = lax.dynamic_index_in_dim(total, index, keepdims=False)
    return lax.dynamic_update_index_in_dim(total, here + new, index, 0)


def run_and_keep(
    params: dict[str, Any], cfg: ModelConfig, tokens: Int[Array, "batch time"]
) -> tuple[Float[Array, "batch time hidden"], Float[Array, "layers batch time hidden"]]:
    """What the last block returns (`final_norm` comes after it), and the input of every block.

    Args:
        params: the model, layers stacked.
        cfg: static.
        tokens: int32.
    """
    run = block_by_index(cfg, default_positions(tokens.shape[0], tokens.shape[1], None))

    def step(hidden: Array, inputs: tuple[Any, Array]) -> tuple[Array, Array]:
        layer, index = inputs
        return run(layer, hidden, index)[0], hidden

    return lax.scan(step, embed(params, cfg, tokens), (params["layers"], jnp.arange(cfg.num_layers)))


def sweep_back(
    params: dict[str, Any],
    cfg: ModelConfig,
    states: Float[Array, "layers batch time hidden"],
    cotangents: Sequence[Float[Array, "batch time hidden"]],
    visit: Callable[[Carry, Int[Array, ""], Taps, list[dict[str, Array]]], Carry],
    carry: Carry,
    *,
    kept: Kept,
    precision: Precision,
    counted: Bool[Array, "batch time"] | None = None,
) -> Carry:
    """Backward through the blocks, one at a time; each one's forward pass is done again.

    Args:
        params: the model, layers stacked.
        cfg: static.
        states: from `run_and_keep`.
        cotangents: of what the last block returns, one for each backward pass.
        visit: (carry, index of the block, its taps, what `Tapped` says by matrix for each cotangent) -> carry.
        carry: what to begin with; arrays that `visit` updates in place are not copied.
        kept: see `Tapped`.
        precision: see `Tapped`.
        counted: see `Tapped`.
    """
    _, batch, time, _ = states.shape
    run = block_by_index(cfg, default_positions(batch, time, None))

    def one(step: Array, carried: tuple[list[Array], Carry]) -> tuple[list[Array], Carry]:
        cotangents, carry = carried
        index = cfg.num_layers - 1 - step
        layer, hidden = jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), (params["layers"], states)
        )

        def tapped_block(hidden: Array, dummies: dict[str, Array]) -> tuple[Array, Taps]:
            tapped = {name: Tapped(layer[name], dummies[name], counted, kept, precision) for name in dummies}
            after, _, taps = run(layer | tapped, hidden, index)
            return after, taps

        dummies = {}
        for name in matrix_names(layer):
            dummies[name] = dummy(matrix_shape(layer[name])[0], batch * time, kept, precision)
        _, pull_back, taps = jax.vjp(tapped_block, hidden, dummies, has_aux=True)
        before, shown = zip(*map(pull_back, cotangents), strict=True)
        return list(before), visit(carry, index, taps, list(shown))

    return lax.fori_loop(0, cfg.num_layers, one, (list(cotangents), carry))[1]
