"""Differentiable functions of barcodes: what topological losses are made of.

Bars that live forever are left out of all of them, and so are bars of length 0. Reference: arXiv:2406.07224, section 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax.assignment
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.barcodes import Barcode
from jaxlab.persistence.checks import is_concrete, require_shape


def total_persistence(barcode: Barcode, *, power: float = 1.0) -> Float[Array, ""]:
    """Sum over finite bars of (death - birth)^power.

    Raises:
      InputError: power is not positive.
    """
    if not power > 0:
        raise InputError(f"power is {power}, but must be > 0")
    lengths = _lengths(barcode)
    # A power below 1 has no slope at 0.
    positive = lengths > 0
    return jnp.sum(jnp.where(positive, jnp.where(positive, lengths, 1) ** power, 0))


def longest_bars(barcode: Barcode, *, count: int) -> Float[Array, " count"]:
    """Lengths of the longest finite bars, falling; 0 where there are fewer.

    Raises:
      InputError: count is below 1.
    """
    if count < 1:
        raise InputError(f"count is {count}, but must be at least 1")
    lengths = _lengths(barcode)
    room = max(count - len(lengths), 0)
    return jax.lax.top_k(jnp.pad(lengths, (0, room)), count)[0]


def persistence_entropy(barcode: Barcode) -> Float[Array, ""]:
    """-sum p log p of the shares p that finite bars have in their total length, nats; 0 without bars."""
    lengths = _lengths(barcode)
    total = jnp.sum(lengths)
    positive = lengths > 0
    shares = jnp.where(positive, lengths, 1) / jnp.where(total > 0, total, 1)
    return -jnp.sum(jnp.where(positive, shares * jnp.log(shares), 0))


def landscape(
    barcode: Barcode, times: Float[Array, " samples"], *, count: int = 5
) -> Float[Array, "count samples"]:
    """Persistence landscapes: the count largest of min(t - birth, death - t)+ at every t, bars that never die included.

    Reference: Bubenik, "Statistical topological data analysis using persistence landscapes", 2015.

    Raises:
      InputError: count is below 1.
    """
    if count < 1:
        raise InputError(f"count is {count}, but must be at least 1")
    births, deaths = barcode.bars[:, 0], barcode.bars[:, 1]
    forever = jnp.isposinf(deaths)
    rising = times[:, None] - births
    falling = jnp.where(forever, 0, deaths) - times[:, None]
    tents = jnp.where(forever, rising, jnp.minimum(rising, falling))
    tents = jnp.where(barcode.mask, jnp.maximum(tents, 0), 0)
    tents = jnp.pad(tents, ((0, 0), (0, max(count - tents.shape[1], 0))))
    return jax.lax.top_k(tents, count)[0].T


def persistence_image(
    barcode: Barcode,
    births: Float[Array, " columns"],
    lengths: Float[Array, " rows"],
    *,
    bandwidth: float | Float[Array, ""],
) -> Float[Array, "rows columns"]:
    """Sum over finite bars of their length times a Gaussian at (birth, length), sampled on a grid.

    Reference: Adams et al., "Persistence images", 2017, with linear weights.

    Raises:
      InputError: bandwidth is not positive.
    """
    if is_concrete(bandwidth) and not float(bandwidth) > 0:
        raise InputError(f"bandwidth is {bandwidth}, but must be > 0")
    own = _lengths(barcode)
    along = jnp.exp(-0.5 * jnp.square((births - barcode.bars[:, :1]) / bandwidth))
    across = jnp.exp(-0.5 * jnp.square((lengths - own[:, None]) / bandwidth))
    return jnp.einsum("b,br,bc->rc", own, across, along, precision="highest") / (2 * jnp.pi * bandwidth**2)


def squared_distance(barcode: Barcode, target: Float[Array, "bars 2"]) -> Float[Array, ""]:
    """Squared 2-Wasserstein distance of the finite bars to a target diagram, by an optimal matching.

    The matching (bars to bars or to the diagonal) is constant for autodiff.

    Args:
      barcode: of any size.
      target: births and deaths, finite, birth <= death.

    Raises:
      InputError: a wrong shape, or a target that is not finite or dies before it is born.
    """
    require_shape("target", target, (None, 2))
    if is_concrete(target):
        values = np.asarray(target)
        if not np.isfinite(values).all() or (values[:, 0] > values[:, 1]).any():
            raise InputError("target must hold finite bars, each with birth <= death")
    lengths = _lengths(barcode)
    own = jnp.where((lengths > 0)[:, None], barcode.bars, 0)
    n, m = len(own), len(target)
    between = jnp.sum(jnp.square(own[:, None] - target), -1)
    alone = jnp.square(lengths) / 2  # of a bar to the diagonal
    target_alone = jnp.square(target[:, 1] - target[:, 0]) / 2
    costs = jnp.block(
        [
            [between, jnp.broadcast_to(alone[:, None], (n, n))],
            [jnp.broadcast_to(target_alone, (m, m)), jnp.zeros((m, n))],
        ]
    )
    rows, columns = optax.assignment.hungarian_algorithm(jax.lax.stop_gradient(costs))
    return jnp.sum(costs[rows, columns])


def _lengths(barcode: Barcode) -> Float[Array, " cells"]:
    """Of finite bars; 0 of the others, with no gradient."""
    finite = barcode.mask & jnp.isfinite(barcode.bars[:, 1])
    bars = jnp.where(finite[:, None], barcode.bars, 0)
    return bars[:, 1] - bars[:, 0]
