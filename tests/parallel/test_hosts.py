"""Joining processes: real ones over gloo on the loopback, and the errors of wrong arguments."""

import json
from pathlib import Path

import fine_tune
import numpy as np
import pytest
from checkpoints import numbers_a_device, write_checkpoint
from two_processes import free_port, last_lines

from jaxlab.errors import InputError, ResourceError
from jaxlab.models import forward, load, logits
from jaxlab.models.training import ALL
from jaxlab.parallel import initialize

WORKER = """
import json, sys
from jaxlab.parallel import initialize, make_mesh, shard_rows
hosts = initialize()
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
mesh = make_mesh({"data": -1})
rows = np.arange(12, dtype=np.float32).reshape(6, 2)
spread = NamedSharding(mesh, PartitionSpec("data"))
whole = jax.make_array_from_callback(rows.shape, spread, lambda index: rows[index])
mine = [float(shard.data.sum()) for shard in whole.addressable_shards]
total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(whole)
doubled = shard_rows(lambda r: 2 * r.sum(axis=1), mesh)(whole)
everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(doubled)
print(json.dumps({"hosts": list(hosts), "mine": mine, "total": float(total), "doubled": everywhere.tolist()}))
"""

TRAINER = """
import json
from jaxlab.parallel import initialize, make_mesh, model_rules, shard
initialize()
import jax, numpy as np
from fine_tune import random_model, twenty_losses
from jax.sharding import NamedSharding, PartitionSpec
from jaxlab.models import forward, logits
from jaxlab.models.training import ALL
cfg, params = random_model()
found = {}
for axis in ("data", "model"):
    mesh = make_mesh({"data": -1, "model": 1} if axis == "data" else {"data": 1, "model": -1})
    rules = model_rules(mesh, num_heads=cfg.num_heads, num_kv_heads=cfg.num_kv_heads)
    placed = shard(params, mesh, rules)
    found[axis] = twenty_losses(cfg, placed, ALL, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    tokens = jax.device_put(np.arange(24, dtype=np.int32).reshape(2, 12), whole)
    score = lambda params, tokens: logits(params, cfg, forward(params, cfg, tokens).hidden)
    found[axis + " logits"] = np.asarray(jax.jit(score, out_shardings=whole)(placed, tokens)).tolist()
print(json.dumps(found))
"""


LOADER = """
import json, sys
from jaxlab.parallel import initialize, make_mesh
initialize()
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxlab.models import forward, load, logits
from jaxlab.models.safetensors_weights import StoredTensors
read, part_of = [], StoredTensors.part
def counted(self, *arguments):
    part = part_of(self, *arguments)
    read.append(part.nbytes)
    return part
StoredTensors.part = counted
mesh = make_mesh({"data": 1, "model": 2})
params, cfg, _ = load(sys.argv[1], mesh=mesh)
whole = NamedSharding(mesh, PartitionSpec())
tokens = jax.device_put(np.arange(24, dtype=np.int32).reshape(2, 12), whole)
score = lambda params, tokens: logits(params, cfg, forward(params, cfg, tokens).hidden)
scores = np.asarray(jax.jit(score, out_shardings=whole)(params, tokens)).tolist()
held = sum(piece.data.nbytes for leaf in jax.tree.leaves(params) for piece in leaf.addressable_shards)
print(json.dumps({"read": sum(read), "held": held, "scores": scores}))
"""


def _two_processes(program, *paths, arguments=()):
    """What two processes that have met print in their last lines, from JSON."""
    return [json.loads(line) for line in last_lines("-c", program, *arguments, paths=paths)]


def test_two_processes_share_one_mesh():
    results = _two_processes(WORKER)
    assert [result["hosts"] for result in results] == [[0, 2, 1, 2], [1, 2, 1, 2]]
    assert [result["mine"] for result in results] == [[15.0], [51.0]]  # 0+..+5 and 6+..+11
    for result in results:
        assert result["total"] == 66.0
        assert result["doubled"] == [2.0, 10.0, 18.0, 26.0, 34.0, 42.0]


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does():
    cfg, params = fine_tune.random_model()
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    scores = logits(params, cfg, forward(params, cfg, tokens).hidden)
    losses = fine_tune.twenty_losses(cfg, params, ALL)
    for found in _two_processes(TRAINER, str(Path(fine_tune.__file__).parent)):
        for axis in ("data", "model"):
            np.testing.assert_allclose(found[f"{axis} logits"], scores, atol=1e-4)
            np.testing.assert_allclose(found[axis], losses, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_process_reads_or_holds_a_whole_model(family, tmp_path):
    write_checkpoint(tmp_path, family, "float16")
    params, cfg, _ = load(tmp_path)
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    scores = logits(params, cfg, forward(params, cfg, tokens).hidden)
    share = numbers_a_device(params)
    for found in _two_processes(LOADER, arguments=[str(tmp_path)]):
        assert found["read"] == 2 * share  # float16 on disk, float32 on devices
        assert found["held"] == 4 * share
        np.testing.assert_allclose(found["scores"], scores, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processes": 2}, "give both"),
        ({"processes": 2, "process": 2, "coordinator": "a:1"}, r"must lie in \[0, 2\)"),
        ({"processes": 2, "process": 0}, "coordinator is missing"),
        ({"processes": 2, "process": 0, "coordinator": "nowhere"}, "must be HOST:PORT"),
    ],
)
def test_incomplete_arguments_are_named(arguments, message, monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=message):
        initialize(**arguments)


def test_environment_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES is 'two'"):
        initialize()


def test_process_zero_that_does_not_answer_is_a_resource_error():
    with pytest.raises(ResourceError, match=r"process 0 did not answer at 127\.0\.0\.1:\d+ within 0\.5 s"):
        initialize(f"127.0.0.1:{free_port()}", processes=2, process=1, timeout_s=0.5)


def test_process_that_has_already_computed_is_told_so():
    import jax

    jax.devices()
    with pytest.raises(InputError, match="before the first computation"):
        initialize("127.0.0.1:1", processes=2, process=0)
