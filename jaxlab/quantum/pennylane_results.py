"""What the PennyLane devices share: which interfaces are traced, and how results are nested."""

from typing import Any

import jax
import numpy as np
import pennylane as qml
from pennylane.devices import ExecutionConfig


def is_jax(config: ExecutionConfig) -> bool:
    """Whether a QNode is to be traced through by JAX."""
    return config.interface in (qml.math.Interface.JAX, qml.math.Interface.JAX_JIT)


def nested(rows: list[list[Any]], count: int) -> Any:
    """As PennyLane nests: measurements outside, parameters inside, single ones not in tuples."""
    shaped = [row[0] if count == 1 else tuple(row) for row in rows]
    return shaped[0] if len(rows) == 1 else tuple(shaped)


def as_numpy(results: Any) -> Any:
    """JAX arrays as NumPy ones: copies, which torch may write to."""
    return jax.tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, jax.Array) else leaf, results)
