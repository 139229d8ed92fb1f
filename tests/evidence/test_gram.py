import digits_net
import gram_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxlab.errors import InputError
from jaxlab.evidence import block_grams, gram_leaves
from jaxlab.evidence.captures import find_uses


def double(tree):
    """Real leaves in float64."""
    leaves = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda x: jnp.asarray(x.astype(np.float64) if x.dtype.kind == "f" else x), leaves)


def dense_grams(apply, params, x, factors):
    """From the Jacobian of all outputs with respect to all parameters, in NumPy."""
    jacobian = jax.tree.leaves(jax.jit(jax.jacrev(apply))(params, x))
    n, C = factors.shape[:2]
    rows = [np.einsum("ncp,ncr->nrp", np.asarray(J).reshape(n, C, -1), factors) for J in jacobian]
    return [np.einsum("nrp,msp->nrms", A, A).reshape(n * factors.shape[2], -1) for A in rows]


@pytest.mark.parametrize("name", gram_models.MODELS)
def test_structured_grams_are_those_of_the_dense_jacobian(name, double_precision):
    make, taps = gram_models.MODELS[name]
    apply, params, x = make()
    params, x = double(params), double(x)
    factors = np.random.default_rng(2).normal(size=(gram_models.EXAMPLES, 3, 2))
    assert sum(use is not None for use in find_uses(apply, params, x)) == taps
    found = jax.jit(lambda p, x, L: (gram_leaves(apply, p, x, L), gram_leaves(apply, p, x, L, parts="rows")))
    joint, rows = found(params, x, jnp.asarray(factors))
    assert jax.tree.structure(joint) == jax.tree.structure(params)
    wanted = dense_grams(apply, params, x, factors)
    for G, each, G_dense in zip(jax.tree.leaves(joint), jax.tree.leaves(rows), wanted, strict=True):
        np.testing.assert_allclose(G[0], G_dense, rtol=1e-9, atol=1e-11)
        for r in range(2):
            np.testing.assert_allclose(each[r], G_dense[r::2, r::2], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["nnx convolutions", "linen tokens", "odd readings"])
def test_products_with_the_kernel_give_the_same_grams(name, double_precision):
    apply, params, x = gram_models.MODELS[name][0]()
    params, x = double(params), double(x)
    factors = np.random.default_rng(2).normal(size=(gram_models.EXAMPLES, 3, 2))

    def run(p, x, L):
        return [gram_leaves(apply, p, x, L, parts=parts, method="ntk_vp") for parts in ("joint", "rows")]

    joint, rows = jax.jit(run)(params, x, jnp.asarray(factors))
    wanted = dense_grams(apply, params, x, factors)
    for G, each, G_dense in zip(jax.tree.leaves(joint), jax.tree.leaves(rows), wanted, strict=True):
        np.testing.assert_allclose(G[0], G_dense, rtol=1e-9, atol=1e-11)
        for r in range(2):
            np.testing.assert_allclose(each[r], G_dense[r::2, r::2], rtol=1e-9, atol=1e-11)


def test_kernel_is_that_of_neural_tangents(double_precision):
    params = double(digits_net.PARAMS)
    x = jnp.sin(64 * jnp.arange(4.0)[:, None] + jnp.arange(64.0))
    eye = jnp.broadcast_to(jnp.eye(10), (4, 10, 10))
    for method in ("structured", "leaf_jacobian", "ntk_vp"):
        run = jax.jit(lambda p, method=method: gram_leaves(digits_net.apply, p, x, eye, method=method))
        grams = run(params)
        K = np.sum([np.asarray(G[0]) for G in jax.tree.leaves(grams)], axis=0)
        assert K.sum() == pytest.approx(706.32039752, abs=1e-8)
        assert K.reshape(4, 10, 4, 10)[0, 2, 1, 3] == pytest.approx(2.18050155, abs=1e-8)
        assert K.trace() == pytest.approx(4929.67805622, abs=1e-8)


def largest(jaxpr):
    """Entries of the largest array made anywhere within."""
    sizes = [var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars if hasattr(var.aval, "size")]
    inner = [largest(sub) for eqn in jaxpr.eqns for sub in core.jaxprs_in_params(eqn.params)]
    return max(sizes + inner)


def test_jacobians_of_matrices_are_not_made():
    params, x = jax.tree.map(jnp.float32, digits_net.PARAMS), jnp.asarray(digits_net.X[:4], jnp.float32)
    factors = jnp.ones((4, 10, 2))
    made = {
        method: largest(
            jax.make_jaxpr(
                lambda p, x, method=method: gram_leaves(digits_net.apply, p, x, factors, method=method)
            )(params, x).jaxpr
        )
        for method in ("structured", "leaf_jacobian")
    }
    assert made["leaf_jacobian"] >= 4 * 2 * 12 * 64
    assert made["structured"] <= 12 * 64  # the matrix itself


def test_gradient_with_respect_to_inputs_is_that_through_the_jacobian(double_precision):
    make, _ = gram_models.MODELS["wide convolution"]
    apply, params, x = make()
    params, x = double(params), double(x)
    factors = jnp.asarray(np.random.default_rng(3).normal(size=(gram_models.EXAMPLES, 3, 2)))

    def logdet(x, method):
        grams = jax.tree.leaves(gram_leaves(apply, params, x, factors, method=method))
        return jnp.linalg.slogdet(jnp.eye(6) + sum(grams)[0])[1]

    slopes = [jax.jit(jax.grad(lambda x, m=m: logdet(x, m)))(x) for m in ("structured", "leaf_jacobian")]
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-9, atol=1e-12)
    assert np.abs(slopes[0]).max() > 1e-3


def test_blocks_are_blocks_and_padding_has_rows_of_zeros(double_precision):
    params, x = double(digits_net.PARAMS), jnp.asarray(digits_net.X[:6])
    factors = jnp.asarray(np.random.default_rng(4).normal(size=(6, 10, 2)))
    whole = jax.jit(lambda p: gram_leaves(digits_net.apply, p, x, factors)["W1"][0])(params)
    whole = np.asarray(whole).reshape(6, 2, 6, 2)
    partition = jnp.array([[5, 0, 2, 3], [4, 1, -1, -1]])
    blocks = jax.jit(lambda p, x, L: block_grams(digits_net.apply, p, x, L, partition))(params, x, factors)
    for block, examples in zip(np.asarray(blocks["W1"]), ([5, 0, 2, 3], [4, 1]), strict=True):
        size = len(examples)
        block = block.reshape(4, 2, 4, 2)
        np.testing.assert_allclose(block[:size, :, :size], whole[examples][:, :, examples], rtol=1e-12)
        assert not block[size:].any() and not block[:, :, size:].any()


def test_blocks_map_over_a_batch_of_parameters(double_precision):
    params, x = double(digits_net.PARAMS), jnp.asarray(digits_net.X[:3])
    factors = jnp.ones((3, 10, 1))
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)

    def run(p):
        return gram_leaves(digits_net.apply, p, x, factors)

    many = jax.jit(jax.vmap(run))(two)
    one = jax.jit(run)(jax.tree.map(lambda leaf: 2 * leaf, params))
    for found, wanted in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(found[1], wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, x: gram_leaves(digits_net.apply, p, x, jnp.ones((3, 10, 1)), parts="all"),
            "parts is 'all'",
        ),
        (
            lambda p, x: gram_leaves(digits_net.apply, p, x, jnp.ones((3, 10, 1)), method="ad"),
            "method is 'ad'",
        ),
        (lambda p, x: gram_leaves(digits_net.apply, p, x, jnp.ones((2, 10, 1))), "factors has shape"),
        (lambda p, x: gram_leaves(digits_net.apply, p, x, jnp.ones((3, 10))), "factors has shape"),
        (lambda p, x: gram_leaves(lambda p, x: x.sum(1), p, x, jnp.ones((3, 1, 1))), "apply gives shapes"),
        (
            lambda p, x: jax.eval_shape(
                lambda: gram_leaves(digits_net.apply, p, jnp.zeros((4000, 64)), jnp.zeros((4000, 10, 10)))
            ),
            "4000 examples with 10 rows each needs 4 matrices of 40000 x 40000, 24 GiB",
        ),
        (
            lambda p, x: block_grams(digits_net.apply, p, x, jnp.ones((3, 10, 1)), jnp.arange(3)),
            "partition has shape",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    params = jax.tree.map(jnp.float32, digits_net.PARAMS)
    with pytest.raises(InputError, match=message):
        call(params, jnp.ones((3, 64)))
