"""Signed measures against direct sums in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from homology_oracle import atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.persistence import (
    DenseMeasure,
    Grid,
    balance_mass,
    corner_of,
    densify,
    integrate,
    mobius,
    rescale,
    sparsify,
    total_mass,
)

# Few shapes, since each is compiled anew.
shapes = st.sampled_from([(5,), (4, 3), (3, 1, 2)])


def random_measure(shape, seed):
    rng = np.random.default_rng(seed)
    coords = tuple(jnp.asarray(np.cumsum(rng.integers(1, 4, size)), jnp.float32) for size in shape)
    return DenseMeasure(
        jnp.asarray(rng.integers(-3, 4, shape) * rng.integers(0, 2, shape), jnp.int32), Grid(coords)
    )


@settings(max_examples=20)
@given(shapes, st.integers(0, 1000))
def test_sums_below_every_point_give_the_values_back(shape, seed):
    values = np.random.default_rng(seed).integers(-9, 9, shape).astype(np.int32)
    weights = np.asarray(mobius(jnp.asarray(values)))
    for point in itertools.product(*map(range, shape)):
        assert weights[tuple(slice(i + 1) for i in point)].sum() == values[point]
    assert np.array_equal(integrate(jnp.asarray(weights)), values)


@settings(max_examples=20)
@given(shapes, st.integers(0, 1000))
def test_dense_and_sparse_forms_hold_the_same_atoms(shape, seed):
    measure = random_measure(shape, seed)
    sparse, overflow = sparsify(measure, max_atoms=measure.weights.size + 3)
    assert not overflow and atoms(sparse) == atoms(measure)
    assert np.array_equal(densify(sparse, measure.grid).weights, measure.weights)
    assert total_mass(sparse) == measure.weights.sum()


def test_overflow_of_atoms_is_an_error_and_a_flag_under_jit():
    measure = random_measure((5, 5), 0)
    count = int(jnp.count_nonzero(measure.weights))
    with pytest.raises(
        InputError, match=f"more than max_atoms atoms: {count} > {count - 1}, raise max_atoms"
    ):
        sparsify(measure, max_atoms=count - 1)
    assert jax.jit(lambda m: sparsify(m, max_atoms=count - 1)[1])(measure)
    assert not jax.jit(lambda m: sparsify(m, max_atoms=count)[1])(measure)


def test_atoms_off_the_grid_are_rounded_up():
    measure = random_measure((4,), 3)
    sparse, _ = sparsify(DenseMeasure(jnp.array([1, 2]), Grid((jnp.array([0.5, 9.0]),))), max_atoms=2)
    lines = jnp.array([0.0, 1.0, 2.0])
    assert densify(sparse, Grid((lines,))).weights.tolist() == [0, 1, 0]
    assert measure.weights.shape == (4,)


@settings(max_examples=20)
@given(shapes, st.integers(0, 1000))
def test_balanced_measure_is_the_module_before_the_corner(shape, seed):
    """Its sums are the old ones before the corner and zero from there on; dense and sparse forms agree."""
    measure = random_measure(shape, seed)
    corner = np.array([float(lines[-1]) - 1 for lines in measure.grid.coords], np.float32)
    balanced = balance_mass(measure, jnp.asarray(corner))
    old, new = atoms(measure), atoms(balanced)
    for point in itertools.product(range(-1, 18, 3), repeat=len(shape)):
        value = sum(w for at, w in new.items() if all(a <= x for a, x in zip(at, point, strict=True)))
        before = all(x < c for x, c in zip(point, corner, strict=True))
        expected = sum(w for at, w in old.items() if all(a <= x for a, x in zip(at, point, strict=True)))
        assert value == (expected if before else 0)
    assert total_mass(balanced) == 0
    sparse, _ = sparsify(measure, max_atoms=measure.weights.size)
    assert atoms(balance_mass(sparse, jnp.asarray(corner))) == new


def test_first_closed_case_balanced_at_two_two():
    grid = Grid((jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0])))
    measure = DenseMeasure(jnp.array([[0, 1], [1, -1]]), grid)
    expected = {(0, 1): 1, (1, 0): 1, (1, 1): -1, (0, 2): -1, (2, 0): -1, (2, 2): 1}
    assert atoms(balance_mass(measure, jnp.array([2.0, 2.0]))) == expected
    np.testing.assert_allclose(corner_of(grid), [1.1, 1.1])


def test_points_of_atoms_are_differentiable_in_the_lines():
    measure = DenseMeasure(jnp.array([[0, 1], [1, -1]]), Grid((jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0]))))

    def loss(coords):
        sparse, _ = sparsify(measure._replace(grid=Grid(coords)), max_atoms=5)
        return jnp.sum(sparse.weights[:, None] * sparse.points**2 * jnp.array([1.0, 10.0]))

    # d/dx of sum w x^2: 2 x times the weight on the line.
    first, second = jax.grad(loss)(measure.grid.coords)
    assert first.tolist() == [0, 0] and second.tolist() == [0, 0]
    shifted = (jnp.array([2.0, 3.0]), jnp.array([4.0, 7.0]))
    first, second = jax.grad(loss)(shifted)
    assert first.tolist() == [4, 0] and second.tolist() == [80, 0]


def test_a_corner_of_the_wrong_size_is_named():
    with pytest.raises(InputError, match=r"corner has shape \(3,\), but must have shape \(2\)"):
        balance_mass(random_measure((2, 2), 0), jnp.zeros(3))


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 1, 2)])
def test_rescaling_maps_the_atoms_and_keeps_their_weights(shape):
    """Dense and sparse; a parameter without extent is moved alone."""
    measure = random_measure(shape, 1)
    lo = np.array([float(lines[0]) for lines in measure.grid.coords], np.float32)
    hi = np.array([float(lines[-1]) for lines in measure.grid.coords], np.float32)
    width = np.where(hi > lo, hi - lo, 1)
    expected = {
        tuple(np.float32((point - lo) / width).tolist()): weight for point, weight in atoms(measure).items()
    }
    sparse, _ = sparsify(measure, max_atoms=measure.weights.size)
    assert len(expected) > 1
    for form in (measure, sparse):
        found = rescale(form, jnp.asarray(lo), jnp.asarray(hi))
        assert type(found) is type(form) and atoms(found) == expected


def test_rescaling_is_differentiable_and_names_what_is_wrong():
    measure = random_measure((4, 3), 2)
    lo, hi = jnp.array([0.0, 1.0]), jnp.array([2.0, 5.0])
    slope = jax.grad(lambda hi: rescale(measure, lo, hi).grid.coords[0].sum())(hi)
    np.testing.assert_allclose(slope, [-float(measure.grid.coords[0].sum()) / 4, 0], rtol=1e-6)
    with pytest.raises(InputError, match="must not be below lo"):
        rescale(measure, hi, lo)
    with pytest.raises(InputError, match=r"lo has shape \(1,\)"):
        rescale(measure, lo[:1], hi)
    with pytest.raises(InputError, match=r"hi\[1\] is inf"):
        rescale(measure, lo, jnp.array([2.0, jnp.inf]))
