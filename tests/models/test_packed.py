"""Matrices that stay packed: GGUF's blocks as they are, through the one dispatch, in a whole model."""

import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.models import forward, generate, load, logits
from jaxlab.models.gguf_blocks import BLOCK_FORMATS, dequantize
from jaxlab.models.linear import at_layer, dense, keeps_whole, linear, matrix_rows, matrix_shape
from jaxlab.models.packed import PACKED_KINDS, pack_blocks, pack_matrix, with_integer_products


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def blocks(kind, *shape):
    """Rows of a format as the reference package writes them, and their values."""
    weight = normal(*shape)
    if kind == "Q8_0":  # the most negative code, which the reference never writes
        data = gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
        data[..., 5] = 128
    else:
        data = gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
    return data, dequantize(data.reshape(-1), kind).reshape(shape)


@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_blocks_of_gguf_are_kept_bit_for_bit(kind):
    data, values = blocks(kind, 70, 96)
    leaf = pack_blocks(data, kind)
    assert PACKED_KINDS[kind] == BLOCK_FORMATS[kind].nbytes
    assert matrix_shape(leaf) == (70, 96) and leaf.columns == 96
    # Products of codes and scales are exact in float32; only a sum with a minimum may be rounded once instead of twice.
    atol = 0 if kind in ("Q8_0", "Q5_0") else 2e-7 * np.abs(values).max()
    np.testing.assert_allclose(dense(leaf), values, rtol=0, atol=atol)
    indices = jnp.asarray([[0, 69], [64, 100]])
    np.testing.assert_allclose(matrix_rows(leaf, indices), values[[[0, 69], [64, 69]]], rtol=0, atol=atol)
    x = normal(2, 3, 96, seed=1)
    exact = x.astype(np.float64) @ values.astype(np.float64).T
    assert np.abs(linear(jnp.asarray(x), leaf) - exact).max() < 1e-6 * np.abs(exact).max()


def test_memory_is_that_of_the_file():
    data, _ = blocks("Q4_1", 128, 64)
    assert pack_blocks(data, "Q4_1").nbytes == data.nbytes and pack_blocks(data, "Q4_1").bits == 4
    data, _ = blocks("Q8_0", 128, 64)
    assert pack_blocks(data, "Q8_0").nbytes == data.nbytes and pack_blocks(data, "Q8_0").bits == 8


def test_a_stack_is_kept_whole_and_read_a_layer_at_a_time():
    data, values = blocks("Q4_1", 3, 64, 32)
    leaf = pack_blocks(data, "Q4_1")
    assert keeps_whole(leaf) and not keeps_whole(jnp.ones((3, 64, 32)))
    np.testing.assert_allclose(dense(leaf), values, atol=1e-6)
    np.testing.assert_allclose(dense(at_layer(leaf, 1)), values[1], atol=1e-6)
    x = jnp.asarray(normal(1, 32))

    def by_index(carry, layer):
        return carry, linear(x, at_layer(leaf, layer))

    def by_slice(carry, layer):
        return carry, linear(x, layer)

    exact = np.einsum("lrc,c->lr", values, np.asarray(x[0]))[:, None]
    for found in (jax.lax.scan(by_index, 0, jnp.arange(3))[1], jax.lax.scan(by_slice, 0, leaf)[1]):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_integer_products_round_the_inputs_and_can_be_turned_off():
    data, values = blocks("Q4_1", 64, 64)
    params = {"a": pack_blocks(data, "Q4_1"), "b": jnp.ones(3)}
    rounding = with_integer_products(params)
    x = normal(1, 64)
    exact = linear(jnp.asarray(x), params["a"])
    rounded = linear(jnp.asarray(x), rounding["a"])
    assert 1e-5 < np.abs(rounded - exact).max() / np.abs(exact).max() < 0.02
    back = with_integer_products(rounding, enabled=False)
    np.testing.assert_array_equal(linear(jnp.asarray(x), back["a"]), exact)
    assert rounding["b"] is params["b"]


def test_products_have_gradients_and_take_other_dtypes():
    data, values = blocks("Q8_0", 64, 32)
    leaf, x = pack_blocks(data, "Q8_0"), jnp.asarray(normal(2, 32))
    found = jax.grad(lambda x: jnp.sum(jnp.square(linear(x, leaf))))(x)
    np.testing.assert_allclose(found, 2 * (x @ values.T) @ values, rtol=1e-3, atol=1e-2)
    assert linear(x.astype(jnp.bfloat16), leaf).dtype == jnp.bfloat16
    assert linear(jnp.zeros((0, 32)), leaf).shape == (0, 64)


@pytest.fixture(scope="module")
def packed_smollm2():
    return load("pkg:smollm2", packed=True)


@pytest.mark.slow
def test_packed_model_has_the_same_logits_and_the_same_text(smollm2, packed_smollm2):
    params, cfg, tokenizer = smollm2
    packed = packed_smollm2.params
    assert packed_smollm2.cfg == cfg
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(packed)) < 98.4e6  # bytes of the file
    prompt = np.asarray(tokenizer("The history of the city of Rome begins")["input_ids"], np.int32)[None]
    expected = logits(params, cfg, forward(params, cfg, prompt).hidden)
    found = logits(packed, cfg, forward(packed, cfg, prompt).hidden)
    assert np.abs(found - expected).max() < 1e-4
    lengths, key = np.array([prompt.shape[1]]), jax.random.key(0)
    texts = [generate(p, cfg, prompt, lengths, key, max_new=12).tokens for p in (params, packed)]
    np.testing.assert_array_equal(*texts)
    rounded = with_integer_products(packed)
    found = logits(rounded, cfg, forward(rounded, cfg, prompt).hidden)
    assert 1e-3 < np.abs(found - expected).max() < 2.0  # 8 bits an activation
    agreement = np.mean(np.argmax(found, -1) == np.argmax(expected, -1))
    assert agreement >= 0.8


def test_bad_arguments_are_named(tmp_path):
    codes, scale = jnp.zeros((4, 32), jnp.int32), jnp.ones((4, 1))
    for arguments, bits, message in (
        ((codes, scale), 3, "bits is 3"),
        ((codes.astype(jnp.float32), scale), 4, "codes has shape .* dtype float32"),
        ((codes, jnp.ones((5, 1))), 4, r"scale has shape \(5, 1\)"),
        ((codes, scale, jnp.ones((4, 2))), 4, r"minimum has shape \(4, 2\)"),
        ((codes, jnp.ones((4, 5))), 4, "5 groups a row"),
        ((jnp.zeros((4, 33), jnp.int32), scale), 4, "groups of 33"),
    ):
        with pytest.raises(InputError, match=message):
            pack_matrix(*arguments, bits=bits)
    leaf = pack_matrix(codes, scale, bits=4)
    with pytest.raises(InputError, match=r"\(4, 32\) cannot act on inputs of width 31"):
        linear(jnp.ones((1, 31)), leaf)
    with pytest.raises(InputError, match="cannot act"):
        linear(jnp.ones((1, 32)), dataclasses.replace(leaf, layer=0))
    with pytest.raises(InputError, match="kind is 'Q6_K'"):
        pack_blocks(np.zeros((1, 210), np.uint8), "Q6_K")
    with pytest.raises(InputError, match="infinite or not a number"):
        pack_blocks(np.full((1, 34), 255, np.uint8), "Q8_0")
    with pytest.raises(InputError, match="sliced, not kept whole"):
        at_layer(jnp.ones((2, 3, 4)), 0)
    with pytest.raises(InputError, match="packed is True"):
        load(tmp_path, packed=True)
