"""Running a program on a state vector, with a gradient whose memory does not grow with depth.

The adjoint method keeps the final state alone: backwards, each segment is undone on the state and on the cotangent, and
the cotangents of block matrices, phases and pair coefficients go through the small function that built them. Reference:
Jones and Gacon, arXiv:2009.02823.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex

from jaxlab.errors import InputError, ResourceError
from jaxlab.kernels.statevector import blocks, monomials, pairs
from jaxlab.quantum.lowering import TPU_BLOCK, Dense, Monomial, Segment, lower
from jaxlab.quantum.operands import (
    Operand,
    Prepared,
    build,
    masks_of,
    masks_of_terms,
    moves,
    prepare,
    prepare_layers,
)
from jaxlab.quantum.recording import CHANNEL, BodySlots, Program, Slots, record
from jaxlab.quantum.rolling import rolled

Differentiation = Literal["adjoint", "backprop"]
_BLOCK = 4
"""Wires of the largest blocks; equal blocks of at most so many are fastest on a CPU."""


class _Settings(NamedTuple):
    """The static half of a run."""

    program: Program
    block: int
    implementation: str | None


def zero_state(n: int, dtype: Any = jnp.complex64) -> Complex[Array, " 2^n"]:
    """|0...0> of n wires."""
    return jnp.zeros(1 << n, dtype).at[0].set(1)


def simulate(
    program: Program,
    slots: Slots,
    state: Complex[Array, " 2^n"] | None = None,
    *,
    dtype: Any = None,
    diff: Differentiation = "adjoint",
    block: int | None = None,
    implementation: str | None = None,
) -> Complex[Array, " 2^n"]:
    """The state that a program leads to; wire 0 is the most significant bit of an amplitude's index.

    Args:
      program: see `trace`.
      slots: its arrays.
      state: to begin with, |0...0> if None; batches by `vmap`.
      dtype: complex64 or complex128; None is that of the angles, matrices and state.
      diff: "adjoint" (constant memory; reverse mode only, to any order, and for unitary matrices only) or "backprop"
        (memory grows with depth; forward mode too).
      block: most wires of a dense block, 1 to 10; None picks for one circuit at a time. Batches by `vmap` of small
        circuits are faster with 2 or 3 on a CPU.
      implementation: of dense blocks, see `jaxlab.kernels.statevector.blocks.apply_blocks`; None picks.

    Layers that repeat become one loop, also where gates were recorded one by one.

    Raises:
      InputError: an argument does not fit the program, or forward-mode derivatives are asked of "adjoint".
      ResourceError: three states of so many wires exceed the memory.
    """
    if diff not in ("adjoint", "backprop"):
        raise InputError(f"diff is {diff!r}; it must be 'adjoint' or 'backprop'")
    check_program(program, slots, block)
    dtype = dtype_of(slots, state, dtype)
    check_memory(program.n, dtype)
    if state is None:
        state = zero_state(program.n, dtype)
    if state.shape != (1 << program.n,):
        raise InputError(
            f"state has shape {state.shape}; for {program.n} wires it must be ({1 << program.n},) (vmap for batches)"
        )
    block = min(program.n, block or default_block(program.n))
    program, slots = rolled(program, slots, block)
    settings = _Settings(program, block, implementation)
    arrays = cast(slots, dtype), state.astype(dtype)
    if diff == "backprop":
        return _forward(settings, *arrays)
    try:
        return _adjoint(settings, *arrays)
    except TypeError as error:
        if "forward-mode" in str(error):
            raise InputError(
                "the adjoint method has no forward-mode derivatives (jvp, jacfwd); pass diff='backprop'"
            ) from error
        raise


def check_program(program: Program, slots: Slots, block: int | None) -> None:
    """Raises InputError if the arguments of `simulate` do not fit each other."""
    if len(slots) != len(program.parts):
        raise InputError(f"slots has {len(slots)} parts, the program {len(program.parts)}")
    if block is not None and not 1 <= block <= 10:
        raise InputError(f"block is {block}; it must lie between 1 and 10")
    if any(gate.kind == CHANNEL for part in program.parts for gate in part.body.gates):
        raise InputError("the program holds a noise channel; use density_matrix_of or trajectory")


def check_memory(n: int, dtype: Any, devices: Sequence[jax.Device] | None = None) -> None:
    """Raises ResourceError if the state, its cotangent and room to work in do not fit, shared out over the devices."""
    devices = jax.devices()[:1] if devices is None else devices
    needed, device = 3 * (1 << n) * jnp.dtype(dtype).itemsize, devices[0]
    if device.platform == "cpu":
        limit = _main_memory()
    else:
        needed, limit = needed // len(devices), (device.memory_stats() or {}).get("bytes_limit")
    if limit and needed > limit:
        raise ResourceError(
            f"{n} wires in {jnp.dtype(dtype).name} need {needed / 2**30:,.0f} GiB (three states), and {device} has "
            f"{limit / 2**30:,.0f}: use fewer wires, or complex64"
        )


def _main_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def default_block(n: int) -> int:
    """Most wires of a block, such that blocks are about equal; on a TPU what its kernel multiplies at once."""
    if jax.default_backend() == "tpu":
        return TPU_BLOCK
    return math.ceil(n / math.ceil(n / _BLOCK))


def circuit(
    fn: Callable[..., Any],
    n: int,
    measure: Callable[[Complex[Array, " 2^n"]], Any],
    *,
    dtype: Any = None,
    diff: Differentiation = "adjoint",
    block: int | None = None,
) -> Callable[..., Any]:
    """The pure function `(*args) -> measure(final state)` of a circuit, for jit, vmap and grad.

    Args:
      fn: `fn(c, *args)` calls gates on the `Circuit` c.
      n: wires.
      measure: of the state, e.g. `marginal_z` or `lambda psi: expval(psi, hamiltonian)`.
      dtype: see `simulate`.
      diff: see `simulate`.
      block: see `simulate`.
    """

    def run(*args: Any) -> Any:
        program, slots = record(fn, n, *args)
        return measure(simulate(program, slots, dtype=dtype, diff=diff, block=block))

    return run


def dtype_of(slots: Slots, state: Array | None, dtype: Any) -> Any:
    """The state's dtype: the one asked for, or else what the arrays promote to."""
    if dtype is None:
        leaves = [leaf for leaf in jax.tree.leaves(slots) if leaf.size] + ([] if state is None else [state])
        return functools.reduce(jnp.promote_types, [leaf.dtype for leaf in leaves], jnp.dtype(jnp.complex64))
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.complex64, jnp.complex128):
        raise InputError(f"dtype is {dtype}; it must be complex64 or complex128")
    if dtype == jnp.complex128 and jnp.result_type(complex) != dtype:
        raise InputError("dtype is complex128, which needs double precision: with jax.enable_x64(True): ...")
    return dtype


def cast(slots: Slots, dtype: Any) -> Slots:
    """Angles and matrices in the precision of a state's dtype."""
    real = jnp.zeros(0, dtype).real.dtype
    return tuple(
        BodySlots(one.angles.astype(real), tuple(matrix.astype(dtype) for matrix in one.matrices))
        for one in slots
    )


class _Lowered(NamedTuple):
    """A part as segments; of a repeated one those of every layer, which differ in permutations only."""

    n: int
    layers: tuple[tuple[Segment, ...], ...]
    repeated: bool
    implementation: str | None

    def build(self, slots: BodySlots) -> tuple[Operand, ...]:
        """The operands, for all layers at once, so that their loop has few operations."""
        make = functools.partial(build, self.layers[0])
        return (jax.vmap(make) if self.repeated else make)(slots)

    def prepare(self, operands: tuple[Operand, ...]) -> tuple[Prepared, ...]:
        """What follows from them."""
        if self.repeated:
            return prepare_layers(self.layers, operands, self.n)
        return prepare(self.layers[0], operands, self.n)

    def run(self, psi: Array, prepared: tuple[Prepared, ...]) -> Array:
        """The state after the part."""
        run = functools.partial(_run, self.layers[0], self.n, self.implementation)
        if not self.repeated:
            return run(psi, prepared)
        return jax.lax.scan(lambda psi, layer: (run(psi, layer), None), psi, prepared)[0]


def _lowered(settings: _Settings) -> list[_Lowered]:
    program = settings.program
    return [
        _Lowered(
            program.n,
            tuple(lower(body, program.n, settings.block) for body in part.variants or (part.body,)),
            part.times is not None,
            settings.implementation,
        )
        for part in program.parts
    ]


def _forward(settings: _Settings, slots: Slots, psi: Array) -> Array:
    for part, own in zip(_lowered(settings), slots, strict=True):
        psi = part.run(psi, part.prepare(part.build(own)))
    return psi


def _run(
    segments: tuple[Segment, ...],
    n: int,
    implementation: str | None,
    psi: Array,
    prepared: tuple[Prepared, ...],
) -> Array:
    for segment, one in zip(segments, prepared, strict=True):
        psi = _apply(segment, one, psi, n, implementation)
    return psi


def _apply(segment: Segment, one: Prepared, psi: Array, n: int, implementation: str | None) -> Array:
    own: Any = one.own
    if isinstance(segment, Monomial):
        psi = monomials.multiply_phases(psi, own, one.sides, masks_of_terms(segment), n)
        return monomials.permute(psi, (one.moves or moves(segment, n)).ahead)
    if isinstance(segment, Dense):
        wires = tuple(block.wires for block in segment.blocks)
        return blocks.apply_blocks(psi, one.sides or own, wires, implementation=implementation)
    return pairs.apply_pairs(psi, masks_of(segment), own)


def _undo(
    segment: Segment, one: Prepared, after: Array, psi: Array, n: int, implementation: str | None
) -> tuple[Array, Array, Any]:
    """Conjugate cotangent and state before a segment, and the cotangent of its operand."""
    operand: Any = one.own
    if isinstance(segment, Monomial):
        back = (one.moves or moves(segment, n)).back
        psi, after = (monomials.permute(x, back) for x in (psi, after))
        masks = masks_of_terms(segment)
        gradient = monomials.phase_gradient(after, psi, masks, n) if masks else operand
        psi, after = (
            monomials.multiply_phases(x, operand, one.sides, masks, n, inverse=True) for x in (psi, after)
        )
        return after, psi, gradient.astype(operand.dtype)
    if isinstance(segment, Dense):
        wires = tuple(block.wires for block in segment.blocks)
        transposes = operand if segment.is_real else None
        return blocks.undo_blocks(
            after, psi, one.sides or operand, wires, transposes=transposes, implementation=implementation
        )
    after, psi, gradient = pairs.unapply_pairs(after, psi, masks_of(segment), operand)
    return after, psi, gradient.astype(operand.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adjoint(settings: _Settings, slots: Slots, psi: Array) -> Array:
    return _forward(settings, slots, psi)


_Kept = tuple[tuple[tuple[Prepared, ...], Callable[..., Any]], ...]
"""Of every part what its segments need, and how to pull the gradients of operands back; small beside a state."""


def _adjoint_forward(settings: _Settings, slots: Slots, psi: Array) -> tuple[Array, tuple[_Kept, Array]]:
    # Nothing here may be decorated: jax.hessian would raise.
    kept = []
    for part, own in zip(_lowered(settings), slots, strict=True):
        operands, pull = jax.vjp(part.build, own)
        prepared = part.prepare(operands)
        psi = part.run(psi, prepared)
        kept.append((prepared, pull))
    return psi, (tuple(kept), psi)


def _adjoint_backward(
    settings: _Settings, kept: tuple[_Kept, Array], cotangent: Array
) -> tuple[Slots, Array]:
    of_parts, psi = kept
    after = cotangent.conj()
    found: list[BodySlots] = []
    for part, (prepared, pull) in zip(reversed(_lowered(settings)), reversed(of_parts), strict=True):
        back = functools.partial(_undo_body, part.layers[0], part.n, part.implementation)
        if part.repeated:
            (after, psi), gradients = jax.lax.scan(back, (after, psi), prepared, reverse=True)
        else:
            (after, psi), gradients = back((after, psi), prepared)
        found += pull(gradients)
    return tuple(reversed(found)), after.conj()


def _undo_body(
    segments: tuple[Segment, ...],
    n: int,
    implementation: str | None,
    states: tuple[Array, Array],
    prepared: tuple[Prepared, ...],
) -> tuple[tuple[Array, Array], tuple[Operand, ...]]:
    after, psi = states
    gradients: list[Any] = []
    for segment, one in reversed(list(zip(segments, prepared, strict=True))):
        after, psi, gradient = _undo(segment, one, after, psi, n, implementation)
        gradients.append(gradient)
    return (after, psi), tuple(reversed(gradients))


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)
