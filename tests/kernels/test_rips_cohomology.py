"""Betti curves of Rips complexes against the reduction of the whole boundary matrix."""

from itertools import combinations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from test_z2_reduction import reduce_by_sets

from jaxlab.kernels.rips_cohomology import rips_edges, rips_h1_curve


def curve_by_reduction(weights, present, lines):
    """dim H_1 = edges that close a cycle less triangles that fill one, by the standard algorithm."""
    weights = np.where(np.logical_and.outer(present, present), weights, lines)
    edges = sorted(combinations(range(len(present)), 2), key=lambda e: weights[e])
    place = {e: i for i, e in enumerate(edges)}
    triangles = sorted(
        combinations(range(len(present)), 3), key=lambda t: max(weights[e] for e in combinations(t, 2))
    )
    change = np.zeros(lines + 1, int)
    for e, low in zip(edges, reduce_by_sets(edges), strict=True):
        if low < 0:
            change[min(weights[e], lines)] += 1
    boundary = [[place[e] for e in combinations(t, 2)] for t in triangles]
    for t, low in zip(triangles, reduce_by_sets(boundary), strict=True):
        if low >= 0:
            change[min(max(weights[e] for e in combinations(t, 2)), lines)] -= 1
    return np.cumsum(change[:-1])


def random_weights(n, lines, seed, *, bound):
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.integers(0, bound, (n, n)), 1)
    return weights + weights.T, rng.random(n) < 0.8


@pytest.mark.parametrize(("n", "lines", "bound"), [(6, 6, 7), (9, 40, 41), (12, 6, 7), (34, 300, 900)])
def test_curve_is_that_of_the_whole_complex(n, lines, bound):
    """No triangle inequality, many ties, points left out, edges that never enter, two words of bits."""
    samples = 3 if n > 20 else 20
    given = [random_weights(n, lines, seed, bound=bound) for seed in range(samples)]
    weights, present = (np.stack(a) for a in zip(*given, strict=True))
    weights = np.minimum(weights, lines)
    curve = jax.jit(jax.vmap(lambda w, there: rips_h1_curve(rips_edges(w), there, lines=lines, max_cols=256)))
    found, needed = curve(weights, present)
    assert needed.max() <= 256 and found.max() > 0
    for i in range(samples):
        assert np.array_equal(found[i], curve_by_reduction(weights[i], present[i], lines))


def test_classes_that_never_die_are_counted_to_the_end():
    """A square whose diagonals never enter, and one whose diagonals do."""
    weights = np.array([[0, 1, 9, 2], [1, 0, 2, 9], [9, 2, 0, 3], [2, 9, 3, 0]])
    assert (
        rips_h1_curve(rips_edges(weights), jnp.ones(4, bool), lines=9, max_cols=4)[0].tolist()
        == [0] * 3 + [1] * 6
    )
    weights[weights == 9] = 5
    assert (
        rips_h1_curve(rips_edges(weights), jnp.ones(4, bool), lines=9, max_cols=4)[0].tolist()
        == [0] * 3 + [1, 1] + [0] * 4
    )


def test_columns_beyond_the_room_are_reported():
    weights, _ = random_weights(12, 40, 0, bound=41)
    _, needed = rips_h1_curve(rips_edges(weights), jnp.ones(12, bool), lines=40, max_cols=1)
    assert needed > 1


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    shapes = (jax.ShapeDtypeStruct((9, 9), jnp.int32), jax.ShapeDtypeStruct((9,), jnp.bool))
    program = jax.jit(lambda w, there: rips_h1_curve(rips_edges(w), there, lines=7, max_cols=4))
    assert jax.export.export(program, platforms=[platform])(*shapes).platforms == (platform,)
