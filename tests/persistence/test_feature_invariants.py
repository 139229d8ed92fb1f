"""Euler measures, surfaces and landscapes of data sets against direct counts in NumPy and networkx."""

import itertools

import networkx as nx
import numpy as np
import pytest

from jaxlab.data import tu_graphs
from jaxlab.errors import InputError
from jaxlab.persistence import CodensityRips, GraphFunctions, ImageChannels, SignedMeasureFeatures


@pytest.fixture(scope="module")
def molecules():
    return tu_graphs("MUTAG")[:3]


def graph_cells(graphs, read):
    """Of each graph the grades of vertices and edges, and the ends of edges."""
    starts = np.cumsum([0, *(graph.vertices for graph in graphs)])
    for graph, start in zip(graphs, starts, strict=False):
        values = np.stack([one[start : start + graph.vertices] for one in read.values], -1).astype(float)
        edges = np.asarray(graph.edges)
        yield [values, values[edges].max(1)], edges


def image_cells(images):
    for image in images:
        values = image.reshape(-1, image.shape[-1]).astype(float)
        vertex = np.arange(len(values)).reshape(image.shape[:2])
        neighbours = ((vertex[:-1], vertex[1:]), (vertex[:, :-1], vertex[:, 1:]))
        edges = np.concatenate([np.stack(ends, -1).reshape(-1, 2) for ends in neighbours])
        squares = np.stack([vertex[:-1, :-1], vertex[1:, :-1], vertex[:-1, 1:], vertex[1:, 1:]], -1)
        yield [values, values[edges].max(1), values[squares.reshape(-1, 4)].max(1)], edges


def cloud_cells(count, points, read):
    scale, functions = (np.asarray(one, float) for one in read.values)
    pairs = np.stack(np.triu_indices(points, 1), -1)
    triples = np.array(list(itertools.combinations(range(points), 3)))
    for index in range(count):
        f = functions.reshape(count, points)[index]
        d = np.zeros((points, points))
        d[tuple(pairs.T)] = scale[1:].reshape(count, -1)[index]
        d = np.maximum(d, d.T)
        yield (
            [
                np.stack([np.zeros(points), f], -1),
                np.stack([d[tuple(pairs.T)], f[pairs].max(1)], -1),
                np.stack(
                    [
                        np.max([d[triples[:, a], triples[:, b]] for a, b in ((0, 1), (0, 2), (1, 2))], 0),
                        f[triples].max(1),
                    ],
                    -1,
                ),
            ],
            pairs,
        )


def surface(grades, lines):
    found = np.zeros([len(own) for own in lines], int)
    for where in np.ndindex(*found.shape):
        point = [own[i] for own, i in zip(lines, where, strict=True)]
        found[where] = sum((-1) ** k * int((own <= point).all(1).sum()) for k, own in enumerate(grades))
    return found


def test_euler_features_of_graphs_by_three_functions_are_direct_sums(molecules):
    """p = 3: the surface counts vertices less edges, the image adds a signed Gaussian a cell."""
    source = GraphFunctions(("hks:10", "degree", "closeness"))
    options = {"resolution": 4, "out_resolution": 3, "bandwidth": 0.4}
    smooth = SignedMeasureFeatures(source, invariant="euler", **options).fit(molecules)
    whole = SignedMeasureFeatures(source, vectorize="euler", **options).fit(molecules)
    images, surfaces = smooth.transform(molecules), whole.transform(molecules)
    lines = [np.asarray(own, float) for own in smooth.grid_.coords]
    read = source.read(molecules)
    samples = np.array(list(itertools.product(np.linspace(0, 1, 3), repeat=3)))
    for index, (grades, _) in enumerate(graph_cells(molecules, read)):
        np.testing.assert_array_equal(surfaces[index].reshape(4, 4, 4), surface(grades, lines))
        expected = np.zeros(27)
        for k, own in enumerate(grades):
            up = [axis[np.searchsorted(axis, column)] for axis, column in zip(lines, own.T, strict=True)]
            unit = np.stack([(u - a[0]) / (a[-1] - a[0]) for u, a in zip(up, lines, strict=True)], -1)
            squares = ((samples[:, None] - unit) ** 2).sum(-1)
            expected += (-1) ** k * np.exp(-squares / (2 * 0.4**2)).sum(1)
        np.testing.assert_allclose(images[index], expected, rtol=1e-4, atol=1e-4)


def test_euler_surfaces_of_images_and_clouds_count_cells():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 6, size=(2, 5, 4, 2)).astype(np.float32)
    clouds = rng.normal(size=(2, 7, 2)).astype(np.float32)
    for source, samples in ((ImageChannels(), images), (CodensityRips(), clouds)):
        features = SignedMeasureFeatures(source, vectorize="euler", resolution=5).fit(samples)
        found = features.transform(samples).reshape(2, 5, 5)
        lines = [np.asarray(own, float) for own in features.grid_.coords]
        cells = image_cells(images) if samples is images else cloud_cells(2, 7, features.source_.read(clouds))
        for index, (grades, _) in enumerate(cells):
            np.testing.assert_array_equal(found[index], surface(grades, lines))


def rank(grades, edges, degree, low, high):
    """Of H(K_low) -> H(K_high) for graphs: components that are met, or cycles, none of which ever ends."""
    graphs = []
    for point in (low, high):
        graph = nx.Graph()
        graph.add_nodes_from(np.flatnonzero((grades[0] <= point).all(1)).tolist())
        graph.add_edges_from(edges[(grades[1] <= point).all(1)].tolist())
        graphs.append(graph)
    before, after = graphs
    if degree:
        return before.number_of_edges() - len(before) + nx.number_connected_components(before)
    return sum(any(node in before for node in part) for part in nx.connected_components(after))


def first_landscapes(grades, edges, degree, point, count):
    """lambda_k: the largest e with rank at least k between x - e and x + e."""
    values = np.concatenate(grades[:2])
    steps = np.unique(np.append(np.abs(values - point), 0))
    ranks = np.array([rank(grades, edges, degree, point - (e - 1e-7), point + (e - 1e-7)) for e in steps[1:]])
    return [max(steps[1:][ranks >= k], default=0) for k in range(1, count + 1)]


@pytest.mark.parametrize("kind", ["graphs", "images", "clouds"])
def test_landscapes_are_where_ranks_drop(molecules, kind):
    """In units of the training range, along the diagonal; for graphs in both degrees."""
    rng, degrees = np.random.default_rng(3), (0, 1) if kind == "graphs" else (0,)
    samples = {
        "graphs": molecules[1:3],
        "images": rng.uniform(size=(2, 4, 3, 2)).astype(np.float32),
        "clouds": rng.normal(size=(2, 6, 2)).astype(np.float32),
    }[kind]
    source = {"graphs": GraphFunctions(), "images": ImageChannels(), "clouds": CodensityRips()}[kind]
    features = SignedMeasureFeatures(
        source, degrees=degrees, vectorize="landscape", resolution=3, out_resolution=3, count=2
    ).fit(samples)
    found = features.transform(samples).reshape(2, len(degrees), 2, 9)
    read = features.source_.read(samples)
    cells = {
        "graphs": lambda: graph_cells(samples, read),
        "images": lambda: image_cells(samples),
        "clouds": lambda: cloud_cells(2, 6, read),
    }[kind]()
    low, high = (np.array([float(own[i]) for own in features.grid_.coords]) for i in (0, -1))
    points = np.array(list(itertools.product((0, 0.5, 1), repeat=2)))
    assert (found > 0).any(axis=(0, 2, 3)).all()
    for index, (grades, edges) in enumerate(cells):
        unit = [(own - low) / (high - low) for own in grades]
        for place, degree in enumerate(degrees):
            for at, point in enumerate(points):
                expected = first_landscapes(unit, edges, degree, point, 2)
                np.testing.assert_allclose(found[index, place, :, at], expected, atol=1e-5)


def test_what_does_not_go_together_is_named(molecules):
    for options, message in (
        ({"invariant": "rank"}, "invariant is 'rank'; it must be hilbert or euler"),
        ({"rounding": "down"}, "rounding is 'down'; it must be up or nearest"),
        (
            {"invariant": "euler", "vectorize": "hilbert"},
            "for the invariant euler it must be one of convolution",
        ),
        (
            {"invariant": "euler", "vectorize": "landscape"},
            "vectorize is 'landscape'; for the invariant euler",
        ),
    ):
        with pytest.raises(InputError, match=message):
            SignedMeasureFeatures(GraphFunctions(), **options).fit(molecules)
    features = SignedMeasureFeatures(GraphFunctions(), resolution=3, bandwidth=0.0).fit(molecules)
    with pytest.raises(InputError, match="bandwidth is 0"):
        features.vectors([np.zeros((1, 3, 3), int)])
    with pytest.raises(InputError, match="landscapes are not made of signed measures"):
        features.set_params(vectorize="landscape").vectors([])
    clouds = np.random.default_rng(0).normal(size=(1, 31, 2)).astype(np.float32)
    many = SignedMeasureFeatures(CodensityRips(), degrees=(1,), vectorize="landscape").fit(clouds)
    with pytest.raises(InputError, match="degree 1 reduce 4495 cells of dimension 2; at most 4096"):
        many.transform(clouds)
