"""Grids of options: `random_task_ratio=0.1,0.2` as values of a recipe's `Config`, checked before anything runs."""

import dataclasses
import difflib
import itertools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxlab.errors import InputError


class Grid(NamedTuple):
    """All combinations of some options' values, the last option fastest."""

    values: Mapping[str, tuple[Any, ...]]
    configs: tuple[Any, ...]
    """The `Config` of every combination."""

    @property
    def names(self) -> tuple[str, ...]:
        """The options."""
        return tuple(self.values)

    def point(self, index: int) -> dict[str, Any]:
        """The options' values of one combination."""
        return {name: getattr(self.configs[index], name) for name in self.values}


def parse_grid(config: Any, texts: Sequence[str] | Mapping[str, Sequence[Any]]) -> Grid:
    """All combinations of the options named, around one `Config`.

    Args:
      config: gives all other options.
      texts: `NAME=VALUE,VALUE,...` each; or name to values.

    Raises:
      InputError: an unknown option, a value of another type or out of range, a value twice, or no value.
    """
    if isinstance(texts, Mapping):
        values = {_known(config, name): tuple(own) for name, own in texts.items()}
    else:
        values = {}
        for text in texts:
            name, sign, listed = text.partition("=")
            if not sign:
                raise InputError(
                    f"grid is {text!r}; it must be NAME=VALUE,VALUE, for instance seed_ratio=0.1,0.2"
                )
            name = _known(config, name)
            if name in values:
                raise InputError(f"grid names {name} twice; list all of its values once: {name}=VALUE,VALUE")
            values[name] = tuple(_parsed(config, name, word) for word in listed.split(",") if word)
    for name, own in values.items():
        if not own:
            raise InputError(f"grid names {name} without a value")
        if len(set(own)) != len(own):
            raise InputError(f"grid lists a value of {name} twice: {', '.join(map(str, own))}")
    configs = [
        dataclasses.replace(config, **dict(zip(values, combination, strict=True)))
        for combination in itertools.product(*values.values())
    ]
    return Grid(values, tuple(configs))


def _known(config: Any, name: str) -> str:
    name = name.strip().lstrip("-").replace("-", "_")
    names = [field.name for field in dataclasses.fields(config) if field.name != "seed"]
    if name == "seed":
        raise InputError("the seed is no option of a grid: --seeds N runs the seeds from --seed on")
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"options are {', '.join(names)}"
        raise InputError(f"unknown option {name!r} in the grid: {hint}")
    return name


def _parsed(config: Any, name: str, word: str) -> Any:
    kind = typing.get_type_hints(type(config))[name]
    choices = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    word = word.strip()
    for choice in choices:
        found = _as_type(choice, word)
        if found is not _NOT:
            return found
    raise InputError(f"grid gives {name} the value {word!r}; it must be {_said(choices)}")


_NOT = object()
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _as_type(kind: Any, word: str) -> Any:
    if typing.get_origin(kind) is Literal:
        return next((value for value in typing.get_args(kind) if str(value) == word), _NOT)
    if kind is type(None):
        return None if word.lower() == "none" else _NOT
    if kind is bool:
        return _WORDS.get(word.lower(), _NOT)
    if kind in (int, float, str):
        try:
            return kind(word)
        except ValueError:
            return _NOT
    return _NOT


def _said(choices: Sequence[Any]) -> str:
    parts = []
    for kind in choices:
        if typing.get_origin(kind) is Literal:
            parts += [str(value) for value in typing.get_args(kind)]
        elif kind in (int, float, str, bool, type(None)):
            parts.append(
                {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}.get(
                    kind, "none"
                )
            )
        else:
            parts.append(f"a {kind}, which a grid on the command line cannot hold (use jaxlab.sweeps.sweep)")
    return " or ".join(parts)
