"""Empirical-Fisher factors of a small causal model by kfac-jax, in float64.

Run by `benchmarks.peers.run_peer("kfac_jax", inputs)`. The model: a linear layer with bias, the mean over all tokens so
far, tanh, a linear layer without bias; the last token predicts nothing. Inputs, for N sequences of T tokens:

  first [C, H], bias [H], second [H, V]: float64, weights for `x @ w`.
  inputs: float64 [N, T, C]; targets: int [N, T - 1].

Outputs: `first_A`, `first_G`, `second_A`, `second_G`, at kfac-jax's own scale: with s the gradient of a sequence's
summed loss, `A = sum a a^T / N` and `G = sum s s^T / N^2` over all tokens. It divides their product by T when it
applies it (`average_repeats`, another output).
"""

import functools
import sys

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np
import optax


def factors(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs above from the inputs above."""
    inputs, targets = jnp.asarray(given["inputs"]), jnp.asarray(given["targets"])
    sequences, tokens = inputs.shape[:2]
    past_mean = jnp.tril(jnp.ones((tokens, tokens))) / jnp.arange(1, tokens + 1)[:, None]
    params = {"first": {"w": given["first"], "b": given["bias"]}, "second": {"w": given["second"]}}

    def loss(params: dict[str, dict[str, jax.Array]], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden = jnp.tanh(past_mean @ (batch[0] @ params["first"]["w"] + params["first"]["b"]))
        scores = (hidden @ params["second"]["w"])[:, :-1]
        kfac_jax.register_softmax_cross_entropy_loss(scores, batch[1])
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).sum() / sequences

    # By default a token whose gradient is exactly zero is taken for padding and left out of A: here the last one.
    every_token = functools.partial(kfac_jax.RepeatedDenseKroneckerFactored, use_masking=False)
    estimator = kfac_jax.BlockDiagonalCurvature(
        loss,
        default_estimation_mode="fisher_empirical",
        layer_tag_to_block_ctor={"repeated_dense": every_token},
    )
    arguments = (jax.tree.map(jnp.asarray, params), (inputs, targets))
    key = jax.random.key(0)
    state = estimator.init(key, arguments, exact_powers_to_cache=None, approx_powers_to_cache=None)
    state = estimator.update_curvature_matrix_estimate(
        state,
        ema_old=0.0,
        ema_new=1.0,
        identity_weight=0.0,
        batch_size=sequences,
        rng=key,
        func_args=arguments,
    )
    names = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    outputs = {}
    for indices, block in zip(estimator.indices_to_block_map, state.blocks_states, strict=True):
        name = names[indices[0]]
        outputs[f"{name}_A"], outputs[f"{name}_G"] = (np.asarray(factor.value) for factor in block.factors)
        outputs["average_repeats"] = np.asarray(block.average_repeats.value)
    return outputs


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    with np.load(sys.argv[1]) as arrays:
        outputs = factors(dict(arrays))
    np.savez(sys.argv[2], **outputs)
