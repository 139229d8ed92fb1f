"""Damped inverses against NumPy on the alive entries, and what happens to bad factors."""

import dense_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.pruning.inverse import (
    Inverses,
    alive_structures,
    damped,
    damped_inverse,
    inverse_factors,
    robust_inverse_factors,
)


def drawn(n, seed):
    rng = np.random.default_rng(seed)
    return dense_oracle.spd(n, rng), rng.random(n) < 0.7


@given(n=st.sampled_from([1, 2, 9]), seed=st.integers(0, 999), damping=st.sampled_from([0.0, 0.01, 1.0]))
def test_is_the_inverse_of_the_alive_block_and_zero_elsewhere(n, seed, damping):
    factor, alive = drawn(n, seed)
    expected = np.zeros((n, n))
    if alive.any():
        inside = np.ix_(alive, alive)
        expected[inside] = np.linalg.inv(dense_oracle.damped(factor[inside], damping))
    with jax.enable_x64(True):
        inverse = jax.jit(damped_inverse)(jnp.asarray(factor), jnp.asarray(alive), damping)
        assert inverse.dtype == jnp.float64
        again = jax.jit(damped)(jnp.asarray(factor), jnp.asarray(alive), damping)
    np.testing.assert_allclose(inverse, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_array_equal(inverse, inverse.T)
    np.testing.assert_array_equal(again[~alive][:, ~alive], np.eye((~alive).sum()))
    assert not again[alive][:, ~alive].any()


def test_a_zero_factor_gives_zeros_in_its_layer_alone():
    factors = jnp.stack([jnp.zeros((3, 3)), jnp.eye(3)])
    alive = jnp.ones((2, 3), bool)
    inverses = inverse_factors(factors, None, alive, alive, damp_a=0.0, damp_g=0.0)
    assert inverses.G is None
    np.testing.assert_array_equal(inverses.A, factors)


def test_stacked_jitted_and_single_inverses_agree():
    with jax.enable_x64(True):
        A = jnp.stack([jnp.asarray(drawn(5, seed)[0]) for seed in range(3)])
        G = jnp.stack([jnp.asarray(drawn(4, seed)[0]) for seed in range(3)])
        columns = jnp.array([[True] * 5, [True, False, True, True, True], [False] * 5])
        rows = jnp.ones((3, 4), bool)
        damp_a = jnp.array([0.1, 0.2, 0.3])
        stacked = inverse_factors(A, G, columns, rows, damp_a=damp_a, damp_g=0.1)
        jitted = jax.jit(inverse_factors)(A, G, columns, rows, damp_a=damp_a, damp_g=0.1)
        single = Inverses(
            jax.vmap(damped_inverse)(A, columns, damp_a), jax.vmap(damped_inverse)(G, rows, jnp.full(3, 0.1))
        )
    for other in (jitted, single):
        np.testing.assert_allclose(stacked.A, other.A, rtol=1e-12)
        np.testing.assert_allclose(stacked.G, other.G, rtol=1e-12)


def test_dead_are_rows_and_columns_without_weights_or_without_energy():
    W = jnp.array([[1.0, 0, 2], [0, 0, 0], [1, 0, 1]])
    rows, columns = alive_structures(W, jnp.diag(jnp.array([1.0, 1, 0])), jnp.diag(jnp.array([1.0, 1, 1])))
    assert rows.tolist() == [True, False, True]
    assert columns.tolist() == [True, False, False]


def test_robust_inverse_equals_the_plain_one_where_all_is_well():
    A, G = jnp.eye(3)[None] * 2, jnp.eye(2)[None]
    masks = jnp.ones((1, 3), bool), jnp.ones((1, 2), bool)
    inverses, used = robust_inverse_factors(A, G, *masks, damp_a=0.01, damp_g=0.1, name="q")
    plain = inverse_factors(A, G, *masks, damp_a=0.01, damp_g=0.1)
    np.testing.assert_allclose(inverses.A, plain.A)
    np.testing.assert_allclose(inverses.G, plain.G)
    assert used.A.tolist() == [0.01] and used.G.tolist() == [0.1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_factor_that_is_not_finite_is_named(bad):
    G = np.stack([np.eye(2), np.eye(2)])
    G[1, 0, 1] = bad
    masks = jnp.ones((2, 3), bool), jnp.ones((2, 2), bool)
    with pytest.raises(InputError, match="factor G of down, layer 1"):
        robust_inverse_factors(None, jnp.asarray(G), *masks, damp_a=0.1, damp_g=0.1, name="down")


def test_damping_is_raised_where_cholesky_fails_and_said():
    indefinite = jnp.array(
        [[1.0, 1.05], [1.05, 1.0]]
    )  # eigenvalues 2.05 and -0.05: needs a damping above 0.05
    G = jnp.stack([jnp.eye(2), indefinite])
    masks = jnp.ones((2, 3), bool), jnp.ones((2, 2), bool)
    with pytest.warns(UserWarning, match="G of k is not positive definite at damp_g=0.0+1 in layers 1"):
        inverses, used = robust_inverse_factors(None, G, *masks, damp_a=0.1, damp_g=0.001, name="k")
    np.testing.assert_allclose(used.G, [0.001, 0.1])
    np.testing.assert_allclose(inverses.G[1], np.linalg.inv(indefinite + 0.1 * np.eye(2)), rtol=1e-5)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="G of k .* layers 1 even at damp_g=0.01"):
        robust_inverse_factors(None, G, *masks, damp_a=0.1, damp_g=1e-5, name="k")
    with pytest.raises(InputError, match="layers 1 even at damp_g=0"):
        robust_inverse_factors(None, G, *masks, damp_a=0.1, damp_g=0, name="k")


def test_arguments_that_do_not_fit_are_refused():
    alive = jnp.ones((1, 3), bool)
    with pytest.raises(InputError, match="damp_a is -1"):
        robust_inverse_factors(jnp.eye(3)[None], None, alive, alive, damp_a=-1, damp_g=0, name="q")
    with pytest.raises(InputError, match="A has shape"):
        inverse_factors(jnp.eye(3), None, alive, alive, damp_a=0, damp_g=0)
    with pytest.raises(InputError, match="mask of A has shape"):
        inverse_factors(jnp.eye(4)[None], None, alive, alive, damp_a=0, damp_g=0)


def test_gradient_of_an_inverse_is_finite_with_dead_entries():
    factor, alive = jnp.diag(jnp.array([2.0, 0, 1])), jnp.array([True, False, True])
    gradient = jax.grad(lambda f: damped_inverse(f, alive, 0.0).sum())(factor)
    np.testing.assert_allclose(gradient[0, 0], -0.25, rtol=1e-6)
    assert jnp.isfinite(gradient).all()
