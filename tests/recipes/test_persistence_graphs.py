"""The persistence-graphs recipe: honest splits and choices, what it reports, and that a stopped run goes on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.recipes import persistence_graphs
from jaxlab.recipes.persistence_graphs import Config, Method

SMALL = Config(
    parameters=(2,), functions=("hks:10+degree",), width=4, depth=1, channels=1, samples=4, epochs=4, every=2,
    rate=0.05, folds=2, inner_folds=2, graphs=24,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "persistence-graphs"
    return out, persistence_graphs.run(SMALL, out=out)


def test_the_summary_holds_what_was_found(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["loss"] < rows[0]["loss"] and rows[3]["loss"] < rows[2]["loss"]
    saved = np.load(out / "results.npz")
    outer = saved["trained_on"][:, 0]
    # The last predictions of the fold that does not train on a graph are its test.
    for method, group in enumerate(("learned_2", "fixed")):
        last = saved["predicted"][method, -1, :, 0]
        right = [(last[fold] == saved["classes"])[~outer[fold]] for fold in range(2)]
        assert summary[f"accuracy_{group}_all_epochs"] == pytest.approx(np.concatenate(right).mean())
    assert summary["graphs"] == 24 and summary["classes"] == 2
    assert 0 < summary["p_learned_2_fixed"] <= 1
    for name in ("accuracy", "measures"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    assert len(persistence_graphs.table(summary)) == 3


@pytest.mark.slow
def test_a_stopped_run_ends_like_one_left_alone(finished, tmp_path, monkeypatch):
    _, expected = finished
    log = persistence_graphs.RunFolder.log

    def stopping(self, **values):
        if values["step"] == 4:
            raise KeyboardInterrupt
        log(self, **values)

    with monkeypatch.context() as patched:
        patched.setattr(persistence_graphs.RunFolder, "log", stopping)
        with pytest.raises(KeyboardInterrupt):
            persistence_graphs.run(SMALL, out=tmp_path / "run")
    summary = persistence_graphs.run(SMALL, out=tmp_path / "run", resume=True)
    assert summary | {"seconds": 0} == expected | {"seconds": 0}


def test_no_graph_is_trained_on_and_tested_or_chosen_by():
    classes = np.repeat([0, 1], [12, 18])
    masks = persistence_graphs.splits(dataclasses.replace(SMALL, folds=3, inner_folds=4), classes)
    assert masks.shape == (3, 5, 30)
    assert (masks[:, 0].sum(0) == 2).all()  # tested once
    for outer, *inner in masks:
        assert not (np.array(inner) & ~outer).any()  # no test graph is seen
        assert ((outer & ~np.array(inner)).sum(0) == outer).all()  # left out once
        np.testing.assert_array_equal(np.bincount(classes[outer]), [8, 12])


def test_choices_are_the_best_on_the_inner_folds_and_see_no_test_graph():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1], 15)
    masks = persistence_graphs.splits(dataclasses.replace(SMALL, folds=3, inner_folds=2), classes)
    methods = [Method(str(i), group, 1, None, np.zeros(0)) for i, group in enumerate("aab")]
    predicted = rng.integers(0, 2, (3, 4, *masks.shape))
    tested, chosen = persistence_graphs.choose(methods, masks, predicted, classes)
    hits = {"a": 0, "b": 0}
    for fold, (outer, *inner) in enumerate(masks):
        for group, own in (("a", (0, 1)), ("b", (2,))):
            scores = {
                (method, block): sum(
                    (predicted[method, block, fold, i] == classes)[outer & ~kept].sum()
                    for i, kept in enumerate(inner, start=1)
                )
                for method in own
                for block in range(4)
            }
            best = chosen[group][fold]
            assert scores[best] == max(scores.values())
            hits[group] += (predicted[*best, fold, 0] == classes)[~outer].sum()
    assert {group: found.sum() for group, found in tested.items()} == hits
    # Other labels of test graphs would change nothing that is chosen for their fold.
    turned = np.where(masks[0, 0], classes, 1 - classes)
    again = persistence_graphs.choose(methods, masks, predicted, turned)[1]
    assert [own[0] for own in again.values()] == [own[0] for own in chosen.values()]


@pytest.mark.slow
def test_training_sees_no_label_of_a_test_graph():
    loaded = persistence_graphs.load_dataset(SMALL)
    masks = persistence_graphs.splits(SMALL, loaded.classes)
    (method,) = persistence_graphs.methods_of(dataclasses.replace(SMALL, parameters=(2,)), loaded)[1:]
    lane = masks[0, :1]
    turned = loaded._replace(classes=np.where(lane[0], loaded.classes, 1 - loaded.classes))
    found = []
    for own in (loaded, turned):
        program = persistence_graphs._Program(SMALL, own, method)
        scale = persistence_graphs._scales(method, lane)
        found.append(program.block(program.init(0, 1), method.inputs, lane, scale)[0].params)
    for first, second in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_the_smoke_preset_beats_the_largest_class(tmp_path):
    summary = persistence_graphs.run(persistence_graphs.PRESETS["smoke"], out=tmp_path / "run")
    for group in ("learned_2", "fixed"):
        assert summary[f"accuracy_{group}"] > summary["largest_class"]


def test_wrong_options_are_named(tmp_path):
    for options, message in (
        ({"folds": 1}, "folds is 1; it must be at least 2"),
        ({"functions": ()}, "functions is empty"),
        ({"parameters": (1, 1)}, "all must be at least 1, and different"),
        ({"parameters": (3,)}, "resolution is 0; it must be at least 2 for three parameters"),
        ({"every": 3}, "every is 3; it must divide epochs, which is 4"),
        ({"rate": 0.0}, "rate is 0.0; it must be > 0"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(SMALL, **options)
    for options, message in (
        ({"data": "PROTEINS"}, "known are MUTAG, Cuneiform"),
        ({"graphs": 1000}, "MUTAG holds 188"),
        ({"folds": 20}, "the smallest class has"),
    ):
        with pytest.raises(InputError, match=message):
            persistence_graphs.run(dataclasses.replace(SMALL, **options), out=tmp_path / "wrong")
