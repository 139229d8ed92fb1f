"""Grids and ranks against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.persistence import Grid, distinct_lines, line_ranks, make_grid, sort_lines
from jaxlab.persistence.grids import require_grid

numbers = st.lists(st.integers(-20, 20), min_size=12, max_size=12)  # one length: each is compiled anew


@settings(max_examples=25)
@given(numbers)
def test_ranks_are_the_first_line_at_or_above(values):
    values = np.array(values, np.float32) / 4
    lines = np.unique(values)[::2]
    expected = [next((i for i, line in enumerate(lines) if line >= v), len(lines)) for v in values]
    assert line_ranks(jnp.asarray(values), jnp.asarray(lines)).tolist() == expected


def test_infinite_grade_is_never_also_where_lines_are_padded_with_infinity():
    lines = jnp.array([0.0, 1.0, jnp.inf, jnp.inf])
    assert line_ranks(jnp.array([0.5, 1.0, 3.0, jnp.inf]), lines).tolist() == [1, 1, 2, 4]


@settings(max_examples=25)
@given(numbers)
def test_exact_grid_has_every_value_and_distinct_lines_each_once(values):
    values = np.array(values, np.float32)
    grid = make_grid(jnp.asarray(values)[:, None])
    assert np.array_equal(grid.coords[0], np.sort(values))
    assert np.array_equal(distinct_lines(grid).coords[0], np.unique(values))


def test_infinite_values_repeat_the_last_finite_line():
    values = jnp.array([jnp.inf, 2.0, jnp.inf, 1.0])
    lines, owner = sort_lines(values)
    assert lines.tolist() == [1, 2, 2, 2] and owner.tolist() == [3, 1, 1, 1]
    assert make_grid(values[:, None], strategy="quantile", resolution=3).coords[0].tolist() == [1, 1, 2]


@settings(max_examples=25)
@given(numbers.filter(lambda v: len(set(v)) > 1), st.sampled_from([2, 5, 14]))
def test_coarse_grids_follow_their_rules(values, resolution):
    values = np.array(values, np.float32)
    even = np.linspace(values.min(), values.max(), resolution, dtype=np.float32)
    distinct = np.unique(values)

    def lines(strategy):
        return np.asarray(
            make_grid(jnp.asarray(values)[:, None], strategy=strategy, resolution=resolution).coords[0]
        )

    np.testing.assert_allclose(lines("regular"), even, rtol=1e-6, atol=1e-5)
    nearest = np.abs(distinct - even[:, None]).min(1)
    np.testing.assert_allclose(np.abs(lines("regular_closest") - even), nearest, atol=1e-4)
    assert set(lines("regular_closest")) <= set(distinct) and set(lines("regular_left")) <= set(distinct)
    for line, target in zip(lines("regular_left"), even, strict=True):
        assert line <= target + 1e-5 and not ((distinct > line) & (distinct < target - 1e-5)).any()
    position = np.searchsorted(distinct, lines("quantile"))
    assert (np.abs(position - np.linspace(0, len(distinct) - 1, resolution)) <= 0.51).all()
    for strategy in ("regular", "regular_closest", "regular_left", "quantile"):
        assert lines(strategy)[0] == values.min() and lines(strategy)[-1] == values.max()


def test_gradient_of_a_line_reaches_its_value():
    values = jnp.array([3.0, 1.0, 2.0, 1.0])
    weights = jnp.array([1.0, 10.0, 100.0, 1000.0])
    first = jax.grad(lambda v: sort_lines(v)[0] @ weights)(values)
    mean = jax.grad(lambda v: sort_lines(v, ties="mean")[0] @ weights)(values)
    assert first.tolist() == [1000, 1, 100, 10] and mean.tolist() == [1000, 5.5, 100, 5.5]
    assert sort_lines(values, ties="mean")[0].tolist() == [1, 1, 2, 3]
    closest = jax.grad(
        lambda v: make_grid(v[:, None], strategy="regular_closest", resolution=2).coords[0].sum()
    )
    assert closest(values).tolist() == [1, 1, 0, 0]
    regular = jax.grad(lambda v: make_grid(v[:, None], strategy="regular", resolution=3).coords[0].sum())
    assert not regular(values).any()


def test_grids_are_the_same_under_jit_and_vmap():
    values = jnp.asarray(np.random.default_rng(0).integers(0, 9, (3, 20, 2)), jnp.float32)
    for strategy, resolution in (("exact", None), ("quantile", 5), ("regular_closest", (4, 6))):
        both = jax.vmap(lambda v, s=strategy, r=resolution: make_grid(v, strategy=s, resolution=r))(values)
        for i, own in enumerate(values):
            alone = jax.jit(lambda v, s=strategy, r=resolution: make_grid(v, strategy=s, resolution=r))(own)
            for a, b in zip(both.coords, alone.coords, strict=True):
                assert np.array_equal(a[i], b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": jnp.zeros((4, 2)), "resolution": 3}, "resolution is 3, but an exact grid"),
        ({"values": jnp.zeros((4, 2)), "strategy": "quantile"}, "resolution is missing"),
        ({"values": jnp.zeros((4, 2)), "strategy": "regular", "resolution": 1}, "of at least 2 each"),
        ({"values": jnp.zeros((4, 2)), "strategy": "fine"}, "strategy is 'fine'; it must be one of exact"),
        ({"values": jnp.zeros((0, 2))}, r"parameter 0 have shape \(0,\)"),
        ({"values": jnp.array([[0.0], [jnp.nan]])}, r"values of parameter 0\[1\] is nan"),
        ({"values": jnp.full((2, 1), jnp.inf)}, "all infinite"),
        ({"values": jnp.zeros((2, 1), jnp.int32)}, "floating point"),
    ],
)
def test_bad_values_and_resolutions_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        make_grid(**arguments)


def test_bad_grids_are_named():
    with pytest.raises(InputError, match=r"grid.coords\[0\] decreases from 1.0 to 0.0 at 1"):
        require_grid(Grid((jnp.array([1.0, 0.0]),)), 1)
    with pytest.raises(InputError, match="grid has 1 parameters, but the filtration has 2"):
        require_grid(Grid((jnp.array([1.0]),)), 2)
    with pytest.raises(InputError, match="grid is traced"):
        jax.jit(lambda lines: distinct_lines(Grid((lines,))))(jnp.zeros(2))
