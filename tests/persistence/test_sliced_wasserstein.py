"""Sliced Wasserstein distances against SciPy's one-dimensional ones, and the properties of a metric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from jaxlab.errors import InputError
from jaxlab.persistence.grids import Grid
from jaxlab.persistence.measures import DenseMeasure, SparseMeasure, balance_mass
from jaxlab.persistence.sliced_wasserstein import (
    random_directions,
    sw_distance,
    sw_embedding,
    sw_kernel,
    sw_matrix,
)

pytestmark = pytest.mark.usefixtures("double_precision")


def random_measures(count, support, p, seed):
    """Points and integer weights of total zero."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(support, p))
    points[-1] = points[0]  # a duplicate
    weights = rng.integers(-3, 4, (count, support))
    weights[:, 1] -= weights.sum(axis=1)
    return points, weights


def distance_of(points, mu, nu, directions, scales):
    """Mean over directions of W_1 between mu+ + nu- and nu+ + mu-, with multiplicities as SciPy's weights."""
    left, right = np.maximum(mu, 0) + np.maximum(-nu, 0), np.maximum(nu, 0) + np.maximum(-mu, 0)
    total = 0.0
    for direction in directions.T:
        projected = points @ direction
        one = wasserstein_distance(projected, projected, left, right) * left.sum()
        total += np.linalg.norm(scales * direction) * one
    return total / directions.shape[1]


@settings(max_examples=6)
@given(st.sampled_from([1, 2, 3]), st.integers(0, 2**31))
def test_distances_are_those_of_transport_on_lines(p, seed):
    points, weights = random_measures(4, 9, p, seed)
    directions = np.asarray(random_directions(jax.random.key(seed), p, count=5))
    scales = np.random.default_rng(seed).uniform(0.5, 2, p)
    vectors = sw_embedding(
        jnp.asarray(points), jnp.asarray(weights), jnp.asarray(directions), scales=jnp.asarray(scales)
    )
    found = sw_matrix(vectors, vectors)
    for i in range(4):
        for j in range(i):
            expected = distance_of(points, weights[i], weights[j], directions, scales)
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-9)
            pair = [
                SparseMeasure(jnp.asarray(points), jnp.asarray(w), jnp.asarray(w != 0))
                for w in (weights[i], weights[j])
            ]
            alone = sw_distance(*pair, jnp.asarray(directions), scales=jnp.asarray(scales))
            assert float(alone) == pytest.approx(expected, rel=1e-9)


def test_distances_are_a_metric_and_kernels_positive_definite():
    points, weights = random_measures(12, 20, 2, 1)
    directions = random_directions(jax.random.key(0), 2, count=20)
    np.testing.assert_allclose(jnp.linalg.norm(directions, axis=0), 1, rtol=1e-12)
    vectors = sw_embedding(jnp.asarray(points), jnp.asarray(weights), directions)
    d = np.asarray(sw_matrix(vectors, vectors))
    assert np.all(np.diag(d) == 0) and np.all(d == d.T) and np.all(d[~np.eye(12, dtype=bool)] > 0)
    assert np.all(d[:, None, :] <= d[:, :, None] + d[None] + 1e-12)
    for sigma in (0.1, 1.0, 10.0):
        kernel = sw_kernel(jnp.asarray(d), sigma=sigma)
        np.testing.assert_allclose(kernel, np.exp(-d / (2 * sigma**2)), rtol=1e-12)
        assert np.linalg.eigvalsh(kernel).min() > -1e-9


@pytest.mark.parametrize("features", [0, 7, 2500])
def test_matrix_is_the_city_block_distance_for_any_number_of_features(features):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, features)), rng.normal(size=(3, features))
    expected = np.abs(first[:, None] - second).sum(-1)
    np.testing.assert_allclose(sw_matrix(jnp.asarray(first), jnp.asarray(second)), expected, rtol=1e-13)
    slopes = jax.grad(lambda x: jnp.sum(sw_matrix(x, jnp.asarray(second))))(jnp.asarray(first))
    np.testing.assert_allclose(slopes, np.sign(first[:, None] - second).sum(1), atol=1e-12)


def test_moving_one_point_costs_its_way():
    """A unit atom moved by (3, 4): the mean of |<theta, (3, 4)>|, 5 * 2 / pi over all directions."""
    angles = np.linspace(0, np.pi, 1000, endpoint=False)
    directions = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)]))
    start, end = (
        SparseMeasure(jnp.asarray([point]), jnp.ones(1, int), jnp.ones(1, bool))
        for point in ([1.0, 2.0], [4.0, 6.0])
    )
    assert float(sw_distance(start, end, directions)) == pytest.approx(10 / np.pi, rel=1e-5)


def test_gradients_in_points_are_finite_differences():
    points, weights = random_measures(2, 7, 2, 5)
    points[-1] = [0.31, 0.77]
    directions = random_directions(jax.random.key(2), 2, count=6)
    target = SparseMeasure(jnp.asarray(points), jnp.asarray(weights[1]), jnp.ones(7, bool))

    def loss(points):
        return sw_distance(SparseMeasure(points, weights[0], jnp.ones(7, bool)), target, directions)

    start = jnp.asarray(points + 0.05 * np.random.default_rng(3).normal(size=points.shape))
    gradient = jax.jit(jax.grad(loss))(start)
    direction = np.random.default_rng(4).normal(size=points.shape)
    h = 1e-6
    slope = (loss(start + h * direction) - loss(start - h * direction)) / (2 * h)
    assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(slope), rel=1e-6)


def test_dense_measures_are_their_atoms():
    grid = Grid((jnp.asarray([0.0, 1.0, 2.0]), jnp.asarray([0.0, 3.0])))
    one, other = (
        balance_mass(DenseMeasure(jnp.asarray(weights), grid), jnp.asarray([5.0, 5.0]))
        for weights in ([[1, 0], [0, -1], [0, 2]], [[0, 1], [1, 0], [0, 0]])
    )
    points = np.stack(np.meshgrid(*one.grid.coords, indexing="ij"), -1).reshape(-1, 2)
    directions = np.asarray(random_directions(jax.random.key(0), 2, count=4))
    expected = distance_of(
        points, np.asarray(one.weights).ravel(), np.asarray(other.weights).ravel(), directions, np.ones(2)
    )
    assert float(sw_distance(one, other, jnp.asarray(directions))) == pytest.approx(expected, rel=1e-9)


def test_wrong_use_is_named():
    directions = random_directions(jax.random.key(0), 2, count=3)
    points = jnp.zeros((2, 2))
    with pytest.raises(InputError, match="unequal mass, from 0 to 1; call balance_mass"):
        sw_embedding(points, jnp.asarray([[1, 0], [1, -1]]), directions)
    with pytest.raises(InputError, match=r"points\[0, 0\] is nan"):
        sw_embedding(points.at[0, 0].set(jnp.nan), jnp.zeros((1, 2)), directions)
    with pytest.raises(InputError, match="directions has shape"):
        sw_embedding(points, jnp.zeros((1, 2)), directions[:1])
    with pytest.raises(InputError, match="sigma is 0"):
        sw_kernel(jnp.zeros((1, 1)), sigma=0.0)
    with pytest.raises(InputError, match="count is 0"):
        random_directions(jax.random.key(0), 2, count=0)
