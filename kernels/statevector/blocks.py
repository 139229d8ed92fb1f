"""Small matrices on some wires of a state vector.

Where blocks follow each other from the first wire to the last, each is one matrix product that reads its wires in front
and leaves them at the end (`rotate`): after the last block all wires are back in order, and nothing was transposed.
States are complex [2^n]; batches by `vmap`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST
_LEAST_KERNEL_WIRES = 14
"""A smaller state does not leave the caches, whatever reads it how often; not yet timed."""


def apply_blocks(
    psi: jax.Array,
    matrices: Sequence[jax.Array],
    wires: Sequence[tuple[int, ...]],
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Matrices on disjoint sets of wires, each of which stays where it is.

    Args:
      psi: complex [2^n].
      matrices: [2^k, 2^k] for k wires; real or complex.
      wires: of each matrix, ascending.
      implementation: "xla", or "pallas" (complex64, n >= 8), kernels for GPU and TPU that take all blocks of a tile
        at once (interpreted, slowly, on CPU). None is "pallas" from 14 wires on where JAX's default device is one of
        these and the state complex64, else "xla".

    Raises:
      ValueError: a matrix does not fit its wires, or the implementation is unknown or cannot take the state.
    """
    if _takes_kernel(psi, implementation):
        from jaxlab.kernels.statevector.blocks_pallas import apply_planar

        return apply_planar(psi, tuple(matrices), tuple(wires), interpret=implementation == "pallas")
    covering = covers(wires, psi.shape[0].bit_length() - 1)
    if covering and not any(jnp.iscomplexobj(matrix) for matrix in matrices):
        return turn(psi, matrices)
    for own, matrix in zip(wires, matrices, strict=True):
        matrix = matrix.astype(psi.dtype)
        psi = rotate(psi, matrix) if covering else apply_block(psi, matrix, own)
    return psi


def undo_blocks(
    after: jax.Array,
    psi: jax.Array,
    matrices: Sequence[jax.Array],
    wires: Sequence[tuple[int, ...]],
    *,
    transposes: Sequence[jax.Array] | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Takes `apply_blocks` with unitary matrices back, and finds its gradient.

    Args:
      after: conjugate cotangent of the result, [2^n].
      psi: the result, [2^n].
      matrices: as for `apply_blocks`.
      wires: as for `apply_blocks`.
      transposes: of real matrices, for a caller that has them and wants their cotangents.
      implementation: as for `apply_blocks`.

    Returns:
      Conjugate cotangent of the input, the input, cotangents of the matrices, or of the transposes if given.
    """
    if _takes_kernel(psi, implementation):
        from jaxlab.kernels.statevector.blocks_pallas import undo_planar

        interpret = implementation == "pallas"
        after, psi, found = undo_planar(after, psi, tuple(matrices), tuple(wires), interpret=interpret)
        return after, psi, found if transposes is None else tuple(one.T for one in found)
    covering, gradients = covers(wires, psi.shape[0].bit_length() - 1), []
    if covering and not any(jnp.iscomplexobj(matrix) for matrix in matrices):
        if transposes is not None:
            return turn_back(after, psi, transposes)
        after, psi, found = turn_back(after, psi, [transposed(matrix) for matrix in matrices])
        return after, psi, tuple(one.T for one in found)
    for own, matrix in zip(reversed(wires), reversed(matrices), strict=True):
        wide = matrix.astype(psi.dtype)
        if covering:
            psi = unrotate(psi, wide)
            gradient = rotated_gradient(after, psi, len(wide))
            after = unrotate(after, wide)
        else:
            inverse = wide.conj().T
            psi = apply_block(psi, inverse, own)
            gradient = block_gradient(after, psi, own)
            after = apply_block(after, inverse, own)
        if not jnp.iscomplexobj(matrix):
            gradient = gradient.real
        gradients.append((gradient if transposes is None else gradient.T).astype(matrix.dtype))
    return after, psi, tuple(reversed(gradients))


def covers(wires: Sequence[Sequence[int]], n: int) -> bool:
    """Whether blocks on these wires follow each other from the first wire to the last."""
    return [wire for own in wires for wire in own] == list(range(n))


def _takes_kernel(psi: jax.Array, implementation: str | None) -> bool:
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(f"implementation = {implementation!r}; it must be None, 'xla' or 'pallas'")
    if implementation is None:
        fits = psi.dtype == jnp.complex64 and psi.shape[0] >= 1 << _LEAST_KERNEL_WIRES
        return fits and jax.default_backend() in ("gpu", "tpu")
    if implementation == "pallas" and (psi.dtype != jnp.complex64 or psi.shape[0] < 1 << 8):
        raise ValueError(
            f"implementation = 'pallas' takes complex64 states of 8 or more wires, not {psi.dtype}{psi.shape}"
        )
    return implementation == "pallas"


def rotate(psi: jax.Array, matrix: jax.Array) -> jax.Array:
    """The matrix [K, K] on the leading wires of psi, which become the last ones."""
    front = psi.reshape(matrix.shape[0], -1)
    return jnp.einsum("kr,jk->rj", front, matrix, precision=_HIGHEST).reshape(-1)


def unrotate(psi: jax.Array, matrix: jax.Array) -> jax.Array:
    """Takes `rotate` back, for a unitary matrix."""
    back = psi.reshape(-1, matrix.shape[0])
    return jnp.einsum("rj,jk->kr", back, matrix.conj(), precision=_HIGHEST).reshape(-1)


def rotated_gradient(after: jax.Array, before: jax.Array, size: int) -> jax.Array:
    """The cotangent [K, K] of `rotate`'s matrix, from the conjugate cotangent of its result and from its psi."""
    return jnp.einsum(
        "rj,kr->jk", after.conj().reshape(-1, size), before.reshape(size, -1), precision=_HIGHEST
    )


def turn(psi: jax.Array, matrices: Sequence[jax.Array]) -> jax.Array:
    """Real matrices [K, K] on all wires, the first on the leading ones.

    Real and imaginary parts stand side by side like one more wire. Each matrix product takes the trailing wires to the
    front, which is the fastest form on a CPU; after the last block all wires are back in order.
    """
    planes = _planes(psi)
    for matrix in reversed(matrices):
        planes = _turned(planes, matrix)
    return _joined(planes)


def turn_back(
    after: jax.Array, psi: jax.Array, transposes: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Takes `turn` with orthogonal matrices back, and finds its gradient.

    Args:
      after: conjugate cotangent of the result, [2^n].
      psi: the result, [2^n].
      transposes: of the matrices.

    Returns:
      Conjugate cotangent of the input, the input, cotangents of the transposes.
    """
    ahead, planes, found = _planes(after), _planes(psi), []
    for inverse in reversed(transposes):
        size = inverse.shape[-1]
        planes = _turned(planes, inverse)
        # The form whose operands both lie in memory as a matrix product reads them.
        gradient = jnp.matmul(planes.reshape(size, -1), ahead.reshape(-1, size), precision=_HIGHEST)
        found.append(gradient.astype(inverse.dtype))
        ahead = _turned(ahead, inverse)
    return _joined(ahead), _joined(planes), tuple(reversed(found))


def transposed(matrix: jax.Array) -> jax.Array:
    """The transpose [K, K], by a product that XLA cannot fold into the next one, which it would slow down."""
    return jnp.matmul(matrix.T, np.eye(len(matrix), dtype=matrix.dtype), precision=_HIGHEST)


def _planes(psi: jax.Array) -> jax.Array:
    return jnp.concatenate([psi.real, psi.imag])


def _joined(planes: jax.Array) -> jax.Array:
    """Of real and imaginary parts that alternate."""
    pairs = planes.reshape(-1, 2)
    return jax.lax.complex(pairs[:, 0], pairs[:, 1])


def _turned(planes: jax.Array, matrix: jax.Array) -> jax.Array:
    rows = planes.reshape(-1, matrix.shape[-1])
    return jnp.einsum("rk,jk->jr", rows, matrix.astype(planes.dtype), precision=_HIGHEST).reshape(-1)


def apply_block(psi: jax.Array, matrix: jax.Array, wires: Sequence[int]) -> jax.Array:
    """The matrix [2^k, 2^k] on k wires (ascending), which stay where they are.

    Raises:
      ValueError: the matrix does not fit the wires.
    """
    if matrix.shape != (1 << len(wires),) * 2:
        raise ValueError(
            f"matrix has shape {matrix.shape}; for the wires {tuple(wires)} it is 2^{len(wires)} square"
        )
    shape, front = _axes(psi, wires)
    tensor = psi.reshape(shape)
    moved = jnp.moveaxis(tensor, front, range(len(front)))
    product = jnp.matmul(matrix, moved.reshape(matrix.shape[0], -1), precision=_HIGHEST)
    return jnp.moveaxis(product.reshape(moved.shape), range(len(front)), front).reshape(-1)


def block_gradient(after: jax.Array, before: jax.Array, wires: Sequence[int]) -> jax.Array:
    """The cotangent of `apply_block`'s matrix, from the conjugate cotangent of its result and from its psi."""
    shape, front = _axes(before, wires)
    a, b = (
        jnp.moveaxis(x.reshape(shape), front, range(len(front))).reshape(1 << len(wires), -1)
        for x in (after, before)
    )
    return jnp.matmul(a.conj(), b.T, precision=_HIGHEST)


def _axes(psi: jax.Array, wires: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape in which neighbouring wires share an axis, and the axes of the given wires."""
    n = int(math.log2(psi.shape[0]))
    shape: list[int] = []
    front: list[int] = []
    previous = -1
    for wire in wires:
        if wire == previous + 1 and front:
            shape[-1] *= 2
        else:
            shape.append(1 << (wire - previous - 1))
            front.append(len(shape))
            shape.append(2)
        previous = wire
    return (*shape, 1 << (n - 1 - previous)), tuple(front)
