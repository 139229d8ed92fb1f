"""Quantization of a whole language model, block by block, on the activations of the part already quantized.

For every matrix of a block the second moment H of its inputs is taken on the calibration windows as the quantized
model of the blocks before presents them, so that a block can make up for the errors before it. Reference: GPTQ
(arXiv:2210.17323) for the order; the target that corrects earlier errors is that of GPTAQ (arXiv:2504.02692) and
QEP (arXiv:2504.09629).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.block_feedback import damped
from jaxlab.models.config import ModelConfig
from jaxlab.models.fast_products import with_fast_products
from jaxlab.models.linear import LINEARS, dense
from jaxlab.models.rope import layer_geometry
from jaxlab.models.stacking import take_layer
from jaxlab.models.transformer import INPUT_SITES, embed
from jaxlab.models.validation import require_gated_blocks
from jaxlab.quantization.activations import BRANCHES, after_branch, block_inputs, second_moment, site_inputs
from jaxlab.quantization.parts import (
    Part,
    Parts,
    cut,
    cut_inputs,
    cut_outputs,
    part_of,
    put_back,
    spread_rows,
    take_rows,
)
from jaxlab.quantization.pvq import PVQTensor, dequantize, feedback_factor, quantize_prepared
from jaxlab.quantization.rotation import random_signs
from jaxlab.quantization.scalar import ScalarSpec, ScalarTensor, dequantize_scalar, quantize_scalar
from jaxlab.quantization.spec import PVQSpec, RowMap

Spec = PVQSpec | ScalarSpec
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
    output_damping: float = 0.1
    """Share of the mean diagonal of the gradients' second moment at the outputs that is added to it, > 0."""
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
    output_moments: Mapping[str, Float[Array, "layers rows rows"]] | None = None,
    done: Sequence[Mapping[str, QuantizedTensor]] = (),
    parts: Parts | None = None,
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
      output_moments: for each matrix the second moment of the gradients at its outputs (see `sensitivity`):
        PVQ then passes errors on between rows too.
      done: tensors of the first blocks from an interrupted run; the iterator goes on after them, with the
        same result.
      parts: of a pruned model what is left of each matrix, see `find_parts`; only that is coded. None is all.
      row_map: wraps the row-wise quantizer `f(rows, *replicated)`, e.g. to shard rows over devices.

    Yields:
      The quantized blocks after `done`, in order.

    Raises:
      InputError: the family's blocks are of another kind, a matrix is not finite or does not fit its code, or
        calibration windows are missing.
    """
    require_gated_blocks(cfg, "quantization")
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
    geometry = layer_geometry(cfg)
    for index in range(cfg.num_layers):
        layer = layer_of(params, index)
        exact, inputs = None, None
        place = take_layer(geometry, index)
        if state is not None and state.exact is not None:
            exact, inputs = block_inputs(with_fast_products(layer), cfg, state.exact, *place)
        result, after = None, None
        if index < len(done):
            if state is not None:
                approximate = layer | {
                    name: dequantize_part(tensor, part_of(parts, index, name), layer[name].shape)
                    for name, tensor in done[index].items()
                }
                after = _after_block(with_fast_products(approximate), cfg, state.quantized, place)
        else:
            by_layer = (dict(token_weights or {}), dict(output_moments or {}))
            weights, outputs = take_layer(by_layer, index)
            calibration = None
            if state is not None:
                calibration = _Calibration(cfg, state.quantized, inputs, place, weights, outputs)
            result, after = _quantize_layer(
                layer,
                scheme,
                jax.random.fold_in(key, index),
                index,
                calibration,
                None if parts is None else parts[index],
                row_map,
            )
        if after is not None:
            state = _Activations(exact, after)
        if result is not None:
            yield result


def dequantize_any(tensor: QuantizedTensor) -> Float[Array, "*stack rows columns"]:
    """The matrix that a quantized tensor of either kind stands for."""
    return dequantize(tensor) if isinstance(tensor, PVQTensor) else dequantize_scalar(tensor)


def dequantize_part(
    tensor: QuantizedTensor, one: Part | None, shape: tuple[int, ...]
) -> Float[Array, "rows columns"]:
    """The matrix `shape` of a model with stacked layers, of which a part is quantized; zeros elsewhere."""
    return put_back(dequantize_any(spread_rows(tensor, one, shape[0])), one, shape[1])


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


class _Calibration(NamedTuple):
    """What a block is quantized for."""

    cfg: ModelConfig
    hidden: Float[Array, "windows context hidden"]
    """Residual stream of the quantized model before the block."""
    exact: dict[str, Array] | None
    """Inputs of the block's matrices in the exact model (with correction)."""
    place: tuple[Array, Array]
    """The block's row of `layer_geometry`."""
    weights: dict[str, Array]
    """Of the tokens, for each matrix; empty: all the same."""
    outputs: dict[str, Array]
    """Second moments of the gradients at the outputs, or empty."""


def _quantize_layer(
    layer: dict[str, Any],
    scheme: Scheme,
    key: jax.Array,
    index: int,
    calibration: _Calibration | None,
    parts: Mapping[str, Part] | None,
    row_map: RowMap,
) -> tuple[QuantizedLayer, Float[Array, "windows context hidden"] | None]:
    """The matrices in the order in which the block uses them, each site's inputs as those before it leave them.

    Returns:
      The block, and the residual stream after it (with calibration).
    """
    specs = scheme.specs[index]
    tensors: dict[str, QuantizedTensor] = {}
    weight_sqnr: dict[str, float] = {}
    output_sqnr: dict[str, float] = {}
    current = dict(layer)
    hidden = None if calibration is None else calibration.hidden
    for number, (site, names) in enumerate(INPUT_SITES.items()):
        matrices = {name: dense(layer[name]).astype(jnp.float32) for name in names}
        for name, w in matrices.items():
            if not bool(jnp.isfinite(w).all()):
                raise InputError(f"non-finite weight in layer {index}, matrix {name}")
        moments: dict[str, _Moments] = {}
        rows = None
        if calibration is not None:
            inputs, rows = site_inputs(
                with_fast_products(current), calibration.cfg, hidden, *calibration.place, site=site
            )
            moments = _moments(inputs, calibration, site)
        site_key = jax.random.fold_in(key, number)
        factors: dict[tuple[str, bytes], Array] = {}  # matrices of one input share it, unless parts differ
        for name, w in matrices.items():
            one = None if parts is None else parts[name]
            target, factor, outputs = cut(w, one), None, None
            signs = random_signs(site_key, target.shape[1]) if scheme.rotated else None
            moment = moments.get(name, moments.get(site))
            if calibration is not None and moment is not None:
                hessian = cut_inputs(moment.hessian, one)
                which = (name if name in moments else site, b"" if one is None else one.columns.tobytes())
                if which not in factors:
                    try:
                        factors[which] = feedback_factor(hessian, signs, damping=scheme.damping)
                    except InputError as error:
                        raise InputError(f"layer {index}, {site}: {error}") from error
                factor = factors[which]
                outputs = calibration.outputs.get(name)
                if outputs is not None:
                    outputs = cut_outputs(damped(outputs.astype(jnp.float32), scheme.output_damping), one)
                if moment.cross is not None:
                    cross = cut_inputs(moment.cross, one)
                    target = _corrected(target, hessian, cross, scheme.damping, scheme.correction)
            tensor = _quantize_matrix(target, signs, factor, outputs, specs[name], scheme, row_map)
            approximate = put_back(dequantize_any(tensor), one, w.shape[1])
            tensors[name] = take_rows(tensor, one)
            current[name] = approximate
            weight_sqnr[name] = float(_sqnr(w, approximate, None))
            if moment is not None:
                output_sqnr[name] = float(_sqnr(w, approximate, moment.hessian))
        if calibration is not None and site in BRANCHES:
            hidden = after_branch(with_fast_products(current), calibration.cfg, hidden, rows, site=site)
    return QuantizedLayer(index, tensors, weight_sqnr, output_sqnr), hidden


def _quantize_matrix(
    w: Array,
    signs: Array | None,
    factor: Array | None,
    outputs: Array | None,
    spec: Spec,
    scheme: Scheme,
    row_map: RowMap,
) -> QuantizedTensor:
    tensor: QuantizedTensor
    if isinstance(spec, ScalarSpec):
        tensor = quantize_scalar(w, signs, factor, spec=spec, row_map=row_map)
    else:
        tensor = quantize_prepared(
            w,
            signs,
            factor,
            spec=spec,
            sweeps=scheme.sweeps,
            refit=scheme.refit,
            output_moment=outputs,
            row_map=row_map,
        )
    # Whole on every device: spread, the codes would make XLA split the passes through the model, and sum in another
    # order.
    sharding = tensor.words.sharding
    if isinstance(sharding, NamedSharding):
        tensor = jax.device_put(tensor, NamedSharding(sharding.mesh, PartitionSpec()))
    return tensor


def _after_block(layer: dict[str, Any], cfg: ModelConfig, hidden: Array, place: tuple[Array, Array]) -> Array:
    """As `_quantize_layer` leaves the residual stream, to the bit."""
    for site in BRANCHES:
        _, rows = site_inputs(layer, cfg, hidden, *place, site=site)
        hidden = after_branch(layer, cfg, hidden, rows, site=site)
    return hidden


def _moments(inputs: Array, calibration: _Calibration, site: str) -> dict[str, _Moments]:
    """Moments of the inputs of each matrix at a site, each token with its weight; without weights, of the site."""
    exact = None if calibration.exact is None else calibration.exact[site]
    if not calibration.weights:
        return {site: _Moments(*second_moment(inputs, exact, None))}
    return {
        name: _Moments(*second_moment(inputs, exact, calibration.weights[name])) for name in INPUT_SITES[site]
    }


@jax.jit
def _corrected(w: Array, hessian: Array, cross: Array, damping: Array, share: Array) -> Array:
    """The matrix that on the quantized model's inputs comes closest to what `w` does on the exact model's."""
    shift = jax.scipy.linalg.solve(damped(hessian, damping), (cross - hessian).T @ w.T, assume_a="pos").T
    return w + share * shift


@jax.jit
def _sqnr(w: Array, approximate: Array, hessian: Array | None) -> Array:
    def power(x: Array) -> Array:
        return jnp.sum(x * x) if hessian is None else jnp.sum((x @ hessian) * x)

    return 10 * jnp.log10(power(w) / power(w - approximate))
