"""Bit-packed reduction against the column algorithm on Python sets."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.z2_reduction import lowest_ones, pack_columns


def reduce_by_sets(columns):
    owner, lows = {}, []
    for column in columns:
        column = set(column)
        while column and max(column) in owner:
            column ^= owner[max(column)]
        lows.append(max(column) if column else -1)
        if column:
            owner[max(column)] = column
    return lows


@pytest.mark.parametrize(("rows", "m", "f"), [(1, 1, 1), (31, 40, 3), (32, 20, 2), (65, 90, 4)])
def test_lowest_ones_are_those_of_the_column_algorithm(rows, m, f):
    rng = np.random.default_rng(rows)
    faces = np.stack(
        [[rng.permutation(np.r_[np.arange(rows), -np.ones(f, int)])[:f] for _ in range(m)] for _ in range(8)]
    )
    found = jax.jit(jax.vmap(lambda x: lowest_ones(pack_columns(x, rows=rows))))(faces)
    expected = [reduce_by_sets([c[c >= 0].tolist() for c in own]) for own in faces]
    assert np.array_equal(found, expected)


def test_bits_stand_where_they_are_said_to():
    packed = pack_columns(jnp.array([[0, 33], [31, -1], [40, 2]]), rows=40)
    assert packed.tolist() == [[1, 2**31, 4], [2, 0, 0]]


def test_nothing_to_reduce():
    assert lowest_ones(pack_columns(jnp.zeros((0, 2), jnp.int32), rows=3)).shape == (0,)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    program = jax.jit(lambda x: lowest_ones(pack_columns(x, rows=50)))
    shape = jax.ShapeDtypeStruct((60, 3), jnp.int32)
    assert jax.export.export(program, platforms=[platform])(shape).platforms == (platform,)
