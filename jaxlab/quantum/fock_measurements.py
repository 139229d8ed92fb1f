"""What is read off a state of photon-number amplitudes: probabilities, photon numbers, quadratures, leakage.

Expectations are those of the vector as it is, `<psi| A |psi>`, exactly, also for operators that lead beyond the cutoff;
a norm lost to the cutoff is not made up for. Everything is differentiable but samples; batches by `vmap`. All functions
raise InputError for wires that are out of range or repeated. hbar = 2. Reference: arXiv:1811.04968.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.quantum.fock import Fock, shape_of
from jaxlab.quantum.modes import HBAR, Real, chosen_wires, concrete, direction, polynomial, require_positive


def probs(state: Fock, wires: int | Sequence[int] | None = None) -> Float[Array, "D ... D"]:
    """Probability of every count of photons on the wires, in their order; all of them if None."""
    modes, _ = shape_of(state)
    chosen = chosen_wires(wires, modes)
    square = jnp.square(state.amp.real) + jnp.square(state.amp.imag)
    kept = sorted(chosen)
    summed = jnp.sum(square, axis=tuple(wire for wire in range(modes) if wire not in chosen))
    return summed.transpose([kept.index(wire) for wire in chosen])


def number_mean(state: Fock, wire: int) -> Float[Array, ""]:
    """Mean number of photons of a wire."""
    p = probs(state, (wire,))
    return jnp.dot(jnp.arange(len(p), dtype=p.dtype), p, precision="highest")


def number_variance(state: Fock, wire: int) -> Float[Array, ""]:
    """Variance of the number of photons of a wire."""
    p = probs(state, (wire,))
    off = jnp.arange(len(p), dtype=p.dtype) - number_mean(state, wire)
    return jnp.dot(jnp.square(off), p, precision="highest")


def quadrature_mean(state: Fock, phi: Real, wire: int) -> Float[Array, ""]:
    """<x cos(phi) + p sin(phi)>: X at phi = 0, P at pi / 2."""
    return polynomial_mean(state, jnp.pad(direction(phi), (1, 0)), (wire,))


def quadrature_variance(state: Fock, phi: Real, wire: int) -> Float[Array, ""]:
    """Variance of x cos(phi) + p sin(phi)."""
    return polynomial_variance(state, jnp.pad(direction(phi), (1, 0)), (wire,))


def polynomial_mean(
    state: Fock,
    coefficients: Float[Array, " 1+2k"] | Float[Array, "1+2k 1+2k"],
    wires: int | Sequence[int] | None = None,
) -> Float[Array, ""]:
    """Mean of a polynomial of first or second order in the wires' quadratures.

    Args:
      state: of N modes.
      coefficients: q or Q of q . R or R . Q R with R = (1, x_1, .., x_k, p_1, .., p_k). Products are symmetrised, so
        that Q counts as (Q + Q^T) / 2. PennyLane's `PolyXP` orders (1, x_1, p_1, x_2, p_2, ..).
      wires: k of them; all in order if None.

    Raises:
      InputError: the coefficients do not fit the wires.
    """
    amp, applied = _applied(state, coefficients, wires)
    return jnp.real(jnp.vdot(amp, applied, precision="highest"))


def polynomial_variance(
    state: Fock,
    coefficients: Float[Array, " 1+2k"] | Float[Array, "1+2k 1+2k"],
    wires: int | Sequence[int] | None = None,
) -> Float[Array, ""]:
    """Variance of a polynomial; arguments as for `polynomial_mean`."""
    amp, applied = _applied(state, coefficients, wires)
    mean = jnp.real(jnp.vdot(amp, applied, precision="highest"))
    return jnp.real(jnp.vdot(applied, applied, precision="highest")) - jnp.square(mean)


def sample(
    key: jax.Array, state: Fock, shots: int, wires: int | Sequence[int] | None = None
) -> Int[Array, "shots w"]:
    """Counted photons; equal keys give equal samples.

    Args:
      key: PRNG key.
      state: need not be normalised.
      shots: how many, >= 1.
      wires: all in order if None.

    Raises:
      InputError: shots < 1.
    """
    require_positive("shots", shots)
    p = jax.lax.stop_gradient(probs(state, wires))
    flat = jax.random.choice(key, p.size, (shots,), p=p.reshape(-1) / jnp.sum(p))
    return jnp.stack(jnp.unravel_index(flat, p.shape), axis=-1)


def leakage(state: Fock) -> Float[Array, ""]:
    """1 - |psi|^2: how much of a state that began normalised was lost beyond the cutoff."""
    return 1 - jnp.sum(probs(state))


def require_small_leakage(state: Fock, *, tolerance: float = 1e-4) -> Fock:
    """The state itself, if it has lost at most `tolerance` of its norm.

    Raises:
      InputError: it lost more, gained, or is traced: then return `leakage` from the compiled function and look at it
        outside.
    """
    lost = concrete(leakage(state))
    if lost is None:
        raise InputError(
            "the state is traced, its norm not known yet: return leakage(state) from the compiled function"
        )
    _, cutoff = shape_of(state)
    if not abs(lost) <= tolerance:
        raise InputError(
            f"1 - |psi|^2 is {lost:.3g} at cutoff {cutoff}; it may be at most {tolerance:g} in size: take a larger "
            "cutoff, or less displacement and squeezing (and begin with a normalised state)"
        )
    return state


def _applied(state: Fock, coefficients: Array, wires: int | Sequence[int] | None) -> tuple[Array, Array]:
    """psi and A psi, with room for the two photons more that A can bring to a wire."""
    modes, _ = shape_of(state)
    chosen = chosen_wires(wires, modes)
    constant, linear, square = polynomial(coefficients, len(chosen), jnp.finfo(state.amp.dtype).dtype)
    amp = jnp.pad(state.amp, [(0, 2 if wire in chosen else 0) for wire in range(modes)])
    applied = constant * amp + _combined(amp, linear, chosen)
    if jnp.ndim(coefficients) == 1:
        return amp, applied
    for row, (wire, kind) in zip(square, _quadratures(chosen), strict=True):
        applied += _quadrature(_combined(amp, row, chosen), wire, kind)
    return amp, applied


def _quadratures(wires: tuple[int, ...]) -> list[tuple[int, str]]:
    return [(wire, kind) for kind in "xp" for wire in wires]


def _combined(amp: Array, weights: Array, wires: tuple[int, ...]) -> Array:
    """Sum of quadratures of psi."""
    terms = zip(weights, _quadratures(wires), strict=True)
    return sum((weight * _quadrature(amp, wire, kind) for weight, (wire, kind) in terms), jnp.zeros_like(amp))


def _quadrature(amp: Array, wire: int, kind: str) -> Array:
    """x = sqrt(hbar / 2) (a + a^dagger) or p = -i sqrt(hbar / 2) (a - a^dagger)."""
    front = jnp.moveaxis(amp, wire, -1)
    roots = jnp.sqrt(HBAR / 2 * jnp.arange(1, front.shape[-1], dtype=jnp.finfo(amp.dtype).dtype))
    empty = [(0, 0)] * (front.ndim - 1)
    lowered = jnp.pad(roots * front[..., 1:], [*empty, (0, 1)])
    raised = jnp.pad(roots * front[..., :-1], [*empty, (1, 0)])
    return jnp.moveaxis(lowered + raised if kind == "x" else -1j * (lowered - raised), -1, wire)
