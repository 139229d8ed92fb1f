"""Gates that mix an amplitude with one other: excitations, Pauli rotations, gates with many controls.

Where the bits of j under `where` are `value`, or `value` XOR `flip`, psi[j] becomes (a + a' s) psi[j] + (b + b' s)
psi[j XOR flip], s = (-1)^parity(j AND signs); elsewhere it stays. The masks are data, so that a sequence of such gates
is one loop. States are complex [2^n]; batches by `vmap`.
"""

import jax
import jax.numpy as jnp

from jaxlab.kernels.statevector.monomials import parity


def apply_pairs(psi: jax.Array, masks: jax.Array, coefficients: jax.Array) -> jax.Array:
    """A sequence of gates, first to last.

    Args:
      psi: [2^n].
      masks: int32 [gates, 4]: flip, signs, where, value.
      coefficients: complex [gates, 4]: a, a', b, b'.
    """

    def step(psi: jax.Array, gate: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return _one(psi, *gate), None

    return jax.lax.scan(step, psi, (masks, coefficients.astype(psi.dtype)))[0]


def unapply_pairs(
    after: jax.Array, psi: jax.Array, masks: jax.Array, coefficients: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes unitary `apply_pairs` back, and finds its gradient.

    Args:
      after: conjugate cotangent of the result, [2^n].
      psi: the result, [2^n].
      masks: as for `apply_pairs`.
      coefficients: as for `apply_pairs`.

    Returns:
      Conjugate cotangent of the input, the input, cotangents of the coefficients [gates, 4].
    """

    def step(
        pair: tuple[jax.Array, jax.Array], gate: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        masks, c = gate
        after, psi = pair
        back = inverse_coefficients(masks, c)
        before = _one(psi, masks, back)
        partner, sign, chosen = _partners(before, masks)
        ct = jnp.where(chosen, after.conj(), 0)
        gradient = jnp.stack(
            [jnp.dot(left, right) for right in (before, partner) for left in (ct, ct * sign)]
        )
        return (_one(after, masks, back), before), gradient

    rows = (masks, coefficients.astype(psi.dtype))
    (after, psi), gradient = jax.lax.scan(step, (after, psi), rows, reverse=True)
    return after, psi, gradient


def inverse_coefficients(masks: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Coefficients [..., 4] of the inverse of a unitary gate with these masks [..., 4]."""
    sign = 1 - 2 * parity(masks[..., 0] & masks[..., 1])
    ones = jnp.ones_like(sign)
    return coefficients.conj() * jnp.stack([ones, ones, ones, sign], axis=-1).astype(coefficients.real.dtype)


def _partners(psi: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """psi[j XOR flip], the sign, and whether the gate acts, for all j."""
    flip, signs, where, value = masks
    index = jax.lax.iota(jnp.int32, psi.shape[0])
    partner = psi.at[index ^ flip].get(mode="promise_in_bounds")
    sign = (1 - 2 * parity(index & signs)).astype(psi.real.dtype)
    chosen = ((index ^ value) & where == 0) | ((index ^ value ^ flip) & where == 0)
    return partner, sign, chosen


def _one(psi: jax.Array, masks: jax.Array, c: jax.Array) -> jax.Array:
    partner, sign, chosen = _partners(psi, masks)
    return jnp.where(chosen, (c[0] + c[1] * sign) * psi + (c[2] + c[3] * sign) * partner, psi)
