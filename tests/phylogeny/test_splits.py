"""Splits as bit sets against sets of Python."""

import functools

import jax
import numpy as np
import pytest
from joining_oracle import edges_of, random_distances

from jaxlab.kernels.neighbor_joining import neighbor_joining
from jaxlab.phylogeny.splits import Splits, contained, node_sets, split_distance, split_supports, tree_splits

TAXA = 40
"""More than one word of bits."""


@pytest.fixture(scope="module")
def parents():
    """Of trees that share some splits, one of them with absent taxa, taxon 0 among those."""
    rng = np.random.default_rng(0)
    base = random_distances(TAXA, rng)
    noisy = (base + 0.2 * random_distances(TAXA, rng, batch=(6,))).astype(np.float32)
    present = np.ones((6, TAXA), bool)
    present[5, [0, 1, 35]] = False
    return jax.jit(jax.vmap(neighbor_joining))(noisy, present).parents


@pytest.fixture(scope="module")
def splits(parents):
    return jax.jit(jax.vmap(functools.partial(tree_splits, taxa=TAXA)))(parents)


def python_splits(parents):
    edges = edges_of(parents, np.zeros(len(parents)))
    everyone = set().union(*edges) | {min(set(range(TAXA)) & {i for i, p in enumerate(parents) if p >= 0})}
    return {side for side in edges if 2 <= len(side) <= len(everyone) - 2}


def as_sets(bits):
    return [
        frozenset(i for i in range(TAXA) if int(row[i // 32]) >> (i % 32) & 1) for row in np.asarray(bits)
    ]


def test_taxa_below_nodes_are_those_of_python_sets(parents):
    sets = as_sets(jax.jit(functools.partial(node_sets, taxa=TAXA))(parents[0]))
    below = [{i} if i < TAXA else set() for i in range(2 * TAXA - 2)]
    for node, parent in enumerate(np.asarray(parents[0])[:-1]):
        below[parent] |= below[node]
    assert sets == below


def test_splits_are_those_of_python_sets_also_with_absent_taxa(parents, splits):
    for b in range(6):
        found = [side for side, there in zip(as_sets(splits.bits[b]), splits.there[b], strict=True) if there]
        assert len(set(found)) == len(found) == (TAXA - 3 if b < 5 else TAXA - 6)
        assert set(found) == python_splits(np.asarray(parents[b]))


def test_distances_and_supports_are_those_of_python_sets(parents, splits):
    one, two = (Splits(splits.bits[b], splits.there[b]) for b in (0, 1))
    mine, others = (python_splits(np.asarray(parents[b])) for b in (0, 1))
    assert 0 < len(mine & others) < len(mine)
    assert int(jax.jit(split_distance)(one, two)) == len(mine ^ others)
    assert int(jax.jit(split_distance)(one, one)) == 0
    sides = as_sets(one.bits)
    assert np.asarray(jax.jit(contained)(one, two)).tolist() == [side in others for side in sides]
    replicates = Splits(splits.bits[:5], splits.there[:5])
    all_others = [python_splits(np.asarray(parents[b])) for b in range(5)]
    expected = [np.mean([side in other for other in all_others]) for side in sides]
    np.testing.assert_allclose(jax.jit(split_supports)(one, replicates), expected, atol=1e-6)
