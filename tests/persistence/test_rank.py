"""Rank invariants against images of maps by elimination; decompositions against the sums that define them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from homology_oracle import boundary_matrix, exact_grid, null_space, random_filtration, rank_z2

from jaxlab.errors import InputError
from jaxlab.persistence import (
    Filtration,
    Grid,
    cell_complex,
    hooks,
    lower_star,
    make_grid,
    rank_generic,
    rank_h0,
    rectangles,
    simplicial_complex,
)


def rank_by_elimination(filtration, grid, degree):
    """dim(Z_i(K_a) + B_i(K_b)) - dim B_i(K_b) for every a <= b."""
    complex, grades = filtration
    lines = [np.asarray(c) for c in grid.coords]
    points = list(np.ndindex(grid.shape))
    there = [
        [(np.asarray(g) <= [c[i] for c, i in zip(lines, x, strict=True)]).all(1) for g in grades]
        for x in points
    ]
    down = boundary_matrix(np.asarray(complex.faces[degree]), complex.sizes[degree - 1] if degree else 1)
    above = degree < complex.dimension
    up = boundary_matrix(np.asarray(complex.faces[degree + 1]), complex.sizes[degree]) if above else None
    found = np.zeros((*grid.shape, *grid.shape), int)
    for (i, a), (j, b) in itertools.product(enumerate(points), repeat=2):
        if not all(x <= y for x, y in zip(a, b, strict=True)):
            continue
        inside = there[i][degree]
        cycles = np.zeros((len(inside), 0), bool)
        if inside.any():
            kernel = null_space(down[:, inside])
            cycles = np.zeros((len(inside), kernel.shape[1]), bool)
            cycles[inside] = kernel
        boundaries = up[:, there[j][degree + 1]] if above else np.zeros((len(inside), 0), bool)
        found[a + b] = rank_z2(np.concatenate([cycles, boundaries], 1)) - rank_z2(boundaries)
    return found


def pairs(shape):
    return itertools.product(np.ndindex(shape), repeat=2)


def below(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("seed", "parameters", "levels"), [(0, 2, 3), (1, 2, 4), (2, 1, 5), (3, 3, 2)])
def test_ranks_are_those_of_the_maps_in_homology(seed, parameters, levels):
    filtration = random_filtration(seed, parameters, vertices=5, dimension=2, levels=levels)
    grid = exact_grid(filtration)
    for degree in range(filtration.complex.dimension + 1):
        expected = rank_by_elimination(filtration, grid, degree)
        assert np.array_equal(rank_generic(filtration, grid, degree=degree), expected)
        if degree == 0:
            assert np.array_equal(rank_h0(filtration, grid), expected)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 2, 3)])
def test_decompositions_sum_to_the_rank_they_come_from(shape):
    """r(x, y) is the weight of the rectangles from a <= x to b >= y, and of the hooks from a <= x with not y >= b."""
    filtration = random_filtration(7, len(shape), vertices=6, dimension=2, levels=9)
    grid = make_grid(filtration.values, strategy="quantile", resolution=shape)
    for degree in (0, 1):
        rank = np.asarray(rank_generic(filtration, grid, degree=degree))
        blocks = np.asarray(rectangles(rank))
        finite, infinite = (np.asarray(w) for w in hooks(jnp.asarray(rank)))
        assert rank.any()
        for x, y in pairs(shape):
            if not below(x, y):
                assert not rank[x + y] and not blocks[x + y] and not finite[x + y]
                continue
            inside = sum(blocks[a + b] for a, b in pairs(shape) if below(a, x) and below(y, b))
            alive = sum(finite[a + b] for a, b in pairs(shape) if below(a, x) and not below(b, y))
            alive += sum(infinite[a] for a in np.ndindex(shape) if below(a, x))
            assert inside == alive == rank[x + y]


@pytest.mark.parametrize(
    ("relations", "expected"),
    [
        ([(1, 1)], {((0, 0), (1, 1)): 1}),
        ([(1, 0), (0, 1)], {((0, 0), (0, 1)): 1, ((0, 0), (1, 0)): 1, ((0, 0), (1, 1)): -1}),
        ([(1, 0)], {((0, 0), (1, 0)): 1}),
    ],
)
def test_closed_cases_of_one_generator_as_hooks(relations, expected):
    complex = cell_complex([np.zeros((1, 0)), np.zeros((len(relations), 1))])
    module = Filtration(complex, (jnp.zeros((1, 2)), jnp.asarray(relations, jnp.float32)))
    finite, infinite = hooks(rank_generic(module, Grid((jnp.arange(2.0), jnp.arange(2.0))), degree=0))
    found = {(tuple(w[:2]), tuple(w[2:])): int(finite[tuple(w)]) for w in np.argwhere(finite).tolist()}
    assert found == expected and not infinite.any()


def test_interval_on_a_line_is_one_rectangle():
    assert rectangles(jnp.array([[1, 1], [0, 1]])).tolist() == [[0, 1], [0, 0]]


def test_bad_arguments_are_named():
    edge = lower_star(simplicial_complex(2, [[0, 1]]), jnp.zeros((2, 2)))
    with pytest.raises(InputError, match="a rank tensor of .* coarsen it"):
        rank_h0(edge, Grid((jnp.arange(100.0), jnp.arange(100.0))))
    with pytest.raises(InputError, match="degree is 2, but must be 0 to 1"):
        rank_generic(edge, exact_grid(edge), degree=2)
    with pytest.raises(InputError, match=r"rank has shape \(2, 3\)"):
        hooks(jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(InputError, match="use rank_generic"):
        complex = cell_complex([np.zeros((1, 0)), np.zeros((1, 1))])
        rank_h0(Filtration(complex, (jnp.zeros((1, 1)), jnp.ones((1, 1)))), Grid((jnp.zeros(1),)))
