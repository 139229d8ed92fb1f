"""What the recipes are run on."""

import math

import jax
import jax.numpy as jnp
import pytest
import tiny

from jaxlab.models import save_hf
from jaxlab.models.validation import layer_shapes


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, smollm2):
    """A directory with a small random Llama and SmolLM2's tokenizer."""
    keys = iter(jax.random.split(jax.random.key(0), 64))

    def draw(*shape):
        return jax.random.normal(next(keys), shape) / math.sqrt(shape[-1])

    layers = {
        name: draw(tiny.TINY.num_layers, *shape)
        if len(shape) == 2
        else jnp.ones((tiny.TINY.num_layers, *shape))
        for name, shape in layer_shapes(tiny.TINY).items()
    }
    params = {"embed": draw(tiny.TINY.vocab_size, 64), "layers": layers, "final_norm": jnp.ones(64)}
    directory = tmp_path_factory.mktemp("model") / "tiny"
    save_hf(params, tiny.TINY, smollm2[2], directory)
    return directory
