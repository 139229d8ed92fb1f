"""Lower bounds of the evidence from blocks of data and outputs, and their unbiased estimates from one block.

By Fischer's inequality log |I + K| <= sum_b log |I + K_bb| for any partition of the rows. A block drawn at random, its
determinant times the number of blocks, is an unbiased estimate of such a bound. The prior's quadratic is never scaled,
and nothing is scaled within the determinant. Reference: arXiv:2306.03968, theorems 1 to 3.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxlab.errors import InputError
from jaxlab.evidence.captures import Apply
from jaxlab.evidence.checks import require_choice, require_count
from jaxlab.evidence.curvature import curvature_spectra
from jaxlab.evidence.function_space import Evidence, log_evidence, spectral_evidence
from jaxlab.evidence.gram import Method, Parts, block_grams, gram_leaves
from jaxlab.evidence.likelihoods import (
    Likelihood,
    OutputRows,
    Rotation,
    log_likelihood,
    output_factor,
    score_factor,
)
from jaxlab.evidence.priors import square_sums

Rows = Literal["joint", "classes", "single", "single_iid"]
Space = Literal["ntk", "tensor", "kron", "diag"]


@dataclasses.dataclass(frozen=True)
class Bound:
    """Which bound of the family.

    Raises:
      InputError: an option is unknown, or two of them do not go together.
    """

    likelihood: Likelihood = "softmax"
    """"softmax", "gaussian" or "heteroscedastic"."""
    rows: Rows = "joint"
    """The outputs within a block: "joint", all in one determinant; "classes", one determinant for each row; "single",
    one row drawn for the block; "single_iid", one drawn for each example. Sampled rows count R times."""
    output_rows: OutputRows = "factor"
    """"factor" gives bounds; "diag" is the published code's rule, which is none, see `output_factor`; "empirical" takes
    the empirical Fisher matrix, see `score_factor`."""
    rotation: Rotation = "symmetric"
    """See `output_factor`; without effect on joint rows."""
    method: Method = "structured"
    """See `gram_leaves`."""
    space: Space = "ntk"
    """"ntk" for determinants in function space; "tensor", "kron" or "diag" for the block's curvature in parameter space
    (theorem 3), with that structure in it: see `curvature_spectra`. With one block of all data that is the evidence of
    Laplace approximations that make a full pass."""
    batch: int | None = None
    """In parameter space, examples whose Jacobians exist at the same time, >= 1; None is the whole block."""

    def __post_init__(self) -> None:
        require_choice("likelihood", self.likelihood, get_args(Likelihood))
        require_choice("rows", self.rows, get_args(Rows))
        require_choice("output_rows", self.output_rows, get_args(OutputRows))
        require_choice("rotation", self.rotation, get_args(Rotation))
        require_choice("method", self.method, get_args(Method))
        require_choice("space", self.space, get_args(Space))
        if self.batch is not None:
            require_count("batch", self.batch, at_least=1)
        if self.rows != "joint" and (self.space != "ntk" or self.output_rows == "empirical"):
            raise InputError(
                f"rows is {self.rows!r} with space {self.space!r} and output_rows {self.output_rows!r}; rows must be "
                "'joint' unless space is 'ntk' and output_rows 'factor' or 'diag'"
            )
        if self.output_rows == "diag" and self.rows == "joint":
            raise InputError("output_rows is 'diag' with rows 'joint'; the rule is one for single classes")


class Hyper(NamedTuple):
    """What is learned from the evidence."""

    log_delta: PyTree
    """Of the prior precisions; a prefix of the parameters, numbers."""
    log_sigma: Float[Array, ""]
    """Of the observation noise; without effect with "softmax"."""


class CachedBlock(NamedTuple):
    """What the bound needs of a block of data at given parameters, whatever the prior and the noise."""

    grams: PyTree
    """See `gram_leaves`; rows of unit noise. In parameter space see `curvature_spectra`."""
    outputs: Float[Array, "M C"]
    targets: Array
    counted: Bool[Array, " M"]
    """False for padding."""
    square_sums: PyTree
    scale: Float[Array, ""]
    """N / M."""
    row_scale: Float[Array, ""]
    """How many rows each row stands for."""


def stochastic_evidence(
    key: jax.Array,
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    targets: Array,
    hyper: Hyper,
    *,
    total: int,
    config: Bound,
    mask: Bool[Array, " M"] | None = None,
) -> tuple[Float[Array, ""], Evidence]:
    """An unbiased estimate, from one block, of a lower bound of the evidence; differentiable in `hyper` and `inputs`.

    Parameters are constants within it: for the prior they are, and for anything else the model is trained on its own.
    The block is a uniform draw of M of the N examples, or one of the blocks of a partition, each drawn with probability
    M / N.

    Args:
      key: PRNG key; used where rows are sampled.
      apply: see `gram_leaves`.
      params: the model's parameters.
      inputs: M examples.
      targets: labels or values, see `log_likelihood`.
      hyper: where the bound is taken.
      total: N, examples in the data set, >= M.
      config: static; which bound.
      mask: False for padding; None is all. What counts as M is then the number of True.

    Returns:
      The estimate, nats, and its terms with the scale in them. `gamma` is right with `prior_gradient`.

    Raises:
      InputError: a shape, a label, or the total is wrong.
    """
    block = cache_block(key, apply, params, inputs, targets, total=total, config=config, mask=mask)
    evidence = cached_evidence(block, hyper, config=config)
    return evidence.value, evidence


def cache_block(
    key: jax.Array,
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    targets: Array,
    *,
    total: int,
    config: Bound,
    mask: Bool[Array, " M"] | None = None,
) -> CachedBlock:
    """The passes over the model that `stochastic_evidence` makes; `cached_evidence` does the rest, any number of times.

    Args:
      key: see `stochastic_evidence`.
      apply: see `stochastic_evidence`.
      params: see `stochastic_evidence`.
      inputs: see `stochastic_evidence`.
      targets: see `stochastic_evidence`.
      total: see `stochastic_evidence`.
      config: see `stochastic_evidence`.
      mask: see `stochastic_evidence`.

    Raises:
      InputError: see `stochastic_evidence`.
    """
    params = lax.stop_gradient(params)
    outputs = _outputs(apply, params, inputs, config)
    counted = jnp.ones(len(outputs), bool) if mask is None else jnp.asarray(mask, bool)
    if total < len(outputs):
        raise InputError(
            f"total is {total}, less than the {len(outputs)} examples of the block; it must count all data"
        )
    factor = _factor(outputs, targets, config) * counted[:, None, None]
    drawn, parts, times = _drawn_rows(key, factor, config)
    if config.space == "ntk":
        grams = gram_leaves(apply, params, inputs, drawn, parts=parts, method=config.method)
    else:
        grams = _spectra(apply, params, inputs, drawn, counted, config)
    scale = total / jnp.sum(counted, dtype=outputs.dtype)
    row_scale = jnp.asarray(times, outputs.dtype)
    return CachedBlock(grams, outputs, targets, counted, square_sums(params), scale, row_scale)


def cached_evidence(block: CachedBlock, hyper: Hyper, *, config: Bound) -> Evidence:
    """The estimate of `stochastic_evidence` from a cached block: one Cholesky factorisation.

    Args:
      block: of `cache_block`.
      hyper: where the bound is taken.
      config: that of the block.

    Raises:
      InputError: labels do not fit the outputs, or `hyper.log_delta` the parameters.
    """
    log_sigma = _sigma(hyper, config)
    each = log_likelihood(block.outputs, block.targets, likelihood=config.likelihood, log_sigma=log_sigma)
    of_space = log_evidence if config.space == "ntk" else spectral_evidence
    return of_space(
        block.grams,
        hyper.log_delta,
        block.scale * jnp.sum(jnp.where(block.counted, each, 0)),
        block.square_sums,
        log_sigma=_rows_sigma(hyper, config),
        scale=block.scale * block.row_scale,
    )


def partition_evidence(
    key: jax.Array,
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    targets: Array,
    hyper: Hyper,
    partition: Int[Array, "B M"],
    *,
    config: Bound,
) -> Evidence:
    """The whole bound of a partition: one block of all data and joint rows give the evidence itself.

    Args:
      key: PRNG key; used where rows are sampled, which makes the result an estimate of the class partition's bound.
      apply: see `gram_leaves`.
      params: the model's parameters.
      inputs: N examples.
      targets: labels or values, see `log_likelihood`.
      hyper: where the bound is taken.
      partition: each example in one block, -1 for padding; see `make_partition`.
      config: static; which bound.

    Raises:
      InputError: a shape or a label is wrong.
    """
    outputs = _outputs(apply, params, inputs, config)
    each = log_likelihood(outputs, targets, likelihood=config.likelihood, log_sigma=_sigma(hyper, config))
    drawn, parts, times = _drawn_rows(key, _factor(outputs, targets, config), config)
    options = {"log_sigma": _rows_sigma(hyper, config), "scale": times}
    terms = (hyper.log_delta, jnp.sum(each), square_sums(params))
    if config.space == "ntk":
        grams = block_grams(apply, params, inputs, drawn, partition, parts=parts, method=config.method)
        return log_evidence(grams, *terms, **options)

    def one(block: Int[Array, " M"]) -> PyTree:
        here = jax.tree.map(lambda x: jnp.asarray(x)[block], inputs)
        counted = block >= 0
        return _spectra(apply, params, here, drawn[block] * counted[:, None, None], counted, config)

    return spectral_evidence(lax.map(one, jnp.asarray(partition)), *terms, **options)


def _outputs(apply: Apply, params: PyTree, inputs: PyTree, config: Bound) -> Float[Array, "n C"]:
    if config.space == "ntk" or config.batch is None:
        return apply(params, inputs)
    one = functools.partial(jax.tree.map, lambda x: x[None])
    return lax.map(
        lambda example: apply(params, one(example))[0],
        jax.tree.map(jnp.asarray, inputs),
        batch_size=config.batch,
    )


def _spectra(
    apply: Apply, params: PyTree, inputs: PyTree, rows: Array, counted: Array, config: Bound
) -> PyTree:
    assert config.space != "ntk"
    batch = None if config.batch is None else min(config.batch, len(rows))
    return curvature_spectra(
        apply, params, inputs, rows, structure=config.space, batch=batch, counted=counted
    )


def _sigma(hyper: Hyper, config: Bound) -> Any:
    return hyper.log_sigma if config.likelihood == "gaussian" else 0.0


def _rows_sigma(hyper: Hyper, config: Bound) -> Any:
    """What the rows of unit noise are divided by, its logarithm."""
    return _sigma(hyper, config) * (2 if config.output_rows == "empirical" else 1)


def _factor(outputs: Float[Array, "n C"], targets: Array, config: Bound) -> Float[Array, "n C R"]:
    if config.output_rows == "empirical":
        return score_factor(outputs, targets, likelihood=config.likelihood)
    # Joint determinants do not see the rotation: the cheapest one.
    rotation: Rotation = "closed" if config.rows == "joint" else config.rotation
    return output_factor(
        outputs, likelihood=config.likelihood, output_rows=config.output_rows, rotation=rotation
    )


def _drawn_rows(
    key: jax.Array, factor: Float[Array, "n C R"], config: Bound
) -> tuple[Float[Array, "n C rows"], Parts, int]:
    """The rows that count, how they are parted, and how many times they count."""
    n, _, R = factor.shape
    if config.rows == "joint":
        return factor, "joint", 1
    if config.rows == "classes":
        return factor, "rows", 1
    drawn = jax.random.randint(key, (n if config.rows == "single_iid" else 1,), 0, R)
    return jnp.take_along_axis(factor, drawn[:, None, None], axis=2), "joint", R
