"""Evidence of neural networks by the linearised Laplace approximation, and its stochastic lower bounds.

Reference: "Stochastic Marginal Likelihood Gradients using Neural Tangent Kernels", arXiv:2306.03968.
"""

from jaxlab.lazy import lazy_names

_EXPORTS = {
    "likelihoods": ("log_likelihood", "output_factor", "output_hessian"),
    "priors": ("for_leaves", "log_precisions", "square_sums", "within_prior", "weight_decay", "whitened"),
    "gram": ("block_grams", "gram_leaves"),
    "function_space": ("Evidence", "log_evidence", "mackay_update", "prior_gradient"),
    "parametric": ("parametric_evidence",),
    "partitions": ("make_partition",),
    "stochastic": (
        "Bound",
        "CachedBlock",
        "Hyper",
        "cache_block",
        "cached_evidence",
        "partition_evidence",
        "stochastic_evidence",
    ),
    "affine": ("affine_matrices", "affine_views", "averaged", "resample"),
    "updates": ("MarglikConfig", "MarglikState", "init_marglik", "marglik_update"),
    "ranges": ("AugmentConfig", "RangesState", "init_ranges", "ranges_update"),
    "training": ("FitConfig", "FitMetrics", "FitState", "fit_epoch", "init_fit", "marglik_fit"),
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
