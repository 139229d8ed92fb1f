"""Tuning of row scales and norms: it lowers the divergence, changes nothing else, and can be carried over to codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import specs, toy, toy_tokens

from jaxlab.errors import InputError
from jaxlab.models import LINEARS, forward, logits
from jaxlab.quantization import PVQSpec, Scheme, quantize_layers
from jaxlab.quantization.model import dequantize_any
from jaxlab.quantization.tuning import tune, tuned_norm, tuned_tensor

TOKENS = toy_tokens(windows=40, context=16)
FRESH = toy_tokens(windows=44, context=16)[40:]


def divergence(exact, params, cfg, tokens):
    p, q = (jax.nn.log_softmax(logits(x, cfg, forward(x, cfg, tokens).hidden)) for x in (exact, params))
    return float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)))


def stacked(layers):
    return {name: jnp.stack([dequantize_any(layer.tensors[name]) for layer in layers]) for name in LINEARS}


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def tuned(request):
    params, cfg = toy(request.param)
    scheme = Scheme(specs(PVQSpec(8, 6, 1)))
    layers = list(quantize_layers(params, cfg, scheme, jax.random.key(0), tokens=TOKENS[:8]))
    seen = []

    def progress(windows, kl):
        seen.append((windows, kl))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlab.quantization.tuning._TOKENS_AT_ONCE", 64)  # four windows a step
        tuning = tune(params, stacked(layers), cfg, TOKENS, learning_rate=0.02, progress=progress)
    return params, cfg, layers, tuning, seen


def carried_over(params, cfg, layers, tuning):
    """The exact model's parameters with the tuned norms and the tuned tensors' matrices."""
    tensors = [
        {name: tuned_tensor(layer.tensors[name], tuning.rows[name][layer.layer]) for name in LINEARS}
        for layer in layers
    ]
    matrices = {name: jnp.stack([dequantize_any(t[name]) for t in tensors]) for name in LINEARS}
    norms = {name: tuned_norm(params["layers"][name], change, cfg) for name, change in tuning.norms.items()}
    final = tuned_norm(params["final_norm"], tuning.final_norm, cfg)
    return {**params, "final_norm": final, "layers": params["layers"] | norms | matrices}, tensors


def test_the_divergence_falls_on_text_that_was_not_tuned_on(tuned):
    params, cfg, layers, tuning, _ = tuned
    untuned = {**params, "layers": params["layers"] | stacked(layers)}
    after, _ = carried_over(params, cfg, layers, tuning)
    before = divergence(params, untuned, cfg, FRESH)
    assert divergence(params, after, cfg, FRESH) < 0.97 * before


def test_codes_stay_and_rows_are_scaled(tuned):
    params, cfg, layers, tuning, _ = tuned
    _, tensors = carried_over(params, cfg, layers, tuning)
    for layer, new in zip(layers, tensors, strict=True):
        for name, old in layer.tensors.items():
            np.testing.assert_array_equal(new[name].words, old.words)
            change = 1 + np.asarray(tuning.rows[name][layer.layer])
            assert np.abs(change - 1).max() > 1e-3
            np.testing.assert_allclose(
                dequantize_any(new[name]), change[:, None] * dequantize_any(old), rtol=2e-3, atol=2e-3
            )


def test_every_norm_is_tuned_by_its_factor(tuned):
    params, cfg, _, tuning, _ = tuned
    assert sorted(tuning.norms) == sorted(name for name in params["layers"] if "norm" in name)
    for name, change in tuning.norms.items():
        new = tuned_norm(params["layers"][name], change, cfg)
        factor = cfg.norm_offset + np.asarray(params["layers"][name])
        np.testing.assert_allclose(
            cfg.norm_offset + np.asarray(new), factor * (1 + np.asarray(change)), rtol=1e-5
        )


def test_progress_counts_windows_and_gives_the_divergence(tuned):
    params, cfg, layers, _, seen = tuned
    assert [windows for windows, _ in seen] == list(range(4, 41, 4))
    first = divergence(params, {**params, "layers": params["layers"] | stacked(layers)}, cfg, TOKENS[:4])
    assert seen[0][1] == pytest.approx(first, rel=0.05)


def test_no_windows_and_no_step_are_refused():
    params, cfg = toy()
    matrices = {name: params["layers"][name] for name in LINEARS}
    with pytest.raises(InputError, match="tokens has shape"):
        tune(params, matrices, cfg, TOKENS[:0])
    with pytest.raises(InputError, match="learning_rate is 0"):
        tune(params, matrices, cfg, TOKENS, learning_rate=0.0)
