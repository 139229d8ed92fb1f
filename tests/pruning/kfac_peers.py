"""Empirical-Fisher KFAC factors by two other libraries, brought to the scale of ours.

Agreed scale, for N sequences of T tokens with P predictions each (P = T - 1 in a language model):

    A = sum over tokens of a a^T / (N T)        G = sum over tokens of g g^T / (N T)

with a the input of a linear layer (a constant 1 appended if it has a bias) and g the gradient at its output of the
sequence's *mean* loss. With s = P g the gradient of the sequence's *summed* loss, the libraries keep

    curvlinops 3.0.1, reduction="mean", one batch:  A = sum a a^T / (N T)    G = sum s s^T / (N P)
    kfac-jax 0.0.8, "fisher_empirical":             A = sum a a^T / N        G = sum s s^T / N^2

and kfac-jax divides the product by T when it is applied.
"""

import numpy as np
import torch

from benchmarks.peers import run_peer

Pair = tuple[np.ndarray, np.ndarray]
"""A [C, C] and G [R, R] of one layer."""


def curvlinops_factors(
    module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, *, layers: list[str]
) -> dict[str, Pair]:
    """Factors by curvlinops ("expand", weight and bias together); runs in our environment.

    Args:
      module: maps `inputs` [N, T, ...] to scores [N, V, P], classes in the middle as `CrossEntropyLoss` wants them.
      inputs: one batch; token ids will do.
      targets: int [N, P].
      layers: names of the `nn.Linear` modules inside; each must be used once.
    """
    from curvlinops import KFACLinearOperator

    tokens, predictions = inputs.shape[1], targets.shape[1]
    operator = KFACLinearOperator(
        module,
        torch.nn.CrossEntropyLoss(reduction="mean"),
        [parameter for name in layers for parameter in module.get_submodule(name).parameters()],
        [(inputs, targets)],
        fisher_type="empirical",
        kfac_approx="expand",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    A, G = operator._input_covariances, operator._gradient_covariances
    return {name: (A[name].numpy(), G[name].numpy() / (predictions * tokens)) for name in layers}


def kfac_jax_factors(
    first: np.ndarray, bias: np.ndarray, second: np.ndarray, inputs: np.ndarray, targets: np.ndarray
) -> dict[str, Pair]:
    """Factors by kfac-jax, in an environment of its own, of the small model in `benchmarks/peers/kfac_jax.py`.

    Args:
      first: [H, C], weights as [out, in].
      bias: [H].
      second: [V, H].
      inputs: [N, T, C].
      targets: int [N, P], with P = T - 1.
    """
    (sequences, tokens), predictions = inputs.shape[:2], targets.shape[1]
    weights = {"first": first.T, "bias": bias, "second": second.T}
    found = run_peer("kfac_jax", weights | {"inputs": inputs, "targets": targets})
    scale = sequences / (predictions**2 * tokens)
    return {name: (found[f"{name}_A"] / tokens, found[f"{name}_G"] * scale) for name in ("first", "second")}
