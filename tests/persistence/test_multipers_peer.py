"""multipers and torch, in an environment of their own: the same losses step by step, the same values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.peers import run_peer
from jaxlab.persistence import (
    graph_measures,
    integrate_phi,
    lower_star,
    point_step,
    simplicial_complex,
    stack_complexes,
)
from jaxlab.persistence.optimisation import start
from jaxlab.recipes import persistence_optimisation as experiments

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("double_precision")]


def multipers(**given):
    return run_peer(
        "multipers", {name: np.asarray(one) for name, one in given.items()}, script="multipers_gradients.py"
    )


@pytest.mark.parametrize("experiment", ["modes", "circle"])
def test_first_steps_of_an_experiment_have_the_same_losses(experiment):
    config = experiments.Config(experiment=experiment, points=60)
    points = experiments.cloud(config).astype(np.float64)
    peer = multipers(
        task="optimise",
        experiment=experiment,
        points=points,
        rate=0.01,
        steps=10,
        centres=experiments.CENTRES,
        bandwidth=config.bandwidth,
    )
    optimizer = optax.adam(0.01)
    step = point_step(experiments.losses_of(config)["two parameters"], optimizer)
    state, losses = start(jnp.asarray(points), optimizer), []
    for _ in range(10):
        state, shown = step(state)
        losses.append(shown["loss"])
    np.testing.assert_allclose(losses, peer["losses"], atol=1e-8)
    np.testing.assert_allclose(state.points, peer["points"], atol=1e-6)


def test_graphs_have_the_same_value_and_gradient():
    rng = np.random.default_rng(0)
    pairs = np.argwhere(np.triu(np.ones((9, 9)), 1))
    edges = [np.sort(pairs[rng.random(len(pairs)) < 0.3], axis=1) for _ in range(5)]
    values = rng.random((5, 9, 2))
    centre = np.array([0.5, 1.0])
    peer = multipers(
        task="graphs",
        values=values.reshape(-1, 2),
        nodes=[9] * 5,
        edges=np.concatenate(edges),
        edge_counts=[len(own) for own in edges],
        centre=centre,
        repetitions=0,
    )
    stacked = stack_complexes([simplicial_complex(9, own) for own in edges])

    def one(complex, own):
        measures = graph_measures(lower_star(complex, own))
        return sum(
            integrate_phi(each, lambda x: jnp.exp(-jnp.sum((x - centre) ** 2, -1))) for each in measures
        )

    value, slopes = jax.value_and_grad(lambda x: jnp.sum(jax.vmap(one)(stacked, x)))(jnp.asarray(values))
    np.testing.assert_allclose(value, peer["value"], rtol=1e-12)
    np.testing.assert_allclose(slopes.reshape(-1, 2), peer["gradient"], atol=1e-12)
