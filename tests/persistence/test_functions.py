"""Functions on points, graphs and images against networkx, scipy, numpy and gudhi."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from homology_oracle import hilbert_functions
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from jaxlab.errors import InputError
from jaxlab.persistence import (
    adjacency_matrix,
    closeness,
    codensity,
    cubical_complex,
    delaunay_complex,
    distance_to_measure,
    edge_distance,
    heat_kernel_signature,
    hilbert_planar,
    image_filtration,
    inverse_degree,
    lower_star,
    make_grid,
    pairwise_distance,
    raise_to_faces,
    simplicial_complex,
    upper_star,
)

POINTS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


def test_distances_are_scipys_and_their_gradient_is_zero_between_equal_points():
    np.testing.assert_allclose(pairwise_distance(jnp.asarray(POINTS)), cdist(POINTS, POINTS), atol=1e-5)
    doubled = jnp.asarray(np.concatenate([POINTS[:4], POINTS[:1]]))
    gradient = jax.grad(lambda x: pairwise_distance(x)[0, 4])(doubled)
    assert not gradient.any()
    total = jax.grad(lambda x: pairwise_distance(x).sum())(doubled)
    assert jnp.isfinite(total).all() and jnp.abs(total.sum(0)).max() < 1e-4


def test_codensity_is_minus_the_log_of_the_mean_kernel():
    distances = cdist(POINTS, POINTS)
    for bandwidth, width in ((0.7, 0.7), (-0.2, 0.2 * distances.max())):
        expected = -np.log(np.exp(-(distances**2) / (2 * width**2)).mean(1))
        found = codensity(pairwise_distance(jnp.asarray(POINTS)), bandwidth=bandwidth)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    far = codensity(jnp.array([[0.0, 1e4], [1e4, 0.0]]), bandwidth=0.1)
    np.testing.assert_allclose(far, np.log(2), rtol=1e-6)
    assert codensity(jnp.zeros((1, 1)), bandwidth=-0.1).tolist() == [0]


def test_distance_to_measure_is_the_root_mean_square_of_the_nearest():
    distances = np.sort(cdist(POINTS, POINTS), axis=1)
    for mass, nearest in ((0.1, 3), (0.101, 4), (1.0, 30), (1e-6, 1)):
        expected = np.sqrt((distances[:, :nearest] ** 2).mean(1))
        found = distance_to_measure(pairwise_distance(jnp.asarray(POINTS)), mass=mass)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def graph():
    """A random graph in two parts with an isolated node, padded by two nodes that are not there."""
    own = nx.disjoint_union(nx.gnp_random_graph(12, 0.3, seed=4), nx.path_graph(5))
    own.add_node(17)
    matrix = np.pad(adjacency_matrix(18, np.array(own.edges)), ((0, 2), (0, 2)))
    return own, jnp.asarray(matrix), jnp.arange(20) < 18


def test_node_functions_are_networkxs(graph):
    own, adjacency, mask = graph
    degree = np.array([d for _, d in sorted(own.degree)])
    np.testing.assert_allclose(
        inverse_degree(adjacency)[:18], np.where(degree, 1 / np.maximum(degree, 1), 1.1)
    )
    expected = [c for _, c in sorted(nx.closeness_centrality(own).items())]
    np.testing.assert_allclose(closeness(adjacency, mask)[:18], expected, rtol=1e-6)


@pytest.mark.parametrize("time", [1.0, 10.0])
def test_heat_kernel_signature_is_the_sum_over_eigenvectors(graph, time):
    own, adjacency, _ = graph
    values, vectors = np.linalg.eigh(nx.normalized_laplacian_matrix(own, nodelist=range(18)).toarray())
    expected = (np.exp(-time * values) * vectors**2).sum(1)
    np.testing.assert_allclose(heat_kernel_signature(adjacency, time=time)[:18], expected, atol=2e-6)


def test_heat_has_a_gradient_at_equal_eigenvalues():
    ring = adjacency_matrix(6, np.array([[i, (i + 1) % 6] for i in range(6)]))
    gradient = jax.grad(lambda a: heat_kernel_signature(a, time=1.0)[0])(jnp.asarray(ring))
    assert jnp.isfinite(gradient).all() and gradient.any()


def test_cubes_of_a_box_are_counted_and_closed():
    for shape in ((4,), (3, 4), (2, 3, 4)):
        complex = cubical_complex(shape)
        euler = sum((-1) ** k * size for k, size in enumerate(complex.sizes))
        assert euler == 1 and complex.sizes[0] == np.prod(shape)
        assert complex.sizes[-1] == np.prod([s - 1 for s in shape])
        for k in range(2, len(complex.faces)):
            twice = np.asarray(complex.faces[k - 1])[np.asarray(complex.faces[k])]
            for cell in twice.reshape(len(twice), -1):
                assert not (np.bincount(cell) % 2).any()


def components_and_holes(inside, construction):
    """Of a set of pixels: V joins them along edges, T also across corners; the background the other way round."""
    from scipy.ndimage import label

    across, along = np.ones((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    inner, outer = (along, across) if construction == "V" else (across, along)
    return label(inside, inner)[1], label(np.pad(~inside, 1, constant_values=True), outer)[1] - 1


@pytest.mark.parametrize(("construction", "channels"), [("V", 2), ("V", 1), ("T", 1)])
def test_constructions_of_images_are_those_of_connected_components(construction, channels):
    image = np.random.default_rng(1).integers(0, 5, (7, 8, channels)).astype(np.float32)
    filtration = image_filtration(jnp.asarray(image), construction=construction)
    grid = make_grid(image.reshape(-1, channels), strategy="regular", resolution=5)
    found = hilbert_planar(filtration, grid)
    for point in np.ndindex(grid.shape):
        expected = components_and_holes((image <= point).all(-1), construction)
        assert (found[0][point], found[1][point]) == expected


def test_stars_are_the_maximum_of_vertices_and_the_minimum_of_top_cells():
    complex = simplicial_complex(4, [[0, 1], [1, 2], [0, 2], [2, 3]], [[0, 1, 2]])
    values = jnp.array([[1.0, 5.0], [2.0, 0.0], [0.0, 1.0], [7.0, -1.0]])
    lower = lower_star(complex, values)
    assert lower.grades[1].tolist() == [[2, 5], [2, 1], [1, 5], [7, 1]] and lower.grades[2].tolist() == [
        [2, 5]
    ]
    upper = upper_star(complex, jnp.array([[3.0, 4.0]]))
    assert upper.grades[0].tolist() == [[3, 4]] * 3 + [[np.inf, np.inf]]
    assert upper.grades[1].tolist() == [[3, 4]] * 3 + [[np.inf, np.inf]]
    raised = raise_to_faces(complex, [values, jnp.array([[0.0, 9.0]] * 4), jnp.zeros((1, 2))])
    assert raised.grades[1].tolist() == [[2, 9], [2, 9], [1, 9], [7, 9]] and raised.grades[2].tolist() == [
        [2, 9]
    ]


def test_gradient_of_equal_vertices_goes_to_the_first():
    complex = simplicial_complex(3, [[0, 1], [1, 2], [0, 2]], [[0, 1, 2]])
    gradient = jax.grad(lambda v: lower_star(complex, v).grades[2].sum())(jnp.ones((3, 1)))
    assert sorted(gradient[:, 0].tolist()) == [0, 0, 1]


def test_delaunay_triangulation_is_planar_and_contractible():
    points = POINTS[:, :2]
    complex = delaunay_complex(points)
    assert complex.no_two_cycles and complex.sizes[0] - complex.sizes[1] + complex.sizes[2] == 1
    values = jnp.asarray(np.random.default_rng(3).integers(0, 4, (30, 2)), jnp.float32)
    grid = make_grid(values, strategy="quantile", resolution=4)
    filtration = lower_star(complex, values)
    expected, _ = hilbert_functions(filtration, grid)
    assert np.array_equal(np.stack(hilbert_planar(filtration, grid)), expected[:2]) and not expected[2].any()
    assert delaunay_complex(POINTS).dimension == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delaunay_complex(np.r_[POINTS, POINTS[:1]]), "point .* equals point"),
        (lambda: delaunay_complex(np.zeros((5, 2))), "lie in a hyperplane or are equal"),
        (lambda: delaunay_complex(POINTS[:3]), "at least d \\+ 1 points"),
        (lambda: jax.jit(delaunay_complex)(POINTS), "points are traced"),
        (lambda: pairwise_distance(jnp.zeros((0, 2))), "at least one point"),
        (lambda: codensity(jnp.zeros((2, 2)), bandwidth=0.0), "bandwidth is 0.0"),
        (lambda: distance_to_measure(jnp.zeros((2, 2)), mass=0.0), "mass is 0.0"),
        (lambda: closeness(jnp.ones((2, 2))), "symmetric, without loops"),
        (lambda: heat_kernel_signature(jnp.zeros((2, 2)), time=-1.0), "time is -1.0"),
        (lambda: adjacency_matrix(3, [[0, 0]]), r"edge \[0, 0\] is a loop"),
        (lambda: image_filtration(jnp.zeros((3, 3))[:0]), r"image has shape \(0, 3\)"),
        (lambda: image_filtration(jnp.zeros((3, 3, 2)), construction="W"), "construction is 'W'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_distances_to_edges_are_scipys():
    digits = (load_digits().images[:40] / 16).astype(np.float32)
    found = jax.jit(jax.vmap(edge_distance))(digits)
    for digit, own in zip(digits, found, strict=True):
        far = distance_transform_edt(np.hypot(*np.gradient(digit)) < 0.25)
        np.testing.assert_allclose(own, far / far.max(), atol=1e-6)
    oblong = np.zeros((9, 5), np.float32)
    assert (edge_distance(oblong) == 1).all()  # no edge is near
    oblong[:, 2:] = 1
    np.testing.assert_allclose(edge_distance(oblong), np.tile([0.5, 0, 0, 0.5, 1], (9, 1)))
    chequered = np.tile(np.float32([0, 1, 2]), (3, 1))
    assert (edge_distance(chequered) == 0).all()  # all is edge
    with pytest.raises(InputError, match=r"image has shape \(1, 5\)"):
        edge_distance(np.zeros((1, 5), np.float32))
    with pytest.raises(InputError, match="threshold is 0.0"):
        edge_distance(oblong, threshold=0.0)
