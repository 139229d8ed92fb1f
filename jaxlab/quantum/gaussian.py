"""Gaussian states of N modes: preparations, gates and loss, all of them updates of a mean and a covariance.

A gate is a function `gate(state, parameters, wires) -> state`; it multiplies two or four rows and columns, not all of
the covariance. States may have leading axes (`vmap` works as well); parameters are real scalars, or have the state's
leading axes. Compilation of many gates takes long: put a layer into `lax.scan`, or use `jaxlab.quantum.cv_circuits`,
which scans over gates. All functions raise InputError for wires that are out of range, repeated or of a wrong number,
and for parameters that are complex or have other axes than the state.

hbar = 2, quadratures in the order (x_1..x_N, p_1..p_N), names and signs are PennyLane's. Reference: arXiv:1811.04968;
Weedbrook et al., arXiv:1110.3234.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.quantum import symplectic
from jaxlab.quantum.modes import HBAR, Real, chosen_wires, concrete, parameter, require_positive

_TOLERANCE = 1e-4
"""How far a given covariance may be from symmetric and physical, relative to its largest entry; float32 included."""


class Gaussian(NamedTuple):
    """A Gaussian state: what `vacuum`, `gaussian_state` and all gates return. Vacuum has covariance 1."""

    mean: Float[Array, "... 2N"]
    cov: Float[Array, "... 2N 2N"]


def vacuum(modes: int, *, dtype: Any = None) -> Gaussian:
    """N modes without photons.

    Args:
      modes: N, >= 1.
      dtype: float32 or float64; None is JAX's default. All gates keep it.

    Raises:
      InputError: modes < 1.
    """
    require_positive("modes", modes)
    return Gaussian(jnp.zeros(2 * modes, dtype), HBAR / 2 * jnp.eye(2 * modes, dtype=dtype))


def gaussian_state(mean: Float[Array, "... 2N"], cov: Float[Array, "... 2N 2N"]) -> Gaussian:
    """A state from its moments, checked.

    Args:
      mean: of (x_1..x_N, p_1..p_N).
      cov: their symmetrised covariance V, with V + i Omega >= 0 (for hbar = 2).

    Raises:
      InputError: shapes do not fit, or `cov` is concrete and not symmetric or not physical.
    """
    mean, cov = jnp.asarray(mean), jnp.asarray(cov)
    size = mean.shape[-1] if mean.ndim else 0
    if not size or size % 2 or cov.shape != (*mean.shape, size):
        raise InputError(
            f"mean has shape {mean.shape} and cov {cov.shape}; they must be (..., 2N) and (..., 2N, 2N)"
        )
    known = concrete(cov)
    if known is not None:
        _check_physical(known)
    return Gaussian(mean, cov)


def modes_of(state: Gaussian) -> int:
    """N, the number of modes."""
    return state.mean.shape[-1] // 2


def reduced(state: Gaussian, wires: int | Sequence[int]) -> Gaussian:
    """The state of some wires, in the order given, the others traced out."""
    _, index = _rows(state, wires)
    return Gaussian(state.mean[..., index], state.cov[..., index[:, None], index])


def purity(state: Gaussian) -> Float[Array, "..."]:
    """tr rho^2: 1 for pure states, less for mixed ones."""
    _, logarithm = jnp.linalg.slogdet(2 / HBAR * state.cov)
    return jnp.exp(-0.5 * logarithm)


def prepare(
    state: Gaussian, mean: Float[Array, "... 2k"], cov: Float[Array, "... 2k 2k"], wires: int | Sequence[int]
) -> Gaussian:
    """Replaces the state of k wires by another one, uncorrelated with the rest.

    Args:
      state: before.
      mean: of (x_1..x_k, p_1..p_k) of the wires.
      cov: see `gaussian_state`.
      wires: k of them, in any order.

    Raises:
      InputError: as `gaussian_state`, or the moments are not of as many modes as there are wires.
    """
    chosen, index = _rows(state, wires)
    new = gaussian_state(mean, cov)
    if modes_of(new) != len(chosen):
        raise InputError(f"mean and cov are of {modes_of(new)} modes; there are {len(chosen)} wires")
    return _replaced(state, index, new.mean, new.cov)


def coherent(state: Gaussian, a: Real, phi: Real, wire: int) -> Gaussian:
    """Prepares D(a e^(i phi)) |0> on a wire: a^2 photons on average."""
    return displacement(_emptied(state, wire), a, phi, wire)


def squeezed(state: Gaussian, r: Real, phi: Real, wire: int) -> Gaussian:
    """Prepares S(r, phi) |0> on a wire: sinh(r)^2 photons on average."""
    return squeezing(_emptied(state, wire), r, phi, wire)


def displaced_squeezed(state: Gaussian, a: Real, phi_a: Real, r: Real, phi_r: Real, wire: int) -> Gaussian:
    """Prepares D(a e^(i phi_a)) S(r, phi_r) |0> on a wire."""
    return displacement(squeezed(state, r, phi_r, wire), a, phi_a, wire)


def thermal(state: Gaussian, nbar: Real, wire: int) -> Gaussian:
    """Prepares the thermal state of `nbar` >= 0 photons on average on a wire.

    Raises:
      InputError: nbar is concrete and negative.
    """
    nbar = parameter("nbar", nbar)
    known = concrete(nbar)
    if known is not None and not np.all(known >= 0):
        raise InputError(f"nbar is {known}; a mean number of photons is at least 0")
    _, index = _rows(state, wire, 1)
    cov = ((2 * nbar + 1) * HBAR / 2)[..., None, None] * jnp.eye(2, dtype=nbar.dtype)
    return _replaced(state, index, jnp.zeros(2), cov)


def rotation(state: Gaussian, phi: Real, wire: int) -> Gaussian:
    """exp(i phi n): the phase of a mode advances by phi."""
    return _update(state, symplectic.rotation(phi), wire, 1)


def displacement(state: Gaussian, a: Real, phi: Real, wire: int) -> Gaussian:
    """exp(alpha a^dagger - h.c.) with alpha = a e^(i phi)."""
    _, index = _rows(state, wire, 1)
    shift = _fitting(state, symplectic.displacement(a, phi), 1)
    return state._replace(mean=state.mean.at[..., index].add(shift))


def squeezing(state: Gaussian, r: Real, phi: Real, wire: int) -> Gaussian:
    """exp((zeta^* a^2 - h.c.) / 2) with zeta = r e^(i phi)."""
    return _update(state, symplectic.squeezing(r, phi), wire, 1)


def quadratic_phase(state: Gaussian, s: Real, wire: int) -> Gaussian:
    """exp(i s x^2 / (2 hbar)): p becomes p + s x."""
    return _update(state, symplectic.quadratic_phase(s), wire, 1)


def beamsplitter(state: Gaussian, theta: Real, phi: Real, wires: Sequence[int]) -> Gaussian:
    """exp(theta (e^(i phi) a b^dagger - h.c.)): transmits the amplitude cos(theta), reflects e^(i phi) sin(theta)."""
    return _update(state, symplectic.beamsplitter(theta, phi), wires, 2)


def two_mode_squeezing(state: Gaussian, r: Real, phi: Real, wires: Sequence[int]) -> Gaussian:
    """exp(r (e^(i phi) a^dagger b^dagger - h.c.))."""
    return _update(state, symplectic.two_mode_squeezing(r, phi), wires, 2)


def controlled_addition(state: Gaussian, s: Real, wires: Sequence[int]) -> Gaussian:
    """exp(-i s x_1 p_2 / hbar): x_2 becomes x_2 + s x_1, p_1 becomes p_1 - s p_2."""
    return _update(state, symplectic.controlled_addition(s), wires, 2)


def controlled_phase(state: Gaussian, s: Real, wires: Sequence[int]) -> Gaussian:
    """exp(i s x_1 x_2 / hbar): p_1 becomes p_1 + s x_2, p_2 becomes p_2 + s x_1."""
    return _update(state, symplectic.controlled_phase(s), wires, 2)


def interferometer(state: Gaussian, unitary: Complex[Array, "k k"], wires: int | Sequence[int]) -> Gaussian:
    """Beamsplitters and phases that take the wires' a to U a.

    Args:
      state: before.
      unitary: U, complex.
      wires: k of them.

    Raises:
      InputError: U is not k by k, or concrete and not unitary.
    """
    return apply_symplectic(state, symplectic.interferometer(unitary), wires)


def apply_symplectic(state: Gaussian, S: Float[Array, "... 2k 2k"], wires: int | Sequence[int]) -> Gaussian:
    """Any Gaussian gate without displacement, from its symplectic matrix in the order (x_1..x_k, p_1..p_k).

    Raises:
      InputError: S is not 2k by 2k for k wires, or concrete and not symplectic.
    """
    S = jnp.asarray(S)
    chosen, _ = _rows(state, wires)
    size = 2 * len(chosen)
    if S.shape[-2:] != (size, size):
        raise InputError(f"S has shape {S.shape}; on {len(chosen)} wires it must be (..., {size}, {size})")
    known = concrete(S)
    if known is not None:
        omega = symplectic.form(len(chosen))
        error = np.max(np.abs(known @ omega @ known.swapaxes(-1, -2) - omega))
        if not error <= _TOLERANCE * max(1.0, np.max(np.abs(known)) ** 2):
            raise InputError(f"S is not symplectic: S Omega S^T differs from Omega by {error:.2g}")
    return _update(state, S, chosen, len(chosen))


def loss(state: Gaussian, transmissivity: Real, wire: int) -> Gaussian:
    """Loses photons to a vacuum: V becomes T V + (1 - T) hbar / 2 on the wire, a mean photon number T times it.

    Args:
      state: before.
      transmissivity: T, between 0 (all is lost) and 1.
      wire: where.

    Raises:
      InputError: T is concrete and out of range.
    """
    transmissivity = parameter("transmissivity", transmissivity)
    known = concrete(transmissivity)
    if known is not None and not np.all((known >= 0) & (known <= 1)):
        raise InputError(f"transmissivity is {known}; it lies between 0 and 1")
    _, index = _rows(state, wire, 1)
    kept = jnp.sqrt(transmissivity)[..., None, None] * jnp.eye(2, dtype=transmissivity.dtype)
    damped = _update(state, kept, wire, 1)
    noise = _fitting(state, (HBAR / 2 * (1 - transmissivity))[..., None], 1)
    return damped._replace(cov=damped.cov.at[..., index, index].add(noise))


def _rows(
    state: Gaussian, wires: int | Sequence[int], count: int | None = None
) -> tuple[tuple[int, ...], np.ndarray]:
    """The wires, and where their x and then their p stand."""
    modes = modes_of(state)
    chosen = chosen_wires(wires, modes, count)
    return chosen, np.array([*chosen, *(wire + modes for wire in chosen)])


def _fitting(state: Gaussian, values: Array, own: int) -> Array:
    """Values in the state's precision, whose axes before the last `own` must be among the state's leading ones."""
    leading, axes = state.mean.shape[:-1], values.shape[: values.ndim - own]
    try:
        fits = np.broadcast_shapes(leading, axes) == leading
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f"parameters have the axes {axes} and the state the leading axes {leading}; parameters must be scalars or "
            "fit these (vmap for batches)"
        )
    return values.astype(state.mean.dtype)


def _update(state: Gaussian, S: Array, wires: int | Sequence[int], count: int) -> Gaussian:
    """Mean S mu and covariance S V S^T, on the wires' rows and columns alone."""
    _, index = _rows(state, wires, count)
    S = _fitting(state, S, 2)
    mean, cov = state
    mean = mean.at[..., index].set(jnp.einsum("...ij,...j->...i", S, mean[..., index], precision="highest"))
    rows = jnp.matmul(S, cov[..., index, :], precision="highest")
    cov = cov.at[..., index, :].set(rows)
    columns = jnp.matmul(cov[..., index], S.swapaxes(-1, -2), precision="highest")
    return Gaussian(mean, cov.at[..., index].set(columns))


def _replaced(state: Gaussian, index: np.ndarray, mean: Array, cov: Array) -> Gaussian:
    mean, cov = _fitting(state, mean, 1), _fitting(state, cov, 2)
    empty = state.cov.at[..., index, :].set(0).at[..., index].set(0)
    return Gaussian(state.mean.at[..., index].set(mean), empty.at[..., index[:, None], index].set(cov))


def _emptied(state: Gaussian, wire: int) -> Gaussian:
    _, index = _rows(state, wire, 1)
    return _replaced(state, index, jnp.zeros(2), HBAR / 2 * jnp.eye(2))


def _check_physical(cov: np.ndarray) -> None:
    size = float(np.max(np.abs(cov)))
    lopsided = float(np.max(np.abs(cov - cov.swapaxes(-1, -2))))
    if not lopsided <= _TOLERANCE * size:
        raise InputError(f"cov is not symmetric: V differs from V^T by {lopsided:.2g}")
    omega = HBAR / 2 * symplectic.form(cov.shape[-1] // 2)
    least = float(np.min(np.linalg.eigvalsh(cov.astype(np.float64) + 1j * omega)))
    if not least >= -_TOLERANCE * size:
        raise InputError(
            f"cov is not physical: the least eigenvalue of V + i Omega is {least:.2g}; it must not be negative "
            "(the vacuum's covariance is 1, hbar = 2)"
        )
