"""Fashion-MNIST by the t-regs recipe: Barlow Twins and BYOL with T-REGS no worse than without (1 point for chance).

One seed of each, same network, views, epochs and optimizer; SimCLR beside them. (`t_regs_accuracy` has MSE and VICReg,
and how runs are kept.)
"""

from typing import Any

from benchmarks.t_regs_accuracy import row_of, runs_of
from jaxlab.recipes import t_regs

_METHODS: tuple[t_regs.Objective, ...] = ("barlow", "barlow+tregs", "byol", "byol+tregs", "simclr")
_CHANCE = -1.0


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a method, with the points that T-REGS adds."""
    runs = runs_of(_METHODS[:2] if quick else _METHODS, 1, quick)
    rows = {method: row_of(method, found) for method, found in runs.items()}
    for method, row in rows.items():
        if method.endswith("+tregs"):
            without = rows[method.removesuffix("+tregs")]["linear_accuracy_percent"]
            points = round(row["linear_accuracy_percent"] - without, 2)
            row |= {"points_over_without": points, "least_points": _CHANCE, "met": points >= _CHANCE}
    return list(rows.values())
