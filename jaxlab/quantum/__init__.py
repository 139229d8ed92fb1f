"""Hybrid quantum circuits: pure functions of their parameters. Reference: arXiv:1811.04968."""

from jaxlab.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "recording": ["Circuit", "Program", "record", "trace"],
        "simulation": ["circuit", "simulate", "zero_state"],
        "measurements": [
            "counts",
            "density_matrix",
            "expval_dense",
            "marginal_z",
            "mutual_info",
            "probs",
            "purity",
            "sample",
            "shadow",
            "shadow_expval",
            "variance_dense",
            "vn_entropy",
        ],
        "shift": [
            "by_shift",
            "shift_gradient",
            "shift_rule",
            "stochastic_shift_gradient",
            "variance_gradient",
        ],
        "finite": ["finite_difference_gradient", "spsa_gradient"],
        "metric": ["classical_fisher", "metric_tensor", "metric_vector_product", "quantum_fisher"],
        "layers": ["QuantumLayer"],
        "noise": ["density_matrix_of", "trajectory"],
        "qasm": ["from_qasm", "to_qasm"],
        "pauli_sums": [
            "PauliSum",
            "expval",
            "from_openfermion",
            "from_pennylane",
            "ground_state",
            "pauli_sum",
            "variance",
        ],
        "ansatze": [
            "Ansatz",
            "all_singles_doubles",
            "excitations",
            "hardware_efficient",
            "qaoa",
            "strongly_entangling",
            "uccsd",
        ],
        "molecules": ["Molecule", "jordan_wigner", "molecule"],
        "optimizers": ["qng", "qnspsa", "rotosolve"],
    },
)
