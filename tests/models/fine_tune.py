"""A short fine-tune of a small random Llama, on one device or on the devices of a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.models import ModelConfig
from jaxlab.models.training import OptimizerConfig, init, make_optimizer, partition, train_step


def random_model():
    """Configuration and parameters."""
    cfg = ModelConfig(
        family="llama",
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_size=48,
        max_positions=32,
        tie_embeddings=True,
        bos_id=None,
        eos_ids=(0,),
    )
    attention = {"q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32)}
    shapes = attention | {"gate": (48, 32), "up": (48, 32), "down": (32, 48)}
    draws = np.random.default_rng(0)

    def draw(*shape, over):
        return jnp.asarray(draws.standard_normal(shape) / over, jnp.float32)

    layers = {name: draw(2, *shape, over=6) for name, shape in shapes.items()}
    layers |= {"attn_norm": jnp.ones((2, 32)), "mlp_norm": jnp.ones((2, 32))}
    return cfg, {"embed": draw(64, 32, over=1), "layers": layers, "final_norm": jnp.ones(32)}


def twenty_losses(cfg, params, pattern, mesh=None):
    """Of twenty steps on the same two parts of four rows, spread over the axis `data` of the mesh."""
    tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, 4, 12)).astype(np.int32)
    if mesh is not None:
        tokens = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec(None, "data")))
    trainable, frozen = partition(params, pattern)
    optimizer = make_optimizer(trainable, OptimizerConfig(steps=20, learning_rate=1e-2, warmup=2))
    state, losses = init(trainable, optimizer), []
    for _ in range(20):
        state, metrics = train_step(state, frozen, cfg, tokens, optimizer=optimizer)
        losses.append(float(metrics.loss))
    return losses
