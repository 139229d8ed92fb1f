import functools

import digits_net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.evidence import (
    gram_leaves,
    log_evidence,
    log_likelihood,
    output_factor,
    parametric_evidence,
    square_sums,
    whitened,
)

PRINTED = {
    "full": (171.81151287, -282.14036644),
    "tensor": (197.215151, -294.842186),
    "kron": (216.31997906, -304.39459953),
    "diag": (908.55001205, -650.50961602),
}
"""Log-determinant and value at delta = .7; all but "tensor" are also laplace-torch's."""


@functools.partial(jax.jit, static_argnames=("structure", "scale", "batch"))
def _evidence(params, log_delta, structure, **options):
    return parametric_evidence(
        digits_net.apply,
        params,
        jnp.asarray(digits_net.X),
        digits_net.Y,
        log_delta,
        likelihood="softmax",
        structure=structure,
        **options,
    )


def evidence(structure, log_delta, **options):
    return _evidence(jax.tree.map(jnp.asarray, digits_net.PARAMS), log_delta, structure, **options)


@pytest.mark.parametrize("structure", PRINTED)
def test_values_are_the_printed_ones(structure, double_precision):
    found = evidence(structure, jnp.log(0.7), batch=20)
    logdet, value = PRINTED[structure]
    digits = 1e-6 if structure == "tensor" else 1e-8
    assert float(found.logdet) == pytest.approx(logdet, abs=digits)
    assert float(found.value) == pytest.approx(value, abs=digits)


def digits_hessian():
    J = np.concatenate([digits_net.jacobians()[name] for name in digits_net.NAMES], axis=2)
    return np.einsum("ncp,ncd,ndq->pq", J, digits_net.hessians(), J, optimize=True)


def test_layers_are_blocks_of_weight_and_bias(double_precision):
    names = {
        "W1": ("first", "kernel"),
        "b1": ("first", "bias"),
        "W2": ("last", "kernel"),
        "b2": ("last", "bias"),
    }
    nested = {"first": {}, "last": {}}
    for name, (layer, part) in names.items():
        nested[layer][part] = jnp.asarray(digits_net.PARAMS[name])

    def apply(p, x):
        return digits_net.apply({name: p[layer][part] for name, (layer, part) in names.items()}, x)

    @jax.jit
    def logdet(log_delta):
        x = jnp.asarray(digits_net.X)
        return parametric_evidence(
            apply, nested, x, digits_net.Y, log_delta, likelihood="softmax", structure="layer"
        ).logdet

    found = logdet({"first": jnp.log(0.5), "last": jnp.log(2.0)})
    H = digits_hessian()
    ends = np.cumsum([0] + [digits_net.PARAMS[name].size for name in digits_net.NAMES])
    place = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(digits_net.NAMES)}
    wanted = 0.0
    for pair, delta in ((("W1", "b1"), 0.5), (("W2", "b2"), 2.0)):
        rows = np.concatenate([place[name] for name in pair])
        wanted += np.linalg.slogdet(np.eye(len(rows)) + H[np.ix_(rows, rows)] / delta)[1]
    assert float(found) == pytest.approx(wanted, abs=1e-8)
    same = logdet({"first": jnp.log(0.7), "last": jnp.log(0.7)})
    assert PRINTED["full"][0] < float(same) < PRINTED["tensor"][0]


def whitened_value(log_delta):
    apply, params = whitened(digits_net.apply, jax.tree.map(jnp.asarray, digits_net.PARAMS), log_delta)
    outputs = apply(params, jnp.asarray(digits_net.X))
    grams = gram_leaves(
        apply, params, jnp.asarray(digits_net.X), output_factor(outputs, likelihood="softmax")
    )
    loglik = log_likelihood(outputs, digits_net.Y, likelihood="softmax").sum()
    return log_evidence(grams, jnp.zeros(()), loglik, square_sums(params)).value


def test_precisions_of_single_entries_and_a_scale_are_those_of_brute_force(double_precision):
    rng = np.random.default_rng(0)
    log_delta = {name: jnp.asarray(rng.normal(size=leaf.shape)) for name, leaf in digits_net.PARAMS.items()}
    flat = np.exp(np.concatenate([np.ravel(log_delta[name]) for name in digits_net.NAMES]))
    theta = np.concatenate([digits_net.PARAMS[name].ravel() for name in digits_net.NAMES])
    H = digits_hessian()
    logdet = 3 * (np.linalg.slogdet(H + np.diag(flat))[1] - np.log(flat).sum())
    found = evidence("full", log_delta, scale=3.0)
    assert float(found.logdet) == pytest.approx(logdet, abs=1e-7)
    assert float(found.quad) == pytest.approx(theta @ (flat * theta), rel=1e-12)
    assert float(found.loglik) == pytest.approx(-3 * 174.36338783, abs=1e-7)
    diag = evidence("diag", log_delta).logdet
    assert float(diag) == pytest.approx(np.log1p(np.diag(H) / flat).sum(), abs=1e-8)
    in_function_space, slope = jax.jit(jax.value_and_grad(whitened_value))(log_delta)
    plain, wanted = jax.value_and_grad(lambda d: evidence("full", d).value)(log_delta)
    assert float(in_function_space) == pytest.approx(float(plain), abs=1e-8)
    for name in wanted:
        np.testing.assert_allclose(slope[name], wanted[name], atol=1e-9)
    with pytest.raises(InputError, match="'kron' needs one for all of it"):
        evidence("kron", log_delta)


def test_gradients_are_those_of_laplace_torch(double_precision):
    deltas = {"W1": 0.5, "b1": 1.0, "W2": 2.0, "b2": 4.0}
    log_delta = {name: jnp.log(jnp.asarray(delta)) for name, delta in deltas.items()}
    value, slope = jax.value_and_grad(lambda d: evidence("full", d).value)(log_delta)
    assert float(value) == pytest.approx(-303.86916377, abs=1e-8)
    printed = {"W1": 45.80461958, "b1": 0.23465291, "W2": -16.64482438, "b2": 0.35007648}
    for name, wanted in printed.items():
        assert float(slope[name]) / deltas[name] == pytest.approx(wanted, abs=1e-8)


def test_kronecker_factors_of_tables_and_sequences_are_those_of_brute_force(double_precision):
    rng = np.random.default_rng(6)
    params = {"table": rng.normal(size=(7, 4)), "W": rng.normal(size=(4, 5)), "V": rng.normal(size=(5, 3))}
    x, y = np.array([[0, 3, 3], [1, 3, 0]]), np.array([0, 2])

    def apply(p, x):
        return jnp.tanh(p["table"][x] @ p["W"]).mean(1) @ p["V"]

    found = jax.jit(
        lambda p: parametric_evidence(apply, p, x, y, jnp.log(0.5), likelihood="softmax", structure="kron")
    )(jax.tree.map(jnp.asarray, params))
    embedded = params["table"][x]
    hidden = np.tanh(embedded @ params["W"])
    pooled = hidden.mean(1)
    logits = pooled @ params["V"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    Lambda = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
    back = np.einsum("hc,nth->ncth", params["V"], (1 - hidden**2) / 3)

    def logdet(A_eigenvalues, d):
        G = np.einsum("ncti,ncd,ndtj->ij", d, Lambda, d)
        return np.log1p(np.outer(A_eigenvalues, np.linalg.eigvalsh(G)) / 0.5).sum()

    wanted = logdet(np.bincount(x.ravel(), minlength=7) / 6, back @ params["W"].T)
    wanted += logdet(np.linalg.eigvalsh(np.einsum("nti,ntj->ij", embedded, embedded) / 6), back)
    at_outputs = np.broadcast_to(np.eye(3)[None, :, None], (2, 3, 1, 3))
    wanted += logdet(np.linalg.eigvalsh(pooled.T @ pooled / 2), at_outputs)
    assert float(found.logdet) == pytest.approx(wanted, rel=1e-10)


@pytest.fixture(scope="module")
def random_structures():
    """Log-determinants of a random network from full to diagonal, by seed and log delta."""
    with jax.enable_x64(True):

        def logdets(seed, log_delta):
            first, second, third = jax.random.split(jax.random.key(seed), 3)
            params = {
                "in": {"W": jax.random.normal(first, (3, 4)), "b": jnp.ones(4)},
                "out": {"W": jax.random.normal(second, (4, 3)), "b": jnp.ones(3)},
            }
            x = 2 * jax.random.normal(third, (6, 3))

            def apply(p, x):
                return jnp.tanh(x @ p["in"]["W"] + p["in"]["b"]) @ p["out"]["W"] + p["out"]["b"]

            return [
                parametric_evidence(
                    apply, params, x, jnp.zeros(6, int), log_delta, likelihood="softmax", structure=structure
                ).logdet
                for structure in ("full", "layer", "tensor", "diag")
            ]

        yield jax.jit(logdets)


@given(seed=st.integers(0, 2**20), log_delta=st.floats(-4, 4))
def test_finer_structures_bound_from_further_away(random_structures, seed, log_delta):
    logdets = [float(value) for value in random_structures(seed, log_delta)]
    assert np.diff(logdets).min() > -1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "dense"}, "structure is 'dense'"),
        ({"scale": 0.0}, "scale is 0"),
        ({"batch": 61}, "batch is 61; it must be at least 1 and at most 60"),
        ({"batch": 0}, "batch is 0"),
        ({"likelihood": "probit"}, "likelihood is 'probit'"),
    ],
)
def test_wrong_input_is_named(options, message):
    params = jax.tree.map(jnp.float32, digits_net.PARAMS)
    with pytest.raises(InputError, match=message):
        parametric_evidence(
            digits_net.apply,
            params,
            jnp.asarray(digits_net.X, jnp.float32),
            digits_net.Y,
            jnp.array(0.0),
            **{"likelihood": "softmax", **options},
        )


def test_blocks_too_large_for_memory_are_refused():
    wide = {"w": jax.ShapeDtypeStruct((40000, 2), jnp.float32)}
    with pytest.raises(InputError, match="80000 x 80000 would take 24 GiB"):
        jax.eval_shape(
            lambda p: parametric_evidence(
                lambda p, x: x @ p["w"],
                p,
                jnp.ones((1, 40000)),
                np.zeros(1, int),
                jnp.array(0.0),
                likelihood="softmax",
            ),
            wide,
        )
