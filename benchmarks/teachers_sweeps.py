"""The paper's three sweeps over the hypercube by `jaxlab sweep`: dimensions 2 to 6, 10 or 20 cells, 0 to 4 distractors.

ALP-GMM, Covar-GMM, RIAC and tasks at random, 1,000 students each of 20,000 episodes in every setting: median and
quartiles of mastered cells over the episodes, `results/teachers_sweeps.png`. This takes hours on two cores; sweeps are
kept in the cache directory, and a run that was stopped goes on. Reference: arXiv:1910.07224, section 4.
"""

from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.teachers_toy import Swept, run_sweep
from jaxlab.files import atomic_file, cache_dir

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
    found: dict[tuple[str, ...], Swept] = {}
    rows = []
    for setting in _SETTINGS[:1] + _SETTINGS[-1:] if quick else _SETTINGS:
        for teacher in _TEACHERS[::3] if quick else _TEACHERS:
            key = (teacher, *setting.options)
            if key not in found:
                name = "-".join((teacher, *setting.options[1::2], str(episodes), str(seeds)))
                out = None if quick else cache_dir("benchmarks", "teachers_sweeps") / name
                found[key] = run_sweep(teacher, episodes, seeds, *setting.options, out=out)
            last = found[key].curves[:, -1]
            rows.append(
                {
                    "sweep": setting.sweep,
                    "setting": setting.label,
                    "teacher": teacher,
                    "seeds": seeds,
                    **{
                        f"mastered_{what}": round(float(np.quantile(last, share)), 2)
                        for what, share in (
                            ("lower_quartile", 0.25),
                            ("median", 0.5),
                            ("upper_quartile", 0.75),
                        )
                    },
                    "mastered_mean": round(float(last.mean()), 2),
                }
            )
    if not quick:
        _figure(found)
    return rows


def _figure(found: dict[tuple[str, ...], Swept]) -> None:
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
                swept = found[(teacher, *setting.options)]
                low, middle, high = np.quantile(swept.curves, [0.25, 0.5, 0.75], axis=0)
                (line,) = axis.plot(swept.episodes, middle, label=teacher)
                axis.fill_between(swept.episodes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            axis.set(title=setting.label, xlabel="episodes", ylim=(0, 100))
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mastered cells, %")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    with atomic_file(harness.RESULTS / "teachers_sweeps.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
