"""The flow against its own inverse, the Jacobian by automatic differentiation, and a plain transcription."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.teachers.real_nvp import flow_forward, flow_inverse, init_flow, slow_softplus


@pytest.fixture(scope="module", params=[2, 3])
def flow(request):
    flow = init_flow(jax.random.key(0), request.param, hidden=8, blocks=2, layers=2)
    # Larger weights than at the start, so that scales differ from each other.
    noise = np.random.default_rng(0)
    flow = jax.tree.map(lambda x: x + jnp.asarray(0.1 * noise.normal(size=x.shape), jnp.float32), flow)
    return flow, request.param


def test_inverse_undoes_forward_with_the_same_density(flow):
    params, d = flow
    rng = np.random.default_rng(1)
    latent = jnp.asarray(rng.normal(size=(50, d)), jnp.float32)
    condition = jnp.asarray(rng.random(50), jnp.float32)
    logits, log_p = jax.jit(flow_forward)(params, latent, condition)
    back, back_log_p = jax.jit(flow_inverse)(params, logits, condition)
    np.testing.assert_allclose(back, latent, atol=1e-5)
    np.testing.assert_allclose(back_log_p, log_p, atol=1e-4)
    one = jax.jit(jax.vmap(lambda z, c: flow_forward(params, z, c)[0]))(latent, condition)
    np.testing.assert_allclose(one, logits, atol=1e-5)


def test_density_is_that_of_the_jacobian(flow):
    params, d = flow

    @jax.jit
    def goal_slope_and_density(latent):
        def goal(latent):
            logits, log_p = flow_forward(params, latent, jnp.float32(0.3))
            return jax.nn.sigmoid(logits), log_p

        return jax.jacfwd(goal, has_aux=True)(latent)

    for seed in range(3):
        latent = jnp.asarray(np.random.default_rng(seed).normal(size=d), jnp.float32)
        jacobian, log_p = goal_slope_and_density(latent)
        normal = -0.5 * np.sum(np.asarray(latent) ** 2) - d / 2 * np.log(2 * np.pi)
        expected = normal - np.linalg.slogdet(np.asarray(jacobian, float))[1]
        assert float(log_p) == pytest.approx(expected, abs=1e-3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_highway(net, x):
    y = np.tanh(x @ np.asarray(net.first.kernel, float) + np.asarray(net.first.bias))
    for layer in net.gated:
        both = y @ np.asarray(layer.kernel, float) + np.asarray(layer.bias)
        new, gate = np.tanh(both[: len(y)]), sigmoid(both[len(y) :])
        y = y + (new - y) * gate
    return y @ np.asarray(net.last.kernel, float) + np.asarray(net.last.bias)


def plain_softplus(x):
    return x * (np.arctan(x) / np.pi + 0.5) + 1 / np.pi


def plain_forward(flow, z, f):
    """The couplings written out: right given left, left given right, even given odd coordinates."""
    z = list(np.asarray(z, float))
    d = len(z)
    left, right = list(range(d // 2)), list(range(d // 2, d))
    for b in range(len(flow[0].scale.first.bias)):
        block = jax.tree.map(lambda x, b=b: x[b], flow)
        pairs = [(left, right), (right, left), (list(range(1, d, 2)), list(range(0, d, 2)))]
        for coupling, (given, changed) in zip(block, pairs, strict=True):
            inputs = np.array([z[i] for i in given] + [f])
            scale = 0.01 + plain_softplus(plain_highway(coupling.scale, inputs))
            shift = plain_highway(coupling.shift, inputs)
            for i, a, b in zip(changed, scale, shift, strict=True):
                z[i] = z[i] * a + b
    return z


def test_forward_is_the_couplings_written_out(flow):
    params, d = flow
    latent = np.linspace(-1, 1, d)
    logits, _ = jax.jit(flow_forward)(params, jnp.asarray(latent, jnp.float32), jnp.float32(0.7))
    np.testing.assert_allclose(logits, plain_forward(params, latent, 0.7), rtol=1e-4, atol=1e-4)


def test_slow_softplus_is_linear_above_falls_as_a_square_below_and_has_finite_slopes():
    x = jnp.float32([-1e8, -1e3, -31, -29, -1, 0, 1, 1e3])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(slow_softplus)))(x)
    assert np.all(np.isfinite(slope)) and np.all(value > 0)
    np.testing.assert_allclose(value[2], 1 / (3 * np.pi * 31**2), rtol=1e-3)
    np.testing.assert_allclose(value[3:], plain_softplus(np.float64(x[3:])), rtol=1e-2)
    np.testing.assert_allclose(value[0], 1 / (3 * np.pi * 1e6**2), rtol=0.1)  # clipped near 10^6


def test_one_dimension_is_refused():
    with pytest.raises(InputError, match="dimensions is 1; a coupling flow needs at least 2"):
        init_flow(jax.random.key(0), 1)
    with pytest.raises(InputError, match="hidden is 0"):
        init_flow(jax.random.key(0), 2, hidden=0)
