"""Empirical-Fisher KFAC factors by two other libraries, brought to the scale of ours.

Agreed scale, for N sequences of T tokens with P = T - 1 predictions each:

    A = sum over tokens of a a^T / (N T)        G = sum over tokens of g g^T / (N T)

with a the input of a linear layer (a constant 1 appended if it has a bias) and g the gradient at its output of the
sequence's *mean* loss. With s = P g the gradient of the sequence's *summed* loss, the libraries keep

    curvlinops 3.0.1, reduction="mean", one batch:  A = sum a a^T / (N T)    G = sum s s^T / (N P)
    kfac-jax 0.0.8, "fisher_empirical":             A = sum a a^T / N        G = sum s s^T / N^2

and kfac-jax divides the product by T when it is applied. Both live in environments of their own: `benchmarks/peers`.
"""

import os
from collections.abc import Mapping

import numpy as np

from benchmarks.peers import run_peer

Pair = tuple[np.ndarray, np.ndarray]
"""A [C, C] and G [R, R] of one layer."""


def curvlinops_factors(directory: str | os.PathLike[str], windows: np.ndarray) -> dict[str, Pair]:
    """Factors by curvlinops of a model in a Hugging Face directory, by the names of the weights.

    Args:
      directory: as `save_hf` writes it.
      windows: int [N, T].
    """
    found = run_peer("curvlinops", {"model": np.array(str(directory)), "windows": windows})
    tokens = windows.shape[1]
    names = [key.removeprefix("A:") for key in found if key.startswith("A:")]
    return {name: (found[f"A:{name}"], found[f"G:{name}"] / ((tokens - 1) * tokens)) for name in names}


def kfac_jax_factors(
    weights: Mapping[str, np.ndarray], inputs: np.ndarray, targets: np.ndarray
) -> dict[str, Pair]:
    """Factors by kfac-jax of the small causal model in `benchmarks/peers/kfac_jax.py`, which traces no transformer.

    Args:
      weights: `first` [H, C], `bias` [H] and `second` [V, H].
      inputs: float [N, T, C].
      targets: int [N, T - 1].
    """
    first, bias, second = (np.asarray(weights[name]) for name in ("first", "bias", "second"))
    given = {"first": first.T, "bias": bias, "second": second.T, "inputs": inputs, "targets": targets}
    found = run_peer("kfac_jax", given)
    sequences, tokens = inputs.shape[:2]
    scale = sequences / ((tokens - 1) ** 2 * tokens)
    return {name: (found[f"{name}_A"] / tokens, found[f"{name}_G"] * scale) for name in ("first", "second")}
