"""Products with matrices that stay packed in 4 or 8 bits: y = x @ W.T with W[r, c] = scale * code + minimum.

Layout. Rows lie in tiles of 64, columns in chunks of up to 32, and the rows of a tile are last in memory: codes
`[tiles, chunks, chunk, 64]` as int8, or `[tiles, chunks, chunk / 2, 64]` as uint8, where byte k of a chunk holds column
k in its low and column k + chunk / 2 in its high four bits. Scales and minima are `[tiles, groups, 64]`; a group is one
chunk or several. So a product with few vectors is a chain of additions without a reduction over the last axis, which
every backend vectorises: XLA's CPU backend adds the elements of a last axis one after the other, and has no fast
product of integers.

With many vectors the matrix is unpacked a piece at a time and multiplied as floats.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

TILE = 64
LARGEST_CHUNK = 32
_FEW = 2  # vectors; with more, unpacking first is faster on CPUs
_PIECE_TILES = 64  # unpacked at a time
_LONGEST_CHAIN, _FOLD = 64, 16  # of additions in a program


def chunk_size(columns: int, group: int) -> int:
    """The widest chunk for groups of `group` columns.

    Raises:
      ValueError: there is none, because a group is odd and longer than a chunk, or not all groups are whole.
    """
    for size in (group, 32, 16, 8, 4, 2):
        if group % size == 0 and columns % group == 0 and size <= LARGEST_CHUNK and size % 2 == 0:
            return size
    raise ValueError(f"groups of {group} of {columns} columns; they must be whole and of even length")


@functools.partial(jax.jit, static_argnames=("bits", "chunk"))
def pack_codes(codes: jax.Array, *, bits: int, chunk: int) -> jax.Array:
    """Codes in the layout of this module; rows are filled up with zeros.

    Args:
      codes: integers [..., rows, columns], 0 to 15 for 4 bits, -128 to 127 for 8.
      bits: 4 or 8.
      chunk: columns of a chunk, even, a divisor of the columns.

    Raises:
      ValueError: bits or chunk do not fit.
    """
    *stack, rows, columns = codes.shape
    if bits not in (4, 8) or chunk % 2 or not 2 <= chunk <= LARGEST_CHUNK or columns % chunk:
        raise ValueError(f"bits = {bits} and chunk = {chunk} do not fit codes of shape {codes.shape}")
    if bits == 4:
        halves = codes.astype(jnp.uint8).reshape(*stack, rows, columns // chunk, 2, chunk // 2)
        whole = halves[..., 0, :] | halves[..., 1, :] << 4
    else:
        whole = codes.astype(jnp.int8).reshape(*stack, rows, columns // chunk, chunk)
    return _tiled(whole, rows_axis=len(stack))


@jax.jit
def pack_scales(scales: jax.Array) -> jax.Array:
    """Scales or minima [..., rows, groups] in the layout of this module, in their dtype."""
    return _tiled(scales, rows_axis=scales.ndim - 2)


def dequantize_packed(
    codes: jax.Array, scale: jax.Array, minimum: jax.Array | None = None, *, rows: int
) -> jax.Array:
    """The matrix float32 [rows, columns]; arguments as for `packed_matmul`."""
    tiles, chunks, _, tile = codes.shape
    chunk = _columns_of_chunk(codes)
    whole = _values(codes, scale, minimum, jnp.float32).transpose(0, 3, 1, 2)
    return whole.reshape(tiles * tile, chunks * chunk)[:rows]


def packed_rows(
    indices: jax.Array, codes: jax.Array, scale: jax.Array, minimum: jax.Array | None = None
) -> jax.Array:
    """Rows of the matrix.

    Args:
      indices: integers [...]; those outside of the matrix are drawn to its ends.
      codes: see `packed_matmul`.
      scale: see `packed_matmul`.
      minimum: see `packed_matmul`.

    Returns:
      float32 [..., columns], equal to those rows of `dequantize_packed`.
    """
    inside = jnp.clip(indices, 0, codes.shape[0] * TILE - 1)
    tile, row = inside // TILE, inside % TILE

    def take(array: jax.Array) -> jax.Array:
        return array[tile, ..., row].reshape(-1, *array.shape[1:-1], 1)

    flat = _values(take(codes), take(scale), None if minimum is None else take(minimum), jnp.float32)
    return flat.reshape(*indices.shape, -1)


def quantize_activations(x: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Vectors in 8 bits, with the scale max|x| / 127 for every chunk, as llama.cpp's Q8_0 has it.

    Args:
      x: float [..., columns].
      chunk: a divisor of the columns.

    Returns:
      int8 [..., chunks, chunk] and float [..., chunks]; x is about their product.
    """
    parts = x.reshape(*x.shape[:-1], -1, chunk)
    scale = jnp.max(jnp.abs(parts), axis=-1) / 127
    steps = parts / jnp.where(scale == 0, 1, scale)[..., None]
    return jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8), scale


def integer_products(x: jax.Array, codes: jax.Array, layer: jax.Array | int | None = None) -> jax.Array:
    """Sums of products of integers within each chunk, exact.

    Args:
      x: int8 [vectors, chunks, chunk], -127 to 127.
      codes: see `packed_matmul`.
      layer: see `packed_matmul`.

    Returns:
      int32 [tiles, chunks, vectors, TILE].
    """
    wide = x.astype(jnp.int16).transpose(1, 2, 0)[..., None]  # [chunks, chunk, vectors, 1]
    terms = [code.astype(jnp.int16) * wide[:, place] for place, code in _codes_in_pairs(codes, layer)]
    if codes.dtype == jnp.uint8:
        # 16 products of at most 15 * 127 fit 16 bits.
        return sum_of(terms[0::2]).astype(jnp.int32) + sum_of(terms[1::2]).astype(jnp.int32)
    # Two products of at most 128 * 127 do.
    pairs = [a + b for a, b in zip(terms[0::2], terms[1::2], strict=True)]
    return sum_of([pair.astype(jnp.int32) for pair in pairs])


def packed_matmul(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    minimum: jax.Array | None = None,
    *,
    rows: int,
    layer: jax.Array | int | None = None,
    integer: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Products x @ W.T with W[r, c] = scale * code + minimum; sums are in float32 (float64 for float64 `x`).

    The derivative for `x` is that of the product with W; the matrix has none.

    Args:
      x: float [..., columns].
      codes: uint8 or int8 from `pack_codes`.
      scale: float from `pack_scales`; float16 or bfloat16 are read as they are.
      minimum: None is zero.
      rows: static; rows of the matrix.
      layer: number of the matrix in a stack, where codes, scale and minimum have a leading axis of layers. In a loop
        over layers this spares XLA's CPU backend a copy of each matrix, which it makes of slices that are read in many
        places.
      integer: few vectors are rounded to 8 bits a number first (`quantize_activations`, in chunks), so that products
        are of integers and exact; many vectors are rounded too, but multiplied as floats.
      implementation: "xla" (also None: the only one that has been timed), or "pallas" for GPU and TPU (interpreted,
        slowly, on CPU; not for float64).

    Returns:
      float32 or float64 [..., rows].

    Raises:
      ValueError: shapes or dtypes do not fit, or an unknown implementation.
    """
    _check(x, codes, scale, minimum, rows, stacked=layer is not None)
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(f"implementation = {implementation!r}; it must be None, 'xla' or 'pallas'")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if implementation == "pallas" and dtype != jnp.float32:
        raise ValueError("implementation = 'pallas' takes float32 or less, not float64")
    vectors = x.astype(dtype).reshape(-1, x.shape[-1])
    out = _product(vectors, codes, scale, minimum, layer, rows, integer, implementation == "pallas")
    return out.reshape(*x.shape[:-1], rows)


def packed_integer_matmul(
    steps: jax.Array,
    size: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    minimum: jax.Array | None = None,
    *,
    rows: int,
) -> jax.Array:
    """Products with W of vectors that are integers times a size a chunk; sums within a chunk are exact.

    Args:
      steps: int8 [..., chunks, chunk], -127 to 127.
      size: float [..., chunks].
      codes: see `packed_matmul`.
      scale: see `packed_matmul`.
      minimum: see `packed_matmul`.
      rows: see `packed_matmul`.

    Returns:
      float32 [..., rows].

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    if steps.dtype != jnp.int8 or steps.ndim < 2 or size.shape != steps.shape[:-1]:
        raise ValueError(
            f"steps has shape {steps.shape} and dtype {steps.dtype}, size {size.shape}; they must be int8 "
            "[..., chunks, chunk] and [..., chunks]"
        )
    flat = jax.ShapeDtypeStruct((*steps.shape[:-2], steps.shape[-2] * steps.shape[-1]), jnp.float32)
    _check(flat, codes, scale, minimum, rows, stacked=False)
    if steps.shape[-2:] != (codes.shape[1], _columns_of_chunk(codes)):
        raise ValueError(f"steps has shape {steps.shape}; its chunks must be those of codes {codes.shape}")
    vectors = steps.reshape(-1, *steps.shape[-2:])
    sizes = size.astype(jnp.float32).reshape(len(vectors), -1)
    out = _of_integers(vectors, sizes, codes, scale, minimum, None)[:, :rows]
    return out.reshape(*steps.shape[:-2], rows)


_Saved = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | int | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _product(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    minimum: jax.Array | None,
    layer: jax.Array | int | None,
    rows: int,
    integer: bool,
    pallas: bool,
) -> jax.Array:
    scale, minimum = _one((scale, minimum), layer)
    if not pallas and len(x) <= _FEW:
        return _few(x, codes, scale, minimum, layer, integer)[:, :rows]
    codes = _one(codes, layer)
    if integer:
        steps, size = quantize_activations(x, _columns_of_chunk(codes))
        x = (steps.astype(x.dtype) * size[..., None]).reshape(x.shape)
    if pallas:
        from jaxlab.kernels.packed_matmul_pallas import multiply

        return multiply(x, codes, *whole_groups(codes.shape[1], scale, minimum, x.dtype))[:, :rows]
    return _many(x, codes, scale, minimum)[:, :rows]


def _few(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    minimum: jax.Array | None,
    layer: jax.Array | int | None,
    integer: bool,
) -> jax.Array:
    """[vectors, padded rows], from packed codes as they lie."""
    # Within a loop XLA would convert the codes to wider numbers once, before the loop: this ties them to the vectors.
    if layer is None:
        x, codes, scale, minimum = lax.optimization_barrier((x, codes, scale, minimum))
    chunk = _columns_of_chunk(codes)
    if integer:
        return _of_integers(*quantize_activations(x, chunk), codes, scale, minimum, layer)
    parts = x.reshape(len(x), -1, chunk)
    wide = parts.transpose(1, 2, 0)[..., None]
    products = sum_of(
        [
            code.astype(jnp.int32).astype(x.dtype) * wide[:, place]
            for place, code in _codes_in_pairs(codes, layer)
        ]
    )
    return _scaled_sum(products, parts.sum(-1), *whole_groups(codes.shape[-3], scale, minimum, x.dtype))


def _of_integers(
    steps: jax.Array,
    size: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    minimum: jax.Array | None,
    layer: jax.Array | int | None,
) -> jax.Array:
    """[vectors, padded rows], for vectors that are integers times a size a chunk."""
    products = integer_products(steps, codes, layer).astype(size.dtype)
    total = steps.sum(-1, dtype=jnp.int32).astype(size.dtype)
    side = whole_groups(codes.shape[-3], scale, minimum, size.dtype)
    return _scaled_sum(products, total, *side, factor=size.T[..., None])


def _scaled_sum(
    products: jax.Array,
    total: jax.Array,
    scale: jax.Array,
    minimum: jax.Array | None,
    factor: jax.Array | None = None,
) -> jax.Array:
    """Sum over chunks of factor * (scale * products + minimum * total), [vectors, padded rows]."""
    by_chunk = products * scale
    if minimum is not None:
        by_chunk = by_chunk + minimum * total.T[..., None]
    if factor is not None:
        by_chunk = by_chunk * factor
    return _sum_over_chunks(by_chunk).transpose(1, 0, 2).reshape(len(total), -1)


def _sum_over_chunks(by_chunk: jax.Array) -> jax.Array:
    """Sum over axis 1.

    As a chain of additions, since XLA's CPU backend hands a reduction, with all products of floats before it, to a
    library that takes ten times as long for them, or takes the products inside of the sum, one row at a time. It keeps
    apart what is read in more than 15 places.
    """
    chunks = by_chunk.shape[1]
    if chunks > _LONGEST_CHAIN and chunks % _FOLD == 0:
        folded = by_chunk.reshape(len(by_chunk), _FOLD, chunks // _FOLD, *by_chunk.shape[2:])
        return _sum_over_chunks(sum_of([folded[:, part] for part in range(_FOLD)]))
    return sum_of([by_chunk[:, chunk] for chunk in range(chunks)])


def _many(x: jax.Array, codes: jax.Array, scale: jax.Array, minimum: jax.Array | None) -> jax.Array:
    """[vectors, padded rows], from pieces of the matrix as floats."""

    def piece(packed: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        parts = _parts(*packed, x.dtype)
        places = x.reshape(len(x), packed[0].shape[1], len(parts), -1)
        total = jnp.zeros(())
        for part, values in enumerate(parts):
            # A product a tile, since XLA's CPU backend is slow at laying tiles side by side.
            matrix = lax.optimization_barrier(values.reshape(len(values), -1, TILE))
            vectors = jnp.broadcast_to(
                places[:, :, part].reshape(1, len(x), -1), (len(values), len(x), matrix.shape[1])
            )
            total = total + lax.dot_general(vectors, matrix, (((2,), (1,)), ((0,), (0,))))
        return total.transpose(1, 0, 2).reshape(len(x), -1)

    tiles = codes.shape[0]
    if tiles <= _PIECE_TILES:
        return piece((codes, scale, minimum))
    count = tiles // _PIECE_TILES
    split = jax.tree.map(
        lambda array: array[: count * _PIECE_TILES].reshape(count, _PIECE_TILES, *array.shape[1:]),
        (codes, scale, minimum),
    )
    done = lax.map(piece, split).transpose(1, 0, 2).reshape(len(x), -1)
    if tiles == count * _PIECE_TILES:
        return done
    rest = jax.tree.map(lambda array: array[count * _PIECE_TILES :], (codes, scale, minimum))
    return jnp.concatenate([done, piece(rest)], axis=1)


def _forward(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    minimum: jax.Array | None,
    layer: jax.Array | int | None,
    *options: bool | int,
) -> tuple[jax.Array, _Saved]:
    return _product(x, codes, scale, minimum, layer, *options), (codes, scale, minimum, layer)


def _backward(
    rows: int,
    integer: bool,
    pallas: bool,
    saved: _Saved,
    gradient: jax.Array,
) -> tuple[jax.Array, None, None, None, None]:
    del integer, pallas  # rounding is passed straight through
    *packed, layer = saved
    matrix = dequantize_packed(*_one(packed, layer), rows=rows)
    return gradient @ matrix.astype(gradient.dtype), None, None, None, None


_product.defvjp(_forward, _backward)


def whole_groups(
    chunks: int, scale: jax.Array, minimum: jax.Array | None, dtype: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Scales and minima for every chunk instead of every group, [tiles, chunks, 1, TILE]."""

    def spread(array: jax.Array) -> jax.Array:
        wide = array.astype(dtype)[:, :, None]
        return wide if array.shape[1] == chunks else jnp.repeat(wide, chunks // array.shape[1], axis=1)

    return spread(scale), None if minimum is None else spread(minimum)


def sum_of(terms: list[jax.Array]) -> jax.Array:
    """Sum of arrays, by a chain that stays in one loop over their elements."""
    return functools.reduce(jnp.add, terms)


def _one(stacked: Any, layer: jax.Array | int | None) -> Any:
    """One layer's part of arrays that are stacks; None: they are not."""
    if layer is None:
        return stacked
    return jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, layer, keepdims=False), stacked)


def _codes_in_pairs(codes: jax.Array, layer: jax.Array | int | None) -> list[tuple[int, jax.Array]]:
    """For every column of a chunk its place and codes [tiles, chunks, 1, TILE]; columns of a byte are neighbours."""
    found = []
    size = codes.shape[-2]
    for byte in range(size):
        # From a stack by itself: a slice of the stack that is sliced again would be copied.
        code = (
            lax.slice_in_dim(codes, byte, byte + 1, axis=2)
            if layer is None
            else _byte_of_layer(codes, layer, byte)
        )
        if codes.dtype == jnp.uint8:
            found += [(byte, code & 15), (byte + size, code >> 4)]
        else:
            found.append((byte, code))
    return found


def _byte_of_layer(codes: jax.Array, layer: jax.Array | int, byte: int) -> jax.Array:
    sizes = (1, *codes.shape[1:3], 1, codes.shape[-1])
    return lax.dynamic_slice(codes, (layer, 0, 0, byte, 0), sizes)[0]


def _parts(
    codes: jax.Array, scale: jax.Array, minimum: jax.Array | None, dtype: jnp.dtype
) -> list[jax.Array]:
    """The matrix as floats: the first and the second half of every chunk, or all of it, [tiles, chunks, part, rows]."""
    scale, minimum = whole_groups(codes.shape[1], scale, minimum, dtype)
    steps = [codes & 15, codes >> 4] if codes.dtype == jnp.uint8 else [codes]
    values = [step.astype(jnp.int32).astype(dtype) * scale for step in steps]
    return values if minimum is None else [value + minimum for value in values]


def _values(codes: jax.Array, scale: jax.Array, minimum: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """The matrix as floats [tiles, chunks, chunk, rows of a tile]."""
    return jnp.concatenate(_parts(codes, scale, minimum, dtype), axis=2)


def _tiled(array: jax.Array, rows_axis: int) -> jax.Array:
    """The axis of rows cut into tiles, of which the first comes in its place and the rows of one last."""
    rows = array.shape[rows_axis]
    padding = [(0, 0)] * array.ndim
    padding[rows_axis] = (0, -rows % TILE)
    shape = (*array.shape[:rows_axis], -1, TILE, *array.shape[rows_axis + 1 :])
    return jnp.moveaxis(jnp.pad(array, padding).reshape(shape), rows_axis + 1, -1)


def _columns_of_chunk(codes: jax.Array) -> int:
    return codes.shape[-2] * (2 if codes.dtype == jnp.uint8 else 1)


def _check(
    x: jax.Array | jax.ShapeDtypeStruct,
    codes: jax.Array,
    scale: jax.Array,
    minimum: jax.Array | None,
    rows: int,
    *,
    stacked: bool,
) -> None:
    axes = 5 if stacked else 4
    if codes.ndim != axes or codes.dtype not in (jnp.uint8, jnp.int8) or codes.shape[-1] != TILE:
        raise ValueError(
            f"codes has shape {codes.shape} and dtype {codes.dtype}; it must be what pack_codes returns, uint8 or int8 "
            f"[{'layers, ' if stacked else ''}tiles, chunks, bytes, {TILE}]"
        )
    *stack, tiles, chunks, _, _ = codes.shape
    for name, array in (("scale", scale), ("minimum", minimum)):
        if array is None:
            continue
        fits = array.ndim == axes - 1 and array.shape[:-2] == (*stack, tiles) and array.shape[-1] == TILE
        if not fits or array.shape[-2] == 0 or chunks % array.shape[-2]:
            raise ValueError(
                f"{name} has shape {array.shape}; it must be {(*stack, tiles, 'groups', TILE)}, groups a divisor of "
                f"{chunks}"
            )
    if not (tiles - 1) * TILE < rows <= tiles * TILE:
        raise ValueError(f"rows is {rows}; codes of {tiles} tiles hold up to {tiles * TILE}")
    columns = chunks * _columns_of_chunk(codes)
    if x.ndim < 1 or x.shape[-1] != columns or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; it must be floating point [..., {columns}]"
        )
    if math.prod(x.shape) == 0:
        raise ValueError(f"x has shape {x.shape}; it must hold at least one vector")
