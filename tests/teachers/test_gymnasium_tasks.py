"""Every reset of a gymnasium environment plays a new task of the teacher, in vectors with autoreset too."""

import sys

import numpy as np
import pytest

from jaxlab.errors import ResourceError
from jaxlab.teachers import StatefulTeacher, gymnasium_with_teacher, task_space, uniform_teacher
from jaxlab.teachers.gymnasium_tasks import _wrapper

SPACE = task_space({"length": (1, 5), "pay": (0, 2)})


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("jaxlab.teachers.gymnasium_tasks._wrapper", _wrapper.__wrapped__)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ResourceError, match=r"needs gymnasium: pip install 'jaxlab\[environments\]'"):
        gymnasium_with_teacher(None, None)


class Recorder(StatefulTeacher):
    """A teacher that notes what it hands out and what it is told."""

    def __init__(self, seed=0):
        super().__init__(uniform_teacher(), SPACE, seed)
        self.given, self.told = [], []

    def sample(self):
        self.given.append(super().sample())
        return self.given[-1]

    def update(self, task, ret, **options):
        self.told.append((np.array(task), ret, options))
        super().update(task, ret, **options)


@pytest.fixture(scope="module")
def corridor():
    """An environment whose task says how many steps an episode has and what each pays."""
    gymnasium = pytest.importorskip("gymnasium")

    class Corridor(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)
        task = None

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            if options and "task" in options:
                self.task = options["task"]
            self.options, self.steps = options, 0
            return np.asarray(self.task, np.float32), {"steps": 0}

        def step(self, action):
            self.steps += 1
            done = self.steps >= int(self.task[0])
            truncated = done and self.task[1] > 1
            pay = float(self.task[1]) * action
            return (
                np.asarray(self.task, np.float32),
                pay,
                done and not truncated,
                truncated,
                {"steps": self.steps},
            )

    return Corridor


def by_attribute(env, task):
    env.task = task


@pytest.mark.parametrize("set_task", [None, by_attribute], ids=["options", "function"])
def test_each_episode_plays_a_new_task_and_its_return_is_told(corridor, set_task):
    teacher = Recorder()
    env = gymnasium_with_teacher(corridor(), teacher, set_task=set_task)
    rng = np.random.default_rng(0)
    for episode in range(12):
        observation, info = env.reset(seed=episode)
        task = teacher.given[-1]
        assert len(teacher.given) == episode + 1 and len(teacher.told) == episode
        assert np.array_equal(observation, task) and np.array_equal(info["task"], task)
        assert (set_task is None) == (env.unwrapped.options is not None)
        paid, over = 0.0, False
        while not over:
            action = rng.integers(2)
            observation, reward, terminated, truncated, info = env.step(action)
            paid, over = paid + reward, terminated or truncated
            assert np.array_equal(observation, task) and np.array_equal(info["task"], task)
        told_task, ret, options = teacher.told[-1]
        assert np.array_equal(told_task, task) and ret == pytest.approx(paid) and options == {}
        assert info["steps"] == int(task[0])
    assert len(np.unique(np.stack(teacher.given), axis=0)) == 12
    assert {bool(task[1] > 1) for task in teacher.given} == {True, False}  # terminated and truncated ones


def test_steps_after_the_end_and_dropped_episodes_are_not_told(corridor):
    teacher = Recorder()
    env = gymnasium_with_teacher(corridor(), teacher)
    env.reset(options={"task": [3, 0.5]})
    assert teacher.given == []
    env.step(1)
    env.reset(options={"task": [2, 0.5]})
    for _ in range(4):
        env.step(1)
    ((task, ret, _),) = teacher.told
    assert np.array_equal(task, [2, 0.5]) and ret == 1.0


def test_success_is_the_users_and_comes_with_the_length(corridor):
    teacher = Recorder()
    env = gymnasium_with_teacher(
        corridor(), teacher, success=lambda info, ret: info["steps"] == 3 and ret > 1
    )
    for task, expected in (([3, 0.5], True), ([2, 0.9], False), ([3, 0.25], False)):
        env.reset(options={"task": task})
        for _ in range(task[0]):
            env.step(1)
        assert teacher.told[-1][2] == {"success": expected, "length": task[0]}


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_vectors_share_a_teacher_in_every_mode_of_autoreset(corridor, mode):
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    teacher = Recorder()
    vector = SyncVectorEnv(
        [lambda: gymnasium_with_teacher(corridor(), teacher) for _ in range(3)],
        autoreset_mode=AutoresetMode(mode),
    )
    observations, _ = vector.reset(seed=0)
    assert np.array_equal(observations, teacher.given)
    playing = list(teacher.given)
    expected = []
    for _ in range(40):
        before = len(teacher.told)
        observations, _, terminated, truncated, _ = vector.step(np.ones(3, int))
        over = np.flatnonzero(terminated | truncated)
        expected += [playing[i] for i in over]
        # In the order of the environments.
        assert all(
            np.array_equal(task, playing[i])
            for (task, _, _), i in zip(teacher.told[before:], over, strict=True)
        )
        if mode == "Disabled" and len(over):
            observations, _ = vector.reset(options={"reset_mask": terminated | truncated})
        playing = list(observations.copy())
    assert len(expected) > 20
    assert np.array_equal(expected, [task for task, _, _ in teacher.told])
    # Two tasks are never the same, so that each reset drew one.
    assert len(np.unique(np.stack(teacher.given), axis=0)) == len(teacher.given) >= len(expected)
    for task, ret, _ in teacher.told:
        assert ret == pytest.approx(int(task[0]) * float(task[1]), rel=1e-5)
