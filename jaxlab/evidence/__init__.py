"""Evidence of neural networks by the linearised Laplace approximation, and its stochastic lower bounds.

Reference: "Stochastic Marginal Likelihood Gradients using Neural Tangent Kernels", arXiv:2306.03968.
"""

from jaxlab.lazy import lazy_names

_EXPORTS = {
    "likelihoods": (
        "log_likelihood",
        "natural_parameters",
        "output_factor",
        "output_hessian",
        "score_factor",
    ),
    "priors": (
        "add_weight_decay",
        "for_leaves",
        "log_precisions",
        "square_sums",
        "weight_decay",
        "whitened",
        "within_prior",
    ),
    "gram": ("block_grams", "gram_leaves"),
    "function_space": ("Evidence", "log_evidence", "mackay_update", "prior_gradient", "spectral_evidence"),
    "curvature": ("curvature_spectra",),
    "parametric": ("parametric_evidence",),
    "partitions": ("make_partition", "random_block"),
    "stochastic": (
        "Bound",
        "CachedBlock",
        "Hyper",
        "cache_block",
        "cached_evidence",
        "partition_evidence",
        "stochastic_evidence",
    ),
    "networks": ("ConvNet", "MultilayerPerceptron", "functional", "le_net", "mini_net"),
    "affine": ("affine_matrices", "affine_views", "averaged", "resample"),
    "predictive": ("Predictive", "linearised_predictive"),
    "updates": ("MarglikConfig", "MarglikState", "init_marglik", "marglik_update"),
    "ranges": ("AugmentConfig", "RangesState", "init_ranges", "ranges_update"),
    "training": ("FitConfig", "FitMetrics", "FitState", "fit_epoch", "init_fit", "marglik_fit"),
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
