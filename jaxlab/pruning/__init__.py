"""Curvature pruning of language models: the LLM Surgeon.

Reference: arXiv:2312.17244. Names are resolved on first use, so that importing this package costs next to nothing.
"""

import importlib
from typing import Any

_EXPORTS = {
    "inverse": (
        "Dampings",
        "Inverses",
        "alive_structures",
        "damped",
        "damped_inverse",
        "inverse_factors",
        "robust_inverse_factors",
    ),
    "costs": (
        "METHODS",
        "CostModel",
        "Costs",
        "check_finite",
        "column_costs",
        "cost_model",
        "element_costs",
        "lowest",
        "n_of_m",
        "quadratic_loss",
        "row_costs",
        "wanda_scores",
    ),
    "threshold": ("element_threshold", "group_threshold", "structured_threshold", "unit_threshold"),
    "elements": ("update_elements",),
    "coupled": (
        "Units",
        "expand_units",
        "kv_group_costs",
        "mlp_unit_costs",
        "remove_units",
        "unit_sizes",
        "units_of",
    ),
    "closure": ("close", "closure_gain", "gather_model"),
    "nearest_kronecker": ("KroneckerSum",),
    # Functions named like their modules (`costs`, `update`, `nearest_kronecker`) would hide behind their modules.
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
