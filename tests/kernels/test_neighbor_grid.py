"""Neighbours by a grid against brute force, ties and empty cells included, and against scipy's kd-tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from jaxlab.kernels.nearest_neighbor import nearest_neighbor
from jaxlab.kernels.neighbor_grid import grid_neighbor, neighbor_grid


def unit_grid(points, size=None):
    corner = jnp.zeros(points.shape[1], points.dtype)
    return neighbor_grid(jnp.asarray(points), corner, corner + 1, size=size)


def by_grid(queries, points, size=None, first=None):
    return grid_neighbor(unit_grid(points, size), jnp.asarray(queries), first=first)


RUN = jax.jit(by_grid)


def clustered(rng, n, d):
    """Four points of five in clouds of which some are far smaller than a cell, the others anywhere."""
    centres, std = rng.random((5, d)), np.array([0.1, 0.03, 0.01, 1e-3, 1e-5])
    which = rng.integers(5, size=n)
    cloud = centres[which] + std[which, None] * rng.normal(size=(n, d))
    return np.clip(np.where(rng.random((n, 1)) < 0.2, rng.random((n, d)), cloud), 0, 1)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", ["uniform", "clustered"])
def test_indices_are_those_of_a_tree(d, kind, double_precision):
    rng = np.random.default_rng(d)
    draw = clustered if kind == "clustered" else lambda rng, n, d: rng.random((n, d))
    points, queries = draw(rng, 4000, d), draw(rng, 3000, d)
    # Clipping to the box makes equal points, of which a tree may choose any.
    points, queries = (np.unique(x, axis=0) for x in (points, queries))
    points, queries = rng.permutation(points)[:3000], rng.permutation(queries)[:2000]
    distance, index = cKDTree(points).query(queries)
    found, squared = RUN(queries, points)
    assert np.array_equal(found, index)
    np.testing.assert_allclose(np.sqrt(squared), distance, rtol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_prefix_first_and_ties_are_those_of_brute_force(d):
    """Few distinct points, on the borders of cells and outside the box too: distances are exact, most queries tie."""
    rng = np.random.default_rng(d)
    points = (rng.integers(-2, 11, (700, d)) / 8).astype(np.float32)
    queries = (rng.integers(-4, 13, (300, d)) / 8).astype(np.float32)
    brute = jax.jit(lambda size, first: nearest_neighbor(queries, points, size=size, first=first))
    grid = jax.jit(lambda size, first: by_grid(queries, points, size, first))
    for size in (0, 1, 40, 700):
        for first in (np.zeros(300, int), rng.integers(0, 700, 300)):
            expected, expected_distance = brute(size, first)
            found, squared = grid(size, first)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(squared, expected_distance)
    assert len(np.unique(found)) > 10


@pytest.mark.parametrize("d", [2, 3])
def test_float32_finds_a_point_as_near_as_the_nearest(d):
    rng = np.random.default_rng(0)
    points = clustered(rng, 3000, d).astype(np.float32)
    queries = clustered(rng, 2000, d).astype(np.float32)
    distance, index = cKDTree(points.astype(float)).query(queries.astype(float))
    found, _ = RUN(queries, points)
    ours = np.linalg.norm(points[found].astype(float) - queries, axis=1)
    np.testing.assert_allclose(ours, distance, rtol=1e-6, atol=1e-9)


def test_cells_hardly_wider_than_rounding_hide_no_point():
    """5,000 cells of a line that lies far from 0: their borders are known to a tenth of their width."""
    rng = np.random.default_rng(0)
    points, queries = (100 + rng.random((n, 1)).astype(np.float32) for n in (20_000, 4000))
    corner = jnp.full(1, 100, jnp.float32)
    found, squared = jax.jit(lambda q, p: grid_neighbor(neighbor_grid(p, corner, corner + 1), q))(
        queries, points
    )
    expected, expected_distance = jax.jit(nearest_neighbor)(queries, points)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(squared, expected_distance)


def test_all_points_in_one_place_give_the_oldest():
    points = np.full((500, 2), 0.3, np.float32)
    found, squared = RUN(np.array([[0.3, 0.3], [0.9, 0.1]], np.float32), points)
    assert found.tolist() == [0, 0] and squared[0] == 0


def test_points_behind_the_prefix_may_be_anything():
    points = np.array([[0.1], [0.9], [np.nan], [np.inf]], np.float32)
    found, _ = RUN(np.array([[0.8], [0.2]], np.float32), points, 2)
    assert found.tolist() == [1, 0]


def test_batches_are_searched_one_by_one():
    rng = np.random.default_rng(1)
    queries, points = rng.random((3, 9, 2)).astype(np.float32), rng.random((3, 300, 2)).astype(np.float32)
    sizes = np.array([300, 1, 0])
    found, _ = jax.jit(jax.vmap(by_grid))(queries, points, sizes)
    for i in range(2):
        assert np.array_equal(found[i], cKDTree(points[i, : sizes[i]]).query(queries[i])[1])
    assert np.all(np.asarray(found[2]) == -1)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(5, 4\), \(4,\), \(4,\); must be .* with d in 1..3"):
        unit_grid(jnp.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"shapes \(5, 2\), \(3,\), \(3,\)"):
        neighbor_grid(jnp.zeros((5, 2)), jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"queries has shape \(7, 3\); it must be \(m, 2\)"):
        grid_neighbor(unit_grid(jnp.zeros((5, 2))), jnp.zeros((7, 3)))
