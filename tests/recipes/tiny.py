"""A Llama small enough for whole runs, with SmolLM2's vocabulary."""

from jaxlab.models import ModelConfig

TINY = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=64,
    num_layers=3,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    mlp_size=64,  # every matrix has one shape, so that little is compiled
    max_positions=128,
    tie_embeddings=True,
    bos_id=1,
    eos_ids=(2,),
)
