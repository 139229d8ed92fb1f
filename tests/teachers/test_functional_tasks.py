"""Functional environments with a shared teacher, against a plain loop; and what they have in common with brax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diary_teacher import DIARY, SPACE, play_by_hand, steps_of

from jaxlab.errors import InputError
from jaxlab.teachers import (
    ALPGMMConfig,
    FunctionalEnv,
    SFLConfig,
    alp_gmm_teacher,
    first_tasks,
    functional_with_teacher,
    next_tasks,
    returns_feedback,
    sfl_teacher,
    task_space,
)

ENVIRONMENTS = 5
SUCCESS = 30.0


def reset(key, params):
    return jnp.stack([params["number"], 0.0]), {"steps": jnp.int32(0), "noise": jax.random.uniform(key)}


def step(key, state, action, params):
    steps = state["steps"] + 1
    observation = jnp.stack([params["number"], steps.astype(jnp.float32)])
    done = steps >= steps_of(params["number"])
    return observation, {**state, "steps": steps}, (params["number"] + 1) * action, done, {"steps": steps}


ENV = FunctionalEnv(reset, step)


def params_of(task):
    return {"number": task[0]}


def played(teacher, space, actions, key=0, params_of=params_of):
    envs = functional_with_teacher(
        ENV, teacher, params_of=params_of, environments=ENVIRONMENTS, success_return=SUCCESS
    )

    def run(key, actions):
        key, first_key = jax.random.split(key)
        observation, state = envs.reset(first_key, space)

        def one(carry, item):
            observation, state = carry
            key, action = item
            before = state
            after, state, reward, done, info = envs.step(key, state, action)
            return (after, state), (before.tasks.task, observation, reward, done, info, before.env)

        carry, log = jax.lax.scan(one, (observation, state), (jax.random.split(key, len(actions)), actions))
        return carry[1], log

    return jax.jit(run)(jax.random.key(key), jnp.asarray(actions, jnp.float32))


def test_episodes_tasks_and_feedback_are_those_of_a_plain_loop():
    actions = np.random.default_rng(0).integers(0, 3, (60, ENVIRONMENTS))
    tasks, done, diary, drawn = play_by_hand(actions, SUCCESS)
    state, (own_tasks, observation, reward, own_done, info, env) = played(DIARY, SPACE, actions)
    np.testing.assert_array_equal(own_tasks[..., 0], tasks)
    np.testing.assert_array_equal(own_done, done)
    np.testing.assert_array_equal(reward, (tasks + 1) * actions)
    # The observation before each step is of the task being played, the first of the episode after each end.
    np.testing.assert_array_equal(observation[..., 0], tasks)
    np.testing.assert_array_equal(observation[1:, :, 1] == 0, done[:-1])
    teacher = state.tasks.teacher
    assert len(diary) > 100 and int(teacher.episodes) == len(diary) and int(teacher.drawn) == drawn
    np.testing.assert_array_equal(teacher.told[: len(diary)], diary)
    assert 0 < diary[:, 2].mean() < 1
    # Each reset draws anew; the others keep their state.
    changed = np.asarray(env["noise"])[1:] != np.asarray(env["noise"])[:-1]
    np.testing.assert_array_equal(changed, done[:-1])
    np.testing.assert_array_equal(info["steps"][done], steps_of(tasks[done]))


def test_a_periodic_teacher_fits_while_environments_go_on():
    alp = alp_gmm_teacher(ALPGMMConfig(fit_rate=20, components=(1, 2), history=60, specialise_k=False))
    space = task_space([(0, 40)])
    actions = np.ones((30, ENVIRONMENTS))
    state, (tasks, *_, done, _, _) = played(
        alp, space, actions, params_of=lambda task: {"number": jnp.floor(task[0])}
    )
    teacher = state.tasks.teacher
    assert int(teacher.episodes) == np.sum(done) > 40 and int(teacher.mixture.components) > 0
    assert int(teacher.faults) == 0
    np.testing.assert_array_equal(
        np.asarray(teacher.tasks)[: np.sum(done)], np.asarray(tasks)[np.asarray(done)]
    )


def test_tasks_outside_the_mask_stay_and_are_not_drawn():
    sfl = sfl_teacher(SFLConfig(candidates=40, rollouts=2, keep=3))
    space = task_space([(0, 1), (0, 1)])
    tasks = jax.jit(lambda key: first_tasks(sfl, key, space, environments=6))(jax.random.key(0))
    assert int(tasks.teacher.drawn) == 6
    mask = np.array([True, False, False, True, True, False])
    told = returns_feedback(tasks.task, jnp.where(mask, 1.0, jnp.nan), jnp.asarray(mask))
    after = jax.jit(lambda tasks, key: next_tasks(sfl, tasks, key, told))(tasks, jax.random.key(1))
    assert int(after.teacher.drawn) == 9 and int(after.teacher.episodes) == 3
    np.testing.assert_array_equal(after.task[~mask], tasks.task[~mask])
    np.testing.assert_array_equal(after.task[mask], tasks.teacher.candidates[6:9])


def test_seeds_side_by_side_are_single_runs():
    envs = functional_with_teacher(ENV, DIARY, params_of=params_of, environments=3)

    def run(key):
        _, state = envs.reset(key, SPACE)
        keys = jax.random.split(key, 8)
        actions = jax.random.randint(key, (8, 3), 0, 3).astype(jnp.float32)

        def one(state, item):
            return envs.step(item[0], state, item[1])[1], None

        return jax.lax.scan(one, state, (keys, actions))[0]

    keys = jax.random.split(jax.random.key(4), 3)
    together, single = jax.jit(jax.vmap(run))(keys), jax.jit(run)
    for i in range(3):
        alone = single(keys[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone)
    assert len(set(np.asarray(together.ret).sum(1).tolist())) > 1


def test_no_environment_is_refused():
    envs = functional_with_teacher(ENV, DIARY, params_of=params_of, environments=0)
    with pytest.raises(InputError, match="environments is 0; it must be >= 1"):
        envs.reset(jax.random.key(0), SPACE)
