"""What `test_training.py` runs under pytest in a process with 8 virtual CPU devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from small_training import IMAGES, begin

from jaxlab.parallel import make_mesh
from jaxlab.selfsupervised import Method, TregsConfig


def three_steps(scope):
    """Metrics of the mesh and of one device, step by step, and the parameters after them; images without randomness."""
    method = Method("mse", TregsConfig(beta=3.0, gamma=0.3, lam=0.05), scope=scope)
    _, state, step = begin(method, axis_name="data")
    rows, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.jit(
        jax.shard_map(
            step,
            mesh=make_mesh({"data": 8}),
            in_specs=(whole, rows, whole),
            out_specs=whole,
            check_vma=False,
        )
    )
    _, alone, lone_step = begin(method)
    lone_step = jax.jit(lone_step)
    found = []
    for number in range(3):
        state, metrics = sharded(state, IMAGES, jax.random.key(number))
        alone, expected = lone_step(alone, IMAGES, jax.random.key(number))
        found.append((metrics, expected))
    return found, (state.params, alone.params)


@pytest.fixture(scope="module")
def whole_batch():
    return three_steps("global")


def test_trees_over_all_devices_equal_one_device(whole_batch):
    found, (ours, theirs) = whole_batch
    for metrics, expected in found:
        for mine, other in zip(metrics, expected, strict=True):
            np.testing.assert_allclose(mine, other, rtol=2e-4, atol=1e-6)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_local_trees_are_those_of_each_devices_images(whole_batch):
    local, _ = three_steps("local")
    (metrics, _), (whole, _) = local[0], whole_batch[0][0]
    assert abs(float(metrics.length) - float(whole.length)) > 0.01
    np.testing.assert_allclose(metrics.radius, whole.radius, rtol=1e-4)
