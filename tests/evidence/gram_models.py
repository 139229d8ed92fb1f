"""Small models whose parameters are read in many ways, with inputs; all as plain apply functions."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import lax

EXAMPLES = 3


def _numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def plain(shapes, seed=1):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) * 0.5 for name, shape in shapes.items()}


class _Convolutions(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 3, (3, 3), strides=2, padding="SAME", rngs=rngs)
        self.norm = nnx.GroupNorm(3, num_groups=3, rngs=rngs)
        self.grouped = nnx.Conv(3, 3, (2, 2), feature_group_count=3, rngs=rngs)
        self.last = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        hidden = self.grouped(jax.nn.gelu(self.norm(self.first(x))))
        return self.last(hidden.reshape(len(x), -1))


def convolutions():
    graph, params = nnx.split(_Convolutions(nnx.Rngs(0)), nnx.Param)
    return lambda p, x: nnx.merge(graph, p)(x), params, _numbers(EXAMPLES, 4, 4, 2)


class _Tokens(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = linen.LayerNorm()(linen.Embed(11, 4)(x))
        hidden = jax.nn.silu(linen.Dense(9)(hidden))
        return linen.Dense(3)(hidden.mean(1))


def tokens():
    model = _Tokens()
    inputs = np.array([[0, 3, 3, 10], [1, 3, 0, 0], [5, 6, 7, 8]])
    return model.apply, model.init(jax.random.key(0), inputs), inputs


def wide_sequence():
    """Few positions between wide layers: pairs of positions are cheaper than the Jacobian."""
    params = plain({"W": (12, 10), "V": (10, 3)})
    return lambda p, x: (jnp.tanh(x @ p["W"]) @ p["V"]).mean(1), params, _numbers(EXAMPLES, 2, 12)


def wide_tables():
    """Few tokens of many, some twice, some outside: clipped in one table, nothing in the other."""
    params = plain({"clipped": (40, 3), "filled": (40, 3)})

    def apply(p, x):
        clipped = jnp.take(p["clipped"], x, axis=0, mode="clip")
        return jnp.sin(clipped * jnp.take(p["filled"], x, axis=0, mode="fill", fill_value=0.5)).mean(1)

    return apply, params, np.array([[0, 3, 3], [39, 41, 0], [5, 0, 45]])


def wide_convolution():
    params = plain({"kernel": (6, 5, 2, 2), "V": (6, 3)})

    def apply(p, x):
        hidden = lax.conv(x, p["kernel"], (2, 2), "VALID")
        return jnp.tanh(hidden).mean((2, 3)) @ p["V"]

    return apply, params, _numbers(EXAMPLES, 5, 4, 2)


def odd_readings():
    """A matrix read twice, one on the left of its product, one within a scan, one entry by entry, one not at all."""
    params = plain({"twice": (4, 4), "left": (4, 4), "scanned": (2, 4, 4), "entries": (4,), "unread": (2,)})

    def apply(p, x):
        hidden = jnp.tanh(x @ p["twice"]) @ p["twice"].T
        hidden = jnp.einsum("oi,ni->no", p["left"], hidden)
        hidden, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), hidden, p["scanned"])
        return (hidden * jnp.exp(p["entries"]))[:, :3]

    return apply, params, _numbers(EXAMPLES, 4)


def inner_jits():
    params = plain({"W": (4, 5), "table": (6, 5), "V": (5, 3)})
    product = jax.jit(lambda x, w: jnp.tanh(x @ w))
    kept = jax.checkpoint(lambda x, w: jnp.sin(x @ w))

    def apply(p, x):
        places = jnp.clip(jnp.round(x[:, 0] * 2).astype(int) + 3, 0, 5)
        return kept(product(x, p["W"]) + p["table"][places], p["V"])

    return apply, params, _numbers(EXAMPLES, 4)


MODELS = {
    "nnx convolutions": (convolutions, 2),
    "linen tokens": (tokens, 3),
    "wide sequence": (wide_sequence, 2),
    "wide tables": (wide_tables, 2),
    "wide convolution": (wide_convolution, 2),
    "odd readings": (odd_readings, 1),
    "inner jits": (inner_jits, 3),
}
"""Model, and how many of its leaves have a single known use."""
