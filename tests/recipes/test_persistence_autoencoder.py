"""The persistence-autoencoder recipe: metrics by brute force, splits, choices, and that a stopped run goes on."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import ttest_rel

from jaxlab.errors import InputError
from jaxlab.recipes import persistence_autoencoder
from jaxlab.recipes.persistence_autoencoder import METHODS, Config
from jaxlab.recipes.persistence_autoencoder_metrics import METRICS, density_kl, measure

SMALL = Config(
    weights=(0.5, 5.0),
    slices=2,
    directions=3,
    widths=(8,),
    batch=20,
    epochs=4,
    every=2,
    rate=0.01,
    seeds=2,
    images=150,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "persistence-autoencoder"
    return out, persistence_autoencoder.run(SMALL, out=out)


def test_the_summary_holds_what_was_found(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(rows[i + 1]["reconstruction"] < rows[i]["reconstruction"] for i in (0, 2, 4))
    assert [row["topology"] > 0 for row in rows] == [False, False, True, True, True, True]
    saved = np.load(out / "results.npz")
    tested = {}
    for method in METHODS:
        best = np.argmin(saved[f"validation.{method}.density_kl"], 0)
        for metric in METRICS:
            tested[method, metric] = saved[f"test.{method}.{metric}"][best, [0, 1]]
            assert summary[f"{method}_{metric}"] == pytest.approx(tested[method, metric].mean())
    for metric in METRICS:
        for other, key in (("one_parameter", "p"), ("plain", "p_plain")):
            pair = tested["two_parameters", metric], tested[other, metric]
            alike = np.allclose(*np.subtract(*pair), rtol=0, atol=1e-6)
            assert summary[f"{key}_{metric}"] == (None if alike else pytest.approx(ttest_rel(*pair).pvalue))
    # Equal weights and batches, other losses: other codes.
    assert not np.allclose(saved["codes.one_parameter"], saved["codes.two_parameters"])
    for name in ("codes", "metrics"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    gif = (out / "figures" / "codes.gif").read_bytes()
    assert gif[:6] == b"GIF89a" and gif.count(b"\x21\xf9\x04") == 3
    assert len(persistence_autoencoder.table(summary)) == len(METRICS)


@pytest.mark.slow
def test_a_stopped_run_ends_like_one_left_alone(finished, tmp_path, monkeypatch):
    _, expected = finished
    log = persistence_autoencoder.RunFolder.log

    def stopping(self, **values):
        if values["step"] == 6:
            raise KeyboardInterrupt
        log(self, **values)

    with monkeypatch.context() as patched:
        patched.setattr(persistence_autoencoder.RunFolder, "log", stopping)
        with pytest.raises(KeyboardInterrupt):
            persistence_autoencoder.run(SMALL, out=tmp_path / "run")
    summary = persistence_autoencoder.run(SMALL, out=tmp_path / "run", resume=True)
    assert summary | {"seconds": 0} == expected | {"seconds": 0}


def test_images_are_split_apart_and_alike_in_classes():
    loaded = persistence_autoencoder.load_dataset(dataclasses.replace(SMALL, images=0))
    assert loaded.images.shape == (1797, 64) and loaded.images.min() == 0 and loaded.images.max() == 1
    for train, validation, test in zip(loaded.train, loaded.validation, loaded.test, strict=True):
        assert sorted([*train, *validation, *test]) == list(range(1797))
        assert abs(len(validation) - 359) <= 1 and abs(len(test) - 360) <= 1
        shares = np.bincount(loaded.classes[test]) / len(test)
        np.testing.assert_allclose(shares, np.bincount(loaded.classes) / 1797, atol=0.003)
    assert (loaded.test[0] != loaded.test[1]).any()


def test_metrics_are_what_their_papers_define():
    rng = np.random.default_rng(0)
    inputs, codes, classes = rng.normal(size=(40, 6)), rng.normal(size=(40, 2)), rng.integers(0, 3, 40)
    train_codes, train_classes = rng.normal(size=(60, 2)), rng.integers(0, 3, 60)
    found = measure(inputs, codes, classes, train_codes, train_classes)

    def distances(points):
        return np.linalg.norm(points[:, None] - points, axis=-1)

    def intruders(first, second, k=10):
        """1 less the scaled sum of ranks in the first space, over neighbours in the second that are none there."""
        ranks = np.argsort(np.argsort(distances(first), axis=1), axis=1)  # 0 is the point itself
        others = np.argsort(np.argsort(distances(second), axis=1), axis=1)
        n = len(first)
        excess = np.where((others >= 1) & (others <= k) & (ranks > k), ranks - k, 0).sum()
        return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * excess

    assert found["trustworthiness"] == pytest.approx(intruders(inputs, codes))
    assert found["continuity"] == pytest.approx(intruders(codes, inputs))
    nearest = np.argmin(np.linalg.norm(codes[:, None] - train_codes, axis=-1), axis=1)
    assert found["accuracy_1nn"] == pytest.approx(np.mean(train_classes[nearest] == classes))
    shares = []
    for points in (inputs, codes):
        d = distances(points)
        density = np.array(
            [sum(np.exp(-((d[i, j] / d.max()) ** 2) / 0.1) for j in range(40)) for i in range(40)]
        )
        shares.append(density / density.sum())
    assert found["density_kl"] == pytest.approx(sum(p * np.log(p / q) for p, q in zip(*shares, strict=True)))
    assert density_kl(codes, 3 * codes + 1) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_the_smoke_preset_learns(tmp_path):
    summary = persistence_autoencoder.run(persistence_autoencoder.PRESETS["smoke"], out=tmp_path / "run")
    for method in METHODS:
        # Black images have an error of 0.235; one of ten classes is right by chance.
        assert summary[f"{method}_accuracy_10nn"] > 0.12 and summary[f"{method}_mse"] < 0.15


@pytest.mark.slow
def test_clothes_have_codes_too(tmp_path):
    config = dataclasses.replace(SMALL, data="fashion-mnist", images=400, widths=(32,), rate=0.003)
    loaded = persistence_autoencoder.load_dataset(config)
    assert loaded.images.shape == (400, 784) and len(np.unique(loaded.classes)) == 10
    summary = persistence_autoencoder.run(config, out=tmp_path / "run")
    assert summary["data"] == "fashion-mnist" and summary["plain_mse"] < loaded.images.var()
    with pytest.raises(InputError, match="fashion-mnist has 10000"):
        persistence_autoencoder.load_dataset(dataclasses.replace(config, images=20_000))


@pytest.mark.slow
def test_cycles_are_taken_too_and_need_room(finished, tmp_path):
    config = dataclasses.replace(SMALL, weights=(5.0,), degrees=(0, 1), lines=20)
    summary = persistence_autoencoder.run(config, out=tmp_path / "run")
    both, plain = (np.load(out / "results.npz") for out in (tmp_path / "run", finished[0]))
    np.testing.assert_array_equal(both["codes.plain"], plain["codes.plain"])
    # The last two lanes of the other run have this weight.
    np.testing.assert_allclose(
        both["codes.one_parameter"], plain["codes.one_parameter"][2:], rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(both["codes.two_parameters"], plain["codes.two_parameters"][2:], rtol=1e-2)
    assert summary["degrees"] == [0, 1]
    with pytest.raises(InputError, match="columns is 1, too few"):
        persistence_autoencoder.run(dataclasses.replace(config, columns=1), out=tmp_path / "narrow")


def test_wrong_options_are_named(tmp_path):
    for options, message in (
        ({"weights": ()}, "name at least one, all > 0"),
        ({"weights": (0.0,)}, "name at least one, all > 0"),
        ({"data": "mnist"}, "data is 'mnist'; it must be 'digits' or 'fashion-mnist'"),
        ({"slices": 1}, "slices is 1; it must be at least 2"),
        ({"degrees": (2,)}, "degrees is (2,); it must be 0, 1, or 0 and 1"),
        ({"seeds": 1}, "seeds is 1; it must be at least 2"),
        ({"widths": ()}, "widths is ()"),
        ({"every": 3}, "every is 3; it must divide epochs, which is 4"),
    ):
        with pytest.raises(InputError) as caught:
            dataclasses.replace(SMALL, **options)
        assert message in str(caught.value)
    for options, message in (
        ({"images": 2000}, "digits has 1797"),
        ({"batch": 100}, "there are 90 training images"),
    ):
        with pytest.raises(InputError, match=message):
            persistence_autoencoder.run(dataclasses.replace(SMALL, **options), out=tmp_path / "wrong")
