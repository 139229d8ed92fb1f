"""The qml recipe: what it reports, and that a killed run ends like one that was left alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from killing import run_until_killed
from safetensors.numpy import load_file

from jaxlab.errors import InputError
from jaxlab.recipes import qml


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(qml.PRESETS["smoke"], epochs=12)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "qml"
    return out, qml.run(config, out=out)


def test_it_learns_and_says_what_the_twin_does(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["accuracy_hybrid"] >= 0.9
    assert summary["accuracy_logistic"] >= 0.9
    assert (summary["train_examples"], summary["test_examples"]) == (112, 38)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss_hybrid"] < rows[0]["loss_hybrid"]
    saved = load_file(out / "model.safetensors")
    assert sum(tensor.size for tensor in saved.values()) == summary["parameters_hybrid"]
    for name in ("history", "confusion"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    assert len(qml.table(summary)) == 3


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_figures(finished, config, tmp_path):
    out = tmp_path / "killed"
    run_until_killed("qml", config, out, out / "checkpoints" / "3")
    assert not (out / "summary.json").exists()
    resumed = qml.run(config, out=out, resume=True)
    for key, value in finished[1].items():
        if key != "seconds":
            assert resumed[key] == value, key


@pytest.mark.parametrize("kind", qml.KINDS)
def test_images_get_a_gradient_everywhere(kind):
    config = qml.Config(wires=3, layers=2, channels=2)
    network = qml.HybridClassifier((8, 8, 1), 10, config, kind, rngs=nnx.Rngs(params=0))
    graph, params = nnx.split(network)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(nnx.merge(graph, params)(x)))))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.any(leaf != 0), path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 0),
        ("epochs", 0),
        ("batch", 0),
        ("channels", 0),
        ("wires", 1),
        ("held_out", 1.0),
        ("rate", -1.0),
    ],
)
def test_options_out_of_range_are_named(config, field, value):
    with pytest.raises(InputError, match=f"{field} is {value}"):
        dataclasses.replace(config, **{field: value})
