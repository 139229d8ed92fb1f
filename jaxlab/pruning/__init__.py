"""Curvature pruning of language models: the LLM Surgeon.

Reference: arXiv:2312.17244. Names are resolved on first use, so that importing this package costs next to nothing.
"""

from jaxlab.lazy import lazy_names

_EXPORTS = {
    "factors": ("Factors", "accumulate", "curvature", "init_factors", "mean_factors", "means"),
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
    "nearest_kronecker": ("KroneckerSum", "nearest_factors"),
    "low_rank": ("LowRank",),
    "config": ("SurgeonConfig",),
    "surgeon": ("ShotReport", "SurgeonState", "prune", "prune_shot"),
    # Functions named like their modules (`costs`, `update`, `nearest_kronecker`) would hide behind their modules.
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
