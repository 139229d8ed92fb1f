"""SPDL and its successor against a transcription of whole updates, scripted steps, and the hypercube."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from teacher_checks import assert_same_state, check_batches, check_samples, feedback, updated
from test_gaussian_trust_region import plain, plain_kl

from jaxlab.environments import HypercubeConfig, hypercube_world
from jaxlab.errors import InputError
from jaxlab.teachers import (
    SelfPacedConfig,
    SPDLV2Config,
    StepFeedback,
    TaskGaussian,
    run_teacher_student,
    self_paced_teacher,
    spdl_v2_teacher,
    task_space,
)

SPACE = task_space([(0, 1), (0, 2)])
EASY, GOAL = TaskGaussian((0.2, 0.4), (0.1, 0.2)), TaskGaussian((0.6, 1.2), (0.2, 0.3))
RETURNS = {
    "update_every": 30,
    "update_from": 60,
    "values": "returns",
    "buffer": 50,
    "initial": EASY,
    "target": GOAL,
}
STEPPED = {"update_every": 20, "update_from": 40, "buffer": 8, "initial": EASY, "target": GOAL}


def flat(gaussian):
    return np.array([*gaussian.mean, *np.log(gaussian.std), 0.0])


def plain_update(old, target, tasks, values, alpha, max_kl):
    """One update of SPDL in double precision: analytic-free gradient, dense solve, halvings with "or"."""
    densities = multivariate_normal(*plain(old)).logpdf(tasks)

    def objective(w):
        ratio = np.exp(multivariate_normal(*plain(w)).logpdf(tasks) - densities)
        return np.mean(ratio * values) - alpha * plain_kl(w, target)

    eye = 1e-5 * np.eye(5)
    gradient = np.array([(objective(old + e) - objective(old - e)) / 2e-5 for e in eye])
    # The Fisher information of a Gaussian, from its two parts: mean, and Cholesky factor.
    mean, covariance = plain(old)
    precision = np.linalg.inv(covariance)

    def slope_of_covariance(i):
        return (plain(old + eye[i])[1] - plain(old - eye[i])[1]) / 2e-5

    fisher = np.zeros((5, 5))
    fisher[:2, :2] = precision
    for i in range(2, 5):
        for j in range(2, 5):
            product = precision @ slope_of_covariance(i) @ precision @ slope_of_covariance(j)
            fisher[i, j] = 0.5 * np.trace(product)
    damped = fisher + 0.01 * np.eye(5)
    step = np.linalg.solve(damped, gradient)
    step /= np.sqrt(0.5 * step @ damped @ step / max_kl)
    for length in 0.5 ** np.arange(10):
        new = old + length * step
        if plain_kl(old, new) <= 1.5 * max_kl or objective(new) >= objective(old):
            return new
    return old


def test_updates_are_the_transcriptions_with_alpha_from_performance():
    """Three updates on returns: at steps 60, 90 and 120, of the last 50, 30 and 30 episodes."""
    rng = np.random.default_rng(0)
    tasks = np.clip(rng.normal(EASY.mean, EASY.std, size=(120, 2)), 0, [1, 2]).astype(np.float32)
    returns = (0.5 + 0.5 * tasks[:, 0] - 0.3 * tasks[:, 1]).astype(np.float32)
    teacher = self_paced_teacher(SelfPacedConfig(**RETURNS, zeta=0.2, alpha_offset=1))
    state = teacher.init(jax.random.key(0), SPACE)
    old, target = flat(EASY), flat(GOAL)
    np.testing.assert_allclose(state.weights, old, rtol=1e-6)
    at_59 = updated(teacher, state, tasks[:59], returns[:59])
    np.testing.assert_array_equal(at_59.weights, state.weights)
    alphas = []
    for update, (start, end) in enumerate(((0, 60), (60, 90), (90, 120))):
        state = updated(teacher, state, tasks[start:end], returns[start:end])
        rows = slice(max(start, end - 50), end)
        value = returns[rows].mean()
        alpha = 0 if update < 1 else 0.2 * value / plain_kl(old, target)
        old = plain_update(old, target, tasks[rows].astype(float), returns[rows], alpha, 0.8)
        assert float(state.alpha) == pytest.approx(alpha, rel=2e-3)
        np.testing.assert_allclose(state.weights, old, rtol=5e-3, atol=5e-3)
        assert int(state.updates) == update + 1 and bool(state.accepted) and int(state.recorded) == 0
        alphas.append(alpha)
    assert alphas[0] == 0 < alphas[1]


def play_steps(teacher, state, steps):
    """`on_step` of single students, in one program."""

    def one(state, step):
        return teacher.on_step(state, jax.random.key(0), step), None

    return jax.jit(lambda state: jax.lax.scan(one, state, steps)[0])(state)


def test_values_of_first_states_come_by_steps():
    """Only first states count, the buffer drops the oldest, and an update comes at each 20th step from the 40th on."""
    rng = np.random.default_rng(1)
    contexts = rng.normal(EASY.mean, EASY.std, size=(40, 1, 2)).astype(np.float32)
    values = rng.random((40, 1)).astype(np.float32)
    start = np.arange(40)[:, None] % 4 == 0
    shown = np.where(start, values, np.nan).astype(np.float32)
    steps = StepFeedback(jnp.asarray(contexts), jnp.asarray(shown), jnp.asarray(start))
    teacher = self_paced_teacher(SelfPacedConfig(**STEPPED))
    state = teacher.init(jax.random.key(0), SPACE)
    before = play_steps(teacher, state, jax.tree.map(lambda x: x[:39], steps))
    assert int(before.updates) == 0 and int(before.recorded) == 10
    after = play_steps(teacher, before, jax.tree.map(lambda x: x[39:], steps))
    assert int(after.updates) == 1 and int(after.steps) == 40 and int(after.faults) == 0
    last = contexts[8:40:4, 0].astype(float), values[8:40:4, 0]
    alpha = 0.05 * last[1].mean() / plain_kl(flat(EASY), flat(GOAL))
    expected = plain_update(flat(EASY), flat(GOAL), *last, alpha, 0.8)
    np.testing.assert_allclose(after.weights, expected, rtol=5e-3, atol=5e-3)


def test_a_period_without_an_episode_changes_nothing():
    teacher = self_paced_teacher(SelfPacedConfig(**STEPPED))
    state = teacher.init(jax.random.key(0), SPACE)
    silent = StepFeedback(jnp.zeros((60, 1, 2)), jnp.full((60, 1), jnp.nan), jnp.zeros((60, 1), bool))
    after = play_steps(teacher, state, silent)
    np.testing.assert_array_equal(after.weights, state.weights)
    assert int(after.updates) == 0 and int(after.steps) == 60 and int(after.faults) == 0


def test_students_without_values_are_refused_and_noted_under_jit():
    teacher = self_paced_teacher(SelfPacedConfig(**STEPPED))
    state = teacher.init(jax.random.key(0), SPACE)
    with pytest.raises(InputError, match="on_step was never called"):
        teacher.update(state, jnp.array([0.5, 0.5]), jnp.float32(1))
    told = feedback([[0.5, 0.5]], [1.0])
    batched = jax.jit(teacher.update_batch)(state, jax.random.key(0), told)
    assert int(teacher.metrics(batched)["error"]) == 4
    key, step = jax.random.key(0), StepFeedback(jnp.zeros((1, 2)), jnp.full(1, jnp.nan), jnp.ones(1, bool))
    with pytest.raises(InputError, match="values of first states must be finite"):
        teacher.on_step(state, key, step)
    assert int(jax.jit(teacher.on_step)(state, key, step).faults) == 8
    with pytest.raises(InputError, match=r"context has shape \(1, 3\)"):
        teacher.on_step(state, key, step._replace(context=jnp.zeros((1, 3))))
    many = StepFeedback(jnp.zeros((9, 2)), jnp.zeros(9), jnp.ones(9, bool))
    with pytest.raises(InputError, match="buffer is 8; it must be >= 9"):
        teacher.on_step(state, key, many)


def test_standard_deviations_keep_their_floor_while_the_target_is_far():
    rng = np.random.default_rng(2)
    tasks = np.clip(rng.normal(EASY.mean, EASY.std, size=(60, 2)), 0, [1, 2])
    returns = np.exp(-50 * ((tasks - EASY.mean) ** 2).sum(1))  # best at the mean: the Gaussian shrinks
    floors = {}
    for far in (0.0, 1e6):
        config = SelfPacedConfig(**RETURNS, zeta=0.0, std_floor=(0.095, 0.19), floor_above_kl=far)
        teacher = self_paced_teacher(config)
        state = updated(teacher, teacher.init(jax.random.key(0), SPACE), tasks, returns)
        floors[far] = np.exp(np.asarray(state.weights[2:4]))
    assert np.all(floors[1e6] < [0.09, 0.18])
    np.testing.assert_allclose(floors[0.0], [0.095, 0.19], rtol=1e-5)


@pytest.mark.parametrize("successor", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_batches_are_single_updates_and_seeds_side_by_side_are_single_runs(successor):
    if successor:
        teacher = spdl_v2_teacher(SPDLV2Config(performance_threshold=0.3, **RETURNS))
    else:
        teacher = self_paced_teacher(SelfPacedConfig(**RETURNS))
    state = check_batches(teacher, SPACE, sizes=(100,) if successor else (7, 1, 40, 75), tolerance=1e-3)
    assert int(state.updates) > 0
    check_samples(teacher, state, SPACE)
    rng = np.random.default_rng(3)
    tasks = jnp.asarray(rng.random((2, 70, 2)), jnp.float32)
    returns = jnp.asarray(rng.random((2, 70)), jnp.float32)
    start = teacher.init(jax.random.key(0), SPACE)

    def run(tasks, returns):
        return jax.lax.scan(lambda s, e: (teacher.update(s, *e), None), start, (tasks, returns))[0]

    together, single = jax.jit(jax.vmap(run))(tasks, returns), jax.jit(run)
    for i in range(2):
        alone = single(tasks[i], returns[i])
        assert_same_state(jax.tree.map(lambda x, i=i: x[i], together), alone, 2e-3)
    assert np.all(np.asarray(together.updates) == 1)


def test_tasks_have_the_gaussians_moments_and_its_density():
    teacher = self_paced_teacher(SelfPacedConfig(**RETURNS))
    weights = jnp.float32([0.5, 1.0, np.log(0.1), np.log(0.05), 0.1])
    state = teacher.init(jax.random.key(0), SPACE)._replace(weights=weights)
    tasks = check_samples(teacher, state, SPACE, n=4000)
    mean, covariance = plain(np.asarray(weights, float))
    np.testing.assert_allclose(tasks.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(np.cov(tasks.T), covariance, atol=1e-3)
    expected = multivariate_normal(mean, covariance).logpdf(tasks[:5])
    np.testing.assert_allclose(jax.jit(teacher.density)(state, tasks[:5]), expected, rtol=1e-3, atol=1e-3)


def test_without_expert_knowledge_it_starts_anywhere_and_goes_to_the_whole_space():
    teacher = self_paced_teacher()
    starts = [teacher.init(jax.random.key(i), SPACE).weights for i in range(2)]
    np.testing.assert_allclose(starts[0][2:], [np.log(0.1), np.log(0.2), 0], rtol=1e-6)
    assert not np.allclose(starts[0][:2], starts[1][:2])
    target = teacher.init(jax.random.key(0), SPACE).target
    np.testing.assert_allclose(target, [0.5, 1.0, np.log(0.25), np.log(0.5), 0], rtol=1e-6)


def test_successor_raises_value_first_then_moves_then_waits():
    """Threshold not reached: towards value. Reached: towards the target with value kept. Lost again: nothing."""
    rng = np.random.default_rng(4)
    teacher = spdl_v2_teacher(SPDLV2Config(performance_threshold=0.5, **{**RETURNS, "update_from": 30}))
    state = teacher.init(jax.random.key(0), SPACE)
    tasks = np.clip(rng.normal(EASY.mean, EASY.std, size=(30, 2)), 0, [1, 2])
    value = tasks[:, 0] + 0.05

    @jax.jit
    def learnt(state, values):
        episodes = (jnp.asarray(tasks, jnp.float32), jnp.asarray(values, jnp.float32))
        return jax.lax.scan(lambda s, e: (teacher.update(s, *e), None), state, episodes)[0]

    first = learnt(state, value)
    assert bool(first.accepted) and not bool(first.reached)
    assert first.weights[0] > state.weights[0] + 0.02
    high = learnt(first, value + 0.5)
    assert bool(high.reached) and bool(high.accepted)
    kl = [plain_kl(np.asarray(s.weights, float), flat(GOAL)) for s in (first, high)]
    assert kl[1] < kl[0]
    moved = plain_kl(*(np.asarray(s.weights, float) for s in (first, high)))
    assert moved <= 0.1 + 1e-4
    lost = learnt(high, value - 0.2)
    np.testing.assert_array_equal(lost.weights, high.weights)
    assert bool(lost.reached) and not bool(lost.accepted)


@pytest.mark.parametrize("successor", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_on_the_hypercube_the_gaussian_approaches_its_target(successor):
    target = TaskGaussian((0.5, 0.5), (0.25, 0.25))
    start = TaskGaussian((0.1, 0.1), (0.1, 0.1))
    common = {
        "update_every": 100,
        "update_from": 200,
        "values": "returns",
        "initial": start,
        "target": target,
    }
    if successor:
        teacher = spdl_v2_teacher(SPDLV2Config(performance_threshold=0.5, **common))
    else:
        teacher = self_paced_teacher(SelfPacedConfig(**common, zeta=1.0, max_kl=0.1))
    world = hypercube_world(HypercubeConfig(cells=4))
    space = task_space([(0, 1), (0, 1)])
    play = jax.jit(lambda key: run_teacher_student(key, teacher, world, space, blocks=20, block=100))
    _, _, log = play(jax.random.key(0))
    kl = np.asarray(log.metrics["kl_to_target"])
    assert kl[-1] < 0.5 * kl[0] and int(log.metrics["updates"][-1]) == 19


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_every": 0}, "update_every is 0"),
        ({"max_kl": 0.0}, "max_kl is 0.0"),
        ({"std_floor": (0.1,)}, "give both or none"),
        ({"std_floor": (0.0,), "floor_above_kl": 1.0}, "std_floor is"),
        ({"values": "guess"}, "values is 'guess'"),
        ({"zeta": -1.0}, "zeta is -1.0"),
        ({"alpha_offset": -1}, "alpha_offset is -1"),
        ({"performance": "luck"}, "performance is 'luck'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SelfPacedConfig(**options)


def test_gaussians_and_floors_of_another_space_are_refused():
    for options, message in (
        ({"initial": TaskGaussian((0.0,), (1.0,))}, "initial is .*2 dimensions"),
        ({"target": TaskGaussian((0.0, 0.0), (1.0, 0.0))}, "target is .*std > 0"),
        ({"std_floor": (0.1,), "floor_above_kl": 1.0}, "std_floor has 1 entries; it must have 2"),
    ):
        with pytest.raises(InputError, match=message):
            self_paced_teacher(SelfPacedConfig(**options)).init(jax.random.key(0), SPACE)
