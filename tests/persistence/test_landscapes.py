"""Multiparameter landscapes against ranks by elimination, a module with known values, and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from homology_oracle import boundary_matrix, padded, random_filtration, rank_z2
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import persistence
from jaxlab.errors import InputError
from jaxlab.persistence.landscapes import landscape_mp

pytestmark = pytest.mark.usefixtures("double_precision")

STEPS = np.array([1.0, 0.7])


def kernel_z2(matrix):
    """A basis of the kernel, as columns."""
    m = np.array(matrix, bool)
    columns, own = m.T.copy(), np.eye(m.shape[1], dtype=bool)
    lows = {}
    for j in range(len(columns)):
        while columns[j].any() and (low := int(np.flatnonzero(columns[j])[-1])) in lows:
            columns[j] ^= columns[lows[low]]
            own[j] ^= own[lows[low]]
        if columns[j].any():
            lows[int(np.flatnonzero(columns[j])[-1])] = j
    return own[~columns.any(1)].T


def rank_between(filtration, degree, low, high):
    """Rank of H(K_low) -> H(K_high): cycles of the one, modulo boundaries of the other."""
    complex, grades = filtration
    at = {x: [np.asarray((g <= point).all(-1)) for g in grades] for x, point in (("a", low), ("b", high))}
    cells = complex.sizes[degree]
    if degree:
        d = boundary_matrix(np.asarray(complex.faces[degree]), complex.sizes[degree - 1])
    else:
        d = np.zeros((1, cells), bool)
    cycles = kernel_z2(d[:, at["a"][degree]])
    whole = np.zeros((cells, cycles.shape[1]), bool)
    whole[at["a"][degree]] = cycles
    if degree < complex.dimension:
        bounds = boundary_matrix(np.asarray(complex.faces[degree + 1]), cells)[:, at["b"][degree + 1]]
    else:
        bounds = np.zeros((cells, 0), bool)
    return rank_z2(np.hstack([bounds, whole])) - (rank_z2(bounds) if bounds.shape[1] else 0)


@functools.partial(jax.jit, static_argnames="degree")
def three_landscapes(filtration, points, degree):
    return landscape_mp(filtration, points, degree=degree, count=3, direction=STEPS)


@settings(max_examples=6)
@given(st.integers(0, 2**31))
def test_landscapes_are_where_the_rank_drops(seed):
    filtration = random_filtration(seed, 2, vertices=5, dimension=2)
    filtration = filtration._replace(grades=tuple(g.astype(float) for g in filtration.grades))
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.2, 2, (3, 2))
    values = np.concatenate([np.asarray(g) for g in filtration.grades])
    for degree in (0, 1):
        found = three_landscapes(padded(filtration, (5, 10, 10)), jnp.asarray(points), degree)
        for column, x in enumerate(points):
            candidates = np.unique(np.abs((values - x) / STEPS))
            for k in (1, 2, 3):
                good = [
                    e
                    for e in candidates
                    if rank_between(filtration, degree, x - (e - 1e-9) * STEPS, x + (e - 1e-9) * STEPS) >= k
                ]
                assert found[k - 1, column] == pytest.approx(max(good, default=0), abs=1e-9)


def interval(generator, relations):
    complex = persistence.cell_complex([np.zeros((1, 0), int), np.zeros((2, 1), int)])
    return persistence.Filtration(complex, (generator, relations))


def test_interval_module_has_its_known_landscape_and_gradient():
    relations = jnp.asarray([[2.0, 0.0], [0.0, 2.0]])
    points = jnp.asarray([[1.0, 1.0], [0.5, 1.0], [0.0, 0.0]])

    def first(generator, relations, backend="generic"):
        return landscape_mp(interval(generator, relations), points, degree=0, count=2, backend=backend)

    for backend in ("generic", "forest"):
        found = first(jnp.zeros((1, 2)), relations, backend)
        np.testing.assert_array_equal(found, [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    # Raised with the generator: a relation may not be below it.
    moved = jax.grad(lambda g: first(g, relations)[0, 1])(jnp.full((1, 2), -1e-3))
    np.testing.assert_allclose(moved, [[-1.0, 0.0]])
    others = jax.grad(lambda r: first(jnp.full((1, 2), -1e-3), r)[0, 1])(relations)
    np.testing.assert_array_equal(others, np.zeros((2, 2)))


def test_gradients_are_finite_differences():
    complex = random_filtration(3, 2, vertices=5, dimension=2).complex
    rng = np.random.default_rng(1)
    heights = jnp.asarray(rng.uniform(size=(5, 2)))
    points = jnp.asarray(rng.uniform(0.3, 0.7, (4, 2)))

    def loss(heights, points):
        filtration = persistence.lower_star(complex, heights)
        return jnp.sum(landscape_mp(filtration, points, degree=0, count=2) ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(heights, points)
    assert float(jnp.abs(gradients[0]).max()) > 0.01
    h = 1e-6
    for which, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        ends = []
        for sign in (1, -1):
            args = [heights, points]
            args[which] = args[which] + sign * h * direction
            ends.append(float(loss(*args)))
        assert float(jnp.vdot(gradient, direction)) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_wrong_use_is_named():
    filtration = random_filtration(0, 2)
    with pytest.raises(InputError, match="points has shape"):
        landscape_mp(filtration, jnp.zeros((1, 3)), degree=0)
    with pytest.raises(InputError, match=r"direction is \(1, -1\)"):
        landscape_mp(filtration, jnp.zeros((1, 2)), degree=0, direction=(1, -1))
    with pytest.raises(InputError, match="count is 0"):
        landscape_mp(filtration, jnp.zeros((1, 2)), degree=0, count=0)
