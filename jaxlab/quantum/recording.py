"""Circuits as functions: recording one gives a static program and the arrays that it works on.

A circuit is a function `fn(c, *args)` that calls the methods of a `Circuit`. What it calls is the program: gates,
wires, repetitions, hashable. What it calls them with, angles and matrices, are the slots: a pytree of arrays.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.quantum.gates import ALIASES, gate_type

UNITARY = "Unitary"
CHANNEL = "Channel"
_TOLERANCE = 1e-4
"""How far from unitary a given matrix may be; single precision included."""


class Gate(NamedTuple):
    """One gate on some wires."""

    kind: str
    """See `jaxlab.quantum.gates.gate_type`; or `Unitary`, with the matrix in a slot."""
    wires: tuple[int, ...]
    slot: int = 0
    """Where its angles begin in the angles of its `Body`; or which of the matrices it is."""
    controls: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    """What the controls must be, 0 or 1."""
    adjoint: bool = False


class Body(NamedTuple):
    """Gates one after the other."""

    gates: tuple[Gate, ...]


class Part(NamedTuple):
    """A body, done once (`times` None) or several times with slots of its own each time.

    `variants`, if given, are the bodies of all times; they differ from the first in X, CNOT and SWAP only.
    """

    body: Body
    times: int | None = None
    variants: tuple[Body, ...] | None = None


class Program(NamedTuple):
    """The static half of a circuit on n wires."""

    n: int
    parts: tuple[Part, ...]


class BodySlots(NamedTuple):
    """What a body works on; with a leading axis for the times of a repeated part."""

    angles: Float[Array, "... angles"]
    matrices: tuple[Complex[Array, "... K K"], ...]


Slots = tuple[BodySlots, ...]
"""One for each part of a program."""


class Circuit:
    """Records gates on wires 0 to n - 1.

    Methods take angles first, then wires. A gate of one wire may get a sequence of m wires, with angles of shape [m]:
    m gates, one array. All methods take `controls` (wires), `values` (of the controls, default all 1) and `adjoint`.
    """

    def __init__(self, n: int):
        if n < 1:
            raise InputError(f"n is {n}; a circuit has at least one wire")
        self.n = n
        self._parts: list[Part] = []
        self._slots: list[BodySlots] = []
        self._begin()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., None]:
            """The methods that `_add_methods` makes: `rx`, `cnot`, ..."""

    def _begin(self) -> None:
        self._gates: list[Gate] = []
        self._angles: list[Array] = []
        self._count = 0
        self._matrices: list[Array] = []

    def _close(self) -> None:
        if self._gates:
            self._parts.append(Part(Body(tuple(self._gates))))
            self._slots.append(self._body_slots())
            self._begin()

    def _body_slots(self) -> BodySlots:
        angles = jnp.concatenate(self._angles) if self._angles else jnp.zeros(0)
        return BodySlots(angles, tuple(self._matrices))

    def gate(
        self,
        kind: str,
        wires: int | Sequence[int],
        *angles: Any,
        controls: int | Sequence[int] = (),
        values: Sequence[int] | None = None,
        adjoint: bool = False,
    ) -> None:
        """Any gate by PennyLane's name, e.g. `c.gate("CRX", (0, 1), 0.3)`; controls of the name come first.

        Args:
          kind: `RX`, `CNOT`, ..., or `MultiRZ:3`, `PauliRot:XYZ`, `PCPhase:WIRES,DIMENSION`.
          wires: of the gate.
          angles: real scalars, radians.
          controls: further wires in front; the gate acts where they have their `values`.
          values: 0 or 1 for each of `controls`.
          adjoint: the inverse gate.

        Raises:
          InputError: no such gate, a wire out of range or repeated, a wrong number of wires, angles or values.
        """
        wires, controls, values = self._checked(kind, wires, controls, values)
        if kind in ALIASES:
            alias = ALIASES[kind]
            controls, wires = controls + wires[: alias.controls], wires[alias.controls :]
            values, kind = values + (1,) * alias.controls, alias.base
        try:
            known = gate_type(kind)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"there is no gate {kind!r}; see jaxlab.quantum.gates for their names"
            ) from error
        if len(wires) != known.wires and not (known.wires == 0 and len(wires) <= self.n):
            raise InputError(
                f"{kind} is given the wires {wires}; it acts on {known.wires} besides its controls"
            )
        if len(angles) != known.angles:
            raise InputError(f"{kind} is given {len(angles)} angles; it takes {known.angles}")
        slot = self._add_angles([_angle(kind, one) for one in angles])
        self._gates.append(Gate(kind, wires if known.wires else (), slot, controls, values, adjoint))

    def unitary(
        self,
        matrix: Any,
        wires: int | Sequence[int],
        *,
        controls: int | Sequence[int] = (),
        values: Sequence[int] | None = None,
        adjoint: bool = False,
        check: bool = True,
    ) -> None:
        """A gate by its matrix [2^k, 2^k] on k wires, the first one most significant.

        With `check` False it need not be unitary; such programs are differentiated with diff="backprop".

        Raises:
          InputError: the shape does not fit, or the matrix is concrete and not unitary.
        """
        wires, controls, values = self._checked(UNITARY, wires, controls, values)
        matrix, size = jnp.asarray(matrix), 1 << len(wires)
        if matrix.shape != (size, size):
            raise InputError(
                f"matrix has shape {matrix.shape}; on {len(wires)} wires it must be ({size}, {size})"
            )
        if check and not isinstance(matrix, jax.core.Tracer):
            check_unitary(np.asarray(matrix))
        self._gates.append(Gate(UNITARY, wires, len(self._matrices), controls, values, adjoint))
        self._matrices.append(matrix.astype(jnp.promote_types(matrix.dtype, jnp.complex64)))

    def channel(self, kraus: Any, wires: int | Sequence[int]) -> None:
        """Noise by its Kraus operators [operators, 2^k, 2^k] on k wires; see `jaxlab.quantum.noise` for the usual ones.

        Raises:
          InputError: the shape does not fit.
        """
        wires, _, _ = self._checked(CHANNEL, wires, (), None)
        kraus, size = jnp.asarray(kraus), 1 << len(wires)
        if kraus.ndim != 3 or kraus.shape[1:] != (size, size):
            raise InputError(
                f"kraus has shape {kraus.shape}; on {len(wires)} wires it must be (operators, {size}, {size})"
            )
        self._gates.append(Gate(CHANNEL, wires, len(self._matrices)))
        self._matrices.append(kraus.astype(jnp.promote_types(kraus.dtype, jnp.complex64)))

    def repeat(self, layer: Callable[["Circuit", Any], None], stacked: Any) -> None:
        """`layer(c, x)` for every x along the leading axis of `stacked`, compiled once.

        Args:
          layer: calls the same gates on the same wires whatever x is.
          stacked: pytree of arrays with a common leading axis, at least 1.

        Raises:
          InputError: there is no common leading axis.
        """
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(stacked)}
        if len(lengths) != 1 or lengths == {()} or lengths == {(0,)}:
            raise InputError(f"stacked has leading axes {sorted(lengths)}; one common length >= 1 is needed")
        ((times,),) = lengths
        seen: list[Body] = []

        def record(x: Any) -> BodySlots:
            inner = Circuit(self.n)
            layer(inner, x)
            if inner._parts:
                raise InputError("repeat within repeat: write the inner layers out")
            seen.append(Body(tuple(inner._gates)))
            return inner._body_slots()

        slots = jax.vmap(record)(stacked)
        self._close()
        self._parts.append(Part(seen[0], times))
        self._slots.append(slots)

    def finish(self) -> tuple[Program, Slots]:
        """What has been recorded."""
        self._close()
        return Program(self.n, tuple(self._parts)), tuple(self._slots)

    def _add_angles(self, angles: list[Array]) -> int:
        slot = self._count
        if angles:
            self._angles.append(jnp.stack(jnp.broadcast_arrays(*angles), axis=-1).reshape(-1))
            self._count += self._angles[-1].shape[0]
        return slot

    def _checked(
        self,
        kind: str,
        wires: int | Sequence[int],
        controls: int | Sequence[int],
        values: Sequence[int] | None,
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        wires, controls = _as_tuple(wires), _as_tuple(controls)
        for wire in wires + controls:
            if not 0 <= wire < self.n:
                raise InputError(f"{kind} is given the wire {wire}; wires lie between 0 and {self.n - 1}")
        if len(set(wires + controls)) != len(wires + controls):
            raise InputError(f"{kind} is given the wires {wires + controls}; none may stand twice")
        values = (1,) * len(controls) if values is None else tuple(int(value) for value in values)
        if len(values) != len(controls) or not set(values) <= {0, 1}:
            raise InputError(f"values is {values}; one 0 or 1 is needed for each of the controls {controls}")
        return wires, controls, values

    def _each(self, kind: str, wires: int | Sequence[int], *angles: Any, **options: Any) -> None:
        """A gate of one wire on one or several wires."""
        if isinstance(wires, int | np.integer):
            self.gate(kind, wires, *angles, **options)
            return
        wires = _as_tuple(wires)
        arrays = [jnp.asarray(one) for one in angles]
        for one in arrays:
            if one.shape not in ((), (len(wires),)):
                raise InputError(
                    f"{kind} is given angles of shape {one.shape}; for the {len(wires)} wires {wires} it must be "
                    f"() or ({len(wires)},)"
                )
        full = [jnp.broadcast_to(_real(kind, one), (len(wires),)) for one in arrays]
        slot = self._add_angles(full)
        for index, wire in enumerate(wires):
            own, controls, values = self._checked(
                kind, wire, options.get("controls", ()), options.get("values")
            )
            place = slot + index * len(full)
            self._gates.append(Gate(kind, own, place, controls, values, options.get("adjoint", False)))


def _as_tuple(wires: int | Sequence[int]) -> tuple[int, ...]:
    return (int(wires),) if isinstance(wires, int | np.integer) else tuple(int(wire) for wire in wires)


def _real(kind: str, angle: Array) -> Array:
    if jnp.issubdtype(angle.dtype, jnp.complexfloating):
        raise InputError(f"{kind} is given an angle of dtype {angle.dtype}; angles are real")
    return angle.astype(jnp.promote_types(angle.dtype, jnp.float32))


def _angle(kind: str, angle: Any) -> Array:
    array = jnp.asarray(angle)
    if array.shape:
        raise InputError(
            f"{kind} is given an angle of shape {array.shape}; it must be a scalar (vmap for batches)"
        )
    return _real(kind, array)


def check_unitary(matrix: np.ndarray) -> None:
    """Raises InputError unless the matrix is unitary to single precision."""
    error = np.max(np.abs(matrix @ matrix.conj().T - np.eye(len(matrix))))
    if not error <= _TOLERANCE:
        raise InputError(f"matrix is not unitary: U U^dagger differs from 1 by {error:.2g}")


def _add_methods() -> None:
    """`c.rx(t, 0)` and the like, from the names of the gates."""
    methods = {
        "rx": "RX", "ry": "RY", "rz": "RZ", "phase_shift": "PhaseShift", "rot": "Rot", "u2": "U2", "u3": "U3",
        "x": "PauliX", "y": "PauliY", "z": "PauliZ", "h": "Hadamard", "s": "S", "t": "T", "sx": "SX",
    }  # fmt: skip
    several = {
        "cnot": "CNOT", "cy": "CY", "cz": "CZ", "ch": "CH", "crx": "CRX", "cry": "CRY", "crz": "CRZ", "crot": "CRot",
        "cphase": "ControlledPhaseShift", "swap": "SWAP", "iswap": "ISWAP", "cswap": "CSWAP", "toffoli": "Toffoli",
        "ccz": "CCZ", "ising_xx": "IsingXX", "ising_yy": "IsingYY", "ising_zz": "IsingZZ", "ising_xy": "IsingXY",
        "single_excitation": "SingleExcitation", "double_excitation": "DoubleExcitation",
        "orbital_rotation": "OrbitalRotation", "fermionic_swap": "FermionicSWAP",
    }  # fmt: skip

    def one_wire(kind: str) -> Callable[..., None]:
        count = gate_type(kind).angles

        def method(self: Circuit, *args: Any, **options: Any) -> None:
            self._each(kind, _last(kind, args, count), *args[:count], **options)

        return method

    def more_wires(kind: str) -> Callable[..., None]:
        base = ALIASES[kind].base if kind in ALIASES else kind
        count = gate_type(base).angles

        def method(self: Circuit, *args: Any, **options: Any) -> None:
            self.gate(kind, args[count:], *args[:count], **options)

        return method

    for makers, make in ((methods, one_wire), (several, more_wires)):
        for name, kind in makers.items():
            method = make(kind)
            method.__name__, method.__qualname__ = name, f"Circuit.{name}"
            method.__doc__ = f"{kind}: angles, then wires (see the class)."
            setattr(Circuit, name, method)


def _last(kind: str, args: tuple[Any, ...], count: int) -> Any:
    if len(args) != count + 1:
        raise InputError(f"{kind} takes {count} angles and then the wire or wires")
    return args[count]


_add_methods()


def record(fn: Callable[..., Any], n: int, *args: Any) -> tuple[Program, Slots]:
    """The program of `fn(c, *args)` on n wires, and its slots for these arguments."""
    circuit = Circuit(n)
    fn(circuit, *args)
    return circuit.finish()


def trace(fn: Callable[..., Any], n: int, *example_args: Any) -> tuple[Program, Callable[..., Slots]]:
    """The program of a circuit, and the function from its arguments to its slots.

    Args:
      fn: `fn(c, *args)`, calls gates on the `Circuit` c.
      n: wires, >= 1.
      example_args: arrays of the shapes that fn will get; their values are not looked at.

    Raises:
      InputError: a gate is used wrongly.
    """
    programs: list[Program] = []

    def slots_fn(*args: Any) -> Slots:
        program, slots = record(fn, n, *args)
        programs.append(program)
        return slots

    jax.eval_shape(slots_fn, *example_args)
    return programs[0], lambda *args: record(fn, n, *args)[1]
