"""Affine views: matrices and resampling against SciPy, gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy import ndimage

from jaxlab.errors import InputError
from jaxlab.evidence import (
    Bound,
    Hyper,
    affine_matrices,
    affine_views,
    averaged,
    gram_leaves,
    resample,
    stochastic_evidence,
)
from jaxlab.evidence.affine import GENERATORS

IMAGE = np.random.default_rng(0).uniform(size=(7, 7, 2))


def test_matrices_are_exponentials(double_precision):
    coefficients = np.random.default_rng(1).normal(size=(3, 6)) * np.array([[0.1], [1], [2]])
    wanted = [scipy.linalg.expm(np.tensordot(c, GENERATORS, 1)) for c in coefficients]
    np.testing.assert_allclose(jax.jit(affine_matrices)(jnp.asarray(coefficients)), wanted, atol=1e-10)


def test_resampling_is_that_of_scipy(double_precision):
    run = jax.jit(resample)
    matrix = scipy.linalg.expm(np.tensordot([0.1, -0.2, 0.5, 0.1, -0.3, 0.2], GENERATORS, 1))
    # From (x, y) in [-1, 1] to rows and columns about the middle, 3 pixels a half width.
    flipped = matrix[:2, :2][::-1, ::-1]
    middle = np.array([3, 3])
    offset = middle + 3 * matrix[:2, 2][::-1] - flipped @ middle
    for channel in range(2):
        wanted = ndimage.affine_transform(IMAGE[..., channel], flipped, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(
            run(jnp.asarray(IMAGE), jnp.asarray(matrix))[..., channel], wanted, atol=1e-9
        )


@pytest.mark.parametrize(
    ("generator", "amount", "wanted"),
    [
        (2, np.pi / 2, np.rot90(IMAGE)),
        (0, 1 / 3, np.pad(IMAGE[:, 1:], ((0, 0), (0, 1), (0, 0)))),
        (1, 1 / 3, np.pad(IMAGE[1:], ((0, 1), (0, 0), (0, 0)))),
    ],
)
def test_generators_are_what_they_are_called(generator, amount, wanted, double_precision):
    matrix = jax.jit(affine_matrices)(jnp.zeros(6).at[generator].set(amount))
    found = jax.jit(resample)(jnp.asarray(IMAGE), matrix)
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_views_are_the_image_without_ranges_and_differ_between_examples_with_them():
    images = jnp.asarray(np.stack([IMAGE, IMAGE]), jnp.float32)
    views = jax.jit(
        lambda key, eta, flip: affine_views(key, images, eta, samples=3, flip=flip), static_argnums=2
    )
    still = views(jax.random.key(0), jnp.zeros(6), False)
    np.testing.assert_allclose(still, np.stack([images] * 3, 1), atol=1e-5)
    turned = np.asarray(views(jax.random.key(0), jnp.array([0, 0, 1.0, 0, 0, 0]), False)).reshape(6, -1)
    assert np.abs(turned[:, None] - turned).max(2)[np.triu_indices(6, 1)].min() > 1e-2
    mirrored = np.asarray(views(jax.random.key(1), jnp.zeros(6), True)).reshape(6, 7, 7, 2)
    kinds = {
        (bool(np.allclose(v, IMAGE, atol=1e-4)), bool(np.allclose(v, IMAGE[:, ::-1], atol=1e-4)))
        for v in mirrored
    }
    assert kinds == {(True, False), (False, True)}


def test_rotations_stop_at_half_a_turn():
    images = jnp.asarray(IMAGE[None], jnp.float32)
    slope = jax.jit(jax.grad(lambda eta: affine_views(jax.random.key(0), images, eta, samples=2).std()))
    assert slope(jnp.zeros(6).at[2].set(4.0))[2] == 0
    assert slope(jnp.zeros(6).at[2].set(2.0))[2] != 0


def model(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["W"]) @ params["V"]


def weights():
    rng = np.random.default_rng(2)
    return {"W": jnp.asarray(rng.normal(size=(98, 6)) / 4), "V": jnp.asarray(rng.normal(size=(6, 3)))}


def test_jacobians_are_averaged_over_views(double_precision):
    views = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 7, 7, 2)))
    params = weights()
    grams = jax.jit(
        lambda p: gram_leaves(averaged(model), p, views, jnp.broadcast_to(jnp.eye(3), (2, 3, 3)))
    )(params)
    each = jax.jit(jax.vmap(jax.jacrev(model), in_axes=(None, 1)))(params, views)
    for name, J in each.items():
        mean = np.asarray(J).mean(0).reshape(6, -1)
        np.testing.assert_allclose(grams[name][0], mean @ mean.T, rtol=1e-10)


def test_gradient_in_the_ranges_agrees_with_finite_differences(double_precision):
    images, labels, params = (
        jnp.asarray(np.random.default_rng(4).uniform(size=(3, 7, 7, 2))),
        jnp.array([0, 1, 2]),
        weights(),
    )
    hyper = Hyper(jnp.zeros(()), jnp.zeros(()))

    @jax.jit
    def value(eta):
        views = affine_views(jax.random.key(5), images, eta, samples=2)
        return stochastic_evidence(
            jax.random.key(0), averaged(model), params, views, labels, hyper, total=30, config=Bound()
        )[0]

    eta = jnp.array([0.11, 0.07, 0.4, 0.05, 0.03, 0.06])
    slope = jax.jit(jax.grad(value))(eta)
    for place in range(6):
        step = jnp.zeros(6).at[place].set(1e-6)
        wanted = float(value(eta + step) - value(eta - step)) / 2e-6
        assert float(slope[place]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="images has shape"):
        affine_views(jax.random.key(0), jnp.ones((3, 4, 4)), jnp.zeros(6), samples=1)
    with pytest.raises(InputError, match=r"and eta \(5,\)"):
        affine_views(jax.random.key(0), jnp.ones((3, 4, 4, 1)), jnp.zeros(5), samples=1)
    with pytest.raises(InputError, match="samples is 0"):
        affine_views(jax.random.key(0), jnp.ones((3, 4, 4, 1)), jnp.zeros(6), samples=0)
