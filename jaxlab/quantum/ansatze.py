"""Parametrized circuits of the literature: entangling layers, excitations of electrons, QAOA.

Each function makes an `Ansatz`, which is called like any circuit, `ansatz(c, params)`, and knows the shape of its
parameters. Excitations are those of `jaxlab.quantum.molecules`: spin up on even wires, spin down on odd ones.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.quantum.pauli_sums import PauliSum, words
from jaxlab.quantum.recording import Circuit, record
from jaxlab.quantum.simulation import Differentiation, simulate


@dataclasses.dataclass(frozen=True, eq=False)
class Ansatz:
    """A circuit on n wires with one array of angles (radians) as its parameters."""

    layers: Callable[[Circuit, Array], None]
    n: int
    shape: tuple[int, ...]
    """Of the parameters."""
    block: int | None = None
    """Passed on to `simulate`; 1 where gates in pair form are to make one loop."""

    def __call__(self, c: Circuit, params: Float[Array, "..."]) -> None:
        """Records the gates.

        Raises:
          InputError: the parameters have another shape, or the circuit other wires.
        """
        if c.n != self.n:
            raise InputError(f"the circuit has {c.n} wires; the ansatz is for {self.n}")
        if jnp.shape(params) != self.shape:
            raise InputError(f"params has shape {jnp.shape(params)}; it must be {self.shape}")
        self.layers(c, jnp.asarray(params))

    def state(
        self, params: Float[Array, "..."], *, dtype: Any = None, diff: Differentiation = "adjoint"
    ) -> Complex[Array, " 2^n"]:
        """The state that the circuit makes of |0...0>.

        Args:
          params: of the ansatz's shape, radians; batches by `vmap`.
          dtype: see `simulate`.
          diff: see `simulate`.

        Raises:
          InputError: the parameters have another shape.
        """
        program, slots = record(self, self.n, params)
        return simulate(program, slots, dtype=dtype, diff=diff, block=self.block)


def hardware_efficient(n: int, layers: int) -> Ansatz:
    """Layers of RY and RZ on every wire and a chain of CNOTs 0-1, 1-2, ...; parameters [layers, n, 2].

    At zero it is |0...0>, whose chain does nothing. Reference: Kandala et al., Nature 549 (2017) 242.

    Args:
      n: wires, >= 1.
      layers: >= 1; they are one loop, so that compile time does not grow with them.

    Raises:
      InputError: n or layers < 1.
    """
    _check_layers(n, layers)

    def layer(c: Any, angles: Array) -> None:
        c.ry(angles[:, 0], range(n))
        c.rz(angles[:, 1], range(n))
        for wire in range(n - 1):
            c.cnot(wire, wire + 1)

    return Ansatz(lambda c, params: c.repeat(layer, params), n, (layers, n, 2))


def strongly_entangling(n: int, layers: int) -> Ansatz:
    """Layers of Rot on every wire and a ring of CNOTs whose range goes 1, 2, ..., n - 1, 1, ...; PennyLane's
    `StronglyEntanglingLayers`. Parameters [layers, n, 3].

    The layers are one loop: `simulate` finds that they differ in their permutations alone. Reference: Schuld, Bocharov,
    Svore and Wiebe, Physical Review A 101 (2020) 032308.

    Args:
      n: wires, >= 1.
      layers: >= 1.

    Raises:
      InputError: n or layers < 1.
    """
    _check_layers(n, layers)

    def some_layers(c: Any, params: Array) -> None:
        for index, angles in enumerate(params):
            c.rot(*angles.T, range(n))
            for wire in range(n if n > 1 else 0):
                c.cnot(wire, (wire + index % (n - 1) + 1) % n)

    def record_layers(c: Any, params: Array) -> None:
        # Of few wires the CNOTs disappear in the matrix of a block: there layers are the same after n - 1 of them.
        period = n - 1 if 3 <= n <= 4 else layers + 1
        whole = layers - layers % period
        if whole:
            c.repeat(some_layers, params[:whole].reshape(-1, period, n, 3))
        some_layers(c, params[whole:])

    return Ansatz(record_layers, n, (layers, n, 3))


class Excitations(NamedTuple):
    """Wires from which electrons go, and to which: (r, p), and (s, r, q, p) with s, r to q, p; s < r and q < p."""

    singles: tuple[tuple[int, int], ...]
    doubles: tuple[tuple[int, int, int, int], ...]


def excitations(k: int, electrons: int | tuple[int, int]) -> Excitations:
    """Excitations of one and of two electrons out of the Hartree-Fock state that leave the spin as it is.

    Args:
      k: orbitals; there are 2 k wires.
      electrons: all, half of them with each spin; or those with spin up and down.

    Raises:
      InputError: k < 1, or there are not as many electrons as said, or no excitations.
    """
    occupied, empty = _occupied(k, electrons)
    singles = tuple((r, p) for r in occupied for p in empty if (r - p) % 2 == 0)
    doubles = tuple(
        (s, r, q, p)
        for i, s in enumerate(occupied)
        for r in occupied[i + 1 :]
        for j, q in enumerate(empty)
        for p in empty[j + 1 :]
        if s % 2 + r % 2 == q % 2 + p % 2
    )
    if not singles and not doubles:
        raise InputError(f"{electrons} electrons in {k} orbitals have no excitations that keep their spins")
    return Excitations(singles, doubles)


def all_singles_doubles(k: int, electrons: int | tuple[int, int]) -> Ansatz:
    """The Hartree-Fock state and all excitations of `excitations`, as Givens rotations that know no fermions.

    PennyLane's `AllSinglesDoubles`. Parameters [singles + doubles], though the doubles come first in the circuit; at
    zero it is the Hartree-Fock state. Reference: Arrazola et al., Quantum 6 (2022) 742.

    Args:
      k: orbitals; there are 2 k wires.
      electrons: see `excitations`.

    Raises:
      InputError: see `excitations`.
    """
    occupied, _ = _occupied(k, electrons)
    singles, doubles = excitations(k, electrons)

    def record_all(c: Any, params: Array) -> None:
        c.x(occupied)
        for i, wires in enumerate(doubles):
            c.double_excitation(params[len(singles) + i], *wires)
        for i, pair in enumerate(singles):
            c.single_excitation(params[i], *pair)

    return Ansatz(record_all, 2 * k, (len(singles) + len(doubles),), block=1)


def uccsd(k: int, electrons: int | tuple[int, int], *, repeats: int = 1) -> Ansatz:
    """Unitary coupled cluster with singles and doubles, in one Trotter step; PennyLane's `UCCSD`.

    exp(t (T - T^dagger) / 2) of each excitation T of `excitations`, doubles before singles, after the Hartree-Fock
    state. Parameters [singles + doubles], or [repeats, singles + doubles]; at zero it is the Hartree-Fock state.
    Reference: Romero et al., Quantum Science and Technology 4 (2018) 014008.

    Args:
      k: orbitals; there are 2 k wires.
      electrons: see `excitations`.
      repeats: times that all of it is done, >= 1; one loop.

    Raises:
      InputError: repeats < 1, or see `excitations`.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}; it must be at least 1")
    occupied, _ = _occupied(k, electrons)
    singles, doubles = excitations(k, electrons)

    def once(c: Circuit, params: Array) -> None:
        for i, wires in enumerate(doubles):
            # T takes the two electrons in the order that PennyLane does, which is the other sign
            _excite(c, wires, -params[len(singles) + i])
        for i, pair in enumerate(singles):
            _excite(c, pair, params[i])

    def record_all(c: Any, params: Array) -> None:
        c.x(occupied)
        if repeats == 1:
            once(c, params)
        else:
            c.repeat(once, params)

    count = len(singles) + len(doubles)
    return Ansatz(record_all, 2 * k, (count,) if repeats == 1 else (repeats, count), block=1)


def qaoa(cost: PauliSum, p: int) -> Ansatz:
    """p layers of exp(-i gamma C) and exp(-i beta (X_0 + X_1 + ...)) after |+...+>; parameters [p, 2], gamma and beta.

    A cost of words of I and Z alone commutes with itself; of others exp(-i gamma C) is one Trotter step, in the order
    of `words`. Coefficients are numbers here and not differentiated. Reference: Farhi, Goldstone and Gutmann,
    arXiv:1411.4028.

    Args:
      cost: real coefficients.
      p: layers, >= 1; they are one loop.

    Raises:
      InputError: p < 1, or the cost is traced or has complex coefficients.
    """
    _check_layers(cost.n, p)
    if jnp.iscomplexobj(cost.c):
        raise InputError("the cost has complex coefficients; a cost needs real ones")
    terms = words(cost)

    def layer(c: Any, angles: Array) -> None:
        gamma, beta = angles
        for word, weight in terms.items():
            wires = [wire for wire, letter in enumerate(word) if letter != "I"]
            letters = "".join(word[wire] for wire in wires)
            if not wires:
                c.gate("GlobalPhase", (), gamma * weight)
            elif set(letters) == {"Z"}:
                c.gate(f"MultiRZ:{len(wires)}", wires, 2 * gamma * weight)
            else:
                c.gate(f"PauliRot:{letters}", wires, 2 * gamma * weight)
        c.rx(2 * beta, range(cost.n))

    def record_all(c: Any, params: Array) -> None:
        c.h(range(cost.n))
        c.repeat(layer, params)

    return Ansatz(record_all, cost.n, (p, 2))


def _check_layers(n: int, layers: int) -> None:
    for name, value in (("n", n), ("layers", layers)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def _occupied(k: int, electrons: int | tuple[int, int]) -> tuple[list[int], list[int]]:
    """Wires of the Hartree-Fock state that hold an electron, and the others."""
    if k < 1:
        raise InputError(f"k is {k}; there must be an orbital")
    if isinstance(electrons, int | np.integer):
        if electrons % 2:
            raise InputError(f"electrons is {electrons}; give an odd number as (spin up, spin down)")
        electrons = electrons // 2, electrons // 2
    up, down = electrons
    if not (0 <= up <= k and 0 <= down <= k):
        raise InputError(f"electrons is {(up, down)}; {k} orbitals hold 0 to {k} of each spin")
    occupied = sorted([*range(0, 2 * up, 2), *range(1, 2 * down, 2)])
    return occupied, [wire for wire in range(2 * k) if wire not in occupied]


def _excite(c: Circuit, wires: Sequence[int], angle: Array) -> None:
    """A fermionic excitation; wires between its ends give its sign, those of two overlapping stretches do not."""
    between: set[int] = set()
    for first, last in zip(wires[::2], wires[1::2], strict=True):
        between ^= set(range(first, last))
    string = sorted(between - set(wires))
    c.gate(f"FermionicExcitation:{len(wires)},{len(string)}", (*wires, *string), angle)
