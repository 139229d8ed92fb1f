"""Which models may be ancestors of others that are in the same set.

Neighbour joining puts every model at a leaf. One from which another was made has almost no branch of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.phylogeny.identities import distance, jackknife_errors, similarity


class AncestorTest(NamedTuple):
    """Row x, column y: what is said of x as an ancestor of y."""

    pendants: Float[Array, "taxa taxa"]
    """Median length of x's own branch in the trees of x, y and a third."""
    errors: Float[Array, "taxa taxa"]
    """Jackknife standard error of the distance between x and y."""
    candidates: Bool[Array, "taxa taxa"]
    """x's own branch is shorter than twice the error, and that of y is not."""


def pendant_lengths(distances: Float[Array, "taxa taxa"]) -> Float[Array, "taxa taxa"]:
    """Length of x's branch in the three-point trees of x, y and z: median over z of (D_xy + D_xz - D_yz) / 2.

    0 on the diagonal.

    Args:
      distances: of at least 3 taxa.

    Raises:
      InputError: fewer than 3 taxa.
    """
    taxa = distances.shape[0]
    if taxa < 3:
        raise InputError(f"distances has {taxa} taxa; it must have at least 3")
    third = jnp.arange(taxa)

    def of_pair(x: jax.Array, y: jax.Array) -> Float[Array, ""]:
        lengths = (distances[x, y] + distances[x] - distances[y]) / 2
        return jnp.nanmedian(jnp.where((third == x) | (third == y), jnp.nan, lengths))

    lengths = jax.lax.map(lambda x: jax.vmap(lambda y: of_pair(x, y))(third), third)
    return jnp.where(jnp.eye(taxa, dtype=bool), 0, lengths)


def ancestor_test(identities: Float[Array, "genes taxa taxa"], *, floor: float = 1e-10) -> AncestorTest:
    """For each ordered pair, whether the first may be an ancestor of the second.

    Args:
      identities: of at least 2 genes and 3 taxa; see `gene_identities`.
      floor: see `distance`.

    Raises:
      InputError: too few genes or taxa, or a floor out of its range.
    """
    pendants = pendant_lengths(distance(similarity(identities), floor=floor))
    errors = jackknife_errors(identities, floor=floor)
    short = (pendants < 2 * errors) & ~jnp.eye(pendants.shape[0], dtype=bool)
    return AncestorTest(pendants, errors, short & ~short.T)
