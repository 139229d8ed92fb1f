"""A tiny random Llama with a byte-level vocabulary so small that all its completions can be listed."""

import math

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxlab.models import Model, ModelConfig
from jaxlab.models.validation import layer_shapes

TOKENS = ["</s>", "<pad>", "a", "b", "\u0120", "\u010a", "ab", "\u0120a", "abcd", "\u00c3", "\u00a9", "bab"]
"""With GPT-2's signs for a space, a newline, and the two bytes of e-acute."""
CONFIG = ModelConfig(
    family="llama",
    vocab_size=len(TOKENS) + 1,  # one more than the tokenizer knows
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=16,
    max_positions=64,
    tie_embeddings=True,
    eos_ids=(0,),
)


def toy_model(seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 64))

    def draw(*shape):
        return jax.random.normal(next(keys), shape) / math.sqrt(shape[-1])

    layers = {
        name: draw(CONFIG.num_layers, *shape) if len(shape) == 2 else jnp.ones((CONFIG.num_layers, *shape))
        for name, shape in layer_shapes(CONFIG).items()
    }
    params = {"embed": 1.5 * draw(CONFIG.vocab_size, 16), "layers": layers, "final_norm": jnp.ones(16)}
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    return Model(params, CONFIG, fast)
