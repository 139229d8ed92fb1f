"""The persistence-optimisation recipe: what it reports and draws, and that a stopped run ends like one left alone."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.recipes import persistence_optimisation
from jaxlab.recipes.persistence_optimisation import Config

SMALL = Config(experiment="circle", points=24, steps=6, every=2, decay=20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "persistence-optimisation"
    return out, persistence_optimisation.run(SMALL, out=out)


def test_the_summary_and_the_pictures_hold_what_happened(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("one_parameter", "two_parameters"):
        assert summary[f"{name}_loss_first"] == pytest.approx(rows[0][f"{name}_loss"])
        assert summary[f"{name}_loss_last"] == pytest.approx(rows[-1][f"{name}_loss"])
    track = np.load(out / "trajectory.npz")["two_parameters"]
    assert track.shape == (4, 24, 2)
    np.testing.assert_array_equal(track[0], persistence_optimisation.cloud(SMALL))
    assert (np.abs(np.diff(track, axis=0)).max((1, 2)) > 0).all()
    # Adam's first steps are no longer than its rate.
    assert np.abs(track[1] - track[0]).max() <= 2 * SMALL.rate * 1.01
    gif = (out / "figures" / "points.gif").read_bytes()
    assert gif[:6] == b"GIF89a" and gif.count(b"\x21\xf9\x04") == 4
    assert len(persistence_optimisation.table(summary)) == 2


def test_clouds_are_what_the_experiments_ask_for():
    ring = persistence_optimisation.cloud(dataclasses.replace(SMALL, points=400))
    blob, rest = ring[:100], np.linalg.norm(ring[100:], axis=1)
    assert blob.min() >= -0.1 and blob.max() <= 0.2
    assert rest.min() >= 0.85 - 1e-6 and rest.max() <= 1 + 1e-6
    assert np.mean(rest**2) == pytest.approx((0.85**2 + 1) / 2, abs=0.01)  # uniform in area
    square = persistence_optimisation.cloud(Config(points=500))
    assert square.shape == (500, 2) and square.min() >= 0 and square.max() <= 1


def test_a_stopped_run_ends_like_one_left_alone(finished, tmp_path, monkeypatch):
    _, expected = finished
    log = persistence_optimisation.RunFolder.log

    def stopping(self, **values):
        if values["step"] == 5:
            raise KeyboardInterrupt
        log(self, **values)

    with monkeypatch.context() as patched:
        patched.setattr(persistence_optimisation.RunFolder, "log", stopping)
        with pytest.raises(KeyboardInterrupt):
            persistence_optimisation.run(SMALL, out=tmp_path / "run")
    summary = persistence_optimisation.run(SMALL, out=tmp_path / "run", resume=True)
    assert summary | {"seconds": 0} == expected | {"seconds": 0}


def test_wrong_options_are_named():
    for options, message in (
        ({"points": 3}, "points is 3; it must be at least 8"),
        ({"rate": 0.0}, "rate is 0.0; it must be > 0"),
        ({"decay": -1.0}, "decay is -1.0"),
    ):
        with pytest.raises(InputError, match=message):
            Config(**options)
