"""Real text with known licences: corpora by name, their tokens, and windows to calibrate on."""

from jaxlab.data.corpora import CORPORA, text
from jaxlab.data.tokens import byte_count, calibration_windows, token_ids

__all__ = ["CORPORA", "byte_count", "calibration_windows", "text", "token_ids"]
