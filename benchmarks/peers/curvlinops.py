"""Empirical-Fisher factors of a language model's linear layers by curvlinops, "expand", in float32.

Run by `benchmarks.peers.run_peer("curvlinops", inputs)`. Inputs:

  model: str, a Hugging Face directory of a causal language model.
  windows: int [N, T]; one batch, so keep it small.

Outputs: `A:NAME` and `G:NAME` for every linear layer of the blocks, NAME as its weight is called in the directory, at
curvlinops' own scale for a mean over all N (T - 1) predictions: with s the gradient of a window's summed loss,
`A = sum a a^T / (N T)` and `G = sum s s^T / (N (T - 1))`.
"""

import sys

import numpy as np
import torch
from curvlinops import KFACLinearOperator


class Scores(torch.nn.Module):
    """Scores of all predictions, classes in the middle as `CrossEntropyLoss` wants them."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[N, T] to [N, vocabulary, T - 1]."""
        return self.model(ids, use_cache=False).logits[:, :-1].transpose(1, 2)


def factors(directory: str, windows: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs above from the inputs above."""
    # backpack brings a torchvision that may not fit torch; transformers is to take no notice of it.
    sys.modules["torchvision"] = None
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    model.requires_grad_(False)
    scores = Scores(model)
    layers = {
        name: module
        for name, module in scores.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    }
    params = [
        parameter.requires_grad_(True) for module in layers.values() for parameter in module.parameters()
    ]
    ids = torch.from_numpy(windows.astype(np.int64))
    operator = KFACLinearOperator(
        scores,
        torch.nn.CrossEntropyLoss(reduction="mean"),
        params,
        [(ids, ids[:, 1:])],
        fisher_type="empirical",
        kfac_approx="expand",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    outputs = {}
    for name in layers:
        weight = f"{name.removeprefix('model.')}.weight"
        outputs[f"A:{weight}"] = operator._input_covariances[name].numpy()
        outputs[f"G:{weight}"] = operator._gradient_covariances[name].numpy()
    return outputs


if __name__ == "__main__":
    with np.load(sys.argv[1]) as given:
        outputs = factors(str(given["model"]), given["windows"])
    np.savez(sys.argv[2], **outputs)
