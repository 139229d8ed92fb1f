"""Grids from words: all combinations in order, and errors that name the option."""

import descent
import pytest

from jaxlab.errors import InputError
from jaxlab.recipes import qaoa
from jaxlab.sweeps import parse_grid


def test_all_combinations_with_the_last_option_fastest():
    grid = parse_grid(descent.Config(steps=7), ["rate=0.1,0.2", "dimension=2,3"])
    found = [(config.rate, config.dimension, config.steps) for config in grid.configs]
    assert found == [(0.1, 2, 7), (0.1, 3, 7), (0.2, 2, 7), (0.2, 3, 7)]
    assert grid.point(2) == {"rate": 0.2, "dimension": 2}


def test_an_empty_grid_is_the_config_alone():
    grid = parse_grid(descent.Config(), [])
    assert grid.configs == (descent.Config(),) and grid.point(0) == {}


def test_values_get_the_types_of_their_options():
    grid = parse_grid(qaoa.Config(), ["graph=petersen", "p=2", "rate=1e-2", "precision=32"])
    assert grid.values == {"graph": ("petersen",), "p": (2,), "rate": (0.01,), "precision": (32,)}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rte=0.1"], "unknown option 'rte' in the grid: did you mean rate"),
        (["rate"], "it must be NAME=VALUE,VALUE"),
        (["rate="], "names rate without a value"),
        (["rate=0.1,0.1"], "lists a value of rate twice"),
        (["rate=0.1", "rate=0.2"], "names rate twice"),
        (["rate=fast"], "gives rate the value 'fast'; it must be a number"),
        (["steps=1.5"], "gives steps the value '1.5'; it must be a whole number"),
        (["rate=2"], "rate is 2.0, but must lie between 0 and 1"),
        (["seed=1,2"], "--seeds N"),
    ],
)
def test_a_grid_that_cannot_be_used_is_an_input_error(texts, message):
    with pytest.raises(InputError, match=message):
        parse_grid(descent.Config(), texts)
