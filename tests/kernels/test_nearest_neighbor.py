"""Nearest neighbours against scipy's kd-tree and a plain double loop."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from jaxlab.kernels.nearest_neighbor import nearest_neighbor


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 6, 12])
def test_indices_are_those_of_a_tree(d, double_precision):
    rng = np.random.default_rng(d)
    points, queries = rng.random((3000, d)), rng.random((20_000, d))
    distance, index = cKDTree(points).query(queries)
    found, squared = jax.jit(nearest_neighbor)(jnp.asarray(queries), jnp.asarray(points))
    assert np.array_equal(found, index)
    np.testing.assert_allclose(np.sqrt(squared), distance, rtol=1e-12)


def test_float32_finds_a_point_as_near_as_the_nearest():
    rng = np.random.default_rng(0)
    points = rng.random((3000, 2)).astype(np.float32)
    queries = rng.random((5000, 2)).astype(np.float32)
    distance, index = cKDTree(points.astype(float)).query(queries.astype(float))
    found, _ = jax.jit(nearest_neighbor)(queries, points)
    ours = np.linalg.norm(points[found].astype(float) - queries, axis=1)
    np.testing.assert_allclose(ours, distance, rtol=1e-6)
    assert np.mean(np.asarray(found) == index) > 0.999


def test_prefix_windows_and_ties_are_those_of_a_plain_loop():
    """Few distinct points, so that nearly every query has ties, within lanes and across blocks."""
    rng = np.random.default_rng(0)
    points = rng.integers(0, 6, (1500, 2)).astype(np.float32)
    queries = rng.integers(0, 6, (40, 2)).astype(np.float32)
    first = rng.integers(0, 900, 40)
    stop = rng.integers(0, 1500, 40)
    run = jax.jit(lambda size: nearest_neighbor(queries, points, size=size, first=first, stop=stop))
    for size in (0, 5, 256, 1000, 1500):
        found, squared = run(size)
        for q in range(40):
            allowed = range(first[q], min(stop[q], size))
            expected = min(
                ((np.sum((queries[q] - points[j]) ** 2), j) for j in allowed), default=(np.inf, -1)
            )
            assert (squared[q], found[q]) == expected


def test_points_behind_the_prefix_may_be_anything():
    points = jnp.array([[0.0], [1.0], [jnp.nan], [jnp.inf]])
    found, squared = nearest_neighbor(jnp.array([[0.9], [0.2]]), points, size=2)
    assert found.tolist() == [1, 0]
    np.testing.assert_allclose(squared, [0.01, 0.04], rtol=1e-5)


def test_vmap_is_a_loop():
    rng = np.random.default_rng(1)
    queries, points = rng.random((4, 9, 3)).astype(np.float32), rng.random((4, 700, 3)).astype(np.float32)
    sizes = np.array([700, 1, 300, 0])
    run = jax.jit(jax.vmap(lambda q, p, size: nearest_neighbor(q, p, size=size)))
    found, _ = run(queries, points, sizes)
    for i in range(3):
        assert np.array_equal(found[i], cKDTree(points[i, : sizes[i]]).query(queries[i])[1])
    assert np.all(np.asarray(found[3]) == -1)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(3, 2\), \(4, 3\)"):
        nearest_neighbor(jnp.zeros((3, 2)), jnp.zeros((4, 3)))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    shapes = (jax.ShapeDtypeStruct((5, 2), jnp.float32), jax.ShapeDtypeStruct((9000, 2), jnp.float32))
    run = jax.jit(lambda q, p: nearest_neighbor(q, p, size=17, stop=jnp.arange(5)))
    assert jax.export.export(run, platforms=[platform])(*shapes).platforms == (platform,)
