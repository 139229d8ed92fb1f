"""A circuit as a layer of a neural network."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.errors import InputError
from jaxlab.quantum.measurements import marginal_z
from jaxlab.quantum.recording import Circuit
from jaxlab.quantum.simulation import Differentiation, circuit


class QuantumLayer(nnx.Module):
    """Measurements of a circuit of trained angles and of the layer's input, e.g. as features between dense layers.

    Without nnx the same is `circuit(fn, n, measure)(angles, x)`, a pure function.
    """

    def __init__(
        self,
        fn: Callable[[Circuit, jax.Array, jax.Array], Any],
        n: int,
        shape: Sequence[int],
        *,
        rngs: nnx.Rngs,
        measure: Callable[[jax.Array], jax.Array] = marginal_z,
        scale: float = 1.0,
        diff: Differentiation = "adjoint",
    ):
        """Draws the angles.

        Args:
          fn: `fn(c, angles, x)` calls gates on the `Circuit` c, for one input x.
          n: wires.
          shape: of the angles.
          rngs: for the angles, by the key of `params`.
          measure: of the state; <Z> of every wire unless given.
          scale: the angles are uniform between -scale and scale, radians; > 0.
          diff: see `simulate`.

        Raises:
          InputError: the scale is not positive.
        """
        if not scale > 0:
            raise InputError(f"scale is {scale}; it must be > 0")
        self.angles = nnx.Param(jax.random.uniform(rngs.params(), tuple(shape), minval=-scale, maxval=scale))
        self.run = circuit(fn, n, measure, diff=diff)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Measurements [..., m] of inputs [..., features]."""
        run = jnp.vectorize(lambda x: self.run(self.angles[...], x), signature="(f)->(m)")
        return run(x)
