"""Row-wise functions over many devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxlab.errors import InputError


def shard_rows(
    function: Callable[..., Any], mesh: Mesh | None, *, axis: str = "data", block: int | None = None
) -> Callable[..., Any]:
    """The same function with its rows spread over one axis of a mesh.

    `function(rows, *shared)` must treat the leading axis of every leaf of `rows` one row at a time, and
    return a tree whose leaves have that leading axis. The number of rows is padded to what the mesh needs
    (with copies of the last row) and cut back.

    With `block`, each device works through its rows in blocks of that many, and so does a call with
    `mesh=None`: the function then always sees arrays of one and the same size, so that the results are the
    same bytes on any number of devices. Without it XLA may sum in another order when a device holds fewer
    rows.

    Args:
      function: pure; traced once under jit.
      mesh: where to; None means on one device, for comparison.
      axis: the mesh axis that rows are spread over.
      block: rows at a time, at least 1; None means all rows of a device at once.

    Returns:
      A jitted function of the same arguments; `rows` are split, `shared` are given whole to every device.

    Raises:
      InputError: no such axis, `block` below 1, or (at the call) leaves of `rows` that differ in length.
    """
    if mesh is not None and axis not in mesh.shape:
        raise InputError(f"axis is {axis!r}, but the mesh has {', '.join(mesh.shape)}")
    if block is not None and block < 1:
        raise InputError(f"block is {block}, but must be at least 1")
    devices = 1 if mesh is None else mesh.shape[axis]

    def on_one_device(rows: Any, *shared: Any) -> Any:
        if block is None:
            return function(rows, *shared)
        blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, block, *leaf.shape[1:]), rows)
        results = lax.map(lambda part: function(part, *shared), blocks)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)

    @jax.jit
    def sharded(rows: Any, *shared: Any) -> Any:
        count = _row_count(rows)
        padding = -count % (devices * (block or 1))
        padded = jax.tree.map(lambda leaf: _repeat_last_row(leaf, padding), rows)
        if mesh is None:
            results = on_one_device(padded, *shared)
        else:
            over_rows = PartitionSpec(axis)
            results = jax.shard_map(
                on_one_device,
                mesh=mesh,
                in_specs=(over_rows, *(PartitionSpec(),) * len(shared)),
                out_specs=over_rows,
                check_vma=False,
            )(padded, *shared)
        return jax.tree.map(lambda leaf: leaf[:count], results)

    return sharded


def _row_count(rows: Any) -> int:
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(rows)}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"all leaves of rows must share one leading axis of at least 1, but have {lengths}")
    return lengths.pop()


def _repeat_last_row(leaf: jax.Array, times: int) -> jax.Array:
    return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], times, axis=0)]) if times else leaf
