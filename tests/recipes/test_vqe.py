"""The vqe recipe: ground states, what it writes, and that an interrupted run ends like one that was left alone."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.quantum.molecules import molecule
from jaxlab.recipes import vqe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "vqe"
    return out, vqe.run(vqe.PRESETS["smoke"], out=out)


def test_hydrogen_reaches_its_exact_energy(finished):
    out, summary = finished
    found = molecule("H2")
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["energies"] == pytest.approx([found.fci_energy], abs=1e-9)
    assert summary["hf_energies"] == [found.hf_energy]
    assert summary["converged"] and summary["chemically_accurate"]
    assert (summary["wires"], summary["words"], summary["parameters"]) == (4, 15, 3)
    (row,) = vqe.table(summary)
    assert row["exact"] == row["uccsd"] == "-1.137270"


def test_history_parameters_and_figures_are_written(finished):
    out, summary = finished
    assert {path.name for path in (out / "figures").iterdir()} == {"error.png"}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(summary["steps"] + 1)]
    assert rows[0]["energies"] == pytest.approx(summary["hf_energies"], abs=1e-9)
    with open(out / "history.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["energy"]) for line in lines] == [row["energies"][0] for row in rows]
    with np.load(out / "parameters.npz") as stored:
        assert stored["params"].shape == (1, 3)
        assert abs(stored["params"][0, 2]) == pytest.approx(0.2266, abs=1e-3)
    assert not (out / "checkpoints").exists()


def test_a_finished_run_is_returned_at_once_on_resume(finished):
    out, summary = finished
    assert vqe.run(vqe.PRESETS["smoke"], out=out, resume=True) == summary


@pytest.mark.parametrize(
    ("ansatz", "optimizer", "options"),
    [
        ("all_singles_doubles", "qng", {}),
        ("uccsd", "adam", {"learning_rate": 0.1, "steps": 60}),
        ("hardware_efficient", "rotosolve", {"layers": 2, "steps": 30}),
        ("hardware_efficient", "qng", {"layers": 2, "learning_rate": 0.4}),
    ],
)
def test_every_optimizer_gets_there(tmp_path, ansatz, optimizer, options):
    config = vqe.Config(molecule="H2", ansatz=ansatz, optimizer=optimizer, **options)
    summary = vqe.run(config, out=tmp_path / "run")
    assert -1e-9 < summary["max_error"] < 1e-4


def test_layers_start_beside_hartree_fock(tmp_path, monkeypatch):
    monkeypatch.setattr(vqe, "_SPREAD", 0.0)
    config = vqe.Config(molecule="H2", ansatz="hardware_efficient", layers=3, optimizer="rotosolve", steps=1)
    vqe.run(config, out=tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["energies"] == pytest.approx([molecule("H2").hf_energy], abs=1e-9)


def test_a_scan_is_each_of_its_geometries(tmp_path):
    config = vqe.Config(molecule="H2", scan="1.5,0.7", ansatz="all_singles_doubles")
    summary = vqe.run(config, out=tmp_path / "run")
    assert summary["bonds"] == [0.7, 1.5]
    exact = [molecule("H2", bond=bond).fci_energy for bond in (0.7, 1.5)]
    assert summary["energies"] == pytest.approx(exact, abs=1e-8)
    assert summary["fci_energies"] == pytest.approx(exact)
    assert summary["converged"]
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        "error.png",
        "dissociation.png",
    }
    assert len(vqe.table(summary)) == 2


@pytest.mark.parametrize("scan", ["", "0.7,1.5"])
def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path, monkeypatch, scan):
    config = vqe.Config(molecule="H2", scan=scan, ansatz="all_singles_doubles", optimizer="adam", steps=8)
    expected = vqe.run(config, out=tmp_path / "whole")

    def interrupted(folder, step, **values):
        log(folder, step=step, **values)
        if step == 4:
            raise KeyboardInterrupt

    log = vqe.RunFolder.log
    with monkeypatch.context() as patched:
        patched.setattr(vqe, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        patched.setattr(vqe.RunFolder, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vqe.run(config, out=tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()
    resumed = vqe.run(config, out=tmp_path / "cut", resume=True)
    for key, value in expected.items():
        if not key.startswith("seconds"):
            assert resumed[key] == value, key
    with (
        np.load(tmp_path / "whole" / "parameters.npz") as one,
        np.load(tmp_path / "cut" / "parameters.npz") as two,
    ):
        np.testing.assert_array_equal(one["params"], two["params"])
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [*range(9)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LiH", "H2O"])
def test_coupled_cluster_is_chemically_accurate(tmp_path, name):
    summary = vqe.run(vqe.Config(molecule=name), out=tmp_path / "run")
    assert summary["converged"] and 0 <= summary["max_error"] < vqe.CHEMICAL_ACCURACY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"molecule": "Xx"}, "molecule is 'Xx'"),
        ({"bond": -1.0}, "bond is -1.0"),
        ({"scan": "0.8,x"}, "scan is '0.8,x'"),
        ({"scan": "0.8,-1"}, "bond is -1.0"),
        ({"scan": "0.8", "bond": 1.0}, "give one of them"),
        ({"layers": 0}, "layers is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"frozen": -1}, "frozen is -1"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"learning_rate": 0.0, "optimizer": "adam"}, "learning_rate is 0.0"),
        ({"learning_rate": 0.1}, "lbfgs has none"),
        ({"optimizer": "rotosolve"}, "needs gates with one frequency"),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(vqe.Config(), **options)


def test_orbitals_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="frozen is 5"):
        vqe.run(vqe.Config(molecule="H2", frozen=5), out=tmp_path / "run")
