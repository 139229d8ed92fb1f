"""Hybrid quantum circuits: pure functions of their parameters. Reference: arXiv:1811.04968."""
