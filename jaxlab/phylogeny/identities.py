"""Nei's genetic identity and distance between models, from gene by gene identities.

J_xy = sum_a P_x(a) P_y(a) of each gene is kept apart, so that any subset, weighting or resampling of genes is a product
of matrices. References: Nei, "Genetic distance between populations", 1972; Nei, "Estimation of average heterozygosity
and genetic distance from a small number of individuals", 1978; arXiv:2404.04671, section 2.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.phylogeny.alleles import frequencies
from jaxlab.phylogeny.checks import is_concrete, require_names, require_square

Estimator = Literal["plugin", "unbiased", "exact"]


def gene_identities(
    counts: Float[Array, "models genes alleles"], *, estimator: Estimator = "unbiased"
) -> Float[Array, "genes models models"]:
    """Chance that probes of two models have the same allele, for every gene.

    "plugin" puts frequencies in the place of probabilities, as the paper does. Two probes of the same model then
    include each with itself, which makes models look less similar the fewer probes there are (.95 for a model and
    itself at 32). "unbiased" replaces sum p^2 on the diagonal by (N sum p^2 - 1) / (N - 1). Reference: Nei, 1978.
    "exact" takes probabilities as they are.

    Args:
      counts: of alleles; with "exact" their probabilities.
      estimator: see above.

    Raises:
      InputError: an unknown estimator, negative or infinite counts, too few probes (1, or 2 with "unbiased"), or
        probabilities that do not sum to 1.
    """
    if estimator not in get_args(Estimator):
        raise InputError(f"estimator is {estimator!r}; it must be one of {', '.join(get_args(Estimator))}")
    if jnp.ndim(counts) != 3:
        raise InputError(f"counts has shape {jnp.shape(counts)}; it must be (models, genes, alleles)")
    _require_counts(counts, estimator)
    counts = jnp.asarray(counts)
    shares = counts if estimator == "exact" else frequencies(counts)
    between = jnp.einsum("mga,nga->gmn", shares, shares, precision=jax.lax.Precision.HIGHEST)
    if estimator != "unbiased":
        return between
    probes = counts.sum(-1).T
    own = (probes * jnp.diagonal(between, axis1=1, axis2=2) - 1) / (probes - 1)
    return jnp.where(jnp.eye(counts.shape[0], dtype=bool), own[:, None], between)


def similarity(
    identities: Float[Array, "genes models models"], weights: Float[Array, " genes"] | None = None
) -> Float[Array, "models models"]:
    """S_xy = J_xy / sqrt(J_xx J_yy), where J sums over genes first; 1 on the diagonal.

    Unbiased identities may give more than 1 by chance. Genes whose answer is nearly certain count most; compare
    `mean_gene_similarity`. Differentiable in both.

    Args:
      identities: see `gene_identities`.
      weights: of the genes, not negative; ones by default.

    Raises:
      InputError: a model's own identity is not positive, since its probes at each gene all differ. Under jit its
        similarity to all others is then 0.
    """
    total = identities.sum(0) if weights is None else jnp.tensordot(weights, identities, 1)
    own = jnp.diagonal(total)
    if is_concrete(own) and not (np.asarray(own) > 0).all():
        m = int(np.flatnonzero(~(np.asarray(own) > 0))[0])
        raise InputError(
            f"identities of model {m} with itself sum to {own[m]}; they must be positive: more probes or other genes "
            "are needed"
        )
    return _normalised(total)


def _normalised(total: Float[Array, "models models"]) -> Float[Array, "models models"]:
    own = jnp.diagonal(total)
    scale = jnp.where(own > 0, jax.lax.rsqrt(jnp.where(own > 0, own, 1)), 0)
    return jnp.where(jnp.eye(total.shape[0], dtype=bool), 1, total * scale[:, None] * scale)


def plugin_self_similarity(counts: Float[Array, "models genes alleles"]) -> Float[Array, " models"]:
    """What the plug-in estimator is to say, by these counts, of two samples of one and the same model, which is 1.

    sum_g J / sum_g (J + (1 - J) / N) with the unbiased J of each gene: how low it is shows the bias of the plug-in
    estimator, to first order. Reference: Nei, 1978.

    Args:
      counts: of alleles, at least 2 a model and gene.

    Raises:
      InputError: negative or infinite counts, or too few probes.
    """
    _require_counts(counts, "unbiased")
    counts = jnp.asarray(counts)
    probes, squares = counts.sum(-1), (frequencies(counts) ** 2).sum(-1)
    return ((probes * squares - 1) / (probes - 1)).sum(-1) / squares.sum(-1)


def mean_gene_similarity(identities: Float[Array, "genes models models"]) -> Float[Array, "models models"]:
    """The mean over genes of each gene's own J_xy / sqrt(J_xx J_yy): every gene counts the same.

    Meant for plug-in and exact identities: where an unbiased own identity is not positive, the gene counts as 0.
    """
    return jax.vmap(_normalised)(identities).mean(0)


def distance(
    similarities: Float[Array, "models models"], *, floor: float = 1e-10
) -> Float[Array, "models models"]:
    """D = -ln S, with S clipped to [floor, 1]: at least 0, and 0 on the diagonal.

    Args:
      similarities: see `similarity`.
      floor: in (0, 1); what is less similar counts as this similar (1e-10 in the paper's trees, 1e-3 in its demo).

    Raises:
      InputError: `floor` is out of its range.
    """
    if not 0 < floor < 1:
        raise InputError(f"floor is {floor}; it must be in (0, 1)")
    inside = jnp.clip(similarities, floor, 1)
    near = jnp.maximum(inside, 0.9)
    # Near 1 the logarithm of the difference keeps the digits.
    return -jnp.where(inside > 0.9, jnp.log1p(near - 1), jnp.log(inside))


def require_related(similarities: Float[Array, "models models"], names: Sequence[str]) -> None:
    """Raises InputError if two models share no allele at all, so that their distance is infinite."""
    require_square("similarities", similarities)
    require_names(names, taxa=similarities.shape[0])
    strangers = np.argwhere(np.triu(np.asarray(similarities) <= 0, 1))
    if len(strangers):
        x, y = strangers[0]
        raise InputError(
            f"similarity of {names[x]!r} and {names[y]!r} is 0 ({len(strangers)} such pairs): they share no allele; it "
            "must be positive: take more genes, or genes that both can continue"
        )


def jackknife_errors(
    identities: Float[Array, "genes models models"], *, floor: float = 1e-10
) -> Float[Array, "models models"]:
    """Standard errors of `distance(similarity(identities))` over genes, by leaving out one at a time.

    sqrt((G - 1) / G sum_g (D_(-g) - mean D_(-g))^2). Reference: Efron and Stein, "The jackknife estimate of variance",
    1981.

    Args:
      identities: of at least 2 genes.
      floor: see `distance`.

    Raises:
      InputError: fewer than 2 genes.
    """
    genes = identities.shape[0]
    if genes < 2:
        raise InputError(f"identities has {genes} genes; a jackknife must have at least 2")
    total = identities.sum(0)
    without = jax.vmap(lambda one: distance(_normalised(total - one), floor=floor))(identities)
    return jnp.sqrt((genes - 1) * without.var(0))


def _require_counts(counts: Float[Array, "models genes alleles"], estimator: Estimator) -> None:
    if not is_concrete(counts):
        return
    values = np.asarray(counts)
    wrong = np.argwhere(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        m, g, a = wrong[0]
        raise InputError(f"counts[{m}, {g}, {a}] is {values[m, g, a]}; it must be finite and not negative")
    sums = values.sum(-1)
    if estimator == "exact":
        wrong = np.argwhere(np.abs(sums - 1) > 1e-3)
        wanted = "must sum to 1 with estimator 'exact'"
    else:
        fewest = 2 if estimator == "unbiased" else 1
        wrong = np.argwhere(sums < fewest)
        wanted = f"must be at least {fewest} with estimator {estimator!r}"
    if len(wrong):
        m, g = wrong[0]
        raise InputError(f"counts of model {m} at gene {g} sum to {sums[m, g]:g}; they {wanted}")
