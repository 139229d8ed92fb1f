"""Products in bfloat16 against float32 ones, their gradients, and that bad shapes are still refused."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models.fast_products import FastMatrix, fast_transposed_product, with_fast_products
from jaxlab.models.linear import LINEARS, dense, linear


def matrices(rows=48, columns=32):
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (5, 7, columns)), jax.random.normal(keys[1], (rows, columns))


def relative(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def test_products_and_gradients_are_those_of_float32_up_to_rounding():
    x, w = matrices()
    fast = FastMatrix.of(w)
    apply = jax.jit(lambda x, leaf: linear(x, leaf))
    assert 1e-5 < relative(apply(x, fast), linear(x, w)) < 0.005
    for one in (linear(x, fast), jax.vmap(linear, (0, None))(x, fast)):
        np.testing.assert_allclose(one, apply(x, fast), rtol=1e-6, atol=1e-5)
    gradient = jax.grad(lambda x, leaf: jnp.sum(jnp.sin(linear(x, leaf))))
    assert relative(gradient(x, fast), gradient(x, w)) < 0.02


def test_gradients_through_a_loop_over_layers_keep_no_copy_of_the_matrices():
    stack = FastMatrix.of(jnp.stack([matrices(32, 32)[1]] * 3))

    def loss(x):
        return jnp.sum(jax.lax.scan(lambda x, leaf: (linear(x, leaf), None), x, stack)[0])

    program = jax.make_jaxpr(jax.grad(loss))(jnp.ones((5, 32)))
    loops = [step for step in program.eqns if step.primitive.name == "scan"]
    assert len(loops) == 2
    for loop in loops:
        assert all(out.aval.shape != (3, 32, 32) for out in loop.outvars)


def test_factors_that_bfloat16_holds_exactly_give_exact_products():
    x = jnp.arange(-8.0, 8.0).reshape(2, 8)
    w = jnp.arange(24.0).reshape(3, 8)
    np.testing.assert_array_equal(linear(x, FastMatrix.of(w)), x @ w.T)
    np.testing.assert_array_equal(fast_transposed_product(x, w), x @ w.T)


def test_a_layer_keeps_its_other_parameters_and_the_matrices_their_values():
    _, w = matrices()
    layer = dict.fromkeys(LINEARS, w[None]) | {"attn_norm": jnp.ones(32)}
    fast = with_fast_products(layer)
    assert fast["attn_norm"].dtype == jnp.float32
    for name in LINEARS:
        assert isinstance(fast[name], FastMatrix)
        np.testing.assert_allclose(dense(fast[name]), w[None], rtol=2**-8)
