"""Self-supervised learning without collapse: T-REGS and the objectives it is set beside.

Reference: arXiv:2510.23484.
"""

from jaxlab.lazy import lazy_names

_EXPORTS = {
    "jaxlab.kernels.mst": (
        "Edges",
        "edge_lengths",
        "mst_edges",
        "mst_length",
        "mst_of_points",
        "pairwise_sq_dists",
    ),
    "regularizer": (
        "TregTerms",
        "TregsConfig",
        "combine",
        "simplex_length",
        "simplex_radius",
        "treg",
        "tregs",
        "uniformity",
    ),
    "estimates": ("DimensionEstimate", "mst_constant", "mst_dimension", "renyi_entropy_mst"),
    "objectives": ("barlow_loss", "byol_loss", "mse_invariance", "simclr_loss", "vicreg_loss"),
    "layerwise_rates": ("lars",),
    "networks": ("ConvNet", "Perceptron", "ResNet18"),
    "augmentations": ("Views", "random_view"),
    "probes": ("Spread", "knn_accuracy", "linear_probe", "mean_cosine", "spread"),
    "training": (
        "Method",
        "Metrics",
        "Networks",
        "TrainState",
        "encode_images",
        "init_training",
        "train_step",
    ),
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
