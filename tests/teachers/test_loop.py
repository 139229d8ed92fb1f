"""The loop of teacher and student: what it plays, and that many seeds at once are single runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from teacher_checks import feedback, updated

from jaxlab.environments import HypercubeConfig, hypercube_world
from jaxlab.errors import InputError
from jaxlab.teachers import (
    ALPGMMConfig,
    RIACConfig,
    alp_gmm_teacher,
    riac_teacher,
    run_teacher_student,
    task_space,
    uniform_teacher,
)

SPACE = task_space([(0, 1), (0, 1)])
WORLD = hypercube_world(HypercubeConfig(cells=4))
ALP = alp_gmm_teacher(ALPGMMConfig(fit_rate=30, components=(2, 3), history=200, specialise_k=False))
RIAC = riac_teacher(RIACConfig(max_region_size=20, alp_window=12, split_attempts=5, max_nodes=16, max_path=8))


def play(teacher, block=None):
    return jax.jit(lambda key: run_teacher_student(key, teacher, WORLD, SPACE, blocks=4, block=block))


@pytest.mark.parametrize(("teacher", "block"), [(ALP, None), (RIAC, 30), (uniform_teacher(), 30)])
def test_returns_are_the_worlds_and_the_teacher_has_seen_them(teacher, block):
    key = jax.random.key(3)
    state, world, log = play(teacher, block)(key)
    assert log.tasks.shape == (4, 30, 2) and log.returns.shape == (4, 30) and log.score.shape == (4,)
    student, returns = WORLD.init(key), []
    for task in np.asarray(log.tasks).reshape(-1, 2):
        student, ret = WORLD.episode(student, key, jnp.asarray(task))
        returns.append(float(ret))
    np.testing.assert_allclose(log.returns.reshape(-1), returns, rtol=1e-6)
    np.testing.assert_array_equal(world.competence, student.competence)
    assert float(log.score[-1]) == float(WORLD.score(student))
    teacher_key = jax.random.split(key, 3)[0]
    alone = updated(teacher, teacher.init(teacher_key, SPACE), log.tasks.reshape(-1, 2), returns)
    assert int(alone.episodes) == int(state.episodes) == 120
    for name in ("alps", "alp", "tasks"):
        if hasattr(alone, name):
            np.testing.assert_allclose(getattr(alone, name), getattr(state, name), atol=1e-5)


@pytest.mark.parametrize(("teacher", "block"), [(ALP, None), (RIAC, 30)])
def test_seeds_side_by_side_are_single_runs_and_a_seed_gives_one_run(teacher, block):
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(
        jax.vmap(lambda key: run_teacher_student(key, teacher, WORLD, SPACE, blocks=4, block=block))
    )(keys)
    single = play(teacher, block)
    for i in range(3):
        alone = single(keys[i])
        np.testing.assert_array_equal(single(keys[i])[2].tasks, alone[2].tasks)
        np.testing.assert_allclose(together[2].tasks[i][:1], alone[2].tasks[:1], atol=1e-6)
        np.testing.assert_allclose(together[2].returns[i][:1], alone[2].returns[:1], atol=1e-6)
    assert not np.allclose(together[2].tasks[0], together[2].tasks[1])


def test_feedback_that_cannot_be_is_refused_and_noted_under_jit():
    state = ALP.init(jax.random.key(0), SPACE)
    with pytest.raises(InputError, match="returns must be finite"):
        ALP.update(state, jnp.array([0.5, 0.5]), jnp.float32(np.nan))
    with pytest.raises(InputError, match="it must lie between"):
        ALP.update(state, jnp.array([0.5, 1.5]), jnp.float32(0))
    with pytest.raises(InputError, match=r"task has shape \(3,\)"):
        ALP.update(state, jnp.zeros(3), jnp.float32(0))
    update = jax.jit(ALP.update)
    assert int(ALP.metrics(update(state, jnp.array([0.5, 0.5]), jnp.float32(np.nan)))["error"]) == 1
    assert int(ALP.metrics(update(state, jnp.array([0.5, 1.5]), jnp.float32(0)))["error"]) == 2
    batch = feedback([[0.5, 0.5], [2, 2]], [0.1, 0.2], [True, False])
    assert int(jax.jit(ALP.update_batch)(state, jax.random.key(0), batch).faults) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks is 0"),
        ({"blocks": 1, "block": 7}, "block is 7; it must be 30"),
    ],
)
def test_blocks_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        run_teacher_student(jax.random.key(0), ALP, WORLD, SPACE, **options)
