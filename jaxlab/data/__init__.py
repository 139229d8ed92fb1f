"""Real data with known licences: text by name, its tokens and windows to calibrate on, time series, graphs."""

from jaxlab.data.corpora import CORPORA, text
from jaxlab.data.graphs import TU, LabelledGraph, tu_graphs
from jaxlab.data.time_series import UCR, TimeSeries, read_ts, ucr
from jaxlab.data.tokens import byte_count, calibration_windows, token_ids

__all__ = [
    "CORPORA",
    "TU",
    "UCR",
    "LabelledGraph",
    "TimeSeries",
    "byte_count",
    "calibration_windows",
    "read_ts",
    "text",
    "token_ids",
    "tu_graphs",
    "ucr",
]
