"""Dimension and entropy of clouds whose dimension and entropy are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from jaxlab.errors import InputError
from jaxlab.selfsupervised import mst_constant, mst_dimension, renyi_entropy_mst


@pytest.mark.parametrize(("d", "expected", "tolerance"), [(2, 1.96, 0.15), (4, 3.77, 0.4), (8, 7.09, 1.2)])
def test_cubes_have_their_dimension_in_any_space(d, expected, tolerance):
    """Turned into a space of ten dimensions, which changes no distance."""
    rng = np.random.default_rng(d)
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0][:d]
    points = jnp.asarray(rng.random((2048, d)) @ turn, jnp.float32)
    found = jax.jit(mst_dimension)(points, jax.random.key(0))
    assert float(found.dimension) == pytest.approx(expected, abs=tolerance)
    assert float(found.slope) == pytest.approx(1 - 1 / float(found.dimension), rel=1e-5)


def test_the_line_is_numpys_through_scipys_lengths():
    """With whole sets for subsets of the largest size, that one length is known."""
    points = np.random.default_rng(0).random((64, 3)).astype(np.float32)
    found = mst_dimension(jnp.asarray(points), jax.random.key(1), sizes=(16, 32, 64), subsets=2)
    whole = minimum_spanning_tree(squareform(pdist(points))).sum()
    assert float(found.log_lengths[2]) == pytest.approx(np.log(whole), rel=1e-6)
    slope = np.polyfit(np.log([16, 32, 64]), np.asarray(found.log_lengths, np.float64), 1)[0]
    assert float(found.slope) == pytest.approx(slope, rel=1e-5)


def test_growth_like_n_has_infinite_dimension():
    """Corners of a simplex: E is n - 1 edges of one length."""
    found = mst_dimension(jnp.eye(32), jax.random.key(0), sizes=(8, 32), subsets=1)
    assert float(found.slope) > 1 and np.isinf(found.dimension)


def test_constant_is_that_of_uniform_squares():
    for n, expected in ((256, 0.668), (1024, 0.660)):
        found = jax.jit(lambda key, n=n: mst_constant(key, n=n, dimension=2))(jax.random.key(0))
        assert float(found) == pytest.approx(expected, abs=0.015)


def test_entropy_is_that_of_densities():
    """Uniform on a box: log of its area. x + 1/2 times 1: order 1/2 gives 2 log of the integral of its root."""
    rng = np.random.default_rng(1)
    constant = mst_constant(jax.random.key(1), n=2000, dimension=2)
    entropy = jax.jit(lambda points: renyi_entropy_mst(points, constant=constant))
    uniform = rng.random((2000, 2))
    assert float(entropy((uniform * [3.0, 0.5]).astype(np.float32))) == pytest.approx(np.log(1.5), abs=0.1)
    root = np.sqrt(uniform[:, :1])  # density 2x
    expected = 2 * np.log(np.sqrt(2) * 2 / 3)
    found = float(entropy(np.concatenate([root, uniform[:, 1:]], axis=1).astype(np.float32)))
    assert found == pytest.approx(expected, abs=0.06) and found < float(entropy(uniform.astype(np.float32)))


def test_entropy_grows_by_d_log_of_the_scale_and_has_a_gradient():
    points = jnp.asarray(np.random.default_rng(2).random((60, 3)), jnp.float32)
    run = jax.jit(jax.value_and_grad(lambda x: renyi_entropy_mst(x, dimension=2.5)))
    value, gradient = run(points)
    assert float(run(3 * points)[0]) == pytest.approx(float(value) + 2.5 * np.log(3), rel=1e-5)
    assert float(jnp.vdot(gradient, points)) == pytest.approx(2.5, rel=1e-4)  # d / d log scale
    batch = jnp.stack([points, 2 * points])
    batched = jax.jit(jax.vmap(lambda x: renyi_entropy_mst(x, dimension=2.5)))(batch)
    np.testing.assert_allclose(batched, [value, value + 2.5 * np.log(2)], rtol=1e-5)


def test_wrong_use_is_named():
    points, key = jnp.zeros((8, 2)), jax.random.key(0)
    for call, message in (
        (lambda: mst_dimension(points, key), r"sizes is \(256, 512, 1024, 2048\).* from 2 to 8"),
        (lambda: mst_dimension(points, key, sizes=(4, 4)), "two different numbers"),
        (lambda: mst_dimension(points, key, sizes=(1, 4)), "sizes is"),
        (lambda: mst_dimension(points, key, sizes=(2, 4), subsets=0), "subsets is 0"),
        (lambda: mst_dimension(points[0], key, sizes=(2, 4)), "points has shape"),
        (lambda: mst_constant(key, n=1, dimension=2), "n is 1; it must be at least 2"),
        (lambda: mst_constant(key, n=2, dimension=0), "dimension is 0"),
        (lambda: mst_constant(key, n=2, dimension=1, clouds=0), "clouds is 0"),
        (lambda: renyi_entropy_mst(points, dimension=1), "dimension is 1"),
        (lambda: renyi_entropy_mst(points[:1]), "points has shape"),
    ):
        with pytest.raises(InputError, match=message):
            call()
