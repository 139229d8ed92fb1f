"""What every teacher is held to, whatever it does."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.teachers import returns_feedback


def feedback(tasks, returns, mask=None, *, success_return=None):
    mask = np.ones(len(returns), bool) if mask is None else mask
    return returns_feedback(
        jnp.asarray(tasks, jnp.float32),
        jnp.asarray(returns, jnp.float32),
        jnp.asarray(mask),
        success_return=success_return,
    )


def updated(teacher, state, tasks, returns):
    """The state after `update` with one episode after the other, in one program."""

    def one(state, episode):
        return teacher.update(state, *episode), None

    episodes = (jnp.asarray(tasks, jnp.float32), jnp.asarray(returns, jnp.float32))
    return jax.jit(lambda state: jax.lax.scan(one, state, episodes)[0])(state)


def assert_same_state(a, b, tolerance=1e-5):
    """Keys and counts are equal, the rest up to rounding."""
    flat_a, flat_b = jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b)
    for (path, x), (_, y) in zip(flat_a, flat_b, strict=True):
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


def check_batches(teacher, space, seed=0, sizes=(7, 1, 40, 75), tolerance=1e-5, success_return=None):
    """`update_batch` with unfinished episodes in between is `update` with the finished ones in turn."""
    rng = np.random.default_rng(seed)
    low, high = np.asarray(space.low), np.asarray(space.high)
    state = teacher.init(jax.random.key(1), space)
    batched, every_task, every_return = state, [], []
    for size in sizes:
        tasks = low + (high - low) * rng.random((size, len(low)))
        returns, mask = rng.random(size), rng.random(size) < 0.7
        # What stands in unfinished rows is not looked at.
        shown = np.where(mask, returns, np.nan)
        told = feedback(tasks, shown, mask, success_return=success_return)
        batched = jax.jit(teacher.update_batch)(batched, jax.random.key(9), told)
        every_task.append(tasks[mask])
        every_return.append(returns[mask])
    one_by_one = updated(teacher, state, np.concatenate(every_task), np.concatenate(every_return))
    assert_same_state(batched, one_by_one, tolerance)
    assert int(batched.faults) == 0
    return one_by_one


def check_samples(teacher, state, space, n=200):
    """Tasks lie in the box, the same key gives the same task, and a batch is one task after the other."""
    key = jax.random.key(5)
    tasks, _ = jax.jit(teacher.sample_batch, static_argnums=2)(state, key, n)
    again, _ = jax.jit(teacher.sample_batch, static_argnums=2)(state, key, n)
    assert np.array_equal(tasks, again) and tasks.shape == (n, space.dimensions)
    assert np.all((tasks >= space.low) & (tasks <= space.high))
    one = jax.jit(teacher.sample)
    for i, k in enumerate(jax.random.split(key, n)[:3]):
        task, state = one(state, k)
        np.testing.assert_allclose(task, tasks[i], atol=1e-6)
    return np.asarray(tasks)
