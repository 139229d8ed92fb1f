"""Minimum spanning trees of embeddings 15 times as fast as SciPy's; T-REGS 4 times torch with SciPy; a tenth of a step.

Trees from the matrix of distances of normal points on the sphere in 128 dimensions, n = 256 to 4096, beside
`scipy.sparse.csgraph.minimum_spanning_tree`, and 64 of them at once. Value and gradient of T-REGS for one view of 512
x 1024, beside torch: distances by `cdist`, the tree by SciPy, its edges gathered and differentiated by autograd. The
cost that T-REGS adds to a training step: batch 256 of 28 x 28 images, 1024 dimensions, the small network and ResNet-18.
All in turns in one process, results equal; wall and CPU time. A turn is as many calls as fill 0.3 s, at least one,
after one that does not count: a call of a tenth of a millisecond is not measured in the caches that SciPy left.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from benchmarks import harness
from jaxlab.kernels.mst import edge_lengths, mst_edges
from jaxlab.selfsupervised import (
    ConvNet,
    Method,
    Networks,
    Perceptron,
    ResNet18,
    Views,
    init_training,
    train_step,
    treg,
)

_TREE_TARGET = 15.0
_LOSS_TARGET = 4.0
_MANY_TARGET = 20.0
_OVERHEAD_PERCENT = 10.0
_TURN_S = 0.3
_MANY_POINTS = 2048


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of trees, of the loss, and of a step."""
    repetitions = 2 if quick else 7
    rows = []
    for n in (256, 512) if quick else (256, 512, 1024, 2048, 4096):
        rows += _tree(n, repetitions)
    rows += _many(8 if quick else 64, repetitions)
    rows += _loss(128 if quick else 512, 64 if quick else 1024, repetitions)
    for backbone in ("cnn",) if quick else ("cnn", "resnet18"):
        rows += _step(backbone, 32 if quick else 256, repetitions)
    return rows


def _points(n: int, d: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _tree(n: int, repetitions: int) -> list[dict[str, Any]]:
    points = _points(n, 128)
    distances = squareform(pdist(points)).astype(np.float32)
    on_device, rows = jnp.asarray(distances), jnp.asarray(points)
    ours = jax.jit(mst_edges)
    harness.require_equal(
        [edge_lengths(rows, ours(on_device)).sum() / n], [minimum_spanning_tree(distances).sum() / n], 1e-5
    )
    timings = harness.compare(
        {"ours": lambda: ours(on_device), "scipy": lambda: minimum_spanning_tree(distances)},
        repetitions if n < _MANY_POINTS else 3,
        turn_s=_TURN_S,
    )
    return harness.cpu_rows(f"tree of {n} points from their distances", timings, _TREE_TARGET)


def _many(clouds: int, repetitions: int) -> list[dict[str, Any]]:
    distances = np.stack([squareform(pdist(_points(256, 128, seed))) for seed in range(clouds)]).astype(
        np.float32
    )
    on_device, ours = jnp.asarray(distances), jax.jit(jax.vmap(mst_edges))
    timings = harness.compare(
        {"ours": lambda: ours(on_device), "scipy": lambda: [minimum_spanning_tree(own) for own in distances]},
        repetitions,
        turn_s=_TURN_S,
    )
    return harness.cpu_rows(f"trees of {clouds} x 256 points", timings, _MANY_TARGET)


def _loss(n: int, d: int, repetitions: int) -> list[dict[str, Any]]:
    points = _points(n, d)
    rows, leaf = jnp.asarray(points), torch.tensor(points, requires_grad=True)
    ours = jax.jit(jax.value_and_grad(lambda z: treg(z, gamma=0.2, lam=8e-4)[0]))

    def theirs() -> tuple[float, np.ndarray]:
        with torch.no_grad():
            distances = torch.cdist(leaf, leaf).numpy()
        tree = minimum_spanning_tree(distances).tocoo()
        a, b = (torch.as_tensor(side.astype(np.int64)) for side in (tree.row, tree.col))
        length = (leaf[a] - leaf[b]).norm(dim=1).sum() / n
        loss = -0.2 * length + 8e-4 * ((leaf.norm(dim=1) - 1) ** 2).mean()
        leaf.grad = None
        loss.backward()
        return loss.item(), leaf.grad.numpy()

    harness.require_equal(jax.tree.leaves(ours(rows)), list(theirs()), 1e-5)
    timings = harness.compare(
        {"ours": lambda: ours(rows), "torch and scipy": theirs}, repetitions, turn_s=_TURN_S
    )
    return harness.cpu_rows(f"value and gradient of T-REGS, {n} x {d}", timings, _LOSS_TARGET)


def _step(backbone: str, batch: int, repetitions: int) -> list[dict[str, Any]]:
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(batch, 28, 28, 1)).astype(np.float32))
    steps, optimizer = {}, optax.sgd(0.01)
    for name, method in (("ours", Method("mse")), ("without T-REGS", Method("mse", None))):
        rngs = nnx.Rngs(0)
        encoder = ConvNet(rngs=rngs) if backbone == "cnn" else ResNet18(channels=1, rngs=rngs)
        width = 1024 if batch > 32 else 64
        projector = Perceptron((encoder.features, width, width, width), rngs=rngs)
        graph, state = init_training(Networks(encoder, projector), optimizer, method)
        step = jax.jit(train_step(graph, optimizer, method, Views(), steps=100))
        steps[name] = lambda step=step, state=state: step(state, images, jax.random.key(0))[1]
    timings = harness.compare(steps, repetitions if backbone == "cnn" else 3)
    rows = harness.cpu_rows(f"training step, {backbone}, batch {batch}", timings)
    plain = timings["without T-REGS"]
    for row in rows:
        timing = timings[row["who"]]
        row["percent_over_without"] = round(100 * (timing.median / plain.median - 1), 1)
        row["cpu_percent_over_without"] = round(100 * (np.median(timing.cpu) / np.median(plain.cpu) - 1), 1)
        if row["who"] == "ours":
            row["target_percent"] = _OVERHEAD_PERCENT
    return rows
