"""Training steps against NumPy, optax and torch, and what is trained, decayed and kept."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch_twins import random_tokens, twin

from jaxlab.errors import InputError
from jaxlab.models import (
    adapters_of,
    forward,
    init_lora,
    merge_lora,
    stack_layers,
    token_logprobs,
    training,
    unstack_layers,
)
from jaxlab.models.training import (
    ADAPTERS,
    ALL,
    OptimizerConfig,
    combine,
    init,
    learning_rate,
    make_optimizer,
    partition,
    summed_loss,
    train_step,
)

OPTIONS = OptimizerConfig(steps=20, learning_rate=1e-2, warmup=2, clip=0.5, weight_decay=0.1)


@pytest.fixture(scope="module")
def model():
    _, params, cfg = twin("llama-tied")
    return params, cfg


@pytest.fixture(scope="module")
def adapted(model):
    return init_lora(jax.random.key(0), model[0], rank=2, targets=("q", "down"), std=0.2)


@functools.cache
def optimizer_of(pattern):
    _, params, _ = twin("llama-tied")
    return make_optimizer(partition(params, pattern)[0], OPTIONS)


def trained(params, cfg, batches, pattern=ALL, **options):
    """The state after a step on each of the batches, and the losses."""
    trainable, frozen = partition(params, pattern)
    optimizer = optimizer_of(ALL) if pattern == ALL else make_optimizer(trainable, OPTIONS)
    state, losses = init(trainable, optimizer), []
    for tokens in batches:
        state, metrics = train_step(state, frozen, cfg, jnp.asarray(tokens), optimizer=optimizer, **options)
        losses.append(float(metrics.loss))
    return combine(state.trainable, frozen), losses


def test_three_steps_equal_torch_adamw_with_the_same_schedule(model):
    params, cfg = model
    theirs = copy.deepcopy(twin("llama-tied")[0])
    tokens = [random_tokens((4, 12), seed=seed) for seed in range(3)]
    ours, losses = trained(params, cfg, [batch[None] for batch in tokens])
    decayed = [p for name, p in theirs.named_parameters() if "norm" not in name]
    others = [p for name, p in theirs.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), eps=1e-8)
    for step, batch in enumerate(tokens):
        for group in adam.param_groups:
            group["lr"] = float(learning_rate(OPTIONS, step))
        batch = torch.tensor(batch, dtype=torch.long)
        loss = theirs(input_ids=batch, labels=batch).loss
        assert losses[step] == pytest.approx(float(loss.detach()), rel=1e-5)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adam.step()
    named = dict(theirs.named_parameters())
    for found, name in (
        (ours["embed"], "model.embed_tokens.weight"),
        (ours["layers"]["down"][1], "model.layers.1.mlp.down_proj.weight"),
        (ours["layers"]["attn_norm"][2], "model.layers.2.input_layernorm.weight"),
    ):
        # Adam divides by tiny gradients' own size: single entries may go the other way.
        np.testing.assert_allclose(found, named[name].detach().numpy(), atol=2e-4)


def test_parts_of_a_step_sum_to_the_step_in_one(model):
    params, cfg = model
    tokens = random_tokens((4, 12))
    whole, losses = trained(params, cfg, [tokens[None]])
    parts, same = trained(params, cfg, [tokens.reshape(2, 2, 12)])
    assert losses == pytest.approx(same, rel=1e-6)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_recomputed_blocks_give_the_same_gradient(model):
    params, cfg = model
    tokens = jnp.asarray(random_tokens((2, 12)))

    def gradient(params, remat):
        return jax.jit(jax.grad(functools.partial(summed_loss, cfg=cfg, tokens=tokens, remat=remat)))(params)

    kept = gradient(params, False)
    for again in (gradient(params, True), stack_layers(gradient(unstack_layers(params), True))):
        for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_recomputed_blocks_take_less_memory(model):
    params, cfg = model
    cfg = dataclasses.replace(cfg, num_layers=12, layer_windows=(None,) * 12)
    params = params | {"layers": jax.tree.map(lambda x: jnp.concatenate([x] * 4), params["layers"])}
    tokens = jnp.zeros((4, 128), jnp.int32)

    def temporary(remat):
        gradient = jax.jit(jax.grad(functools.partial(summed_loss, cfg=cfg, chunk=64, remat=remat)))
        return gradient.lower(params, tokens=tokens).compile().memory_analysis().temp_size_in_bytes

    assert temporary(True) < temporary(False) / 2


def test_masked_tokens_count_neither_in_the_loss_nor_in_its_mean(model):
    params, cfg = model
    tokens = random_tokens((2, 3, 12))
    mask = np.random.default_rng(0).random(tokens.shape) < 0.4
    trainable, frozen = partition(params, ALL)
    optimizer = optimizer_of(ALL)
    _, metrics = train_step(
        init(trainable, optimizer), frozen, cfg, jnp.asarray(tokens), jnp.asarray(mask), optimizer=optimizer
    )
    each = np.asarray(token_logprobs(params, cfg, tokens.reshape(6, 12)))
    kept = mask.reshape(6, 12)[:, 1:]
    assert float(metrics.loss) == pytest.approx(-(each * kept).sum() / kept.sum(), rel=1e-5)


def test_adapters_alone_are_trained_and_lower_the_loss(model, adapted):
    params, cfg = model
    tokens = random_tokens((1, 4, 12))
    after, losses = trained(adapted, cfg, [tokens] * 8, ADAPTERS)
    assert losses[-1] < losses[0] - 0.05
    for name, leaf in params["layers"].items():
        kept = after["layers"][name]
        np.testing.assert_array_equal(kept.weight if name in ("q", "down") else kept, leaf)
    moved = [bool(jnp.any(leaf != 0)) for leaf in (after["layers"]["q"].b, after["layers"]["down"].b)]
    assert all(moved)
    merged = forward(merge_lora(after), cfg, tokens[0]).hidden
    np.testing.assert_allclose(merged, forward(after, cfg, tokens[0]).hidden, atol=1e-4)


@pytest.mark.parametrize("stacked", [True, False])
def test_the_pattern_for_adapters_takes_them_and_nothing_else(model, stacked):
    params = model[0] if stacked else unstack_layers(model[0])
    adapted = init_lora(jax.random.key(0), params, rank=2)
    trainable, frozen = partition(adapted, ADAPTERS)
    taken = sorted(leaf.shape for leaf in jax.tree.leaves(trainable))
    assert taken == sorted(leaf.shape for leaf in jax.tree.leaves(adapters_of(adapted)))
    assert jax.tree.structure(combine(trainable, frozen)) == jax.tree.structure(adapted)


def test_whole_numbers_are_never_trained():
    tree = {"weight": jnp.ones(2), "codes": jnp.ones(2, jnp.int8)}
    trainable, frozen = partition(tree, ALL)
    assert trainable["codes"] is None and frozen["weight"] is None
    with pytest.raises(InputError, match="pattern is 'codes'"):
        partition(tree, "codes")


def test_the_state_does_not_take_the_memory_of_the_model(model):
    params, cfg = model
    trained(params, cfg, [random_tokens((1, 4, 12))])
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_the_rate_rises_linearly_and_ends_at_its_share():
    config = OptimizerConfig(steps=11, learning_rate=2.0, warmup=3, final_share=0.25)
    rates = [float(learning_rate(config, step)) for step in range(12)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[7] == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert rates[11] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in zip(rates[3:], rates[4:], strict=False))


def test_only_matrices_are_decayed():
    trainable = {"embed": jnp.ones(2), "final_norm": jnp.ones(2), "layers": {"q_bias": jnp.ones(2)}}
    optimizer = make_optimizer(trainable, OptimizerConfig(steps=1, learning_rate=0.5, weight_decay=0.1))
    nothing = jax.tree.map(jnp.zeros_like, trainable)
    updates, _ = optimizer.update(nothing, optimizer.init(trainable), trainable)
    after = optax.apply_updates(trainable, updates)
    np.testing.assert_allclose(after["embed"], 0.95)
    assert float(after["final_norm"][0]) == float(after["layers"]["q_bias"][0]) == 1.0


def test_a_step_is_compiled_once(model):
    params, cfg = model
    trainable, frozen = partition(params, ALL)
    optimizer = optimizer_of(ALL)
    state = init(trainable, optimizer)
    before = None
    for seed in range(3):
        tokens = jnp.asarray(random_tokens((1, 4, 12), seed=seed))
        state, _ = train_step(state, frozen, cfg, tokens, optimizer=optimizer)
        before = training._train_step._cache_size() if before is None else before
    assert training._train_step._cache_size() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("warmup", 20),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip", 0.0),
        ("weight_decay", -1.0),
        ("final_share", 1.5),
        ("b2", 1.0),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(OPTIONS, **{field: value})


def test_bad_tokens_are_named(model):
    params, cfg = model
    trainable, frozen = partition(params, ALL)
    optimizer = optimizer_of(ALL)
    state = init(trainable, optimizer)
    for tokens, mask, message in (
        (np.zeros((2, 4), np.int32), None, "parts, batch, time"),
        (np.zeros((1, 2, 1), np.int32), None, "time at least 2"),
        (np.full((1, 2, 4), 97, np.int32), None, "holds ids"),
        (np.zeros((1, 2, 4), np.int32), np.ones((1, 2, 3), bool), "mask has shape"),
    ):
        with pytest.raises(InputError, match=message):
            train_step(state, frozen, cfg, tokens, mask, optimizer=optimizer)
