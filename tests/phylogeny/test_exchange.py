"""Files for other programs, read by those programs: Biopython and dendropy."""

import csv
import io

import dendropy
import numpy as np
import pytest
from Bio import Phylo
from dendropy.calculate import treecompare
from joining_oracle import random_distances

from jaxlab.errors import InputError
from jaxlab.phylogeny.exchange import to_nexus, to_phylip, write_matrix
from jaxlab.phylogeny.newick import from_newick, to_newick
from jaxlab.phylogeny.trees import midpoint_rooted, neighbor_joining_tree, robinson_foulds, with_supports

NAMES = ["org/model-7b", "it's (new)", "a b", "d_e", "漢字é", "x;y", "[z]", "q:1"]


@pytest.fixture(scope="module")
def trees():
    """Of random matrices, with negative lengths and supports among them."""
    rng = np.random.default_rng(0)
    found = [neighbor_joining_tree(random_distances(8, rng), NAMES) for _ in range(4)]
    assert any((tree.lengths < 0).any() for tree in found)
    return [with_supports(tree, found) for tree in found]


def read_dendropy(text, schema, taxa=None):
    return dendropy.TreeList.get(data=text, schema=schema, preserve_underscores=True, taxon_namespace=taxa)


def test_dendropy_reads_the_names_and_lengths(trees):
    for tree in trees:
        read = read_dendropy(to_newick(tree), "newick")[0]
        found = {leaf.taxon.label: leaf.edge.length for leaf in read.leaf_node_iter()}
        assert found == dict(zip(tree.taxa, tree.lengths.tolist(), strict=False))


def test_biopython_reads_the_names_lengths_and_supports(trees):
    for tree in trees:
        read = Phylo.read(io.StringIO(to_newick(tree)), "newick")
        # Biopython keeps the quotes' doubling apart, and no name here has more than one.
        found = {leaf.name: leaf.branch_length for leaf in read.get_terminals()}
        assert set(found) == set(NAMES)
        for name, length in zip(tree.taxa, tree.lengths.tolist(), strict=False):
            assert found[name] == pytest.approx(length, abs=1e-5)
        supports = [clade.confidence for clade in read.get_nonterminals() if clade.confidence is not None]
        np.testing.assert_allclose(np.sort(supports), np.sort(tree.supports[8:-1]), atol=5e-3)


def test_robinson_foulds_is_that_of_dendropy(trees):
    together = "".join(to_newick(tree) for tree in trees)
    read = read_dendropy(together, "newick", dendropy.TaxonNamespace())
    for tree in read:
        tree.is_rooted = False
        tree.encode_bipartitions()
    for i, tree in enumerate(trees):
        for j, other in enumerate(trees):
            assert robinson_foulds(tree, other) == treecompare.symmetric_difference(read[i], read[j])


def test_what_dendropy_writes_is_read_back(trees):
    for tree in trees:
        text = read_dendropy(to_newick(tree), "newick")[0].as_string("newick", preserve_spaces=True)
        again = from_newick(text)
        assert set(again.taxa) == set(NAMES) and robinson_foulds(tree, again) == 0


def test_nexus_opens_in_dendropy_with_roots_marked(trees):
    text = to_nexus({"all genes": trees[0], "rooted": midpoint_rooted(trees[0])})
    read = read_dendropy(text, "nexus")
    assert [tree.label for tree in read] == ["all genes", "rooted"]
    assert [tree.is_rooted for tree in read] == [False, True]
    assert {taxon.label for taxon in read.taxon_namespace} == set(NAMES)


def test_nexus_opens_in_biopython():
    """With plain names: its reader of NEXUS keeps quotes as part of a name."""
    names = ["org/model-7b", "gemma3-270m", "x.y", "b+c"]
    tree = neighbor_joining_tree(random_distances(4, np.random.default_rng(3)), names)
    (read,) = Phylo.parse(io.StringIO(to_nexus({"tree": tree})), "nexus")
    assert {leaf.name for leaf in read.get_terminals()} == set(names)


def test_phylip_opens_in_dendropy_with_the_same_numbers():
    distances = random_distances(8, np.random.default_rng(1))
    lines = to_phylip(distances, NAMES).splitlines()
    assert lines[0] == "8" and len(lines) == 9
    table = "\n".join("\t".join(line.split(" ")) for line in lines[1:])
    header = "\t".join(["", *(line.split(" ")[0] for line in lines[1:])])
    matrix = dendropy.PhylogeneticDistanceMatrix.from_csv(
        io.StringIO(f"{header}\n{table}\n"), delimiter="\t", is_allow_new_taxa=True
    )
    names = ["_".join(name.split()) for name in NAMES]
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            a, b = (matrix.taxon_namespace.get_taxon(name) for name in (one, other))
            assert matrix.distance(a, b) == distances[i, j]


def test_tables_keep_names_and_numbers(tmp_path):
    distances = random_distances(8, np.random.default_rng(2))
    write_matrix(tmp_path / "d.csv", distances, NAMES)
    with open(tmp_path / "d.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["", *NAMES] and [row[0] for row in rows] == NAMES
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], float), distances)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_nexus({}), "trees is empty"),
        (
            lambda: to_nexus({"a": from_newick("(a,b);"), "b": from_newick("(a,c);")}),
            r"trees\['b'\] has the taxa a, c; they must be a, b",
        ),
        (lambda: to_phylip(np.zeros((2, 3)), ["a", "b"]), r"distances has shape \(2, 3\)"),
        (lambda: to_phylip(np.zeros((2, 2)), ["a b", "a_b"]), "names holds 'a_b' more than once"),
        (lambda: write_matrix("unused.csv", np.zeros((2, 2)), ["a"]), "names has 1 entries; it must have 2"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
