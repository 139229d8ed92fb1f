"""Draws by one random number against the probabilities they come from."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models.draws import draw


def test_labels_are_drawn_as_often_as_they_are_probable():
    p = np.random.default_rng(0).dirichlet(
        np.full(700, 0.02)
    )  # over three stretches of values, the last not full
    p[:3] = 0
    p /= p.sum()
    draws = 20_000
    drawn = np.asarray(draw(jax.random.key(0), jnp.broadcast_to(jnp.asarray(p, jnp.float32), (draws, 700))))
    counts = np.bincount(drawn, minlength=700)
    assert counts[p < 1e-12].sum() == 0
    seen = p * draws > 5
    expected = (p * draws)[seen]
    chi_square = ((counts[seen] - expected) ** 2 / expected).sum()
    assert seen.sum() > 10
    assert abs(chi_square - seen.sum()) < 4 * np.sqrt(2 * seen.sum())
    certain = jnp.zeros((5, 300)).at[:, 299].set(1.0)
    assert draw(jax.random.key(1), certain).tolist() == [299] * 5
