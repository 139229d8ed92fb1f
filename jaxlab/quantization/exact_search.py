"""The codeword of the exactly smallest angle, by exchanges: what the fast search is measured against.

For a scale alpha, let y(alpha) minimise ||alpha |x| - y||^2 over non-negative integer vectors of sum k. Among all
y(alpha) is the codeword of the smallest angle. y(0) spreads the pulses evenly, and as alpha grows y changes one
pulse at a time: from j to i with |x_i| > |x_j| and y_j > 0, at alpha = (y_i - y_j + 1) / (|x_i| - |x_j|). Following
all of these exchanges is exact and takes O(k n) of them, n^2 work each. Host side, float64.
"""

import numpy as np

from jaxlab.errors import InputError
from jaxlab.kernels.pyramid_search import MAX_PULSES


def search_exact(x: np.ndarray, k: int) -> np.ndarray:
    """Integer y with sum |y_i| = k that maximises <x, y> / ||y||.

    Args:
      x: finite real [..., n], n >= 1.
      k: pulses, 1 to 127.

    Returns:
      int8[..., n]; signs are those of x. A group of zeros gives (k, 0, ..., 0).

    Raises:
      InputError: x has no axis or is not finite, or k is out of range.
    """
    x = np.asarray(x, np.float64)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise InputError(
            f"x has shape {x.shape}; groups of at least 1 weight are expected along the last axis"
        )
    if not 1 <= k <= MAX_PULSES:
        raise InputError(f"k = {k}: pulses must lie between 1 and {MAX_PULSES}, since y is int8")
    if not np.isfinite(x).all():
        raise InputError("x has a NaN or an infinity")
    magnitude = np.abs(x.reshape(-1, x.shape[-1]))
    y = _follow_exchanges(magnitude, k).reshape(x.shape)
    return np.where(x < 0, -y, y).astype(np.int8)


def _follow_exchanges(a: np.ndarray, k: int) -> np.ndarray:
    """y[groups, n] >= 0 of the smallest angle to each row of a >= 0; all rows take a step at a time."""
    groups, n = a.shape
    order = np.argsort(-a, axis=-1, kind="stable")
    y = np.empty((groups, n), np.int64)  # alpha -> 0: even, what is left over to the largest
    np.put_along_axis(y, order, np.broadcast_to(k // n + (np.arange(n) < k % n), (groups, n)), -1)
    zero = ~a.any(-1)
    y[zero] = np.eye(n, dtype=np.int64)[0] * k
    gap = a[:, :, None] - a[:, None, :]
    widens = gap > 0
    best, best_cosine = y.copy(), _cosine(a, y)
    active = np.flatnonzero(~zero)
    while active.size:
        now = y[active]
        ready = widens[active] & (now[:, None, :] > 0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            alpha = np.where(ready, (now[:, :, None] - now[:, None, :] + 1) / gap[active], np.inf).reshape(
                -1, n * n
            )
        first = alpha.argmin(-1)
        moves = ready.reshape(-1, n * n)[np.arange(first.size), first]
        active, first = active[moves], first[moves]
        y[active, first // n] += 1
        y[active, first % n] -= 1
        cosine = _cosine(a[active], y[active])
        better = cosine > best_cosine[active]
        best[active[better]], best_cosine[active[better]] = y[active[better]], cosine[better]
    return best


def _cosine(a: np.ndarray, y: np.ndarray) -> np.ndarray:
    """<a, y> / ||y||; the norm of a does not matter for the comparison."""
    return (a * y).sum(-1) / np.sqrt((y * y).sum(-1))
