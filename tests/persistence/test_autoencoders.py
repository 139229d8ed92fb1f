"""Topological distances of clouds and their codes: trees by scipy, components by counting, finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist

from jaxlab.errors import InputError
from jaxlab.persistence.autoencoders import (
    codensity_rips_cycle_distance,
    codensity_rips_distance,
    function_rips_atoms,
    tree_edge_distance,
)
from jaxlab.persistence.points import pairwise_distance
from jaxlab.persistence.sliced_wasserstein import random_directions

pytestmark = pytest.mark.usefixtures("double_precision")
POINTS = 9


def clouds(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(POINTS, 5)), rng.normal(size=(POINTS, 2)), rng


def test_tree_edges_are_those_of_scipy():
    inputs, codes, _ = clouds()
    first, second = cdist(inputs, inputs), cdist(codes, codes)
    expected = 0.0
    for own in (first, second):
        for i, j in zip(*minimum_spanning_tree(csr_array(own)).nonzero(), strict=True):
            expected += 0.5 * (first[i, j] - second[i, j]) ** 2
    found = tree_edge_distance(pairwise_distance(jnp.asarray(inputs)), pairwise_distance(jnp.asarray(codes)))
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lines", [POINTS, 3])
def test_atoms_count_components_everywhere(lines):
    """At every scale and line: of the points and edges that are there by then."""
    inputs, _, rng = clouds(1)
    distances, values = np.array(pairwise_distance(jnp.asarray(inputs))), rng.uniform(size=POINTS)
    at = np.sort(values)[:: -(-POINTS // lines)]
    at[-1] = values.max()
    atoms = jax.jit(function_rips_atoms)(*map(jnp.asarray, (distances, values, at)))
    points, weights = np.asarray(atoms.points), np.asarray(atoms.weights)
    assert len(weights) == len(at) * (2 * POINTS - 1) - POINTS + 1 and weights.sum() == 1
    # With 9 lines a coordinate is an edge's length or none's; a hair above it the edge is there.
    for scale in np.unique(distances) * (1 + 1e-12):
        for line in at:
            there = values <= line
            near = (distances <= scale) & there & there[:, None]
            components = connected_components(csr_array(near), directed=False)[0] - (~there).sum()
            assert weights[(points <= [scale, line]).all(1)].sum() == components


def test_two_pairs_of_points_are_as_far_apart_as_their_lengths():
    def pair(length):
        return jnp.array([[0.0, length], [length, 0.0]]), jnp.zeros(2)

    directions = random_directions(jax.random.key(0), 2, count=7)
    distance = jax.jit(functools.partial(codensity_rips_distance, slices=2))
    found = distance(pair(0.5), pair(2.0), directions)
    # The measures are 2 at scale 0 and -1 at the length: one unit moves by 1.5 along the scale.
    assert float(found) == pytest.approx(1.5 * float(np.abs(directions[0]).mean()), rel=1e-6)
    assert float(distance(pair(0.5), pair(0.5), directions)) == 0


def test_gradients_are_finite_differences():
    inputs, codes, rng = clouds(2)
    first = pairwise_distance(jnp.asarray(inputs))
    directions = jnp.asarray(random_directions(jax.random.key(1), 2, count=5), jnp.float64)

    def both(codes):
        second = pairwise_distance(codes)
        functions = jnp.mean(jnp.exp(-first), 1), jnp.mean(jnp.exp(-second), 1)
        measured = codensity_rips_distance(
            (first, functions[0]), (second, functions[1]), directions, slices=4
        )
        return jnp.stack([tree_edge_distance(first, second), measured])

    codes = jnp.asarray(codes)
    slopes, value = jax.jit(jax.jacrev(both))(codes), jax.jit(both)
    h = 1e-6
    for _ in range(3):
        direction = jnp.asarray(rng.normal(size=codes.shape))
        expected = (value(codes + h * direction) - value(codes - h * direction)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(slopes * direction, (1, 2)), expected, rtol=1e-5)
        assert (np.abs(expected) > 1e-3).all()


def test_cycles_are_as_far_apart_as_their_bars():
    """A square has one cycle, from its side to its diagonal, at the function's largest value."""

    def square(side):
        return side * pairwise_distance(jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))

    directions = random_directions(jax.random.key(2), 2, count=6)
    values = jnp.array([0.0, 0.1, 0.2, 0.3])
    distance = jax.jit(functools.partial(codensity_rips_cycle_distance, lines=3, slices=2))

    def of(side):
        return distance((square(1.0), values), (square(side), values), directions)

    (found, overflow), slope = of(1.5), jax.jit(jax.grad(lambda side: of(side)[0]))(1.5)
    # Bars from 1 to sqrt(2) and from 1.5 to 1.5 sqrt(2) do not meet: all of both is moved to nothing.
    along = float(np.abs(np.asarray(directions[0])).mean())
    assert float(found) == pytest.approx(2.5 * (np.sqrt(2) - 1) * along, rel=1e-6)
    assert float(slope) == pytest.approx((np.sqrt(2) - 1) * along, rel=1e-6)
    assert not overflow


def test_equal_points_have_gradients_without_nan():
    codes = jnp.zeros((4, 2)).at[0].set(1.0)
    first = pairwise_distance(jnp.asarray(clouds()[0][:4]))
    directions = random_directions(jax.random.key(1), 2, count=5)

    def both(codes):
        second = pairwise_distance(codes)
        measured = codensity_rips_distance((first, first[0]), (second, second[0]), directions, slices=2)
        return tree_edge_distance(first, second) + measured

    assert np.isfinite(jax.jit(jax.grad(both))(codes)).all()


def test_wrong_input_is_named():
    square = jnp.ones((3, 3)) - jnp.eye(3)
    directions = random_directions(jax.random.key(1), 2, count=5)
    with pytest.raises(InputError, match=r"second has shape \(2, 2\)"):
        tree_edge_distance(square, square[:2, :2])
    with pytest.raises(InputError, match="values has shape"):
        function_rips_atoms(square, jnp.ones(2), jnp.ones(2))
    with pytest.raises(InputError, match="slices is 1, but must be at least 2"):
        codensity_rips_distance((square, jnp.ones(3)), (square, jnp.ones(3)), directions, slices=1)
