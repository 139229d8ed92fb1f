"""The teachers of the alp-gmm recipe, with the options that suit the hypercube.

Published defaults are those of walkers, whose returns lie between -150 and 350 and whose episodes have 2,000 steps. On
the hypercube returns lie between 0 and 1, a cell is mastered above 0.75, and an episode has one step.
"""

from typing import Any, Literal

from jaxlab.teachers import (
    ACCELConfig,
    ADRConfig,
    ALPGMMConfig,
    CovarGMMConfig,
    GoalGANConfig,
    OracleConfig,
    PLRConfig,
    ReverseCurriculumConfig,
    RIACConfig,
    SelfPacedConfig,
    SetterSolverConfig,
    SFLConfig,
    SkewFitConfig,
    SPDLV2Config,
    TaskGaussian,
    Teacher,
    VDSConfig,
    accel_teacher,
    adr_teacher,
    alp_gmm_teacher,
    covar_gmm_teacher,
    goal_gan_teacher,
    oracle_teacher,
    plr_teacher,
    reverse_curriculum_teacher,
    riac_teacher,
    self_paced_teacher,
    setter_solver_teacher,
    sfl_teacher,
    skew_fit_teacher,
    spdl_v2_teacher,
    uniform_teacher,
    vds_teacher,
)

TeacherName = Literal[
    "alp-gmm",
    "covar-gmm",
    "riac",
    "adr",
    "spdl",
    "spdl-v2",
    "goal-gan",
    "setter-solver",
    "plr",
    "accel",
    "sfl",
    "vds",
    "skew-fit",
    "reverse-curriculum",
    "oracle",
    "random",
]

_MASTERED = 0.75
_REPLAY: dict[str, Any] = {"capacity": 512, "score": lambda episode: episode.ret * (1 - episode.ret)}
"""Of levels: a return says all here, and one in the middle promises most."""
_PACE = 500
"""Episodes between updates of the self-paced teachers."""


def teacher_of(config: Any) -> Teacher:
    """The teacher that a `Config` asks for."""
    width = config.dimensions + config.distractors
    easy = TaskGaussian((0.0,) * width, (0.1,) * width)
    components = tuple(range(2, config.most_components + 1))
    common: dict[str, Any] = {
        "fit_rate": config.fit_rate,
        "components": components,
        "random_task_ratio": config.random_task_ratio,
    }
    self_paced: dict[str, Any] = {
        "update_every": _PACE,
        "update_from": _PACE,
        "values": "returns",
        "initial": easy,
    }
    match config.teacher:
        case "alp-gmm":
            return alp_gmm_teacher(ALPGMMConfig(history=config.episodes + config.fit_rate, **common))
        case "covar-gmm":
            return covar_gmm_teacher(CovarGMMConfig(absolute_lp=config.absolute_progress, **common))
        case "riac":
            return riac_teacher(RIACConfig(split_score=config.split_score))
        case "adr":
            return adr_teacher(ADRConfig(widen_above=0.66, narrow_below=0.3, initial=easy))
        case "spdl":
            return self_paced_teacher(SelfPacedConfig(max_kl=0.1, **self_paced))
        case "spdl-v2":
            return spdl_v2_teacher(SPDLV2Config(performance_threshold=0.5, **self_paced))
        case "goal-gan":
            return goal_gan_teacher(GoalGANConfig(success_return=_MASTERED, initial=easy))
        case "setter-solver":
            return setter_solver_teacher(SetterSolverConfig(success_return=_MASTERED))
        case "plr":
            return plr_teacher(PLRConfig(**_REPLAY))
        case "accel":
            return accel_teacher(ACCELConfig(**_REPLAY))
        case "sfl":
            return sfl_teacher(
                SFLConfig(candidates=1000, keep=128, refresh_every=1000, success_return=_MASTERED)
            )
        case "vds":
            return vds_teacher(VDSConfig(hidden=(64, 64)))
        case "skew-fit":
            return skew_fit_teacher(SkewFitConfig(success_return=_MASTERED))
        case "reverse-curriculum":
            goal = (0.0,) * width
            return reverse_curriculum_teacher(ReverseCurriculumConfig(goal=goal, success_return=_MASTERED))
        case "oracle":
            return oracle_teacher(OracleConfig(step=(1 / 30,) * width, threshold=0.76))
    return uniform_teacher()
