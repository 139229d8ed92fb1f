"""Real data with known licences: text by name, its tokens and windows to calibrate on, time series, graphs, images."""

from jaxlab.data.corpora import CORPORA, text
from jaxlab.data.graphs import TU, LabelledGraph, tu_graphs
from jaxlab.data.images import FASHION_CLASSES, Images, fashion_mnist, read_idx
from jaxlab.data.time_series import UCR, TimeSeries, read_ts, ucr
from jaxlab.data.tokens import byte_count, calibration_windows, token_ids

__all__ = [
    "CORPORA",
    "FASHION_CLASSES",
    "TU",
    "UCR",
    "Images",
    "LabelledGraph",
    "TimeSeries",
    "byte_count",
    "calibration_windows",
    "fashion_mnist",
    "read_idx",
    "read_ts",
    "text",
    "token_ids",
    "tu_graphs",
    "ucr",
]
