"""Signed measures of graphs edge by edge: counts by union-find, a closed form, slopes by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.persistence import (
    Filtration,
    check_gradient,
    graph_measures,
    integrate_phi,
    lower_star,
    pad_complex,
    raise_to_faces,
    simplicial_complex,
    stack_complexes,
)
from jaxlab.persistence.edge_insertion import insertion_bottlenecks

PAIRS = np.argwhere(np.triu(np.ones((7, 7)), 1))
EDGES = 11


def random_graph(seed: int) -> tuple[Filtration, np.ndarray, np.ndarray, np.ndarray]:
    """A filtration with many equal grades, edges later than their vertices, and its edges and grades."""
    rng = np.random.default_rng(seed)
    edges = PAIRS[np.sort(rng.permutation(len(PAIRS))[:EDGES])]
    grades = [rng.integers(0, 4, (size, 2)).astype(np.float32) for size in (7, EDGES)]
    filtration = raise_to_faces(simplicial_complex(7, edges), [jnp.asarray(own) for own in grades])
    return filtration, edges, *(np.asarray(own) for own in filtration.grades)


def components(vertices: np.ndarray, edges: np.ndarray, there: np.ndarray) -> int:
    """Number of trees that union-find ends with."""
    parent = list(range(len(vertices)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in edges[there]:
        parent[root(i)] = root(j)
    return len({root(int(i)) for i in np.flatnonzero(vertices)})


def summed(measure, x: np.ndarray) -> int:
    """The weights of all atoms at or below x."""
    below = np.asarray(measure.mask) & (np.asarray(measure.points) <= x).all(-1)
    return int(np.asarray(measure.weights)[below].sum())


@pytest.mark.parametrize("seed", range(6))
def test_atoms_below_a_grade_count_components_and_cycles(seed):
    filtration, edges, own, later = random_graph(seed)
    found = graph_measures(filtration)
    for x in np.argwhere(np.ones((5, 5))):
        vertices, there = (own <= x).all(-1), (later <= x).all(-1)
        trees = components(vertices, edges, there)
        assert summed(found[0], x) == trees
        assert summed(found[1], x) == trees - vertices.sum() + there.sum()


def test_padding_and_cells_that_never_enter_have_no_atoms():
    filtration, edges, own, later = random_graph(1)
    later = later.copy()
    later[2] = np.inf
    room = pad_complex(filtration.complex, (9, 24))
    grades = [
        jnp.asarray(np.pad(g, ((0, n - len(g)), (0, 0)), constant_values=np.inf))
        for g, n in ((own, 9), (later, 24))
    ]
    found = graph_measures(Filtration(room, tuple(grades)))
    for x in np.argwhere(np.ones((4, 4))):
        vertices, there = (own <= x).all(-1), (later <= x).all(-1)
        trees = components(vertices, edges, there)
        assert summed(found[0], x) == trees
        assert summed(found[1], x) == trees - vertices.sum() + there.sum()
    assert all(np.isfinite(np.asarray(one.points)).all() for one in found)


def test_single_edge_has_the_slopes_of_the_closed_form():
    complex = simplicial_complex(2, np.array([[0, 1]]))

    def loss(values):
        components, _ = graph_measures(lower_star(complex, values))
        return integrate_phi(components, lambda x: x[:, 0] ** 2 + 3 * x[:, 1] ** 3)

    # delta(x, 1) + delta(1, y) - delta(1, 1): the edge's grade is that of u in the second, of v in the first.
    slopes = jax.grad(loss)(jnp.array([[0.5, 1.0], [1.0, 0.25]]))
    np.testing.assert_allclose(slopes, [[1.0, 0.0], [0.0, 9 * 0.25**2]], atol=1e-6)


def test_gradients_through_many_graphs_are_differences_of_the_loss():
    rng = np.random.default_rng(0)
    complexes = stack_complexes(
        [simplicial_complex(7, PAIRS[rng.random(len(PAIRS)) < 0.4]) for _ in range(3)]
    )
    with jax.enable_x64(True):

        def one(complex, values):
            return sum(
                integrate_phi(measure, lambda x: jnp.exp(-jnp.sum(x**2, -1)))
                for measure in graph_measures(lower_star(complex, values))
            )

        def loss(values):
            return jnp.sum(jax.vmap(one)(complexes, values))

        values = jnp.asarray(rng.random((3, 7, 2)))
        check = check_gradient(jax.jit(loss), values, jax.random.key(0), directions=5, step=1e-6)
    assert not check.tie.any()
    assert check.ok(1e-6)


def test_bottleneck_is_the_least_largest_rank_over_all_paths():
    rng = np.random.default_rng(3)
    edges, ranks = PAIRS[rng.permutation(len(PAIRS))[:14]], rng.integers(0, 9, 14)
    ranks[5] = 9  # never put in
    found = insertion_bottlenecks(jnp.asarray(edges), jnp.asarray(ranks), vertices=7, never=9)
    for k, (i, j) in enumerate(edges):
        before = np.arange(14) < k
        joined = [
            r
            for r in range(9)
            if components(np.ones(7, bool), edges, before & (ranks <= r))
            == components(
                np.ones(7, bool), np.append(edges, [[i, j]], 0), np.append(before & (ranks <= r), True)
            )
        ]
        assert int(found[k]) == min(joined, default=9)


def test_other_complexes_are_refused():
    triangle = simplicial_complex(3, np.array([[0, 1], [0, 2], [1, 2]]), np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="takes graphs by 2"):
        graph_measures(lower_star(triangle, jnp.zeros((3, 2))))
    with pytest.raises(InputError, match="by 3 parameters"):
        graph_measures(lower_star(simplicial_complex(2, np.array([[0, 1]])), jnp.zeros((2, 3))))
