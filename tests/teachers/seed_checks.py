"""Many seeds at once are single runs, for any teacher."""

import jax
import jax.numpy as jnp
import numpy as np
from teacher_checks import assert_same_state


def check_seeds(teacher, start, feedbacks, *, tolerance=1e-5, draws=0):
    """`update_batch`, and then so many draws, under `vmap` and one seed after the other.

    A batch size that another test has used saves the compilation of the single program.
    """

    def drawn(state, key):
        return teacher.sample_batch(state, key, draws)

    keys = jax.random.split(jax.random.key(3), len(feedbacks))
    update = jax.jit(jax.vmap(lambda told, key: teacher.update_batch(start, key, told)))
    together = update(jax.tree.map(lambda *x: jnp.stack(x), *feedbacks), keys)
    tasks = jax.jit(jax.vmap(drawn))(together, keys)[0] if draws else None
    single, draw = jax.jit(teacher.update_batch), jax.jit(drawn)
    states = []
    for i, told in enumerate(feedbacks):
        states.append(single(start, keys[i], told))
        assert_same_state(jax.tree.map(lambda x, i=i: x[i], together), states[-1], tolerance)
        if draws:
            np.testing.assert_allclose(tasks[i], draw(states[-1], keys[i])[0], atol=tolerance)
    return states


def random_feedback(feedback, space, n, *, seeds=2, **options):
    """One feedback a seed: uniform tasks, uniform returns, all episodes finished."""
    low, extent = np.asarray(space.low), np.asarray(space.extent)
    told = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        told.append(feedback(low + extent * rng.random((n, len(low))), rng.random(n), **options))
    return told
