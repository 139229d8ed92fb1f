"""Damped inverses of the Kronecker factors, in the dtype of the factors (float64 where the caller enables it).

Dead structures (weights all zero, or no input or gradient energy) are taken out by masks instead of by indexing, so
that shapes stay static: their rows and columns of an inverse are zero, and what reads a zero on the diagonal of an
inverse as "dead" needs no other mask. Reference: arXiv:2312.17244, section 3 and appendix (damping).
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.kernels.cholesky import cholesky_inverse
from jaxlab.pruning.layers import over_layers
from jaxlab.pruning.masked_algebra import block

ESCALATIONS = 3
"""How often `robust_inverse_factors` multiplies a damping by ten before it gives up."""


class Inverses(NamedTuple):
    """Damped inverses of a layer's two factors (or of a stack of layers, axis 0); None stands for the identity."""

    A: Float[Array, "*layers columns columns"] | None
    """Of the input factor; zero rows and columns for dead inputs."""
    G: Float[Array, "*layers rows rows"] | None
    """Of the output-gradient factor; zero rows and columns for dead outputs."""


class Dampings(NamedTuple):
    """The damping that each layer's inverse was made with; None where there is no factor."""

    A: Float[np.ndarray, " layers"] | None
    G: Float[np.ndarray, " layers"] | None


def alive_structures(
    W: Float[Array, "rows columns"],
    A: Float[Array, "columns columns"] | None = None,
    G: Float[Array, "rows rows"] | None = None,
) -> tuple[Bool[Array, " rows"], Bool[Array, " columns"]]:
    """Which rows and columns have a weight other than zero and a positive diagonal entry in their factor.

    Args:
      W: weights of one matrix.
      A: input factor; None asks nothing of the inputs.
      G: output-gradient factor; None asks nothing of the outputs.

    Returns:
      Alive rows and alive columns.
    """
    rows, columns = (W != 0).any(axis=1), (W != 0).any(axis=0)
    if G is not None:
        rows &= jnp.diagonal(G) > 0
    if A is not None:
        columns &= jnp.diagonal(A) > 0
    return rows, columns


def damped(
    factor: Float[Array, "n n"], alive: Bool[Array, " n"], damping: float | Float[Array, ""]
) -> Float[Array, "n n"]:
    """F + damping * mean(diag F) * I over the alive entries; 1 on the diagonal of dead ones, 0 beside it.

    Args:
      factor: symmetric, positive semi-definite.
      alive: entries that take part, also in the mean.
      damping: share of the mean diagonal that is added, >= 0.

    Returns:
      The damped factor.
    """
    diagonal = jnp.diagonal(factor)
    mean = jnp.sum(jnp.where(alive, diagonal, 0)) / jnp.maximum(jnp.sum(alive), 1).astype(factor.dtype)
    return block(factor, alive) + jnp.diag(jnp.where(alive, damping * mean, 0).astype(factor.dtype))


def damped_inverse(
    factor: Float[Array, "n n"], alive: Bool[Array, " n"], damping: float | Float[Array, ""]
) -> Float[Array, "n n"]:
    """The inverse of `damped(factor, alive, damping)`, zero in the rows and columns of dead entries.

    By Cholesky; NaN where that fails (`robust_inverse_factors` deals with it). A factor that is zero on all alive
    entries gives zeros: such a matrix carries no loss, and everything in it is dead.

    Args:
      factor: symmetric, positive semi-definite; the lower triangle is read.
      alive: entries that take part.
      damping: share of the mean diagonal that is added, >= 0.

    Returns:
      Symmetric inverse.
    """
    alive &= jnp.any(jnp.where(alive[:, None] & alive, factor, 0) != 0)
    return jnp.where(alive[:, None] & alive, cholesky_inverse(damped(factor, alive, damping)), 0)


def inverse_factors(
    A: Float[Array, "layers columns columns"] | None,
    G: Float[Array, "layers rows rows"] | None,
    alive_columns: Bool[Array, "layers columns"],
    alive_rows: Bool[Array, "layers rows"],
    *,
    damp_a: float | Float[Array, " layers"],
    damp_g: float | Float[Array, " layers"],
) -> Inverses:
    """Damped inverses of stacked factors, layer after layer (`lax.map`: one layer's work space at a time).

    Args:
      A: input factors; None for the identity.
      G: output-gradient factors; None for the identity.
      alive_columns: inputs that take part.
      alive_rows: outputs that take part.
      damp_a: relative damping of A, >= 0: one for all layers or one each.
      damp_g: the same for G.

    Returns:
      The inverses; NaN in layers where Cholesky failed.

    Raises:
      InputError: a factor is not square, or its mask does not fit it.
    """
    return Inverses(
        None if A is None else _stacked_inverse(A, alive_columns, damp_a, "A"),
        None if G is None else _stacked_inverse(G, alive_rows, damp_g, "G"),
    )


def robust_inverse_factors(
    A: Float[Array, "layers columns columns"] | None,
    G: Float[Array, "layers rows rows"] | None,
    alive_columns: Bool[Array, "layers columns"],
    alive_rows: Bool[Array, "layers rows"],
    *,
    damp_a: float,
    damp_g: float,
    name: str,
    mesh: Mesh | None = None,
) -> tuple[Inverses, Dampings]:
    """`inverse_factors` for drivers: checks the factors, and raises the damping where Cholesky fails.

    Not for use under `jit`. A layer whose factorisation fails is tried again with 10, 100 and 1000 times the damping,
    with a warning that names it.

    Args:
      A: input factors; None for the identity.
      G: output-gradient factors; None for the identity.
      alive_columns: inputs that take part.
      alive_rows: outputs that take part.
      damp_a: relative damping of A, >= 0 (0 cannot be raised).
      damp_g: the same for G.
      name: of the matrix, for messages.
      mesh: its axis 'data' shares out the layers; None is one device.

    Returns:
      The inverses and the damping that each layer got.

    Raises:
      InputError: a factor has an entry that is not finite, Cholesky still fails at 1000 times the damping, a damping
        is negative, or shapes do not fit.
    """
    inverse_a, used_a = _robust_inverse(A, alive_columns, damp_a, ("A", "damp_a"), name, mesh)
    inverse_g, used_g = _robust_inverse(G, alive_rows, damp_g, ("G", "damp_g"), name, mesh)
    return Inverses(inverse_a, inverse_g), Dampings(used_a, used_g)


def _stacked_inverse(
    factors: Float[Array, "layers n n"],
    alive: Bool[Array, "layers n"],
    damping: float | Float[Array, " layers"],
    letter: str,
    mesh: Mesh | None = None,
) -> Float[Array, "layers n n"]:
    if factors.ndim != 3 or factors.shape[1] != factors.shape[2]:
        raise InputError(f"{letter} has shape {factors.shape}; stacked factors are [layers, n, n]")
    if alive.shape != factors.shape[:2]:
        raise InputError(f"the mask of {letter} has shape {alive.shape}; it must be {factors.shape[:2]}")
    dampings = jnp.broadcast_to(jnp.asarray(damping, factors.dtype), factors.shape[:1])
    # So that small factorisations of one run beside products of the other.
    return over_layers(lambda layer: damped_inverse(*layer), (factors, alive, dampings), mesh, together=2)


_stacked_inverse_jit = jax.jit(_stacked_inverse, static_argnames=("letter", "mesh"))
_damped_inverse_jit = jax.jit(damped_inverse)


def _robust_inverse(
    factors: Float[Array, "layers n n"] | None,
    alive: Bool[Array, "layers n"],
    damping: float,
    letters: tuple[str, str],
    name: str,
    mesh: Mesh | None,
) -> tuple[Float[Array, "layers n n"] | None, Float[np.ndarray, " layers"] | None]:
    """`letters`: what the factor and its damping are called."""
    letter, argument = letters
    if not damping >= 0:
        raise InputError(f"{argument} is {damping}; it must be at least 0")
    if factors is None:
        return None, None
    inverses = _stacked_inverse_jit(factors, alive, damping, letter=letter, mesh=mesh)
    used = np.full(len(factors), float(damping))
    failed = _layers_not_finite(inverses)
    for layer in _layers_not_finite(factors):
        raise InputError(
            f"the factor {letter} of {name}, layer {layer}, is not finite: look for overflow in the model's "
            "activations or gradients on the calibration text, or accumulate in float32"
        )
    for _ in range(ESCALATIONS if damping > 0 else 0):
        if not failed:
            break
        used[failed] *= 10
        warnings.warn(
            f"{letter} of {name} is not positive definite at {argument}={used[failed[0]] / 10:g} in layers "
            f"{', '.join(map(str, failed))}; trying {used[failed[0]]:g} there",
            stacklevel=3,
        )
        for layer in failed:
            again = _damped_inverse_jit(factors[layer], alive[layer], used[layer])
            inverses = inverses.at[layer].set(again)
        failed = [layer for layer in failed if not jnp.isfinite(inverses[layer]).all()]
    if failed:
        raise InputError(
            f"{letter} of {name} is not positive definite in layers {', '.join(map(str, failed))} even at "
            f"{argument}={used[failed[0]]:g}: use a larger {argument}, more calibration tokens, or float64"
        )
    return inverses, used


def _layers_not_finite(stack: Float[Array, "layers n n"]) -> list[int]:
    return np.flatnonzero(~np.asarray(_finite_layers(stack))).tolist()


@jax.jit
def _finite_layers(stack: Float[Array, "layers n n"]) -> Bool[Array, " layers"]:
    return jnp.isfinite(stack).all(axis=(1, 2))
