"""What `test_sharded_measures.py` runs under pytest in a process with 8 virtual CPU devices."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from jaxlab.data import tu_graphs
from jaxlab.errors import InputError
from jaxlab.parallel import make_mesh, shard_rows
from jaxlab.persistence import (
    CodensityRips,
    GraphFunctions,
    ImageChannels,
    SignedMeasureFeatures,
    codensity,
    hilbert_h0_dense,
    hilbert_rips_h1,
    mobius,
    pairwise_distance,
    rips_grid,
)

RNG = np.random.default_rng(0)
SAMPLES = {
    "graphs": (GraphFunctions(), lambda: tu_graphs("MUTAG")[:19], ("landscape", "euler")),
    "images": (
        ImageChannels(),
        lambda: RNG.uniform(size=(11, 6, 5, 2)).astype(np.float32),
        ("sliced-wasserstein", "hilbert"),
    ),
    "clouds": (CodensityRips(), lambda: RNG.normal(size=(9, 14, 2)).astype(np.float32), ("convolution",)),
}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 8})


@pytest.mark.parametrize("kind", SAMPLES)
def test_measures_and_features_are_those_of_one_device(mesh, kind):
    """Numbers of samples that 8 does not divide; measures to the last integer."""
    source, make, ways = SAMPLES[kind]
    samples = make()
    features = SignedMeasureFeatures(source, resolution=5, out_resolution=4, directions=6, count=2)
    features.fit(samples)
    alone, spread = (features.measures(samples, mesh=m) for m in (None, mesh))
    assert len(alone) == 2 and all(
        np.array_equal(a, b) and a.any() for a, b in zip(alone, spread, strict=True)
    )
    for way in ways:
        features.set_params(vectorize=way)
        one, many = (features.transform(samples, mesh=m) for m in (None, mesh))
        assert one.any() and one.shape == many.shape
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)


def test_components_of_spread_graphs_are_networkxs(mesh):
    graphs = tu_graphs("MUTAG")[:19]
    features = SignedMeasureFeatures(GraphFunctions(), degrees=(0,), resolution=5).fit(graphs)
    totals = features.measures(graphs, mesh=mesh)[0].sum((1, 2))
    for graph, total in zip(graphs, totals, strict=True):
        peer = nx.Graph(graph.edges.tolist())
        assert total == nx.number_connected_components(peer)


def test_pure_functions_are_spread_by_shard_rows(mesh):
    """The pattern of the documentation, with our own reduction for H_1; every device has its share."""
    clouds = jnp.asarray(RNG.normal(size=(16, 12, 2)), jnp.float32)

    def measures(points):
        def one(points):
            distances = pairwise_distance(points)
            values = codensity(distances, bandwidth=0.5)[:, None]
            grid = rips_grid(distances, values, strategy="quantile", resolution=(9, 4))
            h1, overflow = hilbert_rips_h1(distances, values, grid, max_cols=16, backend="xla")
            return mobius(hilbert_h0_dense(distances, values, grid)), mobius(h1), overflow

        return jax.lax.map(one, points)

    spread = shard_rows(measures, mesh)(clouds)
    assert len({shard.device for shard in spread[0].addressable_shards}) == 8
    for a, b in zip(spread, jax.jit(measures)(clouds), strict=True):
        np.testing.assert_array_equal(a, b)
    assert spread[0].any() and spread[1].any() and not spread[2].any()


def test_a_mesh_without_the_axis_is_refused():
    features = SignedMeasureFeatures(ImageChannels(), resolution=3).fit(np.zeros((2, 3, 3, 2), np.float32))
    with pytest.raises(InputError, match="axis is 'data', but the mesh has model"):
        features.measures(np.zeros((2, 3, 3, 2), np.float32), mesh=make_mesh({"model": 8}))
