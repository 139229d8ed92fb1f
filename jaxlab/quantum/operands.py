"""What the segments of a body work on: block matrices, phases and pair coefficients, from its angles and matrices.

Gates of one kind are built by one operation, and blocks with the same gates on the same places by one chain of
products, so that the number of operations does not grow with the number of wires.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from jaxlab.kernels.statevector.blocks import transposed
from jaxlab.kernels.statevector.monomials import Sources, pick, side_factors, sources
from jaxlab.quantum.lowering import (
    Block,
    Dense,
    Monomial,
    Pairs,
    Segment,
    inverse_columns,
    known_type,
    pair_of,
)
from jaxlab.quantum.recording import BodySlots, Gate

Operand = Array | tuple[Array, ...]
"""Of a monomial its terms' coefficients [terms], of a dense segment its blocks' matrices, of pairs [gates, 4].

Of real blocks it is the transposes, in which gradients are found.
"""


class Moves(NamedTuple):
    """Tables of a monomial's permutation and of its inverse; None for the identity."""

    ahead: Sources | None
    back: Sources | None


class Prepared(NamedTuple):
    """Of one segment; with a leading axis for the times of a repeated body."""

    own: Operand
    """What gradients are taken in."""
    sides: tuple[Array, ...]
    """What follows from it: of monomials the phase factors, of real blocks the matrices; else empty."""
    moves: Moves | None = None
    """Of a monomial whose permutation is not the same in all layers."""


class _Form(NamedTuple):
    """What gates must share to be built together."""

    kind: str
    values: tuple[int, ...]
    adjoint: bool
    size: int


def prepare(segments: Sequence[Segment], operands: Sequence[Operand], n: int) -> tuple[Prepared, ...]:
    """What all segments of a body on n wires need; operands from `build`."""
    return tuple(
        Prepared(one, _following(segment, one, n)) for segment, one in zip(segments, operands, strict=True)
    )


def prepare_layers(
    variants: Sequence[Sequence[Segment]], operands: Sequence[Operand], n: int
) -> tuple[Prepared, ...]:
    """`prepare` of layers that differ in permutations only; operands have a leading axis for them."""
    made = jax.vmap(lambda own: prepare(variants[0], own, n))(tuple(operands))
    found = []
    for one, layers in zip(made, zip(*variants, strict=True), strict=True):
        if isinstance(layers[0], Monomial) and len(set(layers)) > 1:
            ahead, back = zip(*(moves(layer, n, identity=True) for layer in layers), strict=True)
            one = one._replace(moves=Moves(_stacked(ahead), _stacked(back)))
        found.append(one)
    return tuple(found)


def _stacked(tables: Sequence[Sources]) -> Sources:
    return Sources(*(np.stack(parts) for parts in zip(*tables, strict=True)))


@functools.lru_cache(maxsize=512)
def moves(segment: Monomial, n: int, identity: bool = False) -> Moves:
    """The tables of a monomial's permutation; also of the identity if that is asked for."""
    columns, inverse = segment.columns, None
    if columns is None and identity:
        columns = tuple(1 << bit for bit in range(n))
    if columns is not None:
        inverse = inverse_columns(columns, n)
    image = segment.offset
    if inverse is not None:
        bits = [inverse[bit] for bit in range(n) if segment.offset >> bit & 1]
        image = functools.reduce(int.__xor__, bits, 0)
    return Moves(sources(inverse, segment.offset, n), sources(columns, image, n))


def _following(segment: Segment, own: Any, n: int) -> tuple[Array, ...]:
    if isinstance(segment, Monomial):
        return side_factors(own, masks_of_terms(segment), n)
    if isinstance(segment, Dense) and segment.is_real:
        return tuple(transposed(one) for one in own)
    return ()


def masks_of_terms(segment: Monomial) -> list[int]:
    """The mask of every term."""
    return [term.mask for term in segment.terms]


def build(segments: Sequence[Segment], slots: BodySlots) -> tuple[Operand, ...]:
    """The operands of all segments, without what follows from them."""
    gates = [
        gate for one in segments if isinstance(one, Dense) for block in one.blocks for gate in block.gates
    ]
    matrices = _gate_matrices(gates, slots)
    blocks = [block for one in segments if isinstance(one, Dense) for block in one.blocks]
    products = _block_matrices(blocks, matrices)
    operands: list[Operand] = []
    for segment in segments:
        if isinstance(segment, Monomial):
            operands.append(_coefficients(segment, slots.angles))
        elif isinstance(segment, Pairs):
            operands.append(_pair_coefficients([one.gate for one in segment.gates], slots))
        else:
            chosen = tuple(products[block] for block in segment.blocks)
            operands.append(tuple(one.real.T for one in chosen) if segment.is_real else chosen)
    return tuple(operands)


def masks_of(segment: Pairs) -> Array:
    """Int32 [gates, 4], as the kernel takes them."""
    rows = [(one.flip, one.signs, one.where, one.value) for one in segment.gates]
    return jnp.asarray(np.array(rows, np.int32))


def _coefficients(segment: Monomial, angles: Array) -> Array:
    constants = jnp.asarray([term.constant for term in segment.terms], angles.dtype)
    entries = [(row, slot, slope) for row, term in enumerate(segment.terms) for slot, slope in term.slopes]
    if not entries:
        return constants
    rows, slots, slopes = zip(*entries, strict=True)
    parts = jnp.asarray(slopes, angles.dtype) * pick(angles, slots)
    if rows == tuple(range(len(segment.terms))):
        return constants + parts
    return constants.at[np.array(rows)].add(parts)


def _angles_of(gates: Sequence[Gate], slots: BodySlots) -> Array:
    """[gates, angles] of gates of one kind; of given matrices the matrices themselves."""
    known = known_type(gates[0])
    if known is None:
        return jnp.stack([slots.matrices[gate.slot] for gate in gates])
    places = [gate.slot + i for gate in gates for i in range(known.angles)]
    return pick(slots.angles, places).reshape(len(gates), known.angles)


def _grouped(gates: Sequence[Gate]) -> dict[_Form, list[Gate]]:
    found: dict[_Form, list[Gate]] = {}
    for gate in gates:
        form = _Form(gate.kind, gate.values, gate.adjoint, len(gate.wires))
        found.setdefault(form, []).append(gate)
    return found


class _Stack(NamedTuple):
    """Matrices of gates that were built together."""

    matrices: Inexact[Array, "gates K K"]
    place: dict[Gate, int]


def _gate_matrices(gates: Sequence[Gate], slots: BodySlots) -> dict[_Form, _Stack]:
    stacks = {}
    for form, members in _grouped(gates).items():
        members = list(dict.fromkeys(members))
        known, given = known_type(members[0]), _angles_of(members, slots)
        built = given if known is None else known.matrix(given)
        if form.adjoint:
            built = built.conj().swapaxes(-1, -2)
        stacks[form] = _Stack(controlled(built, form.values), {gate: i for i, gate in enumerate(members)})
    return stacks


def controlled(matrices: Array, values: tuple[int, ...]) -> Array:
    """Matrices [gates, K, K] with control wires of these values in front."""
    if not values:
        return matrices
    size, copies = matrices.shape[-1], 1 << len(values)
    chosen = int("".join(map(str, values)), 2)
    whole = jnp.broadcast_to(
        jnp.eye(size * copies, dtype=matrices.dtype), (len(matrices), *(size * copies,) * 2)
    )
    place = slice(chosen * size, (chosen + 1) * size)
    return whole.at[:, place, place].set(matrices)


def _block_matrices(blocks: Sequence[Block], stacks: dict[_Form, _Stack]) -> dict[Block, Array]:
    """The product of each block's gates; blocks of one pattern together."""
    patterns: dict[tuple, list[Block]] = {}
    for block in blocks:
        patterns.setdefault(_pattern(block), []).append(block)
    found = {}
    for pattern, members in patterns.items():
        steps = []
        for position, (form, local) in enumerate(pattern[1:]):
            stack = stacks[form]
            rows = [stack.place[block.gates[position]] for block in members]
            steps.append((pick(stack.matrices, rows), local))
        product = _product(steps, pattern[0])
        found.update({block: product[i] for i, block in enumerate(members)})
    return found


def _pattern(block: Block) -> tuple:
    place = {wire: i for i, wire in enumerate(block.wires)}
    steps = [
        (
            _Form(gate.kind, gate.values, gate.adjoint, len(gate.wires)),
            tuple(place[wire] for wire in gate.controls + gate.wires),
        )
        for gate in block.gates
    ]
    return (len(block.wires), *steps)


def _product(steps: Sequence[tuple[Array, tuple[int, ...]]], wires: int) -> Array:
    """Matrices [blocks, 2^wires, 2^wires] of gates [blocks, K, K] on local wires, first to last."""
    single: dict[int, Array] = {}
    product: Array | None = None
    for matrix, local in steps:
        if len(local) == 1:
            wire = local[0]
            single[wire] = _times(matrix, single[wire]) if wire in single else matrix
            continue
        product = _flushed(product, single, wires)
        single = {}
        product = (
            matrix[:, 0, 0, None, None] * product if not local else _apply(matrix, local, product, wires)
        )
    return _flushed(product, single, wires)


def _times(a: Array, b: Array) -> Array:
    """Products of 2 by 2 matrices, as element-wise operations that XLA fuses with their neighbours."""
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def _flushed(product: Array | None, single: dict[int, Array], wires: int) -> Array:
    """The product with the matrices of single wires applied."""
    if product is None:
        batch = next(iter(single.values())).shape[0] if single else 1
        dtype = next(iter(single.values())).dtype if single else jnp.float32
        eye = jnp.broadcast_to(jnp.eye(2, dtype=dtype), (batch, 2, 2))
        whole = jnp.ones((batch, 1, 1), dtype)
        for wire in range(wires):
            factor = single.get(wire, eye)
            size = 2 * whole.shape[-1]
            whole = (whole[:, :, None, :, None] * factor[:, None, :, None, :]).reshape(batch, size, size)
        return whole
    for wire, matrix in single.items():
        product = _apply(matrix, (wire,), product, wires)
    return product


def _apply(matrix: Array, local: tuple[int, ...], product: Array, wires: int) -> Array:
    """A gate [blocks, K, K] on local wires after the product [blocks, 2^wires, 2^wires]."""
    k, size = len(local), 1 << wires
    tensor = jnp.broadcast_to(product, (len(matrix), size, size)).reshape(-1, *(2,) * wires, size)
    front = jnp.moveaxis(tensor, [1 + wire for wire in local], range(1, 1 + k))
    out = jnp.matmul(matrix, front.reshape(len(matrix), 1 << k, -1), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(out.reshape(front.shape), range(1, 1 + k), [1 + wire for wire in local]).reshape(
        -1, size, size
    )


def _pair_coefficients(gates: Sequence[Gate], slots: BodySlots) -> Array:
    """[gates, 4], in the order of the gates."""
    built, order = [], []
    for members in _grouped(gates).values():
        pair = pair_of(members[0])
        assert pair is not None
        found = pair.coefficients(_angles_of(members, slots))
        if members[0].adjoint:
            sign = (-1) ** bin(pair.flip & pair.signs).count("1")
            found = found.conj() * jnp.asarray([1, 1, 1, sign], found.real.dtype)
        built.append(found)
        chosen = set(members)
        order += [i for i, gate in enumerate(gates) if gate in chosen]
    back = np.argsort(np.array(order), kind="stable")
    return jnp.concatenate(built)[back]
