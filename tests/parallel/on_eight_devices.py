"""What `test_eight_devices.py` runs under pytest in a process with 8 virtual CPU devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import numbers_a_device, write_checkpoint
from fine_tune import random_model, twenty_losses
from jax.sharding import NamedSharding, PartitionSpec
from toy_model import toy, toy_tokens

from jaxlab.errors import InputError
from jaxlab.models import forward, init_lora, load, logits, register_format
from jaxlab.models.fast_products import with_fast_products
from jaxlab.models.linear import LINEARS
from jaxlab.models.safetensors_weights import StoredTensors
from jaxlab.models.training import ADAPTERS, ALL, summed_loss
from jaxlab.parallel import initialize, make_mesh, model_rules, parse_mesh, shard, shard_rows, shardings
from jaxlab.pruning.config import SurgeonConfig
from jaxlab.pruning.factors import curvature
from jaxlab.pruning.surgeon import prune


def test_one_process_needs_no_others():
    assert initialize() == (0, 1, 8, 8)
    assert initialize(processes=1, process=0).processes == 1


def test_mesh_has_the_named_sizes():
    assert dict(make_mesh({"data": 4, "model": 2}).shape) == {"data": 4, "model": 2}
    assert dict(make_mesh({"data": -1, "model": 2}).shape) == {"data": 4, "model": 2}
    assert make_mesh({"data": 3}).size == 3


def test_mesh_that_does_not_fit_is_refused():
    for shape, words in [
        ({"data": 16}, "16 devices, but there are 8"),
        ({"data": 0}, "must be positive"),
        ({"data": -1, "model": -1}, "at most one"),
        ({"data": -1, "model": 3}, "not a multiple of 3"),
        ({}, "at least one axis"),
    ]:
        with pytest.raises(InputError, match=words):
            make_mesh(shape)


def test_rows_are_the_same_bytes_on_eight_devices():
    key = jax.random.key(0)
    weights = jax.random.normal(key, (13, 48))  # 13 rows: padded to 16
    mixing = jax.random.normal(jax.random.key(1), (48, 48)) / 7

    def function(rows, mixing):
        mixed = rows["w"] @ mixing
        scale = jnp.sqrt(jnp.mean(mixed**2, axis=1, keepdims=True))
        return {"codes": jnp.round(8 * mixed / scale).astype(jnp.int8), "scale": scale[:, 0]}

    mesh = make_mesh({"data": 8})
    alone = shard_rows(function, None, block=1)({"w": weights}, mixing)
    spread = shard_rows(function, mesh, block=1)({"w": weights}, mixing)
    assert spread["codes"].shape == (13, 48) and spread["scale"].shape == (13,)
    for name in alone:
        assert np.asarray(alone[name]).tobytes() == np.asarray(spread[name]).tobytes(), name
    direct = function({"w": weights}, mixing)
    np.testing.assert_allclose(spread["scale"], direct["scale"], rtol=1e-6)
    np.testing.assert_allclose(
        shard_rows(function, mesh)({"w": weights}, mixing)["scale"], direct["scale"], rtol=1e-6
    )


def test_each_device_works_on_its_own_rows():
    mesh = make_mesh({"data": 4, "model": 2})
    rows = jnp.arange(16.0).reshape(16, 1)
    position = shard_rows(lambda r: r * 0 + jax.lax.axis_index("data"), mesh)(rows)
    np.testing.assert_array_equal(position[:, 0], np.repeat(np.arange(4), 4))


def test_padded_rows_never_reach_the_result():
    mesh = make_mesh({"data": 8})
    total = shard_rows(lambda r: r * 2, mesh, block=3)(jnp.arange(5.0))
    np.testing.assert_array_equal(total, 2 * np.arange(5.0))


def test_rows_of_different_length_are_refused():
    mesh = make_mesh({"data": 8})
    with pytest.raises(InputError, match="share one leading axis"):
        shard_rows(lambda r: r[0] + r[1], mesh)((jnp.ones(3), jnp.ones(4)))
    with pytest.raises(InputError, match="axis is 'rows', but the mesh has data"):
        shard_rows(lambda r: r, mesh, axis="rows")
    with pytest.raises(InputError, match="block is 0"):
        shard_rows(lambda r: r, mesh, block=0)


def _params():
    layer = {
        "q": np.ones((16, 8)), "k": np.ones((6, 8)), "v": np.ones((6, 8)), "o": np.ones((8, 16)),
        "gate": np.ones((12, 8)), "down": np.ones((8, 12)), "attn_norm": np.ones(8),
    }  # fmt: skip
    stacked = {name: np.stack([leaf, leaf]) for name, leaf in layer.items()}
    head = {"embed": np.ones((32, 8)), "final_norm": np.ones(8)}
    return {**head, "layers": stacked}, {**head, "layers": (layer, layer)}


def test_model_rules_split_whole_heads_only():
    mesh = make_mesh({"data": 4, "model": 2})
    rules = model_rules(mesh, num_heads=4, num_kv_heads=3)
    stacked, listed = _params()
    specs = {name: leaf.spec for name, leaf in shardings(stacked, mesh, rules)["layers"].items()}
    assert specs["q"] == PartitionSpec(None, "model", None)
    assert specs["gate"] == PartitionSpec(None, "model", None)
    assert specs["down"] == specs["o"] == PartitionSpec(None, None, "model")
    assert specs["k"] == specs["v"] == PartitionSpec(None, None, None)
    assert specs["attn_norm"] == PartitionSpec()
    assert shardings(listed, mesh, rules)["layers"][1]["down"].spec == PartitionSpec(None, "model")
    placed = shard(stacked, mesh, rules)
    assert placed["embed"].addressable_shards[0].data.shape == (16, 8)
    assert placed["layers"]["down"].addressable_shards[0].data.shape == (2, 8, 6)
    assert placed["layers"]["k"].addressable_shards[0].data.shape == (2, 6, 8)


def test_adapters_are_split_on_the_side_that_they_share_with_their_matrix():
    mesh = make_mesh({"data": 4, "model": 2})
    stacked, listed = _params()
    rules = model_rules(mesh, num_heads=4, num_kv_heads=3)
    for params in (stacked, listed):
        quick = params["layers"]
        quick = with_fast_products(quick) if params is stacked else tuple(map(with_fast_products, quick))
        adapted = init_lora(
            jax.random.key(0), {**params, "layers": quick}, rank=3, targets=("q", "k", "down")
        )
        specs = jax.tree.map(lambda leaf: leaf.spec, shardings(adapted, mesh, rules))["layers"]
        lead, of = ((None,), specs) if params is stacked else ((), specs[1])
        out, inside, whole = (
            PartitionSpec(*lead, *s) for s in (("model", None), (None, "model"), (None, None))
        )
        assert (of["q"].weight.bits, of["q"].a, of["q"].b) == (out, whole, out)
        assert (of["down"].weight.bits, of["down"].a, of["down"].b) == (inside, inside, whole)
        assert (of["k"].weight.bits, of["k"].a, of["k"].b) == (whole, whole, whole)


def test_a_mesh_is_read_from_its_text():
    assert parse_mesh("data=4, model=-1") == {"data": 4, "model": -1}
    for text in ("", "data", "data=", "data=x", "data=4,data=2", "4=data"):
        with pytest.raises(InputError, match="AXIS=SIZE"):
            parse_mesh(text)


@pytest.mark.parametrize("pattern", [ALL, ADAPTERS])
def test_a_fine_tune_has_the_losses_of_one_device(pattern):
    """Twenty steps of two parts, rows over four devices and matrices over two."""
    cfg, params = random_model()
    if pattern == ADAPTERS:
        params = init_lora(jax.random.key(2), params, rank=4, std=0.2)
    mesh = make_mesh({"data": 4, "model": 2})
    rules = model_rules(mesh, num_heads=cfg.num_heads, num_kv_heads=cfg.num_kv_heads)
    alone = twenty_losses(cfg, params, pattern)
    spread = twenty_losses(cfg, shard(params, mesh, rules), pattern, mesh)
    assert alone[-1] < 0.8 * alone[0]
    np.testing.assert_allclose(spread, alone, rtol=1e-3)


def test_rows_of_a_step_are_not_gathered_for_the_loss():
    """A device makes the scores of its own rows alone."""
    cfg, params = random_model()
    mesh = make_mesh({"data": 8})
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    tokens = jax.device_put(np.zeros((16, 32), np.int32), NamedSharding(mesh, PartitionSpec("data")))
    loss = jax.jit(lambda params, tokens: summed_loss(params, cfg, tokens, chunk=64))
    text = loss.lower(params, tokens).compile().as_text()
    assert "f32[2,4,64]" in text  # [rows of one device, positions of a chunk, vocabulary]
    assert "f32[16,4,64]" not in text


def test_rules_that_do_not_fit_are_refused():
    mesh = make_mesh({"data": 4, "model": 2})
    for rules, words in [
        ([("w", PartitionSpec("model", None, None))], "only 2 axes"),
        ([("w", PartitionSpec("data", None))], "cuts axis 0 of w .size 6. into 4"),
        ([("w", PartitionSpec("rows"))], "names the mesh axis 'rows'"),
        ([("b", PartitionSpec())], "no sharding rule matches 'w'"),
    ]:
        with pytest.raises(InputError, match=words):
            shardings({"w": np.ones((6, 4))}, mesh, rules)


def test_logits_of_a_sharded_model_agree():
    cfg, params = random_model()
    mesh = make_mesh({"data": 4, "model": 2})
    tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, cfg.vocab_size)

    def scores(params, tokens):
        return logits(params, cfg, forward(params, cfg, tokens).hidden)

    rules = model_rules(mesh, num_heads=cfg.num_heads, num_kv_heads=cfg.num_kv_heads)
    placed = shard(params, mesh, rules)
    spread = jax.device_put(tokens, jax.sharding.NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(jax.jit(scores)(placed, spread), jax.jit(scores)(params, tokens), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_model_is_read_in_parts_onto_a_mesh(family, tmp_path, monkeypatch):
    """From files in bfloat16: every number once, the logits of one device, and half of each matrix a device."""
    write_checkpoint(tmp_path, family, "bfloat16")
    read, part_of = [], StoredTensors.part

    def counted(self, *arguments):
        part = part_of(self, *arguments)
        read.append(part.nbytes)
        return part

    monkeypatch.setattr(StoredTensors, "part", counted)
    alone = load(tmp_path)
    read.clear()
    spread = load(tmp_path, mesh=make_mesh({"data": 4, "model": 2}))
    assert sum(read) == 2 * sum(leaf.size for leaf in jax.tree.leaves(alone.params))
    assert max(read) < 96 * 32 * 2  # never a whole embedding or MLP matrix
    for one, other in zip(jax.tree.leaves(alone.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_array_equal(one, other)
    tokens = np.arange(24, dtype=np.int32).reshape(4, 6)
    scores = [np.asarray(logits(p, cfg, forward(p, cfg, tokens).hidden)) for p, cfg, _ in (alone, spread)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)

    held = [0] * 8
    for leaf in jax.tree.leaves(spread.params):
        for piece in leaf.addressable_shards:
            held[piece.device.id] += piece.data.nbytes
    assert set(held) == {4 * numbers_a_device(alone.params)}


def test_a_model_that_is_read_whole_is_put_on_the_mesh(tmp_path):
    """One of a format of its own, such as a quantized one."""
    write_checkpoint(tmp_path, "llama")
    alone = load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "own"}})
    )
    register_format("own", lambda directory, dtype: alone)
    spread = load(tmp_path, mesh=make_mesh({"data": 4, "model": 2}))
    assert spread.params["layers"]["q"].sharding.spec == PartitionSpec(None, "model", None)
    assert spread.params["layers"]["q"].addressable_shards[0].data.shape == (3, 16, 32)
    np.testing.assert_array_equal(spread.params["layers"]["q"], alone.params["layers"]["q"])
    whole = load(tmp_path, mesh=make_mesh({"data": 8}))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(whole.params))


def test_a_vocabulary_that_a_mesh_cannot_share_out_is_refused(tmp_path):
    write_checkpoint(tmp_path, "llama")
    with pytest.raises(InputError, match="cuts axis 0 of embed .size 96. into 5"):
        load(tmp_path, mesh=make_mesh({"model": 5}))


def test_curvature_shares_out_the_windows():
    params, cfg = toy()
    for windows in (16, 11):  # 11 are not shared out: they go to every device
        tokens = toy_tokens(windows=windows, context=60)
        alone = curvature(params, cfg, tokens)
        spread = curvature(params, cfg, tokens, mesh=make_mesh({"data": 8}))
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
            assert float(jnp.linalg.norm(one - other)) < 1e-5 * float(jnp.linalg.norm(one))


def test_pruning_shares_out_the_layers():
    params, cfg = toy()
    tokens = toy_tokens(windows=16, context=10)
    for structure in ("rowcol", "element", "units"):
        config = SurgeonConfig(sparsity=0.2, shots=2, structure=structure, products="float32")
        alone = prune(params, cfg, tokens, config, jax.random.key(0))
        spread = prune(params, cfg, tokens, config, jax.random.key(0), mesh=make_mesh({"data": 8}))
        for one, other in zip(jax.tree.leaves(alone.masks), jax.tree.leaves(spread.masks), strict=True):
            np.testing.assert_array_equal(one, other)
        for name in LINEARS:
            before, one, other = (of["layers"][name] for of in (params, alone.params, spread.params))
            moved = float(jnp.linalg.norm(one - before))
            difference = float(jnp.linalg.norm(one - other))
            assert difference <= 1e-2 * moved, (structure, name, difference, moved)
