"""brax environments with a shared teacher, against a plain loop; brax's own auto-reset replays the first state."""

import copy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diary_teacher import DIARY, SPACE, play_by_hand, steps_of

from jaxlab.errors import InputError, ResourceError
from jaxlab.teachers import brax_with_teacher, changed_system, task_space, uniform_teacher
from jaxlab.teachers.brax_tasks import _classes

ENVIRONMENTS = 5
SUCCESS = 30.0
LONGEST = 3


def test_without_brax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("jaxlab.teachers.brax_tasks._classes", _classes.__wrapped__)
    monkeypatch.setitem(sys.modules, "brax.envs.base", None)
    with pytest.raises(ResourceError, match=r"needs brax: pip install 'jaxlab\[environments\]'"):
        brax_with_teacher(None, DIARY, SPACE, with_task=with_task, environments=1)


@pytest.mark.parametrize("name", ["environments", "episode_length", "action_repeat"])
def test_numbers_out_of_range_are_refused(name):
    options = {"environments": 2, name: 0}
    with pytest.raises(InputError, match=f"{name} is 0; it must be >= 1"):
        brax_with_teacher(None, DIARY, SPACE, with_task=with_task, **options)


@pytest.fixture(scope="module")
def brax_base():
    return pytest.importorskip("brax.envs.base")


@pytest.fixture(scope="module")
def ramp(brax_base):
    """Pays (number + 1) times the action; an episode of a number takes `steps_of` it."""

    class Ramp(brax_base.Env):
        number = jnp.float32(0)

        def reset(self, rng):
            zero = jnp.float32(0)
            start = {"at": jax.random.uniform(rng), "age": zero}
            return brax_base.State(
                start, jnp.stack([self.number, zero]), zero, zero, {}, {"start": start["at"]}
            )

        def step(self, state, action):
            age = state.pipeline_state["age"] + 1
            done = (age >= steps_of(self.number)).astype(jnp.float32)
            return state.replace(
                pipeline_state={**state.pipeline_state, "age": age},
                obs=jnp.stack([self.number, age]),
                reward=(self.number + 1) * action[0],
                done=done,
            )

        observation_size, action_size, backend = 2, 1, "none"

    return Ramp


def with_task(env, task):
    changed = copy.copy(env)
    changed.number = task[0]
    return changed


def log_of(env, key, actions):
    """The states before each step and after it, of one compiled loop."""

    @jax.jit
    def run(key, actions):
        def one(state, action):
            after = env.step(state, action)
            return after, (state, after)

        return jax.lax.scan(one, env.reset(key), actions)

    return run(key, jnp.asarray(actions, jnp.float32))


def test_episodes_tasks_and_feedback_are_those_of_a_plain_loop(ramp):
    actions = np.random.default_rng(0).integers(0, 3, (60, ENVIRONMENTS))
    tasks, done, diary, drawn = play_by_hand(actions, SUCCESS, LONGEST)
    env = brax_with_teacher(
        ramp(),
        DIARY,
        SPACE,
        with_task=with_task,
        environments=ENVIRONMENTS,
        episode_length=LONGEST,
        success_return=SUCCESS,
    )
    last, (before, after) = log_of(env, jax.random.key(0), actions[..., None])
    np.testing.assert_array_equal(before.info["task"][..., 0], tasks)
    np.testing.assert_array_equal(before.obs[..., 0], tasks)
    np.testing.assert_array_equal(after.done, done)
    np.testing.assert_array_equal(after.reward, (tasks + 1) * actions)
    np.testing.assert_array_equal(before.obs[1:, :, 1] == 0, done[:-1])
    # Ends by the number of steps are truncations, as brax's losses want to know.
    np.testing.assert_array_equal(after.info["truncation"] > 0, done & (steps_of(tasks) > LONGEST))
    np.testing.assert_array_equal(
        after.info["episode_metrics"]["length"][done], np.minimum(steps_of(tasks), 3)[done]
    )
    teacher = last.info["teacher"]
    assert len(diary) > 100 and int(teacher.episodes) == len(diary) and int(teacher.drawn) == drawn
    np.testing.assert_array_equal(teacher.told[: len(diary)], diary)
    assert 0 < diary[:, 2].mean() < 1 and int(teacher.faults) == 0
    # The environment's own infos are those of the new episode too.
    np.testing.assert_array_equal(before.info["start"], before.pipeline_state["at"])
    changed = np.asarray(before.info["start"])[1:] != np.asarray(before.info["start"])[:-1]
    np.testing.assert_array_equal(changed, done[:-1])
    assert (env.observation_size, env.action_size) == (2, 1)


def test_brax_replays_the_first_task_where_this_plays_a_new_one(ramp):
    training = pytest.importorskip("brax.envs.wrappers.training")
    space = task_space([(0, 100)])

    class Randomised(ramp):
        """As one would randomise tasks with brax alone: drawn in `reset`, shown by the observation."""

        def reset(self, rng):
            drawn = jax.random.uniform(rng, maxval=100)
            return with_task(ramp(), drawn[None]).reset(rng)

        def step(self, state, action):
            return with_task(ramp(), state.obs[:1]).step(state, action)

    actions = np.ones((12, 3, 1))
    theirs = training.wrap(Randomised(), episode_length=2)
    keys = jax.random.split(jax.random.PRNGKey(0), 3)  # brax asks for keys of the old kind
    _, (before, _) = log_of(theirs, keys, actions)
    assert all(len(np.unique(before.obs[:, i, 0])) == 1 for i in range(3))
    ours = brax_with_teacher(
        ramp(), uniform_teacher(), space, with_task=with_task, environments=3, episode_length=2
    )
    _, (before, after) = log_of(ours, jax.random.key(0), actions)
    for i in range(3):
        episodes = 1 + int(np.sum(after.done[:-1, i]))
        assert len(np.unique(before.obs[:, i, 0])) == episodes >= 6


_FALLING = """<mujoco><option timestep="0.01" gravity="0 0 -10"/><worldbody><body pos="0 0 1">
<joint type="slide" axis="0 0 1"/><geom type="sphere" size="0.1" mass="1" contype="0" conaffinity="0"/>
</body></worldbody></mujoco>"""


@pytest.mark.slow
def test_bodies_fall_by_the_gravity_of_their_tasks(brax_base):
    """A sphere on a vertical rail: after s steps from rest its speed is s times gravity times the time of a step."""
    mjcf = pytest.importorskip("brax.io.mjcf")

    class Sphere(brax_base.PipelineEnv):
        def __init__(self):
            super().__init__(mjcf.loads(_FALLING), backend="generalized")

        def reset(self, rng):
            zero = jnp.zeros(())
            start = self.pipeline_init(jnp.zeros(1), jnp.zeros(1))
            return brax_base.State(start, start.qd, zero, zero)

        def step(self, state, action):
            after = self.pipeline_step(state.pipeline_state, jnp.zeros(0))
            return state.replace(pipeline_state=after, obs=after.qd)

    space = task_space({"gravity": (0.1, 3)})
    heavier = changed_system(lambda system, task: system.replace(gravity=task[0] * system.gravity))
    sphere = Sphere()
    env = brax_with_teacher(
        sphere, uniform_teacher(), space, with_task=heavier, environments=3, episode_length=4
    )
    _, (before, after) = log_of(env, jax.random.key(1), np.zeros((12, 3, 1)))
    tasks = np.asarray(before.info["task"])[..., 0]
    assert len(np.unique(tasks)) == 9
    steps = np.arange(12)[:, None] % 4
    np.testing.assert_allclose(before.obs[..., 0], -10 * 0.01 * steps * tasks, rtol=1e-4)
    np.testing.assert_array_equal(after.done[:, 0], np.arange(12) % 4 == 3)
    assert float(sphere.sys.gravity[2]) == -10
    training = pytest.importorskip("brax.envs.wrappers.training")
    with pytest.raises(InputError, match="env is a wrapper, VmapWrapper"):
        heavier(training.VmapWrapper(sphere), np.ones(1))
