"""State vectors over several devices: each has the amplitudes whose global bits are its number.

Gates on local bits need no communication, and diagonal gates, permutations and controls need none anywhere. What else
acts on global bits waits for an exchange of as many local bits, by one all-to-all; nothing is brought back, since the
frame of the state says where its amplitudes are (`jaxlab.quantum.frames`, `jaxlab.quantum.sharded_plan`). The
gradient is that of `jaxlab.quantum.simulation`: the adjoint method, whose memory does not grow with depth. References:
Haener and Steiger, arXiv:1704.01127 (exchanging global and local qubits); Jones and Gacon, arXiv:2009.02823.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Complex

from jaxlab.errors import InputError
from jaxlab.quantum.frames import Frame
from jaxlab.quantum.operands import Operand, build
from jaxlab.quantum.recording import BodySlots, Program, Slots
from jaxlab.quantum.rolling import rolled
from jaxlab.quantum.sharded_plan import plan
from jaxlab.quantum.sharded_run import Device, run_part, undo_part
from jaxlab.quantum.sharded_steps import PartPlan, Plan
from jaxlab.quantum.simulation import cast, check_memory, check_program, default_block, dtype_of


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("amplitudes",),
    meta_fields=("frame", "mesh", "axis"),
)
@dataclasses.dataclass(frozen=True)
class ShardedState:
    """A state whose amplitude x is `amplitudes[y]`, y = B x XOR offset as its frame says.

    What does not depend on the order can be asked of the amplitudes at once, e.g. their norm; see `in_order` for the
    usual order, and `sharded_expval`, `sharded_marginal_z` and `sharded_probs`.
    """

    amplitudes: Complex[Array, " 2^n"]
    """One array, in equal parts on the devices along `axis` of the mesh."""
    frame: Frame
    mesh: Mesh
    axis: str


class _Settings(NamedTuple):
    """The static half of a run."""

    program: Program
    block: int
    local: int
    mesh: Mesh
    axis: str
    start: Frame
    end: Frame | None

    def plan(self) -> Plan:
        return plan(self.program, self.block, self.local, self.start, self.end)


def simulate_sharded(
    program: Program,
    slots: Slots,
    state: ShardedState | None = None,
    *,
    mesh: Mesh,
    axis: str = "amp",
    dtype: Any = None,
    block: int | None = None,
) -> ShardedState:
    """The state that a program leads to, in equal parts on 2^g devices, for use within `jit`.

    Differentiable in reverse mode, by the adjoint method (for unitary matrices only). For parameter sets on a second
    axis of the mesh, `jax.vmap(..., spmd_axis_name=THAT_AXIS)`.

    Args:
      program: see `trace`; on n >= 2 g wires.
      slots: its arrays, the same on all devices.
      state: to begin with, |0...0> if None; on the same mesh and axis.
      mesh: see `jaxlab.parallel.make_mesh`.
      axis: of the mesh, of size 2^g.
      dtype: complex64 or complex128; None is that of the angles, matrices and state.
      block: most wires of a dense block, 1 to 10; None picks. A device's n - g wires are another limit.

    Raises:
      InputError: an argument does not fit the program, the axis is none of the mesh or its size no power of two, the
        wires are fewer than 2 g, or a gate has no simpler form and more wires than a device.
      ResourceError: three states of so many wires exceed the devices' memory.
    """
    check_program(program, slots, block)
    local = _local_wires(program.n, mesh, axis)
    if state is not None and (state.mesh, state.axis, state.frame.n) != (mesh, axis, program.n):
        raise InputError(
            f"state has {state.frame.n} wires on axis {state.axis!r} of {state.mesh}; the program needs {program.n} "
            f"on {axis!r} of {mesh}"
        )
    dtype = dtype_of(slots, None if state is None else state.amplitudes, dtype)
    check_memory(program.n, dtype, list(mesh.devices.flat)[: mesh.shape[axis]])
    block = min(local, block or default_block(program.n))
    program, slots = rolled(program, slots, block)
    start = plan(program, block, local, None if state is None else state.frame).start
    settings = _Settings(program, block, local, mesh, axis, start, None)
    psi = _zero_state(settings, dtype) if state is None else state.amplitudes.astype(dtype)
    try:
        amplitudes = _adjoint(settings, cast(slots, dtype), psi)
    except TypeError as error:
        if "forward-mode" in str(error):
            raise InputError(
                "on several devices there are no forward-mode derivatives (jvp, jacfwd); use grad or jacrev"
            ) from error
        raise
    return ShardedState(amplitudes, settings.plan().end, mesh, axis)


def in_order(state: ShardedState) -> Complex[Array, " 2^n"]:
    """The amplitudes in the usual order, wire 0 being the most significant bit, still on the devices.

    Takes up to two all-to-alls. Differentiable in reverse mode.
    """
    n, local = state.frame.n, state.frame.local
    usual = Frame(local, tuple(1 << bit for bit in range(n)))
    settings = _Settings(Program(n, ()), 1, local, state.mesh, state.axis, state.frame, usual)
    return _adjoint(settings, (), state.amplitudes)


def _local_wires(n: int, mesh: Mesh, axis: str) -> int:
    if axis not in mesh.shape:
        raise InputError(f"axis is {axis!r}, but the mesh has {', '.join(mesh.shape)}")
    count = mesh.shape[axis]
    if count & (count - 1):
        raise InputError(f"axis {axis!r} has {count} devices; it must be a power of two")
    shared = count.bit_length() - 1
    if 2 * shared > n:
        raise InputError(
            f"axis {axis!r} has {count} devices, for {shared} of the {n} wires; at most half of them may be there: use "
            f"up to {1 << (n // 2)} devices"
        )
    return n - shared


def on_devices(
    function: Callable[..., Any], mesh: Mesh, axis: str, local: int, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`shard_map` of a function that gets the `Device` first."""

    def on_one(*args: Any) -> Any:
        return function(Device(axis, mesh.shape[axis], jax.lax.axis_index(axis), local), *args)

    # What is the same on all devices is made so by psum; the check would need marks on every loop's carry.
    return jax.shard_map(on_one, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zero_state(settings: _Settings, dtype: Any) -> Array:
    """|0...0> in the frame that the run starts in."""
    place = settings.start.offset & ((1 << settings.local) - 1)
    owner = settings.start.offset >> settings.local

    def make(device: Device) -> Array:
        return jnp.zeros(1 << settings.local, dtype).at[place].set(device.number == owner)

    return _mapped(settings, make, (), PartitionSpec(settings.axis))()


def _mapped(settings: _Settings, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    return on_devices(function, settings.mesh, settings.axis, settings.local, in_specs, out_specs)


Operands = tuple[tuple[Operand, ...], ...]


@functools.partial(jax.jit, static_argnums=0)
def _run(settings: _Settings, operands: Operands, psi: Array) -> Array:
    parts = settings.plan().parts

    def run(device: Device, operands: Operands, psi: Array) -> Array:
        for part, own in zip(parts, operands, strict=True):
            psi = run_part(part, own, psi, device)
        return psi

    split = PartitionSpec(settings.axis)
    return _mapped(settings, run, (PartitionSpec(), split), split)(operands, psi)


@functools.partial(jax.jit, static_argnums=0)
def _undo(settings: _Settings, operands: Operands, after: Array, psi: Array) -> tuple[Operands, Array]:
    """Cotangents of the operands, and the conjugate cotangent before."""
    parts = settings.plan().parts

    def undo(device: Device, operands: Operands, after: Array, psi: Array) -> tuple[Operands, Array]:
        states, found = (after, psi), []
        for part, own in zip(reversed(parts), reversed(operands), strict=True):
            states, gradients = undo_part(part, own, states, device)
            found.append(gradients)
        return jax.lax.psum(tuple(reversed(found)), device.axis), states[0]

    split = PartitionSpec(settings.axis)
    specs = (PartitionSpec(), split, split), (PartitionSpec(), split)
    return _mapped(settings, undo, *specs)(operands, after, psi)


def _build(part: PartPlan, slots: BodySlots) -> tuple[Operand, ...]:
    """The operands of a part, with a leading axis for its layers."""
    make = functools.partial(build, part.segments)
    return jax.vmap(make)(slots) if part.repeated else jax.tree.map(lambda x: x[None], make(slots))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adjoint(settings: _Settings, slots: Slots, psi: Array) -> Array:
    return _forward(settings, slots, psi)[0]


def _forward(settings: _Settings, slots: Slots, psi: Array) -> tuple[Array, Any]:
    # Nothing here may be decorated with custom_vjp: derivatives of gradients would raise.
    parts = settings.plan().parts
    made = [jax.vjp(functools.partial(_build, part), own) for part, own in zip(parts, slots, strict=False)]
    # What brings the state into the frame that was asked for is a part without slots.
    operands = tuple(own for own, _ in made) + ((),) * (len(parts) - len(made))
    psi = _run(settings, operands, psi)
    return psi, (operands, tuple(pull for _, pull in made), psi)


def _backward(settings: _Settings, kept: Any, cotangent: Array) -> tuple[Slots, Array]:
    operands, pulls, psi = kept
    gradients, after = _undo(settings, operands, cotangent.conj(), psi)
    found = [pull(gradient)[0] for pull, gradient in zip(pulls, gradients, strict=False)]
    return tuple(found), after.conj()


_adjoint.defvjp(_forward, _backward)
