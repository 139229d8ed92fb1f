"""The ntk-marglik recipe on scikit-learn's data: what it writes, scores by hand, resuming, transforms, errors."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killing import run_until_killed
from safetensors.numpy import load_file
from scipy import ndimage

from jaxlab.errors import InputError
from jaxlab.evidence import Hyper, parametric_evidence
from jaxlab.recipes import ntk_marglik
from jaxlab.recipes.ntk_marglik_data import load_data, transformed, validation_split
from jaxlab.recipes.ntk_marglik_report import slack_grid

DIGITS = ntk_marglik.Config(
    data="digits",
    model="mlp",
    width=24,
    images=300,
    epochs=4,
    burn_in=1,
    block=30,
    draws=2,
    batch_size=50,
    lr=1e-2,
    grid_images=12,
    compare="map",
)
TABLE = dataclasses.replace(
    DIGITS, data="diabetes", images=0, width=8, rows="all", block=60, epochs=12, burn_in=2, grid_images=0
)


def logits(tensors, inputs):
    """The perceptron of two layers, in NumPy."""
    names = [
        "params/layers.0.kernel",
        "params/layers.0.bias",
        "params/layers.1.kernel",
        "params/layers.1.bias",
    ]
    W, b, V, c = (tensors[name].astype(np.float64) for name in names)
    return np.tanh(inputs.reshape(len(inputs), -1) @ W + b) @ V + c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "digits"
    return out, ntk_marglik.run(DIGITS, out=out)


def test_scores_are_those_of_the_saved_weights(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    data = load_data("digits", "none", images=300, seed=0)
    f = logits(load_file(out / "model.safetensors"), data.test)
    f -= np.log(np.exp(f).sum(1, keepdims=True))
    assert summary["nll"] == pytest.approx(-f[np.arange(len(f)), data.test_targets].mean(), rel=1e-4)
    assert summary["accuracy"] == pytest.approx(np.mean(f.argmax(1) == data.test_targets))
    assert summary["accuracy"] > 0.5 and summary["map_accuracy"] > 0.5
    assert [row["run"] for row in ntk_marglik.table(summary)] == [
        "evidence (ntk, 30 rows)",
        "weight decay as usual",
    ]


def test_the_log_and_the_saved_decay_tell_the_learned_precisions(finished):
    out, summary = finished
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "loss" in line]
    assert [line["step"] for line in epochs] == [1, 2, 3, 4]
    assert ["bound" in line for line in epochs] == [False, True, True, True]
    deltas = {name: value for name, value in epochs[-1].items() if name.startswith("delta ")}
    assert len(deltas) == 4 and list(deltas.values()) == summary["deltas"]
    tensors = load_file(out / "model.safetensors")
    for name, delta in deltas.items():
        assert tensors[name.replace("delta ", "weight_decay/")] == pytest.approx(delta / 300, rel=1e-5)
    assert {path.name for path in (out / "figures").iterdir()} == {"bound.png", "delta.png", "bounds.png"}


def test_values_have_an_error_and_a_noise_in_their_own_unit(tmp_path):
    summary = ntk_marglik.run(TABLE, out=tmp_path / "run")
    data = load_data("diabetes", "none", seed=0)
    assert data.train.mean(0) == pytest.approx(np.zeros(10), abs=1e-5) and len(data.train) == 332
    means = logits(load_file(tmp_path / "run" / "model.safetensors"), data.test)
    errors = (means - data.test_targets) * data.unit
    assert summary["accuracy"] == pytest.approx(math.sqrt(np.mean(errors**2)), rel=1e-4)
    sigma = summary["sigma"]
    wanted = np.mean(errors**2) / (2 * sigma**2) + math.log(sigma * math.sqrt(2 * math.pi))
    assert summary["nll"] == pytest.approx(wanted, rel=1e-4)
    assert 30 < sigma < 80  # linear regression leaves 54
    assert ntk_marglik.table(summary)[0]["rms error"] == f"{summary['accuracy']:.2f}"


@pytest.mark.slow
def test_learned_ranges_average_the_outputs_of_views(tmp_path):
    config = dataclasses.replace(
        DIGITS, augment="affine", transform="r90", samples=4, augment_steps=2, compare="none", prior="scalar"
    )
    summary = ntk_marglik.run(config, out=tmp_path / "run")
    assert len(summary["eta"]) == 6 and 0 < summary["rotation"] <= math.pi
    assert len(summary["deltas"]) == 1
    assert (tmp_path / "run" / "figures" / "eta.png").exists()
    assert summary["accuracy"] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["kron", "diag"])
def test_estimators_in_parameter_space_take_all_data(estimator, tmp_path):
    config = dataclasses.replace(DIGITS, estimator=estimator, block=0, compare="none", grid_images=0)
    summary = ntk_marglik.run(config, out=tmp_path / "run")
    assert summary["indices"] == 3000 and summary["accuracy"] > 0.5


@pytest.mark.slow
def test_the_grid_picks_the_decay_that_is_best_on_held_out_examples(tmp_path):
    config = dataclasses.replace(DIGITS, compare="grid", epochs=2, grid_images=0)
    summary = ntk_marglik.run(config, out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tried = {line["decay"]: line["nll"] for line in lines if line.get("run", "").startswith("validation")}
    assert list(tried) == list(ntk_marglik.GRID)
    assert summary["tuned_decay"] == min(tried, key=tried.get)


def test_an_ordinary_run_keeps_its_weight_decay():
    data = load_data("digits", "none", images=300, seed=0)
    state = ntk_marglik.fit(dataclasses.replace(DIGITS, epochs=1), data, decay=1e-2)
    assert float(jnp.exp(state.marglik.hyper.log_delta)) == pytest.approx(3.0)
    split = validation_split(data, share=0.1, seed=0)
    assert (len(split.train), len(split.test)) == (270, 30)
    together = np.concatenate([split.train, split.test]).reshape(300, -1)
    assert np.array_equal(np.sort(together.sum(1)), np.sort(data.train.reshape(300, -1).sum(1)))


@pytest.mark.slow
def test_a_killed_run_ends_like_one_left_alone(finished, tmp_path):
    _, summary = finished
    run_until_killed("ntk-marglik", DIGITS, tmp_path / "run", tmp_path / "run" / "checkpoints" / "2")
    resumed = ntk_marglik.run(DIGITS, out=tmp_path / "run", resume=True)
    for name in ("accuracy", "nll", "deltas", "map_nll"):
        assert resumed[name] == summary[name], name


@pytest.mark.parametrize(("transform", "most"), [("r90", math.pi / 2), ("r180", math.pi), ("translated", 0)])
def test_images_are_turned_or_shifted_as_scipy_does(transform, most):
    rng = np.random.default_rng(5)
    images = rng.random((3, 28, 28, 1)).astype(np.float32)
    found = transformed(images, transform, seed=1)
    for image, ours, draw in zip(images, found, np.random.default_rng(1).uniform(-1, 1, (3, 2)), strict=True):
        angle = most * draw[0]
        # x' = cos x - sin y, y' = sin x + cos y, x along columns; scipy's first axis is y.
        matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        shift = 8 * draw[::-1] if transform == "translated" else np.zeros(2)
        centre = np.full(2, 13.5)
        wanted = ndimage.affine_transform(
            image[..., 0], matrix, offset=centre - matrix @ centre + shift, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(ours[..., 0], wanted, atol=2e-4)
    assert transformed(images, "none", seed=1) is images


def test_bounds_of_the_figure_end_at_the_evidence():
    rng = np.random.default_rng(0)
    params = {"W": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    x, y = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 3, 30).astype(np.int32)
    hyper = Hyper({"W": jnp.log(jnp.float32(0.5))}, jnp.zeros(()))

    def apply(p, x):
        return x @ p["W"]

    rows = slack_grid(apply, params, x, y, hyper, likelihood="softmax")
    full = parametric_evidence(apply, params, x, y, hyper.log_delta, likelihood="softmax").value / 30
    best = {row["family"]: row["bound"] for row in rows if row["indices"] in (90, None)}
    assert best["random"] == pytest.approx(float(full), rel=1e-4)
    assert best["tensor"] == pytest.approx(float(full), rel=1e-4)  # one leaf
    random = [row["bound"] for row in rows if row["family"] == "random"]
    assert sorted(random) == random and len(random) == 4
    assert all(row["bound"] <= float(full) + 1e-4 for row in rows if row["family"] != "kron")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"model": "cnn"}, "model is 'cnn'; images of 8 x 8 are too small"),
        ({"data": "diabetes", "augment": "affine"}, "data is 'diabetes', a table"),
        ({"data": "diabetes", "partition": "label"}, "diabetes has no labels"),
        ({"augment": "affine", "block": 0}, "block is 0 with augment 'affine'"),
    ],
)
def test_options_that_do_not_go_together_are_input_errors(option, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(DIGITS, **option)


def test_data_that_are_not_there_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="images is 5000, but there are 1348"):
        load_data("digits", "none", images=5000)
    with pytest.raises(InputError, match="transform is 'r90'; diabetes is a table"):
        load_data("diabetes", "r90")
    with pytest.raises(InputError, match="there is no such file"):
        load_data(str(tmp_path), "none")
    with pytest.raises(InputError, match="block is 400; it must be at least 1 and at most 300"):
        ntk_marglik.run(dataclasses.replace(DIGITS, block=400), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_preset_names_a_network_that_fits_its_data():
    for config in ntk_marglik.PRESETS.values():
        data = load_data("digits", "none")._replace(train=np.zeros((1, 28, 28, 1), np.float32))
        apply, params = ntk_marglik.network_of(config, data)
        assert jax.eval_shape(apply, params, data.train).shape == (1, 10)
