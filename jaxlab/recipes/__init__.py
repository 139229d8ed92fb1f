"""One end-to-end run a system, and the list of all systems.

A recipe is one module here with

- `Config`: a frozen dataclass of its options, each with a docstring (meaning, unit); `seed` is one of them;
- `PRESETS: dict[str, Config]`: `smoke` (under a minute, what tests run), `cpu` (the default) and, where it
  helps, `gpu`;
- `run(config, *, out=None, resume=False, progress=None) -> dict`: does the run inside a
  `jaxlab.runs.RunFolder` and returns its summary;
- optionally `table(summary) -> list[dict]`: the rows that the command line prints at the end;

and one line in `SYSTEMS`. From Python: `from jaxlab.recipes import pvq; pvq.run(pvq.Config(bits=3.0))`.
"""

import difflib
import importlib
from types import ModuleType
from typing import NamedTuple

from jaxlab.errors import InputError


class System(NamedTuple):
    """One system: `module` is its recipe (None while there is none), `extras` what it needs installed."""

    name: str
    title: str
    arxiv: str
    package: str
    module: str | None = None
    extras: tuple[str, ...] = ()


_LANGUAGE = ("models", "data")
_QUANTUM = ("quantum",)

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("surgeon", "The LLM Surgeon", "2312.17244", "pruning", "jaxlab.recipes.surgeon", _LANGUAGE),
        System(
            "pvq",
            "Pyramid Vector Quantization for LLMs",
            "2410.16926",
            "quantization",
            "jaxlab.recipes.pvq",
            _LANGUAGE,
        ),
        System(
            "finetune",
            "Fine-tuning of language models, whole or by low-rank adapters",
            "2106.09685",
            "models",
            "jaxlab.recipes.finetune",
            _LANGUAGE,
        ),
        System(
            "alp-gmm",
            "Teacher algorithms: ALP-GMM and its family",
            "1910.07224",
            "teachers",
            "jaxlab.recipes.alp_gmm",
        ),
        System("teachmyagent", "TeachMyAgent: a benchmark of curriculum teachers", "2103.09815", "teachers"),
        System("again", "Meta Automatic Curriculum Learning (AGAIN)", "2011.08463", "teachers"),
        System(
            "acl-survey", "Automatic Curriculum Learning for Deep RL: a taxonomy", "2003.04664", "teachers"
        ),
        System(
            "signed-barcodes",
            "Signed barcodes as measures",
            "2306.03801",
            "persistence",
            "jaxlab.recipes.signed_barcodes",
            ("persistence",),
        ),
        System(
            "persistence-optimisation",
            "Differentiability and optimisation of multiparameter persistence",
            "2406.07224",
            "persistence",
            "jaxlab.recipes.persistence_optimisation",
            ("persistence",),
        ),
        System(
            "persistence-graphs",
            "Multiparameter persistence: learned filtrations of graphs",
            "2406.07224",
            "persistence",
            "jaxlab.recipes.persistence_graphs",
            ("persistence",),
        ),
        System(
            "persistence-autoencoder",
            "Multiparameter persistence: autoencoders that keep topology",
            "2406.07224",
            "persistence",
            "jaxlab.recipes.persistence_autoencoder",
            ("persistence",),
        ),
        System(
            "vqe",
            "Hybrid quantum circuits: molecular ground states",
            "1811.04968",
            "quantum",
            "jaxlab.recipes.vqe",
            ("quantum",),
        ),
        System(
            "qaoa",
            "Hybrid quantum circuits: combinatorial optimisation",
            "1811.04968",
            "quantum",
            "jaxlab.recipes.qaoa",
            _QUANTUM,
        ),
        System(
            "qml",
            "Hybrid quantum circuits: classification",
            "1811.04968",
            "quantum",
            "jaxlab.recipes.qml",
            _QUANTUM,
        ),
        System(
            "ntk-marglik",
            "Marginal-likelihood gradients with tangent kernels",
            "2306.03968",
            "evidence",
            "jaxlab.recipes.ntk_marglik",
        ),
        System(
            "t-regs",
            "T-REGS: minimum-spanning-tree regularisation",
            "2510.23484",
            "selfsupervised",
            "jaxlab.recipes.t_regs",
        ),
        System(
            "phylolm",
            "PhyloLM: phylogeny of language models",
            "2404.04671",
            "phylogeny",
            "jaxlab.recipes.phylolm",
            _LANGUAGE,
        ),
        System(
            "llm-culture",
            "Cultural evolution in populations of LLMs",
            "2403.08882",
            "culture",
            None,
            _LANGUAGE,
        ),
        System("glam", "GLAM: grounding LLMs with online RL", "2302.02662", "agents", None, _LANGUAGE),
        System(
            "sac-glam", "SAC-GLAM: soft actor-critic with hindsight", "2410.12481", "agents", None, _LANGUAGE
        ),
        System(
            "magellan", "MAGELLAN: metacognitive learning progress", "2502.07709", "agents", None, _LANGUAGE
        ),
        System(
            "prompt-overfitting", "Prompt overfitting of LLM agents", "2410.19920", "agents", None, _LANGUAGE
        ),
        System("eager", "EAGER: rewards from questions about the goal", "2206.09674", "agents"),
        System(
            "lma3", "LMA3: autotelic agents with language models", "2305.12487", "agents", None, _LANGUAGE
        ),
        System(
            "soar",
            "SOAR: self-improving program synthesis on ARC",
            "2507.14172",
            "synthesis",
            None,
            _LANGUAGE,
        ),
        System("transflower", "Transflower: dance generation from music", "2106.13871", "motion"),
    )
}


def find(name: str) -> System:
    """The system of that name.

    Raises:
      InputError: there is none; the message suggests the closest names.
    """
    system = SYSTEMS.get(name)
    if system is None:
        close = difflib.get_close_matches(name, SYSTEMS, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else "`jaxlab list` names them all"
        raise InputError(f"unknown system {name!r}: {hint}")
    return system


def load(name: str) -> ModuleType:
    """The recipe module of a system.

    Raises:
      InputError: unknown system, or one that has no recipe yet.
    """
    system = find(name)
    if system.module is None:
        there = ", ".join(other.name for other in SYSTEMS.values() if other.module)
        raise InputError(f"{name} is not there yet; these are: {there}")
    return importlib.import_module(system.module)
