"""Named trees: splits, consensus, supports and roots against path lengths and sets of Python."""

import collections

import jax
import numpy as np
import pytest
from joining_oracle import edges_of, plain_neighbor_joining, random_distances, random_tree

from jaxlab.errors import InputError
from jaxlab.kernels.neighbor_joining import JoinedTree, neighbor_joining
from jaxlab.phylogeny.newick import from_newick, to_newick
from jaxlab.phylogeny.trees import (
    Phylogeny,
    ladderized,
    majority_consensus,
    midpoint_rooted,
    neighbor_joining_tree,
    outgroup_rooted,
    path_lengths,
    phylogeny,
    robinson_foulds,
    with_supports,
)

NAMES = [f"m{i}" for i in range(10)]


@pytest.fixture(scope="module")
def trees():
    """Neighbour-joining trees of one noisy matrix and more."""
    rng = np.random.default_rng(0)
    _, paths = random_tree(10, rng)
    return [neighbor_joining_tree(paths + 1.5 * random_distances(10, rng), NAMES) for _ in range(9)]


def edges(tree):
    return edges_of(tree.parents, tree.lengths, taxa=len(tree.taxa))


def proper(tree):
    return {side for side in edges(tree) if 2 <= len(side) <= len(tree.taxa) - 2}


def test_additive_distances_come_back_as_path_lengths_and_splits():
    expected, paths = random_tree(10, np.random.default_rng(1))
    tree = neighbor_joining_tree(paths, NAMES)
    assert tree.taxa == tuple(NAMES) and set(edges(tree)) == set(expected)
    np.testing.assert_allclose(path_lengths(tree), paths, atol=1e-5)


def test_names_follow_their_taxa_when_some_are_absent():
    distances = random_distances(10, np.random.default_rng(2))
    present = np.ones(10, bool)
    present[[0, 4]] = False
    joined = jax.jit(neighbor_joining)(distances.astype(np.float32), present)
    kept = np.flatnonzero(present)
    tree = phylogeny(joined, NAMES, np.arange(7.0))
    expected = plain_neighbor_joining(distances[np.ix_(kept, kept)])
    assert tree.taxa == tuple(NAMES[i] for i in kept)
    found = edges(tree)
    assert set(found) == set(expected)
    for side, length in expected.items():
        assert found[side] == pytest.approx(length, abs=1e-5)
    # Supports belong to the five nodes that joins made before the last one.
    assert tree.supports[8:-1].tolist() == [0, 1, 2, 3, 4] and np.isnan(tree.supports[:8]).all()


def test_robinson_foulds_counts_the_splits_of_one_tree_alone(trees):
    for other in trees[1:]:
        apart = len(proper(trees[0]) ^ proper(other))
        assert robinson_foulds(trees[0], other) == apart
        assert robinson_foulds(trees[0], other, normalised=True) == apart / 14
    assert any(robinson_foulds(trees[0], other) for other in trees[1:])


def test_robinson_foulds_does_not_see_order_or_root():
    tree = from_newick("((a,b),(c,d),(e,f));")
    assert robinson_foulds(tree, from_newick("((f,e),((d,c),(b,a)));")) == 0
    assert robinson_foulds(tree, from_newick("((a,c),(b,d),(e,f));")) == 4
    star = from_newick("(a,b,c,d,e,f);")
    assert robinson_foulds(tree, star) == 3
    assert robinson_foulds(star, star, normalised=True) == 0


def test_supports_are_shares_of_trees_also_at_a_root(trees):
    tree = midpoint_rooted(with_supports(trees[0], trees))
    counted = collections.Counter(side for other in trees for side in proper(other))
    anew = with_supports(midpoint_rooted(trees[0]), trees)
    for node, below in enumerate(as_sides(tree)):
        if below in proper(trees[0]):
            assert tree.supports[node] == anew.supports[node] == pytest.approx(counted[below] / 9)
        else:
            assert np.isnan(tree.supports[node]) and np.isnan(anew.supports[node])


def as_sides(tree):
    """The normal side of the split above each node; None for the top."""
    place = [NAMES.index(name) for name in tree.taxa]
    below = [{place[i]} if i < len(place) else set() for i in range(len(tree.names))]
    for node, parent in enumerate(tree.parents[:-1]):
        below[parent] |= below[node]
    everyone = frozenset(range(len(place)))
    return [frozenset(b) if 0 not in b else everyone - b for b in below[:-1]] + [None]


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_consensus_holds_the_splits_of_most_trees_with_mean_lengths(trees, threshold):
    consensus = majority_consensus(trees, threshold=threshold)
    counted = collections.Counter(side for tree in trees for side in proper(tree))
    kept = {side for side, n in counted.items() if n > threshold * 9}
    assert proper(consensus) == kept and 0 < len(kept) < len(counted)
    for node, side in enumerate(as_sides(consensus)[:-1]):
        lengths = [edges(tree)[side] for tree in trees if side in edges(tree)]
        assert consensus.lengths[node] == pytest.approx(np.mean(lengths))
        if side in kept:
            assert consensus.supports[node] == pytest.approx(counted[side] / 9)


def test_consensus_of_one_tree_is_that_tree(trees):
    consensus = majority_consensus(trees[:1])
    assert edges(consensus) == pytest.approx(edges(trees[0]))


def test_midpoint_has_both_ends_of_the_longest_way_at_the_same_depth():
    _, paths = random_tree(10, np.random.default_rng(3))
    tree = neighbor_joining_tree(paths, NAMES)
    for unrooted in (tree, outgroup_rooted(tree, ["m3"])):
        rooted = midpoint_rooted(unrooted)
        assert len(rooted.children[-1]) == 2 and len(rooted.names) == 19
        np.testing.assert_allclose(restored(path_lengths(rooted), rooted.taxa), paths, atol=1e-5)
        depths = np.zeros(len(rooted.names))
        for node in range(len(depths) - 2, -1, -1):
            depths[node] = depths[rooted.parents[node]] + rooted.lengths[node]
        sides = [set(), set()]
        for taxon in range(10):
            node = taxon
            while rooted.parents[node] != len(depths) - 1:
                node = rooted.parents[node]
            sides[rooted.children[-1].index(node)].add(taxon)
        assert [max(depths[list(side)]) for side in sides] == pytest.approx([paths.max() / 2] * 2, abs=1e-5)


def restored(matrix, taxa):
    """Rows and columns in the order of NAMES."""
    order = [taxa.index(name) for name in NAMES]
    return matrix[np.ix_(order, order)]


def test_midpoint_of_a_tree_without_lengths_is_still_a_root():
    tree = from_newick("(a:0,b:0,(c:0,d:0):0);")
    assert len(midpoint_rooted(tree).children[-1]) == 2


def test_outgroup_hangs_beside_all_others(trees):
    tree = trees[0]
    for side in [*proper(tree), {4}]:
        rooted = outgroup_rooted(tree, [NAMES[i] for i in side])
        assert frozenset(side) in {as_sides(rooted)[node] for node in rooted.children[-1]}
        assert robinson_foulds(tree, rooted) == 0
        np.testing.assert_allclose(
            restored(path_lengths(rooted), rooted.taxa), path_lengths(tree), atol=1e-12
        )


def test_ladders_have_the_fewest_taxa_first():
    tree = from_newick("(((a,b),c),d,(e,f));")
    assert to_newick(ladderized(tree)) == "(d,(e,f),(c,(a,b)));"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: neighbor_joining_tree(np.zeros((3, 3)), NAMES[:3]),
            "distances has 3 taxa; it must have at least 4",
        ),
        (lambda t: neighbor_joining_tree(np.zeros((3, 4)), NAMES), r"distances has shape \(3, 4\)"),
        (lambda t: neighbor_joining_tree(np.full((4, 4), np.nan), NAMES[:4]), r"distances\[0, 0\] is nan"),
        (lambda t: neighbor_joining_tree(np.triu(np.ones((4, 4))), NAMES[:4]), "it must be symmetric"),
        (lambda t: neighbor_joining_tree(np.zeros((4, 4)), NAMES), "names has 10 entries; it must have 4"),
        (
            lambda t: phylogeny(JoinedTree(t.parents, t.lengths), NAMES, np.ones(3)),
            r"supports has shape \(3,\); it must be \(7,\)",
        ),
        (lambda t: robinson_foulds(from_newick("(a,b,c);"), from_newick("(a,b,c);")), "the tree has 3 taxa"),
        (lambda t: robinson_foulds(t, from_newick("(a,b,(c,d));")), "the trees must have the same taxa"),
        (lambda t: with_supports(t, []), "replicates is empty"),
        (lambda t: majority_consensus([]), "trees is empty"),
        (lambda t: majority_consensus([t], threshold=0.3), r"threshold is 0.3; it must be in \[0.5, 1\)"),
        (lambda t: midpoint_rooted(from_newick("(a:1,b,c:1);")), "length of node 1 is unknown"),
        (lambda t: outgroup_rooted(t, ["x"]), "outgroup holds 'x'; it must be among the taxa m0"),
        (lambda t: outgroup_rooted(t, []), "outgroup has 0 taxa"),
        (lambda t: outgroup_rooted(from_newick("((a,b),(c,d));"), ["a", "c"]), r"outgroup is \['a', 'c'\]"),
    ],
)
def test_what_does_not_fit_is_refused(trees, call, message):
    with pytest.raises(InputError, match=message):
        call(trees[0])


@pytest.mark.parametrize(
    ("names", "parents", "message"),
    [
        (("a", "b", ""), [2, 2], r"parents has shape \(2,\); it must be \(3,\)"),
        (("a", "b", ""), [2, 0, -1], "each must be higher than its child"),
        (("a", "b", ""), [2, 3, -1], "each must be higher than its child"),
        (("a", "", "b", ""), [1, 3, 3, -1], "nodes without children must come first"),
        (("a", "a", ""), [2, 2, -1], "names holds 'a' more than once"),
    ],
)
def test_arrays_that_are_no_tree_are_refused(names, parents, message):
    with pytest.raises(InputError, match=message):
        Phylogeny(names, np.array(parents), np.zeros(len(names)), np.zeros(len(names)))
