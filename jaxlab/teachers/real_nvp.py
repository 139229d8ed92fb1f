"""A conditional RealNVP over the unit cube: the setter of Setter-Solver.

Each block has three affine couplings: the right half given the left, the left given the right, and the even coordinates
given the odd ones. References: Dinh et al., arXiv:1605.08803, section 3; Racaniere et al., arXiv:1909.12892, appendix
(scales that cannot become small, highway networks after Zilly et al., arXiv:1607.03474).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.teachers.dense_layers import Dense, dense, fan_in_kernel, init_layers

_LEAST_SCALE = 0.01
_LARGEST = 1e6
_TAIL = -30.0


class Highway(NamedTuple):
    """A network whose hidden layers let gates choose between their input and a new value."""

    first: Dense
    gated: tuple[Dense, ...]
    """Each gives the new values and the gates."""
    last: Dense


class Coupling(NamedTuple):
    """Scale and shift of some coordinates given the others and the condition."""

    scale: Highway
    shift: Highway


Flow = tuple[Coupling, Coupling, Coupling]
"""The couplings of a block, each with a leading axis over the blocks."""


def init_flow(
    key: jax.Array, dimensions: int, *, hidden: int = 128, blocks: int = 3, layers: int = 3
) -> Flow:
    """A flow over `dimensions` coordinates given one condition.

    Args:
      key: PRNG key.
      dimensions: >= 2.
      hidden: width of the networks, >= 1.
      blocks: of three couplings each, >= 1.
      layers: gated layers of a network, >= 1.

    Raises:
      InputError: fewer than two dimensions, of which one half would be empty, or a size below 1.
    """
    if dimensions < 2:
        raise InputError(
            f"dimensions is {dimensions}; a coupling flow needs at least 2, one to change given another"
        )
    for name, size in (("hidden", hidden), ("blocks", blocks), ("layers", layers)):
        if size < 1:
            raise InputError(f"{name} is {size}; it must be >= 1")

    def coupling(key: jax.Array, cut: _Cut) -> Coupling:
        out = len(range(dimensions)[cut.changed])
        keys = jax.random.split(key)
        nets = (_init_highway(k, dimensions - out + 1, out, hidden=hidden, layers=layers) for k in keys)
        return Coupling(*nets)

    def block(key: jax.Array) -> Flow:
        first, second, third = _cuts(dimensions)
        keys = jax.random.split(key, 3)
        return coupling(keys[0], first), coupling(keys[1], second), coupling(keys[2], third)

    return jax.vmap(block)(jax.random.split(key, blocks))


def flow_forward(
    flow: Flow, latent: Float[Array, "*batch dim"], condition: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
    """The logits of the goals that the flow makes of latents, and log p(goal | condition).

    Args:
      flow: see `init_flow`.
      latent: standard normal.
      condition: a number for each.

    Returns:
      logits, whose sigmoid is the goal in (0, 1)^dim, and the log-density of the goal.
    """

    def through(carry: tuple[Array, Array], block: Flow) -> tuple[tuple[Array, Array], None]:
        z, log_p = carry
        for coupling, cut in zip(block, _cuts(z.shape[-1]), strict=True):
            kept = z[..., cut.kept]
            scale, shift = _scale_and_shift(coupling, kept, condition)
            z = cut.join(kept, z[..., cut.changed] * scale + shift)
            log_p -= jnp.sum(jnp.log(scale), axis=-1)
        return (z, log_p), None

    (z, log_p), _ = jax.lax.scan(through, (latent, _normal_log_density(latent)), flow)
    return z, log_p - _sigmoid_log_slope(z)


def flow_inverse(
    flow: Flow, logits: Float[Array, "*batch dim"], condition: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
    """The latents of goals given by their logits, and log p(goal | condition); the inverse of `flow_forward`."""

    def back(carry: tuple[Array, Array], block: Flow) -> tuple[tuple[Array, Array], None]:
        z, log_p = carry
        for coupling, cut in reversed(list(zip(block, _cuts(z.shape[-1]), strict=True))):
            kept = z[..., cut.kept]
            scale, shift = _scale_and_shift(coupling, kept, condition)
            z = cut.join(kept, (z[..., cut.changed] - shift) / scale)
            log_p -= jnp.sum(jnp.log(scale), axis=-1)
        return (z, log_p), None

    (z, log_p), _ = jax.lax.scan(back, (logits, -_sigmoid_log_slope(logits)), flow, reverse=True)
    return z, log_p + _normal_log_density(z)


def slow_softplus(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """x (atan(x) / pi + 1/2) + 1/pi: x for large x, 1 / (3 pi x^2) for very negative ones.

    It falls much more slowly than log(1 + e^x), so that scales do not vanish; x is softly clipped at 10^6.
    """
    unit = _LARGEST / (math.pi / 2)
    x = unit * jnp.arctan(x / unit)
    tail = 1 / (3 * math.pi * jnp.minimum(x, _TAIL) ** 2)
    return jnp.where(x < _TAIL, tail, x * (jnp.arctan(x) / math.pi + 0.5) + 1 / math.pi)


class _Cut(NamedTuple):
    """Which coordinates a coupling keeps, and which it changes."""

    kept: slice
    changed: slice

    def join(self, kept: Float[Array, "*batch kept"], new: Float[Array, "*batch changed"]) -> Array:
        """All coordinates in their order."""
        d = kept.shape[-1] + new.shape[-1]
        columns = dict(zip(range(d)[self.kept], jnp.split(kept, kept.shape[-1], axis=-1), strict=True))
        columns |= zip(range(d)[self.changed], jnp.split(new, new.shape[-1], axis=-1), strict=True)
        return jnp.concatenate([columns[i] for i in range(d)], axis=-1)


def _cuts(dimensions: int) -> tuple[_Cut, ...]:
    """Those of the three couplings of a block."""
    left, right = slice(0, dimensions // 2), slice(dimensions // 2, dimensions)
    even, odd = slice(0, dimensions, 2), slice(1, dimensions, 2)
    return _Cut(left, right), _Cut(right, left), _Cut(odd, even)


def _scale_and_shift(
    coupling: Coupling, kept: Float[Array, "*batch kept"], condition: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch changed"], Float[Array, "*batch changed"]]:
    inputs = jnp.concatenate([kept, condition[..., None]], axis=-1)
    return _LEAST_SCALE + slow_softplus(_highway(coupling.scale, inputs)), _highway(coupling.shift, inputs)


def _init_highway(key: jax.Array, inputs: int, outputs: int, *, hidden: int, layers: int) -> Highway:
    first_key, last_key, *keys = jax.random.split(key, layers + 2)

    def layer(key: jax.Array, inputs: int, outputs: int) -> Dense:
        return init_layers(key, (inputs, outputs), initializer=fan_in_kernel)[0]

    return Highway(
        layer(first_key, inputs, hidden),
        tuple(layer(k, hidden, 2 * hidden) for k in keys),
        layer(last_key, hidden, outputs),
    )


def _highway(net: Highway, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    y = jnp.tanh(dense(net.first, x))
    for layer in net.gated:
        new, gate = jnp.split(dense(layer, y), 2, axis=-1)
        y += (jnp.tanh(new) - y) * jax.nn.sigmoid(gate)
    return dense(net.last, y)


def _normal_log_density(z: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    return -0.5 * jnp.sum(z**2, axis=-1) - z.shape[-1] / 2 * math.log(2 * math.pi)


def _sigmoid_log_slope(logits: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """log |d goal / d logits|."""
    return jnp.sum(jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits), axis=-1)
