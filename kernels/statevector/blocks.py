"""Small matrices on some wires of a state vector.

Where blocks follow each other from the first wire to the last, each is one matrix product that reads its wires in front
and leaves them at the end (`rotate`): after the last block all wires are back in order, and nothing was transposed.
States are complex [2^n]; batches by `vmap`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


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
    return jnp.matmul(matrix.T, jnp.eye(len(matrix), dtype=matrix.dtype), precision=_HIGHEST)


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
