"""A training step against the same step written out, over several devices, and against collapse."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from eight_devices import check_passed, properties, report_of
from flax import nnx
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform
from small_training import IMAGES, begin, networks

from jaxlab.errors import InputError
from jaxlab.selfsupervised import (
    Method,
    Networks,
    TregsConfig,
    Views,
    init_training,
)

SCRIPT = Path(__file__).with_name("training_on_eight_devices.py")


def test_loss_and_metrics_are_those_of_scipys_trees():
    method = Method("mse", TregsConfig(beta=3.0, gamma=0.3, lam=0.05))
    graph, state, step = begin(method)
    _, metrics = jax.jit(step)(state, IMAGES, jax.random.key(0))
    model = nnx.merge(graph, state.params, state.stats)
    model.train()
    z = np.asarray(model.projector(model.encoder(IMAGES)), np.float64)
    tree = minimum_spanning_tree(squareform(pdist(z))).sum() / len(z)
    sphere = ((np.linalg.norm(z, axis=1) - 1) ** 2).mean()
    # Both views are the image itself.
    assert float(metrics.loss) == pytest.approx(2 * (-0.3 * tree + 0.05 * sphere), rel=1e-4)
    assert float(metrics.length) == pytest.approx(tree, rel=1e-4)
    assert float(metrics.sphere) == pytest.approx(sphere, rel=1e-4)
    assert float(metrics.radius) == pytest.approx(np.linalg.norm(z, axis=1).mean(), rel=1e-4)
    assert float(metrics.invariance) == pytest.approx(0, abs=1e-10)
    units = z / np.linalg.norm(z, axis=1, keepdims=True)
    pairs = (units @ units.T)[~np.eye(len(z), dtype=bool)]
    assert float(metrics.mean_cosine) == pytest.approx(pairs.mean(), abs=1e-4)


@pytest.mark.parametrize("host", ["simclr", "vicreg", "barlow", "byol"])
def test_every_host_learns_beside_the_regulariser(host):
    _, state, step = begin(Method(host), optax.adam(1e-3), Views())
    step = jax.jit(step)
    losses = []
    for number in range(12):
        state, metrics = step(state, IMAGES, jax.random.key(number % 2))
        losses.append(float(metrics.loss))
    assert np.isfinite(losses).all() and sum(losses[-4:]) < sum(losses[:4]) and int(state.step) == 12
    assert float(metrics.length) > 0


def test_byols_target_is_an_average_that_gradients_do_not_reach():
    _, state, step = begin(Method("byol", None, target_momentum=0.9), optax.sgd(0.5), steps=4)
    step = jax.jit(step)
    state, _ = step(state, IMAGES, jax.random.key(0))
    state = state._replace(step=jnp.int32(2))
    after, _ = step(state, IMAGES, jax.random.key(0))
    rate = 1 - 0.1 * (np.cos(np.pi * 2 / 4) + 1) / 2
    expected = jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, state.target[0], after.params)
    for found, own in zip(jax.tree.leaves(after.target[0]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, own, atol=1e-6)


def test_trees_keep_the_embeddings_of_invariance_alone_from_shrinking():
    radii = {}
    for name, tregs in (("alone", None), ("with trees", TregsConfig(beta=1.0, gamma=0.5, lam=0.3))):
        _, state, step = begin(Method("mse", tregs), optax.adam(3e-3), Views())
        step = jax.jit(step, donate_argnums=0)
        for number in range(120):
            state, metrics = step(state, IMAGES, jax.random.key(number))
        radii[name] = float(metrics.radius)
    assert radii["alone"] < 0.45 and radii["with trees"] > 0.9, radii


@pytest.fixture(scope="module")
def report():
    return report_of(SCRIPT)


@pytest.mark.slow
@pytest.mark.parametrize("name", properties(SCRIPT))
def test_on_eight_devices(report, name):
    check_passed(report, name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Method("moco"), "host is 'moco'; it must be one of mse, simclr"),
        (lambda: Method(scope="all"), "scope is 'all'"),
        (lambda: Method(target_momentum=1.0), "target_momentum is 1.0"),
        (lambda: begin(Method(), steps=0), "steps is 0"),
        (
            lambda: init_training(
                Networks(networks().encoder, networks().projector), optax.sgd(1), Method("byol")
            ),
            "byol needs one",
        ),
    ],
)
def test_wrong_options_are_input_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_methods_are_hashable_and_static():
    assert hash(Method()) == hash(dataclasses.replace(Method()))
