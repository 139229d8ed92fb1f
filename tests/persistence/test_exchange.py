"""scc2020 text against texts written by hand and elimination, files against NumPy, graphs against networkx."""

import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from homology_oracle import atoms, exact_grid, hilbert_functions, random_filtration

from jaxlab.errors import InputError, ResourceError
from jaxlab.persistence import (
    DenseMeasure,
    Filtration,
    GraphFunctions,
    Grid,
    from_networkx,
    from_scc,
    lower_star,
    read_measures,
    simplicial_complex,
    sparsify,
    stack_complexes,
    to_scc,
    write_measures,
)

TRIANGLE = """scc2020
# a full triangle, and a coordinate that float32 rounds
2
1 3 3
2 3 ; 0 1 2
1 0 ; 0 1

0 1 ; 1 2  # the edge bc
1 0.1 ; 0 2
0 0 ;
0 0 ;
0 0 ;
"""


def test_a_text_written_by_hand_is_read():
    found = from_scc(TRIANGLE)
    expected = Filtration(
        simplicial_complex(3, [[0, 1], [1, 2], [0, 2]], [[0, 1, 2]]),
        (jnp.zeros((3, 2)), jnp.array([[1.0, 0], [0, 1], [1, 0.1]]), jnp.array([[2.0, 3.0]])),
    )
    for a, b in zip(found.grades, expected.grades, strict=True):
        assert np.array_equal(a, b)
    assert [np.sort(own).tolist() for own in found.complex.faces[1:]] == [
        [[0, 1], [1, 2], [0, 2]],
        [[0, 1, 2]],
    ]
    words = [line.split("#")[0].split() for line in TRIANGLE.splitlines()]
    again = [line.split() for line in to_scc(found).splitlines()]
    assert [[float(w) if w[0].isdigit() else w for w in line] for line in again] == [
        [float(w) if w[0].isdigit() else w for w in line] for line in words if line
    ]


def test_presentations_end_with_an_empty_dimension():
    """One generator and two relations, in degree 0."""
    module = from_scc("scc2020\n2\n2 1 0\n2 0 ; 0\n0 2 ; 0\n0 0 ;\n")
    assert module.complex.sizes == (1, 2)
    betti, _ = hilbert_functions(module, exact_grid(module))
    assert betti[0].tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("parameters", [1, 3])
def test_what_is_read_back_has_the_same_homology(parameters):
    """With masked cells and cells that never enter, which are not in the text."""
    filtration = random_filtration(4, parameters)
    padded = stack_complexes([filtration.complex], sizes=(8, 20, 24, 16))
    grades = []
    for own, mask in zip(filtration.grades, padded.masks, strict=False):
        fill = np.full((mask.shape[1], parameters), np.inf, np.float32)
        fill[: len(own)] = own
        grades.append(fill)
    top = len(grades) - 1
    grades[top][0, -1] = np.inf
    complex = type(filtration.complex)(
        tuple(own[0] for own in padded.faces[: top + 1]), tuple(own[0] for own in padded.masks[: top + 1])
    )
    whole = Filtration(complex, tuple(map(jnp.asarray, grades)))
    text = to_scc(whole)
    assert text.splitlines()[2].split()[0] == str(filtration.complex.sizes[top] - 1)
    grid = exact_grid(filtration)
    expected, found = (hilbert_functions(one, grid) for one in (whole, from_scc(text)))
    degrees = len(found[0])
    assert np.array_equal(found[0], expected[0][:degrees]) and not expected[0][degrees:].any()
    assert np.array_equal(found[1], expected[1]) and degrees > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("scc2020", "firep"), "must begin with scc2020"),
        (("1 3 3", "1 3 2"), r"has 7 cells by 2 parameters, but its sizes are \[1, 3, 2\]"),
        (("0 1 ; 1 2", "0 1 1 2"), "line 8 is '0 1 1 2'; it must be 2 finite numbers"),
        (("0 1 ; 1 2", "0 x ; 1 2"), "line 8 .* its grade must be numbers"),
        (("0 1 ; 1 2", "0 1 ; 1:2 2"), "line 8 has '1:2 2', .* without coefficients"),
        (("0 1 ; 1 2", "0 1 ; 1 3"), "must be distinct cells 0 to 2"),
        (("2 3 ; 0 1 2", "2 3 ; 0 1"), "is not closed"),
        (("2 3 ; 0 1 2", "0 0 ; 0 1 2"), "the filtration is not monotone"),
    ],
)
def test_bad_texts_are_named(change, message):
    with pytest.raises(InputError, match=message):
        from_scc(TRIANGLE.replace(*change))


def test_files_of_measures_are_lists_of_points_and_weights(tmp_path):
    grid = Grid((jnp.array([0.0, 0.5, 2.0]), jnp.array([1.0, 3.0])))
    dense = DenseMeasure(jnp.array([[1, 0], [0, -2], [3, 0]]), grid)
    sparse, _ = sparsify(DenseMeasure(jnp.array([[0, 0], [4, 0], [0, 0]]), grid), max_atoms=5)
    path = tmp_path / "measures.npz"
    write_measures(path, [dense, sparse])
    with np.load(path) as stored:
        assert stored["points_0"].tolist() == [[0, 1], [0.5, 3], [2, 1]]
        assert stored["weights_0"].tolist() == [1, -2, 3]
        assert stored["points_1"].tolist() == [[0.5, 1]] and stored["weights_1"].tolist() == [4]
    assert [atoms(own) for own in read_measures(path)] == [atoms(dense), atoms(sparse)]
    with pytest.raises(ResourceError, match="cannot be read"):
        read_measures(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", points_0=np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"has arrays \['points_0'\], but must have"):
        read_measures(tmp_path / "other.npz")
    np.savez(tmp_path / "halves.npz", points_0=np.zeros((1, 2)), weights_0=[0.5])
    with pytest.raises(InputError, match="weights being whole numbers"):
        read_measures(tmp_path / "halves.npz")
    path.write_text("no archive")
    with pytest.raises(InputError, match=r"is no \.npz file"):
        read_measures(path)


def test_networkx_graphs_are_samples():
    graph = nx.Graph([("c", "a"), ("a", "b"), ("d", "e"), ("a", "c")])
    nx.set_node_attributes(graph, {node: ord(node) for node in graph}, "height")
    found, nodes = from_networkx(graph, label=3, attributes=("height",))
    assert found.vertices == 5 and found.label == 3 and set(nodes) == set("abcde")
    assert {frozenset(nodes[i] for i in edge) for edge in found.edges} == set(map(frozenset, graph.edges))
    assert found.vertex_attributes[:, 0].tolist() == [ord(node) for node in nodes]
    read = GraphFunctions(("closeness",)).read([found])
    expected = nx.closeness_centrality(graph)
    np.testing.assert_allclose(read.values[0], [expected[node] for node in nodes], rtol=1e-5)
    star = lower_star(
        simplicial_complex(found.vertices, found.edges), jnp.asarray(found.vertex_attributes, jnp.float32)
    )
    assert star.grades[1][:, 0].tolist() == [max(map(ord, (nodes[i] for i in edge))) for edge in found.edges]
    with pytest.raises(InputError, match="has no attribute 'weight'"):
        from_networkx(graph, attributes=("weight",))
    graph.add_edge("b", "b")
    with pytest.raises(InputError, match="loop at node 'b'"):
        from_networkx(graph)
