"""Pyramid codes of activations: the nearest scale, exact integer products, a whole model with coded inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.models import forward, logits
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import dense, linear
from jaxlab.quantization.pvq import quantize
from jaxlab.quantization.pvq_inputs import CodedInputs, InputSpec, quantize_inputs, with_coded_inputs
from jaxlab.quantization.rotation import rotate
from jaxlab.quantization.run_formats import run_format
from jaxlab.quantization.spec import PVQSpec

SPEC = InputSpec(8, 24)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rates_count_index_and_gain():
    assert InputSpec(2, 16).rate == (6 + 16) / 2  # V(2, k) = 4 k
    cube = np.abs(np.indices((11, 11, 11)) - 5).sum(0)
    assert InputSpec(3, 5).rate == pytest.approx((np.ceil(np.log2((cube == 5).sum())) + 16) / 3)


def test_scale_is_the_projection_and_more_pulses_are_nearer():
    x = normal(3, 16)
    errors = []
    for k in (4, 24, 100):
        y, scale = quantize_inputs(jnp.asarray(x), InputSpec(8, k))
        y, scale = np.asarray(y, np.float64), np.asarray(scale, np.float64)
        groups = x.reshape(3, 2, 8)
        assert (np.abs(y).sum(-1) == k).all()
        np.testing.assert_allclose(scale, (groups * y).sum(-1) / (y * y).sum(-1), rtol=1e-3)
        errors.append(np.square(scale[..., None] * y - groups).sum())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.mark.parametrize("vectors", [1, 9])
def test_products_with_pyramid_weights_are_those_of_the_float64_values(vectors):
    tensor = quantize(jnp.asarray(normal(6, 32)), PVQSpec(n=8, k=40, gain_bits=3), jax.random.key(0))
    rotated = run_format(tensor)
    leaf = CodedInputs(rotated.matrix, rotated.signs, SPEC)
    x = jnp.asarray(normal(vectors, 32, seed=1))
    y, scale = quantize_inputs(rotate(x, rotated.signs), SPEC)
    rounded = np.asarray(y, np.float64) * np.asarray(scale, np.float64)[..., None]
    exact = rounded.reshape(vectors, 32) @ np.asarray(dense(rotated.matrix), np.float64).T
    found = jax.jit(linear)(x, leaf)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6 * np.abs(exact).max())
    np.testing.assert_allclose(dense(leaf), dense(rotated), atol=1e-6)


@pytest.mark.slow
def test_model_with_finely_coded_inputs_is_near_the_original():
    cfg = ModelConfig(
        family="llama",
        vocab_size=31,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_size=32,
        max_positions=64,
        norm_eps=1e-5,
        tie_embeddings=True,
    )
    shapes = {"q": (16, 16), "k": (8, 16), "v": (8, 16), "o": (16, 16), "gate": (32, 16), "up": (32, 16)}
    layers = {
        name: jnp.asarray(0.3 * normal(2, *shape, seed=i)) for i, (name, shape) in enumerate(shapes.items())
    }
    layers |= {"down": jnp.asarray(0.3 * normal(2, 16, 32, seed=9))}
    layers |= {name: jnp.ones((2, 16)) for name in ("attn_norm", "mlp_norm")}
    params = {"embed": jnp.asarray(normal(31, 16)), "layers": layers, "final_norm": jnp.ones(16)}
    tokens = np.random.default_rng(0).integers(0, 31, (1, 12))

    def scores(params):
        return np.asarray(logits(params, cfg, forward(params, cfg, tokens).hidden))

    original, distances = scores(params), []
    for k in (6, 127):
        coded = with_coded_inputs(params, cfg, InputSpec(8, k), jax.random.key(1))
        distances.append(np.abs(scores(coded) - original).max())
    assert distances[1] < 0.15 * distances[0] and distances[1] < 0.2 * np.abs(original).max()
    both = with_coded_inputs(params, cfg, InputSpec(8, 127), jax.random.key(1), weights=PVQSpec(8, 4, 1))
    assert np.abs(scores(both) - original).max() > 2 * distances[1]
    with pytest.raises(InputError, match="is a tuple"):
        with_coded_inputs({**params, "layers": (layers,)}, cfg, SPEC, jax.random.key(0))


def test_bad_specs_and_widths_are_named():
    for options, message in (((1, 4), "n is 1"), ((8, 128), "k is 128"), ((8, 4, 0), "candidates is 0")):
        with pytest.raises(InputError, match=message):
            InputSpec(*options)
    with pytest.raises(InputError, match="12 columns"):
        quantize_inputs(jnp.ones((1, 12)), SPEC)
