"""The global threshold against brute force over every candidate, in NumPy with Python integers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.pruning.threshold import (
    _limbs,
    _total,
    element_threshold,
    group_threshold,
    structured_threshold,
    unit_threshold,
)

EXAMPLE_ROWS = jnp.array([[6.538875, 1.578870, 0.484496]])
EXAMPLE_COLUMNS = jnp.array([[1.138261, 7.092614, 0.711820, 1.761999]])
SHAPES = {"a": (2, 5), "b": (6, 3), "c": (1, 1)}
PROBLEM = {"seed": st.integers(0, 9999), "ties": st.booleans(), "sparsity": st.floats(0, 1)}


def drawn_costs(rng, shape, ties):
    """Costs over several orders of magnitude, some of them zero; or few different ones."""
    if ties:
        return rng.integers(0, 5, shape).astype(np.float32)
    return (np.exp(4 * rng.standard_normal(shape)) * (rng.random(shape) < 0.9)).astype(np.float32)


def brute_force(costs, removed, budget):
    """The largest cost at which no more than the budget is removed; 0 where even zero costs exceed it."""
    candidates = np.unique(np.concatenate([np.ravel(c) for c in costs]))
    return max((c for c in candidates if removed(c) <= budget), default=0)


@given(**PROBLEM)
def test_elements_equal_brute_force(seed, ties, sparsity):
    rng = np.random.default_rng(seed)
    costs = {name: drawn_costs(rng, (2, *shape), ties) for name, shape in SHAPES.items()}
    total = sum(c.size for c in costs.values())
    expected = brute_force(
        costs.values(), lambda t: sum((c <= t).sum() for c in costs.values()), int(sparsity * total)
    )
    assert element_threshold(costs, sparsity) == expected


@given(seed=st.integers(0, 999), sparsity=st.floats(0, 1))
def test_elements_without_ties_hit_the_target_exactly(seed, sparsity):
    costs = np.random.default_rng(seed).permutation(24).reshape(2, 3, 4) + 1.0
    threshold = element_threshold({"a": jnp.asarray(costs)}, sparsity)
    assert (costs <= threshold).sum() == int(sparsity * 24)


@given(**PROBLEM, n=st.integers(1, 4))
def test_groups_equal_brute_force(seed, ties, sparsity, n):
    rng = np.random.default_rng(seed)
    costs = {name: drawn_costs(rng, (2, *shape), ties) for name, shape in SHAPES.items()}
    sparsity *= n / 4
    weights = 4 * sum(c.size for c in costs.values())
    expected = brute_force(
        costs.values(), lambda t: n * sum((c <= t).sum() for c in costs.values()), int(sparsity * weights)
    )
    assert group_threshold(costs, sparsity, n=n, m=4) == expected


def test_two_of_four_at_one_half_converts_every_group():
    costs = {"a": jnp.arange(12.0).reshape(1, 3, 4) + 1}
    assert group_threshold(costs, 0.5, n=2, m=4) == 12
    with pytest.raises(InputError, match="sparsity is 0.6; 2:4 pruning reaches from 0 to 0.5"):
        group_threshold(costs, 0.6, n=2, m=4)


@given(**PROBLEM, kinds=st.sampled_from(["both", "rows", "columns"]))
def test_rows_and_columns_equal_brute_force(seed, ties, sparsity, kinds):
    rng = np.random.default_rng(seed)
    shapes = SHAPES
    rows = {name: drawn_costs(rng, (2, r), ties) for name, (r, _) in shapes.items()}
    columns = {name: drawn_costs(rng, (2, c), ties) for name, (_, c) in shapes.items()}

    def removed(t):
        count = 0
        for name, shape in shapes.items():
            for layer in range(2):
                mask = np.zeros(shape, bool)
                if kinds != "columns":
                    mask |= (rows[name][layer] <= t)[:, None]
                if kinds != "rows":
                    mask |= columns[name][layer] <= t
                count += mask.sum()
        return count

    used = (rows if kinds != "columns" else None, columns if kinds != "rows" else None)
    total = 2 * sum(r * c for r, c in shapes.values())
    candidates = [c for costs in used if costs is not None for c in costs.values()]
    expected = brute_force(candidates, removed, int(sparsity * total))
    assert structured_threshold(*used, shapes, sparsity) == expected


@given(seed=st.integers(0, 9999), ties=st.booleans(), target=st.integers(0, 200))
def test_units_equal_brute_force(seed, ties, target):
    rng = np.random.default_rng(seed)
    sizes = {"a": 3, "b": 7}
    costs = {"a": drawn_costs(rng, (2, 8), ties), "b": drawn_costs(rng, (2, 5), ties)}
    expected = brute_force(
        costs.values(), lambda t: sum(sizes[n] * (costs[n] <= t).sum() for n in "ab"), target
    )
    assert unit_threshold(costs, sizes, target) == expected


def test_example_of_the_specification():
    threshold = functools.partial(
        structured_threshold, {"w": EXAMPLE_ROWS}, {"w": EXAMPLE_COLUMNS}, {"w": (3, 4)}
    )
    np.testing.assert_allclose(threshold(0.5), 0.711820, atol=5e-7)
    events = np.sort(np.concatenate([EXAMPLE_ROWS[0], EXAMPLE_COLUMNS[0]]))
    for count, removed in enumerate((4, 6, 8, 10, 11, 12, 12)):
        assert threshold(removed / 12) == (events[count] if removed < 12 else events[-1])
        assert threshold((removed - 0.5) / 12) == (events[count - 1] if count else 0) or removed == 12


def test_what_was_pruned_earlier_stays_pruned_even_beyond_the_target():
    costs = {"a": jnp.array([[[0.0, 0, 0, 1], [-0.0, 2, 3, 4]]])}
    assert element_threshold(costs, 0.1) == 0
    assert (costs["a"] <= element_threshold(costs, 0.1)).sum() == 4
    assert element_threshold(costs, 1.0) == 4
    assert element_threshold(costs, 0.0) == 0


def test_infinite_costs_are_never_pruned():
    costs = {"a": jnp.array([[[1.0, jnp.inf]]])}
    assert element_threshold(costs, 1.0) == 1


def test_jit_eager_and_float64_agree():
    costs = {"a": jnp.exp(jax.random.normal(jax.random.key(0), (3, 4, 5)))}
    eager = element_threshold(costs, 0.3)
    assert jax.jit(lambda c: element_threshold(c, 0.3))(costs) == eager
    with jax.enable_x64(True):
        double = element_threshold({"a": jnp.asarray(costs["a"], jnp.float64)}, 0.3)
        assert double.dtype == jnp.float64
    assert float(double) == float(eager)


def test_counts_beyond_two_to_the_31_are_exact():
    counts = np.full(300, 2**31 - 1, np.int32)
    high, low = _total([jnp.asarray(counts), jnp.asarray([5], jnp.int32)])
    assert (int(high), int(low)) == tuple(_limbs(300 * (2**31 - 1) + 5))


def test_arguments_that_do_not_fit_are_refused():
    costs = {"a": jnp.ones((1, 3, 4))}
    for sparsity in (-0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="sparsity is"):
            element_threshold(costs, sparsity)
    with pytest.raises(InputError, match="costs is empty"):
        element_threshold({}, 0.5)
    with pytest.raises(InputError, match="both None"):
        structured_threshold(None, None, {"a": (3, 4)}, 0.5)
    with pytest.raises(InputError, match="names must agree"):
        structured_threshold({"b": jnp.ones((1, 3))}, None, {"a": (3, 4)}, 0.5)
    with pytest.raises(InputError, match=r"row_costs\['a'\] has shape \(1, 4\)"):
        structured_threshold({"a": jnp.ones((1, 4))}, None, {"a": (3, 4)}, 0.5)
    with pytest.raises(InputError, match="names must agree"):
        unit_threshold({"a": jnp.ones((1, 4))}, {"b": 3}, 5)
    with pytest.raises(InputError, match=r"sizes\['a'\] is 0"):
        unit_threshold({"a": jnp.ones((1, 4))}, {"a": 0}, 5)
    with pytest.raises(InputError, match="target is -1"):
        unit_threshold({"a": jnp.ones((1, 4))}, {"a": 3}, -1)
