import dataclasses

import pytest

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig, RopeScaling

GOOD = {
    "family": "llama",
    "vocab_size": 10,
    "hidden_size": 8,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 2,
    "mlp_size": 12,
    "max_positions": 64,
}


def test_equal_configurations_are_one_static_argument():
    assert hash(ModelConfig(**GOOD)) == hash(ModelConfig(**GOOD))
    assert ModelConfig(**GOOD) == ModelConfig(**GOOD)
    assert ModelConfig(**GOOD) != dataclasses.replace(ModelConfig(**GOOD), mlp_size=13)


def test_no_windows_means_global_attention_in_every_layer():
    assert ModelConfig(**GOOD).layer_windows == (None, None, None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"family": "mamba"}, "family is 'mamba'; supported are llama, .*, bert"),
        ({"activation": "swish"}, "activation is 'swish'"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_kv_heads": 3}, "num_heads is 4"),
        ({"head_dim": 3}, "head_dim is 3"),
        ({"rotary_dim": 1}, "rotary_dim is 1"),
        ({"rotary_dim": 4}, "rotary_dim is 4; it must be 0 to 2"),
        ({"embed_size": 0}, "embed_size is 0"),
        ({"token_types": -1}, "token_types is -1"),
        ({"norm": "batch"}, "norm is 'batch'; supported are rms, layer"),
        ({"shared_norm": True}, "it needs parallel_residual"),
        ({"post_norm": True, "sandwich_norms": True}, "post_norm is True"),
        ({"layer_windows": (4, None)}, "layer_windows has 2"),
        ({"layer_windows": (4, None, 0)}, "a window is None or at least 1"),
    ],
)
def test_a_wrong_value_is_named(change, named):
    with pytest.raises(InputError, match=named):
        ModelConfig(**(GOOD | change))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"kind": "yarn", "factor": 2.0}, "kind is 'yarn'"),
        ({"kind": "linear", "factor": 0.0}, "factor is 0.0"),
        (
            {"kind": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            "low_freq_factor",
        ),
    ],
)
def test_a_wrong_rope_scaling_is_named(values, named):
    with pytest.raises(InputError, match=named):
        RopeScaling(**values)
