"""What a run of the surgeon recipe says in the end: its table, report, summary and figures."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxlab
from jaxlab.files import atomic_file
from jaxlab.models import Model, evaluate
from jaxlab.models.linear import LINEARS
from jaxlab.models.loading import describe, parameter_count
from jaxlab.progress import Progress
from jaxlab.pruning.masks import Lines, linear_parameters, removed_parameters, sparsity_of
from jaxlab.pruning.surgeon import SurgeonState
from jaxlab.runs import RunFolder


class Exported(NamedTuple):
    """The saved model and how it was checked."""

    layout: str
    directory: Path
    closure_parameters: int
    difference: float
    speedup: float


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    rows = []
    for label, which in (("original", "base"), ("pruned", "pruned")):
        before = which == "base"
        rows.append(
            {
                "model": f"{summary['model']}, {label}",
                "perplexity": f"{summary[f'ppl_{which}']:.3f}",
                "parameters": f"{summary['params_before' if before else 'params_after']:,}",
                "MB": f"{summary['bytes_before' if before else 'bytes_after'] / 1e6:.1f}",
                "forward": "1.00 x" if before else f"{summary['forward_speedup']:.2f} x",
            }
        )
    return rows


def report(folder: RunFolder, config: Any, masks: dict[str, Any]) -> None:
    """What is left of every matrix, beside the saved model.

    Args:
        folder: of the run.
        config: options of the run, a dataclass.
        masks: what is pruned, closure included.
    """
    kept = {}
    for name in LINEARS:
        mask = masks[name]
        if isinstance(mask, Lines):
            kept[name] = {
                "rows": np.sum(~np.asarray(mask.rows), 1),
                "columns": np.sum(~np.asarray(mask.columns), 1),
            }
        else:
            kept[name] = {"elements": np.sum(~np.asarray(mask), (1, 2))}
    found = {
        "jaxlab": jaxlab.__version__,
        "jax": jax.__version__,
        "config": dataclasses.asdict(config),
        "kept": {name: {what: one.tolist() for what, one in parts.items()} for name, parts in kept.items()},
        "shots": [row for row in folder.metrics() if "step" in row],
    }
    with atomic_file(folder.artefact("surgeon_report.json")) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def summary(
    config: Any, model: Model, state: SurgeonState, exported: Exported, test: np.ndarray, progress: Progress
) -> dict[str, Any]:
    """Perplexities, parameters, bytes and speed of the original and of the saved model.

    Args:
        config: options of the run.
        model: the original.
        state: after the last shot.
        exported: the saved model.
        test: windows that perplexity is measured on.
        progress: where to show how far it is.
    """
    nll = []
    with progress.stage("perplexity", 2 * test.size, unit="tokens") as stage:
        for params in (model.params, state.params):
            result = evaluate(
                params,
                model.cfg,
                test,
                progress=lambda done, total, ppl: stage.advance(test.shape[1], ppl=ppl),
            )
            nll.append(result.window_nll)
    increase = nll[1] - nll[0]
    error = float(increase.std(ddof=1) / np.sqrt(len(increase))) if len(increase) > 1 else None
    before = linear_parameters(model.params)
    removed = sum(int(count.sum()) for count in removed_parameters(state.params, state.masks).values())
    file_bytes = sum(file.stat().st_size for file in exported.directory.glob("*.safetensors"))
    described = describe(exported.directory)
    return {
        "model": config.model,
        "method": config.method,
        "structure": config.structure,
        "shots": config.shots,
        "layout": exported.layout,
        "ppl_base": float(np.exp(nll[0].mean())),
        "ppl_pruned": float(np.exp(nll[1].mean())),
        "nll_increase": float(increase.mean()),
        "nll_increase_standard_error": error,
        "test_tokens": int(test.size - len(test)),
        "sparsity": sparsity_of(state.params, state.masks),
        "linear_params_before": before,
        "linear_params_pruned": removed,
        "linear_params_removed_by_closure": exported.closure_parameters,
        "params_before": parameter_count(model.cfg),
        "params_after": described.parameters,
        "bytes_before": 4 * parameter_count(model.cfg),
        "bytes_after": file_bytes,
        "forward_speedup": exported.speedup,
        "reload_max_logit_difference": exported.difference,
    }


def figures(
    folder: RunFolder, config: Any, model: Model, rows: list[dict[str, Any]], sparsity: float
) -> None:
    """What went, by layer and matrix, and perplexity from shot to shot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    layers = model.params["layers"]
    figure, axes = plt.subplots(figsize=(9, 4))
    base = np.zeros(model.cfg.num_layers)
    total = sum(layers[name][0].size for name in LINEARS)
    for name in LINEARS:
        share = np.asarray(rows[-1][f"removed_{name}"]) / total
        axes.bar(np.arange(len(share)), share, bottom=base, label=name)
        base += share
    axes.set(
        xlabel="layer",
        ylabel="share of the block's parameters removed",
        title=f"{config.model}, {config.method}, {config.structure}, {sparsity:.0%}",
    )
    axes.legend(ncol=4)
    folder.save_figure("removed", figure)
    plt.close(figure)

    followed = [(1 - row["sparsity"], row["ppl_valid"]) for row in rows if "ppl_valid" in row]
    if followed:
        figure, axes = plt.subplots(figsize=(6, 4))
        axes.plot(*zip(*followed, strict=True), marker="o")
        axes.set(
            xlabel="share of the blocks' parameters left",
            ylabel=f"perplexity on {config.valid}",
            title=f"{config.model}, {config.method}, {config.structure}",
        )
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
        folder.save_figure("shots", figure)
        plt.close(figure)
