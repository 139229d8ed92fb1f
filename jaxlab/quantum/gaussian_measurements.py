"""What is read off a Gaussian state: quadratures, photon numbers, polynomials of second order, samples.

States may have leading axes where results have them (`...`); elsewhere use `vmap`. All is differentiable, samples of
quadratures too, as functions of the state with the key held fixed. hbar = 2; quadratures in the order
(x_1..x_N, p_1..p_N). All functions raise InputError for wires that are out of range or repeated. Reference:
arXiv:1811.04968; Weedbrook et al., arXiv:1110.3234.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.quantum import symplectic
from jaxlab.quantum.gaussian import Gaussian, modes_of, prepare, reduced
from jaxlab.quantum.hermite import hermite_tensor
from jaxlab.quantum.modes import HBAR, Real, chosen_wires, direction, parameter, polynomial, require_positive


def quadrature_mean(state: Gaussian, phi: Real, wire: int) -> Float[Array, "..."]:
    """<x cos(phi) + p sin(phi)>: X at phi = 0, P at pi / 2."""
    return jnp.sum(direction(phi).astype(state.mean.dtype) * reduced(state, (wire,)).mean, axis=-1)


def quadrature_variance(state: Gaussian, phi: Real, wire: int) -> Float[Array, "..."]:
    """Variance of x cos(phi) + p sin(phi)."""
    u = direction(phi).astype(state.cov.dtype)
    return jnp.einsum("...i,...ij,...j->...", u, reduced(state, (wire,)).cov, u, precision="highest")


def number_mean(state: Gaussian, wire: int) -> Float[Array, "..."]:
    """Mean number of photons of a wire."""
    mean, cov = reduced(state, (wire,))
    return (jnp.trace(cov, axis1=-2, axis2=-1) + jnp.sum(jnp.square(mean), axis=-1)) / (2 * HBAR) - 0.5


def number_variance(state: Gaussian, wire: int) -> Float[Array, "..."]:
    """Variance of the number of photons of a wire."""
    mean, cov = reduced(state, (wire,))
    spread = jnp.sum(jnp.square(cov), axis=(-2, -1))
    moved = jnp.einsum("...i,...ij,...j->...", mean, cov, mean, precision="highest")
    return (spread + 2 * moved) / (2 * HBAR**2) - 0.25


def polynomial_mean(
    state: Gaussian,
    coefficients: Float[Array, " 1+2k"] | Float[Array, "1+2k 1+2k"],
    wires: int | Sequence[int] | None = None,
) -> Float[Array, "..."]:
    """Mean of a polynomial of first or second order in the wires' quadratures.

    Args:
      state: of N modes.
      coefficients: q or Q of q . R or R . Q R with R = (1, x_1, .., x_k, p_1, .., p_k). Products are symmetrised, so
        that Q counts as (Q + Q^T) / 2. PennyLane's `PolyXP` orders (1, x_1, p_1, x_2, p_2, ..).
      wires: k of them; all in order if None.

    Raises:
      InputError: the coefficients do not fit the wires.
    """
    chosen = chosen_wires(wires, modes_of(state))
    mean, cov = reduced(state, chosen)
    constant, linear, square = polynomial(coefficients, len(chosen), mean.dtype)
    return (
        constant
        + jnp.einsum("i,...i->...", linear, mean, precision="highest")
        + jnp.einsum("...i,ij,...j->...", mean, square, mean, precision="highest")
        + jnp.einsum("ij,...ij->...", square, cov, precision="highest")
    )


def polynomial_variance(
    state: Gaussian,
    coefficients: Float[Array, " 1+2k"] | Float[Array, "1+2k 1+2k"],
    wires: int | Sequence[int] | None = None,
) -> Float[Array, "..."]:
    """Variance of a polynomial; arguments as for `polynomial_mean`.

    The square of a symmetrised product is not a symmetrised product: their difference is Groenewold's correction,
    hbar^2 / 2 tr A Omega A Omega with the matrix A of the second order.
    """
    chosen = chosen_wires(wires, modes_of(state))
    mean, cov = reduced(state, chosen)
    _, linear, square = polynomial(coefficients, len(chosen), mean.dtype)
    slope = 2 * jnp.einsum("ij,...j->...i", square, mean, precision="highest") + linear
    turned = jnp.matmul(square, jnp.asarray(symplectic.form(mean.shape[-1] // 2), mean.dtype))
    spread = jnp.matmul(square, cov, precision="highest")
    return (
        2 * jnp.einsum("...ij,...ji->...", spread, spread, precision="highest")
        + jnp.einsum("...i,...ij,...j->...", slope, cov, slope, precision="highest")
        + HBAR**2 / 2 * jnp.einsum("ij,ji->", turned, turned, precision="highest")
    )


def fock_probability(
    state: Gaussian, photons: Sequence[int], wires: int | Sequence[int] | None = None
) -> Float[Array, ""]:
    """Probability of counting these photons: a loop hafnian, by its recursion in one more photon.

    Args:
      state: pure or mixed, without leading axes.
      photons: one number >= 0 for each wire, static. Work and memory grow as the product of (number + 1)^2.
      wires: all in order if None; photons of other wires are not looked at.

    Raises:
      InputError: a number is negative, or there are not as many as wires.

    Reference: Hamilton et al., arXiv:1612.01199; Quesada, arXiv:1811.00829.
    """
    chosen = chosen_wires(wires, modes_of(state))
    counted = tuple(int(number) for number in photons)
    if len(counted) != len(chosen) or min(counted) < 0:
        raise InputError(f"photons is {counted}; there must be a number >= 0 for each of {len(chosen)} wires")
    A, b, vacuum = generating_function(reduced(state, chosen))
    # Axes of empty wires would have length 1 and cost operations to compile.
    kept = np.array([place for place, number in enumerate(2 * counted) if number], int)
    if not len(kept):
        return vacuum
    shape = tuple(number + 1 for number in 2 * counted if number)
    tensor = hermite_tensor(A[kept[:, None], kept], b[kept], vacuum, shape)
    return tensor[(-1,) * len(shape)].real


def fock_probabilities(state: Gaussian, *, cutoff: int) -> Float[Array, "D ... D"]:
    """Probabilities of all counts below `cutoff` on each of N modes.

    Work and memory grow as cutoff^(2N), since all of the density matrix is computed; of a pure state
    `jaxlab.quantum.fock.from_gaussian` needs cutoff^N.

    Raises:
      InputError: cutoff < 1.
    """
    require_positive("cutoff", cutoff)
    modes = modes_of(state)
    tensor = hermite_tensor(*generating_function(state), (cutoff,) * (2 * modes))
    axes = list(range(modes))
    return jnp.einsum(tensor, axes + axes, axes).real


def sample_homodyne(
    key: jax.Array,
    state: Gaussian,
    shots: int,
    phi: Real = 0.0,
    wires: int | Sequence[int] | None = None,
) -> Float[Array, "shots k"]:
    """Measured values of x cos(phi) + p sin(phi) of some wires.

    Args:
      key: PRNG key; equal keys give equal samples.
      state: without leading axes.
      shots: how many, >= 1.
      phi: a scalar, or one for each wire.
      wires: all in order if None.

    Raises:
      InputError: shots < 1.
    """
    mean, cov = reduced(state, chosen_wires(wires, modes_of(state)))
    phi = jnp.broadcast_to(parameter("phi", phi).astype(mean.dtype), (mean.shape[-1] // 2,))
    u = jnp.concatenate([jnp.diag(jnp.cos(phi)), jnp.diag(jnp.sin(phi))], axis=1)
    return _normal(key, u @ mean, jnp.linalg.multi_dot([u, cov, u.T], precision="highest"), shots)


def sample_heterodyne(
    key: jax.Array, state: Gaussian, shots: int, wires: int | Sequence[int] | None = None
) -> Complex[Array, "shots k"]:
    """Measured amplitudes alpha of some wires, distributed as the Husimi function; arguments as `sample_homodyne`."""
    mean, cov = reduced(state, chosen_wires(wires, modes_of(state)))
    drawn = _normal(key, mean, cov + HBAR / 2 * jnp.eye(mean.shape[-1], dtype=cov.dtype), shots)
    x, p = jnp.split(drawn, 2, axis=-1)
    return jax.lax.complex(x, p) / math.sqrt(2 * HBAR)


def condition_homodyne(state: Gaussian, outcome: Real, phi: Real, wire: int) -> Gaussian:
    """The state after x cos(phi) + p sin(phi) of a wire was measured as `outcome`; that wire is left in the vacuum.

    Args:
      state: without leading axes.
      outcome: a real scalar.
      phi: angle of the quadrature.
      wire: which was measured.
    """
    return _conditioned(state, direction(phi)[None], jnp.zeros((1, 1)), jnp.reshape(outcome, (1,)), wire)


def condition_heterodyne(state: Gaussian, outcome: Complex[Array, ""], wire: int) -> Gaussian:
    """The state after alpha = `outcome` was measured on a wire, which is left in the vacuum."""
    values = math.sqrt(2 * HBAR) * jnp.stack([jnp.real(outcome), jnp.imag(outcome)])
    return _conditioned(state, jnp.eye(2), HBAR / 2 * jnp.eye(2), values, wire)


def _conditioned(state: Gaussian, u: Array, noise: Array, outcome: Array, wire: int) -> Gaussian:
    """The state given that u (x, p) + noise of the wire is `outcome`."""
    dtype, modes = state.mean.dtype, modes_of(state)
    (chosen,) = chosen_wires(wire, modes, 1)
    index = np.array([chosen, chosen + modes])
    u, noise, outcome = u.astype(dtype), noise.astype(dtype), outcome.astype(dtype)
    across = jnp.matmul(state.cov[:, index], u.T, precision="highest")
    spread = jnp.matmul(u, across[index], precision="highest") + noise
    gain = jnp.linalg.solve(spread, across.T).T
    mean = state.mean + jnp.matmul(gain, outcome - u @ state.mean[index], precision="highest")
    cov = state.cov - jnp.matmul(gain, across.T, precision="highest")
    return prepare(Gaussian(mean, cov), jnp.zeros(2, dtype), HBAR / 2 * jnp.eye(2, dtype=dtype), chosen)


def _normal(key: jax.Array, mean: Array, cov: Array, shots: int) -> Array:
    require_positive("shots", shots)
    standard = jax.random.normal(key, (shots, len(mean)), mean.dtype)
    return mean + jnp.matmul(standard, jnp.linalg.cholesky(cov).T, precision="highest")


def generating_function(state: Gaussian) -> tuple[Array, Array, Array]:
    """A, b and c of a state's Husimi function times exp(|alpha|^2), c exp(b z + z A z / 2) with z = (alpha, alpha^*).

    Its coefficient of alpha^n alpha^*^m / sqrt(n! m!) is the density matrix' element <m| rho |n>.

    Args:
      state: without leading axes.
    """
    mean, cov = state
    size = mean.shape[-1]
    modes = size // 2
    eye = jnp.eye(size, dtype=cov.dtype)
    factor = jnp.linalg.cholesky(cov / HBAR + eye / 2)
    inverse = jax.scipy.linalg.cho_solve((factor, True), eye)
    pull = jnp.matmul(inverse, mean, precision="highest")
    c = jnp.exp(-0.5 / HBAR * jnp.dot(mean, pull, precision="highest")) / jnp.prod(jnp.diagonal(factor))
    one = np.eye(modes)
    to_modes = jnp.asarray(
        math.sqrt(0.5) * np.block([[one, 1j * one], [one, -1j * one]]), jnp.result_type(cov, jnp.complex64)
    )
    A = jnp.linalg.multi_dot([to_modes, eye - inverse, to_modes.conj().T], precision="highest")
    b = jnp.matmul(pull, to_modes.conj().T, precision="highest") / math.sqrt(HBAR)
    return jnp.roll(A, modes, axis=0), b, c
