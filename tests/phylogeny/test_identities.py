"""Nei's identity against dictionary loops, exact enumeration, and a table worked out by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.phylogeny.alleles import frequencies
from jaxlab.phylogeny.identities import (
    distance,
    gene_identities,
    jackknife_errors,
    mean_gene_similarity,
    require_related,
    similarity,
)
from jaxlab.phylogeny.newick import from_newick
from jaxlab.phylogeny.trees import neighbor_joining_tree, robinson_foulds

CATS = ["Persian", "Siamese", "MaineCoon", "Bengal", "BritishSH"]
"""Frequencies of the alleles of three genes: colour, length, and one with two alleles."""
SHARES = np.array(
    [
        [[0.05, 0.85, 0.10], [0.90, 0.10, 0.00], [0.95, 0.05, 0]],
        [[0.98, 0.02, 0.00], [0.00, 0.10, 0.90], [0.15, 0.85, 0]],
        [[0.05, 0.60, 0.35], [0.00, 0.15, 0.85], [0.30, 0.70, 0]],
        [[0.05, 0.55, 0.40], [0.10, 0.75, 0.15], [0.25, 0.75, 0]],
        [[0.03, 0.90, 0.07], [0.15, 0.80, 0.05], [0.85, 0.15, 0]],
    ]
)
SIMILARITIES = [0.1047, 0.4182, 0.4666, 0.7707, 0.6927, 0.4581, 0.1803, 0.7516, 0.5423, 0.7601]
DISTANCES = [2.2566, 0.8717, 0.7623, 0.2604, 0.3672, 0.7807, 1.7134, 0.2856, 0.6119, 0.2743]
UPPER = np.triu_indices(5, 1)


@pytest.fixture(scope="module")
def counts():
    """Of 6 models that descend from one another, at 9 genes with up to 5 alleles and 8 probes."""
    rng = np.random.default_rng(0)
    return rng.multinomial(8, rng.dirichlet(np.ones(5), (6, 9))).astype(np.float32)


def dictionary_similarity(counts):
    """The reference's kind of loop, in float64."""
    models, genes, _ = counts.shape
    tables = [
        [{a: c / row.sum() for a, c in enumerate(row) if c} for row in model]
        for model in counts.astype(float)
    ]

    def shared(x, y):
        return sum(p * tables[y][g].get(a, 0) for g in range(genes) for a, p in tables[x][g].items())

    own = [shared(x, x) for x in range(models)]
    return np.array(
        [[shared(x, y) / math.sqrt(own[x] * own[y]) for y in range(models)] for x in range(models)]
    )


def test_cats_have_the_table_worked_out_by_hand_to_four_decimals():
    found = similarity(gene_identities(jnp.asarray(SHARES), estimator="exact"))
    np.testing.assert_allclose(np.asarray(found)[UPPER], SIMILARITIES, atol=5.1e-5)
    apart = distance(found)
    np.testing.assert_allclose(np.asarray(apart)[UPPER], DISTANCES, atol=5.1e-5)
    tree = neighbor_joining_tree(np.asarray(apart), CATS)
    known = from_newick(
        "((BritishSH:-.08496,Persian:.34537):.54406,(MaineCoon:-.25096,Siamese:.61818):.50553,Bengal:-.15597);"
    )
    assert robinson_foulds(tree, known) == 0
    for name in CATS:
        of_known, of_tree = (one.lengths[one.taxa.index(name)] for one in (known, tree))
        assert of_tree == pytest.approx(of_known, abs=1.1e-5)


def test_plugin_similarity_is_that_of_a_dictionary_loop(counts):
    found = jax.jit(lambda c: similarity(gene_identities(c, estimator="plugin")))(counts)
    np.testing.assert_allclose(found, dictionary_similarity(counts), atol=2e-7)


def test_unbiased_identities_have_the_true_mean_over_all_samples(double_precision):
    """All samples of 3 probes of two models at one gene of 2 alleles, each with its probability."""
    chances = np.array([[0.7, 0.3], [0.2, 0.8]])
    samples = np.array(list(itertools.product(range(2), repeat=3)))
    tables = np.stack([(samples == a).sum(1) for a in range(2)], -1)
    pairs = np.array([[x, y] for x in tables for y in tables])[:, :, None]
    weights = np.prod(chances[0] ** pairs[:, 0, 0] * chances[1] ** pairs[:, 1, 0], axis=-1)
    assert weights.sum() == pytest.approx(1)
    means = {
        kind: np.tensordot(
            weights, jax.vmap(lambda c, k=kind: gene_identities(c, estimator=k))(pairs * 1.0)[:, 0], 1
        )
        for kind in ("unbiased", "plugin")
    }
    np.testing.assert_allclose(means["unbiased"], chances @ chances.T, atol=1e-12)
    # The plug-in's own identity is too large by (1 - sum p^2) / N.
    own = (chances**2).sum(1)
    np.testing.assert_allclose(np.diagonal(means["plugin"]), own + (1 - own) / 3, atol=1e-12)


@pytest.mark.parametrize("probes", [8, 32])
def test_two_samples_of_one_model_look_alike_by_the_unbiased_estimator_alone(probes):
    """Within 3 standard errors of 1 over 300 repetitions, while the plug-in lies far below."""
    rng = np.random.default_rng(probes)
    model = rng.dirichlet(np.full(12, 0.5), 24)
    drawn = np.stack([rng.multinomial(probes, model, (300, 24)) for _ in range(2)], 1).astype(np.float32)
    values = {
        kind: np.asarray(
            jax.jit(jax.vmap(lambda c, k=kind: similarity(gene_identities(c, estimator=k))[0, 1]))(drawn)
        )
        for kind in ("unbiased", "plugin")
    }
    error = {kind: found.std() / math.sqrt(300) for kind, found in values.items()}
    # The ratio of sums has a bias of its own, of second order: about the variance of S.
    assert abs(values["unbiased"].mean() - 1) < 3 * error["unbiased"] + values["unbiased"].var()
    assert values["plugin"].mean() < 1 - 10 * error["plugin"]


def test_weights_are_repeated_genes(counts):
    identities = gene_identities(counts)
    weights = np.array([0, 1, 2, 0, 3, 1, 1, 0, 1], np.float32)
    repeated = similarity(jnp.repeat(identities, weights.astype(int), axis=0, total_repeat_length=9))
    np.testing.assert_allclose(similarity(identities, weights), repeated, rtol=1e-5)


def test_mean_over_genes_counts_every_gene_the_same(counts):
    shares = np.asarray(frequencies(counts), float)
    norms = np.linalg.norm(shares, axis=-1)
    cosines = np.einsum("mga,nga->gmn", shares, shares) / norms.T[:, :, None] / norms.T[:, None]
    found = mean_gene_similarity(gene_identities(counts, estimator="plugin"))
    np.testing.assert_allclose(found, cosines.mean(0), atol=1e-6)


def test_jackknife_is_the_loop_that_leaves_each_gene_out(counts):
    identities = gene_identities(counts, estimator="plugin")
    without = np.stack(
        [-np.log(dictionary_similarity(np.delete(counts, g, axis=1))) for g in range(counts.shape[1])]
    )
    expected = np.sqrt(8 / 9 * ((without - without.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(jax.jit(jackknife_errors)(identities), expected, atol=2e-6)


def test_distance_keeps_its_digits_near_zero_and_ends_at_the_floor():
    values = np.array([1.2, 1.0, 1 - 2**-20, 0.95, 0.5, 1e-12, 0.0, -0.1], np.float32)
    expected = -np.log(np.clip(values.astype(float), 1e-10, 1))
    np.testing.assert_allclose(distance(values), expected, rtol=1e-6)
    assert float(distance(np.float32(0), floor=1e-3)) == pytest.approx(-math.log(1e-3))


def test_gradient_of_similarity_by_gene_weights_is_that_of_finite_differences(counts, double_precision):
    identities = gene_identities(counts.astype(float))
    objective = jax.jit(lambda w: (distance(similarity(identities, w)) * np.arange(36.0).reshape(6, 6)).sum())
    weights = np.linspace(0.5, 1.5, 9)
    step = 1e-6 * np.cos(np.arange(9.0))
    slope = float(objective(weights + step) - objective(weights - step)) / 2
    assert float(jax.grad(objective)(weights) @ step) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    ("counts", "estimator", "message"),
    [
        (np.ones((2, 1, 2)), "nei", "estimator is 'nei'; it must be one of plugin, unbiased, exact"),
        (np.ones((2, 2)), "plugin", r"counts has shape \(2, 2\)"),
        (np.array([[[1, -1.0]]]), "plugin", r"counts\[0, 0, 1\] is -1.0; it must be finite and not negative"),
        (np.array([[[1, np.nan]]]), "plugin", r"counts\[0, 0, 1\] is nan"),
        (
            np.array([[[1.0, 0], [0, 0]]]),
            "plugin",
            "counts of model 0 at gene 1 sum to 0; they must be at least 1",
        ),
        (np.array([[[1.0, 0]]]), "unbiased", "sum to 1; they must be at least 2 with estimator 'unbiased'"),
        (np.array([[[0.5, 0.4]]]), "exact", "sum to 0.9; they must sum to 1 with estimator 'exact'"),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts, estimator, message):
    with pytest.raises(InputError, match=message):
        gene_identities(counts, estimator=estimator)


def test_a_model_that_never_repeats_itself_is_refused_by_the_unbiased_estimator():
    counts = np.array([[[2.0, 0, 0]], [[1, 1, 0]]])
    with pytest.raises(InputError, match="identities of model 1 with itself sum to 0"):
        similarity(gene_identities(counts))
    assert jax.jit(lambda c: similarity(gene_identities(c)))(counts).tolist() == [[1, 0], [0, 1]]


def test_models_that_share_nothing_are_named():
    similarities = np.array([[1, 0.5, 0], [0.5, 1, 0.1], [0, 0.1, 1]])
    with pytest.raises(InputError, match=r"similarity of 'a' and 'c' is 0 \(1 such pairs\)"):
        require_related(similarities, ["a", "b", "c"])
    require_related(similarities[:2, :2], ["a", "b"])


@pytest.mark.parametrize("floor", [0, 1, -1])
def test_a_floor_out_of_range_is_refused(floor):
    with pytest.raises(InputError, match=rf"floor is {floor}; it must be in \(0, 1\)"):
        distance(jnp.ones(()), floor=floor)


def test_one_gene_has_no_jackknife():
    with pytest.raises(InputError, match="identities has 1 genes"):
        jackknife_errors(jnp.ones((1, 2, 2)))
