"""What frozen features are worth: nearest neighbours, a linear classifier, and how far embeddings have collapsed."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab.errors import InputError
from jaxlab.selfsupervised.checks import require_embeddings, require_number

_CHUNK = 500


class Spread(NamedTuple):
    """How embeddings lie; a collapsed set has cosine 1 or a small rank."""

    mean_cosine: Float[Array, ""]
    """Over all pairs of different rows."""
    effective_rank: Float[Array, ""]
    """exp of the entropy of the singular values' shares, 1 to d, of centred rows."""
    deviation: Float[Array, ""]
    """Mean over dimensions of the standard deviation."""
    singular_values: Float[Array, " rank"]
    """Of centred rows, falling."""


def spread(embeddings: Float[Array, "n d"]) -> Spread:
    """Measures of collapse.

    Args:
      embeddings: n >= 2 rows.

    Raises:
      InputError: fewer than two rows, or not a matrix.

    Reference: Roy and Vetterli, "The effective rank", 2007.
    """
    require_embeddings("embeddings", embeddings)
    values = jnp.linalg.svd(embeddings - embeddings.mean(0), compute_uv=False)
    shares = values / jnp.maximum(values.sum(), jnp.finfo(values.dtype).tiny)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0))
    return Spread(mean_cosine(embeddings), jnp.exp(entropy), embeddings.std(0).mean(), values)


def mean_cosine(embeddings: Float[Array, "n d"]) -> Float[Array, ""]:
    """Mean cosine of all pairs of different rows; rows of zeros have cosine 0 to all.

    Args:
      embeddings: n >= 2 rows.

    Raises:
      InputError: fewer than two rows, or not a matrix.
    """
    require_embeddings("embeddings", embeddings)
    n, units = len(embeddings), _units(embeddings)
    return (jnp.sum(jnp.square(units.sum(0))) - jnp.sum(jnp.square(units))) / (n * (n - 1))


def knn_accuracy(
    features: Float[Array, "n d"],
    classes: Int[Array, " n"],
    test_features: Float[Array, "m d"],
    test_classes: Int[Array, " m"],
    *,
    neighbours: int = 20,
    temperature: float | None = 0.07,
) -> Float[Array, ""]:
    """Share of test rows whose nearest training rows, by cosine, vote for their class; ties go to the lower class.

    Args:
      features: of the training set.
      classes: 0 and up.
      test_features: of the test set.
      test_classes: 0 and up.
      neighbours: who votes, 1 to n.
      temperature: a vote weighs exp(cosine / temperature), > 0; None: all weigh the same.

    Raises:
      InputError: shapes that do not fit, or an option out of range.

    Reference: Wu et al., arXiv:1805.01978, section 3.4.
    """
    _require_labelled(features, classes, test_features, test_classes)
    if not 1 <= neighbours <= len(features):
        raise InputError(f"neighbours is {neighbours}; it must be 1 to {len(features)}")
    if temperature is not None:
        require_number("temperature", temperature, above=0)
    return _knn(
        features,
        classes,
        test_features,
        test_classes,
        temperature,
        neighbours,
        _number_of(classes, test_classes),
    )


@partial(jax.jit, static_argnames=("neighbours", "number"))
def _knn(
    features: Array,
    classes: Array,
    test_features: Array,
    test_classes: Array,
    temperature: float | None,
    neighbours: int,
    number: int,
) -> Array:
    known, asked = _units(features), _units(test_features)

    def right(row: tuple[Array, Array]) -> Array:
        cosines = jnp.matmul(known, row[0], precision="highest")
        nearest, places = jax.lax.top_k(cosines, neighbours)
        weights = jnp.ones(neighbours) if temperature is None else jnp.exp((nearest - 1) / temperature)
        votes = jnp.zeros(number).at[classes[places]].add(weights)
        return votes.argmax() == row[1]

    return jax.lax.map(right, (asked, test_classes), batch_size=min(_CHUNK, len(asked))).mean()


def linear_probe(
    features: Float[Array, "n d"],
    classes: Int[Array, " n"],
    test_features: Float[Array, "m d"],
    test_classes: Int[Array, " m"],
    key: Key[Array, ""],
    *,
    epochs: int = 20,
    batch: int = 256,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
) -> Float[Array, ""]:
    """Accuracy on the test rows of a linear classifier trained on the others by SGD with a cosine schedule.

    Args:
      features: of the training set; not augmented, which the published probes do.
      classes: 0 and up.
      test_features: of the test set.
      test_classes: 0 and up.
      key: for the order of rows; weights begin at 0.
      epochs: >= 1.
      batch: rows of a step, 1 to n; what is left over of an epoch is dropped.
      learning_rate: of the first step for a batch of 256, > 0; proportional to the batch.
      momentum: 0 to below 1.

    Raises:
      InputError: shapes that do not fit, or an option out of range.

    Reference: arXiv:2510.23484, section 5.
    """
    _require_labelled(features, classes, test_features, test_classes)
    if epochs < 1 or not 1 <= batch <= len(features):
        raise InputError(
            f"epochs is {epochs}, batch {batch}; they must be at least 1, and batch at most {len(features)}"
        )
    require_number("learning_rate", learning_rate, above=0)
    require_number("momentum", momentum, at_least=0, below=1)
    steps = len(features) // batch
    schedule = optax.cosine_decay_schedule(learning_rate * batch / 256, epochs * steps)
    optimiser = optax.sgd(schedule, momentum=momentum)
    number = _number_of(classes, test_classes)

    @jax.jit
    def fit(features: Array, classes: Array, test_features: Array, test_classes: Array, key: Array) -> Array:
        def loss(weights: tuple[Array, Array], rows: Array) -> Array:
            scores = features[rows] @ weights[0] + weights[1]
            return optax.softmax_cross_entropy_with_integer_labels(scores, classes[rows]).mean()

        def step(carry: tuple, rows: Array) -> tuple[tuple, None]:
            weights, state = carry
            updates, state = optimiser.update(jax.grad(loss)(weights, rows), state)
            return (optax.apply_updates(weights, updates), state), None

        def epoch(carry: tuple, key: Array) -> tuple[tuple, None]:
            order = jax.random.permutation(key, len(features))[: steps * batch].reshape(steps, batch)
            return jax.lax.scan(step, carry, order)[0], None

        weights = (jnp.zeros((features.shape[1], number)), jnp.zeros(number))
        (weights, _), _ = jax.lax.scan(
            epoch, (weights, optimiser.init(weights)), jax.random.split(key, epochs)
        )
        found = (test_features @ weights[0] + weights[1]).argmax(1)
        return (found == test_classes).mean()

    return fit(*map(jnp.asarray, (features, classes, test_features, test_classes)), key)


def _units(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1)


def _number_of(classes: Array, test_classes: Array) -> int:
    return int(max(jnp.max(classes), jnp.max(test_classes))) + 1


def _require_labelled(features: Array, classes: Array, test_features: Array, test_classes: Array) -> None:
    for name, rows, own in (("", features, classes), ("test_", test_features, test_classes)):
        require_embeddings(f"{name}features", rows, at_least=1)
        if jnp.shape(own) != (len(rows),):
            raise InputError(f"{name}classes has shape {jnp.shape(own)}; it must be ({len(rows)},)")
    if features.shape[1] != test_features.shape[1]:
        raise InputError(
            f"test_features has width {test_features.shape[1]}; it must be that of features, {features.shape[1]}"
        )
