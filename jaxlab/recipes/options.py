"""Checks that the options of all recipes share."""

import importlib
from typing import Any

from jaxlab.errors import InputError, ResourceError


def require_at_least(config: Any, **least: float) -> None:
    """Raises InputError unless each named option is at least so large: `require_at_least(config, steps=1)`."""
    for name, smallest in least.items():
        if not getattr(config, name) >= smallest:
            raise InputError(f"{name} is {getattr(config, name)}; it must be at least {smallest}")


def require_positive(config: Any, *names: str) -> None:
    """Raises InputError unless each named option is > 0."""
    for name in names:
        if not getattr(config, name) > 0:
            raise InputError(f"{name} is {getattr(config, name)}; it must be > 0")


def optional_module(name: str, *, extra: str) -> Any:
    """A module of a package that only some recipes need.

    Raises:
      ResourceError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ResourceError(f"{name} is needed: pip install 'jaxlab[{extra}]' ({error})") from error
