"""Expanding many matrices at once equals dequantizing each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import with_layers

from jaxlab.models import LINEARS
from jaxlab.quantization import (
    PVQSpec,
    ScalarSpec,
    dequantize,
    dequantize_scalar,
    expand,
    expand_params,
    quantize,
    quantize_scalar,
)

CODES = {
    "two limbs": PVQSpec(16, 28, 3),
    "one limb": PVQSpec(16, 11, 1),
    "no gain bits": PVQSpec(16, 14, 0),
    "other levels": PVQSpec(16, 20, 6, "companded"),
}


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.fixture(scope="module")
def tensors():
    mixed = {
        name: quantize(gaussian(8, 64, seed=i), spec, jax.random.key(i))
        for i, (name, spec) in enumerate(CODES.items())
    }
    mixed["other groups"] = quantize(gaussian(8, 64), PVQSpec(8, 6, 2), jax.random.key(8))
    mixed["not rotated"] = quantize(gaussian(8, 64), CODES["two limbs"], jax.random.key(9), rotated=False)
    mixed["padded"] = quantize(gaussian(8, 60), CODES["two limbs"], jax.random.key(9), pad=True)
    mixed["scalar"] = quantize_scalar(jnp.asarray(gaussian(8, 64)), spec=ScalarSpec(4, 16))
    return mixed


def alone(tensor):
    return dequantize_scalar(tensor) if isinstance(tensor.spec, ScalarSpec) else dequantize(tensor)


def test_expanded_matrices_are_the_dequantized_ones(tensors):
    dense = expand(tensors)
    assert dense.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert dense[name].shape == tensor.shape
        np.testing.assert_allclose(dense[name], alone(tensor), atol=1e-6, err_msg=name)


def test_each_matrix_expands_the_same_whatever_stands_beside_it(tensors):
    together = expand(tensors)
    for name in ("two limbs", "padded"):
        np.testing.assert_array_equal(expand({name: tensors[name]})[name], together[name])


def test_rows_beyond_one_piece_are_all_there():
    t = quantize(gaussian(8, 64), CODES["two limbs"], jax.random.key(0))
    many = jax.tree.map(lambda x: jnp.tile(x, (150,) + (1,) * (x.ndim - 1)) if x.shape[0] == 8 else x, t)
    levels = t.levels
    many = type(t)(many.words, many.scale, levels, t.signs, t.spec, t.columns)
    dense = expand({"many": many, "one": t})
    np.testing.assert_array_equal(dense["many"], np.tile(dense["one"], (150, 1)))


def test_arrays_only_change_their_dtype(tensors):
    dense = expand({"norm": np.arange(3.0), "w": tensors["two limbs"]}, dtype=jnp.bfloat16)
    assert dense["norm"].dtype == dense["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(dense["norm"], [0, 1, 2])
    np.testing.assert_array_equal(dense["w"], dequantize(tensors["two limbs"]).astype(jnp.bfloat16))


def test_params_come_back_dense_and_stacked(tensors):
    names = dict(zip(LINEARS, ["two limbs", "one limb", "scalar"] * 3, strict=False))
    layers = [{name: tensors[kind] for name, kind in names.items()} for _ in range(2)]
    layers[1] = layers[1] | {"q": tensors["no gain bits"]}
    params = {
        "embed": tensors["scalar"],
        "final_norm": jnp.ones(3),
        "layers": {"attn_norm": jnp.ones((2, 3))},
    }
    dense = expand_params(with_layers(params, layers))
    assert dense.keys() == params.keys()
    assert dense["layers"].keys() == {"attn_norm", *LINEARS}
    np.testing.assert_array_equal(dense["layers"]["attn_norm"], np.ones((2, 3)))
    np.testing.assert_allclose(dense["embed"], alone(tensors["scalar"]), atol=1e-6)
    for name in LINEARS:
        expected = np.stack([alone(layer[name]) for layer in layers])
        np.testing.assert_allclose(dense["layers"][name], expected, atol=1e-6)
