"""What the authors' LLM Surgeon computes, in PyTorch: hooks for the curvature, eigendecompositions for the update.

Written from the equations of Qualcomm-AI-research/llm-surgeon (`curvature.py`, `pruner.py`, `threshold.py`), for
its settings `--curvature kfac --use_iad --structures row column`: empirical Fisher, one Kronecker term, correlated
updates of all pruned rows and all pruned columns, added up. It does the work that the original does, matrix by matrix:
every layer has an A of its own, full (not symmetric) products, gradients of the weights that nobody uses, two
eigendecompositions in float32 and two inverses in float64 a matrix. Left out, to the original's advantage: its checks
for non-finite values in every hook, its second copy of all factors, its printing. The threshold is computed with one
running total instead of one array a matrix, for the memory's sake.

Unlike the other peers it shares our environment: torch and transformers of `[test]`.
"""

import math
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class Factors(NamedTuple):
    """Curvature of one matrix [R, C]: `A` [C, C] of its inputs, `G` [R, R] of its output gradients."""

    A: Tensor
    G: Tensor


class Masks(NamedTuple):
    """Pruned rows [R] and columns [C] of one matrix, True where pruned."""

    rows: Tensor
    columns: Tensor


def load(directory: str | os.PathLike[str], *, attention: str = "sdpa") -> LlamaForCausalLM:
    """A Llama in float32 from a Hugging Face directory; `attention` as in transformers ("eager" is the original's)."""
    return LlamaForCausalLM.from_pretrained(
        os.fspath(directory), dtype=torch.float32, attn_implementation=attention, local_files_only=True
    )


def linears(model: LlamaForCausalLM) -> dict[str, nn.Linear]:
    """The seven linear layers of every block under the names of their weights."""
    found = {}
    for block_name, block in model.named_modules():
        if isinstance(block, LlamaDecoderLayer):
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    found[f"{block_name}.{name}.weight"] = module
    return found


def curvature(model: LlamaForCausalLM, windows: np.ndarray) -> dict[str, Factors]:
    """KFAC factors of the mean next-token loss, one window at a time.

    `A = sum a a^T / (T N)` and `G = sum g g^T / (T N)` over all tokens of all windows, with g the gradient of the
    loss of the token's own window (a mean over T - 1 predictions); both are then rescaled to the same Frobenius norm,
    which leaves their Kronecker product as it is. Products are taken in the backward hook, in float32.

    Args:
      model: from `load`; its weights' `requires_grad` are set, their gradients are dropped at the end.
      windows: int [N, T].

    Returns:
      Factors of every matrix under the name of its weight.
    """
    model.eval()
    modules = linears(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    sums: dict[nn.Linear, Factors] = {}
    hooks = []
    count = math.sqrt(windows.shape[0] * windows.shape[1])

    def watch(module: nn.Linear, given: tuple[Tensor, ...], output: Tensor) -> None:
        a = given[0].detach().view(-1, given[0].shape[-1])
        output.register_hook(lambda gradient: add_products(module, a, gradient))

    def add_products(module: nn.Linear, a: Tensor, gradient: Tensor) -> None:
        a, g = a / count, gradient.detach().reshape(-1, gradient.shape[-1]) / count
        sums[module].G.add_(g.T @ g)
        sums[module].A.add_(a.T @ a)

    for module in modules.values():
        rows, columns = module.weight.shape
        sums[module] = Factors(torch.zeros(columns, columns), torch.zeros(rows, rows))
        module.weight.requires_grad = True
        hooks.append(module.register_forward_hook(watch))
    try:
        for window in windows:
            ids = torch.from_numpy(np.asarray(window, np.int64))[None]
            scores = model(ids, use_cache=False).logits
            nn.functional.cross_entropy(scores[0, :-1], ids[0, 1:]).backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return {name: _equal_norms(sums[module]) for name, module in modules.items()}


def prune_step(
    weights: Mapping[str, np.ndarray | Tensor],
    factors: Mapping[str, Factors],
    sparsity: float,
    damp_a: float = 0.01,
    damp_g: float = 0.01,
) -> tuple[dict[str, Tensor], dict[str, Masks]]:
    """One shot of structured pruning: rows and columns below one threshold go, the rest is updated.

    Args:
      weights: matrices [R, C] in float32; rows and columns that are zero stay pruned.
      factors: from `curvature`, for every matrix.
      sparsity: fraction of all weights of these matrices that is zero afterwards, in [0, 1).
      damp_a: damping of A, relative to the mean of its diagonal.
      damp_g: the same for G.

    Returns:
      The new matrices and what is pruned of each, that of earlier shots included.
    """
    dense = {name: torch.as_tensor(weight, dtype=torch.float32) for name, weight in weights.items()}
    alive, costs = {}, {}
    for name, weight in dense.items():
        live = _alive(weight, factors[name])
        alive[name] = live
        part, (A, G) = weight[live.rows][:, live.columns], _restricted(factors[name], live)
        row_costs, column_costs = removal_costs(
            part, A, G, damped_inverse(A, damp_a), damped_inverse(G, damp_g)
        )
        costs[name] = Masks(torch.zeros(weight.shape[0]), torch.zeros(weight.shape[1]))
        costs[name].rows[live.rows] = row_costs
        costs[name].columns[live.columns] = column_costs
    threshold = global_threshold(costs.values(), sparsity)
    pruned, masks = {}, {}
    for name, weight in dense.items():
        live, cost = alive[name], costs[name]
        masks[name] = Masks(cost.rows <= threshold, cost.columns <= threshold)
        new = Masks(masks[name].rows[live.rows], masks[name].columns[live.columns])
        A, G = _restricted(factors[name], live)
        part = weight[live.rows][:, live.columns]
        if new.rows.any() or new.columns.any():
            part = part + update(part, A, G, new, damp_a=damp_a, damp_g=damp_g)
        part[new.rows], part[:, new.columns] = 0.0, 0.0
        whole = torch.zeros_like(weight)
        whole[live.rows.nonzero(), live.columns.nonzero().T] = part
        pruned[name] = whole
    return pruned, masks


def damped_inverse(matrix: Tensor, damp: float) -> Tensor:
    """Inverse of `matrix + damp * mean(diagonal) * I` by Cholesky in float64, rounded to float32."""
    return torch.cholesky_inverse(torch.linalg.cholesky(_damped(matrix, damp).double())).float()


def removal_costs(
    weight: Tensor, A: Tensor, G: Tensor, A_inverse: Tensor, G_inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Costs of each row, `w A w^T / (2 Ginv_ii)`, and of each column, `w^T G w / (2 Ainv_jj)`."""
    rows = 0.5 * ((weight @ A) * weight).sum(1) / G_inverse.diag()
    columns = 0.5 * ((G @ weight) * weight).sum(0) / A_inverse.diag()
    return rows.nan_to_num(nan=0.0), columns.nan_to_num(nan=0.0)


def global_threshold(costs: Iterable[Masks], sparsity: float) -> float:
    """Largest cost at which not more than `int(sparsity * total)` weights go, all matrices together.

    Args:
      costs: of the rows [R] and columns [C] of each matrix.
      sparsity: fraction of all weights.
    """
    sorted_costs, removed = [], []
    for cost in costs:
        both, order = torch.cat(cost).sort()
        rows = (order < len(cost.rows)).double().cumsum(0)
        columns = (order >= len(cost.rows)).double().cumsum(0)
        sorted_costs.append(both)
        removed.append(rows * len(cost.columns) + columns * len(cost.rows) - rows * columns)
    every, order = torch.cat(sorted_costs).sort()
    total, start = torch.zeros(len(every), dtype=torch.float64), 0
    for count in removed:
        own = torch.zeros(len(every), dtype=torch.float64)
        own[start : start + len(count)] = count
        total += own[order].cummax(0).values
        start += len(count)
    fitting = (total <= int(sparsity * total[-1])).nonzero()
    return float(every[fitting.max()]) if len(fitting) else -math.inf


def update(weight: Tensor, A: Tensor, G: Tensor, masks: Masks, *, damp_a: float, damp_g: float) -> Tensor:
    """Change of the weights for pruned rows plus that for pruned columns, each computed on the given weights.

    With `G = K diag(s) K^T` and `A = L diag(t) L^T` after damping:
    rows r: `-K ((K_r^T M L) / s t^T) L^T` with `M = (K_r diag(1/s) K_r^T)^-1 W_r A`, and likewise for columns.
    """
    s, K = torch.linalg.eigh(_damped(G, damp_g))
    t, L = torch.linalg.eigh(_damped(A, damp_a))
    eigenvalues = torch.outer(s, t)
    change = torch.zeros_like(weight)
    if masks.rows.any():
        of_rows = K[masks.rows]
        inner = torch.linalg.solve((of_rows / s) @ of_rows.T, weight[masks.rows]) @ ((L * t) @ L.T)
        rows_change = -K @ ((of_rows.T @ inner @ L) / eigenvalues) @ L.T
        rows_change[masks.rows] = -weight[masks.rows]
        change += rows_change
    if masks.columns.any():
        of_columns = L[masks.columns]
        outer = torch.linalg.solve((of_columns / t) @ of_columns.T, weight[:, masks.columns].T).T
        inner = ((K * s) @ K.T) @ outer
        columns_change = -K @ ((K.T @ inner @ of_columns) / eigenvalues) @ L.T
        columns_change[:, masks.columns] = -weight[:, masks.columns]
        change += columns_change
    return change


def _alive(weight: Tensor, factors: Factors) -> Masks:
    """Rows and columns that still take part: not all zero, and with curvature."""
    return Masks(weight.any(1) & (factors.G.diag() != 0), weight.any(0) & (factors.A.diag() != 0))


def _restricted(factors: Factors, live: Masks) -> Factors:
    return Factors(factors.A[live.columns][:, live.columns], factors.G[live.rows][:, live.rows])


def _damped(matrix: Tensor, damp: float) -> Tensor:
    return matrix + damp * matrix.diag().mean() * torch.eye(len(matrix), dtype=matrix.dtype)


def _equal_norms(factors: Factors) -> Factors:
    """The same Kronecker product from factors of the same norm; zeros if one of them is zero."""
    a, g = factors.A.norm(), factors.G.norm()
    if a == 0 or g == 0:
        return Factors(factors.A.zero_(), factors.G.zero_())
    norm = torch.sqrt(a * g)
    return Factors(factors.A.mul_(norm / a), factors.G.mul_(norm / g))
