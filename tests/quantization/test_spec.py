"""Sizes and bits of a pyramid code against exact integers, and what is refused."""

import math

import pytest

from jaxlab.errors import InputError
from jaxlab.quantization import PVQSpec
from jaxlab.quantization.spec import index_bits


def volume(n, k):
    """V(n, k) by the closed sum over the number of non-zero coordinates."""
    return sum(2**s * math.comb(n, s) * math.comb(k - 1, s - 1) for s in range(1, min(n, k) + 1))


@pytest.mark.parametrize("n, k", [(1, 1), (2, 3), (8, 14), (16, 11), (16, 28), (32, 21), (32, 56), (64, 20)])
def test_index_bits_are_just_enough_for_every_codeword(n, k):
    bits = PVQSpec(n, k, 3).index_bits
    assert 2 ** (bits - 1) < volume(n, k) <= 2**bits
    assert index_bits(n, k) == bits


@pytest.mark.parametrize(
    "n, bits, k",
    [
        (8, 16, 6),
        (8, 20, 10),
        (8, 32, 36),
        (16, 32, 12),
        (16, 45, 23),
        (16, 49, 28),
        (16, 64, 58),
        (24, 64, 30),
    ],
)
def test_largest_k_of_so_many_bits_is_that_of_the_published_table(n, bits, k):
    assert index_bits(n, k) <= bits < index_bits(n, k + 1)


def test_rate_counts_index_and_gain_bits():
    spec = PVQSpec(16, 28, 3)
    assert (spec.index_bits, spec.group_bits, spec.rate) == (49, 52, 3.25)


@pytest.mark.parametrize("columns, words, bits", [(576, 59, (59 * 32 + 16) / 576), (16, 2, 80 / 16)])
def test_stored_bits_count_the_padding_of_a_row_and_its_scale(columns, words, bits):
    spec = PVQSpec(16, 28, 3)
    assert spec.row_words(columns) == words
    assert spec.stored_bits(columns) == bits


def test_stored_bits_count_the_padding_of_the_last_group():
    assert PVQSpec(16, 28, 3).stored_bits(570) == (59 * 32 + 16) / 570


def test_width_that_is_not_divisible_names_groups_that_fit():
    with pytest.raises(
        InputError, match=r"in_features 578 is not divisible by the group size 16: .*\[2, 17, 34\]"
    ):
        PVQSpec(16, 28, 3).groups(578)
    with pytest.raises(InputError, match="in_features 577 .* pad=True"):
        PVQSpec(16, 28, 3).groups(577)


def test_index_that_is_too_long_names_the_largest_k():
    with pytest.raises(
        InputError, match=r"k=127, n=32 needs 13\d bits an index, the most is 128: use k <= \d+"
    ) as error:
        PVQSpec(32, 127, 0)
    largest = int(str(error.value).split("k <= ")[1].split()[0])
    assert volume(32, largest) <= 2**128 < volume(32, largest + 1)
    PVQSpec(32, largest, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 0}, {"n": 65}, {"k": 0}, {"k": 128}, {"gain_bits": -1}, {"gain_bits": 7}, {"k": 2.0},
        {"candidates": 0}, {"candidates": 17}, {"grid": "linear"},
    ],
)  # fmt: skip
def test_field_out_of_range_is_named_with_its_value(changes):
    ((name, value),) = changes.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        PVQSpec(**({"n": 4, "k": 2, "gain_bits": 1} | changes))
