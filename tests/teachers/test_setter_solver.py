"""Setter-Solver: losses and steps against torch, bookkeeping by hand, and a world in which the right side is hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from teacher_checks import assert_same_state, check_batches, check_samples

from jaxlab.errors import InputError
from jaxlab.teachers import SetterSolverConfig, setter_solver_teacher, task_space
from jaxlab.teachers.dense_layers import fan_in_kernel, init_layers
from jaxlab.teachers.real_nvp import flow_forward, init_flow
from jaxlab.teachers.setter_solver import PlayedGoals, judge_logits, judge_loss, setter_losses

SPACE = task_space([(0, 1), (-2, 2), (0, 5)])
SMALL = {"setter_hidden": 8, "blocks": 1, "layers": 1, "judge_hidden": (8, 8), "success_return": 0.5}
CONFIG = SetterSolverConfig(**SMALL, update_every=10, pending=16)


def torch_flow(torch, tree):
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True), tree)


def torch_highway(torch, net, x):
    y = torch.tanh(x @ net.first.kernel + net.first.bias)
    for layer in net.gated:
        new, gate = (y @ layer.kernel + layer.bias).chunk(2, dim=1)
        gate = torch.sigmoid(gate)
        y = (1 - gate) * y + gate * torch.tanh(new)
    return y @ net.last.kernel + net.last.bias


def torch_couplings(torch, flow, d, z, f, *, invert):
    """The flow on columns; log p is the sum of what each coupling adds."""
    columns, log_p = list(z.T), 0.0
    left, right = list(range(d // 2)), list(range(d // 2, d))
    pairs = [(left, right), (right, left), (list(range(1, d, 2)), list(range(0, d, 2)))]
    blocks = [jax.tree.map(lambda x, b=b: x[b], flow) for b in range(len(flow[0].scale.first.bias))]
    steps = [(c, *pair) for block in blocks for c, pair in zip(block, pairs, strict=True)]
    for coupling, given, changed in reversed(steps) if invert else steps:
        inputs = torch.stack([*(columns[i] for i in given), f], dim=1)
        raw = torch_highway(torch, coupling.scale, inputs)
        scale = 0.01 + raw * (torch.atan(raw) / np.pi + 0.5) + 1 / np.pi
        shift = torch_highway(torch, coupling.shift, inputs)
        for j, i in enumerate(changed):
            old = columns[i]
            columns[i] = (old - shift[:, j]) / scale[:, j] if invert else old * scale[:, j] + shift[:, j]
        log_p = log_p - torch.log(scale).sum(1)
    return torch.stack(columns, dim=1), log_p


def torch_log_p(torch, latent, logits, log_p):
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum(1)
    goal = torch.sigmoid(logits)
    return normal + log_p - torch.log(goal * (1 - goal)).sum(1)


def test_losses_and_their_slopes_are_torchs(double_precision):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    setter = init_flow(jax.random.key(0), 3, hidden=6, blocks=2, layers=2)
    judge = init_layers(jax.random.key(1), (3, 5, 5, 1), initializer=fan_in_kernel)
    n = 12
    played = PlayedGoals(
        jnp.asarray(rng.normal(size=(n, 3))),
        jnp.asarray(rng.uniform(0.1, 0.9, n)),
        jnp.asarray(np.arange(n) != 4),
        jnp.asarray(np.arange(n) % 3 == 1),
    )
    noise = jnp.asarray(0.05 * rng.random((n, 3)))

    @jax.jit
    def ours(setter, judge):
        losses = jax.value_and_grad(
            lambda s: (sum(x := setter_losses(s, judge, setter, played, noise)), jnp.stack(x)), has_aux=True
        )(setter)
        return losses, jax.value_and_grad(judge_loss)(judge, played)

    ((_, losses), slope), (judge_value, judge_slope) = ours(setter, judge)

    net, moving = torch_flow(torch, judge), torch_flow(torch, setter)
    before = torch_flow(torch, setter)
    logits, f, shift = (torch.tensor(np.asarray(x), dtype=torch.float64) for x in (*played[:2], noise))
    mine, success = (torch.tensor(np.asarray(x)) for x in played[2:])

    def judged(goal):
        for layer in net[:-1]:
            goal = torch.relu(goal @ layer.kernel + layer.bias)
        return (goal @ net[-1].kernel + net[-1].bias)[:, 0]

    value = torch.nn.functional.binary_cross_entropy_with_logits(
        judged(torch.sigmoid(logits)), success.double()
    )
    flat = jax.tree.leaves(net)
    assert float(judge_value) == pytest.approx(value.item(), rel=1e-5)
    for x, y in zip(jax.tree.leaves(judge_slope), torch.autograd.grad(value, flat), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)

    goals = torch.clip(torch.sigmoid(logits) + shift, 1e-4, 1 - 1e-4)
    noisy = torch.logit(goals)
    latent, log_p = torch_couplings(torch, moving, 3, noisy, f, invert=True)
    # As the reference: succeeded goals of the setter, then all of its goals.
    validity = -torch_log_p(torch, latent, noisy, log_p)[mine & success].mean()
    latent = torch_couplings(torch, before, 3, logits, f, invert=True)[0].detach()
    made, log_p = torch_couplings(torch, moving, 3, latent, f, invert=False)
    feasibility = ((judged(torch.sigmoid(made)) - torch.logit(f)) ** 2)[mine].mean()
    coverage = torch_log_p(torch, latent, made, log_p)[mine].mean()
    expected = [x.item() for x in (validity, feasibility, coverage)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    theirs = torch.autograd.grad(validity + feasibility + coverage, jax.tree.leaves(moving))
    for x, y in zip(jax.tree.leaves(slope), theirs, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-7, rtol=1e-6)


@pytest.fixture(scope="module")
def started():
    teacher = setter_solver_teacher(CONFIG)
    return teacher, teacher.init(jax.random.key(0), SPACE), jax.jit(teacher.sample), jax.jit(teacher.update)


def test_played_goals_keep_what_was_asked_and_foreign_tasks_teach_the_judge_alone(started):
    _, state, sample, update = started
    task, state = sample(state, jax.random.key(1))
    logits, _ = flow_forward(
        state.setter,
        jax.random.normal(jax.random.split(jax.random.key(1))[1], (3,)),
        state.waiting_feasibility[0],
    )
    goal = 1 / (1 + np.exp(-np.asarray(logits, float)))
    np.testing.assert_allclose(task, np.asarray(SPACE.low) + np.asarray(SPACE.extent) * goal, rtol=1e-4)
    state = update(state, task, jnp.float32(1))
    state = update(state, jnp.float32([0.5, 1, 0]), jnp.float32(0))
    played = jax.tree.map(lambda x: np.asarray(x[:2]), state.played)
    np.testing.assert_array_equal(played.ours, [True, False])
    np.testing.assert_array_equal(played.success, [True, False])
    np.testing.assert_allclose(played.logits[0], logits, rtol=1e-4)
    assert played.feasibility[0] == state.waiting_feasibility[0]
    np.testing.assert_allclose(played.logits[1], np.log([1, 3, 1e-4 / (1 - 1e-4)]), atol=1e-3)
    assert int(state.ticket.max()) == 0


def test_one_adam_step_comes_every_ten_episodes(started):
    """The first step of Adam moves each weight by the rate, against the sign of its slope."""
    _, state, sample, update = started
    start = state
    for i in range(10):
        np.testing.assert_array_equal(state.judge[0].kernel, start.judge[0].kernel)
        task, state = sample(state, jax.random.key(i))
        state = update(state, task, jnp.float32(i % 2))
    slope = jax.jit(jax.grad(judge_loss))(start.judge, state.played)
    for old, new, d in zip(*map(jax.tree.leaves, (start.judge, state.judge, slope)), strict=True):
        step = np.where(np.abs(d) > 1e-6, -3e-4 * np.sign(d), new - old)
        np.testing.assert_allclose(new - old, step, atol=1e-5)
    assert not np.allclose(state.setter[0].shift.last.kernel, start.setter[0].shift.last.kernel, atol=1e-5)
    assert np.all(np.isfinite(state.losses)) and state.losses[0] > 0


def test_without_a_success_the_networks_stay_finite(started):
    _, state, _, update = started
    for _ in range(20):
        state = update(state, jnp.float32([0.5, 1, 5]), jnp.float32(0))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((state.setter, state.judge)))
    assert float(state.losses[1]) == 0


def test_batches_are_single_updates_samples_repeat_and_the_density_integrates_to_one():
    space = task_space([(0, 1), (-2, 2)])
    teacher = setter_solver_teacher(CONFIG)
    state = check_batches(teacher, space, sizes=(7, 40), tolerance=1e-4, success_return=0.5)
    check_samples(teacher, state, space, n=40)
    x, y = (np.linspace(low, high, 121)[:-1] + (high - low) / 240 for low, high in ((0, 1), (-2, 2)))
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    density = np.exp(jax.jit(teacher.density)(state, jnp.asarray(grid, jnp.float32)))
    assert density.sum() * 4 / 120**2 == pytest.approx(1, abs=0.02)


def play(teacher, space, episodes):
    def run(key):
        def one(state, key):
            task, state = teacher.sample(state, key)
            success = (task[0] < 0.5).astype(jnp.float32)
            return teacher.update(state, task, success), task

        init_key, key = jax.random.split(key)
        return jax.lax.scan(one, teacher.init(init_key, space), jax.random.split(key, episodes))

    return run


@pytest.mark.slow
def test_judge_learns_what_is_hard_and_the_setter_obeys():
    """Tasks succeed on the left. The judge tells the sides apart, and asking for less gives tasks farther right."""
    space = task_space([(0, 1), (0, 1)])
    config = SetterSolverConfig(
        update_every=20, setter_hidden=16, learning_rate=3e-3, success_return=0.5, layers=1, blocks=2
    )
    state, _ = jax.jit(play(setter_solver_teacher(config), space, 8000))(jax.random.key(0))
    judged = jax.nn.sigmoid(judge_logits(state.judge, jnp.float32([[0.2, 0.5], [0.8, 0.5]])))
    assert judged[0] > 0.8 and judged[1] < 0.2
    latents = jax.random.normal(jax.random.key(1), (500, 2))
    easy, hard = (
        jax.nn.sigmoid(flow_forward(state.setter, latents, jnp.full(500, f))[0][:, 0]).mean()
        for f in (0.95, 0.05)
    )
    assert float(easy) < float(hard) - 0.05


@pytest.mark.slow
def test_seeds_side_by_side_are_single_runs():
    run = play(setter_solver_teacher(CONFIG), SPACE, 35)
    keys = jax.random.split(jax.random.key(0), 2)
    together, _ = jax.jit(jax.vmap(run))(keys)
    single = jax.jit(run)
    for i in range(2):
        assert_same_state(jax.tree.map(lambda x, i=i: x[i], together), single(keys[i])[0], 1e-4)


def test_spaces_of_one_dimension_are_refused():
    with pytest.raises(InputError, match="dimensions is 1"):
        setter_solver_teacher().init(jax.random.key(0), task_space([(0, 1)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_every": 0}, "update_every is 0"),
        ({"goal_noise": -1.0}, "goal_noise is -1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SetterSolverConfig(**options)
