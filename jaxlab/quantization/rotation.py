"""Coherence processing: an orthogonal map of the input dimension after which a row looks Gaussian.

Q = H diag(signs) with H an orthonormal Hadamard transform and random signs: y = W x = (W Q^T)(Q x).
Reference: QuIP (arXiv:2307.13304), QuaRot (arXiv:2404.00456).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.kernels.hadamard import hadamard_transform


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


def _check(x: jax.Array, signs: jax.Array) -> None:
    if x.shape[-1] != signs.shape[-1]:
        raise InputError(f"x has {x.shape[-1]} columns, but signs has {signs.shape[-1]}")
