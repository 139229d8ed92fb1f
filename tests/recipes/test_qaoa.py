"""The qaoa recipe: what it reports, and that a killed run ends like one that was left alone."""

import dataclasses
import json

import pytest
from killing import run_until_killed

from jaxlab.errors import InputError
from jaxlab.recipes import qaoa


@pytest.fixture(scope="module")
def config():
    return qaoa.PRESETS["smoke"]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "qaoa"
    return out, qaoa.run(config, out=out)


def test_it_finds_the_best_single_layer_and_a_largest_cut(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["expectation"] == pytest.approx(10.38674726, abs=1e-3)
    assert summary["expectation"] < 10.386748
    assert summary["max_cut"] == summary["best_drawn"] == 12
    assert summary["ratio"] == pytest.approx(summary["expectation"] / 12)
    assert summary["best_cut"].count("1") == len(summary["nodes_of_best_cut"])
    for name in ("history", "cuts", "graph"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    assert (out / "parameters.csv").read_text().startswith("gamma,beta\n")
    assert qaoa.table(summary)[0]["largest cut"] == "12"


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_figures(finished, config, tmp_path):
    out = tmp_path / "killed"
    run_until_killed("qaoa", config, out, out / "checkpoints" / "20")
    assert not (out / "summary.json").exists()
    resumed = qaoa.run(config, out=out, resume=True)
    for key, value in finished[1].items():
        if key != "seconds":
            assert resumed[key] == value, key


@pytest.mark.slow
def test_a_weighted_graph_in_single_precision(tmp_path):
    edges = tmp_path / "edges.txt"
    edges.write_text("a b 2\nb c 1\nc a -1\n")
    config = qaoa.Config(graph=str(edges), p=2, starts=2, steps=30, rate=0.05, shots=50, precision=32)
    summary = qaoa.run(config, out=tmp_path / "run")
    assert summary["max_cut"] == summary["best_drawn"] == 3
    assert 1.5 < summary["expectation"] <= 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("p", 0), ("starts", 0), ("steps", 0), ("rate", 0.0), ("shots", 0), ("precision", 16)],
)
def test_options_out_of_range_are_named(config, field, value):
    with pytest.raises(InputError, match=f"{field} is {value}"):
        dataclasses.replace(config, **{field: value})
