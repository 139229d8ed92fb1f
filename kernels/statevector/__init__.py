"""Kernels on state vectors of qubits; wire 0 is the most significant bit of an amplitude's index."""
