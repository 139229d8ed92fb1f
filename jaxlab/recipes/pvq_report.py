"""What a run of the pvq recipe says in the end: its table, summary and figures."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlab.errors import InputError, ResourceError
from jaxlab.models import describe, evaluate, load
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS
from jaxlab.models.loading import parameter_count, pruned_from
from jaxlab.models.safetensors_weights import WEIGHTS
from jaxlab.models.validation import layer_shapes
from jaxlab.progress import Progress
from jaxlab.quantization.format import bits_on_disk
from jaxlab.quantization.model import QuantizedLayer
from jaxlab.runs import RunFolder

METHODS = ("rtn", "gptq", "pvq")


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    base = {
        "model": summary["model"],
        "bits/weight": "",
        "perplexity": f"{summary['ppl_base']:.3f}",
        "x base": "",
        "KL (nats)": "",
    }
    rows = [base]
    if "original" in summary:
        rows = [base | {"model": summary["original"], "perplexity": f"{summary['ppl_original']:.3f}"}]
        rows.append(base | {"model": "pruned"})
        for row, which in zip(rows, ("original", "pruned"), strict=True):
            row["MB"] = f"{summary[f'bytes_{which}'] / 1e6:.1f}"
    for method, label in zip(METHODS, ("round to nearest", "GPTQ, rotated", "PVQ"), strict=True):
        ratio = summary[f"ppl_{method}"] / summary["ppl_base"]
        rows.append(
            {
                "model": label,
                "bits/weight": f"{summary[f'bits_{method}']:.3f}",
                "perplexity": f"{summary[f'ppl_{method}']:.3f}",
                "x base": f"{ratio:.4f}",
                "KL (nats)": f"{summary[f'kl_{method}']:.4f}",
            }
        )
    if "original" in summary:
        rows[-1]["MB"] = f"{summary['file_bytes'] / 1e6:.1f}"
    return rows


def summary(
    model: str,
    layers: dict[str, list[QuantizedLayer]],
    directory: Path,
    nll: Float[np.ndarray, "windows models tokens"],
    kl: Float[np.ndarray, "windows models tokens"],
) -> dict[str, Any]:
    """Perplexities, divergences and real bits of all methods.

    Args:
        model: what was quantized, as the user named it.
        layers: its quantized layers, by method.
        directory: the saved folder.
        nll: of every test token, nats; the unquantized model first, then `METHODS`.
        kl: divergences from the unquantized model, nats.
    """
    mean_nll = nll.mean(axis=2, dtype=np.float64)
    ppl = np.exp(mean_nll.mean(axis=0))
    found: dict[str, Any] = {
        "model": model,
        "bits_per_weight": bits_on_disk(directory),
        "file_bytes": (directory / WEIGHTS).stat().st_size,
        "test_tokens": int(nll[:, 0].size),
        "ppl_base": float(ppl[0]),
    }
    for number, method in enumerate(METHODS, start=1):
        tensors = [tensor for layer in layers[method] for tensor in layer.tensors.values()]
        increase, increase_error = _paired(mean_nll[:, number] - mean_nll[:, 0])
        over_pvq, over_pvq_error = _paired(mean_nll[:, number] - mean_nll[:, len(METHODS)])
        found |= {
            f"ppl_{method}": float(ppl[number]),
            f"kl_{method}": float(kl[:, number].mean(dtype=np.float64)),
            f"bits_{method}": 8 * sum(t.nbytes for t in tensors) / sum(math.prod(t.shape) for t in tensors),
            f"nll_increase_{method}": increase,
            f"nll_increase_standard_error_{method}": increase_error,
            f"nll_over_pvq_{method}": over_pvq,
            f"nll_over_pvq_standard_error_{method}": over_pvq_error,
        }
    return found


def original(
    model: str, test: np.ndarray, shapes: Mapping[tuple[int, str], tuple[int, int]], progress: Progress
) -> dict[str, Any]:
    """Of the model before pruning, and of the pruned one that it became; nothing where none is on record.

    Args:
        model: what was quantized.
        test: windows that perplexity is measured on.
        shapes: of what was coded, by layer and matrix.
        progress: where to show how far it is.
    """
    source = pruned_from(model)
    if source is None:
        return {}
    try:
        before = load(source)
    except (InputError, ResourceError) as error:
        progress.note(f"the model before pruning is left out, since it cannot be loaded: {error}")
        return {}
    with progress.stage(f"perplexity of {source}", test.size, unit="tokens") as stage:
        found = evaluate(
            before.params,
            before.cfg,
            test,
            progress=lambda done, total, ppl: stage.advance(test.shape[1], ppl=ppl),
        )
    return {
        "original": source,
        "ppl_original": found.ppl,
        "bytes_original": 4 * parameter_count(before.cfg),
        "bytes_pruned": describe(model).file_bytes,
        "linear_weights_original": _matrix_sizes(before.cfg),
        "linear_weights": sum(map(math.prod, shapes.values())),
    }


def _matrix_sizes(cfg: ModelConfig) -> int:
    shapes = [layer_shapes(cfg, layer)[name] for layer in range(cfg.num_layers) for name in LINEARS]
    return sum(map(math.prod, shapes))


def _paired(differences: np.ndarray) -> tuple[float, float | None]:
    """Mean of paired differences over test windows, and its standard error (None for one window)."""
    if len(differences) < 2:
        return float(differences.mean()), None
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def figures(
    folder: RunFolder,
    model: str,
    layers: dict[str, list[QuantizedLayer]],
    nll: Float[np.ndarray, "windows models tokens"],
) -> None:
    """What every method costs on every test window, and where PVQ spends its bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    mean_nll = nll.mean(axis=2, dtype=np.float64)
    figure, axes = plt.subplots(figsize=(7, 4))
    for number, method in enumerate(METHODS, start=1):
        axes.plot(mean_nll[:, number] - mean_nll[:, 0], marker="o", label=method)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="test window", ylabel="increase of the mean NLL (nats/token)", title=model)
    axes.legend()
    folder.save_figure("nll_increase", figure)
    plt.close(figure)

    figure, axes = plt.subplots(1, 2, figsize=(12, 4))
    for name in LINEARS:
        tensors = [layer.tensors[name] for layer in layers["pvq"]]
        axes[0].plot([8 * t.nbytes / math.prod(t.shape) for t in tensors], label=name)
        axes[1].plot([layer.output_sqnr[name] for layer in layers["pvq"]], label=name)
    axes[0].set(xlabel="layer", ylabel="real bits per weight", title="where PVQ spends its bits")
    axes[1].set(
        xlabel="layer", ylabel="output signal over noise (dB)", title="and how well each output is met"
    )
    axes[1].legend(ncol=2)
    folder.save_figure("layers", figure)
    plt.close(figure)
