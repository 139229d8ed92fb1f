"""1000 bootstrap trees of 156 models with 128 genes in less than 3 s on two cores.

Ours is one compiled program from gene identities to supports. Beside it scikit-bio (Cython) and Biopython (Python) join
the same distances one tree after the other in an environment of their own: a few of the trees are timed, and the time
of a thousand is that of one a thousand times, without what the weighted sums, logarithms and supports would add. Both
joined right after ours was timed, on the same machine. Models descend from one another in a random tree, so that
distances are of the kind that real ones are. Below, the topology of 200 random matrices, all splits compared.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.peers import run_peer
from jaxlab.kernels.neighbor_joining import neighbor_joining
from jaxlab.phylogeny import bootstrap, distance, gene_identities, gene_weights, similarity

_TARGET_S = 3.0
_GENES, _ALLELES, _PROBES = 128, 40, 32


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of the bootstrap, then of the topologies."""
    models, replicates = (40, 100) if quick else (156, 1000)
    return _bootstrap(models, replicates, 2 if quick else 5) + _topologies(20 if quick else 200)


def _bootstrap(models: int, replicates: int, repetitions: int) -> list[dict[str, Any]]:
    identities = gene_identities(jnp.asarray(random_counts(models)), estimator="unbiased")
    key = jax.random.key(0)
    timings = harness.compare(
        {"ours": lambda: bootstrap(key, identities, replicates=replicates)}, repetitions
    )
    weights = gene_weights(key, genes=_GENES, replicates=replicates)[:5]
    distances = jnp.stack([distance(similarity(identities, weight)) for weight in weights])
    peer = run_peer(
        "phylogenetics", {"distances": np.asarray(distances), "timed": np.array(5), "biopython": np.array(2)}
    )
    ours = timings["ours"]
    rows = [{"who": "ours", "seconds": round(ours.median, 3), "compile_s": round(ours.compilation, 1)}]
    for who, seconds in (("scikit-bio", peer["seconds"]), ("Biopython", peer["biopython_seconds"])):
        rows.append({"who": who, "seconds": round(float(np.median(seconds)) * replicates, 1)})
    for row in rows:
        row |= {
            "models": models,
            "replicates": replicates,
            "ours_is_x_faster": round(row["seconds"] / ours.median, 1),
            "target_s": _TARGET_S,
        }
    return rows


def _topologies(matrices: int) -> list[dict[str, Any]]:
    """How many random matrices give the same tree, in our single precision."""
    rng = np.random.default_rng(1)
    upper = np.triu(rng.random((matrices, 30, 30)), 1).astype(np.float32)
    distances = upper + np.swapaxes(upper, 1, 2)
    peer = run_peer("phylogenetics", {"distances": distances, "timed": np.array(1), "biopython": np.array(0)})
    parents = np.asarray(jax.jit(jax.vmap(neighbor_joining))(distances).parents)
    same = sum(
        np.array_equal(_sides(one, 30), sides) for one, sides in zip(parents, peer["sides"], strict=True)
    )
    return [{"who": "same tree as scikit-bio", "matrices": matrices, "same": same, "target": matrices}]


def _sides(parents: np.ndarray, taxa: int) -> np.ndarray:
    """The side without the first taxon of every split, in the order that the peer's script has them."""
    below = np.eye(len(parents), taxa, dtype=bool)
    for node, parent in enumerate(parents[:-1]):
        below[parent] |= below[node]
    inner = below[taxa:-1]
    return np.unique(np.where(inner[:, :1], ~inner, inner), axis=0)


def random_counts(models: int) -> np.ndarray:
    """Allele counts [models, genes, alleles] of models each of which is a changed copy of an earlier one."""
    rng = np.random.default_rng(0)
    shares = np.empty((models, _GENES, _ALLELES))
    shares[0] = rng.dirichlet(np.full(_ALLELES, 0.1), _GENES)
    for m in range(1, models):
        changed = rng.random((_GENES, 1)) < 0.15
        shares[m] = np.where(changed, rng.dirichlet(np.full(_ALLELES, 0.1), _GENES), shares[rng.integers(m)])
    return rng.multinomial(_PROBES, shares).astype(np.float32)
