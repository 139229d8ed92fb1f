"""Gates of continuous variables as matrices between the photon numbers below a cutoff.

All elements are exact, up to rounding, whatever the cutoff: they come from recurrences, or from quadrature for the
cubic phase, and not from exponentials of truncated generators, which are wrong near the cutoff (by up to 0.45 for a
displacement by 0.6 at cutoff 12). Parameters are real scalars; results are of their precision. Reference: Miatto and
Quesada, arXiv:2004.11002.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.quantum.hermite import hermite_tensor, rotation_blocks
from jaxlab.quantum.modes import HBAR, concrete

_SWAP = np.array([[0, 1], [1, 0]])


def displacement(a: Float[Array, ""], phi: Float[Array, ""], *, cutoff: int) -> Complex[Array, "D D"]:
    """<m| exp(alpha a^dagger - h.c.) |n> with alpha = a e^(i phi)."""
    real = hermite_tensor(
        jnp.asarray(_SWAP, a.dtype), jnp.stack([a, -a]), jnp.exp(-a * a / 2), (cutoff, cutoff)
    )
    return _turned(real, phi)


def squeezing(r: Float[Array, ""], phi: Float[Array, ""], *, cutoff: int) -> Complex[Array, "D D"]:
    """<m| exp((zeta^* a^2 - h.c.) / 2) |n> with zeta = r e^(i phi)."""
    tanh, sech = jnp.tanh(r), 1 / jnp.cosh(r)
    A = jnp.stack([-tanh, sech, sech, tanh]).reshape(2, 2)
    return _turned(hermite_tensor(A, jnp.zeros(2, A.dtype), jnp.sqrt(sech), (cutoff, cutoff)), phi / 2)


def quadratic_phase(s: Float[Array, ""], *, cutoff: int) -> Complex[Array, "D D"]:
    """<m| exp(i s x^2 / (2 hbar)) |n>."""
    ratio = 1 / (1 - 0.5j * s)
    diagonal = 0.5j * s * ratio
    A = jnp.stack([diagonal, ratio, ratio, diagonal]).reshape(2, 2)
    return hermite_tensor(A, jnp.zeros(2, A.dtype), jnp.sqrt(ratio), (cutoff, cutoff))


def cubic_phase(gamma: Float[Array, ""], *, cutoff: int, largest: float = 1.0) -> Complex[Array, "D D"]:
    """<m| exp(i gamma x^3 / (3 hbar)) |n>, integrated over x by the trapezoidal rule.

    The rule converges exponentially once its step resolves the oscillations of the integrand, which it does up to
    |gamma| = `largest`; nodes and memory grow as `largest` cutoff^(5/2).

    Args:
      gamma: scalar.
      cutoff: D, static.
      largest: bound of |gamma|, static.

    Returns:
      The matrix; NaN if gamma is beyond `largest` and traced.

    Raises:
      InputError: gamma is concrete and beyond `largest`.
    """
    known = concrete(gamma)
    if known is not None and not abs(known) <= largest:
        raise InputError(
            f"gamma is {known:.4g}; its nodes resolve up to largest = {largest}: pass a larger one"
        )
    # Beyond the classical turning point sqrt(2 D - 1) all functions decay faster than a Gaussian at its centre.
    edge = math.sqrt(2 * cutoff + 1) + 5
    slope = largest * math.sqrt(HBAR)
    count = math.ceil(edge * (2 * edge + slope * edge**2) / math.pi) + 1
    q, step = np.linspace(-edge, edge, count, retstep=True)
    functions = [math.pi**-0.25 * np.exp(-q * q / 2)]
    for n in range(1, cutoff):
        before = functions[n - 2] if n > 1 else np.zeros(count)
        functions.append(math.sqrt(2 / n) * q * functions[n - 1] - math.sqrt((n - 1) / n) * before)
    waves = jnp.asarray(math.sqrt(step) * np.stack(functions), gamma.dtype)
    inside = jnp.where(jnp.abs(gamma) <= largest, gamma, jnp.nan)
    phases = jnp.exp(1j * inside * jnp.asarray(math.sqrt(HBAR) / 3 * q**3, gamma.dtype))
    return jnp.matmul(waves * phases, waves.T.astype(phases.dtype), precision="highest")


def beamsplitter_blocks(theta: Float[Array, ""], *, cutoff: int) -> Float[Array, "2D-1 D D"]:
    """<m, T - m| exp(theta (a b^dagger - h.c.)) |p, T - p>, indexed [T, m, p]: photons are conserved."""
    return rotation_blocks(jnp.cos(theta), jnp.sin(theta), cutoff=cutoff)


def two_mode_squeezing_blocks(r: Float[Array, ""], *, cutoff: int) -> Float[Array, "2D-1 D D"]:
    """<m, m - d| exp(r (a^dagger b^dagger - h.c.)) |p, p - d>, indexed [d + D - 1, m, p]: the difference is conserved.

    With the second mode's input and output exchanged this is sech(r) times a beamsplitter of cosine sech(r) and sine
    -tanh(r).
    """
    sech = 1 / jnp.cosh(r)
    blocks = sech * rotation_blocks(sech, -jnp.tanh(r), cutoff=cutoff)
    d, m, p = jnp.ogrid[1 - cutoff : cutoff, :cutoff, :cutoff]
    inside = (m - d >= 0) & (m - d < cutoff) & (p - d >= 0) & (p - d < cutoff)
    return jnp.where(inside, blocks[jnp.where(inside, m + p - d, 0), m, p], 0)


def controlled_addition(s: Float[Array, ""], *, cutoff: int) -> Float[Array, "D D D D"]:
    """<m, n| exp(-i s x_1 p_2 / hbar) |p, q>, indexed [m, n, p, q]; real. Memory grows as 4 cutoff^4."""
    scale = 1 / (1 + s * s / 4)
    half = s / 2
    one, turn = np.eye(2), np.array([[0, -1], [1, 0]])
    # U^-1 and V of the Bogoliubov transformation a -> U a + V a^dagger, with U = 1 + s / 2 turn and V = s / 2 swap.
    inverse = scale * (one - half * turn)
    A = jnp.block([[half * _SWAP @ inverse, inverse.T], [inverse, -half * inverse @ _SWAP]])
    return hermite_tensor(A, jnp.zeros(4, A.dtype), jnp.sqrt(scale), (cutoff,) * 4)


def phases(phi: Float[Array, ""], *, cutoff: int) -> Complex[Array, " D"]:
    """exp(i phi n)."""
    return jnp.exp(1j * phi * jnp.arange(cutoff))


def _turned(real: Float[Array, "D D"], phi: Float[Array, ""]) -> Complex[Array, "D D"]:
    """exp(i phi n) M exp(-i phi n)."""
    turn = phases(phi, cutoff=len(real))
    return turn[:, None] * real * turn.conj()
