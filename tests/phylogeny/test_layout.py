"""Drawings keep lengths, and edges do not cross."""

import itertools

import numpy as np
import pytest
from joining_oracle import random_tree

from jaxlab.phylogeny.layout import branch_families, equal_angle_layout, ladder_layout
from jaxlab.phylogeny.newick import from_newick
from jaxlab.phylogeny.trees import midpoint_rooted, neighbor_joining_tree


@pytest.fixture(scope="module")
def tree():
    _, paths = random_tree(9, np.random.default_rng(0))
    return midpoint_rooted(neighbor_joining_tree(paths, [f"m{i}" for i in range(9)]))


def test_ladders_have_depths_of_paths_and_a_row_for_each_taxon(tree):
    points = ladder_layout(tree)
    for node, parent in enumerate(tree.parents[:-1]):
        assert points[node, 0] - points[parent, 0] == pytest.approx(max(tree.lengths[node], 0))
    assert points[:9, 1].tolist() == list(range(9)) and points[-1, 0] == 0
    for node, below in enumerate(tree.children):
        if below:
            assert points[node, 1] == pytest.approx(np.mean([points[child, 1] for child in below]))


def crossing(a, b, c, d):
    def side(p, q, r):
        return np.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def test_equal_angles_keep_lengths_and_edges_apart(tree):
    points = equal_angle_layout(tree)
    edges = list(enumerate(tree.parents[:-1]))
    for node, parent in edges:
        assert np.linalg.norm(points[node] - points[parent]) == pytest.approx(max(tree.lengths[node], 0))
    for (a, b), (c, d) in itertools.combinations(edges, 2):
        if len({a, b, c, d}) == 4:
            assert not crossing(points[a], points[b], points[c], points[d])


def test_unknown_and_negative_lengths_are_drawn_as_nothing():
    tree = from_newick("((a:-1,b),c:2,d:1);")
    assert ladder_layout(tree)[:, 0].tolist() == [0, 0, 2, 1, 0, 0]
    assert np.isfinite(equal_angle_layout(tree)).all()


def test_branches_have_the_family_of_all_their_taxa_or_none():
    tree = from_newick("((a,b),(c,(d,e)));")
    assert branch_families(tree, {"a": "x", "b": "x", "c": "y", "d": "y"}) == [
        "x",
        "x",
        "y",
        "y",
        "",
        "x",
        "",
        "",
        "",
    ]
