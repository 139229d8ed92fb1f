"""GoalGAN: one step of both networks against torch, labels by hand, and a world with a band of half-learnt tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from teacher_checks import assert_same_state, check_batches, check_samples

from jaxlab.errors import InputError
from jaxlab.teachers import GoalGANConfig, TaskGaussian, goal_gan_teacher, task_space
from jaxlab.teachers.goal_gan import denormalised, generate, init_gan, normalised, train_gan

SPACE = task_space([(0, 1), (-2, 2)])
SMALL = {
    "generator_hidden": (16, 16),
    "discriminator_hidden": (12, 12),
    "batch": 8,
    "success_return": 0.5,
    "archive": 64,
    "pending": 16,
}
CONFIG = GoalGANConfig(**SMALL, update_size=10, iterations=3)


@pytest.fixture(scope="module")
def started():
    teacher = goal_gan_teacher(CONFIG)
    return teacher, teacher.init(jax.random.key(0), SPACE), jax.jit(teacher.sample), jax.jit(teacher.update)


def torch_layers(torch, layers):
    return [
        tuple(torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True) for x in layer)
        for layer in layers
    ]


def torch_network(layers, x, activation):
    for kernel, bias in layers[:-1]:
        x = activation(x @ kernel + bias)
    return x @ layers[-1][0] + layers[-1][1]


def test_training_steps_are_torchs_gradients_and_rmsprop_written_out(double_precision):
    """Two steps on 13 rows, of which 8 and then the other 5 with the first 3 are shown."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    rows, labels = rng.uniform(-0.5, 0.5, (13, 2)), rng.integers(0, 2, 13).astype(float)
    gan, key = init_gan(jax.random.key(1), 2, CONFIG), jax.random.key(2)
    train = jax.jit(lambda rows, labels: train_gan(key, gan, rows, labels, 2, CONFIG))
    trained = train(jnp.asarray(rows), jnp.asarray(labels))

    nets = {"generator": torch_layers(torch, gan.generator), "judge": torch_layers(torch, gan.discriminator)}
    moments = {name: [[torch.ones_like(x) for x in layer] for layer in net] for name, net in nets.items()}

    def generator(z):
        return torch.tanh(torch_network(nets["generator"], z, torch.relu))

    def judge(x):
        return torch_network(nets["judge"], x, lambda x: torch.maximum(0.1 * x, x))[:, 0]

    def descend(name, loss):
        flat = [x for layer in nets[name] for x in layer]
        flat_moments = [m for layer in moments[name] for m in layer]
        for x, m, slope in zip(flat, flat_moments, torch.autograd.grad(loss, flat), strict=True):
            with torch.no_grad():
                m.mul_(0.9).add_(0.1 * slope**2)
                x.sub_(1e-3 * slope / torch.sqrt(m + 1e-10))

    for i in range(2):
        shown = [(8 * i + j) % 13 for j in range(8)]
        z = torch.tensor(
            np.asarray(jax.random.normal(jax.random.fold_in(key, i), (8, 2))), dtype=torch.float64
        )
        made = generator(z).detach()
        real = torch.tensor(rows[shown])
        wanted = torch.tensor(np.concatenate([labels[shown], np.zeros(8)]))
        loss = ((2 * wanted - 1 - judge(torch.cat([real, made]))) ** 2).mean()
        descend("judge", loss)
        generator_loss = ((judge(generator(z)) - 1) ** 2).mean()
        descend("generator", generator_loss)
    np.testing.assert_allclose(trained.losses, [loss.item(), generator_loss.item()], rtol=1e-9)
    for name, ours in (("generator", trained.generator), ("judge", trained.discriminator)):
        for layer, theirs in zip(ours, nets[name], strict=True):
            for x, y in zip(layer, theirs, strict=True):
                np.testing.assert_allclose(x, y.detach().numpy(), atol=1e-11)
    assert np.abs(trained.generator[0].kernel - gan.generator[0].kernel).max() > 1e-5


def test_no_turns_leave_the_networks():
    gan = init_gan(jax.random.key(1), 2, CONFIG)
    same = jax.jit(lambda n: train_gan(jax.random.key(0), gan, jnp.zeros((4, 2)), jnp.ones(4), n, CONFIG))(0)
    assert_same_state(same, gan, 0)


@pytest.mark.parametrize(("output", "edge"), [("reference", 0.5), ("box", 1.0)])
def test_normalised_tasks_span_half_or_all_of_the_output(output, edge):
    config = GoalGANConfig(output_range=output)
    corners = jnp.float32([[0, -2], [1, 2], [0.5, 0]])
    rows = normalised(SPACE, corners, config)
    np.testing.assert_allclose(rows, [[-edge, -edge], [edge, edge], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(denormalised(SPACE, rows, config), corners, atol=1e-6)


def test_labels_archive_and_repeats_by_hand(started):
    """Each new task is played twice; half a success is intermediate, two archive it unless a near one is there."""
    teacher, state, sample, update = started
    expected_labels, tasks = [], []
    for i, (first, second) in enumerate([(1, 0), (1, 1), (0, 0), (0, 1), (1, 1)]):
        # With the key's draws of new tasks only.
        for attempt in range(20):
            task, drawn = sample(state, jax.random.fold_in(jax.random.key(i), attempt))
            if int(drawn.tickets) > int(state.tickets):
                break
        again, drawn = sample(drawn, jax.random.key(99))
        np.testing.assert_array_equal(task, again)
        assert int(drawn.repeats) == 0 and int(drawn.tickets) == i + 1
        once = update(drawn, task, jnp.float32(first))
        assert int(once.labelled_tasks) == i and int(teacher.metrics(once)["pending"]) == 1
        state = update(once, task, jnp.float32(second))
        expected_labels.append(first + second == 1)
        tasks.append(np.asarray(task))
        assert int(state.labelled_tasks) == i + 1 and int(teacher.metrics(state)["pending"]) == 0
    np.testing.assert_array_equal(state.labels[:5], expected_labels)
    np.testing.assert_array_equal(state.labelled[:5], tasks)
    # The two mastered tasks lie farther apart than 1 % of the box's diagonal.
    assert np.linalg.norm(tasks[1] - tasks[4]) > 0.01 * np.sqrt(17)
    assert int(state.archived) == 2
    np.testing.assert_array_equal(state.archive[:2], [tasks[1], tasks[4]])
    assert int(update(state, tasks[0], jnp.float32(1)).labelled_tasks) == 5  # nothing waits for it


def test_a_mastered_task_near_an_archived_one_is_not_kept(started):
    teacher, state, _, update = started
    for first in (0.5, 0.52, 0.58):  # steps of 0.02 and 0.08; the threshold is 0.0412
        task = jnp.float32([first, 0.0])
        state = state._replace(
            pending=state.pending.at[0].set(task),
            ticket=state.ticket.at[0].set(1),
            trials=state.trials.at[0].set(0),
            successes=state.successes.at[0].set(0),
        )
        state = update(update(state, task, jnp.float32(1)), task, jnp.float32(1))
    assert int(state.archived) == 2
    np.testing.assert_allclose(state.archive[:2, 0], [0.5, 0.58])


def test_equal_waiting_tasks_are_served_in_order_and_a_full_table_drops_the_oldest(started):
    teacher, state, sample, update = started
    task = jnp.float32([0.5, 0.5])
    twice = state._replace(
        pending=state.pending.at[jnp.array([3, 1])].set(task),
        ticket=state.ticket.at[jnp.array([3, 1])].set(jnp.array([1, 2])),
    )
    one = update(twice, task, jnp.float32(1))
    assert one.trials[3] == 1 and one.trials[1] == 0
    full = state._replace(ticket=jnp.arange(5, 21), tickets=jnp.int32(20))
    _, drawn = sample(full, jax.random.key(0))
    np.testing.assert_array_equal(drawn.ticket, [21, *range(6, 21)])


def test_training_comes_with_enough_labels_if_one_is_intermediate(started):
    _, state, _, update = started
    almost = state._replace(labelled_tasks=jnp.int32(9), ticket=state.ticket.at[0].set(1))
    task = almost.pending[0]
    waiting = almost._replace(trials=almost.trials.at[0].set(1), successes=almost.successes.at[0].set(1))
    for success, trained in ((0.0, True), (1.0, False)):  # one of two is intermediate, two of two is not
        after = update(waiting, task, jnp.float32(success))
        assert int(after.labelled_tasks) == 0 and int(after.trainings) == trained
        assert np.allclose(after.gan.generator[0].kernel, state.gan.generator[0].kernel) != trained


def test_a_fifth_of_new_tasks_are_archived_ones_with_noise(started):
    teacher, state, sample, _ = started
    place = jnp.float32([0.93, 1.7])
    known = state._replace(archive=state.archive.at[0].set(place), archived=jnp.int32(1))
    tasks = jax.jit(jax.vmap(lambda key: teacher.sample(known, key)[0]))(
        jax.random.split(jax.random.key(0), 4000)
    )
    near = np.abs((np.asarray(tasks) - np.asarray(place)) / [1, 4]).max(1) < 0.05
    assert near.mean() == pytest.approx(0.2, abs=0.03)
    np.testing.assert_allclose(np.std(np.asarray(tasks)[near] / [1, 4], axis=0), 0.01, rtol=0.1)


def test_density_integrates_to_one(started):
    teacher, state, _, _ = started
    wide = goal_gan_teacher(GoalGANConfig(**SMALL, noise=0.1))
    grid = np.stack(np.meshgrid(np.linspace(-3, 4, 90), np.linspace(-8, 8, 90)), -1).reshape(-1, 2)
    cell = 7 / 89 * 16 / 89
    known = state._replace(archive=state.archive.at[0].set(jnp.float32([0.9, 1.5])), archived=jnp.int32(1))
    for there in (state, known):
        total = np.exp(jax.jit(wide.density)(there, jnp.asarray(grid, jnp.float32))).sum() * cell
        assert total == pytest.approx(1, abs=0.01)


def test_batches_are_single_updates_and_samples_are_repeatable(started):
    teacher, state, _, _ = started
    check_batches(teacher, SPACE, sizes=(7, 40), success_return=0.5)
    check_samples(teacher, state, SPACE, n=40)


def band_world(key, task):
    """Easy on the left, impossible on the right, a matter of luck in between."""
    x = task[0]
    chance = jnp.where(x < 0.25, 1.0, jnp.where(x < 0.55, 0.5, 0.0))
    return (jax.random.uniform(key) < chance).astype(jnp.float32)


def play(teacher, episodes):
    def run(key):
        def one(state, key):
            sample_key, play_key = jax.random.split(key)
            task, state = teacher.sample(state, sample_key)
            return teacher.update(state, task, band_world(play_key, task)), None

        init_key, key = jax.random.split(key)
        start = teacher.init(init_key, SPACE)
        return start, jax.lax.scan(one, start, jax.random.split(key, episodes))[0]

    return run


def test_the_generators_share_of_intermediate_tasks_rises():
    config = GoalGANConfig(
        generator_hidden=(32, 32),
        discriminator_hidden=(32, 32),
        success_return=0.5,
        initial=TaskGaussian((0.15, 0.0), (0.1, 0.5)),
    )
    teacher = goal_gan_teacher(config)
    start, end = jax.jit(play(teacher, 3000))(jax.random.key(0))

    def share(state):
        latents = jax.random.normal(jax.random.key(1), (2000, 2))
        made = denormalised(SPACE, generate(state.gan.generator, latents), config)
        return float(jnp.mean((made[:, 0] >= 0.25) & (made[:, 0] < 0.55))), float(made[:, 0].mean())

    # Pretraining put it among the easy tasks.
    assert share(start)[1] == pytest.approx(0.15, abs=0.1)
    assert share(end)[0] > share(start)[0] + 0.3
    assert int(end.trainings) > 5 and int(end.archived) > 0


@pytest.mark.slow
def test_seeds_side_by_side_are_single_runs(double_precision):
    run = play(goal_gan_teacher(CONFIG), 60)
    keys = jax.random.split(jax.random.key(0), 2)
    _, together = jax.jit(jax.vmap(run))(keys)
    single = jax.jit(run)
    for i in range(2):
        assert_same_state(jax.tree.map(lambda x, i=i: x[i], together), single(keys[i])[1], 1e-6)
    assert int(together.trainings.max()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_size": 0}, "update_size is 0"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"hardest": 0.9}, "hardest <= easiest"),
        ({"old_probability": 2.0}, "old_probability is 2.0"),
        ({"output_range": "half"}, "output_range is 'half'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GoalGANConfig(**options)
