"""Objectives against transcriptions of the published torch code, in float64, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxlab.errors import InputError
from jaxlab.selfsupervised import barlow_loss, byol_loss, mse_invariance, simclr_loss, vicreg_loss


def torch_simclr(first, second, temperature):
    both = F.normalize(torch.cat([first, second]), dim=1)
    similar = torch.exp(both @ both.T / temperature)
    n = len(first)
    own = torch.arange(n)
    positive = torch.cat([similar[own, own + n], similar[own + n, own]])
    others = similar.sum(1) - similar.diagonal()
    return -torch.log(positive / others).mean()


def torch_vicreg(first, second):
    n, d = first.shape
    loss = 25 * F.mse_loss(first, second)
    for view in (first, second):
        loss = loss + 25 * torch.relu(1 - torch.sqrt(view.var(dim=0) + 1e-4)).mean()
        covariance = torch.cov(view.T)
        loss = loss + (covariance.pow(2).sum() - covariance.diagonal().pow(2).sum()) / d
    return loss


def torch_barlow(first, second):
    n, d = first.shape
    norm = torch.nn.BatchNorm1d(d, affine=False).double()
    correlation = norm(first).T @ norm(second) / n
    difference = (correlation - torch.eye(d, dtype=torch.float64)).pow(2)
    off = ~torch.eye(d, dtype=torch.bool)
    return 0.1 * (difference.diagonal().sum() + 5.1e-3 * difference[off].sum())


TWINS = {
    "mse mean": (mse_invariance, F.mse_loss),
    "mse sum": (
        lambda a, b: mse_invariance(a, b, reduction="sum"),
        lambda a, b: (a - b).pow(2).sum(1).mean(),
    ),
    "simclr": (simclr_loss, lambda a, b: torch_simclr(a, b, 0.2)),
    "simclr, warm": (lambda a, b: simclr_loss(a, b, temperature=1.5), lambda a, b: torch_simclr(a, b, 1.5)),
    "vicreg": (vicreg_loss, torch_vicreg),
    "barlow": (barlow_loss, torch_barlow),
    "byol": (byol_loss, lambda a, b: 2 - 2 * F.cosine_similarity(a, b.detach(), dim=-1).mean()),
}


@pytest.mark.parametrize("name", TWINS)
def test_values_and_gradients_are_torchs(name, double_precision):
    """Dimensions of small and of large variance, so that the hinge is on both sides."""
    ours, theirs = TWINS[name]
    first, second = np.random.default_rng(0).standard_normal((2, 13, 6)) * np.linspace(0.2, 2, 6) + 0.3
    leaves = [torch.tensor(view, requires_grad=True) for view in (first, second)]
    expected = theirs(*leaves)
    expected.backward()
    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(first, second)
    assert float(value) == pytest.approx(expected.item(), rel=1e-10)
    for found, leaf in zip(gradients, leaves, strict=True):
        wanted = np.zeros_like(first) if leaf.grad is None else leaf.grad.numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["simclr", "vicreg", "barlow", "byol"])
def test_vmap_is_a_loop(name):
    views = np.random.default_rng(1).standard_normal((2, 3, 8, 4)).astype(np.float32)
    ours = jax.jit(TWINS[name][0])
    batched = jax.jit(jax.vmap(TWINS[name][0]))(*views)
    np.testing.assert_allclose(batched, [ours(*pair) for pair in views.swapaxes(0, 1)], rtol=1e-5)


def test_collapsed_views_have_finite_losses_and_gradients():
    """Equal rows, all of them zero: where standard deviations and norms have no slope."""
    zeros = jnp.zeros((5, 3))
    for name in ("mse mean", "simclr", "vicreg", "barlow", "byol"):
        value, gradient = jax.jit(jax.value_and_grad(TWINS[name][0]))(zeros, zeros)
        assert np.isfinite(value) and np.all(np.isfinite(gradient)), name
    assert float(vicreg_loss(zeros, zeros)) == pytest.approx(2 * 25 * 0.99)
    assert float(simclr_loss(zeros, zeros)) == pytest.approx(np.log(9), rel=1e-6)


def test_wrong_use_is_named():
    cloud = jnp.zeros((4, 2))
    for call, message in (
        (lambda: mse_invariance(cloud, cloud, reduction="none"), "reduction is 'none'"),
        (
            lambda: simclr_loss(cloud, cloud, temperature=0),
            "temperature is 0; it must be a finite number > 0",
        ),
        (lambda: vicreg_loss(cloud, cloud, variance=-1), "variance is -1"),
        (lambda: barlow_loss(cloud, cloud, lamb=-1), "lamb is -1"),
        (lambda: barlow_loss(cloud, cloud, scale_loss=0), "scale_loss is 0"),
        (lambda: byol_loss(cloud, cloud[:, :1]), r"target has shape \(4, 1\); it must be that of prediction"),
        (lambda: mse_invariance(cloud, cloud[:3]), r"second has shape \(3, 2\)"),
        (lambda: vicreg_loss(cloud[:1], cloud[:1]), r"first has shape \(1, 2\)"),
    ):
        with pytest.raises(InputError, match=message):
            call()
