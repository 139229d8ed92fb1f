"""Drawn tasks that wait for their episode, told apart by their coordinates."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.teachers.spaces import TaskSpace

_ROUNDING = 1e-6


def oldest_waiting(
    space: TaskSpace,
    waiting: Float[Array, "pending dim"],
    ticket: Int[Array, " pending"],
    task: Float[Array, " dim"],
) -> tuple[Bool[Array, ""], Int[Array, ""]]:
    """Whether a task waits, and the row of its oldest copy.

    Equal means up to a rounding error: a compiler may compute what is kept and what is played in different ways.

    Args:
      space: of the tasks.
      waiting: tasks.
      ticket: order in which they were drawn, from 1; 0 marks a free row.
      task: to be found.
    """
    rounding = _ROUNDING * jnp.maximum(jnp.abs(space.low), jnp.abs(space.high))
    same = (ticket > 0) & jnp.all(jnp.abs(waiting - task) <= rounding, axis=1)
    return jnp.any(same), jnp.argmin(jnp.where(same, ticket, jnp.iinfo(ticket.dtype).max))
