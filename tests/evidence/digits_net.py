"""The small network and the digits that the printed values belong to, and its evidence by brute force in NumPy."""

import numpy as np
from sklearn.datasets import load_digits

_DIGITS = load_digits()
X = _DIGITS.data[:60] / 16
Y = _DIGITS.target[:60].astype(np.int32)


def _filled(shape, o, s):
    return s * np.sin(o + 1.7 * np.arange(np.prod(shape))).reshape(shape)


PARAMS = {
    "W1": _filled((12, 64), 0.1, 0.25),
    "b1": _filled((12,), 0.2, 0.1),
    "W2": _filled((10, 12), 0.3, 0.8),
    "b2": _filled((10,), 0.4, 0.1),
}
NAMES = tuple(sorted(PARAMS))


def apply(params, x):
    import jax.numpy as jnp

    hidden = jnp.tanh(x @ params["W1"].T + params["b1"])
    return hidden @ params["W2"].T + params["b2"]


def jacobians(x=X):
    """[n, C, entries] of every leaf, by hand."""
    hidden = np.tanh(x @ PARAMS["W1"].T + PARAMS["b1"])
    n, C = len(x), len(PARAMS["b2"])
    back = PARAMS["W2"][None] * (1 - hidden**2)[:, None]
    eye = np.eye(C)
    return {
        "W1": np.einsum("nch,ni->nchi", back, x).reshape(n, C, -1),
        "b1": back,
        "W2": np.einsum("cd,nh->ncdh", eye, hidden).reshape(n, C, -1),
        "b2": np.broadcast_to(eye, (n, C, C)),
    }


def logits(x=X):
    return np.tanh(x @ PARAMS["W1"].T + PARAMS["b1"]) @ PARAMS["W2"].T + PARAMS["b2"]


def probabilities(x=X):
    f = logits(x)
    p = np.exp(f - f.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def hessians(x=X):
    """Lambda_n of softmax, [n, C, C]."""
    p = probabilities(x)
    return np.einsum("nc,cd->ncd", p, np.eye(p.shape[1])) - p[:, :, None] * p[:, None]
