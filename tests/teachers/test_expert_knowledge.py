"""Expert knowledge: who can run with what, and what each teacher is told, by the table of the specification."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.teachers import (
    ADRConfig,
    ALPGMMConfig,
    CovarGMMConfig,
    ExpertKnowledge,
    GoalGANConfig,
    PLRConfig,
    ReverseCurriculumConfig,
    RIACConfig,
    SelfPacedConfig,
    SetterSolverConfig,
    SFLConfig,
    SPDLV2Config,
    TaskGaussian,
    adr_teacher,
    easy_hexagons,
    easy_stumps,
    informed_config,
    runs_at,
    self_paced_teacher,
    task_space,
)

EASY, GOAL = TaskGaussian((0.0, 6.0), (0.3, 0.6)), TaskGaussian((1.5, 3.0), (0.75, 1.5))
EVERYTHING = {
    "success_return": 99.0,
    "return_thresholds": (-5.0, 50.0),
    "return_range": (-150.0, 350.0),
    "initial": EASY,
    "target": GOAL,
}
FREE = (ALPGMMConfig(), CovarGMMConfig(), RIACConfig(), SelfPacedConfig(), PLRConfig())
NEEDY = (
    ADRConfig(),
    GoalGANConfig(),
    SetterSolverConfig(),
    SPDLV2Config(performance_threshold=0.5),
    SFLConfig(),
)


def changes(before, after):
    pairs = ((f.name, getattr(before, f.name), getattr(after, f.name)) for f in dataclasses.fields(before))
    return {name: new for name, old, new in pairs if new != old}


@pytest.mark.parametrize("config", FREE, ids=lambda c: type(c).__name__)
def test_without_knowledge_these_run_and_are_told_nothing(config):
    assert runs_at(config, "no")
    assert informed_config(config, ExpertKnowledge(level="no", **EVERYTHING)) == config


@pytest.mark.parametrize("config", NEEDY, ids=lambda c: type(c).__name__)
def test_without_knowledge_these_are_refused(config):
    assert not runs_at(config, "no") and runs_at(config, "low")
    with pytest.raises(InputError, match="level is 'no'; it must be 'low' or 'high', since"):
        informed_config(config, ExpertKnowledge(level="no"))


RANGE = {"return_range": (-150.0, 350.0)}
TOLD_LOW = {
    ALPGMMConfig: RANGE,
    CovarGMMConfig: RANGE,
    RIACConfig: RANGE,
    SelfPacedConfig: RANGE,
    SPDLV2Config: RANGE,
    PLRConfig: {},
    ADRConfig: {"narrow_below": -5.0, "widen_above": 50.0},
    GoalGANConfig: {"success_return": 99.0},
    SetterSolverConfig: {"success_return": 99.0},
    ReverseCurriculumConfig: {"success_return": 99.0},
    SFLConfig: {"success_return": 99.0},
}
TOLD_HIGH = {
    **dict.fromkeys((ALPGMMConfig, CovarGMMConfig, ADRConfig, GoalGANConfig), {"initial": EASY}),
    **dict.fromkeys((SelfPacedConfig, SPDLV2Config), {"initial": EASY, "target": GOAL}),
}


@pytest.mark.parametrize("config", FREE + NEEDY, ids=lambda c: type(c).__name__)
def test_low_tells_of_success_and_returns_and_high_of_easy_and_target_tasks_too(config):
    low = informed_config(config, ExpertKnowledge(level="low", **EVERYTHING))
    assert changes(config, low) == TOLD_LOW[type(config)]
    high = informed_config(config, ExpertKnowledge(level="high", **EVERYTHING))
    assert changes(low, high) == TOLD_HIGH.get(type(config), {})
    assert informed_config(high, ExpertKnowledge(level="low", **EVERYTHING)) == low
    assert informed_config(config, ExpertKnowledge(level="low")) == config


def test_teachers_start_where_the_expert_says():
    space = task_space([(0, 3), (0, 6)])
    know = ExpertKnowledge(level="high", initial=easy_stumps(space), target=GOAL)
    box = adr_teacher(informed_config(ADRConfig(), know)).init(jax.random.key(0), space)
    np.testing.assert_allclose([box.low, box.high], [[0, 6]] * 2)
    state = self_paced_teacher(informed_config(SelfPacedConfig(), know)).init(jax.random.key(0), space)
    np.testing.assert_allclose(state.weights, [0, 6, *np.log([0.3, 0.6]), 0], atol=1e-6)
    np.testing.assert_allclose(state.target, [1.5, 3, *np.log([0.75, 1.5]), 0], atol=1e-6)


def test_easy_tracks_are_those_of_the_reference():
    easy = easy_stumps(task_space([(-3, 3), (0, 6)]))
    np.testing.assert_allclose([easy.mean, easy.std], [[0, 6], [0.6, 0.6]])
    hexagon = easy_hexagons()
    assert hexagon.mean == (0.0,) * 12 and np.square(hexagon.std) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ExpertKnowledge(level="maximal"), "level is 'maximal'"),
        (lambda: ExpertKnowledge(level="high"), "initial is None"),
        (lambda: ExpertKnowledge(level="low", return_range=(1.0, 0.0)), "return_range is"),
        (lambda: ExpertKnowledge(level="low", return_thresholds=(1.0, 1.0)), "return_thresholds is"),
        (lambda: easy_stumps(task_space([(1, 3), (0, 6)])), "space is"),
        (lambda: easy_stumps(task_space([(0, 3)])), "space is"),
        (lambda: easy_hexagons(0), "dimensions is 0"),
    ],
)
def test_bad_knowledge_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
