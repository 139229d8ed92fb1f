"""PER: the sum tree against plain sums, draws against probabilities, weights against their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.teachers import add_transitions, empty_priorities, sample_transitions, update_priorities
from jaxlab.teachers.prioritized_transitions import row_at, set_leaves

CAPACITY = 8
_set = jax.jit(set_leaves)
_row_at = jax.jit(jax.vmap(row_at, in_axes=(None, 0)))
_add = jax.jit(add_transitions, static_argnums=1)
_update = jax.jit(update_priorities)


def held(priorities):
    """A full buffer with these priorities."""
    state = _add(empty_priorities(CAPACITY), CAPACITY)[1]
    return state._replace(
        tree=_set(state.tree, jnp.arange(CAPACITY), jnp.asarray(priorities, state.tree.dtype))
    )


@settings(max_examples=25)
@given(
    st.lists(
        st.lists(st.integers(0, 64), min_size=3, max_size=3).flatmap(
            lambda priorities: st.tuples(
                st.lists(st.integers(0, CAPACITY - 1), min_size=3, max_size=3, unique=True),
                st.just(priorities),
            )
        ),
        min_size=1,
        max_size=6,
    )
)
def test_every_node_is_the_sum_of_its_leaves_and_rows_are_found_by_their_cumulative_sum(writes):
    """Whole numbers, so that sums are exact."""
    tree, leaves = jnp.zeros(2 * CAPACITY), np.zeros(CAPACITY)
    for rows, priorities in writes:
        tree = _set(tree, jnp.array(rows), jnp.float32(priorities))
        leaves[rows] = priorities
    nodes = np.asarray(tree)
    np.testing.assert_array_equal(nodes[CAPACITY:], leaves)
    assert nodes[1] == leaves.sum()
    for level in range(3):
        first = 2**level
        np.testing.assert_array_equal(nodes[first : 2 * first], leaves.reshape(first, -1).sum(1))
    if leaves.sum():
        mass = np.linspace(0, leaves.sum(), 40, endpoint=False) + 0.25 * leaves.sum() / 40
        expected = np.searchsorted(np.cumsum(leaves), mass, side="right")
        np.testing.assert_array_equal(_row_at(tree, jnp.float32(mass)), expected)
        assert leaves[int(_row_at(tree, jnp.float32([leaves.sum()]))[0])] > 0


def test_rows_are_drawn_by_priority_and_weighted_by_their_inverse(double_precision):
    priorities = np.array([0.5, 1.0, 0.0, 2.0, 0.1, 3.0, 0.4, 1.0])
    state = held(priorities)
    p = priorities / priorities.sum()
    draw = jax.jit(lambda key, beta: sample_transitions(key, state, 4000, beta=beta))
    rows, weights = draw(jax.random.key(0), 0.7)
    # One draw from each 4000th of the total: counts are within one of their expectation.
    np.testing.assert_allclose(np.bincount(rows, minlength=8), 4000 * p, atol=1)
    expected = (8 * p[np.asarray(rows)]) ** -0.7
    np.testing.assert_allclose(weights, expected / expected.max(), rtol=1e-5)
    np.testing.assert_allclose(draw(jax.random.key(0), 0.0).weights, 1)


def test_priorities_are_powers_of_errors_and_new_transitions_get_the_greatest():
    rows, state = _add(empty_priorities(CAPACITY), 5)
    np.testing.assert_array_equal(rows, range(5))
    np.testing.assert_allclose(state.tree[CAPACITY:], [1, 1, 1, 1, 1, 0, 0, 0])
    state = _update(state, jnp.array([1, 3]), jnp.float32([-4.0, 0.0]))
    np.testing.assert_allclose(state.tree[CAPACITY + 1], 4**0.6, rtol=1e-5)
    np.testing.assert_allclose(state.tree[CAPACITY + 3], 1e-6**0.6, rtol=1e-4)
    rows, state = _add(state, 5)
    np.testing.assert_array_equal(rows, [5, 6, 7, 0, 1])
    np.testing.assert_allclose(state.tree[CAPACITY + rows], 4**0.6, rtol=1e-5)
    assert (
        int(state.size) == 8 and int(state.written) == 10 and float(state.greatest) == pytest.approx(4**0.6)
    )


def test_only_rows_in_use_are_drawn_and_many_buffers_at_once_are_single_ones():
    states = [_add(empty_priorities(CAPACITY), n)[1] for n in (3, 5)]
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(lambda key, state: sample_transitions(key, state, 50)))(
        keys, jax.tree.map(lambda *x: jnp.stack(x), *states)
    )
    single = jax.jit(lambda key, state: sample_transitions(key, state, 50))
    for i, n in enumerate((3, 5)):
        alone = single(keys[i], states[i])
        np.testing.assert_array_equal(together.rows[i], alone.rows)
        np.testing.assert_allclose(alone.weights, 1)
        assert set(np.asarray(alone.rows).tolist()) == set(range(n))


def test_a_buffer_of_one_row_works():
    _, state = add_transitions(empty_priorities(1), 1)
    assert sample_transitions(jax.random.key(0), state, 2).rows.tolist() == [0, 0]


STATE = empty_priorities(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: empty_priorities(0), "capacity is 0"),
        (lambda: empty_priorities(6), "capacity is 6; it must be a power of two"),
        (lambda: add_transitions(STATE, 5), "n is 5; it must lie between 1 and the capacity, 4"),
        (lambda: add_transitions(STATE, 0), "n is 0"),
        (lambda: update_priorities(STATE, jnp.array([0]), jnp.ones(1), alpha=-1), "alpha is -1"),
        (lambda: update_priorities(STATE, jnp.array([0]), jnp.ones(1), epsilon=0), "epsilon is 0"),
        (lambda: sample_transitions(jax.random.key(0), STATE, 0), "n is 0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
