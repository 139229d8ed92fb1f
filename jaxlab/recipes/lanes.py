"""Many trainings of one network in one program: each lane has its own weights, data and optimizer state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx


class LaneState(NamedTuple):
    """Weights and the state of their optimizer."""

    params: Any
    optimizer: Any


def draw(
    create: Callable[[jax.Array], nnx.Module], optimizer: optax.GradientTransformation, keys: jax.Array
) -> LaneState:
    """The states before the first step, one for each key, along a leading axis."""

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> LaneState:
        params = nnx.state(create(key))
        return LaneState(params, optimizer.init(params))

    return one(keys)


def descend(optimizer: optax.GradientTransformation, state: LaneState, gradient: Any) -> LaneState:
    """One step."""
    updates, inner = optimizer.update(gradient, state.optimizer)
    return LaneState(optax.apply_updates(state.params, updates), inner)


def over_lanes(function: Callable[..., Any], *lanes: Any) -> Any:
    """The function of every lane: of all at once on accelerators; one after the other on a CPU, where it fits a cache.

    Args:
      function: of one lane's trees.
      lanes: trees with a leading axis of lanes.
    """
    at_once = 1 if jax.default_backend() == "cpu" else len(jax.tree.leaves(lanes)[0])
    return jax.lax.map(lambda own: function(*own), lanes, batch_size=at_once)
