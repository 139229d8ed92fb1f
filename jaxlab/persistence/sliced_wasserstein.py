"""Sliced Wasserstein distance between signed measures of equal mass, as an L1 embedding.

SW(mu, nu) = mean over directions of W_1 between the projections of mu+ + nu- and of nu+ + mu-. On a line W_1 of two
measures is the integral of |F|, F the distribution function of their difference. So with all measures on one support
its points are sorted once a direction, and SW is the L1 distance of vectors: no multiplicities are written out, and
nothing is sorted pair by pair. exp(-SW / (2 sigma^2)) is a positive definite kernel. Reference: arXiv:2306.03801,
section 3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.checks import is_concrete, require_no_nan, require_shape
from jaxlab.persistence.measures import DenseMeasure, SparseMeasure, atoms_of

_FEATURES_AT_ONCE = {"cpu": 2**10}
"""Features of one pass over all pairs; everywhere else all. On a CPU both blocks must stay in a core's cache."""


def random_directions(key: Array, parameters: int, *, count: int = 50) -> Float[Array, "p directions"]:
    """Unit vectors, uniform on the sphere.

    Raises:
      InputError: parameters or count below 1.
    """
    if parameters < 1 or count < 1:
        raise InputError(f"parameters is {parameters} and count is {count}; both must be at least 1")
    vectors = jax.random.normal(key, (parameters, count))
    return vectors / jnp.linalg.norm(vectors, axis=0)


def sw_embedding(
    points: Float[Array, "support p"],
    weights: Float[Array, "measures support"],
    directions: Float[Array, "p directions"],
    *,
    scales: Float[Array, " p"] | None = None,
) -> Float[Array, "measures features"]:
    """Vectors whose L1 distances are the sliced Wasserstein distances; differentiable in points and weights.

    Args:
      points: of a support that all measures share, such as a grid's; duplicates do no harm.
      weights: of each measure on it, of any sign; all measures must have the same total (see `balance_mass`).
      directions: unit vectors, see `random_directions`.
      scales: of the parameters; the term of direction theta counts |scales * theta| times.

    Returns:
      Features = directions (support - 1), direction after direction.

    Raises:
      InputError: a wrong shape, NaN, or totals that differ.
    """
    require_shape("points", points, (None, None))
    support, parameters = points.shape
    require_shape("weights", weights, (None, support))
    require_shape("directions", directions, (parameters, None))
    require_no_nan("points", points)
    require_no_nan("weights", weights)
    _require_equal_mass(weights)
    importance = jnp.ones(directions.shape[1], points.dtype)
    if scales is not None:
        require_shape("scales", scales, (parameters,))
        importance = jnp.linalg.norm(scales[:, None] * directions, axis=0)
    weights = weights.astype(points.dtype)

    def along(direction: Array, factor: Array) -> Array:
        projected = jnp.matmul(points, direction, precision="highest")
        order = jnp.argsort(jax.lax.stop_gradient(projected))
        gaps = jnp.diff(projected[order]) * (factor / directions.shape[1])
        return jnp.cumsum(weights[:, order], axis=1)[:, :-1] * gaps

    found = jax.vmap(along, in_axes=(1, 0), out_axes=1)(directions, importance)
    return found.reshape(len(weights), -1)


def sw_matrix(first: Float[Array, "n features"], second: Float[Array, "m features"]) -> Float[Array, "n m"]:
    """Sliced Wasserstein distances of all pairs, from `sw_embedding`s on the same support and directions.

    Raises:
      InputError: the numbers of features differ.
    """
    require_shape("first", first, (None, None))
    require_shape("second", second, (None, first.shape[1]))
    features = first.shape[1]
    at_once = max(1, min(_FEATURES_AT_ONCE.get(jax.default_backend(), features), features))
    blocks = -(-features // at_once)

    def blocked(vectors: Array) -> Array:
        padded = jnp.pad(vectors, ((0, 0), (0, blocks * at_once - features)))
        return padded.reshape(len(vectors), blocks, at_once).swapaxes(0, 1)

    def add(distances: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        own, other = block
        # Row by row: the [n, m, features] differences need not exist even where a compiler would write them out.
        return distances + jax.lax.map(lambda row: jnp.sum(jnp.abs(row - other), axis=1), own), None

    none = jnp.zeros((len(first), len(second)), jnp.result_type(first, second))
    return jax.lax.scan(add, none, (blocked(first), blocked(second)))[0]


def sw_kernel(distances: Float[Array, "n m"], *, sigma: float | Float[Array, ""]) -> Float[Array, "n m"]:
    """exp(-SW / (2 sigma^2)), positive definite.

    Raises:
      InputError: sigma is not positive.
    """
    if is_concrete(sigma) and not float(sigma) > 0:
        raise InputError(f"sigma is {sigma}, but must be > 0")
    return jnp.exp(-distances / (2 * jnp.square(sigma)))


def sw_distance(
    first: DenseMeasure | SparseMeasure,
    second: DenseMeasure | SparseMeasure,
    directions: Float[Array, "p directions"],
    *,
    scales: Float[Array, " p"] | None = None,
) -> Float[Array, ""]:
    """Distance of two measures on any supports; differentiable in their points, weights constant.

    Args:
      first: of the same total mass as `second`; `balance_mass` makes both zero.
      second: the other one, often a fixed target.
      directions: unit vectors.
      scales: see `sw_embedding`.

    Raises:
      InputError: as `sw_embedding`.
    """
    own, other = atoms_of(first), atoms_of(second)
    require_shape("second's points", other.points, (None, own.points.shape[1]))
    masses = jnp.stack([jnp.sum(jnp.where(one.mask, one.weights, 0)) for one in (own, other)])
    _require_equal_mass(masses[:, None])
    points = jnp.concatenate([own.points, other.points.astype(own.points.dtype)])
    weights = jnp.concatenate([jnp.where(own.mask, own.weights, 0), -jnp.where(other.mask, other.weights, 0)])
    return jnp.sum(jnp.abs(sw_embedding(points, weights[None], directions, scales=scales)))


def _require_equal_mass(weights: Float[Array, "measures support"]) -> None:
    if not is_concrete(weights):
        return
    totals = np.asarray(weights).sum(axis=1)
    tolerance = 1e-5 * max(1.0, float(np.abs(np.asarray(weights)).sum(axis=1).max(initial=0)))
    if len(totals) and np.ptp(totals) > tolerance:
        raise InputError(
            f"the measures have unequal mass, from {totals.min():g} to {totals.max():g}; call balance_mass first"
        )
