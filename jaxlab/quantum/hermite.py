"""Taylor coefficients of c exp(b z + z A z / 2) in many variables: the photon-number amplitudes of all things Gaussian.

States, density matrices and gates all have such a generating function. The usual recurrence raises one index at a time;
its rounding errors grow exponentially with the cutoff (a displacement by 3 at cutoff 60 is off by 0.03 in double
precision). Here the recurrences of all indices are averaged with the weights n_i / |n|: a step from |n| - 1 and |n| - 2
to |n| photons that does not lengthen errors, since raising operators of |n| photons have a norm of about sqrt(|n|).
Reference: Miatto and Quesada, arXiv:2004.11002, for the generating functions and the single recurrences.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact


def hermite_tensor(
    A: Inexact[Array, "K K"], b: Inexact[Array, " K"], c: Inexact[Array, ""], shape: Sequence[int]
) -> Inexact[Array, "..."]:
    """G with sum over n of G[n] z^n / sqrt(n!) = c exp(b z + z A z / 2), for all n inside `shape`.

    A shell of equal |n| is kept as a tensor over all indices but the last, so that one scan over |n| does it all, in
    2 K shifts of a shell a step.

    Args:
      A: symmetric, real or complex.
      b: real or complex.
      c: the coefficient at n = 0.
      shape: K lengths >= 1, static.
    """
    shape = tuple(shape)
    K = len(shape)
    dtype = jnp.result_type(A, b, c)
    real = jnp.finfo(dtype).dtype
    A, b = A.astype(dtype), b.astype(dtype)
    inner = shape[:-1]
    counts = [np.arange(n).reshape([-1 if i == j else 1 for j in range(K - 1)]) for i, n in enumerate(inner)]
    others = jnp.asarray(sum(counts, np.zeros(inner, int)))
    roots = [jnp.asarray(np.sqrt(count), real) for count in counts]

    def raised(shell: Array, axis: int, total: Array) -> Array:
        """sqrt(n_axis) G[n - e_axis] at all n with |n| = total, from the shell of total - 1."""
        if axis == K - 1:
            return jnp.sqrt(jnp.maximum(total - others, 0).astype(real)) * shell
        pad = [(1, 0, 0) if i == axis else (0, 0, 0) for i in range(K - 1)]
        shifted = jax.lax.pad(shell, jnp.zeros((), dtype), pad)
        return roots[axis] * jax.lax.slice_in_dim(shifted, 0, shape[axis], axis=axis)

    def step(shells: tuple[Array, Array], total: Array) -> tuple[tuple[Array, Array], Array]:
        older, old = shells
        before = jnp.stack([raised(older, axis, total - 1) for axis in range(K)])
        lower = b.reshape(K, *(1,) * (K - 1)) * old + jnp.tensordot(A, before, 1, precision="highest")
        new = sum(raised(lower[axis], axis, total) for axis in range(K)) / total.astype(real)
        last = total - others
        new = jnp.where((last >= 0) & (last < shape[-1]), new, 0)
        return (old, new), new

    first = jnp.zeros(inner, dtype).at[(0,) * (K - 1)].set(c)
    totals = jnp.arange(1, sum(shape) - K + 1)
    _, later = jax.lax.scan(step, (jnp.zeros(inner, dtype), first), totals)
    shells = jnp.concatenate([first[None], later])
    indices = jnp.indices(shape, sparse=True)
    return shells[(sum(indices), *indices[:-1])]


def rotation_blocks(
    cosine: Float[Array, ""], sine: Float[Array, ""], *, cutoff: int
) -> Float[Array, "2D-1 D D"]:
    """Real matrix elements <m, T - m| B |p, T - p> of exp(theta (a b^dagger - h.c.)), indexed [T, m, p].

    These are Wigner's d-matrices, zero where a mode would reach the cutoff D. One block follows from the one before by
    the same average as in `hermite_tensor`.

    Args:
      cosine: of theta.
      sine: of theta.
      cutoff: D, >= 1, static.
    """
    dtype = jnp.result_type(cosine, sine)
    index = jnp.arange(cutoff)
    root = jnp.sqrt(index.astype(dtype))

    def step(block: Array, total: Array) -> tuple[Array, Array]:
        rest = total - index
        inside = (rest >= 0) & (rest < cutoff)
        root_rest = jnp.sqrt(jnp.maximum(rest, 0).astype(dtype))
        m, n = root[:, None], root_rest[:, None]
        p, q = root[None], root_rest[None]
        padded = jnp.pad(block, ((1, 0), (1, 0)))
        both, of_m, of_p = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1]
        new = p * (cosine * m * both + sine * n * of_p) + q * (cosine * n * block - sine * m * of_m)
        new = jnp.where(inside[:, None] & inside[None], new / total.astype(dtype), 0)
        return new, new

    first = jnp.zeros((cutoff, cutoff), dtype).at[0, 0].set(1)
    _, later = jax.lax.scan(step, first, jnp.arange(1, 2 * cutoff - 1))
    return jnp.concatenate([first[None], later])
