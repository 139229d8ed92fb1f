"""Rotary position embeddings in the half-split layout of Hugging Face.

Head dimension i is rotated together with i + half of the rotated ones by the angle position * inverse_frequency[i].
Reference: arXiv:2104.09864, section 3.4.2; the llama3 stretch is that of the Llama 3.1 release.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.models.config import ModelConfig, RopeScaling

NO_WINDOW = 2**30
"""Window of a layer with global attention: larger than any sequence."""


def layer_geometry(cfg: ModelConfig) -> tuple[Float[Array, "layers half_dim"], Int[Array, " layers"]]:
    """Rotary frequencies and attention window of every layer, as arrays that one scan can slice.

    Returns:
        inverse_frequencies float32 [L, cfg.rotated / 2], and windows int32 [L], `NO_WINDOW` in global layers.
    """
    table, kinds = frequency_table(cfg)
    windows = [NO_WINDOW if window is None else window for window in cfg.layer_windows]
    return jnp.asarray(table[kinds]), jnp.asarray(windows, jnp.int32)


def frequency_table(cfg: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of inverse frequencies, float32 [1 or 2, cfg.rotated / 2], and the row of each layer."""
    plain = _stretched(_frequencies(cfg.rope_theta, cfg.rotated), cfg.rope_scaling)
    if cfg.rope_theta_local is None:
        return plain[None], np.zeros(cfg.num_layers, np.int32)
    local = _frequencies(cfg.rope_theta_local, cfg.rotated)
    return np.stack([plain, local]), np.array([window is not None for window in cfg.layer_windows], np.int32)


def rotary_factors(
    inverse_frequencies: Float[Array, " half_dim"], positions: Int[Array, "batch time"]
) -> tuple[Float[Array, "batch time half_dim"], Float[Array, "batch time half_dim"]]:
    """Cosine and sine of position * inverse frequency, in float32."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch time heads dim"],
    cos: Float[Array, "batch time half_dim"],
    sin: Float[Array, "batch time half_dim"],
) -> Float[Array, "batch time heads dim"]:
    """Turn each head's pair (i, i + dim / 2) by its angle; float32 inside, the dtype of `x` outside.

    Where there are fewer angles than pairs, the last dimensions stay as they are and the pairs are those of the rest.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :width], cos, sin), x[..., width:]], axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _frequencies(theta: float, head_dim: int) -> np.ndarray:
    """Compute theta ** (-2 i / head_dim), with the roundings of a float32 computation."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (np.float32(1.0) / np.float32(theta) ** exponents).astype(np.float32)


def _stretched(frequencies: np.ndarray, scaling: RopeScaling | None) -> np.ndarray:
    """Frequencies after `scaling`."""
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_positions / wavelengths
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (keep * frequencies + (1.0 - keep) * frequencies / scaling.factor).astype(np.float32)
