"""SparseGPT and Wanda as llmcompressor has them, on a Hugging Face directory and given calibration windows.

Run by `benchmarks.peers.run_peer("llmcompressor", inputs)`; one call prunes once. Inputs:

  model: str, a Hugging Face directory; loaded in float32.
  windows: int32 [N, T], token ids; used in this order, one window a batch, without padding.
  method: str, "sparsegpt" or "wanda".
  pattern: str, "0:0" for no pattern, or "n:m": n of m consecutive inputs are pruned.
  sparsity: float, fraction to prune of every matrix; with a pattern it must be n / m.
  dampening: float, optional, of SparseGPT, 0.01 if left out.
  block_size: int, optional, columns of SparseGPT, 128 if left out.
  threads: int, optional, of torch; all cores if left out. On a machine where others compute too, two threads on two
    cores were 15 times slower than alone, and one thread is much faster: they wait for each other.

Outputs: `seconds` [1], the whole `oneshot` call (tracing, calibration and pruning, not loading; there is no warm-up);
`failed_inversions`, how many Hessians SparseGPT replaced by the identity because Cholesky failed (it only logs that);
and every linear matrix of the blocks, float32 [out, in], under its name in the directory.

SparseGPT picks its 50 % within each block of columns of the whole matrix, Wanda within each row; see `sgpt_sparsify.py`
and `wanda_sparsify.py` of the package.
"""

import sys
import time

import numpy as np
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from loguru import logger
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM


def prune(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs above from the inputs above."""
    method, pattern, sparsity = str(inputs["method"]), str(inputs["pattern"]), float(inputs["sparsity"])
    if "threads" in inputs:
        torch.set_num_threads(int(inputs["threads"]))
    model = AutoModelForCausalLM.from_pretrained(
        str(inputs["model"]), dtype=torch.float32, local_files_only=True
    ).eval()
    common = {
        "sparsity": sparsity,
        "mask_structure": pattern,
        "targets": ["Linear"],
        "ignore": ["re:.*lm_head"],
    }
    if method == "sparsegpt":
        modifier = SparseGPTModifier(
            dampening_frac=float(inputs.get("dampening", 0.01)),
            block_size=int(inputs.get("block_size", 128)),
            **common,
        )
    elif method == "wanda":
        modifier = WandaPruningModifier(**common)
    else:
        raise SystemExit(f"method is {method!r}, but must be sparsegpt or wanda")
    # A DataLoader is taken as it is: no tokenizer, no template, no shuffling.
    windows = [{"input_ids": torch.from_numpy(window.astype(np.int64))} for window in inputs["windows"]]
    batches = DataLoader(windows, batch_size=1, shuffle=False)
    failures: list[str] = []
    logger.remove()
    logger.add(failures.append, filter=lambda record: "Failed to invert hessian" in record["message"])
    start = time.perf_counter()
    oneshot(model=model, dataset=batches, recipe=modifier, pipeline="sequential")
    seconds = time.perf_counter() - start
    outputs = {
        f"{name}.weight": module.weight.detach().numpy()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    return outputs | {"seconds": np.array([seconds]), "failed_inversions": np.array(len(failures))}


if __name__ == "__main__":
    with np.load(sys.argv[1]) as given:
        arrays = dict(given)
    np.savez(sys.argv[2], **prune(arrays))
