"""Optimal brain surgeon on the whole Fisher F = kron(G, A) of one matrix, in float64 NumPy: no structure is used."""

import numpy as np
from hypothesis import strategies as st

SHAPES = st.sampled_from([(1, 1), (1, 6), (5, 1), (4, 7), (9, 5)])
"""Few, since each shape is compiled anew."""

EXAMPLE_G = np.array([[2, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 0.5]])
EXAMPLE_A = np.array([[1, 0.3, 0, 0.1], [0.3, 2, 0.4, 0], [0, 0.4, 1.5, 0.2], [0.1, 0, 0.2, 0.8]])
EXAMPLE_W = np.array([[1, -2, 0.5, 0.3], [0.2, 0.1, -1, 2], [-0.7, 0.4, 0.9, -0.2]])


def problem(rows, columns, seed):
    """Weights and two well-conditioned factors."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, columns)), spd(columns, rng), spd(rows, rng)


def spd(n, rng):
    x = rng.standard_normal((3 * n, n)) @ (np.eye(n) + 0.3 * rng.standard_normal((n, n)))
    # A draw can come near a singular matrix, whose inverse double precision does not hold.
    return damped(x.T @ x / len(x), 0.02)


def damped(factor, damping):
    return factor + damping * np.mean(np.diag(factor)) * np.eye(len(factor))


def loss(dW, A, G):
    """1/2 dw^T F dw."""
    F = np.kron(G, A)
    return dW.ravel() @ F @ dW.ravel() / 2


def remove(W, A, G, mask):
    """Least loss of setting the weights in `mask` to zero, and the change dW that attains it."""
    F, gone = np.kron(G, A), mask.ravel()
    change = np.where(gone, -W.ravel(), 0)
    # The others settle where the slope is zero: one system, no worse conditioned than F itself.
    free = ~gone
    change[free] = -np.linalg.solve(F[np.ix_(free, free)], F[np.ix_(free, gone)] @ change[gone])
    return change @ F @ change / 2, change.reshape(W.shape)


def remove_in_turn(W, A, G, masks, *, add_update=True):
    """Change after removing `masks` one after the other, each from what the ones before left (or from W)."""
    change = np.zeros_like(W)
    for mask in masks:
        change = change + remove(W + change if add_update else W, A, G, mask)[1]
    return change


def rows_mask(shape, rows):
    mask = np.zeros(shape, bool)
    mask[list(rows)] = True
    return mask


def columns_mask(shape, columns):
    return rows_mask(shape[::-1], columns).T


def damage(W, A, G, mask):
    """1/2 dw^T F dw of zeroing `mask` and nothing else."""
    return loss(np.where(mask, -W, 0), A, G)
