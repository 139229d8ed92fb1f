"""What an expert tells a teacher beforehand, in three levels, and which teachers can do without.

| level | gives | who can run |
| --- | --- | --- |
| no | the bounds of the tasks alone | Random, ALP-GMM, Covar-GMM, RIAC, SPDL (from a random start) |
| low | also what counts as success, and the range of returns | also ADR, GoalGAN, Setter-Solver |
| high | also a Gaussian of easy tasks, and perhaps one of target tasks | all |

Reference: Romac et al., "TeachMyAgent: a Benchmark for Automatic Curriculum Learning in Deep RL", arXiv:2103.09815,
section 3. Its code never hands the Gaussians of "high" to SPDL: it asks for a level "maximal", which no longer exists
(`teacher_args_handler.py`), so that its published SPDL starts anywhere. Here SPDL gets them.
"""

import dataclasses
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from jaxlab.errors import InputError
from jaxlab.teachers.adr import ADRConfig
from jaxlab.teachers.goal_gan import GoalGANConfig
from jaxlab.teachers.learnability import SFLConfig
from jaxlab.teachers.protocol import check_return_range
from jaxlab.teachers.reverse_curriculum import ReverseCurriculumConfig
from jaxlab.teachers.self_paced import SPDLV2Config
from jaxlab.teachers.setter_solver import SetterSolverConfig
from jaxlab.teachers.spaces import TaskGaussian, TaskSpace

KnowledgeLevel = Literal["no", "low", "high"]

Config = TypeVar("Config")

_NEEDS_SUCCESS: dict[type, str] = {
    ADRConfig: "ADR needs the returns between which a side of its box moves",
    GoalGANConfig: "GoalGAN needs to know what a success is",
    SetterSolverConfig: "Setter-Solver needs to know what a success is",
    SPDLV2Config: "SPDL v2 needs the value that a student must keep",
    SFLConfig: "SFL needs to know what a success is",
    ReverseCurriculumConfig: "the reverse curriculum needs to know what a success is",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertKnowledge:
    """What the expert knows; `informed_config` passes on as much as the level allows."""

    level: KnowledgeLevel
    success_return: float | None = None
    """An episode with a return above this is a success; 230 on TeachMyAgent's tracks. None keeps the teacher's."""
    return_thresholds: tuple[float, float] | None = None
    """Returns up to which ADR narrows, and from which it widens; (0, 180) there. None keeps the teacher's."""
    return_range: tuple[float, float] | None = None
    """Returns are scaled from here to [0, 1] by teachers that can; None leaves them, as TeachMyAgent does."""
    initial: TaskGaussian | None = None
    """Easy tasks; needed at "high"."""
    target: TaskGaussian | None = None
    """Tasks to end with."""

    def __post_init__(self) -> None:
        if self.level not in get_args(KnowledgeLevel):
            raise InputError(f"level is {self.level!r}; it must be 'no', 'low' or 'high'")
        check_return_range(self.return_range)
        if self.return_thresholds is not None and not self.return_thresholds[0] < self.return_thresholds[1]:
            raise InputError(
                f"return_thresholds is {self.return_thresholds}; it must be (narrow, widen) with narrow < widen"
            )
        if self.level == "high" and self.initial is None:
            raise InputError("initial is None; it must be a Gaussian of easy tasks at level 'high'")


def informed_config(config: Config, knowledge: ExpertKnowledge) -> Config:
    """The configuration of a teacher with what the expert may tell it, and without what it may not.

    "no" and "low" take away Gaussians over tasks, "no" also the range of returns. ADR starts at the mean of the easy
    Gaussian, ALP- and Covar-GMM draw their first tasks from it, GoalGAN's generator is pretrained on it, SPDL goes from
    it to the target. Setter-Solver, RIAC and the other teachers have no use for it.

    Args:
      config: dataclass of options of a teacher of this package.
      knowledge: of the expert.

    Raises:
      InputError: the teacher cannot run at level "no".
    """
    if knowledge.level == "no":
        for kind, reason in _NEEDS_SUCCESS.items():
            if isinstance(config, kind):
                raise InputError(f"level is 'no'; it must be 'low' or 'high', since {reason}")
    told: dict[str, Any] = {}
    high = knowledge.level == "high"
    told["initial"] = knowledge.initial if high else None
    told["target"] = knowledge.target if high else None
    told["return_range"] = None if knowledge.level == "no" else knowledge.return_range
    if knowledge.level != "no" and knowledge.success_return is not None:
        told["success_return"] = knowledge.success_return
    if knowledge.level != "no" and knowledge.return_thresholds is not None:
        told["narrow_below"], told["widen_above"] = knowledge.return_thresholds
    there = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]  # a dataclass by contract
    return dataclasses.replace(  # type: ignore[type-var]  # a dataclass by contract
        config, **{name: value for name, value in told.items() if name in there}
    )


def runs_at(config: Any, level: KnowledgeLevel) -> bool:
    """Whether a teacher with this configuration can run at a level; None stands for Random."""
    return level != "no" or not isinstance(config, tuple(_NEEDS_SUCCESS))


def easy_stumps(space: TaskSpace) -> TaskGaussian:
    """Easy stump tracks: height 0, greatest spacing, std a tenth of the range.

    Args:
      space: of two dimensions, height and spacing.

    Raises:
      InputError: another number of dimensions, or no height 0 in the space.
    """
    low, high = np.asarray(space.low, float), np.asarray(space.high, float)
    if space.dimensions != 2 or not low[0] <= 0 <= high[0]:
        raise InputError(
            f"space is {low.tolist()} to {high.tolist()}; it must have a height, 0 included, and a spacing"
        )
    deviation = 0.1 * (high - low)
    return TaskGaussian((0.0, float(high[1])), (float(deviation[0]), float(deviation[1])))


def easy_hexagons(dimensions: int = 12) -> TaskGaussian:
    """Easy hexagon tracks: offsets 0 with variance 0.01."""
    if dimensions < 1:
        raise InputError(f"dimensions is {dimensions}; it must be >= 1")
    return TaskGaussian((0.0,) * dimensions, (0.1,) * dimensions)
