"""Gaussian gates as symplectic matrices S: quadratures (x_1..x_k, p_1..p_k) of the gate's wires become S times them.

Names and signs are PennyLane's. Parameters are real, of any shape, which stands in front of the matrices' axes.
Reference: arXiv:1811.04968, appendix on continuous variables; Weedbrook et al., arXiv:1110.3234, section II.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.quantum.modes import HBAR, Real, concrete, parameter
from jaxlab.quantum.recording import check_unitary

_TURN = np.array([[0, -1], [1, 0]])
_STRETCH = np.diag([-1, 1])
_CROSS = np.array([[0, -1], [-1, 0]])
_SHEAR = np.array([[0, 0], [1, 0]])
_ONE, _NONE = np.eye(2), np.zeros((2, 2))
_MIX = np.kron(_ONE, _TURN)
_MIX_QUADRATURES = np.kron(_TURN, -_CROSS)
_PAIR = np.kron(np.diag([1, -1]), -_CROSS)
_PAIR_QUADRATURES = np.kron(-_CROSS, -_CROSS)
_ADD = np.block([[_SHEAR, _NONE], [_NONE, -_SHEAR.T]])
_CONTROL = np.kron(_SHEAR, -_CROSS)


def rotation(phi: Real) -> Float[Array, "... 2 2"]:
    """a becomes e^(i phi) a."""
    phi = parameter("phi", phi)
    return _sum((jnp.cos(phi), _ONE), (jnp.sin(phi), _TURN))


def squeezing(r: Real, phi: Real) -> Float[Array, "... 2 2"]:
    """a becomes cosh(r) a - e^(i phi) sinh(r) a^dagger."""
    r, phi = parameter("r", r), parameter("phi", phi)
    sinh = jnp.sinh(r)
    return _sum((jnp.cosh(r), _ONE), (sinh * jnp.cos(phi), _STRETCH), (sinh * jnp.sin(phi), _CROSS))


def quadratic_phase(s: Real) -> Float[Array, "... 2 2"]:
    """p becomes p + s x."""
    s = parameter("s", s)
    return _sum((jnp.ones_like(s), _ONE), (s, _SHEAR))


def beamsplitter(theta: Real, phi: Real) -> Float[Array, "... 4 4"]:
    """a becomes cos(theta) a - e^(-i phi) sin(theta) b, b becomes cos(theta) b + e^(i phi) sin(theta) a."""
    theta, phi = parameter("theta", theta), parameter("phi", phi)
    sine = jnp.sin(theta)
    return _sum(
        (jnp.cos(theta), np.eye(4)),
        (sine * jnp.cos(phi), _MIX),
        (sine * jnp.sin(phi), _MIX_QUADRATURES),
    )


def two_mode_squeezing(r: Real, phi: Real) -> Float[Array, "... 4 4"]:
    """a becomes cosh(r) a + e^(i phi) sinh(r) b^dagger, and the same with a and b exchanged."""
    r, phi = parameter("r", r), parameter("phi", phi)
    sinh = jnp.sinh(r)
    return _sum(
        (jnp.cosh(r), np.eye(4)),
        (sinh * jnp.cos(phi), _PAIR),
        (sinh * jnp.sin(phi), _PAIR_QUADRATURES),
    )


def controlled_addition(s: Real) -> Float[Array, "... 4 4"]:
    """x_2 becomes x_2 + s x_1, p_1 becomes p_1 - s p_2."""
    s = parameter("s", s)
    return _sum((jnp.ones_like(s), np.eye(4)), (s, _ADD))


def controlled_phase(s: Real) -> Float[Array, "... 4 4"]:
    """p_1 becomes p_1 + s x_2, p_2 becomes p_2 + s x_1."""
    s = parameter("s", s)
    return _sum((jnp.ones_like(s), np.eye(4)), (s, _CONTROL))


def interferometer(unitary: Complex[Array, "k k"]) -> Float[Array, "2k 2k"]:
    """a becomes U a.

    Raises:
      InputError: not a square matrix, or concrete and not unitary.
    """
    unitary = jnp.asarray(unitary)
    if unitary.ndim != 2 or unitary.shape[0] != unitary.shape[1]:
        raise InputError(f"unitary has shape {unitary.shape}; it must be (k, k) for k wires")
    known = concrete(unitary)
    if known is not None:
        check_unitary(known)
    return jnp.block([[unitary.real, -unitary.imag], [unitary.imag, unitary.real]])


def displacement(a: Real, phi: Real) -> Float[Array, "... 2"]:
    """What is added to (x, p): a becomes a + alpha, with alpha = a e^(i phi)."""
    a, phi = parameter("a", a), parameter("phi", phi)
    return math.sqrt(2 * HBAR) * jnp.stack([a * jnp.cos(phi), a * jnp.sin(phi)], axis=-1)


def form(modes: int) -> np.ndarray:
    """Omega: [x_j, p_k] = i hbar Omega_jk in the order (x_1..x_N, p_1..p_N); S is symplectic if S Omega S^T = Omega."""
    return np.kron(-_TURN, np.eye(modes))


def _sum(*terms: tuple[Array, np.ndarray]) -> Any:
    """Sum of numbers times constant matrices: few operations to compile, and derivatives are as simple."""
    return sum(factor[..., None, None] * jnp.asarray(matrix, factor.dtype) for factor, matrix in terms)
