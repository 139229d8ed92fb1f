"""Figures of a sweep: each result by step or by option, interquartile means with bootstrap bands."""

from typing import Any

import numpy as np

from jaxlab.runs import RunFolder
from jaxlab.sweeps.grids import Grid
from jaxlab.sweeps.protocol import Sweepable
from jaxlab.sweeps.statistics import Estimate, interval_estimate
from jaxlab.sweeps.tables import Table

_MOST_LINES = 10


def figures(folder: RunFolder, table: Table, points: Grid, sweepable: Sweepable, names: list[str]) -> None:
    """`figures/NAME.png` of every result.

    Args:
      folder: of the sweep.
      table: all rows, in the order of the grid, then seeds, then steps.
      points: the grid.
      sweepable: of the recipe.
      names: of the results.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    seeds = len(np.unique(table["seed"]))
    steps = table.get(sweepable.step_name)
    for name in names:
        if table[name].dtype.kind not in "fiub":
            continue
        values = table[name].astype(float).reshape(len(points.configs), seeds, -1)
        estimates = [interval_estimate(own, resamples=500) for own in values]
        figure, axis = plt.subplots(figsize=(7, 4.5))
        if steps is not None:
            _by_step(axis, estimates, points, steps[: values.shape[2]])
            axis.set_xlabel(sweepable.step_name)
        else:
            _by_combination(axis, estimates, points)
        axis.set(ylabel=name, title=f"interquartile mean of {seeds} seeds, 95 % interval")
        axis.grid(alpha=0.3)
        folder.save_figure(name, figure)
        plt.close(figure)


def _by_step(axis: Any, estimates: list[Estimate], points: Grid, steps: np.ndarray) -> None:
    import matplotlib

    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(estimates)))
    for i, (one, colour) in enumerate(zip(estimates, colours, strict=True)):
        axis.plot(steps, one.value, color=colour, label=_label(points, i))
        axis.fill_between(steps, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
    if points.names and len(estimates) <= _MOST_LINES:
        axis.legend(fontsize=8)


def _by_combination(axis: Any, estimates: list[Estimate], points: Grid) -> None:
    """Against the last option of several numbers, a line for each combination of the others; or one after the other."""
    value, low, high = (np.array([float(one[k].reshape(-1)[-1]) for one in estimates]) for k in range(3))
    name = next((n for n in reversed(points.names) if _is_number(points.values[n])), None)
    if name is None:
        places: Any = [_label(points, i) or "all" for i in range(len(estimates))]
        axis.errorbar(places, value, np.abs([value - low, high - value]), fmt="o", capsize=3)
        axis.tick_params(axis="x", rotation=30)
        return
    others: dict[str, list[int]] = {}
    for i in range(len(estimates)):
        rest = {k: v for k, v in points.point(i).items() if k != name}
        others.setdefault(", ".join(f"{k}={v}" for k, v in rest.items()), []).append(i)
    for label, own in others.items():
        x = [points.point(i)[name] for i in own]
        bars = np.maximum([value[own] - low[own], high[own] - value[own]], 0)
        axis.errorbar(x, value[own], bars, fmt="o-", capsize=3, label=label)
    axis.set_xlabel(name)
    if len(others) > 1 and len(others) <= _MOST_LINES:
        axis.legend(fontsize=8)


def _is_number(values: tuple[Any, ...]) -> bool:
    return len(values) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _label(points: Grid, index: int) -> str:
    return ", ".join(f"{name}={value}" for name, value in points.point(index).items())
