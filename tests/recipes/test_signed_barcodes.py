"""The signed-barcodes recipe: what it reports and saves, honest splits, and that a stopped run goes on."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.recipes import signed_barcodes
from jaxlab.recipes.signed_barcodes import Config

SMALL = Config(
    functions=("hks:10+degree", "hks:1+closeness"),
    bandwidths=(0.1,),
    resolution=6,
    folds=3,
    inner_folds=2,
    samples=60,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "signed-barcodes"
    return out, signed_barcodes.run(SMALL, out=out)


def test_the_summary_holds_what_was_found(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    accuracies = [row["accuracy"] for row in rows if "step" in row]
    assert len(accuracies) == 3 and sum(row["tested"] for row in rows if "step" in row) == 60
    assert summary["accuracy"] == pytest.approx(np.mean(accuracies))
    assert summary["accuracy"] > summary["largest_class"] - 0.05
    assert summary["source"] in SMALL.functions
    for name in ("folds", "measures"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    saved = np.load(out / "features.npz")
    assert saved["features"].shape == (60, 2 * 36) and saved["weights_0"].shape == (60, 6, 6)
    # Every molecule is connected and whole in the end: one component, and as many cycles as edges ask for.
    assert (saved["weights_0"].sum((1, 2)) == 1).all() and saved["weights_1"].sum() > 0
    assert len(signed_barcodes.table(summary)) == 2


def test_a_stopped_run_ends_like_one_left_alone(finished, tmp_path, monkeypatch):
    _, expected = finished
    fold = signed_barcodes.fold
    calls = []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fold(*args)

    monkeypatch.setattr(signed_barcodes, "fold", stopping)
    with pytest.raises(KeyboardInterrupt):
        signed_barcodes.run(SMALL, out=tmp_path / "run")
    summary = signed_barcodes.run(SMALL, out=tmp_path / "run", resume=True)
    assert len(calls) == 4  # the first fold was not done again
    assert summary | {"seconds": 0} == expected | {"seconds": 0}


def test_choices_see_no_test_sample(monkeypatch):
    """Labels of test samples turned at random change what is measured, and nothing that is chosen."""
    loaded = signed_barcodes.load_dataset(SMALL)
    train, test = next(signed_barcodes.splits(SMALL, loaded))
    choice, _ = signed_barcodes.fold(SMALL, loaded, train, test)
    shuffled = loaded.classes.copy()
    shuffled[test] = 1 - shuffled[test]
    again, accuracy = signed_barcodes.fold(SMALL, loaded._replace(classes=shuffled), train, test)
    assert again == choice
    assert accuracy == pytest.approx(1 - _)


@pytest.mark.slow
def test_time_series_and_images_are_classified(tmp_path):
    series = dataclasses.replace(
        SMALL, data="ItalyPowerDemand", vectorize="sliced-wasserstein", samples=0, directions=10
    )
    summary = signed_barcodes.run(series, out=tmp_path / "series")
    assert summary["samples"] == 1096 and summary["folds"] == 1
    assert summary["accuracy"] > 0.65
    # Of ten classes; clothes are harder on a grid of 6 x 6 lines.
    for name, least in (("digits", 0.5), ("fashion-mnist", 0.3)):
        images = dataclasses.replace(SMALL, data=name, samples=300, bandwidths=(0.2,))
        assert signed_barcodes.run(images, out=tmp_path / name)["accuracy"] > least


def test_wrong_options_are_named(tmp_path):
    for options, message in (
        ({"folds": 1}, "folds is 1; it must be at least 2"),
        ({"functions": ()}, "functions is empty"),
        ({"bandwidths": (0.0,)}, "all must be > 0"),
        ({"densities": (0.0,)}, "none may be 0"),
    ):
        with pytest.raises(InputError, match=message):
            Config(**options)
    for options, message in (
        ({"data": "PROTEINS"}, "known are MUTAG, Cuneiform"),
        ({"samples": 1000}, "MUTAG holds 188"),
        ({"folds": 40}, "the smallest class has"),
    ):
        with pytest.raises(InputError, match=message):
            signed_barcodes.run(dataclasses.replace(SMALL, **options), out=tmp_path / "wrong")
