"""Circuits of continuous variables as static lists of gates, which run on either backend from one vector of parameters.

On Gaussian states all gates are one scan, so that neither compilation nor the program grows with their number; on Fock
states the matrices of all gates of one kind are built together. Shift rules (`jaxlab.quantum.cv_shift`) need to know a
circuit in this form. Reference: arXiv:1811.04968.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.quantum import fock, symplectic
from jaxlab.quantum.fock import Fock
from jaxlab.quantum.gaussian import Gaussian
from jaxlab.quantum.modes import chosen_wires, parameter, require_positive

State = TypeVar("State", Gaussian, Fock)
Rule = Literal["angle", "hyperbolic", "linear", "none"]
"""How S and d depend on a parameter: by sine and cosine, by sinh and cosh, or as it is; "none": not Gaussian."""


class CVGateKind(NamedTuple):
    """What is known of a kind of gate."""

    wires: int
    rules: tuple[Rule, ...]
    """One for each parameter."""
    matrix: Callable[..., Array] | None = None
    """S of a Gaussian gate that has one other than 1."""
    shift: Callable[..., Array] | None = None
    """d of a Gaussian gate that has one other than 0."""

    @property
    def is_gaussian(self) -> bool:
        """Whether Gaussian states stay Gaussian."""
        return self.matrix is not None or self.shift is not None


KINDS: dict[str, CVGateKind] = {
    "Rotation": CVGateKind(1, ("angle",), symplectic.rotation),
    "Displacement": CVGateKind(1, ("linear", "angle"), shift=symplectic.displacement),
    "Squeezing": CVGateKind(1, ("hyperbolic", "angle"), symplectic.squeezing),
    "QuadraticPhase": CVGateKind(1, ("linear",), symplectic.quadratic_phase),
    "CubicPhase": CVGateKind(1, ("none",)),
    "Kerr": CVGateKind(1, ("none",)),
    "CrossKerr": CVGateKind(2, ("none",)),
    "Beamsplitter": CVGateKind(2, ("angle", "angle"), symplectic.beamsplitter),
    "TwoModeSqueezing": CVGateKind(2, ("hyperbolic", "angle"), symplectic.two_mode_squeezing),
    "ControlledAddition": CVGateKind(2, ("linear",), symplectic.controlled_addition),
    "ControlledPhase": CVGateKind(2, ("linear",), symplectic.controlled_phase),
}
"""By PennyLane's names, parameters in PennyLane's order."""


class CVGate(NamedTuple):
    """One gate; `first` is the place of its first parameter."""

    kind: str
    wires: tuple[int, ...]
    first: int


class CVCircuit(NamedTuple):
    """A circuit without its parameters: static and hashable."""

    modes: int
    gates: tuple[CVGate, ...]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(len(KINDS[gate.kind].rules) for gate in self.gates)


def cv_circuit(modes: int, gates: Sequence[tuple[str, int | Sequence[int]]]) -> CVCircuit:
    """A circuit from names and wires: `cv_circuit(2, [("Displacement", 0), ("Beamsplitter", (0, 1))])`.

    Args:
      modes: number of wires, >= 1.
      gates: name (see `KINDS`) and wires, first to last. Parameters follow in the same order, in one vector: for the
        example a, phi, theta, phi.

    Raises:
      InputError: modes < 1, an unknown name, or wires out of range, repeated or of a wrong number.
    """
    require_positive("modes", modes)
    found: list[CVGate] = []
    first = 0
    for kind, wires in gates:
        if kind not in KINDS:
            raise InputError(f"there is no gate {kind!r}; there are {', '.join(KINDS)}")
        found.append(CVGate(kind, chosen_wires(wires, modes, KINDS[kind].wires), first))
        first += len(KINDS[kind].rules)
    return CVCircuit(modes, tuple(found))


def run_cv(circuit: CVCircuit, params: Float[Array, " P"], state: State) -> State:
    """The state after all gates.

    Args:
      circuit: see `cv_circuit`.
      params: of all gates, in order; batches by `vmap`.
      state: to begin with, Gaussian or Fock, without leading axes; the result has its precision.

    Raises:
      InputError: params or state do not fit the circuit, or the state is Gaussian and a gate is not.
    """
    if isinstance(state, Gaussian):
        return _run_gaussian(circuit, checked_params(circuit, params), state)
    return _run_fock(circuit, checked_params(circuit, params), state)


def checked_params(circuit: CVCircuit, params: Float[Array, " P"]) -> Float[Array, " P"]:
    """The parameters as an array.

    Raises:
      InputError: they are not real, or not as many as the circuit has.
    """
    values = parameter("params", params)
    if values.shape != (circuit.size,):
        raise InputError(
            f"params has shape {values.shape}; this circuit takes ({circuit.size},) (vmap for batches)"
        )
    return values


def by_kind(gates: Sequence[CVGate]) -> dict[str, np.ndarray]:
    """Places among `gates`, for each kind that there is."""
    kinds = dict.fromkeys(gate.kind for gate in gates)
    return {kind: np.array([i for i, gate in enumerate(gates) if gate.kind == kind]) for kind in kinds}


def own_params(
    gates: Sequence[CVGate], members: np.ndarray, params: Float[Array, " P"]
) -> Float[Array, "members own"]:
    """Parameters of gates of one kind."""
    own = len(KINDS[gates[members[0]].kind].rules)
    return params[np.array([gates[i].first for i in members])[:, None] + np.arange(own)]


def affine(
    kind: str, own: Float[Array, "... own"]
) -> tuple[Float[Array, "... 2k 2k"], Float[Array, "... 2k"]]:
    """S and d of a Gaussian gate: its wires' quadratures R become S R + d."""
    known = KINDS[kind]
    leading, size = own.shape[:-1], 2 * known.wires
    columns = tuple(own[..., i] for i in range(own.shape[-1]))
    S = known.matrix(*columns) if known.matrix else jnp.eye(size, dtype=own.dtype)
    d = known.shift(*columns) if known.shift else jnp.zeros(size, own.dtype)
    return jnp.broadcast_to(S, (*leading, size, size)), jnp.broadcast_to(d, (*leading, size))


def _run_gaussian(circuit: CVCircuit, params: Array, state: Gaussian) -> Gaussian:
    modes, dtype = circuit.modes, state.mean.dtype
    if state.mean.shape != (2 * modes,):
        raise InputError(
            f"state has a mean of shape {state.mean.shape}; this circuit takes ({2 * modes},) (vmap for batches)"
        )
    for i, gate in enumerate(circuit.gates):
        if not KINDS[gate.kind].is_gaussian:
            raise InputError(f"gate {i} is {gate.kind}, which is not Gaussian: run it on a Fock state")
    if not circuit.gates:
        return state
    width = max(len(gate.wires) for gate in circuit.gates)
    wires = np.array([(*gate.wires, (gate.wires[0] + 1) % modes)[:width] for gate in circuit.gates])
    rows = np.concatenate([wires, wires + modes], axis=1)
    groups = by_kind(circuit.gates)
    wide = [
        _widened(*affine(kind, own_params(circuit.gates, members, params)), width)
        for kind, members in groups.items()
    ]
    back = np.argsort(np.concatenate(list(groups.values())))
    S, d = (jnp.concatenate(parts)[back].astype(dtype) for parts in zip(*wide, strict=True))

    def step(state: Gaussian, gate: tuple[Array, Array, Array]) -> tuple[Gaussian, None]:
        S, d, index = gate
        mean = state.mean.at[index].set(jnp.matmul(S, state.mean[index], precision="highest") + d)
        cov = state.cov.at[index].set(jnp.matmul(S, state.cov[index], precision="highest"))
        cov = cov.at[:, index].set(jnp.matmul(cov[:, index], S.T, precision="highest"))
        return Gaussian(mean, cov), None

    return jax.lax.scan(step, state, (S, d, jnp.asarray(rows, jnp.int32)))[0]


def _widened(S: Array, d: Array, width: int) -> tuple[Array, Array]:
    """Gates of one wire with a second one that they leave alone."""
    if d.shape[-1] == 2 * width:
        return S, d
    own = np.array([0, 2])
    whole = jnp.broadcast_to(jnp.eye(4, dtype=S.dtype), (len(S), 4, 4))
    return whole.at[:, own[:, None], own].set(S), jnp.zeros((len(d), 4), d.dtype).at[:, own].set(d)


def _run_fock(circuit: CVCircuit, params: Array, state: Fock) -> Fock:
    modes, cutoff = fock.shape_of(state)
    if modes != circuit.modes:
        raise InputError(f"state has {modes} modes; this circuit takes {circuit.modes}")
    params = params.astype(jnp.finfo(state.amp.dtype).dtype)
    kernels = {}
    for kind, members in by_kind(circuit.gates).items():
        own = own_params(circuit.gates, members, params)
        built = jax.vmap(lambda own, kind=kind: fock.KERNELS[kind].build(*own, cutoff=cutoff))(own)
        kernels.update(
            {int(i): jax.tree.map(lambda leaf, at=at: leaf[at], built) for at, i in enumerate(members)}
        )
    for i, gate in enumerate(circuit.gates):
        state = fock.KERNELS[gate.kind].apply(state, kernels[i], gate.wires)
    return state
