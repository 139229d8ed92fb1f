"""T-REGS against torch's autograd on scipy's tree, the simplex it is minimised by, and its coefficients' rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

import jaxlab.selfsupervised as selfsupervised
from jaxlab.errors import InputError
from jaxlab.selfsupervised import (
    TregsConfig,
    combine,
    mse_invariance,
    simplex_length,
    simplex_radius,
    treg,
    tregs,
    uniformity,
)


def torch_treg(points, gamma, lam):
    """The loss as the paper writes it, on scipy's tree."""
    tree = minimum_spanning_tree(squareform(pdist(points.detach().numpy()))).tocoo()
    a, b = (torch.as_tensor(side.astype(np.int64)) for side in (tree.row, tree.col))
    length = (points[a] - points[b]).norm(dim=1).sum() / len(points)
    sphere = ((points.norm(dim=1) - 1) ** 2).mean()
    return -gamma * length + lam * sphere


def views(n=40, d=24, seed=0):
    return np.random.default_rng(seed).standard_normal((2, n, d))


@pytest.fixture(scope="module")
def both():
    """Value and gradients of T-REGS of two views."""
    return jax.jit(
        jax.value_and_grad(lambda first, second: tregs(first, second, gamma=0.3, lam=0.05), (0, 1))
    )


def test_value_and_gradients_are_torchs(both, double_precision):
    first, second = (torch.tensor(view, requires_grad=True) for view in views())
    expected = torch_treg(first, 0.3, 0.05) + torch_treg(second, 0.3, 0.05)
    expected.backward()
    value, gradients = both(*views())
    assert float(value) == pytest.approx(expected.item(), rel=1e-12)
    for found, leaf in zip(gradients, (first, second), strict=True):
        np.testing.assert_allclose(found, leaf.grad.numpy(), atol=1e-14, rtol=1e-10)


def test_terms_make_the_loss_and_vmap_is_a_loop(double_precision):
    run = jax.jit(functools.partial(treg, gamma=0.3, lam=0.05))
    losses, terms = jax.jit(jax.vmap(functools.partial(treg, gamma=0.3, lam=0.05)))(views())
    for i, view in enumerate(views()):
        loss, own = run(view)
        assert float(loss) == pytest.approx(float(-0.3 * own.length + 0.05 * own.sphere), rel=1e-14)
        assert float(own.radius) == pytest.approx(np.linalg.norm(view, axis=1).mean(), rel=1e-14)
        np.testing.assert_allclose([losses[i], *(term[i] for term in terms)], [loss, *own], rtol=1e-12)


def test_views_have_trees_of_their_own():
    """Far apart or not, their distance does not count."""
    first, second = views().astype(np.float32)
    value = jax.jit(lambda a, b: tregs(a, b, lam=0.0))
    assert float(value(first, second + 100)) == pytest.approx(float(value(first, second)), rel=1e-4)


def test_the_objective_is_added_with_its_weight():
    first, second = views(8, 3).astype(np.float32)
    config = TregsConfig(beta=2.0, gamma=0.5, lam=0.1)
    expected = 2 * np.mean((first - second) ** 2) + float(tregs(first, second, gamma=0.5, lam=0.1))
    found = combine(mse_invariance(jnp.asarray(first), jnp.asarray(second)), first, second, config=config)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    usual = combine(jnp.float32(0.25), first, second)
    assert float(usual) == pytest.approx(2.5 + float(tregs(first, second, gamma=0.2, lam=8e-4)), rel=1e-6)


def test_points_at_the_origin_have_finite_gradients():
    points = jnp.zeros((3, 2)).at[2].set(jnp.array([3.0, 4.0]))
    (loss, terms), gradient = jax.value_and_grad(lambda x: treg(x, gamma=1.0, lam=1.0), has_aux=True)(points)
    assert (float(terms.length), float(terms.sphere)) == pytest.approx((5 / 3, (1 + 1 + 16) / 3))
    assert float(loss) == pytest.approx(18 / 3 - 5 / 3)
    assert np.all(np.isfinite(gradient))


def test_no_cloud_in_a_ball_has_a_longer_tree_than_the_simplex():
    for d in (2, 3, 16):
        assert simplex_length(d + 1) == pytest.approx(np.sqrt(2 * d * (d + 1)))
    rng = np.random.default_rng(0)
    clouds = rng.standard_normal((200, 9, 8))
    clouds *= 3 / np.linalg.norm(clouds, axis=-1).max(axis=1)[:, None, None]
    lengths = jax.jit(jax.vmap(selfsupervised.mst_length))(clouds.astype(np.float32))
    assert simplex_length(9, radius=3.0) > np.max(lengths) > 0.5 * simplex_length(9, radius=3.0)


def test_the_simplex_at_its_radius_is_stationary(double_precision):
    n, gamma, lam = 9, 0.2, 0.05
    corners = np.eye(n) - 1 / n
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    radii = simplex_radius(n, gamma=gamma, lam=lam) * np.array([0.999, 1.0, 1.001])
    loss = jax.jit(jax.vmap(lambda radius: treg(radius * corners, gamma=gamma, lam=lam)[0]))
    slopes = jax.jit(jax.vmap(jax.grad(lambda radius: treg(radius * corners, gamma=gamma, lam=lam)[0])))(
        radii
    )
    assert slopes[0] < -1e-6 and abs(slopes[1]) < 1e-12 and slopes[2] > 1e-6
    assert np.argmin(loss(radii)) == 1


def test_default_coefficients_alone_have_a_far_radius():
    assert simplex_radius(256, gamma=0.2, lam=8e-4) == pytest.approx(177, abs=0.5)


def test_uniformity_has_the_four_properties(double_precision):
    points = np.random.default_rng(4).standard_normal((20, 6))
    value = jax.jit(uniformity)
    own = float(value(points))
    assert own == pytest.approx(-float(selfsupervised.mst_length(jnp.asarray(points))) / np.sqrt(7 / 3))
    assert float(value(points[::-1])) == pytest.approx(own, rel=1e-12)
    assert float(value(np.concatenate([points, points]))) == pytest.approx(own, rel=1e-12)
    assert float(value(np.concatenate([points, points], axis=1))) < own
    assert float(value(np.concatenate([points, np.zeros((20, 2))], axis=1))) < own


def test_zeroed_coordinates_shorten_the_tree():
    """The paper's measure of dimensional collapse, at a smaller size."""
    points = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    kept = np.arange(64)[None] >= 64 * np.linspace(0, 0.9, 7)[:, None]
    lengths = jax.jit(jax.vmap(selfsupervised.mst_length))(points * kept[:, None])
    assert np.all(np.diff(lengths) < 0)


def descend(start, steps, **weights):
    """Gradient descent of T-REG: loss, points."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def step(state, _):
        points, moments = state
        (loss, _), gradient = jax.value_and_grad(lambda x: treg(x, **weights), has_aux=True)(points)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(points, updates), moments), loss

    (points, _), losses = jax.jit(
        lambda start: jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    )(start)
    return float(losses[-1]), np.asarray(points, np.float64)


def test_points_of_a_curve_spread_over_the_sphere():
    """More evenly than points drawn at random from it, by scipy's tree of their directions."""
    rng = np.random.default_rng(0)
    turn = np.linspace(0, 2 * np.pi, 256)
    curve = np.stack([np.cos(turn), np.sin(turn), 0.3 * np.sin(3 * turn)], axis=1)
    curve += 1e-3 * rng.standard_normal(curve.shape)
    _, points = descend(jnp.asarray(curve, jnp.float32), 1500, gamma=0.2, lam=0.2)

    def length_of_directions(cloud):
        unit = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
        return minimum_spanning_tree(squareform(pdist(unit))).sum()

    at_random = [length_of_directions(rng.standard_normal((256, 3))) for _ in range(20)]
    assert length_of_directions(curve) < 0.5 * min(at_random)
    assert length_of_directions(points) > 1.1 * max(at_random)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "radius", "loss", "spread"), [(64, 1.70156, -1.89479, 0.018), (256, 1.70572, -1.90756, 0.028)]
)
def test_descent_from_a_spot_ends_near_the_simplex(n, radius, loss, spread):
    assert simplex_radius(n, gamma=1.0, lam=1.0) == pytest.approx(radius, abs=1e-5)
    start = jnp.zeros((n, n)).at[:, 0].set(1) + 1e-3 * jax.random.normal(jax.random.key(0), (n, n))
    found, points = descend(start, 3000, gamma=1.0, lam=1.0)
    norms = np.linalg.norm(points, axis=1)
    assert norms.mean() == pytest.approx(radius, abs=0.005)
    directions = points / norms[:, None]
    cosines = (directions @ directions.T)[np.triu_indices(n, 1)]
    assert cosines.mean() == pytest.approx(-1 / (n - 1), abs=1e-4)
    assert cosines.std() < 1.5 * spread
    assert found == pytest.approx(loss, abs=2e-3)


def test_coefficients_that_collapse_are_warned_of():
    for wrong in ({"beta": 0.1}, {"lam": 0.5}):
        with pytest.warns(UserWarning, match="the paper reports collapse"):
            TregsConfig(**wrong)
    with pytest.raises(InputError, match="beta is -1"):
        TregsConfig(beta=-1)
    with pytest.raises(InputError, match="gamma is nan"):
        TregsConfig(gamma=float("nan"))
    with pytest.raises(InputError, match="lam is -1"):
        TregsConfig(lam=-1)
    with pytest.raises(InputError, match="alpha is 0; it must be a finite number > 0"):
        TregsConfig(alpha=0)


def test_wrong_use_is_named():
    cloud = jnp.zeros((4, 2))
    for call, message in (
        (lambda: treg(cloud[:1]), r"embeddings has shape \(1, 2\); it must be \(n, d\) with n >= 2"),
        (lambda: treg(cloud[0]), r"embeddings has shape \(2,\)"),
        (lambda: treg(cloud, gamma=-1), "gamma is -1; it must be a finite number >= 0"),
        (lambda: treg(cloud, lam=-1), "lam is -1"),
        (lambda: treg(cloud, alpha=0), "alpha is 0"),
        (lambda: tregs(cloud, cloud[:3]), r"second has shape \(3, 2\); it must be that of first, \(4, 2\)"),
        (lambda: uniformity(cloud[:1]), r"embeddings has shape \(1, 2\)"),
        (lambda: simplex_length(1), "n is 1"),
        (lambda: simplex_length(3, radius=-1), "radius is -1"),
        (lambda: simplex_radius(1, gamma=1, lam=1), "n is 1"),
        (lambda: simplex_radius(3, gamma=-1, lam=1), "gamma is -1"),
        (lambda: simplex_radius(3, gamma=1, lam=0), "lam is 0"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_exports_are_there():
    assert all(hasattr(selfsupervised, name) for name in selfsupervised.__all__)
