"""Estimators of Nei's identity on counts drawn from exact probabilities of models, against these probabilities.

The table of the specification, made with other genes and alleles of one token, is followed in its shape: what the
plug-in estimator says of a model and itself depends on the genes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from letter_model import toy_model

from jaxlab.errors import InputError
from jaxlab.models import load
from jaxlab.phylogeny.exact import ExactOptions, exact_alleles, exact_table
from jaxlab.phylogeny.identities import gene_identities, plugin_self_similarity, similarity
from jaxlab.recipes.phylolm_genomes import genome

PROBES = (8, 16, 32, 64, 128)
REPEATS = 400


def of_two_toys():
    options = ExactOptions(tokens=3, threshold=1e-6)
    genes = ["ab a", "b", "a b ab", "ba", "abab", "b b", "a", " ab", "bb a", "ab ab"]
    return exact_table(
        [exact_alleles(toy_model(seed), genes, options=options).probabilities for seed in (0, 1)]
    )


def of_smollm2_and_a_near_copy():
    """Of the real model and of itself with its layers' value matrices a tenth smaller, at 12 genes of code."""
    model = load("pkg:smollm2")
    layers = model.params["layers"]
    near = model._replace(params={**model.params, "layers": {**layers, "v": 0.9 * layers["v"]}})
    genes = genome("code", np.random.default_rng(0), genes=12)
    options = ExactOptions(tokens=4, threshold=3e-3)
    return exact_table([exact_alleles(one, genes, options=options).probabilities for one in (model, near)])


@pytest.fixture(
    scope="module",
    params=[of_two_toys, pytest.param(of_smollm2_and_a_near_copy, marks=pytest.mark.slow)],
    ids=["toys", "smollm2"],
)
def exact(request):
    """Probabilities [2 models, genes, alleles], in float64."""
    table = request.param().astype(np.float64)
    return table / table.sum(-1, keepdims=True)


def drawn(exact, probes, seed):
    """Counts [repeats, 3, genes, alleles]: of the first model, of it once more, of the second."""
    rng = np.random.default_rng([seed, probes])
    return rng.multinomial(probes, exact[[0, 0, 1]], (REPEATS, *exact[[0, 0, 1]].shape[:2])).astype(
        np.float32
    )


@pytest.mark.parametrize("probes", PROBES)
def test_unbiased_estimates_are_those_of_exact_probabilities(exact, probes):
    """Within 3 standard errors of the mean of many repetitions; the ratio's own bias is about the variance of S."""
    counts = drawn(exact, probes, 1)
    identities = np.asarray(jax.lax.map(lambda c: gene_identities(c).sum(0), counts, batch_size=16))
    true = np.einsum("mga,nga->mn", exact, exact)[np.ix_([0, 0, 1], [0, 0, 1])]
    error = identities.std(0, ddof=1) / np.sqrt(REPEATS)
    assert (np.abs(identities.mean(0) - true) < 3.5 * error).all()  # six numbers: a little more than 3
    found = np.asarray(jax.vmap(lambda j: similarity(j[None]))(jnp.asarray(identities)))
    for other, expected in ((1, 1.0), (2, true[0, 2] / np.sqrt(true[0, 0] * true[2, 2]))):
        values = found[:, 0, other]
        # Neither estimate is far off, and their mean is not off at all.
        assert abs(values.mean() - expected) < 3 * values.std(ddof=1) / np.sqrt(REPEATS) + 2 * values.var()


@pytest.mark.parametrize("probes", PROBES)
def test_the_plugins_bias_is_what_is_said_of_it_from_one_sample(exact, probes):
    counts = drawn(exact, probes, 2)
    plugin = np.asarray(
        jax.lax.map(lambda c: similarity(gene_identities(c, estimator="plugin")), counts, batch_size=16)
    )
    measured = plugin[:, 0, 1]
    own = np.einsum("ga,ga->g", exact[0], exact[0])
    theory = own.sum() / (own + (1 - own) / probes).sum()
    said = np.asarray(jax.vmap(plugin_self_similarity)(counts[:, :1]))[:, 0]
    tolerance = 3 * measured.std(ddof=1) / np.sqrt(REPEATS) + 2 * measured.var()
    assert abs(measured.mean() - theory) < tolerance and abs(said.mean() - theory) < tolerance
    assert measured.mean() < 1 - 10 * measured.std(ddof=1) / np.sqrt(REPEATS)


def test_too_few_probes_are_refused():
    with pytest.raises(InputError, match="sum to 1; they must be at least 2"):
        plugin_self_similarity(np.ones((1, 1, 1)))
