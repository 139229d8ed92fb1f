"""PhyloLM: the family tree of language models, from short completions of the same prompts.

Reference: arXiv:2404.04671. Names are resolved on first use, so that importing this package costs next to nothing.
"""

from jaxlab.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "alleles": [
            "EncodedAlleles",
            "allele_counts",
            "allele_of",
            "encode_alleles",
            "frequencies",
            "resampled_counts",
        ],
        "ancestry": ["AncestorTest", "ancestor_test", "pendant_lengths"],
        "budget": ["Budget", "budget_analysis"],
        "divergences": ["divergence"],
        "exact": ["ExactAlleles", "ExactOptions", "exact_alleles", "exact_table"],
        "exchange": ["to_nexus", "to_phylip", "write_matrix"],
        "genes": ["cut_genes", "genome_hash", "passages", "require_genes"],
        "identities": [
            "distance",
            "gene_identities",
            "jackknife_errors",
            "mean_gene_similarity",
            "plugin_self_similarity",
            "require_related",
            "similarity",
        ],
        "independent_components": ["Projection", "fast_ica", "whitening"],
        "layout": ["branch_families", "equal_angle_layout", "ladder_layout"],
        "newick": ["from_newick", "to_newick"],
        "probing": ["ProbeOptions", "probe", "write_genes"],
        "regression": [
            "PredictionReport",
            "Predictions",
            "RegressionConfig",
            "leave_family_out",
            "prediction_report",
        ],
        "resampling": ["Bootstrap", "bootstrap", "gene_weights"],
        "scaling": ["classical_scaling", "smacof"],
        "splits": ["Splits", "contained", "node_sets", "split_distance", "split_supports", "tree_splits"],
        "trees": [
            "Phylogeny",
            "ladderized",
            "majority_consensus",
            "midpoint_rooted",
            "neighbor_joining_tree",
            "outgroup_rooted",
            "path_lengths",
            "phylogeny",
            "robinson_foulds",
            "with_supports",
        ],
    },
)
