"""Other ways to compare allele frequencies than Nei's, for a look at what the choice of distance does."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError

Divergence = Literal["jensen_shannon", "hellinger", "cosine", "reynolds", "chord"]


def divergence(
    shares: Float[Array, "models genes alleles"], *, kind: Divergence
) -> Float[Array, "models models"]:
    """Divergence of every pair of models.

    "jensen_shannon": mean over genes of the Jensen-Shannon divergence in nats. Reference: Lin, 1991.
    "hellinger": mean over genes of sqrt(1 - sum_a sqrt(p q)).
    "cosine": 1 less the mean over genes of the cosine of the two frequency vectors.
    "reynolds": sqrt(sum_g sum_a (p - q)^2 / (2 sum_g (1 - sum_a p q))). Reference: Reynolds, Weir and Cockerham, 1983.
    "chord": (2 / pi) mean over genes of sqrt(2 (1 - sum_a sqrt(p q))). Reference: Cavalli-Sforza and Edwards, 1967.

    Args:
      shares: allele frequencies of each gene, which sum to 1.
      kind: see above.

    Raises:
      InputError: an unknown kind.
    """
    if kind not in get_args(Divergence):
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(get_args(Divergence))}")
    shares = jnp.asarray(shares)
    pair = _PAIRS[kind]
    # One row of the matrix at a time: all pairs of frequencies together would not fit into memory.
    return jax.lax.map(lambda one: jax.vmap(lambda other: pair(one, other))(shares), shares)


_Pair = Callable[[Float[Array, "genes alleles"], Float[Array, "genes alleles"]], Float[Array, ""]]


def _jensen_shannon(p: Float[Array, "genes alleles"], q: Float[Array, "genes alleles"]) -> Float[Array, ""]:
    middle = jnp.where(p + q > 0, (p + q) / 2, 1)
    return (_p_log(p, middle) + _p_log(q, middle)).sum(-1).mean() / 2


def _p_log(
    p: Float[Array, "genes alleles"], middle: Float[Array, "genes alleles"]
) -> Float[Array, "genes alleles"]:
    return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1) / middle), 0)


def _one_less_affinity(
    p: Float[Array, "genes alleles"], q: Float[Array, "genes alleles"]
) -> Float[Array, " genes"]:
    """1 - sum sqrt(p q) as half the sum of squared differences, which is 0 exactly for equal frequencies."""
    return ((jnp.sqrt(p) - jnp.sqrt(q)) ** 2).sum(-1) / 2


def _hellinger(p: Float[Array, "genes alleles"], q: Float[Array, "genes alleles"]) -> Float[Array, ""]:
    return jnp.sqrt(_one_less_affinity(p, q)).mean()


def _chord(p: Float[Array, "genes alleles"], q: Float[Array, "genes alleles"]) -> Float[Array, ""]:
    return 2 / jnp.pi * jnp.sqrt(2 * _one_less_affinity(p, q)).mean()


def _cosine(p: Float[Array, "genes alleles"], q: Float[Array, "genes alleles"]) -> Float[Array, ""]:
    norms = jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(q, axis=-1)
    return 1 - ((p * q).sum(-1) / norms).mean()


def _reynolds(p: Float[Array, "genes alleles"], q: Float[Array, "genes alleles"]) -> Float[Array, ""]:
    apart, differing = ((p - q) ** 2).sum(), (1 - (p * q).sum(-1)).sum()
    return jnp.sqrt(apart / jnp.where(differing > 0, 2 * differing, 1))


_PAIRS: dict[str, _Pair] = {
    "jensen_shannon": _jensen_shannon,
    "hellinger": _hellinger,
    "cosine": _cosine,
    "reynolds": _reynolds,
    "chord": _chord,
}
