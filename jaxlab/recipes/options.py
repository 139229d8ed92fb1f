"""Checks that the options of all recipes share."""

from typing import Any

from jaxlab.errors import InputError


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
