"""Work that is seldom due, also when many seeds run side by side."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def seldom(predicate: Bool[Array, ""], function: Callable[[Any], Any], state: Any) -> Any:
    """`function(state)` where the predicate holds, else `state`.

    A `cond` whose predicate differs between seeds becomes a `select` under `vmap`: the work would be done every time.
    This is a loop of at most one turn, which under `vmap` is entered only when it is due for at least one seed.

    Args:
      predicate: whether the work is due.
      function: state -> state of the same shapes and types.
      state: a pytree.
    """

    def turn(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        return jnp.zeros_like(carry[0]), function(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], turn, (jnp.asarray(predicate), state))[1]
