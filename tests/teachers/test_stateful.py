"""The stateful teacher: the pure functions in turn, compiled once, and files that resume exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from teacher_checks import assert_same_state, feedback

from jaxlab.errors import InputError, ResourceError
from jaxlab.teachers import (
    ADRConfig,
    ALPGMMConfig,
    PLRConfig,
    RIACConfig,
    StatefulTeacher,
    StepFeedback,
    adr_teacher,
    alp_gmm_teacher,
    plr_teacher,
    returns_feedback,
    riac_teacher,
    task_space,
    uniform_teacher,
)
from jaxlab.teachers.protocol import NO_STUDENT_VALUES, SCORE_NOT_FINITE, VALUE_NOT_FINITE

SPACE = task_space({"height": (0, 3), "spacing": (0, 6)})
ALP = alp_gmm_teacher(ALPGMMConfig(fit_rate=20, components=(1, 2), history=60, specialise_k=False))
GAUGES = ("update", "update_batch", "sample", "density", "metrics")


def counted(teacher, traces):
    """The teacher whose functions note each time that Python runs through them."""

    def noting(name):
        def function(*arguments):
            traces[name] = traces.get(name, 0) + 1
            return getattr(teacher, name)(*arguments)

        return function

    return teacher._replace(**{name: noting(name) for name in GAUGES})


def practise(stateful, episodes, seed=0):
    """Tasks that were sampled and the returns that were told."""
    rng = np.random.default_rng(seed)
    tasks, returns = [], rng.random(episodes)
    for ret in returns:
        tasks.append(stateful.sample())
        stateful.update(tasks[-1], ret)
    return np.stack(tasks), returns


@pytest.fixture(scope="module")
def practised():
    """An ALP-GMM teacher after 45 episodes, and what it saw."""
    stateful = StatefulTeacher(ALP, SPACE, 3)
    return stateful, *practise(stateful, 45)


def test_it_is_the_pure_functions_in_turn(practised):
    stateful, tasks, returns = practised
    init_key, key = jax.random.split(jax.random.key(3))
    state = ALP.init(init_key, SPACE)
    sample, update = jax.jit(ALP.sample), jax.jit(ALP.update)
    for task, ret in zip(tasks, returns, strict=True):
        key, own = jax.random.split(key)
        drawn, state = sample(state, own)
        np.testing.assert_allclose(drawn, task, atol=1e-5)
        state = update(state, task, np.float32(ret))
        key, _ = jax.random.split(key)
    assert_same_state(stateful.state.teacher, state, 1e-4)
    assert stateful.metrics()["episodes"] == 45 and stateful.metrics()["error"] == 0
    points = np.array([[0.1, 0.2], [2.9, 5.5]])
    np.testing.assert_allclose(
        stateful.density(points), ALP.density(state, np.float32(points)), rtol=1e-3, atol=1e-3
    )


def test_tasks_are_numpy_arrays_of_the_space_that_may_be_changed(practised):
    task = practised[0].sample()
    assert type(task) is np.ndarray and task.shape == (2,) and task.dtype == np.float32
    task += 1
    assert np.all((practised[1] >= 0) & (practised[1] <= [3, 6]))


@pytest.mark.parametrize(
    "teacher",
    [
        ALP,
        riac_teacher(
            RIACConfig(max_region_size=20, alp_window=12, split_attempts=5, max_nodes=16, max_path=8)
        ),
        adr_teacher(ADRConfig()),
        plr_teacher(PLRConfig(capacity=8)),
        uniform_teacher(),
    ],
    ids=["alp_gmm", "riac", "adr", "plr", "random"],
)
def test_every_function_is_traced_once_whatever_the_types_of_the_arguments(teacher):
    traces = {}
    stateful = StatefulTeacher(counted(teacher, traces), SPACE, 0)
    for ret in (0.5, np.float64(0.25), np.float32(1), 1, jnp.float32(0.75)):
        task = stateful.sample()
        stateful.update(task.astype(float), ret)
        stateful.update(task.tolist(), ret, success=True, length=3, score=0.5)
        stateful.density(np.zeros((4, 2)))
        stateful.metrics()
    # Where one of the teacher's functions calls another, the counted one is not called: once is once.
    assert traces == dict.fromkeys(GAUGES, 1)


def test_a_batch_is_the_finished_episodes_in_turn():
    rng = np.random.default_rng(1)
    tasks, returns = rng.random((30, 2)) * [3, 6], rng.random(30)
    mask = rng.random(30) < 0.6
    batched, alone = StatefulTeacher(ALP, SPACE, 0), StatefulTeacher(ALP, SPACE, 0)
    batched.update_batch(feedback(tasks, np.where(mask, returns, np.nan), mask))
    for task, ret in zip(tasks[mask], returns[mask], strict=True):
        alone.update(task, ret)
    assert_same_state(batched.state.teacher, alone.state.teacher)
    assert mask.sum() >= 10 and batched.metrics()["episodes"] == mask.sum()


def test_success_length_and_score_reach_the_teacher():
    def remembering(state, key, told):
        return state._replace(episodes=(told.success * 100 + told.length * 10 + told.score).sum())

    base = uniform_teacher()
    stateful = StatefulTeacher(base._replace(update_batch=remembering), SPACE, 0)
    for options, expected in (
        ({"success": True, "length": 7, "score": 3}, 173),
        ({"success": False}, 10),
    ):
        stateful.update([1, 1], 0.5, **options)
        assert stateful.state.teacher.episodes == expected
    with pytest.raises(InputError, match="success is None; it must be True or False where length is given"):
        stateful.update([1, 1], 0.5, length=3)
    with pytest.raises(InputError, match="where score is given"):
        stateful.update([1, 1], 0.5, score=0.0)


@pytest.mark.parametrize(
    ("task", "ret", "message"),
    [
        ([1, 1], np.nan, r"ret is \[?nan\]?; returns must be finite"),
        ([1, 7], 0.5, r"task is \[+1.0, 7.0\]+; it must lie between \[0.0, 0.0\] and \[3.0, 6.0\]"),
        ([1, 1, 1], 0.5, r"task has shape \(3,\)"),
    ],
)
def test_feedback_that_cannot_be_is_refused_and_changes_nothing(practised, task, ret, message):
    stateful = practised[0]
    before = stateful.state
    with pytest.raises(InputError, match=message):
        stateful.update(task, ret)
    with pytest.raises(InputError, match=message):
        stateful.update(task, ret, success=False)
    assert stateful.state is before
    stateful.update([1, 1], 0.5)
    assert stateful.metrics()["error"] == 0


def test_each_fault_that_a_teacher_finds_has_its_message():
    def finding(state, key, told):
        bits = jnp.where(jnp.isnan(told.score), SCORE_NOT_FINITE, 0)[0]
        bits |= jnp.where(told.length == 2, NO_STUDENT_VALUES, 0)[0]
        return state._replace(faults=bits | jnp.where(told.length == 3, 1 << 20, 0)[0])

    stateful = StatefulTeacher(uniform_teacher()._replace(update_batch=finding), SPACE, 0)
    for options, message in (
        ({"score": np.nan}, r"score is \[nan\]; scores must be finite"),
        ({"length": 2}, "learns from values of the student: tell them by on_step beforehand"),
        ({"length": 3}, "bits 1048576"),
    ):
        before = stateful.state
        with pytest.raises(InputError, match=message):
            stateful.update([1, 1], 0.5, success=True, **options)
        assert stateful.state is before
    stateful.update([1, 1], 0.5, success=True)


def test_steps_reach_the_teacher():
    def noting(state, key, step):
        bad = jnp.any(step.start & jnp.isnan(step.value))
        total = jnp.sum(step.start * (step.value + step.context[:, 1])).astype(jnp.int32)
        return state._replace(episodes=total, faults=jnp.where(bad, VALUE_NOT_FINITE, 0))

    stateful = StatefulTeacher(uniform_teacher()._replace(on_step=noting), SPACE, 0)
    stateful.on_step(StepFeedback([[1, 2], [3, 4], [5, 6]], [10, 20, 40.0], [True, False, True]))
    assert stateful.state.teacher.episodes == 58
    with pytest.raises(InputError, match=r"value is \[nan\]; values must be finite"):
        stateful.on_step(StepFeedback([[1, 2]], [np.nan], [True]))
    assert stateful.state.teacher.episodes == 58


def test_unfinished_rows_may_hold_anything(practised):
    stateful = practised[0]
    episodes = stateful.metrics()["episodes"]
    stateful.update_batch(returns_feedback(np.full((1, 2), np.nan), np.full(1, np.nan), np.zeros(1, bool)))
    assert stateful.metrics()["episodes"] == episodes


def test_a_file_resumes_to_the_bit(practised, tmp_path):
    stateful = practised[0]
    stateful.save(tmp_path / "folder" / "teacher")
    again = StatefulTeacher(ALP, SPACE, 99)
    again.load(tmp_path / "folder" / "teacher")
    assert_same_state(again.state, stateful.state, 0)
    first, second = practise(stateful, 25, seed=5)[0], practise(again, 25, seed=5)[0]
    assert np.array_equal(first, second)
    assert_same_state(again.state, stateful.state, 0)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["teacher"]


def test_a_state_that_was_kept_can_be_set_again(practised):
    stateful = practised[0]
    kept = stateful.state
    first = practise(stateful, 3)[0]
    stateful.state = kept
    assert np.array_equal(practise(stateful, 3)[0], first)
    with pytest.raises(
        InputError, match="state is one of UniformState with other fields; it must be one of ALP"
    ):
        stateful.state = StatefulTeacher(uniform_teacher(), SPACE, 0).state
    other = StatefulTeacher(ALP, task_space([(0, 1)]), 0).state
    with pytest.raises(InputError, match=r"state.teacher.space.low is float32\[1\]; it must be float32\[2\]"):
        stateful.state = other


def test_damaged_cut_and_foreign_files_are_refused_and_change_nothing(practised, tmp_path):
    stateful, path = practised[0], tmp_path / "teacher"
    stateful.save(path)
    whole, before = path.read_bytes(), stateful.state
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"damaged"):
            stateful.load(path)
    for length in (*range(0, 60, 7), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"was not written by|is damaged or cut off"):
            stateful.load(path)
    np.savez(tmp_path / "foreign.npz", tasks=np.zeros(3))
    with pytest.raises(InputError, match=r"foreign.npz was not written by StatefulTeacher.save"):
        stateful.load(tmp_path / "foreign.npz")
    with pytest.raises(InputError, match="it must be a file of StatefulTeacher.save"):
        stateful.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="it must be a file of StatefulTeacher.save"):
        stateful.load(tmp_path)
    assert stateful.state is before


def test_files_of_other_teachers_and_spaces_are_refused(practised, tmp_path):
    stateful, path = practised[0], tmp_path / "teacher"
    StatefulTeacher(uniform_teacher(), SPACE, 0).save(path)
    with pytest.raises(InputError, match="holds a state of UniformState; it must hold one of this teacher"):
        stateful.load(path)
    StatefulTeacher(ALP, task_space({"height": (0, 5), "spacing": (0, 6)}), 0).save(path)
    with pytest.raises(InputError, match=r"space.high is \[5.0, 6.0\]; it must be \[3.0, 6.0\]"):
        stateful.load(path)
    longer = ALPGMMConfig(fit_rate=20, components=(1, 2), history=80, specialise_k=False)
    StatefulTeacher(alp_gmm_teacher(longer), SPACE, 0).save(path)
    with pytest.raises(InputError, match=r"tasks is float32\[100, 2\]; it must be float32\[80, 2\]"):
        stateful.load(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(practised, tmp_path, monkeypatch):
    stateful, path = practised[0], tmp_path / "teacher"
    stateful.save(path)
    whole = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ResourceError, match="disk full"):
        stateful.save(path)
    assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == 1


def test_a_teacher_that_cannot_work_on_the_space_says_so():
    with pytest.raises(InputError, match="fit_rate is 20; it must be above"):
        StatefulTeacher(ALP, task_space([(0, 1)] * 20), 0)
