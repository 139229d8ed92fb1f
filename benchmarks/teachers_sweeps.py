"""The paper's three sweeps over the hypercube by `jaxlab sweep`: dimensions 2 to 6, 10 or 20 cells, 0 to 4 distractors.

ALP-GMM, Covar-GMM, RIAC and tasks at random, 1,000 students each of 20,000 episodes in every setting: median and
quartiles of mastered cells over the episodes, `results/teachers_sweeps.png`. This takes hours on two cores: the curves
of each finished sweep are kept in `results/teachers_sweeps_runs` (delete it when the code changes), and a sweep that
was stopped goes on in the cache directory. Reference: arXiv:1910.07224, section 4.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.teachers_toy import run_sweep
from jaxlab.files import atomic_file, cache_dir

_QUARTILES = ("lower_quartile", "median", "upper_quartile")
_TEACHERS = ("alp-gmm", "covar-gmm", "riac", "random")


class _Setting(NamedTuple):
    sweep: str
    label: str
    options: tuple[str, ...]


_PLAIN = ("--dimensions", "2", "--cells", "10", "--distractors", "0")
_SETTINGS = (
    *(_Setting("dimensions", f"{d} dimensions", ("--dimensions", str(d), *_PLAIN[2:])) for d in range(2, 7)),
    _Setting("cells", "10 cells", _PLAIN),
    _Setting("cells", "20 cells", (*_PLAIN[:2], "--cells", "20", *_PLAIN[4:])),
    *(_Setting("distractors", f"{k} distractors", (*_PLAIN[:4], "--distractors", str(k))) for k in range(5)),
)


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a setting and teacher."""
    episodes, seeds = (2000, 8) if quick else (20_000, 1000)
    found = {}
    for setting in _SETTINGS[:1] + _SETTINGS[-1:] if quick else _SETTINGS:
        for teacher in _TEACHERS[::3] if quick else _TEACHERS:
            found[setting, teacher] = _curves(setting, teacher, episodes, seeds, quick)
    if not quick:
        _figure(found)
    return [
        {
            "sweep": setting.sweep,
            "setting": setting.label,
            "teacher": teacher,
            "seeds": seeds,
            **{f"mastered_{name}": round(curve[-1], 2) for name, curve in own.items() if name != "episodes"},
        }
        for (setting, teacher), own in found.items()
    ]


def _curves(
    setting: _Setting, teacher: str, episodes: int, seeds: int, quick: bool
) -> dict[str, list[float]]:
    """Quartiles and mean of mastered cells, in percent, at these episodes."""
    name = "-".join((teacher, *setting.options[1::2], str(episodes), str(seeds)))

    def measure() -> dict[str, list[float]]:
        out = None if quick else cache_dir("benchmarks", "teachers_sweeps") / name
        swept = run_sweep(teacher, episodes, seeds, *setting.options, out=out)
        quartiles = np.quantile(swept.curves, [0.25, 0.5, 0.75], axis=0)
        curves = dict(zip(_QUARTILES, quartiles, strict=True)) | {"mean": swept.curves.mean(0)}
        found = {which: np.round(curve, 3).tolist() for which, curve in curves.items()}
        return found | {"episodes": swept.episodes.tolist()}

    options = {"teacher": teacher, "options": setting.options, "episodes": episodes, "seeds": seeds}
    return measure() if quick else harness.kept(f"teachers_sweeps_runs/{name}", options, measure)


def _figure(found: Mapping[tuple[_Setting, str], Mapping[str, list[float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = max(
        sum(one.sweep == sweep for one in _SETTINGS) for sweep in ("dimensions", "cells", "distractors")
    )
    figure, axes = plt.subplots(3, columns, figsize=(3 * columns, 8), sharey=True, squeeze=False)
    for row, sweep in enumerate(("dimensions", "cells", "distractors")):
        own = [one for one in _SETTINGS if one.sweep == sweep]
        for axis in axes[row, len(own) :]:
            axis.set_visible(False)
        for axis, setting in zip(axes[row], own, strict=False):
            for teacher in _TEACHERS:
                own_curves = found[setting, teacher]
                low, middle, high = (own_curves[name] for name in _QUARTILES)
                (line,) = axis.plot(own_curves["episodes"], middle, label=teacher)
                axis.fill_between(
                    own_curves["episodes"], low, high, color=line.get_color(), alpha=0.2, linewidth=0
                )
            axis.set(title=setting.label, xlabel="episodes", ylim=(0, 100))
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mastered cells, %")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    with atomic_file(harness.RESULTS / "teachers_sweeps.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
