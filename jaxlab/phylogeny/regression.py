"""Predicting benchmark scores of models from their distances to others, one family of models left out at a time.

Reference: arXiv:2404.04671, section 2 (prediction of benchmark performance).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.phylogeny.checks import require_square
from jaxlab.phylogeny.independent_components import Projection, fast_ica, whitening


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
    """Options of the paper's regression."""

    components: int = 15
    """Independent components of the rows of the distance matrix; below the size of every training set."""
    steps: int = 1000
    """Of Adam, each on all training models."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    """Added to the gradient, times the weights."""
    ridge: float = 1.0
    """Penalty of the baseline's squared weights."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("components", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be above 0")
        for name in ("weight_decay", "ridge"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")


class Predictions(NamedTuple):
    """Scores of every model, from regressions that saw no model of its family."""

    network: Float[Array, " models"]
    """Of the paper's independent components and sigmoid layer."""
    ridge: Float[Array, " models"]
    """Of ridge regression on as many principal components."""


def leave_family_out(
    key: jax.Array,
    distances: Float[np.ndarray, "models models"],
    scores: Float[np.ndarray, " models"],
    families: Sequence[str],
    *,
    config: RegressionConfig = RegressionConfig(),
) -> Predictions:
    """Predicted score of every model by a regression on the models of all other families.

    Features are the distances to the training models. All families are fitted side by side.

    Args:
      key: PRNG key of the start of the components and of the weights.
      distances: of the models that have a score.
      scores: in [0, 1].
      families: of each model; at least two, each of at least two models.
      config: see `RegressionConfig`.

    Raises:
      InputError: sizes that do not fit, missing scores or such out of [0, 1], too few or too small families, or as many
        components as training models.
    """
    require_square("distances", distances)
    models = np.shape(distances)[0]
    scores = np.asarray(scores, np.float32)
    if scores.shape != (models,) or len(families) != models:
        raise InputError(
            f"scores has shape {scores.shape} and families {len(families)} entries; both must have {models}, as "
            "distances has"
        )
    wrong = [f"scores[{m}] = {scores[m]}" for m in range(models) if not 0 <= scores[m] <= 1]
    if wrong:
        raise InputError(f"{', '.join(wrong[:5])} ({len(wrong)} such models); each must be in [0, 1]")
    members = {name: [family == name for family in families] for name in dict.fromkeys(families)}
    alone = [name for name, left in members.items() if sum(left) == 1]
    if alone:
        raise InputError(
            f"families holds one model alone of {', '.join(alone)}; each must have at least 2: put such models into "
            "one family, or leave them out"
        )
    if len(members) < 2:
        raise InputError(f"families holds {len(members)} families; there must be at least 2")
    left_out = np.array(list(members.values()))
    smallest = models - int(left_out.sum(1).max())
    if config.components >= smallest:
        raise InputError(
            f"components is {config.components}; it must be below {smallest}, the models of the smallest training set"
        )
    fitted = _fit_all(key, jnp.asarray(distances, jnp.result_type(float)), scores, ~left_out, config=config)
    own = left_out.argmax(0)
    return jax.tree.map(lambda values: values[own, np.arange(models)], fitted)


@functools.partial(jax.jit, static_argnames="config")
def _fit_all(
    key: jax.Array,
    distances: Float[Array, "models models"],
    scores: Float[Array, " models"],
    training: Bool[Array, "families models"],
    *,
    config: RegressionConfig,
) -> Predictions:
    components_key, weights_key = jax.random.split(key)
    size = config.components
    start = jax.random.normal(components_key, (size, size), distances.dtype)
    weights = initial_weights(weights_key, components=size, dtype=distances.dtype)

    def one_family(rows: Bool[Array, " models"]) -> Predictions:
        independent = fast_ica(start, distances, rows, rows)(distances)
        principal: Projection = whitening(distances, rows, rows, components=size)
        return Predictions(
            _sigmoid_layer(weights, independent, scores, rows, config),
            _ridge(principal(distances), scores, rows, config.ridge),
        )

    return jax.vmap(one_family)(training)


def initial_weights(key: jax.Array, *, components: int, dtype: Any = jnp.float32) -> Float[Array, " weights"]:
    """Xavier-uniform weights of one unit, and its bias of 0 after them."""
    bound = (6 / (components + 1)) ** 0.5
    return jnp.append(jax.random.uniform(key, (components,), dtype, -bound, bound), 0)


def _sigmoid_layer(
    weights: Float[Array, " weights"],
    features: Float[Array, "models components"],
    scores: Float[Array, " models"],
    rows: Bool[Array, " models"],
    config: RegressionConfig,
) -> Float[Array, " models"]:
    optimizer = optax.chain(optax.add_decayed_weights(config.weight_decay), optax.adam(config.learning_rate))

    def predict(weights: Float[Array, " weights"]) -> Float[Array, " models"]:
        return jax.nn.sigmoid(features @ weights[:-1] + weights[-1])

    def loss(weights: Float[Array, " weights"]) -> Float[Array, ""]:
        return jnp.where(rows, (predict(weights) - scores) ** 2, 0).sum() / rows.sum()

    def step(_: int, state: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        weights, inner = state
        updates, inner = optimizer.update(jax.grad(loss)(weights), inner, weights)
        return weights + updates, inner

    weights, _ = jax.lax.fori_loop(0, config.steps, step, (weights, optimizer.init(weights)))
    return predict(weights)


def _ridge(
    features: Float[Array, "models components"],
    scores: Float[Array, " models"],
    rows: Bool[Array, " models"],
    penalty: float,
) -> Float[Array, " models"]:
    """With white features each weight stands for itself: z . y / (n + penalty)."""
    number = rows.sum()
    mean = jnp.where(rows, scores, 0).sum() / number
    weights = jnp.where(rows[:, None], features, 0).T @ (scores - mean) / (number + penalty)
    return mean + features @ weights


class PredictionReport(NamedTuple):
    """How well scores were predicted."""

    correlation: float
    """Pearson's r over all models."""
    mean_absolute_error: float
    family_correlations: dict[str, float]
    """Signed r within each family. The paper prints its absolute value."""


def prediction_report(
    predicted: Float[np.ndarray, " models"], scores: Float[np.ndarray, " models"], families: Sequence[str]
) -> PredictionReport:
    """Correlations of predicted with true scores, over all models and within each family.

    NaN where one of the two does not vary.

    Args:
      predicted: one part of `Predictions`.
      scores: the true ones.
      families: of each model.

    Raises:
      InputError: sizes that do not fit.
    """
    predicted, scores = np.asarray(predicted, float), np.asarray(scores, float)
    if predicted.shape != scores.shape or len(families) != len(scores):
        raise InputError(
            f"predicted has {len(predicted)} entries, scores {len(scores)} and families {len(families)}; they must "
            "have the same number"
        )
    labels = np.asarray(families)
    return PredictionReport(
        _correlation(predicted, scores),
        float(np.abs(predicted - scores).mean()),
        {
            name: _correlation(predicted[labels == name], scores[labels == name])
            for name in dict.fromkeys(families)
        },
    )


def _correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale > 0 else float("nan")
