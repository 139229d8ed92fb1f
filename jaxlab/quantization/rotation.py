"""Coherence processing: an orthogonal map of the input dimension after which a row looks Gaussian.

Q = H diag(signs) with H an orthonormal Hadamard transform and random signs: y = W x = (W Q^T)(Q x).
Reference: QuIP (arXiv:2307.13304), QuaRot (arXiv:2404.00456).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.kernels.hadamard import hadamard_transform
from jaxlab.models.config import ModelConfig


def random_signs(key: jax.Array, size: int) -> Bool[Array, " size"]:
    """Signs of a rotation; True stands for -1."""
    return jax.random.bernoulli(key, shape=(size,))


def rotate(x: Float[Array, "... size"], signs: Bool[Array, " size"]) -> Float[Array, "... size"]:
    """Q x on the last axis.

    Raises:
      InputError: the last axis and `signs` differ in length.
    """
    _check(x, signs)
    return hadamard_transform(jnp.where(signs, -x, x))


def unrotate(x: Float[Array, "... size"], signs: Bool[Array, " size"]) -> Float[Array, "... size"]:
    """Q^T x on the last axis, the inverse of `rotate`."""
    _check(x, signs)
    x = hadamard_transform(x, inverse=True)
    return jnp.where(signs, -x, x)


def rotate_hessian(
    hessian: Float[Array, "size size"], signs: Bool[Array, " size"]
) -> Float[Array, "size size"]:
    """Q H Q^T, the second moment of rotated inputs."""
    return rotate(rotate(hessian, signs).T, signs).T


def fold_rotation(
    params: dict[str, Any], cfg: ModelConfig, signs: Bool[Array, " hidden"]
) -> tuple[dict[str, Any], ModelConfig]:
    """The same model with its residual stream rotated: Q goes into the weights, logits stay as they are.

    The norms' weights move into the matrices behind them, after which a norm commutes with Q; a tied head becomes
    one of its own. Reference: QuaRot (arXiv:2404.00456), section 4.

    Args:
      params: dense, layers stacked.
      cfg: the model.
      signs: of the rotation, one for each channel of the residual stream.

    Returns:
      Parameters and configuration.

    Raises:
      InputError: the family normalises its branches' outputs (Gemma 3), which does not commute with a rotation.
    """
    if cfg.sandwich_norms:
        raise InputError(
            f"fold_rotation: {cfg.family} normalises each branch's output; its stream cannot be rotated"
        )
    layers = dict(params["layers"])
    for norm, readers in (("attn_norm", ("q", "k", "v")), ("mlp_norm", ("gate", "up"))):
        scale = cfg.norm_offset + layers[norm]
        layers |= {name: rotate(layers[name] * scale[:, None, :], signs) for name in readers}
        layers[norm] = jnp.full_like(layers[norm], 1 - cfg.norm_offset)
    for name in ("o", "down"):
        layers[name] = rotate(layers[name].swapaxes(1, 2), signs).swapaxes(1, 2)
        if f"{name}_bias" in layers:
            layers[f"{name}_bias"] = rotate(layers[f"{name}_bias"], signs)
    head = params["embed"] if cfg.tie_embeddings else params["head"]
    return {
        "embed": rotate(params["embed"], signs),
        "layers": layers,
        "final_norm": jnp.full_like(params["final_norm"], 1 - cfg.norm_offset),
        "head": rotate(head * (cfg.norm_offset + params["final_norm"]), signs),
    }, dataclasses.replace(cfg, tie_embeddings=False)


def _check(x: jax.Array, signs: jax.Array) -> None:
    if x.shape[-1] != signs.shape[-1]:
        raise InputError(f"x has {x.shape[-1]} columns, but signs has {signs.shape[-1]}")
