"""Whole grids of runs in few compiled programs, for any recipe whose training is a pure function."""

from jaxlab.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "protocol": ["Sweepable"],
        "grids": ["Grid", "parse_grid"],
        "programs": ["Program", "compile_program", "plan"],
        "running": ["sweep"],
        "tables": ["read_table", "write_table"],
        "statistics": [
            "Estimate",
            "interquartile_mean",
            "interval_estimate",
            "performance_profile",
            "probability_of_improvement",
        ],
    },
)
