"""Moving points: the filtration and its measures by elimination, gradients by differences, losses that fall."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from homology_oracle import betti_numbers
from scipy.spatial import Delaunay

from jaxlab.errors import InputError
from jaxlab.persistence import integrate
from jaxlab.persistence.gradients import check_gradient
from jaxlab.persistence.optimisation import (
    delaunay_filtration,
    delaunay_measure,
    density_loss,
    modes_loss,
    padded_delaunay,
    persistence_loss,
    point_step,
    start,
)

CENTRES = np.array([[0.2, 0.2], [0.8, 0.4], [0.4, 0.7]])


def cloud(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 2))


def test_grades_are_edge_lengths_and_the_last_vertex(double_precision):
    points, values = cloud(9), np.linspace(1, 0, 9)
    complex = padded_delaunay(points)
    vertices, edges, triangles = delaunay_filtration(jnp.asarray(points), complex, values[:, None]).grades
    np.testing.assert_array_equal(vertices, np.stack([np.zeros(9), values], -1))
    ends = np.asarray(complex.faces[1])[np.asarray(complex.masks[1])]
    expected = np.stack(
        [np.linalg.norm(points[ends[:, 0]] - points[ends[:, 1]], axis=1), values[ends].max(1)], -1
    )
    np.testing.assert_allclose(edges[: len(ends)], expected, rtol=1e-12)
    assert np.isposinf(edges[len(ends) :]).all()
    corners = Delaunay(points).simplices
    assert int(complex.masks[2].sum()) == len(corners)
    longest = [max(np.linalg.norm(points[a] - points[b]) for a in t for b in t) for t in corners]
    there = triangles[: len(corners)]
    np.testing.assert_allclose(np.sort(there[:, 0]), np.sort(longest), rtol=1e-12)
    np.testing.assert_allclose(np.sort(there[:, 1]), np.sort(values[corners].max(1)), rtol=1e-12)


def test_measures_count_what_elimination_counts(double_precision):
    points = cloud(8, 3)
    values = jnp.asarray(np.random.default_rng(1).uniform(size=8))
    complex = padded_delaunay(points)
    filtration = delaunay_filtration(jnp.asarray(points), complex, values[:, None])
    for degree in (0, 1):
        measure = delaunay_measure(jnp.asarray(points), complex, values, degree=degree)
        hilbert = np.asarray(integrate(measure.weights))
        for a in range(0, hilbert.shape[0], 3):
            for b in range(8):
                point = [float(measure.grid.coords[0][a]), float(measure.grid.coords[1][b])]
                # Equal lines repeat at the end, where cells of padding would be.
                last = int(np.searchsorted(measure.grid.coords[0], point[0], side="right")) - 1
                assert hilbert[last, b] == betti_numbers(filtration, point)[0][degree]


@pytest.mark.parametrize("loss", [modes_loss(CENTRES), density_loss(), persistence_loss()])
def test_gradients_are_finite_differences(loss, double_precision):
    points = jnp.asarray(cloud(12, 5))
    complex = padded_delaunay(points)
    found = check_gradient(
        jax.jit(lambda p: loss(p, complex)[0]), points, jax.random.key(0), step=1e-7, directions=4
    )
    assert np.abs(found.autodiff).max() > 1e-3
    assert found.ok(1e-5)


def test_steps_lower_the_loss_and_points_alone_decide():
    loss, optimizer = modes_loss(CENTRES), optax.adam(0.01)
    step, state = point_step(loss, optimizer), start(jnp.asarray(cloud(40), jnp.float32), optimizer)
    losses = []
    for _ in range(12):
        state, shown = step(state)
        losses.append(shown["loss"])
    assert state.step == 12 and losses[-1] < losses[0] - 0.02
    again = point_step(loss, optimizer)(start(jnp.asarray(cloud(40), jnp.float32), optimizer))[1]
    assert again["loss"] == losses[0] and again["atoms"] > 0


def test_wrong_use_is_named():
    with pytest.raises(InputError, match="points has shape"):
        padded_delaunay(np.zeros((5, 3)))
    with pytest.raises(InputError, match="lie in a hyperplane or are equal"):
        padded_delaunay(np.zeros((5, 2)))
    optimizer = optax.sgd(0.1)
    step = point_step(lambda points, complex: (jnp.nan * jnp.sum(points), {}), optimizer)
    with pytest.raises(InputError, match="the loss is nan at step 0; lower the learning rate"):
        step(start(jnp.asarray(cloud(9), jnp.float32), optimizer))
