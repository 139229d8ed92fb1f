"""The steps of a plan on one device's part of a state, forwards and, for gradients, back; inside of `shard_map`.

Whatever depends on the device is read from a small table by the device's number, so that all run one program. Going
back, the state and its cotangent are exchanged together.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.kernels.statevector import blocks, monomials, pairs
from jaxlab.quantum.frames import Condition, LocalMove, is_odd
from jaxlab.quantum.lowering import Dense, Monomial, Segment
from jaxlab.quantum.operands import Operand
from jaxlab.quantum.sharded_steps import (
    BlockStep,
    BlockSteps,
    Exchange,
    PairSteps,
    PartPlan,
    Phases,
    Stage,
    Step,
)

States = tuple[Array, Array]
"""A conjugate cotangent of a state, and the state."""

_Pieces = dict[tuple[int, int], Array]
"""Cotangents of pieces of operands: of which segment, and of which block or from which gate on."""

_NEVER = 1 << 30
"""A bit that no place on a device has."""


class Device(NamedTuple):
    """What a device is: the mesh axis and its size, the device's number on it, and the wires on a device."""

    axis: str
    size: int
    number: Array
    local: int

    def pick(self, table: Any, dtype: Any) -> Array:
        """The device's own row of a table that has one for each device."""
        return jnp.asarray(np.asarray(table), dtype)[self.number]

    def signs(self, masks: Sequence[int], flipped: Sequence[int], dtype: Any) -> Array:
        """(-1)^(parity of the device's number under a mask, XOR a bit), for every mask."""
        odd = [
            [is_odd(number & mask) ^ flip for mask, flip in zip(masks, flipped, strict=True)]
            for number in range(self.size)
        ]
        return self.pick(1 - 2 * np.array(odd), dtype)


def run_part(part: PartPlan, operands: tuple[Operand, ...], psi: Array, device: Device) -> Array:
    """The device's amplitudes after a part of a program; operands have a leading axis for the layers."""
    for stage in part.stages:
        body = functools.partial(_run_layers, part.segments, stage.layers, device)
        own = _of_stage(stage, operands)
        if stage.times == 1:
            psi = body(psi, _at(own, 0))[0]
        else:
            psi = jax.lax.scan(body, psi, own)[0]
    return psi


def undo_part(
    part: PartPlan, operands: tuple[Operand, ...], states: States, device: Device
) -> tuple[States, tuple[Operand, ...]]:
    """Takes `run_part` back.

    Args:
      part: the part.
      operands: as for `run_part`.
      states: conjugate cotangent of the result, and the result, [2^local] each.
      device: the device.

    Returns:
      The two before the part, and the cotangents of the operands, of which every device has a summand.
    """
    found = []
    for stage in reversed(part.stages):
        body = functools.partial(_undo_layers, part.segments, stage.layers, device)
        own = _of_stage(stage, operands)
        if stage.times == 1:
            states, gradients = body(states, _at(own, 0))
            gradients = jax.tree.map(lambda x: x[None], gradients)
        else:
            states, gradients = jax.lax.scan(body, states, own, reverse=True)
        found.append(jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), gradients))
    return states, jax.tree.map(lambda *x: jnp.concatenate(x), *reversed(found))


def _of_stage(stage: Stage, operands: tuple[Operand, ...]) -> Any:
    """With two leading axes, times and layers."""
    size = len(stage.layers)
    part = slice(stage.first, stage.first + stage.times * size)
    return jax.tree.map(lambda x: x[part].reshape(stage.times, size, *x.shape[1:]), operands)


def _at(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _run_layers(
    segments: tuple[Segment, ...], layers: tuple[tuple[Step, ...], ...], device: Device, psi: Array, own: Any
) -> tuple[Array, None]:
    for index, steps in enumerate(layers):
        operands = _at(own, index)
        for step in steps:
            psi = _run(segments, step, operands, psi, device)
    return psi, None


def _undo_layers(
    segments: tuple[Segment, ...],
    layers: tuple[tuple[Step, ...], ...],
    device: Device,
    states: States,
    own: Any,
) -> tuple[States, Any]:
    gradients = []
    for index in reversed(range(len(layers))):
        operands = _at(own, index)
        found: _Pieces = {}
        for step in reversed(layers[index]):
            states, pieces = _undo(segments, step, operands, states, device)
            found |= pieces
        gradients.append(tuple(_joined(i, one, operands[i], found) for i, one in enumerate(segments)))
    return states, jax.tree.map(lambda *x: jnp.stack(x), *reversed(gradients))


def _joined(index: int, segment: Segment, operand: Any, found: _Pieces) -> Operand:
    """The cotangent of a segment's operand from those of its pieces, 0 where a piece does nothing."""
    if isinstance(segment, Monomial):
        return found.get((index, 0), jnp.zeros_like(operand))
    if isinstance(segment, Dense):
        return tuple(found.get((index, i), jnp.zeros_like(one)) for i, one in enumerate(operand))
    return jnp.concatenate([found[key] for key in sorted(found) if key[0] == index])


def _run(segments: tuple[Segment, ...], step: Step, operands: Any, psi: Array, device: Device) -> Array:
    if isinstance(step, LocalMove):
        return _moved(psi, step.ahead, step.ahead_shifts, device)
    if isinstance(step, Exchange):
        return _exchanged((psi,), device)[0]
    own, segment = operands[step.segment], segments[step.segment]
    if isinstance(step, Phases):
        return _turned(step, own, psi, device)
    if isinstance(step, BlockStep):
        matrix = _matrix(segment, step, own[step.block]).astype(psi.dtype)
        applied = blocks.apply_block(psi, matrix, _wires(step, device))
        return jnp.where(_chosen(step, device), applied, psi)
    if isinstance(step, BlockSteps):
        matrices = _matrices(segment, _forms(segment, step, own, psi))
        return blocks.apply_blocks(psi, matrices, _all_wires(step, device))
    masks, signs = _masks(step, device, psi)
    return pairs.apply_pairs(psi, masks, own[_gates(step)] * signs)


def _undo(
    segments: tuple[Segment, ...], step: Step, operands: Any, states: States, device: Device
) -> tuple[States, _Pieces]:
    """Conjugate cotangent and state before a step, and the cotangents of what it has of the operands."""
    after, psi = states
    if isinstance(step, LocalMove):
        after, psi = (_moved(x, step.back, step.back_shifts, device) for x in states)
        return (after, psi), {}
    if isinstance(step, Exchange):
        after, psi = _exchanged(states, device)
        return (after, psi), {}
    own, segment = operands[step.segment], segments[step.segment]
    if isinstance(step, Phases):
        signs = device.signs(step.device_masks, step.flipped, own.dtype)
        gradient = monomials.phase_gradient(after, psi, step.masks, device.local) * signs
        after, psi = (_turned(step, own, x, device, inverse=True) for x in states)
        return (after, psi), {(step.segment, 0): gradient.astype(own.dtype)}
    if isinstance(step, BlockStep):
        matrix, pull = jax.vjp(lambda one: _matrix(segment, step, one).astype(psi.dtype), own[step.block])
        wires = _wires(step, device)
        chosen = _chosen(step, device)
        before, lower = (
            jnp.where(chosen, blocks.apply_block(x, matrix.conj().T, wires), x) for x in (psi, after)
        )
        gradient = blocks.block_gradient(jnp.where(chosen, after, 0), before, wires)
        return (lower, before), {(step.segment, step.block): pull(gradient)[0]}
    if isinstance(step, BlockSteps):
        forms, pull = jax.vjp(lambda own: _forms(segment, step, own, psi), own)
        after, psi, gradients = blocks.undo_blocks(
            after,
            psi,
            _matrices(segment, forms),
            _all_wires(step, device),
            transposes=forms if _is_real(segment) else None,
        )
        (of_blocks,) = pull(gradients)
        return (after, psi), {(step.segment, one.block): of_blocks[one.block] for one in step.blocks}
    masks, signs = _masks(step, device, psi)
    coefficients = own[_gates(step)]
    after, psi, gradient = pairs.unapply_pairs(after, psi, masks, coefficients * signs)
    return (after, psi), {(step.segment, step.first): (gradient * signs).astype(coefficients.dtype)}


def _moved(psi: Array, columns: tuple[int, ...], shifts: tuple[int, ...], device: Device) -> Array:
    tables = monomials.sources(columns, 0, device.local)
    assert tables is not None
    shift = device.pick(shifts, jnp.int32)
    return monomials.permute(psi, monomials.Sources(tables.upper ^ shift, tables.lower))


def _exchanged(states: tuple[Array, ...], device: Device) -> tuple[Array, ...]:
    """The topmost local bits of states [2^local] and the bits of the device's number change places."""
    split = jnp.stack([x.reshape(device.size, -1) for x in states], axis=1)
    swapped = jax.lax.all_to_all(split, device.axis, 0, 0, tiled=True)
    return tuple(swapped[:, i].reshape(-1) for i in range(len(states)))


def _turned(step: Phases, own: Array, psi: Array, device: Device, inverse: bool = False) -> Array:
    coefficients = own * device.signs(step.device_masks, step.flipped, own.dtype)
    sides = monomials.side_factors(coefficients, step.masks, device.local)
    return monomials.multiply_phases(psi, coefficients, sides, step.masks, device.local, inverse=inverse)


def _wires(step: BlockStep, device: Device) -> list[int]:
    return sorted(device.local - 1 - place for place in step.places)


def _matrix(segment: Segment, step: BlockStep, own: Array) -> Array:
    """The matrix of a block on the wires that it mixes, in the order in which they lie on the device."""
    if _is_real(segment):
        own = own.T
    k, total = len(step.places), len(step.places) + len(step.fixed)
    values = dict(step.fixed)
    pick = tuple(values.get(axis, slice(None)) for axis in range(total))
    own = own.reshape((2,) * (2 * total))[pick + pick]
    order = sorted(range(k), key=lambda axis: -step.places[axis])
    return own.transpose([*order, *(k + axis for axis in order)]).reshape(1 << k, 1 << k)


def _all_wires(step: BlockSteps, device: Device) -> tuple[tuple[int, ...], ...]:
    own = [tuple(_wires(one, device)) for one in step.blocks]
    if step.idle:
        own.append(tuple(range(device.local - step.idle, device.local)))
    return tuple(own)


def _is_real(segment: Segment) -> bool:
    return isinstance(segment, Dense) and segment.is_real


def _forms(segment: Segment, step: BlockSteps, own: Sequence[Array], psi: Array) -> tuple[Array, ...]:
    """Of all blocks what gradients are found in: transposes of real matrices, or complex matrices."""
    made = [_matrix(segment, one, own[one.block]) for one in step.blocks]
    if step.idle:
        made.append(jnp.eye(1 << step.idle, dtype=psi.real.dtype))
    return tuple(one.T for one in made) if _is_real(segment) else tuple(made)


def _matrices(segment: Segment, forms: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(blocks.transposed, forms)) if _is_real(segment) else forms


def _where(conditions: tuple[Condition, ...], number: int) -> tuple[int, int]:
    """What the bits of a place must be on a device, as masks of which bits and of their values."""
    where = value = 0
    for one in conditions:
        wanted = one.value ^ is_odd(one.device & number)
        if one.local:
            where, value = where | one.local, value | one.local * wanted
        elif wanted:
            return _NEVER, _NEVER
    return where, value


def _chosen(step: BlockStep, device: Device) -> Array:
    table = [_where(step.conditions, number) for number in range(device.size)]
    where, value = device.pick(table, jnp.int32)
    return (jax.lax.iota(jnp.int32, 1 << device.local) ^ value) & where == 0


def _gates(step: PairSteps) -> slice:
    return slice(step.first, step.first + len(step.gates))


def _masks(step: PairSteps, device: Device, psi: Array) -> tuple[Array, Array]:
    """Masks [gates, 4] as the kernel takes them, and signs [gates, 4] for its coefficients."""
    table = [
        [(one.flip, one.signs, *_where(one.conditions, number)) for one in step.gates]
        for number in range(device.size)
    ]
    turned = device.signs(
        [one.device_signs for one in step.gates], [one.flipped for one in step.gates], psi.real.dtype
    )
    ones = jnp.ones_like(turned)
    return device.pick(table, jnp.int32), jnp.stack([ones, turned, ones, turned], axis=-1)
