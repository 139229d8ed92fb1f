"""The ways to compute attention agree with each other and with NumPy in float64."""

import functools

import jax
import numpy as np
import pytest

from jaxlab.models import attention
from jaxlab.models.attention_tpu import attend_splash

BATCH, TIME, HEADS, KV_HEADS, DIM = 2, 19, 4, 2, 8


def tensors(keys=TIME):
    rng = np.random.default_rng(0)
    shapes = ((TIME, HEADS), (keys, KV_HEADS), (keys, KV_HEADS))
    return tuple(rng.normal(size=(BATCH, *shape, DIM)).astype(np.float32) for shape in shapes)


def by_hand(
    q, k, v, *, scale, window=None, segment_ids=None, key_segment_ids=None, score_bias=None, causal=True
):
    """Head by head, query by query, in float64."""
    out = np.zeros(q.shape)
    key_segments = segment_ids if key_segment_ids is None else key_segment_ids
    for b, t, h in np.ndindex(*q.shape[:3]):
        keys, values = (x[b, :, h * KV_HEADS // HEADS].astype(np.float64) for x in (k, v))
        scores = keys @ q[b, t, h].astype(np.float64) * scale
        if score_bias is not None:
            scores += score_bias[0, h, t]
        seen = np.ones(len(keys), bool)
        if causal:
            distance = t - np.arange(len(keys))
            seen &= (distance >= 0) & (distance < (window or len(keys)))
        if segment_ids is not None:
            seen &= key_segments[b] == segment_ids[b, t]
        weights = np.where(seen, np.exp(scores - scores[seen].max()), 0)
        out[b, t, h] = weights @ values / weights.sum()
    return out


SEGMENTS = np.repeat([[0, 1], [3, 2]], [8, TIME - 8], axis=1)
BIAS = np.random.default_rng(1).normal(size=(1, HEADS, TIME, TIME)).astype(np.float32)
OPTIONS = {
    "causal": {},
    "window": {"window": 5},
    "segments": {"segment_ids": SEGMENTS},
    "segments and window": {"segment_ids": SEGMENTS, "window": 3},
    "bias": {"score_bias": BIAS},
    "both ways": {"causal": False},
    "other keys": {
        "causal": False,
        "segment_ids": np.zeros((BATCH, TIME), int),
        "key_segment_ids": SEGMENTS - [[0], [2]],
    },
}


@pytest.mark.parametrize(
    ("name", "fused"),
    [*((name, False) for name in OPTIONS), *((name, True) for name in OPTIONS if name != "bias")],
)
def test_both_ways_equal_float64_by_hand(name, fused):
    options = {"scale": 0.3, **OPTIONS[name]}
    found = (
        attention.attend_fused(*tensors(), **options, implementation="xla")
        if fused
        else attention.attend(*tensors(), **options)
    )
    np.testing.assert_allclose(found, by_hand(*tensors(), **options), atol=1e-5)


def test_a_window_that_is_traced_equals_a_static_one():
    run = jax.jit(
        lambda window: attention.attend_fused(*tensors(), scale=0.3, window=window, implementation="xla")
    )
    np.testing.assert_allclose(run(5), by_hand(*tensors(), scale=0.3, window=5), atol=1e-5)


def test_half_precision_on_gpus_goes_to_cudnn(monkeypatch):
    asked = []

    def answer(q, k, v, **options):
        asked.append(options)
        return q

    monkeypatch.setattr(attention.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", answer)
    half = tuple(jax.numpy.asarray(x, "bfloat16") for x in tensors())
    attention.attend(*half, scale=0.3, window=5)
    assert asked[0]["implementation"] == "cudnn" and asked[0]["local_window_size"] == (4, 0)
    assert asked[0]["is_causal"] and asked[0]["mask"] is None and asked[0]["scale"] == 0.3
    single = attention.attend(*tensors(), scale=0.3)
    np.testing.assert_allclose(single, by_hand(*tensors(), scale=0.3), atol=1e-5)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["causal", "window", "segments", "segments and window", "both ways"])
def test_the_kernel_for_tpus_equals_float64_by_hand(name):
    """Interpreted: 19 queries in a block of 128."""
    options = {"scale": 0.3, **OPTIONS[name]}
    found = attend_splash(*tensors(), **options, interpret=True)
    np.testing.assert_allclose(found, by_hand(*tensors(), **options), atol=1e-5)


@pytest.mark.slow
def test_gradients_of_the_kernel_for_tpus_are_those_of_attention_by_xla():
    def gradients(attend):
        return jax.grad(lambda q, k, v: (attend(q, k, v, scale=0.3, window=5) ** 2).sum(), (0, 1, 2))(
            *tensors()
        )

    found = gradients(functools.partial(attend_splash, interpret=True))
    for one, other in zip(found, gradients(attention.attend), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({}, True),
        ({"window": 100}, True),
        ({"causal": False}, True),
        ({"window": jax.numpy.int32(100)}, False),  # traced: another one a layer
        ({"first_slot": jax.numpy.zeros(2, int)}, False),
    ],
)
@pytest.mark.parametrize("devices", [1, 8])
def test_half_precision_on_one_tpu_goes_to_splash_attention(monkeypatch, options, kernels, devices):
    """What the program for a TPU holds; compiled for one it is not."""
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(attention.jax, "device_count", lambda: devices)
    shapes = [jax.ShapeDtypeStruct((2, 300, heads, 64), "bfloat16") for heads in (6, 2, 2)]

    def forward_and_back(q, k, v):
        found, back = jax.vjp(functools.partial(attention.attend, scale=0.3, **options), q, k, v)
        return found, back(found)

    text = jax.jit(forward_and_back).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    # Forward, and backward for queries and for keys.
    assert text.count("tpu_custom_call") == (3 if kernels and devices == 1 else 0)
