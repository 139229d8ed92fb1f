"""Euler surfaces and Hilbert functions: closed cases, plain elimination, invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from homology_oracle import atoms, exact_grid, hilbert_functions, random_filtration

from jaxlab.errors import InputError
from jaxlab.persistence import (
    Filtration,
    Grid,
    cell_complex,
    cubical_complex,
    distinct_lines,
    euler_measure,
    hilbert_generic,
    hilbert_h0,
    hilbert_planar,
    integrate,
    lower_star,
    make_grid,
    signed_measure,
    simplicial_complex,
    stack_complexes,
)


def measures(filtration, degrees=(0, 1), backend="auto"):
    grid = exact_grid(filtration)
    found = [atoms(signed_measure(filtration, grid, degree=d, backend=backend)) for d in degrees]
    return [*found, atoms(euler_measure(filtration, grid))]


def test_single_edge_closed_case():
    edge = lower_star(simplicial_complex(2, [[0, 1]]), jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    expected = {(0, 1): 1, (1, 0): 1, (1, 1): -1}
    assert measures(edge) == measures(edge, backend="generic") == [expected, {}, expected]


def test_triangle_closed_case():
    triangle = Filtration(
        simplicial_complex(3, [[0, 1], [1, 2], [0, 2]], [[0, 1, 2]]),
        (jnp.zeros((3, 2)), jnp.array([[1.0, 0], [0, 1], [1, 1]]), jnp.array([[2.0, 3.0]])),
    )
    expected = [
        {(0, 0): 3, (0, 1): -1, (1, 0): -1},
        {(1, 1): 1, (2, 3): -1},
        {(0, 0): 3, (0, 1): -1, (1, 0): -1, (1, 1): -1, (2, 3): 1},
    ]
    assert measures(triangle) == measures(triangle, backend="generic") == expected


def test_hollow_triangle_closed_case():
    hollow = lower_star(simplicial_complex(3, [[0, 1], [1, 2], [0, 2]]), jnp.ones((3, 2)))
    assert measures(hollow)[1] == measures(hollow, backend="generic")[1] == {(1, 1): 1}


def test_image_with_a_hole_closed_case():
    pixels = np.zeros((3, 3, 2), np.float32)
    pixels[1, 1] = (1, 2)
    image = lower_star(cubical_complex((3, 3)), jnp.asarray(pixels.reshape(9, 2)))
    for backend in ("auto", "generic"):
        assert measures(image, backend=backend)[:2] == [{(0, 0): 1}, {(0, 0): 1, (1, 2): -1}]


def test_seven_parameters_closed_case():
    """Vertex i at the i-th unit vector, the full simplex at (2, ..., 2)."""
    i, j = np.triu_indices(7, 1)
    complex = simplicial_complex(7, np.stack([i, j], 1))
    simplex = Filtration(complex, (jnp.eye(7), jnp.full((21, 7), 2.0)))
    found = atoms(signed_measure(simplex, exact_grid(simplex), degree=0))
    assert found == {tuple(row): 1 for row in np.eye(7).tolist()} | {(2.0,) * 7: -6}


def test_interval_module_by_generator_and_relations():
    """The boundary matrix of [0, 2) x [0, 2): one generator, two relations, a relation between those."""
    faces = [np.zeros((1, 0)), np.array([[0], [0]]), np.array([[0, 1]])]
    grades = (jnp.zeros((1, 2)), jnp.array([[2.0, 0], [0, 2]]), jnp.array([[2.0, 2.0]]))
    module = Filtration(cell_complex(faces), grades)
    expected = {(0, 0): 1, (2, 0): -1, (0, 2): -1, (2, 2): 1}
    for backend in ("auto", "generic"):
        found = measures(module, degrees=(0, 1, 2), backend=backend)
        assert found == [expected, {}, {}, expected]


@functools.lru_cache
def jitted(shape):
    """All degrees and the Euler surface in one program for complexes of one size."""

    def everything(filtration, grid):
        degrees = range(filtration.complex.dimension + 1)
        betti = jnp.stack([hilbert_generic(filtration, grid, degree=d) for d in degrees])
        return betti, hilbert_h0(filtration, grid), integrate(euler_measure(filtration, grid).weights)

    return jax.jit(jax.vmap(everything))


@pytest.mark.parametrize("parameters", [2, 3])
def test_every_degree_equals_plain_elimination_on_random_complexes(parameters):
    """100 complexes each, up to dimension 3, at every point of the exact grid, also where levels are missing."""
    filtrations = [random_filtration(seed, parameters) for seed in range(100)]
    complex = stack_complexes([f.complex for f in filtrations], sizes=(6, 15, 20, 15))
    grades = []
    for k, size in enumerate(complex.sizes):
        own = [f.grades[k] if k < len(f.grades) else np.zeros((0, parameters)) for f in filtrations]
        grades.append(
            jnp.stack([jnp.pad(g, ((0, size - len(g)), (0, 0)), constant_values=jnp.inf) for g in own])
        )
    lines = jnp.arange(4) / 2
    grid = Grid((lines,) * parameters)
    everything = jitted(parameters)
    stacked = Grid(tuple(jnp.broadcast_to(c, (100, 4)) for c in grid.coords))
    betti, components, euler = everything(Filtration(complex, tuple(grades)), stacked)
    for i, filtration in enumerate(filtrations):
        expected, surface = hilbert_functions(filtration, grid)
        assert np.array_equal(betti[i][: len(expected)], expected) and not betti[i][len(expected) :].any()
        assert np.array_equal(components[i], expected[0]) and np.array_equal(euler[i], surface)


def test_planar_formula_equals_elimination_on_images_and_graphs():
    rng = np.random.default_rng(0)
    image = lower_star(cubical_complex((5, 6)), jnp.asarray(rng.integers(0, 5, (30, 2)), jnp.float32))
    i, j = np.triu_indices(9, 1)
    keep = rng.random(36) < 0.4
    graph = lower_star(
        simplicial_complex(9, np.stack([i, j], 1)[keep]), jnp.asarray(rng.integers(0, 4, (9, 2)), jnp.float32)
    )
    for filtration in (image, graph):
        grid = exact_grid(filtration)
        expected, _ = hilbert_functions(filtration, grid)
        found = hilbert_planar(filtration, grid)
        assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


@pytest.mark.parametrize(("lines", "parameters"), [((3, 5), 2), ((5, 3), 2), ((2, 3, 4), 3), ((7,), 1)])
def test_coarse_grid_has_the_values_at_its_points(lines, parameters):
    """Rounding grades up to a grid is restricting the function to its points, whichever parameter runs."""
    filtration = random_filtration(5, parameters, vertices=7, dimension=2, levels=9)
    grid = make_grid(filtration.values, strategy="quantile", resolution=lines)
    expected, surface = hilbert_functions(filtration, grid)
    for degree in (0, 1, 2):
        assert np.array_equal(hilbert_generic(filtration, grid, degree=degree), expected[degree])
    assert np.array_equal(hilbert_h0(filtration, grid), expected[0])
    assert np.array_equal(integrate(euler_measure(filtration, grid).weights), surface)


def test_repeated_lines_and_permuted_cells_change_nothing():
    filtration = random_filtration(3, 2)
    repeated = make_grid(filtration.values)
    for degree in (0, 1):
        short = atoms(signed_measure(filtration, distinct_lines(repeated), degree=degree))
        assert atoms(signed_measure(filtration, repeated, degree=degree)) == short
    rng = np.random.default_rng(0)
    order = [rng.permutation(size) for size in filtration.complex.sizes]
    faces = [np.asarray(filtration.complex.faces[0])]
    for k in range(1, len(order)):
        faces.append(np.argsort(order[k - 1])[np.asarray(filtration.complex.faces[k])[order[k]]])
    moved = Filtration(
        cell_complex(faces), tuple(g[o] for g, o in zip(filtration.grades, order, strict=True))
    )
    assert measures(moved, (0, 1, 2), "generic") == measures(filtration, (0, 1, 2), "generic")


def test_closed_surfaces_are_found_and_refused():
    """The formula H1 = H0 - chi is false on a sphere and true as soon as one triangle is missing."""
    faces = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])
    i, j = np.triu_indices(4, 1)
    sphere = simplicial_complex(4, np.stack([i, j], 1), faces)
    disc = simplicial_complex(4, np.stack([i, j], 1), faces[:3])
    assert not sphere.no_two_cycles and disc.no_two_cycles
    assert cubical_complex((4, 5)).no_two_cycles and not cubical_complex((3, 3, 3)).no_two_cycles
    values = jnp.zeros((4, 2))
    with pytest.raises(InputError, match="has closed surfaces, so H1 = H0 - chi is false"):
        hilbert_planar(lower_star(sphere, values), Grid((jnp.zeros(1), jnp.zeros(1))))
    assert measures(lower_star(sphere, values), (0, 1, 2)) == [{(0, 0): 1}, {}, {(0, 0): 1}, {(0, 0): 2}]


def test_measures_are_constant_for_autodiff_and_their_lines_are_not():
    """mu of a lower-star edge is delta(0,1) + delta(x,0) - delta(x,1): the gradient of phi sits on those lines."""
    complex = simplicial_complex(2, [[0, 1]])

    def loss(values):
        filtration = lower_star(complex, values)
        grid = make_grid(values)
        measure = signed_measure(filtration, grid, degree=0)
        a, b = grid.coords
        return jnp.sum(measure.weights * a[:, None] ** 2 * (1 + b**3))

    # L = 0 + x^2 (1 + z^3) - x^2 (1 + y^3) with u = (0, y), v = (x, z), y > z.
    x, y, z = 0.5, 0.75, 0.25
    found = jax.grad(loss)(jnp.array([[0.0, y], [x, z]]))
    expected = [[0, -3 * x**2 * y**2], [2 * x * (z**3 - y**3), 3 * x**2 * z**2]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: (g[0], g[1].at[1, 0].set(-1.0)),
            "cell 1 of dimension 1 has grade .* raise_to_faces repairs it",
        ),
        (lambda g: (g[0].at[2, 1].set(jnp.nan), g[1]), r"grades\[0\]\[2, 1\] is nan"),
        (lambda g: (g[0], g[1][:, :1]), r"grades\[1\] has shape \(3, 1\), but must have shape \(3, 2\)"),
    ],
)
def test_bad_filtrations_are_named(change, message):
    filtration = lower_star(simplicial_complex(3, [[0, 1], [1, 2], [0, 2]]), jnp.ones((3, 2)))
    grid = exact_grid(filtration)
    wrong = Filtration(filtration.complex, change(filtration.grades))
    for function in (euler_measure, hilbert_h0):
        with pytest.raises(InputError, match=message):
            function(wrong, grid)


def test_bad_degrees_backends_and_complexes_are_named():
    filtration = lower_star(simplicial_complex(3, [[0, 1], [1, 2], [0, 2]]), jnp.ones((3, 2)))
    grid = exact_grid(filtration)
    with pytest.raises(InputError, match="degree is 2, but must be 0 to 1"):
        signed_measure(filtration, grid, degree=2)
    with pytest.raises(InputError, match="forests give degree 0 alone"):
        signed_measure(filtration, grid, degree=1, backend="forest")
    with pytest.raises(InputError, match=r"face \(0, 2\) is not"):
        simplicial_complex(3, [[0, 1], [1, 2]], [[0, 1, 2]])
    with pytest.raises(InputError, match="occurs twice"):
        simplicial_complex(3, [[0, 1], [1, 0]])
    with pytest.raises(InputError, match="vertex 3, but vertices are 0 to 2"):
        simplicial_complex(3, [[0, 3]])
    with pytest.raises(InputError, match="at least one"):
        simplicial_complex(0)
    with pytest.raises(InputError, match="boundary of cell 0 of dimension 2 is not closed"):
        cell_complex([np.zeros((3, 0)), [[0, 1], [1, 2]], [[0, 1]]])
