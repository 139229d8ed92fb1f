"""What is installed here: versions, optional packages, devices, the cache directory."""

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from typing import Any

from jaxlab.errors import ResourceError
from jaxlab.files import cache_dir

_PACKAGES = ("jaxlab", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "torch")
_USER_EXTRAS = ("models", "data", "quantum", "persistence", "sweeps", "environments", "endpoints", "evidence")


def environment() -> dict[str, Any]:
    """Versions and devices, as benchmarks and `jaxlab info` record them; starts the jax backend."""
    import jax

    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: version for name in _PACKAGES if (version := version_of(name)) is not None},
        "backend": jax.default_backend(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "extras": {extra: missing(extra) for extra in _USER_EXTRAS},
        "cache": str(cache_dir()),
    }


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, None if it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(extra: str) -> list[str]:
    """Distributions that the extra of that name asks for and that are not installed."""
    try:
        requirements = importlib.metadata.requires("jaxlab") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [
        re.fullmatch(rf"([\w.-]+).*extra == ['\"]{re.escape(extra)}['\"].*", line) for line in requirements
    ]
    return [match[1] for match in found if match and version_of(match[1]) is None]


def require(extras: Iterable[str], *, purpose: str) -> None:
    """Checks that the extras are installed.

    Args:
      extras: names from pyproject.toml.
      purpose: what needs them, for the message.

    Raises:
      ResourceError: packages are missing; the message says how to install them.
    """
    absent = {extra: names for extra in extras if (names := missing(extra))}
    if absent:
        packages = ", ".join(name for group in absent.values() for name in group)
        raise ResourceError(f"{purpose} needs {packages}: pip install 'jaxlab[{','.join(absent)}]'")
