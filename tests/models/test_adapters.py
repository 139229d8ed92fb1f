import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_twins import random_tokens, torch_logits, twin

from jaxlab.errors import InputError
from jaxlab.models import (
    LINEARS,
    LoRA,
    adapters_of,
    dense,
    forward,
    gather,
    init_lora,
    logits,
    merge_lora,
    unstack_layers,
    with_adapters,
)
from jaxlab.models.linear import linear

KEY = jax.random.key(0)
TOKENS = random_tokens((2, 12))


def our_logits(params, cfg):
    return logits(params, cfg, forward(params, cfg, TOKENS).hidden)


def randomized(params, seed=0):
    """Adapters with a `b` that is not zero."""
    rng = np.random.default_rng(seed)
    return with_adapters(
        params,
        jax.tree.map(
            lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape).astype(np.float32)), adapters_of(params)
        ),
    )


def trained(case="llama-tied", layout="stacked", **options):
    _, params, cfg = twin(case)
    params = params if layout == "stacked" else unstack_layers(params)
    return randomized(init_lora(KEY, params, rank=3, **options)), params, cfg


def test_new_adapters_change_nothing_and_have_the_asked_deviation():
    _, params, cfg = twin("qwen3")
    adapted = init_lora(KEY, params, rank=64, std=0.5)
    np.testing.assert_array_equal(our_logits(adapted, cfg), our_logits(params, cfg))
    for name, (a, b) in adapters_of(adapted).items():
        assert a.shape == (3, 64, params["layers"][name].shape[2]) and not b.any()
        assert np.std(a) == pytest.approx(0.5, rel=0.05) and abs(np.mean(a)) < 0.03


def test_a_layer_gets_the_same_adapters_stacked_or_in_a_tuple():
    _, params, _ = twin("qwen3")
    stacked = adapters_of(init_lora(KEY, params, rank=2))
    in_tuple = adapters_of(init_lora(KEY, unstack_layers(params), rank=2))
    for index, layer in enumerate(in_tuple):
        assert layer.keys() == set(LINEARS)
        for name, adapter in layer.items():
            np.testing.assert_array_equal(adapter.a, stacked[name].a[index])
            np.testing.assert_array_equal(adapter.b, stacked[name].b[index])


@pytest.mark.parametrize("layout", ["stacked", "tuple"])
def test_adapted_model_equals_torch_with_the_increments_added(layout):
    """scale * B A, added to the matrices of a torch model; before and after merging."""
    adapted, params, cfg = trained(layout=layout, scale=1.7)
    model = copy.deepcopy(twin("llama-tied")[0])
    for index, module in enumerate(model.model.layers):
        for name in LINEARS:
            leaf = adapted["layers"][name] if layout == "stacked" else adapted["layers"][index][name]
            a, b = (x[index] if layout == "stacked" else x for x in (leaf.a, leaf.b))
            part = module.mlp if name in ("gate", "up", "down") else module.self_attn
            increment = torch.tensor(1.7 * np.asarray(b) @ np.asarray(a))
            getattr(part, f"{name}_proj").weight.data += increment
    theirs = torch_logits(model, TOKENS)
    assert np.abs(theirs - our_logits(params, cfg)).max() > 0.1
    np.testing.assert_allclose(our_logits(adapted, cfg), theirs, atol=1e-4)
    merged = merge_lora(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(our_logits(merged, cfg), our_logits(adapted, cfg), atol=1e-5)


def test_gradients_exist_for_the_adapters_alone_and_are_those_of_the_chain_rule():
    """dL/dB = scale * dL/dW A^T and dL/dA = scale * B^T dL/dW, with dL/dW of the merged model."""
    adapted, _, cfg = trained(targets=("q", "down"), scale=0.5)

    def loss(params):
        return jax.nn.logsumexp(our_logits(params, cfg), axis=-1).mean()

    adapters = adapters_of(adapted)
    ours = jax.grad(lambda adapters: loss(with_adapters(adapted, adapters)))(adapters)
    full = jax.grad(loss)(merge_lora(adapted))["layers"]
    assert ours.keys() == {"q", "down"}
    for name, (a, b) in adapters.items():
        np.testing.assert_allclose(ours[name].a, 0.5 * b.swapaxes(1, 2) @ full[name], atol=1e-5)
        np.testing.assert_allclose(ours[name].b, 0.5 * full[name] @ a.swapaxes(1, 2), atol=1e-5)


def test_vmap_over_two_adapters_equals_two_calls():
    first, _, cfg = trained()
    second = randomized(first, seed=1)
    both = jax.tree.map(lambda *x: jnp.stack(x), adapters_of(first), adapters_of(second))
    batched = jax.vmap(lambda adapters: our_logits(with_adapters(first, adapters), cfg))(both)
    for one, params in zip(batched, (first, second), strict=True):
        np.testing.assert_allclose(one, our_logits(params, cfg), atol=1e-5)


@pytest.mark.parametrize("layout", ["stacked", "tuple"])
def test_masks_keep_pruned_entries_exactly(layout):
    _, params, _ = twin("llama")
    rng = np.random.default_rng(0)
    layers, masks = dict(params["layers"]), {}
    q, down = layers["q"], layers["down"]
    masks["q"] = (rng.random(q.shape[:2]) < 0.6, rng.random((3, q.shape[2])) < 0.6)
    masks["down"] = rng.random(down.shape) < 0.6
    kept = {"q": masks["q"][0][:, :, None] & masks["q"][1][:, None, :], "down": masks["down"]}
    # Negative zeros, as products with a mask leave them, must not turn into positive ones.
    layers |= {name: jnp.where(keep, layers[name], -0.0) for name, keep in kept.items()}
    pruned = {**params, "layers": layers}
    given = masks
    if layout == "tuple":
        pruned = unstack_layers(pruned)
        given = tuple(jax.tree.map(lambda mask, i=i: mask[i], masks) for i in range(3))
    adapted = randomized(init_lora(KEY, pruned, rank=2, targets=("q", "down", "up")))
    merged, whole = merge_lora(adapted, masks=given), merge_lora(adapted)
    for index, (layer, free) in enumerate(
        zip(unstack_layers(merged)["layers"], unstack_layers(whole)["layers"], strict=True)
    ):
        np.testing.assert_array_equal(layer["up"], free["up"])
        for name, keep in kept.items():
            found, removed = np.asarray(layer[name]), ~keep[index]
            assert found[removed].view(np.int32).tolist() == [-(2**31)] * removed.sum()
            np.testing.assert_array_equal(found[keep[index]], np.asarray(free[name])[keep[index]])


def test_adapters_stand_beside_other_leaves_and_in_half_precision():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(2, 4)).astype(np.float32)
    a, b = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    rows, columns = np.arange(6) % 2 == 0, np.arange(4) > 0
    leaf = LoRA(gather(w, rows, columns), jnp.asarray(a), jnp.asarray(b), 2.0)
    expected = w * rows[:, None] * columns + 2.0 * b @ a
    np.testing.assert_allclose(dense(leaf), expected, atol=1e-5)
    np.testing.assert_allclose(linear(jnp.asarray(x), leaf), x @ expected.T, atol=1e-4)
    half = dataclasses.replace(leaf, weight=jnp.asarray(w, jnp.bfloat16))
    assert linear(jnp.asarray(x, jnp.bfloat16), half).dtype == jnp.bfloat16
    merged = merge_lora({"layers": ({"q": half},)})["layers"][0]["q"]
    assert merged.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rank": 0}, "rank is 0"),
        (
            {"rank": 1, "targets": ("q", "query")},
            r"targets is \('q', 'query'\); give one or more of q, k, v, o",
        ),
        ({"rank": 1, "targets": ()}, r"targets is \(\)"),
        ({"rank": 1, "std": 0.0}, "std is 0.0"),
        ({"rank": 1, "scale": float("nan")}, "scale nan"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(InputError, match=named):
        init_lora(KEY, twin("llama")[1], **options)


def test_bad_structures_are_named():
    adapted, params, _ = trained("llama", targets=("q",))
    with pytest.raises(InputError, match="'q' has an adapter already"):
        init_lora(KEY, adapted, rank=1)
    with pytest.raises(InputError, match="these parameters have"):
        with_adapters(adapted, {})
    with pytest.raises(InputError, match=r"masks names \['query'\]"):
        merge_lora(adapted, masks={"query": None})
    with pytest.raises(InputError, match="laid out like"):
        merge_lora(adapted, masks=({}, {}, {}))
    with pytest.raises(InputError, match=r"masks\['q'\] is bool \(3, 4\); it must be bool \(3, 32, 32\)"):
        merge_lora(adapted, masks={"q": np.ones((3, 4), bool)})
    with pytest.raises(InputError, match=r"masks\['q'\] is float32"):
        merge_lora(adapted, masks={"q": params["layers"]["q"]})
