"""The alp-gmm recipe: what it reports, that a killed run ends like one left alone, and its sweep."""

import csv
import dataclasses
import json
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killing import run_until_killed

from jaxlab.errors import InputError
from jaxlab.recipes import alp_gmm, alp_gmm_report
from jaxlab.recipes.alp_gmm_teachers import TeacherName
from jaxlab.sweeps import sweep

SMALL = alp_gmm.Config(episodes=2000, students=6, most_components=3, every=500)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "alp-gmm"
    return out, alp_gmm.run(SMALL, out=out)


def competence_by_hand(tasks, cells):
    """The hypercube of two dimensions in plain Python."""
    competence = np.zeros((cells, cells), int)
    for task in tasks:
        i, j = (min(int(np.floor(np.float32(x) * np.float32(cells))), cells - 1) for x in task)
        near = {(a, b) for a in (i, max(i - 1, 0)) for b in (j, max(j - 1, 0))} - {(i, j)}
        if (i, j) == (0, 0) or any(competence[other] >= 75 for other in near):
            competence[i, j] = min(competence[i, j] + 1, 100)
    return competence


def test_the_curve_is_what_the_first_students_tasks_lead_to(finished):
    out, _ = finished
    with np.load(out / "curves.npz") as arrays:
        tasks, mastered, episodes = arrays["tasks"], arrays["mastered"], arrays["episodes"]
    assert tasks.shape == (8, 250, 2) and list(episodes) == [500, 1000, 1500, 2000]
    for number, count in enumerate(episodes):
        by_hand = competence_by_hand(tasks.reshape(-1, 2)[:count], 10)
        assert mastered[0, number] == pytest.approx(100 * np.mean(by_hand > 75))
    world, _ = alp_gmm.world_of(SMALL)
    played = alp_gmm_report.competence_after_blocks(world, tasks)
    np.testing.assert_array_equal(played[-1].reshape(10, 10), competence_by_hand(tasks.reshape(-1, 2), 10))


def test_summary_table_and_figures(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    with np.load(out / "curves.npz") as arrays:
        assert summary["mastered"] == pytest.approx(arrays["mastered"][:, -1].mean())
    assert alp_gmm.table(summary)[0]["students"] == 6
    assert {path.name for path in (out / "figures").iterdir()} == {"mastered.png", "curriculum.gif"}


@pytest.mark.slow
def test_a_killed_run_ends_like_one_left_alone(finished, tmp_path):
    out, summary = finished
    run_until_killed("alp-gmm", SMALL, tmp_path / "run", tmp_path / "run" / "checkpoints" / "2")
    resumed = alp_gmm.run(SMALL, out=tmp_path / "run", resume=True)
    for name in ("mastered", "mastered_std", "curve_mastered"):
        assert resumed[name] == summary[name]


def test_a_sweep_holds_the_runs_students(finished, tmp_path):
    out, _ = finished
    sweep(alp_gmm, SMALL, ("random_task_ratio=0.2,0.5",), seeds=2, out=tmp_path / "sweep")
    with open(tmp_path / "sweep" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["episodes"] for row in rows[:4]] == ["500", "1000", "1500", "2000"]
    with np.load(out / "curves.npz") as arrays:
        expected = arrays["mean_return"][:2].reshape(-1)
    found = [float(row["mean_return"]) for row in rows if row["random_task_ratio"] == "0.2"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("teacher", sorted({*get_args(TeacherName)} - {"alp-gmm"}))
@pytest.mark.slow
def test_every_teacher_proposes_tasks_within_bounds(teacher):
    # Setter-Solver begins in the middle of the space, far from what the student can do first, and is slow to leave it.
    episodes = 4000 if teacher == "setter-solver" else 1000
    config = dataclasses.replace(SMALL, teacher=teacher, episodes=episodes, distractors=1, every=250)
    curves, tasks = jax.jit(alp_gmm._student(config))(jnp.float32(0.2), jax.random.key(1))
    tasks = tasks.reshape(-1, 3)
    # Whole blocks: as many as are needed.
    assert episodes <= len(tasks) < episodes + 400
    assert float(tasks.min()) >= 0 and float(tasks.max()) <= 1
    assert curves["mastered"].shape == curves["mean_return"].shape and float(curves["mean_return"].max()) > 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"cells": 0}, "cells is 0; it must be at least 1"),
        ({"random_task_ratio": 1.5}, "random_task_ratio is 1.5; it must lie between 0 and 1"),
        ({"most_components": 1}, "most_components is 1; it must be at least 2"),
    ],
)
def test_options_out_of_range_are_input_errors(option, message):
    with pytest.raises(InputError, match=message):
        alp_gmm.Config(**option)
