"""Spread and error by genes and probes against a loop, and what they say of probes from known models."""

import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.phylogeny.budget import budget_analysis

MODELS, GENES, PROBES, ALLELES = 3, 32, 12, 5


@pytest.fixture(scope="module")
def codes():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(ALLELES), (MODELS, GENES))
    return np.array(
        [[rng.choice(ALLELES, PROBES, p=shares[m, g]) for g in range(GENES)] for m in range(MODELS)], np.int32
    )


def plain_similarity(codes):
    shares = (codes[..., None] == np.arange(ALLELES)).mean(2)
    total = np.einsum("mga,nga->mn", shares, shares)
    own = np.sqrt(np.diagonal(total))
    return (total / own / own[:, None])[np.triu_indices(MODELS, 1)]


def test_figures_are_those_of_a_loop(codes):
    found = budget_analysis(codes, alleles=ALLELES, genes=(2, 5), probes=(4, 12), blocks=4)
    precise = plain_similarity(codes[:, 16:])
    for g, genes in enumerate((2, 5)):
        for p, probes in enumerate((4, 12)):
            cut = [
                plain_similarity(codes[:, start : start + genes, :probes])
                for start in range(0, 16 - genes + 1, genes)
            ][:4]
            mean = np.mean(cut, axis=0)
            spread = np.mean([np.sqrt(((one - mean) ** 2).mean()) for one in cut])
            error = np.mean([np.sqrt(((one - precise) ** 2).mean()) for one in cut])
            assert found.spread[g, p] == pytest.approx(spread, abs=1e-6)
            assert found.error[g, p] == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genes": (9,)}, r"genes holds 9; each must be in 1..8 for codes of shape \(3, 32, 12\)"),
        ({"probes": (0,)}, "probes holds 0; each must be in 1..12"),
        ({"blocks": 1}, "blocks is 1; it must be at least 2"),
    ],
)
def test_numbers_out_of_range_are_refused(codes, change, message):
    with pytest.raises(InputError, match=message):
        budget_analysis(codes, alleles=ALLELES, **({"genes": (2,), "probes": (4,)} | change))


def test_one_model_has_no_pairs(codes):
    with pytest.raises(InputError, match="codes has 1 models"):
        budget_analysis(codes[:1], alleles=ALLELES, genes=(2,), probes=(4,))
