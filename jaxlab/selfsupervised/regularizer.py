"""T-REGS: long minimum spanning trees, softly held at the unit sphere, keep embeddings from collapsing.

Each view has a tree of its own: on the union of two views the pairs would be its shortest edges, and the regulariser
would push them apart. Embeddings are the projector's output, not normalised. Reference: arXiv:2510.23484, section 4.
"""

import dataclasses
import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.kernels.mst import mst_length
from jaxlab.selfsupervised.checks import require_embeddings, require_number, require_views


class TregTerms(NamedTuple):
    """What the loss is made of."""

    length: Float[Array, ""]
    """E / n, the length of the tree per point."""
    sphere: Float[Array, ""]
    """Mean of (|z| - 1)^2."""
    radius: Float[Array, ""]
    """Mean of |z|."""


def treg(
    embeddings: Float[Array, "n d"],
    *,
    gamma: float = 0.2,
    lam: float = 8e-4,
    alpha: float = 1.0,
    algorithm: str | None = None,
) -> tuple[Float[Array, ""], TregTerms]:
    """L = -gamma E / n + lam mean (|z| - 1)^2 for one view.

    With small lam the radius at the optimum is far above 1, see `simplex_radius`.

    Args:
      embeddings: n >= 2 rows; NaN in, NaN out.
      gamma: of the length, >= 0.
      lam: of the distance from the sphere, >= 0.
      alpha: power of the edges' lengths, > 0; 1 in the paper.
      algorithm: of the tree, see `jaxlab.kernels.mst.mst_of_points`.

    Raises:
      InputError: a number out of range, fewer than two rows, or not a matrix.

    Reference: arXiv:2510.23484, equations of section 4.1.
    """
    require_embeddings("embeddings", embeddings)
    require_number("gamma", gamma, at_least=0)
    require_number("lam", lam, at_least=0)
    require_number("alpha", alpha, above=0)
    embeddings = embeddings.astype(jnp.promote_types(embeddings.dtype, jnp.float32))
    length = mst_length(embeddings, alpha=alpha, algorithm=algorithm) / len(embeddings)
    squares = jnp.sum(jnp.square(embeddings), axis=1)
    # A point at the origin has no direction to be pushed in: gradient 0 instead of NaN.
    norms = jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))
    sphere = jnp.mean(jnp.square(norms - 1))
    return lam * sphere - gamma * length, TregTerms(length, sphere, jnp.mean(norms))


def tregs(
    first: Float[Array, "n d"],
    second: Float[Array, "n d"],
    *,
    gamma: float = 0.2,
    lam: float = 8e-4,
    alpha: float = 1.0,
    algorithm: str | None = None,
) -> Float[Array, ""]:
    """The sum of `treg` over two views, a tree each.

    Args:
      first: embeddings of one view, n >= 2 rows.
      second: of the other view.
      gamma: see `treg`.
      lam: see `treg`.
      alpha: see `treg`.
      algorithm: see `treg`.

    Raises:
      InputError: as `treg`, or the shapes differ.
    """
    require_views(first, second)
    loss, _ = jax.vmap(lambda view: treg(view, gamma=gamma, lam=lam, alpha=alpha, algorithm=algorithm))(
        jnp.stack([first, second])
    )
    return jnp.sum(loss)


@dataclasses.dataclass(frozen=True)
class TregsConfig:
    """Coefficients of beta * objective + T-REGS; the defaults are the paper's for MSE + T-REGS on ImageNet.

    Raises:
      InputError: a number out of range.

    Reference: arXiv:2510.23484, section 5 and appendix; CLIP fine-tuning takes (1, 3e-3, 2e-5).
    """

    beta: float = 10.0
    """Of the objective that pulls views together, >= 0."""
    gamma: float = 0.2
    """Of the length of the tree, >= 0."""
    lam: float = 8e-4
    """Of the distance from the unit sphere, >= 0."""
    alpha: float = 1.0
    """Power of the edges' lengths, > 0."""

    def __post_init__(self) -> None:
        require_number("beta", self.beta, at_least=0)
        require_number("gamma", self.gamma, at_least=0)
        require_number("lam", self.lam, at_least=0)
        require_number("alpha", self.alpha, above=0)
        if not self.beta >= self.gamma >= self.lam:
            warnings.warn(
                f"beta = {self.beta}, gamma = {self.gamma}, lam = {self.lam}: the paper reports collapse unless "
                "beta >= gamma >= lam",
                stacklevel=3,
            )


def combine(
    objective: Float[Array, ""],
    first: Float[Array, "n d"],
    second: Float[Array, "n d"],
    *,
    config: TregsConfig | None = None,
    algorithm: str | None = None,
) -> Float[Array, ""]:
    """beta * objective + T-REGS of the two views; with `mse_invariance` as the objective, the method on its own.

    Args:
      objective: value of the joint-embedding loss.
      first: embeddings of one view.
      second: of the other view.
      config: coefficients, the paper's by default.
      algorithm: see `treg`.

    Raises:
      InputError: as `tregs`.
    """
    config = TregsConfig() if config is None else config
    return config.beta * objective + tregs(
        first, second, gamma=config.gamma, lam=config.lam, alpha=config.alpha, algorithm=algorithm
    )


def simplex_length(n: int, *, radius: float = 1.0) -> float:
    """(n - 1) radius sqrt(2n / (n - 1)): the longest minimum spanning tree of n points within a ball, n <= d + 1.

    Attained at regular simplices alone, whose cosines are -1 / (n - 1).

    Raises:
      InputError: n below 2, or a negative radius.

    Reference: arXiv:2510.23484, theorem 4.1.
    """
    _require_two(n)
    require_number("radius", radius, at_least=0)
    return (n - 1) * radius * math.sqrt(2 * n / (n - 1))


def simplex_radius(n: int, *, gamma: float, lam: float) -> float:
    """Radius of the simplex that minimises `treg`: 1 + simplex_length(n) / n * gamma / (2 lam), for n <= d + 1.

    Raises:
      InputError: n below 2, gamma negative, or lam not positive.
    """
    _require_two(n)
    require_number("gamma", gamma, at_least=0)
    require_number("lam", lam, above=0)
    return 1 + simplex_length(n) / n * gamma / (2 * lam)


def uniformity(embeddings: Float[Array, "n d"], *, algorithm: str | None = None) -> Float[Array, ""]:
    """U = -E / sqrt(2 (d + 1) / d).

    Permuting or cloning points leaves U as it is; appending zero coordinates or cloning all coordinates lowers it, or
    leaves it where all points are equal.

    Args:
      embeddings: n >= 2 rows.
      algorithm: see `treg`.

    Raises:
      InputError: fewer than two rows, or not a matrix.

    Reference: arXiv:2510.23484, section 4; the four properties are those of arXiv:2403.00642.
    """
    require_embeddings("embeddings", embeddings)
    d = embeddings.shape[1]
    return -mst_length(embeddings, algorithm=algorithm) / math.sqrt(2 * (d + 1) / d)


def _require_two(n: int) -> None:
    if n < 2:
        raise InputError(f"n is {n}; it must be at least 2")
