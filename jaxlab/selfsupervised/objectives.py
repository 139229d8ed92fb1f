"""Joint-embedding objectives that T-REGS is added to, or set beside.

Each takes the embeddings of two views of the same images, row by row, and returns a scalar. Formulas are the papers';
where these leave scales open, those of solo-learn, by which the published baselines were trained.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.selfsupervised.checks import require_number, require_views

_BATCH_NORM_EPS = 1e-5
_VARIANCE_EPS = 1e-4


def mse_invariance(
    first: Float[Array, "n d"], second: Float[Array, "n d"], *, reduction: str = "mean"
) -> Float[Array, ""]:
    """Squared distance of the two views.

    Args:
      first: embeddings of one view.
      second: of the other view.
      reduction: "mean" over all n d entries, to which the published coefficients seem to belong, or "sum" over
        dimensions and mean over rows, as the paper writes it.

    Raises:
      InputError: another reduction, or the shapes differ.

    Reference: arXiv:2510.23484, section 4.3.
    """
    require_views(first, second)
    if reduction not in ("mean", "sum"):
        raise InputError(f"reduction is {reduction!r}; it must be 'mean' or 'sum'")
    squares = jnp.square(first - second)
    return jnp.mean(squares) if reduction == "mean" else jnp.mean(jnp.sum(squares, axis=1))


def simclr_loss(
    first: Float[Array, "n d"], second: Float[Array, "n d"], *, temperature: float = 0.2
) -> Float[Array, ""]:
    """NT-Xent: each of the 2n embeddings picks its other view among the 2n - 1 others.

    Args:
      first: embeddings of one view; directions alone matter.
      second: of the other view.
      temperature: > 0.

    Raises:
      InputError: temperature not positive, or the shapes differ.

    Reference: arXiv:2002.05709, equation 1.
    """
    require_views(first, second)
    require_number("temperature", temperature, above=0)
    n = len(first)
    both = _directions(jnp.concatenate([first, second]))
    logits = jnp.matmul(both, both.T, precision="highest") / temperature
    logits = jnp.where(jnp.eye(2 * n, dtype=bool), -jnp.inf, logits)
    own = jnp.arange(2 * n)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[own, (own + n) % (2 * n)])


def vicreg_loss(
    first: Float[Array, "n d"],
    second: Float[Array, "n d"],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Float[Array, ""]:
    """Invariance, a hinge at standard deviation 1, and decorrelation.

    Args:
      first: embeddings of one view.
      second: of the other view.
      invariance: weight >= 0 of the mean squared difference.
      variance: weight >= 0 of the hinge, summed over views, mean over dimensions.
      covariance: weight >= 0 of the squared covariances off the diagonal, summed over views, over d.

    Raises:
      InputError: a negative weight, or the shapes differ.

    Reference: arXiv:2105.04906, equations 1 to 6.
    """
    require_views(first, second)
    for name, weight in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
        require_number(name, weight, at_least=0)
    n, d = first.shape

    def spread(view: Array) -> tuple[Array, Array]:
        centred = view - jnp.mean(view, axis=0)
        second_moments = jnp.matmul(centred.T, centred, precision="highest") / (n - 1)
        variances = jnp.sum(jnp.square(centred), axis=0) / (n - 1)
        hinge = jnp.mean(jax.nn.relu(1 - jnp.sqrt(variances + _VARIANCE_EPS)))
        return hinge, jnp.sum(jnp.square(jnp.where(jnp.eye(d, dtype=bool), 0, second_moments))) / d

    hinges, covariances = jax.vmap(spread)(jnp.stack([first, second]))
    return (
        invariance * mse_invariance(first, second)
        + variance * jnp.sum(hinges)
        + covariance * jnp.sum(covariances)
    )


def barlow_loss(
    first: Float[Array, "n d"], second: Float[Array, "n d"], *, lamb: float = 5.1e-3, scale_loss: float = 0.1
) -> Float[Array, ""]:
    """Barlow Twins: the cross-correlation of the two views' dimensions should be the identity.

    Args:
      first: embeddings of one view; each dimension is standardised over the batch.
      second: of the other view.
      lamb: weight >= 0 of the entries off the diagonal.
      scale_loss: factor > 0 of the whole.

    Raises:
      InputError: a number out of range, or the shapes differ.

    Reference: arXiv:2103.03230, equations 1 and 2.
    """
    require_views(first, second)
    require_number("lamb", lamb, at_least=0)
    require_number("scale_loss", scale_loss, above=0)
    n, d = first.shape
    correlation = jnp.matmul(_standardised(first).T, _standardised(second), precision="highest") / n
    own = jnp.eye(d, dtype=bool)
    weights = jnp.where(own, 1.0, lamb).astype(correlation.dtype)
    return scale_loss * jnp.sum(weights * jnp.square(correlation - own))


def byol_loss(prediction: Float[Array, "n d"], target: Float[Array, "n d"]) -> Float[Array, ""]:
    """2 - 2 cosine, mean over rows; no gradient flows into the target. Add both orders of the views.

    Args:
      prediction: of the online network's predictor.
      target: projection of the other view by the averaged network.

    Raises:
      InputError: the shapes differ.

    Reference: arXiv:2006.07733, equation 2.
    """
    require_views(prediction, target, names=("prediction", "target"))
    target = jax.lax.stop_gradient(target)
    return 2 - 2 * jnp.mean(jnp.sum(_directions(prediction) * _directions(target), axis=1))


def _directions(vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Unit vectors; zero vectors stay zero, with gradient 0."""
    squares = jnp.sum(jnp.square(vectors), axis=1, keepdims=True)
    positive = squares > 0
    return vectors * jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, squares, 1)), 0)


def _standardised(view: Float[Array, "n d"]) -> Float[Array, "n d"]:
    centred = view - jnp.mean(view, axis=0)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=0) + _BATCH_NORM_EPS)
