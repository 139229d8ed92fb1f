"""Betti curves of Rips complexes against the reduction of the whole boundary matrix."""

import functools
from itertools import combinations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import holds_kernel
from test_z2_reduction import reduce_by_sets

from jaxlab.kernels import rips_cohomology_pallas
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


def curve_of(weights, present, lines, max_cols):
    program = jax.jit(lambda w, p: rips_h1_curve(rips_edges(w), p, lines=lines, max_cols=max_cols))
    return program(weights, present)


def test_classes_that_never_die_are_counted_to_the_end():
    """A square whose diagonals never enter, and one whose diagonals do."""
    never = np.array([[0, 1, 9, 2], [1, 0, 2, 9], [9, 2, 0, 3], [2, 9, 3, 0]])
    curve = functools.partial(curve_of, present=np.ones(4, bool), lines=9, max_cols=4)
    assert curve(never)[0].tolist() == [0] * 3 + [1] * 6
    assert curve(np.where(never == 9, 5, never))[0].tolist() == [0] * 3 + [1, 1] + [0] * 4


def test_columns_beyond_the_room_are_reported():
    weights, _ = random_weights(12, 40, 0, bound=41)
    assert curve_of(weights, np.ones(12, bool), 40, 1)[1] > 1


def test_kernel_gives_the_same_integers(monkeypatch):
    """Interpreted, a slice a program, columns of several chunks; against the reduction and the plain version."""
    n, lines, slices = 34, 300, 2
    monkeypatch.setattr(rips_cohomology_pallas, "_CHUNK", 64)
    weights, _ = random_weights(n, lines, n, bound=900)
    present = np.random.default_rng(n).random((slices, n)) < 0.8

    def curves(weights, present, implementation):
        edges = rips_edges(weights)
        return jax.vmap(
            lambda there: rips_h1_curve(edges, there, lines=lines, max_cols=64, implementation=implementation)
        )(present)

    program = jax.jit(curves, static_argnums=2)
    weights = np.minimum(weights, lines)
    plain, found = (program(weights, present, name) for name in ("xla", "pallas"))
    assert np.array_equal(found[0], plain[0]) and np.array_equal(found[1], plain[1]) and found[0].any()
    for i in range(slices):
        assert np.array_equal(found[0][i], curve_by_reduction(weights, present[i], lines))


def test_unknown_implementations_and_too_large_columns_are_refused():
    with pytest.raises(ValueError, match="implementation = 'cuda'"):
        rips_h1_curve(None, None, lines=1, max_cols=1, implementation="cuda")
    n, edges, room = 300, 300 * 299 // 2, 6000
    sizes = [(edges, 2), (n, n), (n,), (edges,), (), (room,), ()]
    given = [jax.ShapeDtypeStruct(size, jnp.int32) for size in sizes]
    with pytest.raises(ValueError, match="300 points and 6000 columns"):
        jax.eval_shape(rips_cohomology_pallas.reduce_columns, *given)


def lowered(implementation, n, max_cols):
    """A program of several slices, and what it takes."""

    def program(weights, present):
        edges = rips_edges(weights)
        return jax.vmap(
            lambda there: rips_h1_curve(
                edges, there, lines=7, max_cols=max_cols, implementation=implementation
            )
        )(present)

    return program, (jax.ShapeDtypeStruct((n, n), jnp.int32), jax.ShapeDtypeStruct((5, n), jnp.bool))


@pytest.mark.parametrize(
    ("platform", "implementation"),
    [("cpu", "xla"), ("cuda", "xla"), ("tpu", "xla"), ("cpu", "pallas"), ("tpu", "pallas")],
)
def test_lowers_for_every_platform(platform, implementation):
    program, shapes = lowered(implementation, 9, 4)
    assert jax.export.export(jax.jit(program), platforms=[platform])(*shapes).platforms == (platform,)


@pytest.mark.parametrize(("n", "max_cols"), [(3, 1), (50, 64), (200, 20)])
def test_kernel_lowers_for_nvidia_gpus(n, max_cols):
    program, shapes = lowered("pallas", n, max_cols)
    assert holds_kernel(program, *shapes, platform="cuda")
