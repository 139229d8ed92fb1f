"""Frames against plain index arithmetic on all amplitudes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.quantum.frames import (
    Frame,
    Span,
    annihilators,
    independent,
    move_between,
)


@st.composite
def frames(draw):
    """A frame of up to 6 wires, made by elementary steps from the usual order."""
    n = draw(st.integers(2, 6))
    local = draw(st.integers(n - n // 2, n))
    frame = Frame(local, tuple(1 << bit for bit in range(n)), draw(st.integers(0, (1 << n) - 1)))
    for control, target in draw(st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), max_size=12)):
        if control != target:
            columns = [1 << bit for bit in range(n)]
            columns[control] |= 1 << target
            frame = frame.after(columns, 0)
    return frame


def places(frame):
    """The place of every amplitude."""
    found = np.full(1 << frame.n, frame.offset)
    for bit, column in enumerate(frame.columns):
        found ^= (np.arange(1 << frame.n) >> bit & 1) * column
    return found


def odd(mask):
    return np.bitwise_count(mask) & 1


@given(frames(), st.integers(0, 63))
def test_functional_of_amplitudes_is_one_of_places(frame, mask):
    mask &= (1 << frame.n) - 1
    local, device, flipped = frame.split(mask)
    place = places(frame)
    found = odd(place & ((1 << frame.local) - 1) & local) ^ odd((place >> frame.local) & device) ^ flipped
    np.testing.assert_array_equal(found, odd(np.arange(1 << frame.n) & mask))
    assert sorted(place) == list(range(1 << frame.n))


@given(frames(), st.integers(0, 63), st.lists(st.integers(0, 5), min_size=2, max_size=2, unique=True))
def test_affine_map_moves_no_amplitude(frame, offset, wires):
    control, target = (wire % frame.n for wire in wires)
    if control == target:
        return
    columns = [1 << bit for bit in range(frame.n)]
    columns[control] |= 1 << target
    offset &= (1 << frame.n) - 1
    index = np.arange(1 << frame.n)
    image = index ^ ((index >> control & 1) << target) ^ offset
    np.testing.assert_array_equal(places(frame.after(columns, offset))[image], places(frame))


@given(frames(), st.integers(0, 63), st.integers(0, 63))
def test_conditions_say_which_amplitudes_have_the_bits(frame, where, value):
    where &= (1 << frame.n) - 1
    place, index = places(frame), np.arange(1 << frame.n)
    for one in (frame, frame.arranged((), where)):
        conditions, place = one.conditions(where, value), places(one)
        if conditions is None:
            continue
        found = np.ones(1 << frame.n, bool)
        for condition in conditions:
            bits = odd(place & ((1 << frame.local) - 1) & condition.local)
            found &= bits ^ odd((place >> frame.local) & condition.device) == condition.value
            assert condition.local.bit_count() <= 1
        np.testing.assert_array_equal(found, (index ^ value) & where == 0)
    # Local bits may hold the wires that are asked for, as far as they do not follow from the device.
    assert conditions is not None


@given(frames(), st.integers(0, 63))
def test_moves_stay_on_the_device_and_lead_where_they_should(frame, mask):
    end = frame.arranged((), mask)
    move = move_between(frame, end)
    psi = np.arange(1 << frame.n)[np.argsort(places(frame))]  # amplitude x is x
    low = (1 << frame.local) - 1

    def gathered(psi, columns, shifts):
        index = np.arange(1 << frame.n)
        source = np.array(shifts)[index >> frame.local]
        for bit, column in enumerate(columns):
            source ^= (index >> bit & 1) * column
        return psi[(index & ~low) | source]

    moved = gathered(psi, move.ahead, move.ahead_shifts)
    np.testing.assert_array_equal(moved[places(end)], np.arange(1 << frame.n))
    np.testing.assert_array_equal(gathered(moved, move.back, move.back_shifts), psi)


@given(frames())
def test_exchange_swaps_device_and_topmost_local_bits(frame):
    count = frame.n - frame.local
    place = places(frame)
    device, top = place >> frame.local, (place >> (frame.local - count)) & ((1 << count) - 1)
    rest = place & ((1 << (frame.local - count)) - 1)
    expected = top << frame.local | device << (frame.local - count) | rest
    np.testing.assert_array_equal(places(frame.exchanged()), expected)


@given(frames())
def test_wires_without_part_in_the_devices_number_are_plain_once_arranged(frame):
    arranged = frame.arranged()
    assert arranged.on_devices == frame.on_devices
    for bit in range(frame.n):
        place = arranged.place_of(bit)
        if not any(mask >> bit & 1 for mask in frame.on_devices):
            assert place is not None
            found = places(arranged)
            index = np.arange(1 << frame.n)
            np.testing.assert_array_equal(found[index ^ (1 << bit)], found ^ (1 << place))
            np.testing.assert_array_equal(found >> place & 1, index >> bit & 1)


@given(st.integers(1, 7), st.lists(st.integers(0, 127), max_size=5))
def test_annihilators_are_a_basis_of_what_is_zero_on_the_vectors(n, vectors):
    vectors = [vector & ((1 << n) - 1) for vector in vectors]
    found = annihilators(vectors, n)
    zero = {mask for mask in range(1 << n) if all(odd(np.int64(mask & vector)) == 0 for vector in vectors)}
    assert independent(found) and 1 << len(found) == len(zero) and set(found) <= zero
    span = Span(found)
    assert all(not span.rest(mask) for mask in zero)
