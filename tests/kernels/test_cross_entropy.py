"""Chunked cross-entropy against plain logsumexp in float64, its memory, and its behaviour under transformations."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.cross_entropy import cross_entropy, summed_cross_entropy

VOCABULARY, WIDTH = 11, 5


def scores(head, rows):
    return rows @ head["w"].T + head["b"]


def plain(head, hidden, targets):
    """Losses by NumPy in float64, and their weighted sums' gradients."""
    s = hidden @ head["w"].T + head["b"]
    p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    losses = -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])
    slope = p - np.eye(VOCABULARY)[targets]

    def gradients(weight):
        weighted = (weight[..., None] * slope).reshape(-1, VOCABULARY)
        of_head = {"w": weighted.T @ hidden.reshape(-1, WIDTH), "b": weighted.sum(0)}
        return of_head, (weighted @ head["w"]).reshape(hidden.shape)

    return losses, gradients


def draw(rows, dtype=np.float64):
    rng = np.random.default_rng(0)
    head = {"w": rng.standard_normal((VOCABULARY, WIDTH)), "b": rng.standard_normal(VOCABULARY)}
    hidden, weight = rng.standard_normal((*rows, WIDTH)), rng.standard_normal(rows)
    targets = rng.integers(0, VOCABULARY, rows).astype(np.int32)
    return jax.tree.map(lambda x: x.astype(dtype), (head, hidden, weight)), targets


def total(head, hidden, targets, weight, **options):
    return jnp.sum(weight * cross_entropy(scores, head, hidden, targets, **options))


def summed(head, hidden, targets, weight, **options):
    return summed_cross_entropy(scores, head, hidden, targets, weight, **options)


@pytest.mark.parametrize("total", [total, summed])
@pytest.mark.parametrize(("rows", "chunk"), [((7,), 3), ((2, 6), 2), ((2, 6), 99)])
def test_losses_and_both_gradients_equal_numpy_in_float64(double_precision, total, rows, chunk):
    (head, hidden, weight), targets = draw(rows)
    losses, gradients = plain(head, hidden, targets)
    of_head, of_hidden = gradients(weight)
    both = jax.jit(jax.value_and_grad(total, (0, 1)), static_argnames="chunk")
    value, (found_head, found_hidden) = both(head, hidden, targets, weight, chunk=chunk)
    forward = jax.jit(total, static_argnames="chunk")(head, hidden, targets, weight, chunk=chunk)
    assert float(forward) == pytest.approx(float(value), rel=1e-12)
    assert float(value) == pytest.approx(float((weight * losses).sum()), rel=1e-12)
    np.testing.assert_allclose(found_hidden, of_hidden, rtol=1e-10, atol=1e-13)
    for name, exact in of_head.items():
        np.testing.assert_allclose(found_head[name], exact, rtol=1e-10, atol=1e-13)
    # With a frozen head the forward pass leaves the slopes behind: another program.
    alone = jax.jit(jax.grad(total, 1), static_argnames="chunk")(head, hidden, targets, weight, chunk=chunk)
    np.testing.assert_allclose(alone, of_hidden, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("total", [total, summed])
@pytest.mark.parametrize("count", [0, 4, 7])
def test_positions_behind_the_count_have_no_loss_and_no_gradient(double_precision, total, count):
    (head, hidden, weight), targets = draw((7,))
    there = np.arange(7) < count
    losses, gradients = plain(head, hidden, targets)
    of_head, of_hidden = gradients(weight * there)
    options = {"chunk": 3, "count": jnp.asarray(count)}
    each = jax.jit(lambda h: cross_entropy(scores, head, h, targets, **options))(hidden)
    np.testing.assert_allclose(each, np.where(there, losses, 0), rtol=1e-12)
    found = jax.jit(jax.grad(lambda p, h: total(p, h, targets, weight, **options), (0, 1)))(head, hidden)
    alone = jax.jit(jax.grad(lambda h: total(head, h, targets, weight, **options)))(hidden)
    np.testing.assert_allclose(found[0]["w"], of_head["w"], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(found[1], of_hidden, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(alone, of_hidden, rtol=1e-10, atol=1e-13)


def test_weights_of_a_sum_have_gradients_too(double_precision):
    (head, hidden, weight), targets = draw((2, 6))
    losses, _ = plain(head, hidden, targets)
    found = jax.jit(jax.grad(lambda w: 3 * summed(head, hidden, targets, w, chunk=4)))(weight)
    np.testing.assert_allclose(found, 3 * losses, rtol=1e-12)


def test_gradients_of_a_sum_need_three_products_with_the_head():
    head, hidden = jnp.ones((64, 32)), jnp.ones((16, 32))
    targets, weight = jnp.zeros(16, jnp.int32), jnp.ones(16)

    def products(function, **options):
        def loss(head, hidden):
            return function(lambda h, x: x @ h.T, head, hidden, targets, **options)

        program = jax.jit(jax.grad(loss, (0, 1))).lower(head, hidden).compile()
        # Of one chunk: bodies of loops are counted once.
        return round(program.cost_analysis()["flops"] / (2 * 64 * 32 * 4))

    assert products(functools.partial(summed_cross_entropy, weights=weight), chunk=4) == 3
    assert products(lambda *args, chunk: cross_entropy(*args, chunk=chunk).sum(), chunk=4) == 4


def test_scores_beyond_the_range_of_exp_stay_finite():
    head = {"w": jnp.eye(VOCABULARY, WIDTH) * 1e4, "b": jnp.full(VOCABULARY, 200.0)}
    hidden, targets = jnp.ones((3, WIDTH)), jnp.array([0, 1, 10])
    value, slopes = jax.value_and_grad(total, (0, 1))(head, hidden, targets, jnp.ones(3), chunk=2)
    assert float(value) == pytest.approx(2 * np.log(5) + 1e4 + np.log(5), rel=1e-6)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))


def test_vmap_over_heads_equals_one_after_the_other():
    (head, hidden, weight), targets = draw((7,), np.float32)
    heads = jax.tree.map(lambda x: np.stack([x, -2 * x]), head)
    gradient = jax.jit(jax.vmap(jax.grad(lambda p, h: total(p, h, targets, weight, chunk=3)), (0, None)))
    together = gradient(heads, hidden)["w"]
    for index, sign in enumerate((1, -2)):
        _, gradients = plain(jax.tree.map(lambda x, s=sign: s * x, head), hidden, targets)
        np.testing.assert_allclose(together[index], gradients(weight)[0]["w"], rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_those_of_the_formula(double_precision):
    """The Hessian of one loss with respect to the scores' offsets is diag(p) - p p^T."""
    (head, hidden, _), targets = draw((1,))
    s = scores(head, hidden)[0]
    p = np.exp(s) / np.exp(s).sum()

    def loss(b):
        return cross_entropy(scores, {**head, "b": b}, hidden, targets, chunk=1)[0]

    np.testing.assert_allclose(jax.jit(jax.hessian(loss))(head["b"]), np.diag(p) - np.outer(p, p), atol=1e-12)


def test_half_precision_is_summed_up_in_float32():
    (head, hidden, weight), targets = draw((64,), np.float32)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (head, hidden))
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), half)
    losses, gradients = plain(*exact, targets)
    found = cross_entropy(scores, *half, targets, chunk=1)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, losses, atol=0.05)
    of_head = gradients(weight)[0]["w"]
    for function in (total, summed):
        slope = jax.grad(function)(*half, targets, weight, chunk=1)["w"]
        assert slope.dtype == jnp.bfloat16
        # 64 additions in bfloat16 would be off by several per cent.
        assert np.linalg.norm(np.asarray(slope, np.float64) - of_head) < 0.01 * np.linalg.norm(of_head)


@pytest.mark.parametrize("trained", [(0, 1), 1])
@pytest.mark.parametrize("at_once", [False, True])
def test_memory_stays_below_half_of_what_full_scores_take(trained, at_once):
    time, vocabulary, width = 1024, 4096, 16
    shapes = [(vocabulary, width), (time, width), (time,), (time,)]
    kinds = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    head, hidden, targets, weight = (jax.ShapeDtypeStruct(s, k) for s, k in zip(shapes, kinds, strict=True))

    def product(head, rows):
        return rows @ head.T

    def chunked(head, hidden, targets, weight):
        if at_once:
            return summed_cross_entropy(product, head, hidden, targets, weight, chunk=128)
        return jnp.sum(weight * cross_entropy(product, head, hidden, targets, chunk=128))

    def whole(head, hidden, targets, weight):
        s = hidden @ head.T
        chosen = jnp.take_along_axis(s, targets[:, None], -1)[:, 0]
        return jnp.sum(weight * (jax.nn.logsumexp(s, axis=-1) - chosen))

    def temporary(function):
        program = jax.jit(jax.grad(function, trained)).lower(head, hidden, targets, weight).compile()
        return program.memory_analysis().temp_size_in_bytes

    full = 4 * time * vocabulary
    assert temporary(whole) >= full
    assert temporary(chunked) < full / 2


@pytest.mark.parametrize("total", [total, summed])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_everywhere(total, platform):
    (head, hidden, weight), targets = draw((2, 6), np.float32)
    function = jax.jit(jax.grad(lambda head, hidden: total(head, hidden, targets, weight, chunk=4), (0, 1)))
    jax.export.export(function, platforms=[platform])(head, hidden)


@pytest.mark.parametrize(
    ("rows", "targets", "chunk", "message"),
    [
        ((3, WIDTH), (4,), 1, "hidden has shape"),
        ((WIDTH,), (), 1, "hidden has shape"),
        ((0, WIDTH), (0,), 1, "at least one position"),
        ((3, WIDTH), (3,), 0, "chunk is 0"),
    ],
)
def test_bad_input_is_refused(rows, targets, chunk, message):
    (head, _, _), _ = draw((1,), np.float32)
    with pytest.raises(ValueError, match=message):
        cross_entropy(scores, head, jnp.zeros(rows), jnp.zeros(targets, jnp.int32), chunk=chunk)
    with pytest.raises(ValueError, match=message):
        summed(head, jnp.zeros(rows), jnp.zeros(targets, jnp.int32), jnp.zeros(targets), chunk=chunk)


def test_weights_of_another_shape_are_refused():
    (head, hidden, _), targets = draw((3,), np.float32)
    with pytest.raises(ValueError, match=r"weights has shape \(4,\)"):
        summed(head, hidden, targets, np.ones(4, np.float32), chunk=1)
