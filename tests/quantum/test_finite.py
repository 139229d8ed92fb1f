"""Finite differences and SPSA on functions whose derivatives are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.quantum.finite import difference_rule, finite_difference_gradient, spsa_gradient

pytestmark = pytest.mark.usefixtures("double_precision")


PARAMS = {"a": np.array([0.3, -0.2]), "b": np.array([[0.5], [1.0], [0.1]])}


def smooth(params):
    return jnp.stack([jnp.sum(jnp.sin(params["a"])) * jnp.prod(params["b"]), jnp.sum(params["b"] ** 3)])


@pytest.mark.parametrize(
    ("order", "strategy"), [(1, "forward"), (3, "backward"), (2, "center"), (4, "center")]
)
def test_rule_is_exact_for_polynomials_up_to_its_order(order, strategy):
    coefficients, shifts = difference_rule(order, strategy)
    for power in range(order + 1):
        assert abs(coefficients @ shifts**power - (power == 1)) < 1e-10


@pytest.mark.parametrize(("h", "order", "strategy"), [(1e-7, 1, "forward"), (1e-4, 2, "center")])
def test_finite_differences_are_the_derivatives(h, order, strategy):
    found = jax.jit(lambda p: finite_difference_gradient(smooth, p, h=h, order=order, strategy=strategy))(
        PARAMS
    )
    exact = jax.jacrev(smooth)(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, exact)


def test_spsa_averages_to_the_gradient():
    def loss(params):
        return smooth(params)[0]

    found = jax.jit(lambda key: spsa_gradient(key, loss, PARAMS, directions=4000))(jax.random.key(0))
    exact = jax.grad(loss)(PARAMS)
    size = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(exact))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4 * size / np.sqrt(4000)), found, exact)


def test_one_direction_of_spsa_is_the_slope_along_it():
    found = spsa_gradient(jax.random.key(3), lambda x: jnp.sum(x**2), jnp.asarray([1.0, 2.0, -0.5]))
    signs = np.sign(found) * np.sign(found[0])
    assert np.allclose(np.abs(found), abs(2 * (signs @ np.array([1.0, 2.0, -0.5]))), atol=1e-6)


def test_wrong_use_is_named():
    for match, options in (
        ("h is 0", {"h": 0}),
        ("order is 3", {"order": 3, "strategy": "center"}),
        ("strategy is 'left'", {"strategy": "left"}),
    ):
        with pytest.raises(InputError, match=match):
            finite_difference_gradient(smooth, PARAMS, **options)
    with pytest.raises(InputError, match="directions is 0"):
        spsa_gradient(jax.random.key(0), smooth, PARAMS, directions=0)
    with pytest.raises(InputError, match="real ones are needed"):
        finite_difference_gradient(lambda x: x, jnp.asarray([1j]))
    with pytest.warns(UserWarning, match="too small for single precision"):
        finite_difference_gradient(lambda x: jnp.sum(x), jnp.ones(2, jnp.float32), h=1e-7)
