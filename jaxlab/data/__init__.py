"""Real data with known licences: text by name, tokens and windows of it, problems, time series, graphs, images."""

from jaxlab.data.corpora import CORPORA, text
from jaxlab.data.graphs import TU, LabelledGraph, tu_graphs
from jaxlab.data.images import FASHION_CLASSES, Images, fashion_mnist, read_idx
from jaxlab.data.problems import Problem, competition_problems, theorems_and_hints
from jaxlab.data.time_series import UCR, TimeSeries, read_ts, ucr
from jaxlab.data.tokens import byte_count, calibration_windows, token_ids

__all__ = [
    "CORPORA",
    "FASHION_CLASSES",
    "TU",
    "UCR",
    "Images",
    "LabelledGraph",
    "Problem",
    "TimeSeries",
    "byte_count",
    "calibration_windows",
    "competition_problems",
    "fashion_mnist",
    "read_idx",
    "read_ts",
    "text",
    "theorems_and_hints",
    "token_ids",
    "tu_graphs",
    "ucr",
]
