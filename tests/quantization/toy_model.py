"""A tiny random Llama or Qwen 2 and quantized versions of it, for tests of whole models."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models import LINEARS, ModelConfig
from jaxlab.models.validation import layer_shapes
from jaxlab.quantization import PVQSpec, ScalarSpec

CODE = PVQSpec(16, 28, 3)


def toy(family="llama", *, seed=0, tied=False, **changes):
    """(params, cfg) with random weights, norms and biases."""
    fields = {
        "vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8,
        "mlp_size": 48, "max_positions": 64, "qkv_bias": family == "qwen2", "qk_norm": family == "qwen3",
        "tie_embeddings": tied, "bos_id": 1, "eos_ids": (2,), "pad_id": 0,
    }  # fmt: skip
    cfg = ModelConfig(family=family, **(fields | changes))
    rng = np.random.default_rng(seed)

    def random(shape, center=0.0, scale=0.3):
        return jnp.asarray(center + scale * rng.standard_normal(shape), jnp.float32)

    layers = {
        name: random((cfg.num_layers, *shape), 1.0 if "norm" in name else 0.0)
        for name, shape in layer_shapes(cfg).items()
    }
    params = {"embed": random((97, 32)), "layers": layers, "final_norm": random(32, 1.0)}
    return params if tied else params | {"head": random((97, 32))}, cfg


def toy_tokens(windows=3, context=12, seed=1):
    return np.random.default_rng(seed).integers(3, 97, (windows, context)).astype(np.int32)


def with_layers(params, quantized):
    """The model with these per-layer dicts of tensors in place of its matrices."""
    layers = [
        jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) | dict(tensors)
        for i, tensors in enumerate(quantized)
    ]
    return {**params, "layers": tuple(layers)}


def specs(code=CODE, layers=2, **others):
    """The same code for every matrix of every layer, but for `others`."""
    return [dict.fromkeys(LINEARS, code) | others for _ in range(layers)]


def mixed_specs(layers=2):
    """Lattice and scalar codes of several kinds side by side."""
    scalars = {"v": ScalarSpec(4, 8, "midrise"), "down": ScalarSpec(4, 16, "midtread", clip=True)}
    return specs(ScalarSpec(3, 16), layers=layers, q=CODE, o=CODE, **scalars)
