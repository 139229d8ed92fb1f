"""What there is in this package, and where else in the survey's map one would hook in.

The columns are those of the survey: what a method controls, and which surrogate of its goal it optimises. Reference:
Portelas et al., "Automatic Curriculum Learning For Deep RL: A Short Survey", arXiv:2003.04664, table 1.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlab.errors import InputError


class Entry(NamedTuple):
    """One method."""

    name: str
    builder: str
    """Name in `jaxlab.teachers` of the function that makes the teacher, or does the work where there is none."""
    controls: str
    optimises: str
    """The surrogate."""
    needs: str
    """Signals from the student beside the task."""
    paper: str


class Hook(NamedTuple):
    """A row of the survey's map that is not implemented here."""

    name: str
    controls: str
    optimises: str
    hook: str
    """Where one would put it."""


TEACHERS: tuple[Entry, ...] = (
    Entry("random", "uniform_teacher", "environment", "none", "nothing", "arXiv:1703.06907"),
    Entry("oracle", "oracle_teacher", "environment", "an expert's order", "return", "arXiv:1910.07224"),
    Entry(
        "alp-gmm",
        "alp_gmm_teacher",
        "environment, goal",
        "absolute learning progress",
        "return",
        "arXiv:1910.07224",
    ),
    Entry(
        "covar-gmm",
        "covar_gmm_teacher",
        "environment, goal",
        "learning progress",
        "return",
        "doi:10.3389/fpsyg.2013.01006",
    ),
    Entry(
        "riac",
        "riac_teacher",
        "environment, goal",
        "absolute learning progress",
        "return",
        "doi:10.1109/TAMD.2009.2037513",
    ),
    Entry("adr", "adr_teacher", "environment", "intermediate difficulty", "return", "arXiv:1910.07113"),
    Entry(
        "spdl",
        "self_paced_teacher",
        "environment",
        "reward, divergence from the target",
        "V(s0) or return",
        "arXiv:2004.11812",
    ),
    Entry(
        "spdl-v2",
        "spdl_v2_teacher",
        "environment",
        "divergence from the target at a kept reward",
        "V(s0) or return",
        "arXiv:2102.13176",
    ),
    Entry("goal-gan", "goal_gan_teacher", "goal", "intermediate difficulty", "success", "arXiv:1705.06366"),
    Entry(
        "setter-solver",
        "setter_solver_teacher",
        "goal",
        "intermediate difficulty",
        "success",
        "arXiv:1909.12892",
    ),
    Entry(
        "plr",
        "plr_teacher",
        "environment",
        "regret: positive value loss or MaxMC",
        "score",
        "arXiv:2010.03934",
    ),
    Entry(
        "robust-plr", "plr_teacher", "environment", "regret, with `robust=True`", "score", "arXiv:2110.02439"
    ),
    Entry("accel", "accel_teacher", "environment, changed levels", "regret", "score", "arXiv:2203.01302"),
    Entry("sfl", "sfl_teacher", "environment", "learnability p (1 - p)", "success", "arXiv:2408.15099"),
    Entry("tscl", "tscl_teacher", "environment, discrete", "learning progress", "return", "arXiv:1707.00183"),
    Entry(
        "mastering-rate",
        "mastering_rate_teacher",
        "environment, discrete",
        "learning progress, mastering rate",
        "return",
        "arXiv:2008.06456",
    ),
    Entry(
        "vds",
        "vds_teacher",
        "goal",
        "disagreement of values",
        "return, or an ensemble of critics",
        "arXiv:2006.09641",
    ),
    Entry("skew-fit", "skew_fit_teacher", "goal", "diversity", "reached states", "arXiv:1903.03698"),
    Entry(
        "reverse-curriculum",
        "reverse_curriculum_teacher",
        "initial state",
        "intermediate difficulty",
        "success",
        "arXiv:1707.05300",
    ),
    Entry("her", "relabel", "transition modification", "reward", "achieved goals", "arXiv:1707.01495"),
    Entry(
        "per",
        "sample_transitions",
        "transition selection",
        "surprise: temporal-difference error",
        "errors",
        "arXiv:1511.05952",
    ),
)

HOOKS: tuple[Hook, ...] = (
    Hook(
        "PAIRED",
        "environment, by an adversary policy",
        "regret",
        "the antagonist's return less the protagonist's as `Episode.score`",
    ),
    Hook(
        "count-based, RND, ICM",
        "reward",
        "diversity, surprise",
        "the student's reward, before its return is reported",
    ),
    Hook(
        "self-play, AlphaStar, RARL",
        "opponent",
        "adversarial reward maximisation",
        "a pool of opponents as a discrete space",
    ),
    Hook(
        "DIAYN", "reward", "diversity", "the skill as a task of a discrete space, its reward in the student"
    ),
    Hook(
        "IMGEP", "goal", "diversity, learning progress", "`skew_fit_teacher` or `alp_gmm_teacher` over goals"
    ),
    Hook(
        "CURIOUS",
        "goal module, discrete",
        "learning progress",
        "`tscl_teacher` over modules, a goal teacher in each",
    ),
)


def find_teacher(name: str) -> Entry:
    """The entry of a name.

    Raises:
      InputError: there is none.
    """
    for entry in TEACHERS:
        if entry.name == name:
            return entry
    raise InputError(f"name is {name!r}; it must be one of {', '.join(entry.name for entry in TEACHERS)}")


def builder_of(entry: Entry) -> Callable[..., Any]:
    """The function that the entry names."""
    return getattr(importlib.import_module("jaxlab.teachers"), entry.builder)


def teachers_table() -> str:
    """Markdown: a table of what there is, and one of the remaining rows of the map."""
    there = _table(
        ("name", "builder", "controls", "optimises", "needs", "paper"),
        [entry._replace(builder=f"`{entry.builder}`") for entry in TEACHERS],
    )
    return f"{there}\n\n{_table(('method', 'controls', 'optimises', 'hook'), HOOKS)}\n"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
