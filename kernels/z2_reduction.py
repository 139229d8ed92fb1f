"""Persistence reduction over Z/2 with the rows of a boundary matrix packed into 32-bit words.

Column j, when its turn comes, is added to every later column that has a bit where j has its lowest one. By then j has
no bit where an earlier column has its lowest, so the lowest ones are those of the standard algorithm. There is no
search for owners of pivots: a fixed number of steps, each one wide XOR, which is what lanes and accelerators want.
Reference: Cohen-Steiner, Edelsbrunner, Morozov, "Vines and vineyards", 2006, for the left-to-right reduction.
"""

import jax
import jax.numpy as jnp

WORD = 32


def pack_columns(faces: jax.Array, *, rows: int) -> jax.Array:
    """Boundary matrix in bits.

    Args:
      faces: int[m, f], distinct row indices of each column; those outside [0, rows) are left out.
      rows: number of rows.

    Returns:
      uint32[ceil(rows / 32), m], at least one word; row r is bit r % 32 of word r // 32.
    """
    m = faces.shape[0]
    words = max(1, -(-rows // WORD))
    inside = (faces >= 0) & (faces < rows)
    bit = jnp.left_shift(jnp.uint32(1), (faces % WORD).astype(jnp.uint32))
    word = jnp.where(inside, faces // WORD, words)
    column = jnp.arange(m)[:, None]
    return jnp.zeros((words, m), jnp.uint32).at[word, column].add(bit, mode="drop")


def lowest_ones(columns: jax.Array) -> jax.Array:
    """The largest row index with a one in each column after reduction from left to right, -1 for a zero column.

    A zero column opens a class; a column with lowest one r closes the class that row r opened. O(m^2 words).

    Args:
      columns: uint32[words, m], from `pack_columns`, both rows and columns in order of entry.

    Returns:
      int32[m]; the values >= 0 are distinct.
    """
    words, m = columns.shape
    if m == 0:
        return jnp.zeros(0, jnp.int32)
    position = jnp.arange(m)

    def step(j: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        columns, lows = state
        own = jax.lax.dynamic_index_in_dim(columns, j, axis=1, keepdims=False)
        word = jnp.max(jnp.where(own != 0, jnp.arange(words, dtype=jnp.int32), -1))
        bit = WORD - 1 - jax.lax.clz(own[word]).astype(jnp.int32)
        hit = jnp.right_shift(columns[word], jnp.maximum(bit, 0).astype(jnp.uint32)) & 1
        hit = jnp.where((position > j) & (word >= 0), hit, 0)
        # 0 - 1 is a word of ones: XOR where hit, without a branch.
        columns = columns ^ (own[:, None] & (jnp.uint32(0) - hit))
        return columns, lows.at[j].set(jnp.where(word >= 0, WORD * word + bit, -1))

    return jax.lax.fori_loop(0, m, step, (columns, jnp.full(m, -1, jnp.int32)))[1]


def pack_flags(flags: jax.Array) -> jax.Array:
    """Flags of the last axis as bits of words, the first one lowest: uint32[..., words]."""
    n = flags.shape[-1]
    words = -(-n // WORD)
    padded = jnp.pad(flags, [(0, 0)] * (flags.ndim - 1) + [(0, words * WORD - n)])
    bits = padded.reshape(*flags.shape[:-1], words, WORD).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(WORD, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)
