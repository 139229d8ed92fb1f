"""Laplace evidence of a small convolutional network and its gradient in the prior by laplace-torch, in float32.

Run by `benchmarks.peers.run_peer("laplace_torch", inputs)`. The network: convolutions 8 of 5 x 5, 16 of 3 x 3, 32 of
5 x 5, pooling behind the first two, a linear layer. Inputs:

  kernel0 .. kernel2 [out, in, h, w], kernel3 [10, 32], bias0 .. bias3: float32, the parameters.
  x [N, 1, 28, 28]; y: int [N].
  delta: float [8], prior precision of each tensor, in torch's order (kernel0, bias0, kernel1, ...).
  structures: str [S], of "full", "kron", "diag".
  repetitions: int, of "kron" and "diag", after one that does not count; "full" is run once.
  batch: int, examples of a pass.

Outputs, for each structure that fits into memory: `seconds_S`, of a fit and a gradient of the log evidence in the
logarithms of the precisions; `further_S`, of one more gradient without a fit; `evidence_S`; `gradient_S` [8].
`failed_S`: what it said otherwise.
"""

import importlib.util
import pathlib
import re
import sys
import time

import numpy as np
import torch


def _declare_vision_operators() -> None:
    """torchvision is imported by what laplace-torch needs; its compiled half, which does not load here, is not used."""
    found = importlib.util.find_spec("torchvision")
    source = (pathlib.Path(found.origin).parent / "_meta_registrations.py").read_text()
    for name in sorted(set(re.findall(r'"torchvision::(\w+)"', source))):
        torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")


def network(given: dict[str, np.ndarray]) -> torch.nn.Module:
    """The network with the given parameters."""
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    for number, layer in enumerate(model[place] for place in (0, 3, 6, 9)):
        layer.weight.data = torch.from_numpy(given[f"kernel{number}"])
        layer.bias.data = torch.from_numpy(given[f"bias{number}"])
    return model.eval()


def measure(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs above from the inputs above."""
    from laplace import Laplace
    from laplace.curvature import BackPackGGN, CurvlinopsGGN

    x, y = torch.from_numpy(given["x"]), torch.from_numpy(given["y"].astype(np.int64))
    data = torch.utils.data.TensorDataset(x, y)
    model = network(given)
    outputs: dict[str, np.ndarray] = {}
    for structure in map(str, given["structures"]):
        backend = CurvlinopsGGN if structure == "kron" else BackPackGGN
        log_delta = torch.log(torch.from_numpy(given["delta"])).requires_grad_(True)

        def gradient(fitted, log_delta=log_delta) -> tuple[float, np.ndarray]:
            value = fitted.log_marginal_likelihood(log_delta.exp())
            (slope,) = torch.autograd.grad(value, log_delta)
            return float(value.detach()), slope.numpy()

        def fresh(structure=structure, backend=backend, gradient=gradient):
            loader = torch.utils.data.DataLoader(data, batch_size=int(given["batch"]))
            fitted = Laplace(
                model, "classification", hessian_structure=structure, subset_of_weights="all", backend=backend
            )
            fitted.fit(loader)
            return fitted, *gradient(fitted)

        times, further = [], []
        try:
            for repetition in range(1 if structure == "full" else int(given["repetitions"]) + 1):
                began = time.perf_counter()
                fitted, value, slope = fresh()
                if repetition or structure == "full":
                    times.append(time.perf_counter() - began)
                began = time.perf_counter()
                gradient(fitted)
                further.append(time.perf_counter() - began)
        except (RuntimeError, MemoryError) as error:
            outputs[f"failed_{structure}"] = np.array(str(error)[:200])
            continue
        outputs |= {
            f"seconds_{structure}": np.array(times),
            f"further_{structure}": np.array(further),
            f"evidence_{structure}": np.array(value),
            f"gradient_{structure}": slope,
        }
    return outputs


if __name__ == "__main__":
    _declare_vision_operators()
    with np.load(sys.argv[1]) as given:
        outputs = measure(dict(given))
    np.savez(sys.argv[2], **outputs)
