"""Every system can be found, and every recipe keeps the contract that the command line relies on."""

import dataclasses
import inspect
import re

import pytest

from jaxlab import recipes
from jaxlab.errors import InputError

PRESENT = [system.name for system in recipes.SYSTEMS.values() if system.module]


def test_all_systems_of_the_design_are_listed():
    packages = {system.package for system in recipes.SYSTEMS.values()}
    assert packages == {
        "pruning", "quantization", "teachers", "persistence", "quantum", "evidence", "selfsupervised",
        "phylogeny", "culture", "agents", "synthesis", "motion", "models",
    }  # fmt: skip
    assert len(recipes.SYSTEMS) >= 20
    for name, system in recipes.SYSTEMS.items():
        assert name == system.name and re.fullmatch(r"[a-z0-9-]+", name)
        assert re.fullmatch(r"\d{4}\.\d{5}", system.arxiv) and system.title


def test_unknown_system_suggests_a_close_one():
    with pytest.raises(InputError, match="did you mean sac-glam or glam|did you mean glam"):
        recipes.find("glamm")
    with pytest.raises(InputError, match="`jaxlab list`"):
        recipes.find("zzzz")


def test_system_without_recipe_says_so():
    with pytest.raises(InputError, match="transflower is not there yet.*pvq"):
        recipes.load("transflower")


@pytest.mark.parametrize("name", PRESENT)
def test_recipe_keeps_the_contract(name):
    recipe = recipes.load(name)
    assert recipe.__doc__
    assert dataclasses.is_dataclass(recipe.Config) and recipe.Config.__dataclass_params__.frozen
    assert {"smoke", "cpu"} <= set(recipe.PRESETS)
    assert all(type(preset) is recipe.Config for preset in recipe.PRESETS.values())
    assert "seed" in {field.name for field in dataclasses.fields(recipe.Config)}
    parameters = inspect.signature(recipe.run).parameters
    assert list(parameters)[0] == "config"
    assert all(
        parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("out", "resume", "progress")
    )


@pytest.mark.parametrize("name", PRESENT)
def test_every_option_of_a_recipe_is_explained(name):
    recipe = recipes.load(name)
    source = inspect.getsource(recipe.Config)
    for field in dataclasses.fields(recipe.Config):
        explained = (
            rf'^    {field.name}: .*(?:\n        .*)*\n(?:    \)\n)?    """\S'
            + "|"
            + rf"^\s+{field.name}: [A-Z]"
        )
        assert re.search(explained, source, re.MULTILINE), f"{name}: --{field.name} has no docstring"
