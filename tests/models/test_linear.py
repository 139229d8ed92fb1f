from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlab.errors import InputError
from jaxlab.models.linear import dense, linear, matrix_rows, register_linear


class LowRank(NamedTuple):
    """W = left @ right."""

    left: jax.Array
    right: jax.Array


class NamedLowRank(LowRank):
    """A subclass without a rule of its own."""


register_linear(
    LowRank,
    apply=lambda x, leaf: (x @ leaf.right.T) @ leaf.left.T,
    dense=lambda leaf: leaf.left @ leaf.right,
)


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_array_leaf_is_a_matrix_product_with_the_transpose(as_array):
    x, w = normal(2, 3, 5), normal(7, 5)
    np.testing.assert_allclose(linear(jnp.asarray(x), as_array(w)), x @ w.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dense(as_array(w)), w)


@pytest.mark.parametrize("cls", [LowRank, NamedLowRank])
def test_registered_leaf_acts_like_the_matrix_it_stands_for(cls):
    x, leaf = normal(2, 3, 5), cls(normal(7, 2), normal(2, 5))
    np.testing.assert_allclose(linear(x, leaf), x @ (leaf.left @ leaf.right).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dense(leaf), leaf.left @ leaf.right, rtol=1e-6)


@pytest.mark.parametrize("leaf", [normal(5, 3), LowRank(normal(5, 2), normal(2, 3))])
def test_rows_are_those_of_the_matrix_and_indices_stay_inside(leaf):
    found = matrix_rows(leaf, jnp.asarray([[4, 0], [9, 1]]))
    np.testing.assert_allclose(found, np.asarray(dense(leaf))[[[4, 0], [4, 1]]], rtol=1e-6)


def test_stacked_registered_leaves_can_be_scanned():
    leaf, x = LowRank(normal(3, 5, 2), normal(3, 2, 5)), normal(4, 5)
    out, _ = lax.scan(lambda x, layer: (linear(x, layer), None), jnp.asarray(x), leaf)
    for left, right in zip(leaf.left, leaf.right, strict=True):
        x = x @ (left @ right).T
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-5)


def test_mixed_dtypes_give_the_wider_one():
    assert linear(jnp.ones((2, 4), jnp.bfloat16), jnp.ones((3, 4))).dtype == jnp.float32


def test_unknown_leaf_and_wrong_width_are_named():
    with pytest.raises(InputError, match="type dict"):
        linear(jnp.ones((2, 4)), {})
    with pytest.raises(InputError, match=r"shape \(3, 5\) cannot act on inputs of width 4"):
        linear(jnp.ones((2, 4)), jnp.ones((3, 5)))
