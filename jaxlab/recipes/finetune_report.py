"""What a run of the finetune recipe says in the end: its table and figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.runs import RunFolder

_SMOOTHED = 10  # steps


def table(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end: perplexity of both texts before and after."""
    return [
        {
            "text": label,
            "before": f"{summary[f'{name}_before']:.3f}",
            "after": f"{summary[f'{name}_after']:.3f}",
            "change": f"{100 * (summary[f'{name}_after'] / summary[f'{name}_before'] - 1):+.1f} %",
        }
        for label, name in (
            (f"{summary['text']} (held out)", "ppl"),
            (f"{summary['other']} (not trained on)", "ppl_other"),
        )
    ]


def figures(
    folder: RunFolder,
    text: str,
    rows: Sequence[Mapping[str, Any]],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> None:
    """The loss of every step, beside the held-out losses before and after.

    Args:
      folder: of the run.
      text: trained on.
      rows: of its metrics, one a step.
      before: perplexity `ppl` on the held-out part before training.
      after: the same after it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps, losses = (np.array([row[name] for row in rows]) for name in ("step", "loss"))
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(steps, losses, linewidth=0.6, alpha=0.6, label="a step")
    if len(losses) >= 2 * _SMOOTHED:
        mean = np.convolve(losses, np.ones(_SMOOTHED) / _SMOOTHED, mode="valid")
        axes.plot(steps[_SMOOTHED - 1 :], mean, label=f"mean of {_SMOOTHED} steps")
    for label, found, style in (("before", before, "--"), ("after", after, "-")):
        axes.axhline(np.log(found["ppl"]), color="black", linestyle=style, linewidth=0.8)
        axes.annotate(f"held out, {label}", (steps[0], np.log(found["ppl"])), fontsize=8, va="bottom")
    axes.set(xlabel="step", ylabel="loss (nats/token)", title=text)
    axes.legend()
    folder.save_figure("loss", figure)
    plt.close(figure)
