"""Divergences of allele frequencies against scipy and their formulas in float64."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cosine, jensenshannon

from jaxlab.errors import InputError
from jaxlab.phylogeny.divergences import divergence


@pytest.fixture(scope="module")
def shares():
    """With alleles that a model never gives."""
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(5), (4, 6)) * (rng.random((4, 6, 5)) < 0.7) + 1e-9
    values[values < 1e-6] = 0
    values[..., 0] += 0.1
    return values / values.sum(-1, keepdims=True)


def affinity(p, q):
    return np.sqrt(p * q).sum(-1)


FORMULAS = {
    "jensen_shannon": lambda p, q: np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]),
    "cosine": lambda p, q: np.mean([cosine(a, b) for a, b in zip(p, q, strict=True)]),
    "hellinger": lambda p, q: np.sqrt(np.maximum(1 - affinity(p, q), 0)).mean(),
    "chord": lambda p, q: 2 / np.pi * np.sqrt(np.maximum(2 - 2 * affinity(p, q), 0)).mean(),
    "reynolds": lambda p, q: np.sqrt(((p - q) ** 2).sum() / (2 * (1 - (p * q).sum(-1)).sum())),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_divergence_is_its_formula_in_double_precision(shares, kind):
    found = np.asarray(jax.jit(lambda p: divergence(p, kind=kind))(shares.astype(np.float32)))
    expected = np.array([[FORMULAS[kind](p, q) for q in shares] for p in shares])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_certain_and_equal_models_are_at_no_distance():
    certain = np.zeros((2, 3, 2), np.float32)
    certain[..., 0] = 1
    for kind in FORMULAS:
        assert np.asarray(divergence(certain, kind=kind)).tolist() == [[0, 0], [0, 0]]


def test_an_unknown_kind_is_refused(shares):
    with pytest.raises(InputError, match="kind is 'euclid'; it must be one of jensen_shannon"):
        divergence(shares, kind="euclid")
