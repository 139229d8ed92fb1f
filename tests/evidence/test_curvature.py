"""Spectra of the curvature's blocks, against the dense curvature in NumPy and `parametric_evidence`."""

import digits_net
import gram_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.evidence import (
    Bound,
    Hyper,
    cache_block,
    cached_evidence,
    curvature_spectra,
    output_factor,
    parametric_evidence,
    partition_evidence,
    spectral_evidence,
)

KEY = jax.random.key(0)
DELTA = {"W1": 0.5, "b1": 1.0, "W2": 2.0, "b2": 4.0}


@pytest.fixture(scope="module")
def digits():
    """Parameters, data, and prior of the digits network, in float64."""
    with jax.enable_x64(True):
        hyper = Hyper({name: jnp.log(jnp.asarray(delta)) for name, delta in DELTA.items()}, jnp.zeros(()))
        params = jax.tree.map(jnp.asarray, digits_net.PARAMS)
        yield params, jnp.asarray(digits_net.X), jnp.asarray(digits_net.Y), hyper


def double(tree):
    leaves = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda x: jnp.asarray(x.astype(np.float64) if x.dtype.kind == "f" else x), leaves)


@pytest.mark.parametrize("name", ["nnx convolutions", "wide tables", "wide sequence", "odd readings"])
def test_spectra_are_those_of_the_dense_curvature(name, double_precision):
    apply, params, x = gram_models.MODELS[name][0]()
    params, x = double(params), double(x)
    factors = np.random.default_rng(2).normal(size=(gram_models.EXAMPLES, 3, 2))

    def run(params, batch):
        return [
            curvature_spectra(apply, params, x, jnp.asarray(factors), structure=structure, batch=batch)
            for structure in ("tensor", "diag")
        ]

    tensor, diag = jax.jit(run, static_argnums=1)(params, 2)
    jacobian = jax.tree.leaves(jax.jit(jax.jacrev(apply))(params, x))
    seen = 0
    for values, entries, J in zip(jax.tree.leaves(tensor), jax.tree.leaves(diag), jacobian, strict=True):
        A = np.einsum("ncp,ncr->nrp", np.asarray(J).reshape(*J.shape[:2], -1), factors).reshape(6, -1)
        seen += A.any()
        largest = np.linalg.eigvalsh(A.T @ A)[-6:]  # of rank 6 at most
        expected = np.pad(largest, (np.size(values) - len(largest), 0))
        np.testing.assert_allclose(np.sort(values), expected, atol=1e-9)
        np.testing.assert_allclose(np.sort(entries), np.sort((A**2).sum(0)), atol=1e-10)
    assert seen >= 2  # one model has a leaf that nobody reads; the others are not compared with zeros


@pytest.mark.parametrize("space", ["tensor", "kron", "diag"])
def test_the_bound_of_one_block_is_the_parametric_evidence(digits, space):
    params, x, y, hyper = digits
    config = Bound(space=space, batch=25)

    @jax.jit
    def run(params, hyper):
        block = cache_block(KEY, digits_net.apply, params, x, y, total=60, config=config)
        found = cached_evidence(block, hyper, config=config)
        slope = jax.grad(lambda h: cached_evidence(block, h, config=config).value)(hyper).log_delta
        return (
            found,
            slope,
            partition_evidence(
                KEY, digits_net.apply, params, x, y, hyper, jnp.arange(60)[None], config=config
            ),
        )

    def wanted(log_delta):
        return parametric_evidence(
            digits_net.apply, params, x, y, log_delta, likelihood="softmax", structure=space
        ).value

    found, slope, whole = run(params, hyper)
    value, wanted_slope = jax.jit(jax.value_and_grad(wanted))(hyper.log_delta)
    assert float(found.value) == pytest.approx(float(value), abs=1e-8)
    assert float(whole.value) == pytest.approx(float(value), abs=1e-8)
    for name, delta in DELTA.items():
        assert float(slope[name]) == pytest.approx(float(wanted_slope[name]), abs=1e-8)
        closed = (float(found.gamma[name]) - delta * np.sum(digits_net.PARAMS[name] ** 2)) / 2
        assert closed == pytest.approx(float(wanted_slope[name]), abs=1e-8)


@pytest.mark.parametrize("space", ["kron", "diag"])
def test_padding_counts_nowhere(digits, space):
    params, x, y, hyper = digits
    config = Bound(space=space, batch=8)

    @jax.jit
    def both(params):
        mask = jnp.arange(60) < 21
        padded = cache_block(KEY, digits_net.apply, params, x, y, total=60, config=config, mask=mask)
        plain = cache_block(KEY, digits_net.apply, params, x[:21], y[:21], total=60, config=config)
        partition = jnp.stack([jnp.arange(21), jnp.r_[jnp.arange(21, 41), -1]])
        parted = partition_evidence(KEY, digits_net.apply, params, x, y, hyper, partition, config=config)
        second = cache_block(KEY, digits_net.apply, params, x[21:41], y[21:41], total=60, config=config)
        blocks = [cached_evidence(block, hyper, config=config).logdet for block in (padded, plain, second)]
        return blocks, parted.logdet

    (padded, plain, second), parted = both(params)
    assert float(padded) == pytest.approx(float(plain), rel=1e-10)
    # Blocks of M examples count N / M times where each stands for all.
    assert float(parted) == pytest.approx(float(plain) * 21 / 60 + float(second) * 20 / 60, rel=1e-10)


def test_noise_divides_the_curvature(double_precision):
    spectra = {"w": jnp.array([1.0, 3.0, 0.5])}
    found = spectral_evidence(
        spectra, jnp.log(2.0), jnp.array(-7.0), {"w": jnp.array(5.0)}, log_sigma=jnp.log(0.5), scale=3.0
    )
    values = np.array([1.0, 3.0, 0.5]) / (2 * 0.25)
    assert float(found.logdet) == pytest.approx(3 * np.log1p(values).sum())
    assert float(found.gamma) == pytest.approx(3 * (values / (1 + values)).sum())
    assert float(found.value) == pytest.approx(-7 - 5 - 1.5 * np.log1p(values).sum())


def test_wrong_input_is_named(digits):
    params, x, y, _ = digits
    factors = output_factor(digits_net.apply(params, x), likelihood="softmax")
    with pytest.raises(InputError, match="structure is 'full'"):
        curvature_spectra(digits_net.apply, params, x, factors, structure="full")
    with pytest.raises(InputError, match="batch is 61"):
        curvature_spectra(digits_net.apply, params, x, factors, structure="kron", batch=61)
    with pytest.raises(InputError, match="space is 'full'"):
        Bound(space="full")
    with pytest.raises(InputError, match="rows is 'single' with space 'kron'"):
        Bound(space="kron", rows="single")
    with pytest.raises(InputError, match="batch is 0"):
        Bound(space="kron", batch=0)
