"""The t-regs recipe on real digits: what it writes, that a killed run ends like one left alone, and its errors."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from flax import nnx
from killing import run_until_killed
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from jaxlab.errors import InputError
from jaxlab.recipes import t_regs
from jaxlab.selfsupervised import ConvNet


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits of scikit-learn in MNIST's files, every sixth one for testing."""
    folder = tmp_path_factory.mktemp("digits")
    images, classes = load_digits(return_X_y=True)
    images, classes = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8), classes.astype(np.uint8)
    testing = np.arange(len(images)) % 6 == 0
    for part, own in (("train", ~testing), ("t10k", testing)):
        for kind, array in (("images-idx3", images[own]), ("labels-idx1", classes[own])):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return folder


@pytest.fixture(scope="module")
def small(digits):
    return t_regs.Config(
        data=str(digits),
        proj_hidden_dim=32,
        proj_output_dim=16,
        batch_size=128,
        max_epochs=2,
        probe_images=400,
        linear_epochs=5,
    )


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "t-regs"
    return out, t_regs.run(small, out=out)


def test_the_summary_says_what_the_features_are_worth(small, finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    data = t_regs.load_images(small)
    rows = [images.reshape(len(images), -1) for images in (data.train, data.test)]

    def votes(distances):
        return np.exp(-distances / 0.07)

    theirs = KNeighborsClassifier(20, metric="cosine", weights=votes).fit(rows[0], data.train_classes)
    expected = theirs.score(rows[1], data.test_classes)
    assert summary["pixels_knn_accuracy"] == pytest.approx(expected, abs=0.004)
    regression = LogisticRegression(max_iter=2000).fit(rows[0], data.train_classes)
    fitted = regression.score(rows[1], data.test_classes)  # to the end, where the probe makes 55 steps
    assert fitted - 0.15 < summary["pixels_linear_accuracy"] <= fitted
    assert 0.5 < summary["linear_accuracy"] <= 1 and 0.5 < summary["knn_accuracy"] <= 1
    assert [row["measure"] for row in t_regs.table(summary)][::2][:2] == [
        "linear probe",
        "20 nearest neighbours",
    ]
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {"cosines.png", "singular_values.png", "tree.png", "dimension.png"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and lines[0]["length"] > 0


def test_the_saved_backbone_is_the_encoder(finished):
    tensors = load_file(finished[0] / "backbone.safetensors")
    shapes = {
        "/".join(map(str, (*path[:-1], path[-1]))): leaf.shape
        for path, leaf in nnx.to_flat_state(nnx.as_pure(nnx.state(ConvNet(rngs=nnx.Rngs(0)), nnx.Param)))
    }
    assert {
        name.removeprefix("params/"): own.shape for name, own in tensors.items() if name.startswith("params/")
    } == shapes
    assert all(np.isfinite(own).all() for own in tensors.values())
    means = [own for name, own in tensors.items() if name.startswith("stats/") and name.endswith("mean")]
    assert len(means) == 4 and all(np.abs(own).max() > 0 for own in means)


@pytest.mark.slow
def test_a_killed_run_ends_like_one_left_alone(small, finished, tmp_path):
    _, summary = finished
    run_until_killed("t-regs", small, tmp_path / "run", tmp_path / "run" / "checkpoints" / "11")
    resumed = t_regs.run(small, out=tmp_path / "run", resume=True)
    for name in ("linear_accuracy", "knn_accuracy", "mean_cosine", "effective_rank", "radius"):
        assert resumed[name] == summary[name], name


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"warmup_epochs": 10.0}, "warmup_epochs is 10.0; it must be below max_epochs = 10"),
        ({"probe_every": 3}, "probe_every is 3; it must divide max_epochs, which is 10"),
        ({"images": 100}, "images is 100; it must be at least batch_size = 256"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"crop_min_scale": 0.0}, "crop_min_scale is 0.0; it must be above 0 and at most 1"),
        ({"solarization_prob": 1.5}, "solarization_prob is 1.5; it must lie between 0 and 1"),
    ],
)
def test_options_out_of_range_are_input_errors(option, message):
    with pytest.raises(InputError, match=message):
        t_regs.Config(**option)


def test_more_images_than_there_are_is_an_input_error(small):
    with pytest.raises(InputError, match="images is 5000, but there are 1497"):
        t_regs.load_images(dataclasses.replace(small, images=5000))
    with pytest.raises(InputError, match="batch_size is 2000, but there are 1497"):
        t_regs.load_images(dataclasses.replace(small, batch_size=2000))
    with pytest.raises(InputError, match="there is no such file"):
        t_regs.load_images(dataclasses.replace(small, data="nowhere"))
