"""Whitening and FastICA against scikit-learn, on what is left of a matrix."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA, FastICA

from jaxlab.errors import InputError
from jaxlab.phylogeny.independent_components import fast_ica, whitening

ROWS = np.ones(60, bool)
ROWS[[0, 7, 30]] = False
COLUMNS = np.ones(9, bool)
COLUMNS[[0, 4]] = False


@pytest.fixture(scope="module")
def data():
    """Mixed from sources that are not Gaussian."""
    rng = np.random.default_rng(0)
    return rng.laplace(size=(60, 9)) @ rng.normal(size=(9, 9)) + 3


def test_whitening_is_that_of_scikit_learn_without_the_rows_and_columns_left_out(data, double_precision):
    projection = jax.jit(lambda d: whitening(d, ROWS, COLUMNS, components=4))(data)
    left = data[ROWS][:, COLUMNS]
    expected = PCA(4, whiten=True, svd_solver="full").fit(left).transform(data[:, COLUMNS])
    found = np.asarray(projection(data)) * np.sqrt(56 / 57)  # it divides by one less than the rows
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-10)
    assert not np.asarray(projection.axes)[:, ~COLUMNS].any()


def test_independent_components_are_those_of_scikit_learn_from_the_same_start(data, double_precision):
    start = np.random.default_rng(1).normal(size=(4, 4))
    projection = jax.jit(lambda s, d: fast_ica(s, d, ROWS, COLUMNS))(start, data)
    theirs = FastICA(4, w_init=start, whiten="unit-variance").fit(data[ROWS][:, COLUMNS])
    np.testing.assert_allclose(projection(data), theirs.transform(data[:, COLUMNS]), atol=1e-9)


def test_components_are_white_and_independent_of_the_batch(data):
    start = np.random.default_rng(2).normal(size=(3, 4, 4)).astype(np.float32)
    single = data.astype(np.float32)
    many = jax.jit(jax.vmap(lambda s: fast_ica(s, single, ROWS, COLUMNS)))(start)
    one = fast_ica(start[1], single, ROWS, COLUMNS)
    np.testing.assert_allclose(many.axes[1], one.axes, atol=1e-4)
    values = np.asarray(one(single))[ROWS]
    np.testing.assert_allclose(values.T @ values / 57, np.eye(4), atol=1e-4)


@pytest.mark.parametrize("components", [0, 9])
def test_more_components_than_columns_are_refused(data, components):
    with pytest.raises(InputError, match=rf"components is {components}; it must be in 1..8"):
        whitening(data, ROWS, COLUMNS, components=components)
