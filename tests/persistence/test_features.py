"""Features of data sets: sources against networkx and elimination, vectors against their definitions, scikit-learn."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from homology_oracle import hilbert_functions
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from jaxlab import persistence
from jaxlab.data import tu_graphs
from jaxlab.errors import InputError
from jaxlab.persistence import Grid
from jaxlab.persistence.features import SignedMeasureFeatures
from jaxlab.persistence.points import codensity, pairwise_distance
from jaxlab.persistence.sliced_wasserstein import random_directions
from jaxlab.persistence.sources import CodensityRips, GraphFunctions, ImageChannels, delay_embedding


@pytest.fixture(scope="module")
def molecules():
    return tu_graphs("MUTAG")


def as_networkx(graph):
    found = nx.Graph()
    found.add_nodes_from(range(graph.vertices))
    found.add_edges_from(graph.edges.tolist())
    return found


def test_functions_on_graphs_are_networkxs(molecules):
    few = molecules[:4]
    read = GraphFunctions(("closeness", "degree", "hks:3")).read(few)
    expected = {"closeness": [], "degree": [], "hks": []}
    for graph in map(as_networkx, few):
        expected["closeness"] += list(nx.closeness_centrality(graph).values())
        expected["degree"] += [1 / degree for _, degree in graph.degree()]
        values, vectors = np.linalg.eigh(nx.normalized_laplacian_matrix(graph).toarray())
        expected["hks"] += (np.exp(-3 * values) * vectors**2).sum(1).tolist()
    for found, wanted in zip(read.values, expected.values(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5)


@pytest.mark.parametrize("rounding", ["up", "nearest"])
def test_measures_of_graphs_count_components_and_cycles(molecules, rounding):
    few = molecules[:6]
    source = GraphFunctions(("hks:10", "degree"))
    features = SignedMeasureFeatures(source, resolution=5, rounding=rounding).fit(few)
    h0, h1 = (np.cumsum(np.cumsum(w, 1), 2) for w in features.measures(few))
    read = GraphFunctions(("hks:10", "degree")).read(few)
    starts = np.cumsum([0, *(graph.vertices for graph in few)])
    lines = [np.asarray(one) for one in features.grid_.coords]
    for index, graph in enumerate(few):
        values = [one[starts[index] : starts[index + 1]] for one in read.values]
        if rounding == "nearest":
            values = [
                own[np.abs(one[:, None].astype(float) - own).argmin(1)]
                for one, own in zip(values, lines, strict=True)
            ]
        for a, b in np.ndindex(5, 5):
            inside = (values[0] <= lines[0][a]) & (values[1] <= lines[1][b])
            sub = as_networkx(graph).subgraph(np.flatnonzero(inside).tolist())
            parts = nx.number_connected_components(sub) if len(sub) else 0
            assert h0[index, a, b] == parts
            assert h1[index, a, b] == sub.number_of_edges() - len(sub) + parts


def test_measures_of_clouds_are_eliminations():
    clouds = np.random.default_rng(0).normal(size=(3, 7, 2)).astype(np.float32)
    features = SignedMeasureFeatures(CodensityRips(), resolution=4).fit(clouds)
    largest = max(float(pairwise_distance(jnp.asarray(cloud)).max()) for cloud in clouds)
    assert features.source_.bandwidth == pytest.approx(0.1 * largest)
    measures = features.measures(clouds[1:])
    # The very numbers that the grid is made of: those of another program differ by roundings.
    scale, functions = features.source_.read(clouds[1:]).values
    for index, cloud in enumerate(clouds[1:]):
        distances = np.zeros((7, 7), np.float32)
        distances[np.triu_indices(7, 1)] = scale[1:].reshape(2, -1)[index]
        distances += distances.T
        values = functions.reshape(2, 7, 1)[index]
        np.testing.assert_allclose(distances, pairwise_distance(jnp.asarray(cloud)), rtol=1e-5)
        expected = codensity(jnp.asarray(distances), bandwidth=features.source_.bandwidth)
        np.testing.assert_allclose(values[:, 0], expected, rtol=1e-5)
        filtration = persistence.function_rips(jnp.asarray(distances), jnp.asarray(values))
        betti, _ = hilbert_functions(filtration, features.grid_)
        for degree in (0, 1):
            found = np.cumsum(np.cumsum(measures[degree][index], 0), 1)
            np.testing.assert_array_equal(found, betti[degree])


def test_measures_of_images_are_eliminations():
    images = np.random.default_rng(1).integers(0, 5, size=(2, 4, 3, 2)).astype(np.float32)
    features = SignedMeasureFeatures(ImageChannels(), resolution=4, strategy="regular").fit(images)
    measures = features.measures(images)
    for index, image in enumerate(images):
        betti, _ = hilbert_functions(persistence.images.image_filtration(jnp.asarray(image)), features.grid_)
        for degree in (0, 1):
            found = np.cumsum(np.cumsum(measures[degree][index], 0), 1)
            np.testing.assert_array_equal(found, betti[degree])


def test_vectors_are_what_they_are_defined_as(molecules):
    few, source = molecules[:5], GraphFunctions(("hks:10", "degree"))
    options = {"degrees": (0,), "resolution": 4, "out_resolution": 3, "directions": 7, "bandwidth": 0.3}
    fitted = SignedMeasureFeatures(source, **options).fit(few)
    weights = fitted.measures(few)[0]
    lines = [np.asarray(one) for one in fitted.grid_.coords]
    unit = [(one - one[0]) / (one[-1] - one[0]) for one in lines]
    samples = np.linspace(0, 1, 3)
    kernels = [np.exp(-((samples[:, None] - one) ** 2) / (2 * 0.09)) for one in unit]
    images = np.einsum("nab,ia,jb->nij", weights, *kernels)
    np.testing.assert_allclose(fitted.transform(few), images.reshape(5, -1), rtol=1e-4, atol=1e-5)

    hilbert = SignedMeasureFeatures(source, vectorize="hilbert", **options).fit_transform(few)
    np.testing.assert_array_equal(hilbert, np.cumsum(np.cumsum(weights, 1), 2).reshape(5, -1))

    transported = SignedMeasureFeatures(source, vectorize="sliced-wasserstein", **options).fit_transform(few)
    along = random_directions(jax.random.key(0), 2, count=7)
    grid = Grid(tuple(map(jnp.asarray, unit)))
    pair = [
        persistence.balance_mass(persistence.DenseMeasure(jnp.asarray(w), grid), jnp.full(2, 1.1))
        for w in weights[:2]
    ]
    expected = float(persistence.sliced_wasserstein.sw_distance(*pair, along))
    assert expected > 0.01
    assert np.abs(transported[0] - transported[1]).sum() == pytest.approx(expected, rel=1e-4)


def test_test_samples_do_not_move_the_grid(molecules):
    features = SignedMeasureFeatures(GraphFunctions(), resolution=6).fit(molecules[:20])
    grid = [np.asarray(one) for one in features.grid_.coords]
    together, alone = features.transform(molecules[20:23]), features.transform(molecules[20:21])
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5, atol=1e-5)
    for before, after in zip(grid, features.grid_.coords, strict=True):
        np.testing.assert_array_equal(before, after)


def test_it_stands_in_scikit_learns_pipelines(molecules):
    labels = [graph.label for graph in molecules]
    features = SignedMeasureFeatures(GraphFunctions(), resolution=8, out_resolution=8, bandwidth=0.2)
    copied = clone(features).set_params(bandwidth=0.1)
    assert copied.get_params() == features.get_params() | {"bandwidth": 0.1}
    scores = cross_val_score(make_pipeline(copied, SVC(C=10)), molecules, labels, cv=3)
    assert scores.mean() > 0.8  # 0.66 are of one class


def test_delay_embeddings_use_every_sample():
    cloud = delay_embedding(np.arange(10.0)[None], dimension=3, delay=2)
    assert cloud.shape == (1, 6, 3)
    np.testing.assert_array_equal(cloud[0, [0, -1]], [[0, 2, 4], [5, 7, 9]])
    assert delay_embedding(np.zeros((2, 150))).shape == (2, 148, 3)


def test_wrong_use_is_named(molecules):
    few = molecules[:3]
    for source, message in (
        (GraphFunctions(("hks",)), "function 'hks' is not known"),
        (GraphFunctions(("hks:x",)), "needs a number behind the colon"),
        (GraphFunctions(("size",)), "known are degree, closeness and hks:TIME"),
    ):
        with pytest.raises(InputError, match=message):
            SignedMeasureFeatures(source).fit(few)
    with pytest.raises(InputError, match="not fitted"):
        SignedMeasureFeatures(GraphFunctions()).transform(few)
    with pytest.raises(InputError, match="vectorize is 'mean'"):
        SignedMeasureFeatures(GraphFunctions(), vectorize="mean").fit(few)
    with pytest.raises(InputError, match="degrees is empty"):
        SignedMeasureFeatures(GraphFunctions(), degrees=()).fit(few)
    with pytest.raises(InputError, match="option 'width' is not known"):
        SignedMeasureFeatures(GraphFunctions()).set_params(width=1)
    with pytest.raises(InputError, match="samples is empty"):
        SignedMeasureFeatures(GraphFunctions()).fit([])
    with pytest.raises(InputError, match="all points of the training clouds are one"):
        SignedMeasureFeatures(CodensityRips()).fit(np.zeros((1, 3, 2), np.float32))
    with pytest.raises(InputError, match="samples has shape"):
        SignedMeasureFeatures(ImageChannels()).fit(np.zeros((2, 3, 3)))
    with pytest.raises(InputError, match="leave 0 points"):
        delay_embedding(np.zeros((1, 2)))
