"""Gaussian mixtures with full covariances by expectation-maximisation, for several numbers of components at once.

The semantics are scikit-learn's (`GaussianMixture(n_init=1)`): k-means labels, a first M-step, then E- and M-steps
until the mean log-likelihood moves by less than the tolerance. Points lie in the last axis and every loop over
dimensions is unrolled, Cholesky factors included, so that nothing calls a linear algebra library on matrices of 3 x 3.
Reference: Dempster, Laird and Rubin, 1977; Akaike, 1974; Schwarz, 1978.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxlab.kernels.kmeans import lloyd, one_hot, seeds, split
from jaxlab.kernels.lanes import lane_sum, pad_to_lanes

Criterion = Literal["aic", "bic", "aicc"]

_PIVOT_FLOOR = 1e-12
_MAX_DIMENSIONS = 16


class GaussianMixture(NamedTuple):
    """A mixture of K Gaussians in D dimensions."""

    weights: jax.Array
    """[K], they sum to 1."""
    means: jax.Array
    """[K, D]."""
    covariances: jax.Array
    """[K, D, D]."""


class MixtureSelection(NamedTuple):
    """The best mixture of several, padded to the largest number of components: weight 0, mean 0, covariance I."""

    mixture: GaussianMixture
    components: jax.Array
    """int32[], how many components the best one has."""
    criteria: jax.Array
    """The criterion of each candidate, lower is better."""
    log_likelihoods: jax.Array
    """Total log-likelihood of each candidate."""
    iterations: jax.Array
    """int32, EM iterations of each candidate."""


def fit_mixtures(
    key: jax.Array,
    points: jax.Array,
    *,
    components: Sequence[int] = tuple(range(2, 11)),
    criterion: Criterion = "aic",
    aicc_reference: bool = False,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    specialise_k: bool = True,
) -> MixtureSelection:
    """Fits one mixture for every number of components and keeps the one with the lowest criterion, the first of equals.

    Works under `jit` and `vmap`. A batch is fitted one item after the other on CPUs, so that each loop stops when its
    own fit has converged, and all at once elsewhere.

    Args:
      key: PRNG key, for the seeds of k-means.
      points: [n, D], D <= 16.
      components: candidate numbers of components, each in 1..n.
      criterion: "aic" = 2p - 2L, "bic" = p ln n - 2L, "aicc" = aic + 2q(q + 1)/(n - q - 1), infinite where
        n <= q + 1; L is the log-likelihood, p = q the number of parameters.
      aicc_reference: count q as teachDeepRL does, with D - 1 dimensions.
      tolerance: of the mean log-likelihood.
      max_iterations: EM iterations at most.
      specialise_k: one loop for each number of components, which stops when that fit has converged. False makes one
        loop for all: it compiles faster and runs until the last one has converged. The fits are the same.

    Raises:
      ValueError: a shape or a candidate is out of range, or the criterion is unknown.
    """
    components = tuple(components)
    _check(points.shape, components, criterion)

    def fit(key: jax.Array, points: jax.Array) -> MixtureSelection:
        return _fit(
            key,
            points,
            components=components,
            criterion=criterion,
            aicc_reference=aicc_reference,
            tolerance=tolerance,
            max_iterations=max_iterations,
            specialise_k=specialise_k,
        )

    return _one_by_one_on_cpu(fit)(key, points)


def _check(shape: tuple[int, ...], components: tuple[int, ...], criterion: str) -> None:
    if len(shape) != 2 or not 1 <= shape[1] <= _MAX_DIMENSIONS:
        raise ValueError(f"points has shape {shape}; it must be (n, D) with D in 1..{_MAX_DIMENSIONS}")
    if not components or min(components) < 1 or max(components) > shape[0]:
        raise ValueError(f"components is {components}; each must be in 1..{shape[0]}, the number of points")
    if criterion not in get_args(Criterion):
        raise ValueError(f"criterion is {criterion!r}; it must be one of {', '.join(get_args(Criterion))}")


def _one_by_one_on_cpu(function: Callable[..., MixtureSelection]) -> Callable[..., MixtureSelection]:
    """Its `vmap` is `lax.map` on CPUs, also inside further transformations."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, batched: list[bool], *arguments: jax.Array) -> tuple[MixtureSelection, object]:
        full = [
            argument if is_batched else jnp.broadcast_to(argument, (axis_size, *argument.shape))
            for argument, is_batched in zip(arguments, batched, strict=True)
        ]
        out = jax.lax.platform_dependent(
            *full,
            cpu=lambda *rows: jax.lax.map(lambda row: function(*row), rows),
            default=lambda *rows: jax.vmap(function)(*rows),
        )
        return out, jax.tree.map(lambda _: True, out)

    return mapped


def _fit(
    key: jax.Array,
    points: jax.Array,
    *,
    components: tuple[int, ...],
    criterion: Criterion,
    aicc_reference: bool,
    tolerance: float,
    max_iterations: int,
    specialise_k: bool,
) -> MixtureSelection:
    count, dimensions = points.shape
    columns = pad_to_lanes(points.T)
    starts = split(seeds(key, columns, count, clusters=components), components)
    groups = [(k,) for k in components] if specialise_k else [components]
    fits: list[_Fit] = []
    for group in groups:
        centres, labels = lloyd(
            columns,
            count,
            jnp.concatenate([starts[components.index(k)] for k in group]),
            clusters=group,
        )
        fits.append(
            _em(
                columns,
                count,
                centres,
                one_hot(labels, group, points.dtype),
                components=group,
                tolerance=tolerance,
                max_iterations=max_iterations,
            )
        )
    log_likelihoods = jnp.concatenate([fit.log_likelihoods for fit in fits])
    criteria = _criteria(log_likelihoods, components, count, dimensions, criterion, aicc_reference)
    best = jnp.argmin(criteria)
    candidates = [
        _padded(part, max(components))
        for fit, group in zip(fits, groups, strict=True)
        for part in _split_rows(fit.rows, group)
    ]
    mixture = jax.tree.map(lambda *leaves: jnp.stack(leaves)[best], *candidates)
    iterations = jnp.concatenate([fit.iterations for fit in fits])
    return MixtureSelection(mixture, jnp.asarray(components)[best], criteria, log_likelihoods, iterations)


def expectation_maximisation(
    points: jax.Array, start: GaussianMixture, *, tolerance: float = 1e-3, max_iterations: int = 100
) -> tuple[GaussianMixture, jax.Array, jax.Array]:
    """EM from a given mixture, with 1e-6 added to every variance.

    Args:
      points: [n, D].
      start: K components.
      tolerance: stop when the mean log-likelihood moves by less; 0 runs all iterations.
      max_iterations: at most so many, >= 1.

    Returns:
      the mixture, its total log-likelihood, and the number of iterations.
    """
    group = (start.weights.shape[0],)
    _check(points.shape, group, "aic")
    columns = pad_to_lanes(points.T)
    valid = jnp.arange(columns.shape[1]) < points.shape[0]
    rows = _Rows(start.weights, start.means, _lower_triangle(start.covariances))
    log_likelihoods, responsibilities = _e_step(columns, valid, rows, group)
    fit = _em(
        columns,
        points.shape[0],
        start.means,
        responsibilities,
        components=group,
        tolerance=tolerance,
        max_iterations=max_iterations - 1,
        before=log_likelihoods,
    )
    return _padded(fit.rows, group[0]), fit.log_likelihoods[0], fit.iterations[0] + 1


class _Rows(NamedTuple):
    """Mixtures of several sizes, one below the other; covariances as the rows of their lower triangles."""

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array


class _Fit(NamedTuple):
    rows: _Rows
    log_likelihoods: jax.Array
    iterations: jax.Array


class _Loop(NamedTuple):
    rows: _Rows
    responsibilities: jax.Array
    log_likelihoods: jax.Array
    iterations: jax.Array
    """E- and M-steps done, the first M-step not counted."""
    converged: jax.Array
    active: jax.Array


def _em(
    points: jax.Array,
    count: int,
    centres: jax.Array,
    responsibilities: jax.Array,
    *,
    components: tuple[int, ...],
    tolerance: float,
    max_iterations: int,
    before: jax.Array | None = None,
) -> _Fit:
    """M-step, then `max_iterations` times E and M or until converged, then a last E-step.

    The loop's body is one M-step and one E-step, so that each is compiled once; it runs once more than there are
    iterations.

    Args:
      points: [D, n], padded.
      count: number of points.
      centres: [rows, D], about which the first moments are taken.
      responsibilities: [rows, n].
      components: of each mixture.
      tolerance: of the mean log-likelihood.
      max_iterations: at most so many.
      before: log-likelihoods of the mixtures that gave the responsibilities; without, there were none.
    """
    valid = jnp.arange(points.shape[1]) < count
    mixtures = len(components)
    member = jnp.repeat(jnp.arange(mixtures), jnp.asarray(components), total_repeat_length=sum(components))

    def step(state: _Loop) -> _Loop:
        rows = _m_step(points, state.rows.means, state.responsibilities, components)
        log_likelihoods, responsibilities = _e_step(points, valid, rows, components)
        change = jnp.abs(log_likelihoods - state.log_likelihoods) / count
        iterations = state.iterations + 1
        new = _Loop(
            rows,
            responsibilities,
            log_likelihoods,
            iterations,
            change < tolerance,
            state.active & ~state.converged & (iterations < max_iterations),
        )
        if mixtures == 1:
            return new
        row = state.active[member]
        kept = state._replace(active=new.active)
        return _Loop(
            jax.tree.map(
                lambda a, b: jnp.where(row.reshape(-1, *[1] * (a.ndim - 1)), a, b), new.rows, kept.rows
            ),
            jnp.where(row[:, None], new.responsibilities, kept.responsibilities),
            *(jnp.where(state.active, a, b) for a, b in zip(new[2:], kept[2:], strict=True)),
        )

    dtype, size = points.dtype, sum(components)
    first = _Loop(
        _Rows(
            jnp.zeros(size, dtype), centres, jnp.zeros((size, len(points) * (len(points) + 1) // 2), dtype)
        ),
        responsibilities,
        jnp.full(mixtures, -jnp.inf, dtype) if before is None else before,
        jnp.full(mixtures, -1, jnp.int32),
        jnp.zeros(mixtures, bool),
        jnp.ones(mixtures, bool),
    )
    last = jax.lax.while_loop(lambda state: jnp.any(state.active), step, first)
    return _Fit(last.rows, last.log_likelihoods, last.iterations)


def _e_step(
    points: jax.Array, valid: jax.Array, rows: _Rows, components: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Total log-likelihood of each mixture, and responsibilities [rows, n], 0 on padding."""
    log_density = _log_densities(points, rows)
    totals, responsibilities = [], []
    for part in split(log_density, components):
        highest = part.max(0)
        scaled = jnp.exp(part - highest)
        total = scaled.sum(0)
        responsibilities.append(scaled * (valid / total))
        totals.append(lane_sum(jnp.where(valid, highest + jnp.log(total), 0)))
    return jnp.stack(totals), jnp.concatenate(responsibilities)


def _log_densities(points: jax.Array, rows: _Rows) -> jax.Array:
    """log(weight) + log N(point; mean, covariance): [rows, n]."""
    dimensions = len(points)
    lower = _cholesky(rows.covariances, dimensions)
    inverse = [1 / lower[i][i] for i in range(dimensions)]
    constant = jnp.log(rows.weights) - dimensions / 2 * math.log(2 * math.pi)
    constant += sum(jnp.log(inverse[i]) for i in range(dimensions))
    whitened: list[jax.Array] = []
    for i in range(dimensions):
        rest = points[i] - rows.means[:, i, None]
        for j in range(i):
            rest = rest - lower[i][j][:, None] * whitened[j]
        whitened.append(rest * inverse[i][:, None])
    return constant[:, None] - 0.5 * functools.reduce(jnp.add, [z * z for z in whitened])


def _cholesky(covariances: jax.Array, dimensions: int) -> list[list[jax.Array]]:
    """Cholesky factors of all rows, element by element; pivots are floored."""
    lower: list[list[jax.Array]] = []
    for i in range(dimensions):
        lower.append([])
        for j in range(i + 1):
            rest = covariances[:, i * (i + 1) // 2 + j]
            for m in range(j):
                rest = rest - lower[i][m] * lower[j][m]
            lower[i].append(jnp.sqrt(jnp.maximum(rest, _PIVOT_FLOOR)) if i == j else rest / lower[j][j])
    return lower


def cholesky_factors(covariances: jax.Array) -> jax.Array:
    """Lower triangular factors of positive definite matrices [K, D, D], unrolled, with pivots floored at 1e-12."""
    dimensions = covariances.shape[-1]
    lower = _cholesky(_lower_triangle(covariances), dimensions)
    zero = jnp.zeros_like(lower[0][0])
    rows = [jnp.stack(line + [zero] * (dimensions - len(line)), axis=-1) for line in lower]
    return jnp.stack(rows, axis=-2)


def _m_step(
    points: jax.Array, centres: jax.Array, responsibilities: jax.Array, components: tuple[int, ...]
) -> _Rows:
    """Weights, means and covariances; moments are taken about the previous means, which costs no digits."""
    dimensions = len(points)
    offsets = [points[i] - centres[:, i, None] for i in range(dimensions)]
    weighted = [responsibilities * offset for offset in offsets]
    mass = lane_sum(responsibilities)
    size = mass + 10 * jnp.finfo(points.dtype).eps
    first = [lane_sum(part) for part in weighted]
    means = [(centres[:, i] * mass + first[i]) / size for i in range(dimensions)]
    step = [means[i] - centres[:, i] for i in range(dimensions)]
    covariances = []
    for i in range(dimensions):
        for j in range(i + 1):
            about = lane_sum(weighted[i] * offsets[j]) + mass * step[i] * step[j]
            covariances.append((about - first[i] * step[j] - first[j] * step[i]) / size + 1e-6 * (i == j))
    weights = jnp.concatenate([part / part.sum() for part in split(size, components)])
    return _Rows(weights, jnp.stack(means, axis=1), jnp.stack(covariances, axis=1))


def _criteria(
    log_likelihoods: jax.Array,
    components: tuple[int, ...],
    count: int,
    dimensions: int,
    criterion: Criterion,
    aicc_reference: bool,
) -> jax.Array:
    penalties = []
    for k in components:
        parameters = k * dimensions * (dimensions + 1) // 2 + k * dimensions + k - 1
        if criterion == "bic":
            penalties.append(parameters * math.log(count))
            continue
        penalty: float = 2 * parameters
        if criterion == "aicc":
            d = dimensions - 1
            q = k * ((d * d - d) // 2 + 2 * d + 1) - 1 if aicc_reference else parameters
            penalty += 2 * q * (q + 1) / (count - q - 1) if count > q + 1 else math.inf
        penalties.append(penalty)
    return -2 * log_likelihoods + jnp.asarray(penalties, log_likelihoods.dtype)


def _split_rows(rows: _Rows, components: tuple[int, ...]) -> list[_Rows]:
    return [_Rows(*parts) for parts in zip(*(split(leaf, components) for leaf in rows), strict=True)]


def _padded(rows: _Rows, components: int) -> GaussianMixture:
    missing = components - rows.weights.shape[0]
    dimensions = rows.means.shape[1]
    place = [
        [max(i, j) * (max(i, j) + 1) // 2 + min(i, j) for j in range(dimensions)] for i in range(dimensions)
    ]
    full = jnp.stack([jnp.stack([rows.covariances[:, p] for p in line], axis=1) for line in place], axis=1)
    eye = jnp.broadcast_to(jnp.eye(dimensions, dtype=full.dtype), (missing, dimensions, dimensions))
    return GaussianMixture(
        jnp.pad(rows.weights, (0, missing)),
        jnp.pad(rows.means, ((0, missing), (0, 0))),
        jnp.concatenate([full, eye]),
    )


def _lower_triangle(covariances: jax.Array) -> jax.Array:
    dimensions = covariances.shape[-1]
    return jnp.stack([covariances[:, i, j] for i in range(dimensions) for j in range(i + 1)], axis=1)
