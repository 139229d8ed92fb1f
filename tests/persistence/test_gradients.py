"""Gradients through grids: the twelve points of the specification, closed forms, invariances, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from homology_oracle import random_filtration
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree

from jaxlab import persistence
from jaxlab.errors import InputError
from jaxlab.persistence.gradients import check_gradient, integrate_phi
from jaxlab.persistence.points import codensity, pairwise_distance

pytestmark = pytest.mark.usefixtures("double_precision")


def twelve_points():
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 2 * np.pi, 50)
    return (np.stack([np.cos(angles), np.sin(angles)], -1) + 0.1 * rng.normal(size=(50, 2)))[:12]


def measure_of(points, degree, values=None):
    """Of scale and codensity on the exact grid."""
    distances = pairwise_distance(points)
    values = codensity(distances, bandwidth=0.3)[:, None] if values is None else values
    grid = persistence.rips_grid(distances, values)
    if degree == 0:
        hilbert = persistence.hilbert_h0_dense(distances, values, grid)
        return persistence.DenseMeasure(persistence.mobius(hilbert), grid)
    return persistence.signed_measure(persistence.function_rips(distances, values), grid, degree=degree)


@pytest.mark.parametrize(
    ("degree", "value", "norm", "atoms"),
    [(0, -0.39740859861455635, 1.3802958019148281, 33), (1, 0.024970921588684872, 0.12695936319651924, 2)],
)
def test_twelve_points_have_their_known_loss_and_gradient(degree, value, norm, atoms):
    def loss(points):
        return integrate_phi(
            measure_of(points, degree),
            lambda x: jnp.exp(-jnp.square(x[:, 0] - 0.5) - jnp.square(x[:, 1] - 1)),
        )

    points = jnp.asarray(twelve_points())
    found, gradient = jax.jit(jax.value_and_grad(loss))(points)
    assert float(found) == pytest.approx(value, abs=1e-12)
    assert float(jnp.linalg.norm(gradient)) == pytest.approx(norm, abs=1e-12)
    measure = measure_of(points, degree)
    assert int(jnp.count_nonzero(measure.weights)) == atoms
    if degree == 0:
        h = 1e-6
        step = jnp.zeros_like(points).at[3, 1].set(h)
        slope = (loss(points + step) - loss(points - step)) / (2 * h)
        assert float(slope) == pytest.approx(-0.3327782706, abs=1e-8)
        assert float(gradient[3, 1]) == pytest.approx(-0.3327782706, abs=1e-9)
        # Distances know neither where the cloud lies nor how it is turned.
        np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-12)
        torque = points[:, 0] * gradient[:, 1] - points[:, 1] * gradient[:, 0]
        assert float(torque.sum()) == pytest.approx(0, abs=1e-12)
        order = np.random.default_rng(1).permutation(12)
        np.testing.assert_allclose(jax.grad(loss)(points[order]), gradient[order], atol=1e-12)


def test_homogeneous_losses_have_eulers_identity():
    points, values = jnp.asarray(twelve_points()), jnp.linspace(0, 1, 12)[:, None]

    def loss(points):
        return integrate_phi(measure_of(points, 0, values), lambda x: x[:, 0] * jnp.cos(x[:, 1]))

    value, gradient = jax.value_and_grad(loss)(points)
    assert abs(float(value)) > 0.1
    assert float(jnp.vdot(points, gradient)) == pytest.approx(float(value), rel=1e-12)


def test_edge_passes_its_gradient_to_the_vertex_that_raises_it():
    complex = persistence.simplicial_complex(2, np.array([[0, 1]]))

    def loss(x, y):
        filtration = persistence.lower_star(complex, jnp.array([[x, 1.0], [1.0, y]]))
        grid = persistence.make_grid([filtration.grades[0][:, 0], filtration.grades[0][:, 1]])
        measure = persistence.signed_measure(filtration, grid, degree=0)
        return integrate_phi(measure, lambda p: jnp.sin(p[:, 0]) * jnp.exp(p[:, 1]))

    of_x, of_y = jax.grad(loss, argnums=(0, 1))(0.3, 0.4)
    assert float(of_x) == pytest.approx(np.cos(0.3) * np.e)
    assert float(of_y) == pytest.approx(np.sin(1.0) * np.exp(0.4))
    # Beyond 1 the edge's first grade is x: its atom, of weight -1, moves too.
    of_x = jax.grad(loss)(1.5, 0.4)
    assert float(of_x) == pytest.approx(0, abs=1e-12)


def test_rips_components_pull_along_the_spanning_tree():
    points = jnp.asarray(twelve_points())

    def loss(points):
        distances = pairwise_distance(points)
        grid = persistence.rips_grid(distances, jnp.zeros((12, 0)))
        hilbert = persistence.hilbert_h0_dense(distances, jnp.zeros((12, 0)), grid)
        return integrate_phi(persistence.DenseMeasure(persistence.mobius(hilbert), grid), lambda x: x[:, 0])

    expected = np.zeros((12, 2))
    tree = minimum_spanning_tree(np.asarray(pairwise_distance(points))).tocoo()
    for i, j in zip(tree.row, tree.col, strict=True):
        unit = np.asarray(points[i] - points[j]) / tree.toarray()[i, j]
        expected[i] -= unit
        expected[j] += unit
    np.testing.assert_allclose(jax.grad(loss)(points), expected, atol=1e-12)
    assert float(loss(points)) == pytest.approx(-tree.data.sum(), abs=1e-12)


@settings(max_examples=3)
@given(st.sampled_from(["exact", "quantile", "regular_closest", "regular_left"]), st.integers(0, 2**31))
def test_gradients_on_every_grid_are_finite_differences(strategy, seed):
    complex = random_filtration(seed, 2, vertices=6, dimension=2).complex
    heights = np.random.default_rng(seed).uniform(size=(6, 2))

    def loss(heights):
        filtration = persistence.lower_star(complex, heights)
        resolution = None if strategy == "exact" else 4
        grid = persistence.make_grid(filtration.grades[0], strategy=strategy, resolution=resolution)
        total = 0.0
        for degree in (0, 1):
            measure = persistence.signed_measure(filtration, grid, degree=degree)
            total += integrate_phi(measure, lambda x: jnp.sin(3 * x[:, 0] + 2 * x[:, 1])) / (1 + degree)
        return total

    found = check_gradient(jax.jit(loss), jnp.asarray(heights), jax.random.key(seed), step=1e-7)
    assert np.abs(found.autodiff).max() > 1e-3
    assert not found.tie.any() and found.ok(1e-5)


def test_duplicate_points_give_no_nan():
    points = jnp.asarray(twelve_points()).at[5].set(twelve_points()[2])
    gradient = jax.grad(lambda p: integrate_phi(measure_of(p, 0), lambda x: jnp.exp(-x[:, 0]) * x[:, 1]))(
        points
    )
    assert np.isfinite(np.asarray(gradient)).all() and float(jnp.abs(gradient).max()) > 0


def test_ties_are_noticed_and_wrong_gradients_too():
    def shorter(x):
        return jnp.minimum(x[0], x[1]) + x[2] ** 2

    key = jax.random.key(0)
    at_tie = check_gradient(shorter, jnp.asarray([1.0, 1.0, 0.5]), key)
    assert at_tie.tie.all() and at_tie.ok()
    apart = check_gradient(shorter, jnp.asarray([1.0, 2.0, 0.5]), key)
    assert not apart.tie.any() and apart.ok(1e-8)
    np.testing.assert_allclose(apart.central, apart.autodiff, rtol=1e-6)

    def wrong(x):
        return jnp.sum(x**2) + jnp.sum(jax.lax.stop_gradient(x))

    assert not check_gradient(wrong, jnp.ones(3), key).ok()
    for message, call in (
        ("dtype int", lambda: check_gradient(shorter, jnp.ones(3, int), key)),
        ("directions is 0", lambda: check_gradient(shorter, jnp.ones(3), key, directions=0)),
        ("the loss is nan", lambda: check_gradient(lambda x: jnp.log(-x[0]), jnp.ones(3), key)),
        ("phi gives shape", lambda: integrate_phi(measure_of(jnp.asarray(twelve_points()), 0), lambda x: x)),
    ):
        with pytest.raises(InputError, match=message):
            call()
