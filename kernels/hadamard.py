"""Orthonormal Hadamard transform of any length n = m 2^p: the Kronecker product of R_m and H_2^p.

R_m is a Hadamard matrix over sqrt(m) where a classical construction gives one, otherwise the Hartley matrix,
whose entries are at most sqrt(2 / m). So every output is spread evenly over all inputs, which is what makes
rotated weights look Gaussian. References: Paley, "On orthogonal matrices", 1933; Goethals and Seidel, "Orthogonal
matrices with zero diagonal", 1967; for quantization QuaRot (arXiv:2404.00456).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_FACTOR = 2048


def hadamard_transform(x: jax.Array, *, inverse: bool = False) -> jax.Array:
    """Multiplies the last axis by the orthonormal matrix kron(R_m, H_2^p), n = m 2^p.

    Linear, differentiable, norm-preserving. Two dense factors near sqrt(n) are applied as matrix products, in
    full precision on every platform: n (a + b) multiplications instead of n^2.

    Args:
      x: float[..., n]; `factors(n)` tells m and p.
      inverse: multiply by the transpose, which is the inverse. (It is the same only where R_m is symmetric.)

    Returns:
      x's shape and dtype.

    Raises:
      ValueError: x is not floating point, has no axis, or n has an odd part above `LARGEST_FACTOR`.
    """
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"x has shape {x.shape}; the transform needs a last axis of at least 1")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; the transform needs floating point")
    n = x.shape[-1]
    m, p = factors(n)
    inner = min(range(p + 1), key=lambda bits: m * 2 ** (p - bits) + 2**bits)
    left = np.kron(base_matrix(m), base_matrix(2 ** (p - inner)))
    right = base_matrix(2**inner)  # symmetric
    if inverse:
        left = left.T
    y = x.reshape(-1, len(left), len(right))
    y = jnp.einsum("rab,bd->rad", y, right.astype(x.dtype), precision="highest")
    y = jnp.einsum("ca,rad->rcd", left.astype(x.dtype), y, precision="highest")
    return y.reshape(x.shape)


def factors(n: int) -> tuple[int, int]:
    """The split n = m * 2**p that `hadamard_transform` takes.

    Args:
      n: length, >= 1.

    Returns:
      (m, p): m = 1 for a power of two, else the smallest m = (odd part of n) * 2**j <= `LARGEST_FACTOR` that has a
      Hadamard matrix by Paley or Goethals and Seidel, else the odd part itself (Hartley).

    Raises:
      ValueError: n < 1, or n's odd part is above `LARGEST_FACTOR`.
    """
    if n < 1:
        raise ValueError(f"n is {n}; the transform needs a length of at least 1")
    twos = (n & -n).bit_length() - 1
    odd = n >> twos
    if odd == 1:
        return 1, twos
    if odd > LARGEST_FACTOR:
        raise ValueError(
            f"n = {n} has the odd part {odd}, above {LARGEST_FACTOR}; pad n to a multiple of a power of 2"
        )
    for j in range(2, twos + 1):
        m = odd << j
        if m > LARGEST_FACTOR:
            break
        if _field(m - 1, 3) or _field(m // 2 - 1, 1) or m in _CIRCULANTS:
            return m, twos - j
    return odd, twos


@functools.lru_cache(maxsize=64)
def base_matrix(m: int) -> np.ndarray:
    """The orthonormal factor of order m, float64[m, m]."""
    if m & (m - 1) == 0:
        matrix = np.ones((1, 1))
        while len(matrix) < m:
            matrix = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    elif _field(m - 1, 3):
        matrix = _paley_first(_field(m - 1, 3), m - 1)
    elif _field(m // 2 - 1, 1) and m % 4 == 0:
        matrix = _paley_second(_field(m // 2 - 1, 1), m // 2 - 1)
    elif m in _CIRCULANTS:
        matrix = _goethals_seidel(*_CIRCULANTS[m])
    else:
        angle = 2 * np.pi * (np.outer(np.arange(m), np.arange(m)) % m) / m
        matrix = np.cos(angle) + np.sin(angle)
    return matrix / np.sqrt(m)


def _field(q: int, residue: int) -> int:
    """The prime p if q = p or q = p^2 and q = residue (mod 4), otherwise 0."""
    if q < 3 or q % 4 != residue:
        return 0
    root = round(q**0.5)
    prime = root if root * root == q else q
    return prime if all(prime % d for d in range(2, int(prime**0.5) + 1)) else 0


def _jacobsthal(p: int, q: int) -> np.ndarray:
    """Q[a, b] = chi(a - b), chi the quadratic character of the field with q = p or p^2 elements."""
    legendre = np.full(p, -1.0)
    legendre[np.arange(p) ** 2 % p] = 1
    legendre[0] = 0
    if q == p:
        norm = np.arange(p)
        difference = (norm[:, None] - norm) % p
    else:  # elements u + v sqrt(r), r not a square: chi is the Legendre symbol of the norm u^2 - r v^2
        r = int(np.argmin(legendre[1:])) + 1
        u, v = np.divmod(np.arange(q), p)
        norm = (u**2 - r * v**2) % p
        difference = (u[:, None] - u) % p * p + (v[:, None] - v) % p
    return legendre[norm][difference]


def _paley_first(p: int, q: int) -> np.ndarray:
    """Order q + 1, q = 3 (mod 4): I + S with S skew."""
    skew = np.zeros((q + 1, q + 1))
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(p, q)
    return skew + np.eye(q + 1)


def _paley_second(p: int, q: int) -> np.ndarray:
    """Order 2 (q + 1), q = 1 (mod 4): symmetric."""
    symmetric = np.zeros((q + 1, q + 1))
    symmetric[0, 1:], symmetric[1:, 0], symmetric[1:, 1:] = 1, 1, _jacobsthal(p, q)
    return np.kron(symmetric, [[1.0, 1.0], [1.0, -1.0]]) + np.kron(np.eye(q + 1), [[1.0, -1.0], [-1.0, -1.0]])


_CIRCULANTS = {  # first rows of four circulants with A A^T + B B^T + C C^T + D D^T = m I
    92: (
        "+++++-++---++---++-++++",
        "+-+++--++-+--+-++--+++-",
        "+-+--+++++----+++++--+-",
        "+--++-+-+------+-+-++--",
    ),
    116: (
        "++-++++----+--++--+----++++-+",
        "+++--+++-+-++-++-++-+-+++--++",
        "++-+++------+-++-+------+++-+",
        "+--++-+-+-++++--++++-+-+-++--",
    ),
    156: (
        "++-++----++-+++-++----++-+-+-++----++-+",
        "+++--+-+----++--+--+-++-+-+-+-+++++-++-",
        "++++-+-+++-++---++--+-++---+--+-+-+-+++",
        "++++++--++++----++-+++++++-++--+++----+",
    ),
    172: (
        "+++++-++----+-++--++-++-++--++-+----++-++++",
        "+++---++--+-+-+-++--------++-+-+-+--++---++",
        "++-+-++++-+--+--+++--++--+++--+--+-++++-+-+",
        "+-++-----++++-+-+++-++++-+++-+-++++-----++-",
    ),
}


def _goethals_seidel(*first_rows: str) -> np.ndarray:
    """Order 4 q from four circulants of order q, which need not be symmetric (Williamson's are)."""
    q = len(first_rows[0])
    signs = [np.array([1.0 if sign == "+" else -1.0 for sign in row]) for row in first_rows]
    a, b, c, d = (np.stack([np.roll(row, i) for i in range(q)]) for row in signs)
    r = np.eye(q)[::-1]
    return np.block(
        [
            [a, b @ r, c @ r, d @ r],
            [-b @ r, a, d.T @ r, -c.T @ r],
            [-c @ r, -d.T @ r, a, b.T @ r],
            [-d @ r, c.T @ r, -b.T @ r, a],
        ]
    )
