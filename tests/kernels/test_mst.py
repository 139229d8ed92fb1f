"""Minimum spanning trees against closed forms, scipy, gudhi's persistence, a union-find, and torch's autograd."""

import gudhi
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering import holds_kernel
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from jaxlab.kernels.mst import Edges, edge_lengths, mst_edges, mst_length, mst_of_points, pairwise_sq_dists

FORMS = [("prim", None), ("boruvka", None), ("boruvka_tiled", "xla"), ("boruvka_tiled", "pallas")]
every_form = pytest.mark.parametrize(("algorithm", "implementation"), FORMS)
DENSE = ("prim", "boruvka")


def normal(n, d, seed=0):
    """The rows that the printed totals belong to: normalised in float32."""
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def grid(side):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(np.float32)


def simplex(d):
    """d + 1 points on the unit sphere of R^(d + 1), about their centre."""
    corners = np.eye(d + 1) - 1 / (d + 1)
    return (corners / np.linalg.norm(corners, axis=1, keepdims=True)).astype(np.float32)


def scipy_length(points):
    """In float64; scipy takes a zero for no edge, so that all edges are one longer there."""
    distances = squareform(pdist(np.asarray(points, np.float64)))
    return (minimum_spanning_tree(distances + 1).data - 1).sum()


def is_tree(edges, n):
    """n - 1 edges without a cycle."""
    root = list(range(n))

    def find(v):
        while root[v] != v:
            v = root[v]
        return v

    for a, b in zip(np.asarray(edges.a).tolist(), np.asarray(edges.b).tolist(), strict=True):
        if find(a) == find(b):
            return False
        root[find(a)] = find(b)
    return bool(np.all(edges.valid))


CLOSED_FORMS = {
    "unit square": (np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32), 3),
    "7 x 7 grid": (grid(7), 48),
    "triangle": (simplex(2), 3.4641016),
    "tetrahedron": (simplex(3), 4.8989795),
    "simplex of 17": (simplex(16), 23.3238076),
    "five points": (np.array([[0, 0], [3, 0], [3, 4], [0, 1.5], [-1, 0.5]], np.float32), 9.437372389076316),
    "line": (np.array([[2.0], [7.5], [-1.0], [3.0]], np.float32), 8.5),
    "one point": (np.ones((1, 3), np.float32), 0),
    "two points": (np.array([[0, 0], [3, 4]], np.float32), 5),
    "equal points": (np.ones((6, 2), np.float32), 0),
}


PLACES, DIMENSIONS = 64, 17


@pytest.fixture(scope="module")
def padded_tree():
    """Length and edges of a small cloud, padded with NaN and masked, so that all clouds share a program a form."""

    def program(algorithm, implementation):
        def run(points, mask):
            edges = mst_of_points(points, mask=mask, algorithm=algorithm, implementation=implementation)
            length = mst_length(points, mask=mask, algorithm=algorithm, implementation=implementation)
            return length, edges

        return jax.jit(run)

    programs = {form: program(*form) for form in FORMS}

    def tree(points, form):
        n, d = points.shape
        mask = np.arange(PLACES) < n
        padded = np.where(mask[:, None], 0, np.nan).astype(np.float32) * np.ones(DIMENSIONS, np.float32)
        padded[:n, :d] = points
        order = np.random.default_rng(n).permutation(PLACES)  # the points that take part lie anywhere
        length, edges = programs[form](padded[order], mask[order])
        kept = np.asarray(edges.valid)
        ends = [order[np.asarray(side)[kept]] for side in (edges.a, edges.b)]
        return float(length), Edges(*ends, np.ones(len(ends[0]), bool))

    return tree


@every_form
def test_closed_forms(algorithm, implementation, padded_tree):
    for name, (points, expected) in CLOSED_FORMS.items():
        length, edges = padded_tree(points, (algorithm, implementation))
        assert length == pytest.approx(expected, rel=1e-6), name
        assert len(edges.a) == len(points) - 1 and is_tree(edges, len(points)), name


@pytest.mark.parametrize(
    ("n", "d", "expected"), [(256, 128, 314.43368), (1024, 1024, 1373.70590), (4096, 256, 5116.78467)]
)
def test_printed_totals(n, d, expected):
    found = jax.jit(mst_length)(normal(n, d))
    assert float(found) == pytest.approx(expected, rel=1e-6)


@every_form
def test_lengths_are_scipys_where_products_give_the_distances(algorithm, implementation):
    points = normal(200, 40)
    edges = jax.jit(lambda x: mst_of_points(x, algorithm=algorithm, implementation=implementation))(points)
    assert is_tree(edges, 200)
    differences = (points[edges.a] - points[edges.b]).astype(np.float64)
    assert np.linalg.norm(differences, axis=1).sum() == pytest.approx(scipy_length(points), rel=1e-6)


def test_edges_are_the_deaths_of_components(double_precision):
    points = np.random.default_rng(0).standard_normal((64, 5))
    tree = gudhi.RipsComplex(points=points).create_simplex_tree(max_dimension=1)
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
    deaths = np.sort(tree.persistence_intervals_in_dimension(0)[:, 1])[:-1]
    assert deaths.sum() == pytest.approx(80.80464343021205, rel=1e-13)
    for algorithm in DENSE:
        edges = mst_of_points(jnp.asarray(points), algorithm=algorithm)
        np.testing.assert_allclose(np.sort(edge_lengths(jnp.asarray(points), edges)), deaths, rtol=1e-13)


@pytest.mark.parametrize("algorithm", DENSE)
def test_a_thousand_clouds_at_once_with_many_ties(algorithm):
    """Half of them on integer grids, with duplicates; scipy's Kruskal one by one."""
    rng = np.random.default_rng(0)
    n = 20
    clouds = rng.standard_normal((1000, n, 3)).astype(np.float32)
    clouds[::2] = rng.integers(0, 3, (500, n, 3))
    edges = jax.jit(jax.vmap(lambda x: mst_of_points(x, algorithm=algorithm)))(clouds)
    a, b, valid = (np.asarray(part) for part in edges)
    lengths = np.linalg.norm(
        np.take_along_axis(clouds, a[..., None], 1) - np.take_along_axis(clouds, b[..., None], 1), axis=-1
    ).sum(1, dtype=np.float64)
    np.testing.assert_allclose(lengths, [scipy_length(cloud) for cloud in clouds], rtol=1e-6)
    assert all(is_tree(Edges(*parts), n) for parts in zip(a, b, valid, strict=True))


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(1, 3), st.integers(0, 2**31))
def test_ties_close_no_cycles_in_any_form(padded_tree, n, d, seed):
    points = np.random.default_rng(seed).integers(0, 4, (n, d)).astype(np.float32)
    for form in FORMS:
        length, edges = padded_tree(points, form)
        assert length == pytest.approx(scipy_length(points), rel=1e-6)
        assert is_tree(edges, n)


def test_boruvka_breaks_cycles_that_unequal_roundings_close():
    """Each vertex sees the next one as a trifle nearer than the last, which no symmetric matrix can say."""
    n = 9
    weights = np.ones((n, n), np.float32)
    for i in range(n):
        weights[(i + 1) % n, i] -= 1e-6  # columns are what a vertex sees
    edges = mst_edges(jnp.asarray(weights), algorithm="boruvka")
    assert is_tree(edges, n)


@pytest.mark.parametrize("algorithm", DENSE)
def test_missing_edges_leave_scipys_forest(algorithm):
    rng = np.random.default_rng(3)
    weights = np.triu(rng.random((40, 40)), 1) * (rng.random((40, 40)) < 0.05)
    weights = (weights + weights.T).astype(np.float32)
    expected = np.sort(minimum_spanning_tree(weights).data)
    assert 10 < len(expected) < 39
    for missing in (np.inf, np.nan):
        edges = mst_edges(jnp.asarray(np.where(weights > 0, weights, missing)), algorithm=algorithm)
        kept = np.asarray(edges.valid)
        assert np.array_equal(np.sort(weights[edges.a, edges.b][kept]), expected)
        assert np.all(np.asarray(edges.a)[~kept] == 0) and np.all(np.asarray(edges.b)[~kept] == 0)


@pytest.mark.parametrize("d", [3, 40])
def test_squared_distances_are_those_of_differences(d):
    points = np.random.default_rng(d).normal(5, 1, (30, d)).astype(np.float32)
    found = np.asarray(jax.jit(pairwise_sq_dists)(points))
    expected = squareform(pdist(points.astype(np.float64))) ** 2
    np.testing.assert_allclose(found, expected, atol=1e-5 * d)
    assert found.min() >= 0


def test_gradient_is_torchs_on_scipys_tree(double_precision):
    points = np.random.default_rng(1).standard_normal((50, 20))
    leaf = torch.tensor(points, requires_grad=True)
    tree = minimum_spanning_tree(squareform(pdist(points))).tocoo()
    a, b = torch.as_tensor(tree.row.astype(np.int64)), torch.as_tensor(tree.col.astype(np.int64))
    for alpha in (1.0, 0.5, 2.0):
        leaf.grad = None
        total = ((leaf[a] - leaf[b]).norm(dim=1) ** alpha).sum()
        total.backward()
        value, gradient = jax.value_and_grad(lambda x, alpha=alpha: mst_length(x, alpha=alpha))(
            jnp.asarray(points)
        )
        assert float(value) == pytest.approx(total.item(), rel=1e-12)
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_gradient_is_a_finite_difference_and_obeys_its_sums(double_precision):
    rng = np.random.default_rng(2)
    points, direction = jnp.asarray(rng.standard_normal((2, 30, 4)))
    length = jax.jit(mst_length)
    gradient = jax.jit(jax.grad(mst_length))(points)
    slope = (length(points + 1e-6 * direction) - length(points - 1e-6 * direction)) / 2e-6
    assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(slope), rel=1e-6)
    np.testing.assert_allclose(jnp.sum(gradient, axis=0), 0, atol=1e-12)
    assert float(jnp.vdot(gradient, points)) == pytest.approx(float(length(points)), rel=1e-12)
    _, forward = jax.jit(lambda x, v: jax.jvp(mst_length, (x,), (v,)))(points, direction)
    assert float(forward) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_duplicates_and_masked_rows_have_finite_gradients(alpha):
    points = jnp.array([[0.0, 0], [0, 0], [3, 4], [jnp.nan, jnp.inf]])
    mask = jnp.array([True, True, True, False])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: mst_length(x, alpha=alpha, mask=mask)))(points)
    assert float(value) == pytest.approx(5**alpha)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[3] == 0)
    assert float(jnp.linalg.norm(gradient[2])) == pytest.approx(alpha * 5 ** (alpha - 1), rel=1e-6)


@pytest.mark.parametrize("algorithm", DENSE)
def test_nan_and_overflow_are_not_passed_over(algorithm):
    run = jax.jit(jax.value_and_grad(lambda x: mst_length(x, algorithm=algorithm)))
    points = normal(8, 20)
    assert np.all(np.isfinite(run(points)[1]))
    for wrong in (np.nan, np.inf, 1e30):
        points[3, 1] = wrong
        value, gradient = run(points)
        assert np.isnan(value) and not np.all(np.isfinite(gradient))


def test_invariances(double_precision):
    """Of permuted and cloned points, appended zeros, cloned coordinates, scale, and n <= d + 1 points in a ball."""
    length_of = jax.jit(lambda points, mask: mst_length(points, mask=mask))

    def length(cloud):
        padded = np.zeros((40, 12))
        padded[: cloud.shape[0], : cloud.shape[1]] = cloud
        return float(length_of(padded, np.arange(40) < len(cloud)))

    rng = np.random.default_rng(5)
    points = rng.standard_normal((20, 6))
    for other, factor in (
        (points[rng.permutation(20)], 1),
        (np.concatenate([points, points]), 1),
        (np.concatenate([points, np.zeros((20, 3))], axis=1), 1),
        (np.concatenate([points, points], axis=1), np.sqrt(2)),
        (2.5 * points, 2.5),
    ):
        assert length(other) == pytest.approx(factor * length(points), rel=1e-12)
    for n in (5, 30):
        cloud = rng.standard_normal((n, 6))
        assert length(cloud) <= 2 / n * pdist(cloud).sum() + 1e-12


def test_vmap_of_lengths_and_gradients_is_a_loop():
    clouds = jnp.asarray(np.random.default_rng(6).standard_normal((3, 30, 5)), jnp.float32)
    single = jax.jit(jax.value_and_grad(mst_length))
    for algorithm in DENSE:
        values, gradients = jax.jit(
            jax.vmap(jax.value_and_grad(lambda x, algorithm=algorithm: mst_length(x, algorithm=algorithm)))
        )(clouds)
        for i in range(3):
            value, gradient = single(clouds[i])
            assert float(values[i]) == pytest.approx(float(value), rel=1e-6)
            np.testing.assert_allclose(gradients[i], gradient, atol=1e-5)


def test_half_precision_points_are_measured_in_float32():
    points = jnp.asarray(normal(40, 20), jnp.bfloat16)
    found = jax.jit(mst_length)(points)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(scipy_length(points.astype(jnp.float32)), rel=1e-6)


def test_wrong_use_is_refused():
    square, cloud = jnp.zeros((4, 4)), jnp.zeros((4, 2))
    for call, message in (
        (lambda: mst_edges(cloud), r"weights has shape \(4, 2\)"),
        (lambda: mst_edges(jnp.zeros((0, 0))), r"weights has shape \(0, 0\)"),
        (lambda: mst_edges(square, algorithm="boruvka_tiled"), "algorithm is 'boruvka_tiled'"),
        (lambda: mst_edges(square, mask=jnp.ones(3, bool)), r"mask has shape \(3,\)"),
        (lambda: mst_of_points(jnp.zeros(4)), r"points has shape \(4,\)"),
        (lambda: mst_of_points(cloud, algorithm="kruskal"), "algorithm is 'kruskal'"),
        (lambda: mst_of_points(cloud, implementation="triton"), "implementation is 'triton'"),
        (lambda: mst_length(cloud, alpha=0), "alpha is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_kernel_refuses_float64(double_precision):
    with pytest.raises(ValueError, match="points has dtype float64"):
        mst_of_points(jnp.zeros((4, 2)), algorithm="boruvka_tiled", implementation="pallas")


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    shape = jax.ShapeDtypeStruct((300, 40), jnp.float32)
    for algorithm in (None, "prim", "boruvka", "boruvka_tiled"):
        run = jax.jit(jax.value_and_grad(lambda x, algorithm=algorithm: mst_length(x, algorithm=algorithm)))
        assert jax.export.export(run, platforms=[platform])(shape).platforms == (platform,)


def test_the_tiled_kernel_lowers_for_cuda():
    shape = jax.ShapeDtypeStruct((300, 40), jnp.float32)

    def run(points):
        return mst_length(points, algorithm="boruvka_tiled", implementation="pallas")

    assert holds_kernel(run, shape, platform="cuda")
