"""Neighbour joining against the textbook, trees that are known, and a plain transcription in float64."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from joining_oracle import edges_of, plain_neighbor_joining, random_distances, random_tree

from jaxlab.kernels.neighbor_joining import LANES, SMALLEST_STAGE, neighbor_joining

TEXTBOOK = np.array(
    [[0, 5, 9, 9, 8], [5, 0, 10, 10, 9], [9, 10, 0, 8, 7], [9, 10, 8, 0, 3], [8, 9, 7, 3, 0]], np.float32
)
_one = jax.jit(neighbor_joining)
_many = jax.jit(jax.vmap(neighbor_joining))


def assert_same_edges(tree, expected, *, atol):
    found = edges_of(tree.parents, tree.lengths)
    assert set(found) == set(expected)
    for side, length in expected.items():
        assert found[side] == pytest.approx(length, abs=atol)


def test_textbook_tree_is_exact():
    """((a:2,b:3):3,c:4):2,d:2,e:1."""
    tree = _one(TEXTBOOK)
    assert tree.parents.tolist() == [5, 5, 6, 7, 7, 6, 7, -1]
    assert tree.lengths.tolist() == [2, 3, 4, 2, 1, 3, 2, 0]


def test_random_matrices_give_the_plain_trees_to_ten_digits(double_precision):
    """Their trees have negative lengths, which are kept."""
    distances = random_distances(12, np.random.default_rng(0), batch=(LANES + 5,))
    trees = _many(distances)
    assert trees.lengths.dtype == jnp.float64 and (np.asarray(trees.lengths) < 0).any()
    for b, matrix in enumerate(distances):
        tree = jax.tree.map(lambda x, b=b: x[b], trees)
        assert_same_edges(tree, plain_neighbor_joining(matrix), atol=1e-10)


def test_matrices_that_shrink_by_stages_give_the_plain_trees_in_single_precision():
    taxa = SMALLEST_STAGE + 9
    distances = random_distances(taxa, np.random.default_rng(1), batch=(3,))
    trees = _many(distances.astype(np.float32))
    for b, matrix in enumerate(distances):
        tree = jax.tree.map(lambda x, b=b: x[b], trees)
        assert_same_edges(tree, plain_neighbor_joining(matrix), atol=1e-5)


def test_one_tree_is_that_of_a_batch():
    distances = random_distances(12, np.random.default_rng(2), batch=(LANES,)).astype(np.float32)
    trees = _many(distances)
    for b in (0, LANES - 1):
        alone = _one(distances[b])
        np.testing.assert_array_equal(alone.parents, trees.parents[b])
        np.testing.assert_allclose(alone.lengths, trees.lengths[b], atol=1e-6)


@pytest.mark.parametrize(
    "taxa", [4, 10, 50, *(pytest.param(large, marks=pytest.mark.slow) for large in (156, 500))]
)
def test_additive_distances_give_their_tree_back(taxa):
    edges, paths = random_tree(taxa, np.random.default_rng(taxa))
    tree = _one(paths.astype(np.float32))
    # Single precision of path lengths of up to some tens.
    assert_same_edges(tree, edges, atol=2e-4)


def test_absent_taxa_are_as_if_they_were_not_there():
    rng = np.random.default_rng(3)
    distances = random_distances(12, rng, batch=(4,)).astype(np.float32)
    present = np.ones((4, 12), bool)
    present[1, [0, 5]] = False
    present[2, 3:] = False  # three are left
    present[3, ::3] = False
    dirty = np.where(present[:, None] & present[..., None], distances, np.nan)
    trees = jax.jit(jax.vmap(neighbor_joining))(dirty, present)
    for b in range(4):
        kept = np.flatnonzero(present[b])
        found = edges_of(trees.parents[b], trees.lengths[b])
        expected = plain_neighbor_joining(distances[b][np.ix_(kept, kept)])
        assert set(found) == {frozenset(int(kept[i]) for i in side) for side in expected}
        for side, length in expected.items():
            assert found[frozenset(int(kept[i]) for i in side)] == pytest.approx(length, abs=1e-5)
        assert (np.asarray(trees.parents[b])[: len(present[b])][~present[b]] == -1).all()


def test_a_shared_mask_or_matrix_is_broadcast():
    distances = random_distances(5, np.random.default_rng(4), batch=(2,)).astype(np.float32)
    present = np.array([True, True, False, True, True])
    by_mask = jax.jit(jax.vmap(neighbor_joining, in_axes=(0, None)))(distances, present)
    by_matrix = jax.jit(jax.vmap(neighbor_joining, in_axes=(None, 0)))(
        distances[1], np.stack([present, np.ones(5, bool)])
    )
    np.testing.assert_array_equal(by_mask.parents[1], by_matrix.parents[0])
    np.testing.assert_array_equal(by_matrix.parents[1], _one(distances[1]).parents)


def test_of_equal_pairs_the_first_is_joined():
    """With all distances equal every pair ties at every step: 0 takes all others in turn."""
    tree = _one(np.float32(2) * (1 - np.eye(7, dtype=np.float32)))
    assert tree.parents.tolist() == [7, 7, 8, 9, 10, 11, 11, 8, 9, 10, 11, -1]
    assert tree.lengths.tolist() == [1] * 7 + [0] * 5


def test_three_taxa_meet_in_one_node():
    tree = _one(np.array([[0, 3, 4], [3, 0, 5], [4, 5, 0]], np.float32))
    assert tree.parents.tolist() == [3, 3, 3, -1]
    assert tree.lengths.tolist() == [1, 2, 3, 0]


def test_lengths_have_the_forward_derivative_of_finite_differences(double_precision):
    distances = random_distances(12, np.random.default_rng(5))
    direction = random_distances(12, np.random.default_rng(6))
    lengths = jax.jit(lambda d: neighbor_joining(d).lengths)
    _, slope = jax.jvp(lengths, (distances,), (direction,))
    step = 1e-7 * direction
    np.testing.assert_allclose(
        slope, (lengths(distances + step) - lengths(distances - step)) / 2e-7, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(4, 3), (2, 2), (4,)])
def test_what_is_no_square_matrix_of_three_taxa_is_refused(shape):
    with pytest.raises(ValueError, match="must be a square matrix"):
        neighbor_joining(jnp.zeros(shape))


def test_it_lowers_for_every_platform():
    shape = jax.ShapeDtypeStruct((LANES + 1, 9, 9), jnp.float32)
    exported = jax.export.export(_many, platforms=["cpu", "cuda", "tpu"])(shape)
    assert exported.platforms == ("cpu", "cuda", "tpu")
