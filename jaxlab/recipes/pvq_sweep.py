"""What of the pvq recipe is a pure function of the rotations' key, for sweeps over budgets, groups, dampings and seeds.

Every matrix gets the best code of the budget for its width, is rotated, and is quantized with block error feedback
from the second moments of the unquantized model; then the test text's perplexity. What the recipe does beyond that
(costs of matrices, feedback between rows, correction of earlier layers, tuning) needs the host between layers.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.kernels.block_feedback import inverse_cholesky
from jaxlab.models import Model, load, stack_padded
from jaxlab.models.capture import second_moments
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS
from jaxlab.models.loading import pruned_from
from jaxlab.models.logprobs import token_logprobs
from jaxlab.models.transformer import SITE_OF
from jaxlab.quantization.planner import candidates
from jaxlab.quantization.pvq import dequantize, quantize_prepared
from jaxlab.quantization.rotation import random_signs, rotate_hessian
from jaxlab.quantization.spec import PVQSpec
from jaxlab.recipes.pvq_windows import calibration_tuning_test
from jaxlab.sweeps.protocol import Train


def train(config: Any) -> Train:
    """From the damping and a key to `perplexity`, `bits` and `sqnr` (of the weights, dB).

    Args:
      config: of the pvq recipe.

    Raises:
      InputError: a pruned model, or a budget below what the narrowest matrix needs.
    """
    if pruned_from(config.model):
        raise InputError(f"{config.model} is pruned; a sweep of pvq takes models with whole matrices")
    loaded = load(config.model)
    model = Model(*stack_padded(loaded.params, loaded.cfg), loaded.tokenizer)
    calibration, _, test = calibration_tuning_test(config, model)
    layers = model.params["layers"]
    specs = {name: candidates(config.bits, layers[name].shape[2], n=config.group)[0].spec for name in LINEARS}
    moments = _moments(model, calibration)
    shared = (model.params, moments, jnp.asarray(test))
    return jax.tree_util.Partial(_Quantized(model.cfg, specs, config.sweeps), shared)


def _moments(model: Model, calibration: np.ndarray) -> dict[str, jax.Array]:
    """E[x x^T] at every site, one window at a time."""
    total = None
    for window in calibration:
        found = second_moments(model.params, model.cfg, jnp.asarray(window[None])).sums
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    assert total is not None
    return jax.tree.map(lambda x: x / calibration.size, total)


class _Quantized:
    """The function of parameters, second moments, test windows, options and key."""

    def __init__(self, cfg: ModelConfig, specs: dict[str, PVQSpec], sweeps: int) -> None:
        self.cfg, self.specs, self.sweeps = cfg, specs, sweeps

    def __call__(
        self, shared: tuple[Any, Any, jax.Array], options: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
        params, moments, test = shared
        layers, bits, weights = dict(params["layers"]), 0.0, 0
        signal = noise = jnp.zeros(())
        for names, spec in self._alike(layers):
            whole = jnp.concatenate([layers[name] for name in names])
            hessians = jnp.concatenate([moments[SITE_OF[name]] for name in names])
            own = [jax.random.fold_in(key, LINEARS.index(name)) for name in names]
            keys = jnp.concatenate([jax.random.split(k, len(layers[names[0]])) for k in own])

            def one(row: tuple[jax.Array, jax.Array, jax.Array], spec: PVQSpec = spec) -> jax.Array:
                w, hessian, own = row
                signs = random_signs(own, w.shape[1])
                factor = inverse_cholesky(rotate_hessian(hessian, signs), damping=options["damping"])
                return dequantize(quantize_prepared(w, signs, factor, spec=spec, sweeps=self.sweeps))

            found = jax.lax.map(one, (whole, hessians, keys))
            layers |= dict(zip(names, jnp.split(found, len(names)), strict=True))
            signal += jnp.sum(jnp.square(whole))
            noise += jnp.sum(jnp.square(whole - found))
            bits += whole.size * spec.stored_bits(whole.shape[2])
            weights += whole.size
        quantized = {**params, "layers": layers}
        scored = jax.lax.map(lambda window: token_logprobs(quantized, self.cfg, window[None]), test)
        return {
            "perplexity": jnp.exp(-jnp.mean(scored)),
            "bits": jnp.asarray(bits / weights),
            "sqnr": 10 * jnp.log10(signal / noise),
        }

    def _alike(self, layers: Mapping[str, jax.Array]) -> list[tuple[list[str], PVQSpec]]:
        """Matrices of one shape and code, which share a program."""
        found: dict[tuple[tuple[int, ...], PVQSpec], list[str]] = {}
        for name, spec in self.specs.items():
            found.setdefault((layers[name].shape, spec), []).append(name)
        return [(names, spec) for (_, spec), names in found.items()]
