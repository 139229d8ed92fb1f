"""`blocks.apply_blocks` and `blocks.undo_blocks` as Pallas kernels: all blocks of a tile in one pass over the memory.

The plain version reads and writes the state once for every block, and backwards three times. Here a pass takes the
blocks on as many wires as a tile holds: about 8 on a GPU, 7 (14 in the first pass) on a TPU. Blocks act on disjoint
wires, so that their order is free. What a kernel cannot take, because its wires are apart or too many, the plain
version does. complex64 only.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.kernels.statevector import blocks, blocks_pallas_gpu, blocks_pallas_tpu
from jaxlab.kernels.statevector.tiles import Pass, Planes, Runs, window_matrix

Wires = tuple[tuple[int, ...], ...]
Matrices = tuple[jax.Array, ...]
Undone = tuple[jax.Array, jax.Array, Matrices]


def apply_planar(psi: jax.Array, matrices: Matrices, wires: Wires, *, interpret: bool) -> jax.Array:
    """The blocks on psi, complex64[2^n]; on a CPU interpreted, or else the plain version."""
    return _apply((wires, interpret), psi, matrices)


def undo_planar(
    after: jax.Array, psi: jax.Array, matrices: Matrices, wires: Wires, *, interpret: bool
) -> Undone:
    """Takes unitary blocks back; cotangents are those of the matrices."""
    return _undo((wires, interpret), after, psi, matrices)


# Derivatives of either are those of the plain version, to any order and in both modes.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(how: tuple[Wires, bool], psi: jax.Array, matrices: Matrices) -> jax.Array:
    wires, interpret = how
    plain = functools.partial(blocks.apply_blocks, wires=wires, implementation="xla")
    return _on_platforms(apply_on, plain, wires, interpret)(psi, matrices)


@_apply.defjvp
def _(how: tuple[Wires, bool], primals: Any, tangents: Any) -> Any:
    return jax.jvp(
        lambda *arrays: blocks.apply_blocks(*arrays, wires=how[0], implementation="xla"), primals, tangents
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _undo(how: tuple[Wires, bool], after: jax.Array, psi: jax.Array, matrices: Matrices) -> Undone:
    wires, interpret = how
    plain = functools.partial(blocks.undo_blocks, wires=wires, implementation="xla")
    return _on_platforms(undo_on, plain, wires, interpret)(after, psi, matrices)


@_undo.defjvp
def _(how: tuple[Wires, bool], primals: Any, tangents: Any) -> Any:
    return jax.jvp(
        lambda *arrays: blocks.undo_blocks(*arrays, wires=how[0], implementation="xla"), primals, tangents
    )


def _on_platforms(
    kernel: Callable[..., Any], plain: Callable[..., Any], wires: Wires, interpret: bool
) -> Callable[..., Any]:
    gpu, tpu = (
        functools.partial(kernel, wires=wires, kernels=kernels)
        for kernels in (blocks_pallas_gpu, blocks_pallas_tpu)
    )
    on_cpu = functools.partial(gpu, interpret=True) if interpret else plain
    return functools.partial(jax.lax.platform_dependent, cpu=on_cpu, cuda=gpu, tpu=tpu)


def apply_on(
    psi: jax.Array, matrices: Matrices, wires: Wires, kernels: ModuleType, **options: Any
) -> jax.Array:
    """The blocks by the kernels of one platform.

    Args:
      psi: complex64[2^n].
      matrices: [2^k, 2^k] for each block.
      wires: ascending, disjoint.
      kernels: `blocks_pallas_gpu` or `blocks_pallas_tpu`.
      **options: to the kernels, and to `pallas_call`.
    """
    n = psi.shape[0].bit_length() - 1
    passes, runs, rest = planned(wires, n, kernels, backward=False, tile=options.get("tile"))
    planes: Planes = (psi.real, psi.imag)
    for one in passes:
        planes = kernels.forward(one, planes, _operands(one, runs, matrices), n, **options)
    psi = jax.lax.complex(*planes)
    for i in rest:
        psi = blocks.apply_block(psi, matrices[i].astype(psi.dtype), wires[i])
    return psi


def undo_on(
    after: jax.Array, psi: jax.Array, matrices: Matrices, wires: Wires, kernels: ModuleType, **options: Any
) -> Undone:
    """Takes unitary blocks back by the kernels of one platform; arguments as for `apply_on` and `undo_blocks`."""
    n = psi.shape[0].bit_length() - 1
    passes, runs, rest = planned(wires, n, kernels, backward=True, tile=options.get("tile"))
    found: dict[int, jax.Array] = {}
    for i in rest:
        after, psi, (found[i],) = blocks.undo_blocks(
            after, psi, matrices[i : i + 1], wires[i : i + 1], implementation="xla"
        )
    planes: tuple[Planes, Planes] = ((after.real, after.imag), (psi.real, psi.imag))
    for one in passes:
        operands, pull = jax.vjp(functools.partial(_operands, one, runs), matrices)
        *planes, gradients = kernels.backward(one, *planes, operands, n, **options)
        # The loss changes by Re(gradient dM), of which the part in Im(dM) has the coefficient -Im(gradient).
        (of_matrices,) = pull([jnp.stack([x[0], *(-part for part in x[1:])]) for x in gradients])
        found.update({i: of_matrices[i] for window in one.windows for i in window.members})
    states = [jax.lax.complex(*state) for state in planes]
    return states[0], states[1], tuple(found[i] for i in range(len(wires)))


class _Plan(NamedTuple):
    passes: tuple[Pass, ...]
    runs: Runs
    rest: tuple[int, ...]
    """Blocks that no pass takes."""


def planned(wires: Wires, n: int, kernels: ModuleType, *, backward: bool, tile: Any = None) -> _Plan:
    """Which blocks go together, and which the kernels of a platform do not take."""
    runs = {i: (one[0], one[-1] + 1) for i, one in enumerate(wires) if one[-1] - one[0] + 1 == len(one)}
    passes = kernels.plan(runs, n, backward=backward, tile=tile)
    taken = {i for one in passes for window in one.windows for i in window.members}
    return _Plan(passes, runs, tuple(i for i in range(len(wires)) if i not in taken))


def _operands(one: Pass, runs: Runs, matrices: Matrices) -> list[jax.Array]:
    """Planes [1 or 2, K, K] of each window's matrix."""
    whole = [window_matrix(window, runs, matrices) for window in one.windows]
    return [
        jnp.stack([part.real, part.imag] if jnp.iscomplexobj(part) else [part]).astype(jnp.float32)
        for part in whole
    ]
