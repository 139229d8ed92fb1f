"""Keys and values of a model's cache in pyramid codes or in scalar ones: a head's vector of one token is a row.

The vector is rotated, so that it looks Gaussian whatever its channels are, and stored as a row of a weight matrix is:
groups of `n` numbers, each the index of an integer direction and a gain code, packed into words, beside the row's root
mean square in half precision. Rotary positions are applied before. Of keys most is what all tokens share: what they are
beyond their mean (`mean_keys`) is what should be coded. Reference: arXiv:2410.16926; for the grouping over
a head, KIVI (arXiv:2402.02750) and QuaRot (arXiv:2404.00456), section 4.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.cache import init_cache
from jaxlab.models.config import ModelConfig
from jaxlab.models.transformer import forward
from jaxlab.quantization.pvq import PVQTensor, dequantize, levels_for
from jaxlab.quantization.rotation import random_signs
from jaxlab.quantization.rows import code_of, quantize_rows, shared_tables
from jaxlab.quantization.scalar import ScalarSpec, ScalarTensor, dequantize_scalar, scalar_rows
from jaxlab.quantization.spec import PVQSpec

_SIGNS_SEED = 0  # any will do, as long as reading and writing agree


@dataclasses.dataclass(frozen=True)
class CacheCode:
    """A code of the vectors of a cache, for `init_cache(..., code=...)` and `generate(..., cache_code=...)`.

    A vector's root mean square must be below 65504, the largest number in half precision.
    """

    spec: PVQSpec | ScalarSpec
    """Of a row as long as a head is wide."""
    rotated: bool = True
    """Rotate by signs and a Hadamard transform first; scalar codes may go without."""

    def bits(self, head_dim: int) -> float:
        """Bits a cached number: indices, gains, the padding of a vector to words, and its scale.

        Args:
            head_dim: numbers a vector.

        Raises:
            InputError: the spec's groups do not divide a vector.
        """
        self._check(head_dim)
        return self.spec.stored_bits(head_dim)

    def encode(self, x: Float[Array, "... head_dim"]) -> dict[str, Array]:
        """Words `[..., row_words]`, and scales (for "minmax" also minima) `[..., groups]`.

        Raises:
            InputError: the spec's groups do not divide a vector.
        """
        lead, head_dim = x.shape[:-1], x.shape[-1]
        self._check(head_dim)
        rows = x.reshape(-1, head_dim).astype(jnp.float32)
        if isinstance(self.spec, PVQSpec):
            spec = self.spec
            words, scale = quantize_rows(
                rows,
                jnp.float32(1),
                code_of(spec, jnp.asarray(levels_for(spec, head_dim))),
                jnp.asarray(shared_tables(spec.n, spec.k)),
                self._signs(head_dim),
                None,
                n=spec.n,
                candidates=spec.candidates,
                words=spec.row_words(head_dim),
            )
            found = {"words": words, "scale": scale[:, None]}
        else:
            words, scale, minimum = scalar_rows(rows, self._signs(head_dim), None, spec=self.spec)
            found = {"words": words, "scale": scale}
            if self.spec.grid == "minmax":
                found |= {"minimum": minimum}
        return {name: leaf.reshape(*lead, leaf.shape[-1]) for name, leaf in found.items()}

    def decode(self, codes: dict[str, Array], head_dim: int) -> Float[Array, "... head_dim"]:
        """The vectors that codes stand for, in float32.

        Args:
            codes: from `encode`.
            head_dim: numbers a vector.
        """
        lead = codes["words"].shape[:-1]
        flat = {name: leaf.reshape(-1, leaf.shape[-1]) for name, leaf in codes.items()}
        signs = self._signs(head_dim)
        if isinstance(self.spec, PVQSpec):
            levels = jnp.asarray(levels_for(self.spec, head_dim))
            tensor = PVQTensor(flat["words"], flat["scale"][:, 0], levels, signs, self.spec, head_dim)
            return dequantize(tensor).reshape(*lead, head_dim)
        scalars = ScalarTensor(flat["words"], flat["scale"], flat.get("minimum"), signs, self.spec, head_dim)
        return dequantize_scalar(scalars).reshape(*lead, head_dim)

    def _signs(self, head_dim: int) -> Bool[Array, " head_dim"] | None:
        return random_signs(jax.random.key(_SIGNS_SEED), head_dim) if self.rotated else None

    def _check(self, head_dim: int) -> None:
        group = self.spec.n if isinstance(self.spec, PVQSpec) else self.spec.group
        if head_dim % group:
            divisors = [size for size in range(2, head_dim + 1) if head_dim % size == 0]
            raise InputError(
                f"spec has groups of {group}; they must divide head_dim, {head_dim}: use one of {divisors}"
            )


def mean_keys(
    params: dict[str, Any], cfg: ModelConfig, tokens: Int[Array, "windows context"]
) -> Float[Array, "layers kv_heads head_dim"]:
    """Each key head's mean over the tokens of a text, for `init_cache(..., key_offset=...)`.

    Args:
        params: the model.
        cfg: static.
        tokens: windows, at least one; of the length that the cache will hold, since the mean is one over positions.

    Raises:
        InputError: there is no window, or see `forward`.
    """
    if not len(tokens):
        raise InputError("tokens holds no window; one is needed at least")
    means = []
    for window in tokens:
        cache = forward(params, cfg, window[None], cache=init_cache(cfg, 1, len(window))).cache
        assert cache is not None and isinstance(cache.keys, jax.Array)
        means.append(cache.keys[:, 0].mean(axis=1))
    return jnp.stack(means).mean(axis=0)
