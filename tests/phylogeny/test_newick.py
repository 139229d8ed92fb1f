"""Newick text: known trees, round trips of random trees with awkward names, and every error."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.phylogeny.newick import from_newick, to_newick
from jaxlab.phylogeny.trees import from_children

labels = st.text("ab1_ .'()[]{},:;\"=\té漢-+", min_size=1, max_size=6)
lengths = st.one_of(st.floats(-9, 9), st.just(math.nan))


@st.composite
def trees(draw):
    taxa = draw(st.lists(labels, min_size=2, max_size=9, unique=True))
    names, edge, supports = list(taxa), [draw(lengths) for _ in taxa], [math.nan for _ in taxa]
    children = [[] for _ in taxa]
    open_nodes = list(range(len(taxa)))
    while len(open_nodes) > 1 or not children[open_nodes[0]]:
        size = draw(st.integers(2, len(open_nodes)))
        open_nodes = draw(st.permutations(open_nodes))
        children.append(open_nodes[:size])
        named = draw(st.booleans())
        names.append(draw(labels) if named else "")
        edge.append(draw(lengths))
        supports.append(math.nan if named else draw(st.one_of(st.floats(0, 100), st.just(math.nan))))
        open_nodes = [*open_nodes[size:], len(names) - 1]
    return from_children(names, edge, supports, children)


@given(trees())
def test_a_tree_survives_being_written_and_read(tree):
    again = from_newick(to_newick(tree))
    assert again.names == tree.names
    np.testing.assert_array_equal(again.parents, tree.parents)
    np.testing.assert_array_equal(again.lengths, tree.lengths)
    np.testing.assert_array_equal(again.supports, tree.supports)


def test_names_lengths_supports_and_comments_are_read():
    tree = from_newick("[&R] ( ('it''s b':2,b_c:-3e-1)0.9 [90%] :3,\n c,(d:2,e:1)'0.5':2.5 )root:7;")
    assert tree.taxa == ("it's b", "b_c", "c", "d", "e")
    assert tree.names[5:] == ("", "0.5", "root")
    assert tree.parents.tolist() == [5, 5, 7, 6, 6, 7, 7, -1]
    np.testing.assert_array_equal(tree.lengths, [2, -0.3, math.nan, 2, 1, 3, 2.5, 0])
    np.testing.assert_array_equal(tree.supports, [math.nan] * 5 + [0.9, math.nan, math.nan])


def test_labels_are_quoted_where_they_must_be():
    tree = from_newick("(a,'b c','d_e','f''g',('1',h)'0.5')0.75;")
    assert to_newick(tree) == "(a,'b c','d_e','f''g',(1,h)'0.5')0.75;"


def test_lengths_and_supports_can_be_left_out():
    tree = from_newick("((a:1,b:2)0.5:3,c:4,d:5);")
    assert to_newick(tree, lengths=False) == "((a,b)0.5,c,d);"
    assert to_newick(tree, supports=False) == "((a:1.0,b:2.0):3.0,c:4.0,d:5.0);"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the end of the text at position 0: a taxon must have a name"),
        ("(a,b)", "the end of the text at position 5: expected ',', '\\)' or ';'"),
        ("((a,b);", "';' at position 6: 1 '\\(' are still open"),
        ("(a,b));", "'\\);' at position 5: no '\\(' is open here"),
        ("a,b;", "',b;' at position 1: no '\\(' is open here"),
        ("(a,,b);", "',b\\);' at position 3: a taxon must have a name"),
        ("(a:x,b);", "'x,b\\);' at position 3: a length must be a number"),
        ("(a:'1',b);", "at position 3: a length must be a number"),
        ("(a:nan,b);", "at position 3: a length must be a number"),
        ("(a:", "the end of the text at position 3: a length must be a number"),
        ("(a b,c);", "'b,c\\);' at position 3: expected"),
        ("(a(b,c));", "at position 2: expected"),
        ("(a,b); (c,d);", "'\\(c,d\\);' at position 7: one tree must be all there is"),
        ("(a,'b);", "at position 3: a quote or comment does not end"),
        ("(a,b)[x;", "at position 5: a quote or comment does not end"),
        ("a;", "at position 0: a tree must have at least one pair of parentheses"),
        ("(a,a);", "names holds 'a' more than once"),
        ("(a,'');", "is empty; every taxon must have a name"),
    ],
)
def test_what_is_not_one_whole_tree_is_refused_with_its_place(text, message):
    with pytest.raises(InputError, match=message):
        from_newick(text)
