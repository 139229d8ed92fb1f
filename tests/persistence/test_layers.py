"""Learned filtrations of graphs and learned Gaussians: direct evaluation, padding, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from jaxlab import persistence
from jaxlab.errors import InputError
from jaxlab.persistence.graphs import adjacency_matrix, local_degree_profile
from jaxlab.persistence.layers import LowerStarFiltration, SignedMeasureConv, graph_atoms, lower_star_measures

pytestmark = pytest.mark.usefixtures("double_precision")
VERTICES, EDGES = 8, 12


def random_graph(seed, vertices=VERTICES, edges=EDGES):
    rng = np.random.default_rng(seed)
    i, j = np.triu_indices(vertices, 1)
    return np.stack([i, j], 1)[rng.permutation(len(i))[:edges]], rng


def double(layer):
    """The layer with weights in float64."""
    graph, params = nnx.split(layer)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params))


@pytest.fixture(scope="module")
def filtration():
    with jax.enable_x64(True):
        return double(LowerStarFiltration(3, 2, width=5, depth=2, rngs=nnx.Rngs(params=0)))


@pytest.fixture(scope="module")
def gaussians():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        layer = double(SignedMeasureConv(2, channels=3, samples=4, rngs=nnx.Rngs(params=1)))
        layer.roots[...] = jnp.asarray(rng.normal(size=(3, 2, 2)) * 3)
        return layer


def atoms_as_rows(measure):
    """Sorted (coordinates, weight) of the atoms."""
    measure = persistence.SparseMeasure(*map(np.asarray, measure))
    there = measure.mask & (measure.weights != 0)
    return sorted(zip(*measure.points[there].T.tolist(), measure.weights[there].tolist(), strict=True))


def test_gaussians_are_the_sum_over_atoms(gaussians):
    rng = np.random.default_rng(2)
    points, weights, mask = rng.uniform(size=(6, 2)), rng.integers(-2, 3, 6), np.arange(6) < 4
    expected = []
    for own, root in zip(np.asarray(gaussians.points[...]), np.asarray(gaussians.roots[...]), strict=True):
        for z in own:
            terms = [
                w * np.exp(-0.5 * np.sum((root @ (z - x)) ** 2)) for x, w in zip(points, weights, strict=True)
            ]
            expected.append(sum(terms[:4]))
    found = gaussians(persistence.SparseMeasure(*map(jnp.asarray, (points, weights, mask))))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_filtrations_are_those_of_the_graph_network(filtration):
    """Values by loops over edges, components by scipy, cycles by Euler's formula, weights by differences."""
    edges, rng = random_graph(0)
    features = rng.normal(size=(VERTICES, 3))
    neighbours = np.eye(VERTICES)
    for i, j in edges:
        neighbours[i, j] = neighbours[j, i] = 1
    degree = neighbours.sum(1)
    x = features
    for layer in filtration.hidden:
        mixed = x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        x = np.array(
            [
                sum(mixed[j] / np.sqrt(degree[i] * degree[j]) for j in range(VERTICES) if neighbours[i, j])
                for i in range(VERTICES)
            ]
        )
        x = np.maximum(x, 0)
    x = x @ np.asarray(filtration.last.kernel[...]) + np.asarray(filtration.last.bias[...])
    values = 1 / (1 + np.exp(-x))
    complex = persistence.simplicial_complex(VERTICES, edges)
    np.testing.assert_allclose(filtration.values(jnp.asarray(features), complex), values, rtol=1e-12)

    found = filtration(jnp.asarray(features), complex)
    for degree_of_homology, measure in enumerate(found):
        lines = [np.sort(values[:, 0]), np.sort(values[:, 1])]
        for own, expected in zip(measure.grid.coords, lines, strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-12)
        dimensions = np.zeros((VERTICES, VERTICES), int)
        for a in range(VERTICES):
            for b in range(VERTICES):
                there = (values[:, 0] <= lines[0][a]) & (values[:, 1] <= lines[1][b])
                within = edges[there[edges].all(1)]
                matrix = csr_array((np.ones(len(within)), within.T), shape=(VERTICES, VERTICES))
                components = connected_components(matrix, directed=False)[0] - (~there).sum()
                cycles = len(within) - there.sum() + components
                dimensions[a, b] = (components, cycles)[degree_of_homology]
        weights = np.diff(np.diff(dimensions, axis=0, prepend=0), axis=1, prepend=0)
        np.testing.assert_array_equal(measure.weights, weights)


def test_padding_changes_nothing(filtration):
    sizes = ((VERTICES, EDGES), (5, 4))
    graphs = [random_graph(seed, *size) for seed, size in enumerate(sizes)]
    complexes = [persistence.simplicial_complex(n, own[0]) for (n, _), own in zip(sizes, graphs, strict=True)]
    features = [rng.normal(size=(n, 3)) for (n, _), (_, rng) in zip(sizes, graphs, strict=True)]
    padded = np.full((2, 10, 3), 7.0)
    for row, own in zip(padded, features, strict=True):
        row[: len(own)] = own
    stacked = persistence.stack_complexes(complexes, sizes=(10, 14))

    def atoms(x, complex):
        return graph_atoms(complex, filtration(x, complex))

    found = jax.jit(jax.vmap(atoms))(jnp.asarray(padded), stacked)
    for i, (complex, own) in enumerate(zip(complexes, features, strict=True)):
        alone = jax.jit(atoms)(jnp.asarray(own), complex)
        for first, second in zip(alone, jax.tree.map(lambda leaf, i=i: leaf[i], found), strict=True):
            rows, others = atoms_as_rows(first), atoms_as_rows(second)
            assert rows or first is alone[1]  # a tree has no cycles
            np.testing.assert_allclose(np.array(rows), np.array(others), rtol=1e-12)


@pytest.mark.parametrize("resolution", [None, 4])
def test_gradients_are_finite_differences(filtration, gaussians, resolution):
    edges, rng = random_graph(3)
    complex = persistence.simplicial_complex(VERTICES, edges)
    features = jnp.asarray(rng.normal(size=(VERTICES, 3)))
    graph, params = nnx.split((filtration, gaussians))
    mix = jnp.asarray(rng.normal(size=(2, 12)))

    @jax.jit
    def loss(params, features):
        filtration, gaussians = nnx.merge(graph, params)
        filtration.resolution = resolution
        measures = graph_atoms(complex, filtration(features, complex))
        return sum(jnp.vdot(row, gaussians(measure)) for row, measure in zip(mix, measures, strict=True))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, features)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    h = 1e-6
    for _ in range(4):
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), (params, features))
        ends = [
            jax.tree.map(lambda leaf, d, s=sign: leaf + s * h * d, (params, features), direction)
            for sign in (-1, 1)
        ]
        slope = (loss(*ends[1]) - loss(*ends[0])) / (2 * h)
        products = jax.tree.map(jnp.vdot, gradient, direction)
        assert float(sum(jax.tree.leaves(products))) == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("parameters", [1, 2, 3])
def test_atoms_always_fit(parameters):
    """Against dense measures, on graphs with few and many edges, and with ties."""

    @jax.jit
    @jax.vmap
    def both(complex, values):
        measures = lower_star_measures(complex, values, resolution=3 if parameters == 3 else None)
        return measures, graph_atoms(complex, measures)

    graphs = [random_graph(seed, 6, 1 + seed % 15) for seed in range(45)]
    values = np.stack(
        [rng.uniform(size=(6, parameters)).round(1 + seed % 2) for seed, (_, rng) in enumerate(graphs)]
    )
    complexes = persistence.stack_complexes([persistence.simplicial_complex(6, edges) for edges, _ in graphs])
    dense, sparse = both(complexes, values)
    for whole, atoms in zip(dense, sparse, strict=True):
        for i in range(len(graphs)):
            measure, found = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), (whole, atoms))
            index = np.argwhere(measure.weights)
            points = [lines[k] for lines, k in zip(measure.grid.coords, index.T, strict=True)]
            expected = sorted(
                zip(*(p.tolist() for p in points), measure.weights[tuple(index.T)].tolist(), strict=True)
            )
            assert atoms_as_rows(found) == expected


def test_degree_profiles_are_those_of_the_neighbours():
    edges, _ = random_graph(4, 7, 6)
    adjacency = adjacency_matrix(8, edges)
    profile = np.asarray(local_degree_profile(jnp.asarray(adjacency)))
    degree = adjacency.sum(1)
    for node in range(8):
        near = degree[adjacency[node] > 0]
        expected = [near.min(), near.max(), near.mean(), near.std()] if len(near) else [0] * 4
        np.testing.assert_allclose(profile[node], [degree[node], *expected], rtol=1e-6, atol=1e-7)


def test_wrong_options_and_graphs_are_named(filtration, gaussians):
    rngs = nnx.Rngs(params=0)
    for options, message in (
        ({"features": 0, "parameters": 2}, "features is 0"),
        ({"features": 3, "parameters": 2, "depth": 0}, "depth is 0, but must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            LowerStarFiltration(**options, rngs=rngs)
    with pytest.raises(InputError, match="bandwidth is 0"):
        SignedMeasureConv(2, bandwidth=0.0, rngs=rngs)
    with pytest.raises(InputError, match="channels is 0"):
        SignedMeasureConv(2, channels=0, rngs=rngs)
    triangle = persistence.simplicial_complex(3, np.array([[0, 1], [0, 2], [1, 2]]), np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="of dimension 2, but must be a graph"):
        filtration(jnp.zeros((3, 3)), triangle)
    edge = persistence.simplicial_complex(2, np.array([[0, 1]]))
    with pytest.raises(InputError, match=r"features has shape \(2, 4\)"):
        filtration(jnp.zeros((2, 4)), edge)
    line = persistence.SparseMeasure(jnp.zeros((1, 1)), jnp.ones(1, int), jnp.ones(1, bool))
    with pytest.raises(InputError, match="measure has 1 parameters, but must have 2"):
        gaussians(line)
