"""jaxlab: research systems as pure functions over JAX arrays.

Subpackages load on first use (`import jaxlab; jaxlab.models.load(...)`), so that importing the library costs
little more than importing jax and pulls in no optional dependency.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = (
    "data",
    "errors",
    "files",
    "kernels",
    "models",
    "parallel",
    "persistence",
    "pruning",
    "quantization",
    "quantum",
    "recipes",
    "runs",
)

__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"jaxlab.{name}")
    raise AttributeError(f"module 'jaxlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
