"""Whitening and symmetric FastICA of the rows of a matrix, of which some rows and columns may be left out.

Reference: Hyvarinen and Oja, "Independent component analysis: algorithms and applications", 2000, section 6; options as
in scikit-learn's `FastICA`: unit variance, logcosh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError


class Projection(NamedTuple):
    """A row x becomes (x - mean) @ axes.T."""

    mean: Float[Array, " columns"]
    axes: Float[Array, "components columns"]

    def __call__(self, rows: Float[Array, "rows columns"]) -> Float[Array, "rows components"]:
        """The components of these rows."""
        return (rows - self.mean) @ self.axes.T


def whitening(
    data: Float[Array, "rows columns"],
    rows: Bool[Array, " rows"],
    columns: Bool[Array, " columns"],
    *,
    components: int,
) -> Projection:
    """The first principal components, each of unit variance over the rows; the first column left has no negative share.

    Args:
      data: finite.
      rows: which to fit to.
      columns: which to look at.
      components: at least 1, and below the number of rows and of columns.

    Raises:
      InputError: `components` is below 1, or not below the sizes of the matrix.
    """
    if not 1 <= components < min(data.shape):
        raise InputError(f"components is {components}; it must be in 1..{min(data.shape) - 1}")
    number = rows.sum()
    mean = jnp.where(rows[:, None], data, 0).sum(0) / number
    centred = jnp.where(rows[:, None] & columns, data - mean, 0)
    _, values, axes = jnp.linalg.svd(centred, full_matrices=False)
    kept = jnp.where(columns, axes[:components], 0)
    signs = jnp.where(kept[:, jnp.argmax(columns)] < 0, -1, 1)
    scale = signs * jnp.sqrt(number) / values[:components]
    return Projection(jnp.where(columns, mean, 0), kept * scale[:, None])


def fast_ica(
    start: Float[Array, "components components"],
    data: Float[Array, "rows columns"],
    rows: Bool[Array, " rows"],
    columns: Bool[Array, " columns"],
    *,
    steps: int = 200,
    tolerance: float = 1e-4,
) -> Projection:
    """Independent components of unit variance, all of them found together.

    Args:
      start: any regular matrix, such as one of normal draws.
      data: finite.
      rows: which to fit to.
      columns: which to look at.
      steps: at most so many.
      tolerance: ends when no direction turns by more than this (1 less the size of its cosine).

    Raises:
      InputError: more components than `whitening` can give.
    """
    white = whitening(data, rows, columns, components=start.shape[0])
    values = jnp.where(rows[:, None], white(data), 0)
    number = rows.sum()

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        turned, _, done = state
        squashed = jnp.tanh(values @ turned.T)
        slopes = jnp.where(rows[:, None], 1 - squashed**2, 0).sum(0) / number
        after = _decorrelated(squashed.T @ values / number - slopes[:, None] * turned)
        turn = jnp.abs(jnp.abs((after * turned).sum(1)) - 1).max()
        return after, turn, done + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] >= tolerance) & (state[2] < steps)

    begin = (_decorrelated(start), jnp.array(jnp.inf, start.dtype), jnp.array(0))
    turned, _, _ = jax.lax.while_loop(unfinished, step, begin)
    # A rotation of white components keeps their variance at 1.
    return Projection(white.mean, turned @ white.axes)


def _decorrelated(matrix: Float[Array, "size size"]) -> Float[Array, "size size"]:
    """(W W^T)^(-1/2) W."""
    values, vectors = jnp.linalg.eigh(matrix @ matrix.T)
    roots = jnp.sqrt(jnp.maximum(values, jnp.finfo(matrix.dtype).tiny))
    return (vectors / roots) @ vectors.T @ matrix
