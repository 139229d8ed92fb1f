"""Bootstrap supports against a plain loop over the same weights, and on genes that all say the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joining_oracle import edges_of, plain_neighbor_joining

from jaxlab.errors import InputError
from jaxlab.phylogeny.identities import gene_identities
from jaxlab.phylogeny.resampling import bootstrap, gene_weights

GENES, TAXA, REPLICATES = 12, 7, 131
"""More replicates than a block holds, and not a multiple of its size."""


@pytest.fixture(scope="module")
def identities():
    """Of three pairs of sisters and a stranger, with so few genes that replicates differ."""
    rng = np.random.default_rng(0)
    roots = rng.dirichlet(np.ones(5), (4, GENES))
    models = np.stack(
        [0.7 * roots[i // 2] + 0.3 * rng.dirichlet(np.ones(5), GENES) for i in range(TAXA)]
    ).astype(np.float32)
    return gene_identities(jnp.asarray(models), estimator="exact")


def plain_splits(total):
    """Those of a matrix of summed identities, by the plain transcription."""
    own = np.sqrt(np.diagonal(total))
    distances = -np.log(np.clip(total / own / own[:, None], 1e-10, 1))
    return {s for s in plain_neighbor_joining(distances) if 2 <= len(s) <= TAXA - 2}


def test_weights_count_draws_with_replacement():
    weights = np.asarray(gene_weights(jax.random.key(0), genes=9, replicates=4000))
    assert (weights.sum(1) == 9).all() and (weights == weights.astype(int)).all()
    # Each is binomial of mean 1 and variance 8 / 9.
    np.testing.assert_allclose(weights.mean(0), 1, atol=4 * np.sqrt(8 / 9 / 4000))
    assert weights.var() == pytest.approx(8 / 9, rel=0.05)


def test_supports_are_shares_of_the_plain_trees_of_the_same_weights(identities):
    key = jax.random.key(1)
    found = bootstrap(key, identities, replicates=REPLICATES)
    assert found.replicates.parents.shape == (REPLICATES, 2 * TAXA - 2)
    weights = np.asarray(gene_weights(key, genes=GENES, replicates=REPLICATES), float)
    per_gene = np.asarray(identities, float)
    replicates = [plain_splits(np.tensordot(w, per_gene, 1)) for w in weights]
    for b, expected in enumerate(replicates):
        splits = edges_of(found.replicates.parents[b], found.replicates.lengths[b])
        assert {s for s in splits if 2 <= len(s) <= TAXA - 2} == expected
    # The split of each inner node, in their order.
    parents = np.asarray(found.tree.parents)
    below = [{i} if i < TAXA else set() for i in range(len(parents))]
    for node, parent in enumerate(parents[:-1]):
        below[parent] |= below[node]
    sides = [frozenset(b if 0 not in b else set(range(TAXA)) - b) for b in below[TAXA:-1]]
    assert set(sides) == plain_splits(per_gene.sum(0))
    expected = [np.mean([side in splits for splits in replicates]) for side in sides]
    np.testing.assert_allclose(found.supports, expected, atol=1e-6)
    assert min(expected) < 1


def test_genes_that_all_agree_support_every_split_fully(identities):
    same = jnp.broadcast_to(identities.mean(0), identities.shape)
    found = bootstrap(jax.random.key(2), same, replicates=REPLICATES)
    assert np.asarray(found.supports).tolist() == [1.0] * (TAXA - 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda key: bootstrap(key, jnp.ones((2, 3, 3))),
            "identities has 3 taxa; a tree must have at least 4",
        ),
        (
            lambda key: bootstrap(key, jnp.ones((2, 4, 4)), replicates=0),
            "replicates is 0; it must be at least 1",
        ),
        (lambda key: gene_weights(key, genes=0, replicates=1), "genes is 0; it must be at least 1"),
        (lambda key: bootstrap(key, jnp.ones((2, 4, 4)), floor=2.0), r"floor is 2.0; it must be in \(0, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(jax.random.key(0))
