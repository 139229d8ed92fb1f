"""Many quantized matrices to dense ones at once, as when a model is loaded.

A model may use a different code for every matrix. So that this costs one compilation and not one a code, the
rows of all matrices of one width are laid end to end, each with its own pulses and bit widths as data, and
expanded in pieces of a fixed number of rows.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt32

from jaxlab.kernels.pyramid_index import unrank
from jaxlab.models.gathered import Gathered
from jaxlab.quantization.packing import unpack
from jaxlab.quantization.pvq import PVQTensor
from jaxlab.quantization.rotation import unrotate
from jaxlab.quantization.rows import reconstruct, shared_tables, unit_direction
from jaxlab.quantization.scalar import ScalarTensor, dequantize_scalar

_PIECE = 1024


class _Rows(NamedTuple):
    """Rows of quantized matrices with what is needed to expand each by itself; NumPy on the host, JAX inside jit."""

    words: Any  # uint32 [rows, words]
    scale: Any  # float32 [rows]
    levels: Any  # float32 [rows, levels]
    signs: Any  # bool [rows, columns]
    pulses: Any  # int32 [rows]
    index_bits: Any  # int32 [rows]
    gain_bits: Any  # int32 [rows]


def expand(tensors: Mapping[str, Any], *, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The same mapping with every quantized matrix replaced by the dense one, in the unrotated basis.

    Equal to `dequantize` of each, much faster for many.

    Args:
      tensors: `PVQTensor`s and `ScalarTensor`s without stacked axes, `Gathered` with one of them (which stay
        `Gathered`), and arrays (which only change their dtype).
      dtype: of the results.
    """
    parts = {name: leaf for name, leaf in tensors.items() if isinstance(leaf, Gathered)}
    if parts:
        weights = {name: leaf.weight for name, leaf in parts.items()}
        dense_weights = expand({**tensors, **weights}, dtype=dtype)
        return dense_weights | {
            name: dataclasses.replace(leaf, weight=dense_weights[name]) for name, leaf in parts.items()
        }
    dense: dict[str, Any] = {}
    alike: dict[tuple[int, int, bool], list[str]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, PVQTensor):
            alike.setdefault((tensor.columns, tensor.spec.n, tensor.signs is None), []).append(name)
        elif isinstance(tensor, ScalarTensor):
            dense[name] = dequantize_scalar(tensor, dtype=dtype)
        else:
            dense[name] = jnp.asarray(tensor, dtype)
    for (columns, n, plain), names in alike.items():
        matrices = _expand_alike([tensors[name] for name in names], columns, n, rotated=not plain)
        dense |= {name: jnp.asarray(matrix, dtype) for name, matrix in zip(names, matrices, strict=True)}
    return dense


def expand_params(params: dict[str, Any], *, dtype: Any = jnp.float32) -> dict[str, Any]:
    """A model with quantized leaves (layers as a tuple) as a dense one; see `stack_where_alike` for its layers."""
    layers = params["layers"]
    flat = {f"{index} {name}": leaf for index, layer in enumerate(layers) for name, leaf in layer.items()}
    flat |= {name: leaf for name, leaf in params.items() if name != "layers"}
    dense = expand(flat, dtype=dtype)
    expanded = tuple({name: dense[f"{index} {name}"] for name in layer} for index, layer in enumerate(layers))
    return stack_where_alike(
        {name: dense[name] for name in params if name != "layers"} | {"layers": expanded}
    )


def stack_where_alike(params: dict[str, Any]) -> dict[str, Any]:
    """The model with stacked layers, or as it is if they differ in width or have `Gathered` matrices."""
    layers = params["layers"]
    first = {name: leaf.shape for name, leaf in layers[0].items() if not isinstance(leaf, Gathered)}
    for layer in layers:
        if any(isinstance(leaf, Gathered) or leaf.shape != first.get(name) for name, leaf in layer.items()):
            return params
    return {**params, "layers": {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}}


def is_quantized(leaf: Any) -> bool:
    """Whether a leaf is a quantized matrix."""
    return isinstance(leaf, PVQTensor | ScalarTensor)


def _expand_alike(tensors: Sequence[PVQTensor], columns: int, n: int, *, rotated: bool) -> list[np.ndarray]:
    words = max(tensor.words.shape[1] for tensor in tensors)
    levels = max(tensor.levels.shape[0] for tensor in tensors)
    # One table serves all codes: that of the most pulses holds those of fewer.
    tables = jnp.asarray(shared_tables(n, max(tensor.spec.k for tensor in tensors)))
    counts = [tensor.words.shape[0] for tensor in tensors]

    def rows_of(tensor: PVQTensor) -> _Rows:
        count = tensor.words.shape[0]

        def each(value: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
            return np.broadcast_to(np.asarray(value), (count, *shape))

        return _Rows(
            np.pad(np.asarray(tensor.words), ((0, 0), (0, words - tensor.words.shape[1]))),
            np.asarray(tensor.scale, np.float32),
            each(np.pad(np.asarray(tensor.levels), (0, levels - tensor.levels.shape[0])), (levels,)),
            each(False if tensor.signs is None else tensor.signs, (columns,)),
            each(np.int32(tensor.spec.k)),
            each(np.int32(tensor.spec.index_bits)),
            each(np.int32(tensor.spec.gain_bits)),
        )

    parts = [rows_of(tensor) for tensor in tensors]
    rows = _Rows(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    total = sum(counts)
    out = np.empty((total, columns), np.float32)

    def one_piece(start: int) -> None:
        piece = _Rows(*(field[start : start + _PIECE] for field in rows))
        missing = _PIECE - piece.scale.shape[0]
        if missing:
            piece = _Rows(
                *(np.pad(f, ((0, missing),) + ((0, 0),) * (f.ndim - 1), mode="edge") for f in piece)
            )
        dense = np.asarray(_expand_rows(piece, tables, columns=columns, n=n, rotated=rotated))
        out[start : start + _PIECE] = dense[: _PIECE - missing]

    for start in range(0, total, _PIECE):
        one_piece(start)
    return np.split(out, np.cumsum(counts)[:-1])


@functools.partial(jax.jit, static_argnames=("columns", "n", "rotated"))
def _expand_rows(
    rows: _Rows, tables: UInt32[Array, "n k m limbs"], *, columns: int, n: int, rotated: bool
) -> Float32[Array, "rows columns"]:
    start = jnp.arange(-(-columns // n)) * (rows.index_bits + rows.gain_bits)[:, None]
    index_bits = rows.index_bits[:, None]
    index = unpack(rows.words, start, index_bits, limbs=tables.shape[-1])
    gain = unpack(rows.words, start + index_bits, rows.gain_bits[:, None], limbs=1)[..., 0]
    y = unrank(index, tables, pulses=jnp.broadcast_to(rows.pulses[:, None], gain.shape))
    level = jnp.take_along_axis(rows.levels, gain.astype(jnp.int32), axis=1)
    w = reconstruct(unit_direction(y, jnp.float32), rows.scale[:, None] * level)
    w = w.reshape(w.shape[0], -1)[:, :columns]
    return jax.vmap(unrotate)(w, rows.signs) if rotated else w
