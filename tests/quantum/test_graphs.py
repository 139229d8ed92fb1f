"""Graphs and cuts against published values, closed forms and counting."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.quantum import pauli_sums
from jaxlab.quantum.ansatze import qaoa
from jaxlab.quantum.graphs import cut_hamiltonian, cut_values, from_edges, graph, one_layer_expectation

pytestmark = pytest.mark.usefixtures("double_precision")

# <C> of one layer at gamma 0.615, beta 0.393, and the largest cut.
KNOWN = {
    "petersen": (10.38674726, 12),
    "florentine": (13.31466249, 17),
    "heawood": (14.54144617, 21),
    "frucht": (11.96383489, 15),
    "dodecahedral": (20.77349452, 24),
}


def expectation(of, params):
    return pauli_sums.expval(qaoa(cut_hamiltonian(of), len(params)).state(params), cut_hamiltonian(of))


@pytest.mark.parametrize("name", KNOWN)
def test_one_layer_and_the_largest_cut(name):
    chosen, (value, largest) = graph(name), KNOWN[name]
    angles = np.array([[0.615, 0.393]])
    assert one_layer_expectation(chosen, *angles[0]) == pytest.approx(value, abs=5e-9)
    assert jax.jit(lambda angles: expectation(chosen, angles))(angles) == pytest.approx(value, abs=5e-9)
    assert cut_values(chosen).max() == largest


def test_closed_form_is_the_circuit_also_with_triangles():
    chosen = graph("krackhardt")
    run = jax.jit(lambda angles: expectation(chosen, angles))
    for angles in np.random.default_rng(0).uniform(-2, 2, (5, 1, 2)):
        assert run(angles) == pytest.approx(float(one_layer_expectation(chosen, *angles[0])), abs=1e-10)


def test_best_single_layer_of_cubic_graphs_without_triangles():
    heawood, step = graph("heawood"), np.pi / 400
    gammas, betas = np.meshgrid(np.arange(0, np.pi / 2, step), np.arange(0, np.pi / 4, step))
    assert jnp.max(one_layer_expectation(heawood, gammas, betas)) / 21 == pytest.approx(0.69245, abs=2e-5)


def test_cut_values_are_counted():
    chosen = from_edges({("b", "a"): 2.0, ("b", "c"): -1.0, ("c", "d"): 0.5})
    assert chosen.nodes == ("a", "b", "c", "d")
    for index, bits in enumerate(itertools.product((0, 1), repeat=4)):
        expected = sum(
            w * (bits[a] != bits[b]) for (a, b), w in zip(chosen.edges, chosen.weights, strict=True)
        )
        assert cut_values(chosen)[index] == expected
    np.testing.assert_allclose(
        np.diag(pauli_sums.dense(cut_hamiltonian(chosen))), cut_values(chosen), atol=1e-12
    )


def test_graphs_from_files_and_at_random(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("# a comment\nx y 2\n\ny z\n")
    read = graph(str(path))
    assert (read.nodes, read.edges, read.weights) == (("x", "y", "z"), ((0, 1), (1, 2)), (2.0, 1.0))
    drawn = graph("regular:3,10", seed=1)
    assert len(drawn.edges) == 15
    assert drawn == graph("regular:3,10", seed=1) != graph("regular:3,10", seed=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "line 1 is 'a'; it must be NODE NODE"),
        ("a b c", "line 1 is 'a b c'"),
        ("a a", "joins a node to itself"),
        ("a b\nb a", "line 2: edge b - a stands twice"),
        ("a b inf", "weight inf; it must be finite"),
        ("", "no edges"),
        ("\n".join(f"0 {i}" for i in range(1, 30)), "30 nodes; there may be up to 24"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "edges.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        graph(str(path))


def test_bad_graphs_are_named(tmp_path):
    with pytest.raises(InputError, match="graph is 'nonsense'; it must be one of petersen"):
        graph("nonsense")
    for source in ("regular:3", "regular:3,5", "regular:a,b"):
        with pytest.raises(InputError, match=f"graph is '{source}'; it must be regular:DEGREE,NODES"):
            graph(source)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match="binary cannot be read"):
        graph(str(tmp_path / "binary"))
    with pytest.raises(InputError, match="weights of 1 alone"):
        one_layer_expectation(from_edges({(0, 1): 2.0}), 0.1, 0.1)
