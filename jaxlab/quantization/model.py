"""Quantization of a whole language model, block by block, on the activations of the part already quantized.

For every matrix of a block the second moment H of its inputs is taken on the calibration windows as the quantized
model of the blocks before presents them, so that a block can make up for the errors before it. Reference: GPTQ
(arXiv:2210.17323) for the order; the target that corrects earlier errors is that of GPTAQ (arXiv:2504.02692) and
QEP (arXiv:2504.09629).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS, dense
from jaxlab.models.rope import layer_geometry
from jaxlab.models.stacking import take_layer
from jaxlab.models.transformer import INPUT_SITES, block, embed
from jaxlab.quantization.pvq import PVQTensor, dequantize, feedback_factor, quantize_prepared
from jaxlab.quantization.rotation import random_signs
from jaxlab.quantization.scalar import ScalarSpec, ScalarTensor, dequantize_scalar, quantize_scalar
from jaxlab.quantization.spec import PVQSpec, RowMap

Spec = PVQSpec | ScalarSpec
_SITE_OF = {name: site for site, names in INPUT_SITES.items() for name in names}
QuantizedTensor = PVQTensor | ScalarTensor


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How the matrices of a model are quantized."""

    specs: Sequence[Mapping[str, Spec]]
    """For each layer the code of each of `LINEARS`."""
    rotated: bool = True
    """Rotate the input dimension first."""
    feedback: bool = True
    """Pass rounding errors on by the second moment of the inputs; needs calibration windows."""
    correction: float = 0.0
    """Share of the earlier layers' error that a matrix is asked to undo, 0 to 1 (with feedback)."""
    damping: float = 0.01
    """Share of the Hessian's mean diagonal that is added to it, > 0."""
    sweeps: int = 0
    """Passes of coordinate descent over the groups after the feedback (PVQ)."""
    refit: bool = False
    """Fit the gains again once the directions are known (PVQ with feedback)."""

    def __post_init__(self) -> None:
        """Raises InputError where a layer's specs do not name each matrix, or a value is out of range."""
        for layer, specs in enumerate(self.specs):
            if sorted(specs) != sorted(LINEARS):
                raise InputError(
                    f"specs of layer {layer} name {sorted(specs)}; they must name {sorted(LINEARS)}"
                )
        if not 0 <= self.correction <= 1:
            raise InputError(f"correction is {self.correction}; it must lie between 0 and 1")
        if not self.damping > 0:
            raise InputError(f"damping is {self.damping}; it must be > 0")


class QuantizedLayer(NamedTuple):
    """One block's quantized matrices, and how well each is met."""

    layer: int
    tensors: dict[str, QuantizedTensor]
    weight_sqnr: dict[str, float]
    """Signal over noise of the weights, dB."""
    output_sqnr: dict[str, float]
    """The same weighted by the second moment of the inputs, dB (0 calibration windows: empty)."""


class _Moments(NamedTuple):
    """Of the quantized model's inputs x and the exact model's x~: E[x x^T] and E[x~ x^T]."""

    hessian: Float[Array, "size size"]
    cross: Float[Array, "size size"] | None


def quantize_layers(
    params: dict[str, Any],
    cfg: ModelConfig,
    scheme: Scheme,
    key: jax.Array,
    *,
    tokens: Int[Array, "windows context"] | None = None,
    token_weights: Mapping[str, Float[Array, "layers windows context"]] | None = None,
    done: Sequence[Mapping[str, QuantizedTensor]] = (),
    row_map: RowMap = lambda function: function,
) -> Iterator[QuantizedLayer]:
    """Quantizes the matrices of a model's blocks, first block first.

    Args:
      params: the model; stacked layers or a tuple of them. Embedding, head and norms stay as they are.
      cfg: static.
      scheme: codes and options.
      key: PRNG key of the rotations.
      tokens: calibration windows; needed with `scheme.feedback`.
      token_weights: for each matrix how much an error at a token matters (see `sensitivity`); None is all the
        same.
      done: tensors of the first blocks from an interrupted run; the iterator goes on after them, with the
        same result.
      row_map: wraps the row-wise quantizer `f(rows, *replicated)`, e.g. to shard rows over devices.

    Yields:
      The quantized blocks after `done`, in order.

    Raises:
      InputError: a matrix is not finite or does not fit its code, or calibration windows are missing.
    """
    if len(scheme.specs) != cfg.num_layers:
        raise InputError(f"scheme has specs for {len(scheme.specs)} layers, the model has {cfg.num_layers}")
    if scheme.feedback and tokens is None:
        raise InputError("tokens: feedback needs calibration windows")
    if len(done) >= cfg.num_layers:
        return
    state = None
    if scheme.feedback:
        hidden = embed(params, cfg, jnp.asarray(tokens))
        state = _Activations(hidden if scheme.correction > 0 else None, hidden)
    frequencies, windows = layer_geometry(cfg)
    for index in range(cfg.num_layers):
        layer = layer_of(params, index)
        geometry = take_layer((frequencies, windows), index)
        result = None
        if index < len(done):
            tensors = dict(done[index])
        else:
            weights = None if token_weights is None else take_layer(dict(token_weights), index)
            layer_key = jax.random.fold_in(key, index)
            result = _quantize_layer(layer, cfg, geometry, scheme, layer_key, index, state, weights, row_map)
            tensors = result.tensors
        if state is not None and index + 1 < cfg.num_layers:
            approximate = layer | {name: dequantize_any(tensor) for name, tensor in tensors.items()}
            state = _Activations(
                None if state.exact is None else _advance(layer, cfg, state.exact, *geometry),
                _advance(approximate, cfg, state.quantized, *geometry),
            )
        if result is not None:
            yield result


def dequantize_any(tensor: QuantizedTensor) -> Float[Array, "*stack rows columns"]:
    """The matrix that a quantized tensor of either kind stands for."""
    return dequantize(tensor) if isinstance(tensor, PVQTensor) else dequantize_scalar(tensor)


def layer_of(params: dict[str, Any], index: int) -> dict[str, Any]:
    """The parameters of one block, from stacked layers or a tuple."""
    layers = params["layers"]
    return layers[index] if isinstance(layers, tuple) else take_layer(layers, index)


class _Activations(NamedTuple):
    """Residual stream of the calibration windows in the exact model (if it is asked for) and in the quantized
    one.
    """

    exact: Float[Array, "windows context hidden"] | None
    quantized: Float[Array, "windows context hidden"]


def _quantize_layer(
    layer: dict[str, Any],
    cfg: ModelConfig,
    geometry: tuple[Array, Array],
    scheme: Scheme,
    key: jax.Array,
    index: int,
    state: _Activations | None,
    token_weights: Mapping[str, Array] | None,
    row_map: RowMap,
) -> QuantizedLayer:
    specs = scheme.specs[index]
    weight_sqnr: dict[str, float] = {}
    output_sqnr: dict[str, float] = {}
    moments = None
    if state is not None:
        moments = _moments(layer, cfg, state, *geometry, token_weights)
    signs_of: dict[str, Array | None] = {}
    for number, (site, names) in enumerate(INPUT_SITES.items()):
        size = dense(layer[names[0]]).shape[1]
        signs_of[site] = random_signs(jax.random.fold_in(key, number), size) if scheme.rotated else None
    factors: dict[str, Array] = {}
    for source, moment in (moments or {}).items():
        try:
            signs = signs_of[_SITE_OF.get(source, source)]
            factors[source] = feedback_factor(moment.hessian, signs, damping=scheme.damping)
        except InputError as error:
            raise InputError(f"layer {index}, {source}: {error}") from error

    def one(name: str) -> QuantizedTensor:
        w = dense(layer[name]).astype(jnp.float32)
        if not bool(jnp.isfinite(w).all()):
            raise InputError(f"non-finite weight in layer {index}, matrix {name}")
        signs = signs_of[_SITE_OF[name]]
        if moments is None:
            tensor = _quantize_matrix(w, signs, None, specs[name], scheme, row_map)
        else:
            source = name if name in moments else _SITE_OF[name]
            moment, target = moments[source], w
            if moment.cross is not None:
                target = _corrected(w, moment.hessian, moment.cross, scheme.damping, scheme.correction)
            tensor = _quantize_matrix(target, signs, factors[source], specs[name], scheme, row_map)
            output_sqnr[name] = float(_sqnr(w, dequantize_any(tensor), moment.hessian))
        weight_sqnr[name] = float(_sqnr(w, dequantize_any(tensor), None))
        return tensor

    return QuantizedLayer(index, {name: one(name) for name in LINEARS}, weight_sqnr, output_sqnr)


def _quantize_matrix(
    w: Array,
    signs: Array | None,
    factor: Array | None,
    spec: Spec,
    scheme: Scheme,
    row_map: RowMap,
) -> QuantizedTensor:
    tensor: QuantizedTensor
    if isinstance(spec, ScalarSpec):
        tensor = quantize_scalar(w, signs, factor, spec=spec, row_map=row_map)
    else:
        tensor = quantize_prepared(
            w, signs, factor, spec=spec, sweeps=scheme.sweeps, refit=scheme.refit, row_map=row_map
        )
    # Whole on every device: spread, the codes would make XLA split the passes through the model, and sum in another
    # order.
    sharding = tensor.words.sharding
    if isinstance(sharding, NamedSharding):
        tensor = jax.device_put(tensor, NamedSharding(sharding.mesh, PartitionSpec()))
    return tensor


@functools.partial(jax.jit, static_argnames="cfg")
def _advance(
    layer: dict[str, Any], cfg: ModelConfig, hidden: Array, frequencies: Array, window: Array
) -> Array:
    """The residual stream after one block, a window at a time."""

    def one(hidden: Array) -> Array:
        return block(layer, cfg, hidden[None], inverse_frequencies=frequencies, window=window)[0][0]

    return jax.lax.map(one, hidden)


@functools.partial(jax.jit, static_argnames="cfg")
def _moments(
    layer: dict[str, Any],
    cfg: ModelConfig,
    state: _Activations,
    frequencies: Array,
    window: Array,
    weights: dict[str, Float[Array, "windows context"]] | None,
) -> dict[str, _Moments]:
    """Moments of the inputs of each matrix, each token with its weight; without weights, of each site."""

    def taps(hidden: Array) -> dict[str, Array]:
        inputs = block(layer, cfg, hidden[None], inverse_frequencies=frequencies, window=window)[2]
        by_site = {site: x[0] for site, x in inputs.items()}
        return by_site if weights is None else {name: by_site[_SITE_OF[name]] for name in weights}

    def add(
        total: dict[str, _Moments], one_window: tuple[_Activations, dict[str, Array] | None]
    ) -> tuple[dict[str, _Moments], None]:
        hidden, weights = one_window
        quantized = taps(hidden.quantized)
        exact = None if hidden.exact is None else taps(hidden.exact)

        def plus(name: str) -> _Moments:
            x = quantized[name]
            weighted = x if weights is None else x * weights[name][:, None]
            before = total[name]
            cross = None
            if exact is not None and before.cross is not None:
                cross = before.cross + exact[name].T @ weighted
            return _Moments(before.hessian + x.T @ weighted, cross)

        return {name: plus(name) for name in total}, None

    def zero(x: jax.ShapeDtypeStruct) -> _Moments:
        square = jnp.zeros((x.shape[-1], x.shape[-1]))
        return _Moments(square, None if state.exact is None else square)

    shapes = jax.eval_shape(taps, state.quantized[0])
    total, _ = jax.lax.scan(add, {name: zero(x) for name, x in shapes.items()}, (state, weights))
    count = state.quantized.shape[0] * state.quantized.shape[1]
    weight = {name: count if weights is None else jnp.sum(weights[name]) for name in total}
    return {name: jax.tree.map(lambda x, name=name: x / weight[name], total[name]) for name in total}


@jax.jit
def _corrected(w: Array, hessian: Array, cross: Array, damping: Array, share: Array) -> Array:
    """The matrix that on the quantized model's inputs comes closest to what `w` does on the exact model's."""
    damped = hessian + damping * jnp.mean(jnp.diagonal(hessian)) * jnp.eye(w.shape[1])
    shift = jax.scipy.linalg.solve(damped, (cross - hessian).T @ w.T, assume_a="pos").T
    return w + share * shift


@jax.jit
def _sqnr(w: Array, approximate: Array, hessian: Array | None) -> Array:
    def power(x: Array) -> Array:
        return jnp.sum(x * x) if hessian is None else jnp.sum((x @ hessian) * x)

    return 10 * jnp.log10(power(w) / power(w - approximate))
