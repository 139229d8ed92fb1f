"""Nearest codeword by angle on the pyramid: integer y with sum |y_i| = k that maximises <x, y> / ||y||.

The optimum also minimises ||alpha |x| - |y||^2 over the pyramid for alpha = ||y||^2 / <x, y>, and for a given alpha
that is a separable allocation, y_i = max(0, floor(alpha |x_i| + mu)) for the right water level mu. So a few values
of alpha are tried and the best angle is kept. Reference: Fischer 1986 for the code; shared derivation in the docs of
`search`.
"""

import jax
import jax.numpy as jnp


def search(x: jax.Array, *, k: int, candidates: int = 8, implementation: str | None = None) -> jax.Array:
    """Codeword of (almost) the smallest angle to each group."""
    n = x.shape[-1]
    a = jnp.abs(x.reshape(-1, n).T.astype(jnp.float32))
    peak = jnp.max(a, 0)
    a = jnp.where(peak > 0, a / jnp.where(peak > 0, peak, 1), 0)
    a = a.at[0].set(jnp.where(peak > 0, a[0], 1))
    unit = k / jnp.sum(a, 0)

    def water_fill(alpha: jax.Array) -> jax.Array:
        t = alpha * a

        def halve(_: int, state: tuple) -> tuple:
            low, high, y = state
            mu = (low + high) / 2
            trial = jnp.maximum(jnp.floor(t + mu), 0)
            fits = jnp.sum(trial, 0) <= k
            return jnp.where(fits, mu, low), jnp.where(fits, high, mu), jnp.where(fits, trial, y)

        low = -jnp.max(t, 0)
        _, _, y = jax.lax.fori_loop(0, 16, halve, (low, jnp.full_like(low, k), jnp.zeros_like(t)))

        def missing(y: jax.Array) -> jax.Array:
            return jnp.any(jnp.sum(y, 0) < k)

        def add(y: jax.Array) -> jax.Array:
            cheapest = jnp.argmin(y - t, 0)
            one = (jnp.arange(n)[:, None] == cheapest) & (jnp.sum(y, 0) < k)
            return y + one

        return jax.lax.while_loop(missing, add, y)

    def better(s: int, state: tuple) -> tuple:
        best, best_cosine = state
        y = water_fill(unit * (0.9 + 0.8 * (s + 0.5) / candidates))
        cosine = jnp.sum(a * y, 0) * jax.lax.rsqrt(jnp.sum(y * y, 0))
        return jnp.where(cosine > best_cosine, y, best), jnp.maximum(cosine, best_cosine)

    y, _ = jax.lax.fori_loop(0, candidates, better, (jnp.zeros_like(a), jnp.full_like(peak, -1)))
    y = y.astype(jnp.int8).T.reshape(x.shape)
    return jnp.where(x < 0, -y, y)
