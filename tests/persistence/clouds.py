"""Point clouds that several tests look at, and the loss of the twelve-point case."""

import jax.numpy as jnp
import numpy as np

from jaxlab.persistence import pairwise_distance


def cloud(n, q=1, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    points, values = rng.normal(size=(n, 2)), rng.normal(size=(n, q))
    if decimals is not None:
        points, values = points.round(decimals), values.round(decimals)
    return pairwise_distance(jnp.asarray(points, jnp.float32)), jnp.asarray(values, jnp.float32)


def noisy_circle(n=12):
    """The cloud of the spec: 50 points of a noisy unit circle, of which the first n."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 50)
    points = np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(size=(50, 2)) * 0.1
    return points[:n]


def phi_loss(measure):
    r, s = measure.grid.coords
    return jnp.sum(measure.weights * jnp.exp(-((r[:, None] - 0.5) ** 2 + (s - 1) ** 2)))
