"""Spanning forests against union-find and scipy, sequential and simple."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as scipy_components
from scipy.sparse.csgraph import minimum_spanning_tree

from jaxlab.kernels.spanning_forest import (
    box_forest_weights,
    complete_forest_weights,
    connected_components,
    spanning_forest,
)


def kruskal(edges, present, vertices):
    parent = list(range(vertices))

    def root(v):
        while parent[v] != v:
            v = parent[v]
        return v

    chosen = []
    for (u, v), there in zip(edges.tolist(), present.tolist(), strict=True):
        a, b = root(u), root(v)
        chosen.append(there and a != b)
        if chosen[-1]:
            parent[a] = b
    return chosen


@pytest.mark.parametrize(("vertices", "m"), [(2, 1), (5, 3), (30, 60), (200, 150)])
def test_forest_is_that_of_kruskal_with_absent_edges_loops_and_doubles(vertices, m):
    """A path, the worst case for pointers, is among them."""
    rng = np.random.default_rng(vertices)
    edges = rng.integers(0, vertices, (20, m, 2))
    edges[0] = np.stack([np.arange(m) % vertices, (np.arange(m) + 1) % vertices], 1)
    present = rng.random((20, m)) < 0.8
    found = jax.jit(jax.vmap(lambda e, p: spanning_forest(e, p, vertices=vertices)))(edges, present)
    expected = [kruskal(e, p, vertices) for e, p in zip(edges, present, strict=True)]
    assert np.array_equal(found, expected)


def test_components_are_scipys():
    rng = np.random.default_rng(1)
    edges, present = rng.integers(0, 40, (35, 2)), rng.random(35) < 0.9
    found = np.asarray(connected_components(edges, present, vertices=40))
    _, expected = scipy_components(
        coo_array((np.ones(present.sum()), edges[present].T), shape=(40, 40)), directed=False
    )
    assert np.array_equal(found[:, None] == found, expected[:, None] == expected)
    assert (found[found] == found).all()


@pytest.mark.parametrize("shape", [(7,), (5, 6), (1, 4), (3, 4, 5)])
def test_forest_of_a_box_has_the_weights_of_kruskals(shape):
    """In four lanes: two weights, many, some edges missing, all equal."""
    rng, never = np.random.default_rng(len(shape)), 12
    box = np.arange(np.prod(shape)).reshape(shape)
    ends, weights = [], []
    for axis, size in enumerate(shape):
        first, second = (np.take(box, range(k, size - 1 + k), axis) for k in (0, 1))
        ends.append(np.stack([first.ravel(), second.ravel()], 1))
        most = np.array([2, never, never + 1, 1]).reshape(-1, *(1,) * len(shape))
        weights.append(rng.integers(0, most, (4, *first.shape)).astype(np.int32))
    found = jax.jit(jax.vmap(lambda *w: box_forest_weights(w, never=never)))(*weights)
    for lane in range(4):
        own = np.concatenate([w[lane].ravel() for w in weights])
        order = np.argsort(own, kind="stable")
        chosen = kruskal(np.concatenate(ends)[order], own[order] < never, box.size)
        assert sorted(w for w in found[lane].tolist() if w < never) == own[order][chosen].tolist()


def test_a_box_without_room_is_refused():
    with pytest.raises(ValueError, match="2\\^31"):
        box_forest_weights([jnp.zeros((99, 1), jnp.int32), jnp.zeros((100, 0), jnp.int32)], never=2**25)


def test_no_edges_no_forest():
    assert connected_components(jnp.zeros((0, 2), jnp.int32), jnp.zeros(0, bool), vertices=3).tolist() == [
        0,
        1,
        2,
    ]
    assert spanning_forest(jnp.zeros((0, 2), jnp.int32), jnp.zeros(0, bool), vertices=3).shape == (0,)


def test_complete_forest_has_the_weights_of_scipys_tree_in_every_lane():
    rng = np.random.default_rng(0)
    n, never = 17, 9
    weights = rng.integers(0, never + 1, (n, n))
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    births = rng.integers(0, never + 1, (6, n))
    births[0] = 0
    found = np.sort(jax.jit(lambda w, b: complete_forest_weights(w, b, never=never))(weights, births), axis=0)
    for lane, born in enumerate(births):
        own = np.maximum(weights, np.maximum.outer(born, born)) + 1.0  # scipy takes 0 for no edge
        tree = minimum_spanning_tree(np.triu(own, 1)).data - 1
        assert np.array_equal(found[:, lane], np.sort(tree))


def test_one_point_has_no_edges():
    assert complete_forest_weights(jnp.zeros((1, 1), int), jnp.zeros((3, 1), int), never=4).shape == (0, 3)


def test_packed_keys_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must stay below 2"):
        complete_forest_weights(jnp.zeros((2**11, 2**11), jnp.int32), jnp.zeros((1, 2**11), int), never=2**20)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    shapes = (jax.ShapeDtypeStruct((9, 2), jnp.int32), jax.ShapeDtypeStruct((9,), jnp.bool))
    sparse = jax.jit(lambda e, p: spanning_forest(e, p, vertices=5))
    assert jax.export.export(sparse, platforms=[platform])(*shapes).platforms == (platform,)
    shapes = (jax.ShapeDtypeStruct((5, 5), jnp.int32), jax.ShapeDtypeStruct((3, 5), jnp.int32))
    dense = jax.jit(lambda w, b: complete_forest_weights(w, b, never=7))
    assert jax.export.export(dense, platforms=[platform])(*shapes).platforms == (platform,)
