"""The ancestor test against loops in float64, and on a family whose history is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joining_oracle import random_distances

from jaxlab.errors import InputError
from jaxlab.phylogeny.ancestry import ancestor_test, pendant_lengths
from jaxlab.phylogeny.identities import gene_identities


def test_pendant_lengths_are_medians_over_all_third_taxa():
    distances = random_distances(7, np.random.default_rng(0))
    expected = np.zeros((7, 7))
    for x in range(7):
        for y in range(7):
            lengths = [
                (distances[x, y] + distances[x, z] - distances[y, z]) / 2 for z in range(7) if z not in (x, y)
            ]
            expected[x, y] = 0 if x == y else np.median(lengths)
    np.testing.assert_allclose(jax.jit(pendant_lengths)(distances), expected, atol=1e-6)


def test_a_model_inside_the_tree_has_no_branch_of_its_own():
    """Distances along the tree ((b:1,c:2)a:0,d:3): a is where the others meet."""
    depth = np.array([0.0, 1, 2, 3])
    distances = np.where(np.eye(4), 0, depth[:, None] + depth)
    lengths = np.asarray(pendant_lengths(jnp.asarray(distances)))
    assert lengths[0].tolist() == [0, 0, 0, 0]
    assert lengths[1:, 0].tolist() == [1, 2, 3]


@pytest.fixture(scope="module")
def identities():
    """Exact, of a parent, three children that changed genes of their own, and a grandchild."""
    rng = np.random.default_rng(1)
    parent = rng.dirichlet(np.full(6, 0.3), 120)

    def changed(model):
        share = rng.beta(0.3, 0.7, 120)[:, None]
        return (1 - share) * model + share * rng.dirichlet(np.full(6, 0.3), 120)

    children = [changed(parent) for _ in range(3)]
    family = np.stack([parent, *children, changed(children[0])])
    return gene_identities(jnp.asarray(family, jnp.float32), estimator="exact")


@pytest.fixture(scope="module")
def found(identities):
    return jax.jit(ancestor_test)(identities)


def test_parents_are_candidates_for_their_children_and_children_are_not(found):
    assert all(found.candidates[0, child] for child in (1, 2, 3))
    assert found.candidates[1, 4]
    assert not np.asarray(found.candidates)[2:].any()
    assert not np.diagonal(found.candidates).any()


def test_never_both_are_candidates_of_one_another(found):
    candidates = np.asarray(found.candidates)
    short = np.asarray(found.pendants) < 2 * np.asarray(found.errors)
    np.testing.assert_array_equal(candidates, short & ~short.T)
    assert candidates.any() and not (candidates & candidates.T).any()


def test_two_taxa_have_no_third():
    with pytest.raises(InputError, match="distances has 2 taxa; it must have at least 3"):
        pendant_lengths(jnp.zeros((2, 2)))
