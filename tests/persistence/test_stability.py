"""Stability of signed measures in the Kantorovich-Rubinstein norm, by an optimal assignment of scipy's."""

import jax.numpy as jnp
import numpy as np
import pytest
from homology_oracle import atoms, random_filtration
from scipy.optimize import linear_sum_assignment

from jaxlab.persistence import Filtration, euler_measure, make_grid, raise_to_faces, signed_measure


def transport(mu, nu):
    """Cost of moving mu+ + nu- to nu+ + mu-, ground metric l1; measures of equal mass with integer weights."""
    start, end = [], []
    for measure, forward in ((mu, True), (nu, False)):
        for point, weight in measure.items():
            (start if (weight > 0) == forward else end).extend([point] * abs(weight))
    assert len(start) == len(end)
    if not start:
        return 0.0
    cost = np.abs(np.array(start)[:, None] - np.array(end)).sum(-1)
    rows, columns = linear_sum_assignment(cost)
    return cost[rows, columns].sum()


def perturbed(seed, parameters):
    """A filtration with distinct grades and one a little away, whose order of cells differs."""
    filtration = random_filtration(seed, parameters, vertices=6, dimension=2)
    rng = np.random.default_rng(seed)
    both = []
    for scale in (0.0, 0.3):
        noise = [rng.random(g.shape) for g in filtration.grades]
        grades = [
            jnp.asarray(np.asarray(g) + 0.01 * m + scale * rng.random(g.shape), jnp.float32)
            for g, m in zip(filtration.grades, noise, strict=True)
        ]
        both.append(raise_to_faces(filtration.complex, grades))
    return both


def moved(f: Filtration, g: Filtration, dimensions):
    return sum(float(jnp.abs(f.grades[k] - g.grades[k]).sum()) for k in dimensions)


@pytest.mark.parametrize("parameters", [1, 2, 3])
def test_euler_measure_moves_at_most_as_far_as_the_cells(parameters):
    for seed in range(4):
        f, g = perturbed(seed, parameters)
        mu, nu = (atoms(euler_measure(h, make_grid(h.values))) for h in (f, g))
        assert 0 < transport(mu, nu) <= moved(f, g, range(3)) * (1 + 1e-5)


@pytest.mark.parametrize("parameters", [1, 2])
def test_hilbert_measure_moves_at_most_p_times_as_far_as_the_cells_of_two_dimensions(parameters):
    for seed in range(4):
        f, g = perturbed(seed, parameters)
        for degree in (0, 1):
            mu, nu = (atoms(signed_measure(h, make_grid(h.values), degree=degree)) for h in (f, g))
            bound = parameters * moved(f, g, (degree, degree + 1))
            assert 0 < transport(mu, nu) <= bound * (1 + 1e-5)
