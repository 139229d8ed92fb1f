"""Every family against torch `transformers` on the same random weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_twins import CASES, ONE_A_FAMILY, random_tokens, torch_logits, twin

from jaxlab.errors import InputError
from jaxlab.models.cache import init_cache
from jaxlab.models.linear import register_linear
from jaxlab.models.logprobs import token_logprobs
from jaxlab.models.rope import layer_geometry
from jaxlab.models.stacking import stack_layers, unstack_layers
from jaxlab.models.transformer import block, embed, forward, logits, rms_norm, run_layers

TIME = 40


def our_logits(params, cfg, tokens, **options):
    return np.asarray(logits(params, cfg, forward(params, cfg, tokens, **options).hidden))


def assert_close(ours, theirs, atol=1e-4):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_torch(case):
    model, params, cfg = twin(case)
    tokens = random_tokens((2, TIME))
    assert_close(our_logits(params, cfg, tokens), torch_logits(model, tokens))


@pytest.mark.parametrize("case", ["llama-scaled", "gemma3"])
def test_sequences_of_several_query_chunks_equal_torch(case):
    model, params, cfg = twin(case)
    tokens = random_tokens((1, 300))
    assert_close(our_logits(params, cfg, tokens), torch_logits(model, tokens))


@pytest.mark.parametrize("case", CASES)
def test_right_padding_changes_no_real_position(case):
    model, params, cfg = twin(case)
    tokens = random_tokens((2, TIME))
    tokens[1, 25:] = 0
    assert_close(our_logits(params, cfg, tokens)[1, :25], torch_logits(model, tokens[1:, :25])[0])


@pytest.mark.parametrize("case", ["mistral", "gemma3"])
@pytest.mark.parametrize("restart", [True, False])
def test_packed_segments_equal_separate_sequences(case, restart):
    model, params, cfg = twin(case)
    tokens = random_tokens((1, TIME))
    segments = np.repeat([[5, 2]], [18, TIME - 18], axis=1)
    positions = np.concatenate([np.arange(18), np.arange(TIME - 18)])[None] if restart else None
    ours = our_logits(params, cfg, tokens, segment_ids=segments, positions=positions)
    assert_close(ours[:, :18], torch_logits(model, tokens[:, :18]))
    assert_close(ours[:, 18:], torch_logits(model, tokens[:, 18:]))


@pytest.mark.parametrize("case", ONE_A_FAMILY)
def test_decoding_with_a_cache_equals_torch_beyond_the_window(case):
    model, params, cfg = twin(case)
    tokens = random_tokens((2, TIME))
    out = forward(params, cfg, tokens[:, :11], cache=init_cache(cfg, 2, TIME))
    hidden = [out.hidden]
    for t in range(11, TIME):
        out = forward(params, cfg, tokens[:, t : t + 1], cache=out.cache)
        hidden.append(out.hidden)
    ours = logits(params, cfg, jnp.concatenate(hidden, axis=1))
    assert_close(ours, torch_logits(model, tokens))
    np.testing.assert_array_equal(out.cache.length, [TIME, TIME])


@pytest.mark.parametrize("split", [1, 6, 23, 39])
def test_prefill_in_two_parts_equals_torch_at_every_split(split):
    model, params, cfg = twin("gemma3")
    tokens = random_tokens((2, TIME))
    first = forward(params, cfg, tokens[:, :split], cache=init_cache(cfg, 2, 64))
    second = forward(params, cfg, tokens[:, split:], cache=first.cache)
    ours = logits(params, cfg, jnp.concatenate([first.hidden, second.hidden], axis=1))
    assert_close(ours, torch_logits(model, tokens))


def test_rows_of_a_cache_may_have_different_lengths():
    model, params, cfg = twin("mistral")
    tokens = random_tokens((2, TIME))
    out = forward(params, cfg, tokens[:, :20], cache=init_cache(cfg, 2, 64))
    cache = out.cache._replace(length=jnp.array([20, 9]))
    new = np.stack([tokens[0, 20:30], tokens[1, 9:19]])
    ours = logits(params, cfg, forward(params, cfg, new, cache=cache).hidden)
    assert_close(ours[0], torch_logits(model, tokens[:1, :30])[0, 20:])
    assert_close(ours[1], torch_logits(model, tokens[1:, :19])[0, 9:])


@pytest.mark.parametrize("case", ["llama-biases", "qwen3", "gemma3"])
def test_gradients_equal_torch(case):
    model, params, cfg = twin(case)
    tokens = random_tokens((2, TIME))
    ours = jax.grad(lambda params: -token_logprobs(params, cfg, tokens, chunk=32).mean())(params)
    model.zero_grad()
    labels = torch.tensor(tokens, dtype=torch.long)
    model(labels, labels=labels).loss.backward()
    layer = model.model.layers[1]
    pairs = [
        (ours["embed"], model.model.embed_tokens.weight),
        (ours["layers"]["q"][1], layer.self_attn.q_proj.weight),
        (ours["layers"]["down"][1], layer.mlp.down_proj.weight),
        (ours["layers"]["attn_norm"][1], layer.input_layernorm.weight),
    ]
    for mine, theirs in pairs:
        theirs = theirs.grad.numpy()
        assert np.abs(mine - theirs).max() <= 1e-3 * np.abs(theirs).max()


def test_vmap_over_two_models_equals_two_calls():
    models = [twin("qwen3", seed)[1] for seed in (0, 1)]
    cfg, tokens = twin("qwen3")[2], random_tokens((2, TIME))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    hidden = jax.vmap(lambda params: forward(params, cfg, tokens).hidden)(both)
    for one, params in zip(hidden, models, strict=True):
        assert_close(one, forward(params, cfg, tokens).hidden, atol=1e-5)


def test_jit_equals_eager():
    _, params, cfg = twin("qwen3")
    tokens = random_tokens((2, 9))
    jitted = jax.jit(lambda params, tokens: forward(params, cfg, tokens).hidden)(params, tokens)
    with jax.disable_jit():
        eager = forward(params, cfg, jnp.asarray(tokens)).hidden
    assert_close(jitted, eager, atol=1e-5)


def test_a_tuple_of_layers_equals_stacked_layers():
    _, params, cfg = twin("gemma3")
    tokens = random_tokens((2, TIME))
    unstacked = unstack_layers(params)
    assert len(unstacked["layers"]) == cfg.num_layers
    assert_close(our_logits(unstacked, cfg, tokens), our_logits(params, cfg, tokens), atol=1e-5)
    chex.assert_trees_all_equal(stack_layers(unstacked), params)


class Scaled:
    """A matrix stored as codes and one scale a row: a registered leaf of another kind than an array."""

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale


jax.tree_util.register_pytree_node(
    Scaled, lambda leaf: ((leaf.codes, leaf.scale), None), lambda _, children: Scaled(*children)
)
register_linear(
    Scaled,
    apply=lambda x, leaf: (x @ leaf.codes.T) * leaf.scale[..., 0],
    dense=lambda leaf: leaf.codes * leaf.scale,
)


def scaled(matrix):
    scale = np.abs(matrix).max(axis=-1, keepdims=True)
    return Scaled(jnp.asarray(matrix / scale), jnp.asarray(scale))


@pytest.mark.parametrize("layout", ["stacked", "one layer of a tuple"])
def test_registered_leaves_stand_in_for_every_matrix(layout):
    _, params, cfg = twin("llama-tied")
    tokens = random_tokens((2, TIME))
    changed = dict(params, embed=scaled(params["embed"]))
    if layout == "stacked":
        changed["layers"] = dict(params["layers"], q=scaled(params["layers"]["q"]))
    else:
        first, *others = unstack_layers(params)["layers"]
        changed["layers"] = (dict(first, down=scaled(first["down"]), o=scaled(first["o"])), *others)
    assert_close(our_logits(changed, cfg, tokens), our_logits(params, cfg, tokens))


def test_narrower_layers_of_a_tuple_equal_a_model_with_zeros():
    model, params, cfg = twin("llama-biases", seed=3)
    unstacked = unstack_layers(params)["layers"]
    group, narrow, zeroed = cfg.num_heads // cfg.num_kv_heads * cfg.head_dim, dict(unstacked[1]), {}
    for name in ("q", "q_bias"):
        narrow[name] = unstacked[1][name][:group]
    for name in ("k", "v", "k_bias", "v_bias"):
        narrow[name] = unstacked[1][name][: cfg.head_dim]
    narrow["o"] = unstacked[1]["o"][:, :group]
    for name in ("gate", "up", "gate_bias", "up_bias"):
        narrow[name] = unstacked[1][name][:13]
    narrow["down"] = unstacked[1]["down"][:, :13]
    zeroed = dict(unstacked[1])
    zeroed["o"] = zeroed["o"].at[:, group:].set(0.0)
    zeroed["down"] = zeroed["down"].at[:, 13:].set(0.0)
    tokens = random_tokens((2, TIME))
    smaller = dict(params, layers=(unstacked[0], narrow, unstacked[2]))
    equal = dict(params, layers=(unstacked[0], zeroed, unstacked[2]))
    assert_close(our_logits(smaller, cfg, tokens), our_logits(equal, cfg, tokens), atol=1e-5)


@pytest.mark.parametrize("case", ["llama-scaled", "gemma3"])
def test_blocks_one_by_one_equal_the_forward_pass(case):
    _, params, cfg = twin(case)
    tokens = random_tokens((2, TIME))
    frequencies, windows = layer_geometry(cfg)
    run = jax.jit(block, static_argnames="cfg")
    hidden = embed(params, cfg, tokens)
    for i, layer in enumerate(unstack_layers(params)["layers"]):
        hidden, _, _ = run(layer, cfg, hidden, inverse_frequencies=frequencies[i], window=windows[i])
    ours = rms_norm(hidden, params["final_norm"], cfg)
    assert_close(ours, forward(params, cfg, tokens).hidden, atol=1e-5)


def test_taps_are_the_inputs_of_the_matrices_and_change_nothing():
    model, params, cfg = twin("qwen2")
    tokens = random_tokens((2, TIME))
    seen = {}

    def remember(name):
        def hook(module, args, output):
            seen[name] = args[0].detach().numpy()

        return hook

    layer = model.model.layers[2]
    modules = {
        "attention_input": layer.self_attn.k_proj,
        "attention_output": layer.self_attn.o_proj,
        "mlp_input": layer.mlp.up_proj,
        "mlp_hidden": layer.mlp.down_proj,
    }
    hooks = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    torch_logits(model, tokens)
    for hook in hooks:
        hook.remove()
    run = jax.jit(lambda hidden: run_layers(params, cfg, hidden, collect=lambda taps: taps))
    hidden, _, taps = run(embed(params, cfg, tokens))
    assert taps.keys() == seen.keys()
    for name, theirs in seen.items():
        assert_close(taps[name][2], theirs)
    ours = rms_norm(hidden, params["final_norm"], cfg)
    assert_close(ours, forward(params, cfg, tokens).hidden, atol=1e-5)


def test_gemma_embeddings_are_scaled_as_in_torch_in_bfloat16():
    model, params, cfg = twin("gemma3")
    tokens = random_tokens((2, TIME))
    half = model.model.embed_tokens.__class__(
        cfg.vocab_size, cfg.hidden_size, 0, embed_scale=cfg.hidden_size**0.5
    ).to(torch.bfloat16)
    with torch.no_grad():
        half.weight.copy_(model.model.embed_tokens.weight)
        theirs = half(torch.tensor(tokens)).float().numpy()
    ours = embed(dict(params, embed=params["embed"].astype(jnp.bfloat16)), cfg, tokens)
    np.testing.assert_array_equal(ours.astype(jnp.float32), theirs)


def test_half_precision_weights_stay_near_the_full_precision_result():
    _, params, cfg = twin("qwen3")
    tokens = random_tokens((2, TIME))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    hidden = forward(half, cfg, tokens).hidden
    assert hidden.dtype == jnp.bfloat16
    full = forward(params, cfg, tokens).hidden
    assert jnp.linalg.norm(hidden.astype(jnp.float32) - full) < 0.05 * jnp.linalg.norm(full)


@pytest.mark.parametrize(
    ("tokens", "options", "named"),
    [
        (np.zeros(4, np.int32), {}, r"\[batch, time\]"),
        (np.zeros((1, 4), np.float32), {}, "dtype float32"),
        (np.zeros((1, 513), np.int32), {}, "513 positions"),
        (np.full((1, 4), 97, np.int32), {}, "vocabulary has 97"),
        (np.full((1, 4), -1, np.int32), {}, "ids from -1"),
        (np.zeros((1, 4), np.int32), {"positions": np.zeros((1, 5), np.int32)}, "positions has shape"),
        (np.zeros((1, 4), np.int32), {"segment_ids": np.zeros((2, 4), np.int32)}, "segment_ids has shape"),
    ],
)
def test_bad_tokens_are_named(tokens, options, named):
    _, params, cfg = twin("llama")
    with pytest.raises(InputError, match=named):
        forward(params, cfg, tokens, **options)


def test_a_cache_that_does_not_fit_is_named():
    _, params, cfg = twin("llama")
    tokens = random_tokens((2, 5))
    with pytest.raises(InputError, match="4 slots"):
        forward(params, cfg, tokens, cache=init_cache(cfg, 2, 4))
    used = init_cache(cfg, 2, 8)._replace(length=jnp.array([0, 4]))
    with pytest.raises(InputError, match="4 of them used"):
        forward(params, cfg, tokens, cache=used)
    with pytest.raises(InputError, match=r"init_cache\(cfg, 2, size\)"):
        forward(params, cfg, tokens, cache=init_cache(cfg, 3, 8))
    with pytest.raises(InputError, match="segment_ids"):
        forward(params, cfg, tokens, cache=init_cache(cfg, 2, 8), segment_ids=tokens)
    with pytest.raises(InputError, match="size 0"):
        init_cache(cfg, 2, 0)


def test_wrong_parameters_are_named():
    _, params, cfg = twin("llama")
    tokens, layers = random_tokens((1, 4)), params["layers"]
    without_head = {name: leaf for name, leaf in params.items() if name != "head"}
    wrong = [
        (without_head, r"missing \['head'\]"),
        (dict(params, layers=dict(layers, q_bias=layers["q"][:, 0])), r"unexpected \['q_bias'\]"),
        (dict(params, layers=dict(layers, o=layers["o"][:, :-1])), r"\['o'\] has shape"),
        (dict(params, final_norm=params["embed"]), "final_norm"),
        (dict(params, layers=unstack_layers(params)["layers"][:2]), "has 2 layers"),
    ]
    for bad, named in wrong:
        with pytest.raises(InputError, match=named):
            forward(bad, cfg, tokens)


def test_layers_that_differ_cannot_be_stacked():
    _, params, _ = twin("llama")
    first, *others = unstack_layers(params)["layers"]
    with pytest.raises(InputError, match="layer 1"):
        stack_layers(dict(params, layers=(dict(first, q=first["q"][:8]), *others)))
