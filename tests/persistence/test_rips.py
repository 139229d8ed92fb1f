"""Rips filtrations from the distance matrix against the explicit complex, plain elimination, and known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clouds import cloud, noisy_circle, phi_loss
from homology_oracle import hilbert_functions

from jaxlab.errors import InputError
from jaxlab.persistence import (
    DenseMeasure,
    codensity,
    degree_rips_grid,
    euler_measure,
    euler_rips_measure,
    function_rips,
    hilbert_h0_degree_rips,
    hilbert_h0_dense,
    integrate,
    mobius,
    pairwise_distance,
    rips_grid,
)


@pytest.mark.parametrize(("q", "resolution"), [(0, None), (1, None), (1, (4, 6)), (2, (5, 3, 4))])
def test_components_and_euler_surface_equal_elimination(q, resolution):
    """With ties: coordinates of one decimal."""
    distances, values = cloud(8, q, decimals=1)
    strategy = "quantile" if resolution else "exact"
    grid = rips_grid(distances, values, strategy=strategy, resolution=resolution)
    betti, euler = hilbert_functions(function_rips(distances, values), grid)
    assert np.array_equal(hilbert_h0_dense(distances, values, grid), betti[0])
    measure = euler_rips_measure(distances, values, grid)
    assert np.array_equal(integrate(measure.weights), euler)


@pytest.mark.parametrize(("max_dim", "lines"), [(0, 9), (1, 9), (2, 9), (2, 140)])
def test_all_ways_to_count_simplices_agree_with_the_explicit_complex(max_dim, lines):
    """More points than a word has bits; for more than 128 lines triangles are enumerated, in blocks without a seam."""
    distances, values = cloud(67 if lines > 128 else 37)
    grid = rips_grid(distances, values, strategy="regular_closest", resolution=(lines, 7))
    explicit = euler_measure(function_rips(distances, values, max_dim=max_dim), grid)
    found = euler_rips_measure(distances, values, grid, max_dim=max_dim)
    assert np.array_equal(found.weights, explicit.weights)


def test_twelve_point_h0_has_the_known_loss_and_gradient(double_precision):
    """Peer's values: loss, number of atoms, norm of the gradient through points, distances and codensity."""

    def loss(points):
        distances = pairwise_distance(points)
        values = codensity(distances, bandwidth=0.3)[:, None]
        grid = rips_grid(distances, values)
        measure = DenseMeasure(mobius(hilbert_h0_dense(distances, values, grid)), grid)
        return phi_loss(measure), jnp.count_nonzero(measure.weights)

    (value, atoms), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(noisy_circle()))
    assert value == pytest.approx(-0.39740859861455635, abs=1e-14) and atoms == 33
    assert jnp.linalg.norm(gradient) == pytest.approx(1.3802958019148281, rel=1e-12)
    assert gradient[3, 1] == pytest.approx(-0.3327782706, abs=1e-9)


@pytest.mark.parametrize("resolution", [None, 6])
def test_degree_rips_components_equal_a_flood_fill(resolution):
    """Points with at least k others within r, joined within r, at every grid point."""
    distances, _ = cloud(14, decimals=1)
    degrees = (9, 5, 2, 1, 0)
    strategy = "quantile" if resolution else "exact"
    grid = degree_rips_grid(distances, degrees, strategy=strategy, resolution=resolution)
    found = np.asarray(hilbert_h0_degree_rips(distances, degrees, grid))
    d = np.asarray(distances)
    for j, k in enumerate(degrees):
        for i, r in enumerate(np.asarray(grid.coords[0])):
            near = d <= r
            active = near.sum(1) - 1 >= k
            reach = np.linalg.matrix_power((near & np.outer(active, active)).astype(float), 14) > 0
            assert found[i, j] == len({tuple(row) for row in reach[active]})


def test_equal_points_count_once_from_distance_zero_and_pull_nothing():
    points = jnp.array([[0.0, 0], [0, 0], [1, 0]])
    values = jnp.zeros((3, 1))

    def components(points):
        distances = pairwise_distance(points)
        grid = rips_grid(distances, values)
        return DenseMeasure(mobius(hilbert_h0_dense(distances, values, grid)), grid)

    measure = components(points)
    assert jnp.cumsum(measure.weights[:, 0]).tolist() == [2, 2, 1, 1]
    gradient = jax.grad(lambda p: phi_loss(components(p)))(points)
    assert jnp.isfinite(gradient).all()


def test_programs_agree_under_jit_and_vmap():
    clouds = [cloud(9, seed=s) for s in range(3)]
    distances, values = (jnp.stack(a) for a in zip(*clouds, strict=True))

    def both(d, v):
        grid = rips_grid(d, v, strategy="quantile", resolution=5)
        return hilbert_h0_dense(d, v, grid), euler_rips_measure(d, v, grid).weights

    together = jax.jit(jax.vmap(both))(distances, values)
    for i, (d, v) in enumerate(clouds):
        alone = both(d, v)
        assert np.array_equal(together[0][i], alone[0]) and np.array_equal(together[1][i], alone[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, v: (d[:0, :0], v[:0]), "a cloud must have at least one point"),
        (lambda d, v: (d.at[1, 2].set(jnp.nan), v), r"distances\[1, 2\] is nan"),
        (lambda d, v: (d.at[1, 2].set(9.0), v), r"not symmetric: \[1, 2\] is 9.0"),
        (lambda d, v: (d.at[1, 1].set(1.0), v), r"distances\[1, 1\] is 1.0; the diagonal must be zero"),
        (lambda d, v: (-d, v), "must not be negative"),
        (lambda d, v: (d[:3], v), "must be a square matrix"),
        (lambda d, v: (d, v[:3]), r"values has shape \(3, 1\), but must have shape \(5, any\)"),
        (lambda d, v: (d, v.at[2].set(jnp.nan)), r"values\[2, 0\] is nan"),
        (lambda d, v: (d, v[:, :0]), "grid has 2 parameters, but the filtration has 1"),
    ],
)
def test_bad_clouds_are_named(change, message):
    distances, values = cloud(5)
    grid = rips_grid(distances, values)
    for function in (hilbert_h0_dense, euler_rips_measure):
        with pytest.raises(InputError, match=message):
            function(*change(distances, values), grid)


def test_degrees_and_sizes_out_of_range_are_named():
    distances, values = cloud(5)
    grid = degree_rips_grid(distances, (2, 1))
    for degrees in ((1, 2), (5,), (1, -1), ()):
        with pytest.raises(InputError, match="must decrease, within 0 to 4"):
            hilbert_h0_degree_rips(distances, degrees, grid)
    with pytest.raises(InputError, match="must be the negated degrees"):
        hilbert_h0_degree_rips(distances, (3, 1), grid)
    with pytest.raises(InputError, match="max_dim is 3"):
        euler_rips_measure(distances, values, rips_grid(distances, values), max_dim=3)


def test_one_point_and_a_spot_of_equal_points():
    for n in (1, 2, 5):
        distances, values = jnp.zeros((n, n)), jnp.zeros((n, 1))
        grid = rips_grid(distances, values)
        assert (hilbert_h0_dense(distances, values, grid) == 1).all()
        simplices = n + n * (n - 1) * (n - 2) // 6 - n * (n - 1) // 2
        assert (integrate(euler_rips_measure(distances, values, grid).weights) == simplices).all()
