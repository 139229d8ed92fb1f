"""VDS: disagreement by hand, the ensemble's gradient against torch, and the shared checks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seed_checks import check_seeds, random_feedback
from teacher_checks import check_batches, check_samples, feedback

from jaxlab.errors import InputError
from jaxlab.teachers import (
    ValueEnsemble,
    VDSConfig,
    disagreement_weights,
    return_ensemble,
    task_space,
    vds_teacher,
)

SPACE = task_space([(0, 1), (-2, 2)])
SMALL = VDSConfig(candidates=50, train_every=20, buffer=30, hidden=(8,), batch=16, steps=3)


def two_opinions(spread):
    """An ensemble of two members that differ by `spread` of the goal, and learn nothing."""
    return ValueEnsemble(
        init=lambda key, dimensions: jnp.zeros(()),
        values=lambda params, goals: jnp.stack([0 * goals[:, 0], 2 * spread(goals)]) + params,
        learn=lambda params, *episodes: params,
    )


def test_weights_are_each_measures_over_its_sum(double_precision):
    values = np.random.default_rng(0).normal(size=(3, 7))
    measures = {
        "std": values.std(0),
        "var": values.var(0),
        "tanh": np.tanh(values.var(0)),
        "exp": np.exp(values.std(0)),
    }
    for name, expected in measures.items():
        ours = jax.jit(lambda v, n=name: disagreement_weights(v, disagreement=n))(jnp.asarray(values))
        np.testing.assert_allclose(ours, expected / expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(disagreement_weights(jnp.ones((3, 5))), 0.2)


def test_goals_are_drawn_where_the_ensemble_disagrees():
    """Members differ by (1 + g) / 2 = t in the first dimension: drawn goals have density 2 t there."""
    teacher = vds_teacher(VDSConfig(candidates=2000), ensemble=two_opinions(lambda g: (1 + g[:, 0]) / 2))
    state = jax.jit(lambda key: teacher.refit(teacher.init(key, SPACE)))(jax.random.key(0))
    tasks = check_samples(teacher, state, SPACE, n=2000)
    assert np.all(np.isin(tasks[:, 0], state.candidates[:, 0]))
    assert tasks[:, 0].mean() == pytest.approx(2 / 3, abs=0.02)
    assert tasks[:, 1].mean() == pytest.approx(0, abs=0.1)
    log = jax.jit(teacher.density)(state, jnp.float32([[0.5, 0], [0.9, 1]]))
    np.testing.assert_allclose(np.exp(log), [1 / 4, 1.8 / 4], rtol=0.06)


def plain_adam_steps(net, goals, returns, batches):
    """Least squares with one hidden layer, gradients and Adam written out in float64."""
    net = [np.asarray(x, float).copy() for x in net]
    first, second = ([np.zeros_like(x) for x in net] for _ in range(2))
    for t, rows in enumerate(batches, start=1):
        kernel, bias, out, out_bias = net
        x, inside = goals[rows], goals[rows] @ kernel + bias
        hidden = np.maximum(inside, 0)
        slope = 2 * ((hidden @ out + out_bias)[:, 0] - returns[rows])[:, None] / len(rows)
        back = (slope @ out.T) * (inside > 0)
        for i, g in enumerate((x.T @ back, back.sum(0), hidden.T @ slope, slope.sum(0))):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            net[i] = net[i] - 1e-3 * (first[i] / (1 - 0.9**t)) / (np.sqrt(second[i] / (1 - 0.999**t)) + 1e-8)
    return net


def test_training_steps_are_adams_on_each_members_own_batches(double_precision):
    rng = np.random.default_rng(1)
    goals, returns = rng.uniform(-1, 1, (30, 2)), rng.random(30)
    ensemble, key = return_ensemble(SMALL), jax.random.key(5)
    start = jax.jit(ensemble.init, static_argnums=1)(jax.random.key(1), 2)
    learnt = jax.jit(ensemble.learn)(start, key, jnp.asarray(goals), jnp.asarray(returns), jnp.int32(21))
    draw = jax.jit(lambda key, i: jax.random.randint(jax.random.fold_in(key, i), (16,), 0, 21))
    shown = set()
    for member, member_key in enumerate(jax.random.split(key, 3)):
        batches = [np.asarray(draw(member_key, i)) for i in range(3)]
        shown |= {tuple(rows) for rows in batches}
        net = [x[member] for x in jax.tree.leaves(start.layers)]
        expected = plain_adam_steps(net, goals, returns, batches)
        for before, ours, theirs in zip(net, jax.tree.leaves(learnt.layers), expected, strict=True):
            np.testing.assert_allclose(ours[member], theirs, atol=1e-9)
            assert np.abs(ours[member] - before).max() > 1e-4
    assert len(shown) == 9


@pytest.mark.slow
def test_batches_are_single_updates_and_seeds_side_by_side_single_runs():
    """With linear members, which compile faster."""
    teacher = vds_teacher(dataclasses.replace(SMALL, hidden=()))
    state = check_batches(teacher, SPACE, sizes=(20, 20), tolerance=1e-4)
    check_samples(teacher, state, SPACE)
    start = teacher.init(jax.random.key(0), SPACE)
    check_seeds(teacher, start, random_feedback(feedback, SPACE, 20), tolerance=1e-4)


def test_the_ring_holds_the_last_episodes_scaled():
    teacher = vds_teacher(SMALL, ensemble=two_opinions(lambda g: g[:, 0]))
    state = teacher.init(jax.random.key(0), SPACE)
    tasks = np.linspace([0, -2], [1, 2], 35).astype(np.float32)
    update = jax.jit(teacher.update)
    for i, task in enumerate(tasks):
        state = update(state, task, jnp.float32(i))
    np.testing.assert_array_equal(state.returns, [30, 31, 32, 33, 34, *range(5, 30)])
    np.testing.assert_allclose(state.goals[5], 2 * tasks[5] / [1, 4] + [-1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "candidates is 0"),
        ({"train_every": 0}, "train_every is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"members": 1}, "members is 1"),
        ({"buffer": 10}, "buffer is 10; it must be >= train_every = 50"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"disagreement": "range"}, "disagreement is 'range'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        VDSConfig(**options)
