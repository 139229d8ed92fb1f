"""Packing against Python integers."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.quantization.packing import WORD, join, pack, unpack, words_for


def limbs_of(value, count):
    return [(value >> (WORD * limb)) & 0xFFFFFFFF for limb in range(count)]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), width=st.integers(1, 96), codes=st.integers(1, 9))
def test_words_are_the_little_endian_integer_of_the_codes_and_unpack_back(data, width, codes):
    values = [data.draw(st.integers(0, 2**width - 1)) for _ in range(codes)]
    limbs = -(-width // WORD)
    words = words_for(codes, width)
    array = jnp.asarray([[limbs_of(value, limbs) for value in values]], jnp.uint32)
    packed = pack(array, width, words=words)
    whole = sum(value << (width * i) for i, value in enumerate(values))
    assert [int(word) for word in packed[0]] == limbs_of(whole, words)
    start = jnp.arange(codes)[None] * width
    np.testing.assert_array_equal(unpack(packed, start, width, limbs=limbs), array)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), bits=st.integers(1, 64), more=st.integers(0, 8))
def test_join_places_the_high_bits_after_the_low_ones(data, bits, more):
    low, high = data.draw(st.integers(0, 2**bits - 1)), data.draw(st.integers(0, 2**more - 1))
    joined = join(jnp.asarray(limbs_of(low, 2), jnp.uint32), bits, jnp.uint32(high))
    assert [int(limb) for limb in joined] == limbs_of(low | (high << bits), 3)


def test_a_traced_width_gives_the_same_words():
    values = jnp.arange(2 * 5 * 1, dtype=jnp.uint32).reshape(2, 5, 1)
    packed = jax.jit(lambda width: pack(values, width, words=3))(jnp.int32(13))
    np.testing.assert_array_equal(packed, pack(values, 13, words=3))
    np.testing.assert_array_equal(unpack(packed, jnp.arange(5)[None] * 13, 13, limbs=1), values)
