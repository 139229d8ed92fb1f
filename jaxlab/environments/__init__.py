"""Environments as pure functions over pytrees. Names are resolved on first use."""

from jaxlab.lazy import lazy_names

_EXPORTS = {
    "hypercube": ("HypercubeConfig", "HypercubeState", "HypercubeWorld", "hypercube_world"),
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
