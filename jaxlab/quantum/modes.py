"""What the Gaussian and the Fock backend share: hbar, quadratures and polynomials in them, checks of arguments.

Conventions are PennyLane's: hbar = 2, so that the vacuum's quadratures have variance 1, and [x, p] = i hbar with
x = sqrt(hbar / 2) (a + a^dagger).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError

HBAR = 2.0

Real = Float[Array, "..."] | float
"""A parameter; of Fock gates a scalar."""


def require_positive(name: str, count: int) -> None:
    """Raises InputError unless a number of modes, photons or shots is at least 1."""
    if count < 1:
        raise InputError(f"{name} is {count}; it must be at least 1")


def chosen_wires(wires: int | Sequence[int] | None, modes: int, count: int | None = None) -> tuple[int, ...]:
    """Wires as a tuple; all of them in order if None.

    Raises:
      InputError: a wire is out of range or stands twice, or there are not `count` of them.
    """
    if wires is None:
        wires = range(modes)
    chosen = (int(wires),) if isinstance(wires, int | np.integer) else tuple(int(wire) for wire in wires)
    if not all(0 <= wire < modes for wire in chosen):
        raise InputError(f"wires is {chosen}; they lie between 0 and {modes - 1}")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"wires is {chosen}; none may stand twice")
    if not chosen or (count is not None and len(chosen) != count):
        raise InputError(f"wires is {chosen}; {count or 'at least 1'} must be given")
    return chosen


def parameter(name: str, value: Any) -> Array:
    """A gate's real parameter, as an array of floating point numbers.

    Raises:
      InputError: it is complex.
    """
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"{name} has dtype {array.dtype}; it must be real (give modulus and phase apart)")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def direction(phi: Real) -> Float[Array, "... 2"]:
    """The quadrature x cos(phi) + p sin(phi) as coefficients of x and p.

    Raises:
      InputError: phi is complex.
    """
    phi = parameter("phi", phi)
    return jnp.stack([jnp.cos(phi), jnp.sin(phi)], axis=-1)


def concrete(value: Any) -> np.ndarray | None:
    """The numbers of an array, or None while it is traced."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def polynomial(
    coefficients: Array, wires: int, dtype: Any
) -> tuple[Float[Array, ""], Float[Array, " 2k"], Float[Array, "2k 2k"]]:
    """Constant, linear and symmetric quadratic coefficients of a polynomial in the quadratures of k wires.

    Args:
      coefficients: [1 + 2k] or [1 + 2k, 1 + 2k], in the order (1, x_1..x_k, p_1..p_k).
      wires: k.
      dtype: of the result.

    Raises:
      InputError: another shape.
    """
    values = jnp.asarray(coefficients, dtype)
    size = 1 + 2 * wires
    if values.shape == (size,):
        return values[0], values[1:], jnp.zeros((size - 1, size - 1), dtype)
    if values.shape != (size, size):
        raise InputError(
            f"coefficients have shape {values.shape}; on {wires} wires it must be ({size},) or ({size}, {size})"
        )
    values = (values + values.T) / 2
    return values[0, 0], 2 * values[0, 1:], values[1:, 1:]
