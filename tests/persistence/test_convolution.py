"""Convolutions of signed measures against sums over atoms in NumPy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.persistence.convolution import convolve, convolve_at
from jaxlab.persistence.grids import Grid
from jaxlab.persistence.measures import DenseMeasure, SparseMeasure, sparsify

pytestmark = pytest.mark.usefixtures("double_precision")


def random_measure(p, seed):
    rng = np.random.default_rng(seed)
    coords = tuple(jnp.asarray(np.sort(rng.uniform(0, 1, 3 + i))) for i in range(p))
    weights = rng.integers(-2, 3, tuple(len(lines) for lines in coords))
    return DenseMeasure(jnp.asarray(weights), Grid(coords))


def out_grid(p):
    return Grid(tuple(jnp.linspace(-0.2, 1.2, 4 + i) for i in range(p)))


def image_of(measure, grid, bandwidths):
    """sum_j w_j K(z - x_j), atom by atom."""
    mesh = np.stack(np.meshgrid(*map(np.asarray, grid.coords), indexing="ij"), -1)
    image = np.zeros(mesh.shape[:-1])
    for index in np.argwhere(np.asarray(measure.weights)):
        atom = np.array([lines[i] for lines, i in zip(measure.grid.coords, index, strict=True)])
        square = (((mesh - atom) / bandwidths) ** 2).sum(-1)
        image += float(measure.weights[tuple(index)]) * np.exp(-square / 2)
    return image


@settings(max_examples=8)
@given(st.sampled_from([1, 2, 3]), st.integers(0, 2**31))
def test_image_is_the_sum_over_atoms(p, seed):
    measure, grid = random_measure(p, seed), out_grid(p)
    bandwidths = np.random.default_rng(seed).uniform(0.1, 0.5, p)
    expected = image_of(measure, grid, bandwidths)
    np.testing.assert_allclose(convolve(measure, grid, bandwidth=bandwidths), expected, atol=1e-12)
    atoms, _ = sparsify(measure, max_atoms=measure.weights.size + 2)
    np.testing.assert_allclose(convolve(atoms, grid, bandwidth=bandwidths), expected, atol=1e-12)
    points = np.stack(np.meshgrid(*grid.coords, indexing="ij"), -1).reshape(-1, p)
    for one in (measure, atoms):
        found = convolve_at(one, jnp.asarray(points), jnp.diag(jnp.asarray(bandwidths**-2.0)))
        np.testing.assert_allclose(found, expected.reshape(-1), atol=1e-12)


def test_learned_precisions_turn_the_kernel():
    measure = SparseMeasure(jnp.asarray([[0.2, 0.7], [0.5, 0.1]]), jnp.asarray([2, -1]), jnp.ones(2, bool))
    root = np.array([[2.0, 1.0], [0.5, 3.0]])
    points = np.random.default_rng(0).uniform(size=(5, 2))
    expected = [
        sum(
            w * np.exp(-0.5 * np.sum((root @ (z - x)) ** 2))
            for x, w in zip(np.asarray(measure.points), (2, -1), strict=True)
        )
        for z in points
    ]
    found = convolve_at(measure, jnp.asarray(points), jnp.asarray(root.T @ root))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_normalisations_divide_by_the_number_of_atoms():
    measure, grid, b = random_measure(2, 3), out_grid(2), 0.3
    plain, atoms = convolve(measure, grid, bandwidth=b), np.count_nonzero(measure.weights)
    width = b * np.sqrt(2 * np.pi)
    for name, divisor in (("multipers-2.3", atoms * width), ("kde", atoms * width**2)):
        image = convolve(measure, grid, bandwidth=b, normalization=name)
        np.testing.assert_allclose(image, plain / divisor, rtol=1e-12)


def test_gradients_are_finite_differences_and_padding_has_none():
    lines = jnp.asarray([0.1, 0.4, 0.8, jnp.inf])
    weights = jnp.asarray([[1, 0, -1, 0], [0, 2, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 0]])

    def loss(lines, bandwidth):
        image = convolve(DenseMeasure(weights, Grid((lines, lines))), out_grid(2), bandwidth=bandwidth)
        return jnp.sum(jnp.sin(image))

    gradient, of_bandwidth = jax.jit(jax.grad(loss, argnums=(0, 1)))(lines, 0.3)
    assert gradient[-1] == 0
    h = 1e-6
    for i in range(3):
        step = jnp.zeros(4).at[i].set(h)
        slope = (loss(lines + step, 0.3) - loss(lines - step, 0.3)) / (2 * h)
        assert float(gradient[i]) == pytest.approx(float(slope), rel=1e-6)
    slope = (loss(lines, 0.3 + h) - loss(lines, 0.3 - h)) / (2 * h)
    assert float(of_bandwidth) == pytest.approx(float(slope), rel=1e-6)


def test_batches_are_images_one_by_one():
    measures = [random_measure(2, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *measures)
    images = jax.jit(jax.vmap(lambda one: convolve(one, out_grid(2), bandwidth=0.2)))(stacked)
    for image, measure in zip(images, measures, strict=True):
        np.testing.assert_allclose(image, image_of(measure, out_grid(2), 0.2), atol=1e-12)


def test_wrong_use_is_named():
    measure = random_measure(2, 0)
    with pytest.raises(InputError, match="bandwidth is 0"):
        convolve(measure, out_grid(2), bandwidth=0.0)
    with pytest.raises(InputError, match="bandwidth has shape"):
        convolve(measure, out_grid(2), bandwidth=jnp.ones(3))
    with pytest.raises(InputError, match="normalization is 'mean'"):
        convolve(measure, out_grid(2), bandwidth=1.0, normalization="mean")
    with pytest.raises(InputError, match="grid has 3 parameters"):
        convolve(measure, out_grid(3), bandwidth=1.0)
    with pytest.raises(InputError, match="precision has shape"):
        convolve_at(measure, jnp.zeros((1, 2)), jnp.eye(3))
