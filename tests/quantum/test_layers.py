"""The circuit as a layer: batches, gradients, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlab.errors import InputError
from jaxlab.quantum.layers import QuantumLayer
from jaxlab.quantum.measurements import marginal_z
from jaxlab.quantum.simulation import circuit


def encoded(c, angles, x):
    """Data re-uploading: the input, then trained angles, twice."""
    for layer in angles:
        c.rx(x, range(2))
        c.rot(*layer[0], 0)
        c.rot(*layer[1], 1)
        c.cnot(0, 1)


def test_layer_is_the_pure_function_on_every_input():
    layer = QuantumLayer(encoded, 2, (2, 2, 3), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    found = jax.jit(lambda x: layer(x))(x)
    pure = circuit(encoded, 2, marginal_z)
    assert found.shape == (3, 4, 2)
    np.testing.assert_allclose(found[1, 2], pure(layer.angles[...], x[1, 2]), atol=1e-6)


def test_training_through_the_layer_learns_a_parity_that_no_linear_model_can():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.quantum = QuantumLayer(encoded, 2, (3, 2, 3), rngs=rngs)
            self.linear = nnx.Linear(2, 1, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.quantum(x))[..., 0]

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1.5, 1.5, (64, 2)), jnp.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(jnp.float32)
    graph, params = nnx.split(Model(nnx.Rngs(1)))
    optimizer = optax.adam(0.05)

    @jax.jit
    def step(params, state):
        def loss(params):
            return optax.sigmoid_binary_cross_entropy(nnx.merge(graph, params)(x), y).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in range(200):
        params, state, value = step(params, state)
    right = np.mean((nnx.merge(graph, params)(x) > 0) == (y > 0.5))
    assert right > 0.9 and value < 0.4


def test_wrong_scale_is_named():
    with pytest.raises(InputError, match="scale is 0"):
        QuantumLayer(encoded, 2, (1, 2, 3), rngs=nnx.Rngs(0), scale=0)
