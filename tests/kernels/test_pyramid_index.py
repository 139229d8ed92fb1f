"""Rank and unrank against exact integers: counts, published values, exhaustive bijections, one to four limbs."""

import functools
import itertools
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.kernels.pyramid_index import count, index_bits, limbs, rank, rank_tables, unrank

COUNTS = {
    (2, 3): 12,
    (3, 3): 38,
    (4, 4): 192,
    (8, 4): 2816,
    (8, 6): 27008,
    (8, 8): 157184,
    (8, 14): 6140800,
    (16, 8): 30316544,
    (16, 11): 1219605600,
    (16, 12): 3575055360,
    (16, 28): 358342294418432,
    (32, 21): 3043535203476819776,
}
LARGEST = {  # (n, bits): the largest k whose index fits
    (8, 16): 6,
    (8, 20): 10,
    (8, 24): 16,
    (8, 28): 24,
    (8, 32): 36,
    (16, 32): 12,
    (16, 45): 23,
    (16, 49): 28,
    (16, 64): 58,
    (24, 64): 30,
    (32, 64): 22,
}
ONE_TO_FOUR_LIMBS = ((16, 12), (16, 28), (32, 40), (32, 80))


def closed_sum(n, k):
    return sum(2**s * math.comb(n, s) * math.comb(k - 1, s - 1) for s in range(1, min(n, k) + 1)) if k else 1


def values(largest):
    """0, +1, -1, +2, -2, ..., -largest."""
    return [0, *(sign * m for m in range(1, largest + 1) for sign in (1, -1))]


@functools.cache
def codewords(n, k):
    """All of P(n, k) in the order the format prescribes, by recursion."""
    if n == 0:
        return ((),) if k == 0 else ()
    return tuple((v, *tail) for v in values(k) for tail in codewords(n - 1, k - abs(v)))


def exact_rank(y):
    """Index by Python integers: the codewords that come before at each position."""
    left, index = sum(map(abs, y)), 0
    for after, v in zip(reversed(range(len(y))), y, strict=True):
        before = itertools.takewhile(lambda u, v=v: u != v, values(left))
        index += sum(closed_sum(after, left - abs(u)) if after else int(left == abs(u)) for u in before)
        left -= abs(v)
    return index


def to_limbs(indices, size):
    return jnp.asarray(
        [[index >> (32 * limb) & 0xFFFFFFFF for limb in range(size)] for index in indices], jnp.uint32
    )


def from_limbs(index):
    return [sum(int(limb) << (32 * i) for i, limb in enumerate(row)) for row in np.asarray(index)]


def random_codewords(n, k, groups, seed=0):
    rng = np.random.default_rng(seed)
    y = np.zeros((groups, n), np.int64)
    np.add.at(y, (np.repeat(np.arange(groups), k), rng.integers(0, n, groups * k)), 1)
    return (y * rng.choice([-1, 1], y.shape)).astype(np.int8)


def test_counts_are_the_published_ones():
    assert {key: count(*key) for key in COUNTS} == COUNTS
    assert count(0, 0) == count(7, 0) == 1
    assert count(0, 3) == 0


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 127))
def test_counts_agree_with_the_closed_sum(n, k):
    assert count(n, k) == (closed_sum(n, k) if n else int(k == 0))


def test_helper_u_is_symmetric():
    def u(n, k):
        return sum(count(n - 1, j) for j in range(k))

    assert all(u(n, k) == u(k, n) for n in range(1, 14) for k in range(1, 14))
    assert all(count(n, k) == u(n, k) + u(n, k + 1) for n in range(1, 14) for k in range(1, 14))


def test_largest_pulse_counts_for_given_bits():
    assert {
        (n, bits): max(k for k in range(1, 128) if index_bits(n, k) <= bits) for n, bits in LARGEST
    } == LARGEST
    assert index_bits(1, 5) == 1
    assert [limbs(*size) for size in ONE_TO_FOUR_LIMBS] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("n", "k"), [(1, 5), (2, 9), (3, 3), (4, 4), (5, 6), (8, 4), (8, 6), (30, 2), (3, 100)]
)
def test_every_index_is_met_once_and_in_order(n, k):
    tables = rank_tables(n, k)
    index = jnp.arange(count(n, k), dtype=jnp.uint32)[:, None]
    y = unrank(index, tables)
    np.testing.assert_array_equal(y, np.asarray(codewords(n, k), np.int8))
    np.testing.assert_array_equal(rank(y, tables), index)


def test_published_codewords():
    y = unrank(jnp.asarray([[0], [1], [2], [100], [191]], jnp.uint32), rank_tables(4, 4))
    assert y.tolist() == [[0, 0, 0, 4], [0, 0, 0, -4], [0, 0, 1, 3], [1, -2, 1, 0], [-4, 0, 0, 0]]
    y = unrank(to_limbs([123456789012345, count(16, 28) - 1], 2), rank_tables(16, 28))
    assert y.tolist() == [[1, 2, -1, -4, -2, 3, 8, 2, 0, -4, 0, -1, 0, 0, 0, 0], [-28] + [0] * 15]


@pytest.mark.parametrize(("n", "k"), ONE_TO_FOUR_LIMBS)
def test_agrees_with_exact_integers(n, k):
    tables = rank_tables(n, k)
    y = random_codewords(n, k, 40)
    y[0], y[1] = 0, 0
    y[0, 0], y[1, -1] = -k, k  # last and first
    index = rank(jnp.asarray(y), tables)
    assert from_limbs(index) == [exact_rank(row) for row in y.tolist()]
    assert from_limbs(index)[:2] == [count(n, k) - 1, 0]
    np.testing.assert_array_equal(unrank(index, tables), y)


def test_a_million_round_trips_with_two_limbs():
    tables = rank_tables(16, 28)
    y = random_codewords(16, 28, 1_000_000)
    index = jax.jit(rank)(y, tables)
    np.testing.assert_array_equal(jax.jit(unrank)(index, tables), y)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(1, 1), (2, 127), (7, 3), (16, 28), (24, 30), (64, 20)]), st.data())
def test_unrank_inverts_rank(size, data):
    n, k = size
    index = data.draw(st.lists(st.integers(0, count(n, k) - 1), min_size=3, max_size=3))
    packed = to_limbs(index, limbs(n, k))
    y = unrank(packed, rank_tables(n, k))
    assert (np.abs(np.asarray(y, int)).sum(-1) == k).all()
    np.testing.assert_array_equal(rank(y, rank_tables(n, k)), packed)


def test_leading_axes_jit_vmap_and_eager_agree():
    tables = rank_tables(8, 14)
    y = random_codewords(8, 14, 30).reshape(2, 3, 5, 8)
    index = rank(jnp.asarray(y), tables)
    assert index.shape == (2, 3, 5, 1)
    np.testing.assert_array_equal(jax.jit(rank)(y, tables), index)
    np.testing.assert_array_equal(jax.vmap(rank, (0, None))(jnp.asarray(y), jnp.asarray(tables)), index)
    np.testing.assert_array_equal(unrank(index, tables), y)
    np.testing.assert_array_equal(jax.jit(unrank)(index, tables), y)
    np.testing.assert_array_equal(jax.vmap(unrank, (0, None))(index, jnp.asarray(tables)), y)
    assert unrank(index[:0], tables).shape == (0, 3, 5, 8)


@pytest.mark.parametrize(("n", "k"), ONE_TO_FOUR_LIMBS)
def test_lowers_for_all_platforms(n, k):
    tables = jax.ShapeDtypeStruct(rank_tables(n, k).shape, jnp.uint32)
    y = jax.ShapeDtypeStruct((6, n), jnp.int8)
    index = jax.ShapeDtypeStruct((6, limbs(n, k)), jnp.uint32)
    for function, argument in ((rank, y), (unrank, index)):
        jax.export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(argument, tables)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="k = 0: pulses must lie between 1 and 127"):
        rank_tables(8, 0)
    with pytest.raises(ValueError, match="k = 128"):
        rank_tables(8, 128)
    with pytest.raises(ValueError, match="n = 0: a group needs"):
        rank_tables(0, 4)
    with pytest.raises(ValueError, match="more than 128; use smaller groups or fewer pulses"):
        rank_tables(64, 100)
    with pytest.raises(ValueError, match="must be >= 0"):
        count(-1, 3)
    tables = rank_tables(8, 6)
    with pytest.raises(ValueError, match="groups of n = 8"):
        rank(jnp.zeros((3, 16), jnp.int8), tables)
    with pytest.raises(ValueError, match="codewords are integers"):
        rank(jnp.zeros((3, 8)), tables)
    with pytest.raises(ValueError, match="need 1 limbs"):
        unrank(jnp.zeros((3, 2), jnp.uint32), tables)
    with pytest.raises(ValueError, match="must be uint32"):
        unrank(jnp.zeros((3, 1), jnp.int32), tables)
    with pytest.raises(ValueError, match=r"expected those of rank_tables"):
        rank(jnp.zeros((3, 8), jnp.int8), tables[0])
