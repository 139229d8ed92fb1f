"""Packages whose names are resolved on first use, so that importing them costs next to nothing."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package.

    Args:
      package: its `__name__`.
      exports: module (a name inside the package, or a full name with dots) to the names taken from it.
    """
    module_of = {
        name: module if "." in module else f"{package}.{module}"
        for module, names in exports.items()
        for name in names
    }
    everything = sorted(module_of)

    def resolve(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module_of[name]), name)

    return everything, resolve, lambda: everything
