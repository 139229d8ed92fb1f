"""H_1 of function-Rips filtrations: elimination, gudhi, and the known value of twelve points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clouds import cloud, noisy_circle, phi_loss
from homology_oracle import hilbert_functions

from jaxlab.errors import InputError
from jaxlab.persistence import (
    DenseMeasure,
    Grid,
    codensity,
    degree_rips_grid,
    function_rips,
    hilbert_generic,
    hilbert_h1_degree_rips,
    hilbert_rips_callback,
    hilbert_rips_h1,
    mobius,
    pairwise_distance,
    rips_grid,
)


def test_twelve_point_h1_has_the_known_loss_and_gradient(double_precision):
    def loss(points):
        distances = pairwise_distance(points)
        values = codensity(distances, bandwidth=0.3)[:, None]
        grid = rips_grid(distances, values)
        measure = DenseMeasure(mobius(hilbert_rips_h1(distances, values, grid)[0]), grid)
        return phi_loss(measure), jnp.count_nonzero(measure.weights)

    (value, atoms), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(noisy_circle()))
    assert value == pytest.approx(0.024970921588684872, abs=1e-15) and atoms == 2
    assert jnp.linalg.norm(gradient) == pytest.approx(0.12695936319651924, rel=1e-12)


@pytest.mark.parametrize("q", [0, 1, 2])
def test_cycles_equal_elimination(q):
    distances, values = cloud(9, q, decimals=1, seed=4)
    grid = rips_grid(distances, values, strategy="quantile", resolution=(9, 4, 3)[: q + 1])
    betti, _ = hilbert_functions(function_rips(distances, values), grid)
    found, overflow = hilbert_rips_h1(distances, values, grid)
    assert np.array_equal(found, betti[1]) and betti[1].any() and not overflow


def test_reduction_of_the_whole_complex_gives_the_same():
    distances = pairwise_distance(jnp.asarray(noisy_circle(16), jnp.float32))
    values = codensity(distances, bandwidth=0.3)[:, None]
    grid = rips_grid(distances, values, strategy="regular_closest", resolution=(20, 8))
    found, _ = hilbert_rips_h1(distances, values, grid)
    expected = hilbert_generic(function_rips(distances, values), grid, degree=1)
    assert np.array_equal(found, expected) and found.max() == 1


@pytest.mark.parametrize("n", [20, 50])
def test_gudhi_gives_the_same_integers_in_every_slice(n):
    pytest.importorskip("gudhi")
    distances = pairwise_distance(jnp.asarray(noisy_circle(n), jnp.float32))
    values = codensity(distances, bandwidth=0.3)[:, None]
    grid = rips_grid(distances, values, strategy="regular_closest", resolution=(40, 12))
    found, _ = hilbert_rips_h1(distances, values, grid)
    assert np.array_equal(found, hilbert_rips_callback(distances, values, grid, degree=1)) and found.any()


def test_degree_rips_cycles_are_gudhis_in_every_slice():
    """Whole flag complexes, a slice a degree, by the distances themselves; also by the kernel and on the host."""
    gudhi = pytest.importorskip("gudhi")
    rng = np.random.default_rng(1)
    circle = noisy_circle(20)
    stray = rng.uniform(-1, 1, (4, 2))  # born late, and inside
    distances = pairwise_distance(jnp.asarray(np.concatenate([circle, stray]), jnp.float32))
    degrees = (6, 3, 2, 0)
    grid = degree_rips_grid(distances, degrees, strategy="regular_closest", resolution=25)
    lines, d = np.asarray(grid.coords[0]), np.asarray(distances)
    expected = np.zeros((len(lines), len(degrees)), int)
    for slice_, k in enumerate(degrees):
        born = np.sort(d, axis=1)[:, k]
        tree = gudhi.SimplexTree.create_from_array(np.maximum(d, np.maximum.outer(born, born)))
        tree.expansion(2)
        tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
        for birth, death in tree.persistence_intervals_in_dimension(1):
            expected[:, slice_] += (birth <= lines) & (lines < death)
    assert expected.any(axis=0).sum() >= 3 and len({tuple(column) for column in expected.T}) >= 3
    for backend in ("auto", "pallas", "gudhi"):
        found, overflow = hilbert_h1_degree_rips(distances, degrees, grid, max_cols=16, backend=backend)
        assert np.array_equal(found, expected) and not overflow


def test_batches_agree_with_single_clouds():
    clouds = [cloud(10, seed=s) for s in range(3)]
    distances, values = (jnp.stack(a) for a in zip(*clouds, strict=True))

    def h1(d, v):
        return hilbert_rips_h1(d, v, rips_grid(d, v, strategy="quantile", resolution=(12, 4)))[0]

    together = jax.jit(jax.vmap(h1))(distances, values)
    assert together.any()
    for i, (d, v) in enumerate(clouds):
        assert np.array_equal(together[i], h1(d, v))


def test_too_little_room_for_columns_is_an_error_and_a_flag_under_jit():
    distances, values = cloud(20, 0, seed=1)
    grid = rips_grid(distances, values)
    with pytest.raises(InputError, match=r"more than max_cols columns: \d > 1, raise max_cols"):
        hilbert_rips_h1(distances, values, grid, max_cols=1)
    flag = jax.jit(lambda d, v, g: hilbert_rips_h1(d, v, g, max_cols=1)[1])(distances, values, grid)
    assert flag and not hilbert_rips_h1(distances, values, grid)[1]


def test_large_clouds_have_gudhis_curves_and_more_columns_than_fit_the_kernel():
    """A grid of 13 x 13 points has a cycle in every square."""
    pytest.importorskip("gudhi")
    points = np.stack(np.meshgrid(np.arange(13.0), np.arange(13.0)), -1).reshape(-1, 2)
    points += np.random.default_rng(0).normal(size=points.shape) * 0.05
    distances = pairwise_distance(jnp.asarray(points, jnp.float32))
    grid = Grid((jnp.linspace(0, 2.0, 40), jnp.asarray([0.5, 1.0])))
    values = (jnp.asarray(points[:, :1], jnp.float32) > 6).astype(jnp.float32)
    found, expected = (hilbert_rips_h1(distances, values, grid, backend=b)[0] for b in ("auto", "gudhi"))
    assert np.array_equal(found, expected) and found.max() > 64


def test_fewer_than_three_points_have_no_cycle():
    for n in (1, 2):
        grid = rips_grid(*cloud(n))
        found, overflow = hilbert_rips_h1(*cloud(n), grid)
        assert found.shape == grid.shape and not found.any() and not overflow


def test_wrong_options_are_named():
    distances, values = cloud(5)
    grid = rips_grid(distances, values)
    with pytest.raises(InputError, match="max_cols is 0"):
        hilbert_rips_h1(distances, values, grid, max_cols=0)
    with pytest.raises(InputError, match="backend is 'cuda'"):
        hilbert_rips_h1(distances, values, grid, backend="cuda")
    with pytest.raises(InputError, match="must decrease, within 0 to 4"):
        hilbert_h1_degree_rips(distances, (1, 2), grid)
