"""A vector times a matrix packed in 4 bits takes no longer than XLA's float32 product; on GPUs 2.5 times bfloat16's.

The shapes of SmolLM2's MLP and, in the full run, its head; 1, 16 and 256 vectors. Ours keeps float32 inputs, or rounds
them to 8 bits where vectors are few; beside it XLA's products with float32, bfloat16 and `jnp.int4` matrices (the last
without scales, as they are in no format). The target for a CPU is the float32 product, which reads eight times as
much; that of a GPU, 2.5 times bfloat16, is for one vector.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import harness
from jaxlab.models.linear import dense, linear
from jaxlab.models.packed import pack_matrix, with_integer_products

SHAPES = ((1536, 576), (576, 1536), (49152, 576))
GPU_SHAPES = ((8192, 8192),)
VECTORS = (1, 16, 256)
_GROUP = 32


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a shape, number of vectors and contestant."""
    load = round(os.getloadavg()[0], 2)
    on_cpu = jax.default_backend() == "cpu"
    shapes = SHAPES if on_cpu else GPU_SHAPES
    rows = []
    for rows_, columns in shapes[:1] if quick else shapes:
        for vectors in VECTORS[:2] if quick else VECTORS:
            rows += _one(rows_, columns, vectors, repetitions=20 if quick else 60, on_cpu=on_cpu)
    return [row | {"load": load} for row in rows]


def _one(rows: int, columns: int, vectors: int, *, repetitions: int, on_cpu: bool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (rows, columns))
    scale, minimum = rng.standard_normal((2, rows, columns // _GROUP)).astype(np.float16)
    four = pack_matrix(jnp.asarray(codes, jnp.uint8), jnp.asarray(scale), jnp.asarray(minimum), bits=4)
    eight = pack_matrix(jnp.asarray(codes * 16 - 128, jnp.int8), jnp.asarray(scale), bits=8)
    matrix = dense(four)
    x = jnp.asarray(rng.standard_normal((vectors, columns)), jnp.float32)
    exact = np.asarray(x, np.float64) @ np.asarray(matrix, np.float64).T
    harness.require_equal([jax.jit(linear)(x, four)], [exact], 1e-5 * float(np.abs(exact).max()))

    def product(matrix: jax.Array, x: jax.Array) -> jax.Array:
        wide = matrix.astype(x.dtype)
        return lax.dot_general(x, wide, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    half = x.astype(jnp.bfloat16)
    work = {
        "ours, 4 bits": (lambda leaf, x: linear(x, leaf), four, x),
        "ours, 4 bits, 8-bit inputs": (lambda leaf, x: linear(x, leaf), with_integer_products(four), x),
        "ours, 8 bits": (lambda leaf, x: linear(x, leaf), eight, x),
        "float32": (product, matrix, x),
        "bfloat16": (product, matrix.astype(jnp.bfloat16), half),
        "jnp.int4": (product, jnp.asarray(codes - 8, jnp.int4), half),
    }
    contestants = {who: functools.partial(jax.jit(f), *arrays) for who, (f, *arrays) in work.items()}
    timings = harness.compare(contestants, repetitions)
    against = "float32" if on_cpu else "bfloat16"
    base = timings[against]
    found = []
    for who, timing in timings.items():
        best = min(timing.seconds)
        found.append(
            {
                "rows": rows,
                "columns": columns,
                "vectors": vectors,
                "who": who,
                "best_ms": round(1e3 * best, 4),
                "median_ms": round(1e3 * timing.median, 4),
                "cpu_ms": round(1e3 * float(np.median(timing.cpu)), 4),
                "Gweights_per_s": round(rows * columns / best / 1e9, 2),
                f"x_{against}": round(min(base.seconds) / best, 2),
                "target": (1.0 if on_cpu else 2.5) if vectors == 1 and who.startswith("ours, 4") else None,
            }
        )
    return found
