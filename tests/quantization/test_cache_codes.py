"""Coded caches: bits counted on arrays, codes against brute force, models against ones that round keys and values."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_twins import random_tokens, twin

from jaxlab.errors import InputError
from jaxlab.models import forward, generate, init_cache, logits
from jaxlab.models.attention import attend
from jaxlab.models.transformer import embed, final_hidden, run_layers
from jaxlab.quantization import CacheCode, PVQSpec, ScalarSpec, gain_levels, mean_keys, rotate
from jaxlab.quantization.pvq import mean_cosine
from jaxlab.quantization.rotation import random_signs

FINE = CacheCode(PVQSpec(4, 127, 6))
COARSE = CacheCode(PVQSpec(8, 10, 2))
FOUR_BITS = CacheCode(ScalarSpec(4, 8, "minmax"))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(code, x):
    return code.decode(code.encode(jnp.asarray(x)), x.shape[-1])


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        # log2 V(16, 23) = 44.9: 4 groups of 45 + 3 bits are 6 words; beside them 16 bits of the scale.
        (PVQSpec(16, 23, 3), (6 * 32 + 16) / 64),
        (ScalarSpec(8, 64, "midtread"), (64 * 8 + 16) / 64),
        (ScalarSpec(4, 32, "minmax"), (64 * 4 + 2 * 32) / 64),
    ],
)
def test_bits_are_those_of_the_arrays(spec, bits):
    _, _, cfg = twin("llama")
    cfg = type(cfg)(**{**vars(cfg), "head_dim": 64})
    code = CacheCode(spec)
    cache = init_cache(cfg, 2, 16, code=code)
    numbers = 3 * 2 * 16 * 2 * 64  # layers, rows, slots, heads, numbers of a head
    assert cache.keys.shape == (3, 2, 16, 2, 64)
    assert 8 * cache.keys.nbytes / numbers == 8 * cache.values.nbytes / numbers == bits
    assert code.bits(64) == bits


def test_a_vector_is_stored_as_its_nearest_direction_and_gain():
    """Against a search of all points of P(4, 3), in float64, and the law's levels in units of the rounded scale."""
    n, k = 4, 3
    x = np.concatenate([normal(40, 8), 1e3 * normal(4, 8, seed=1), 1e-3 * normal(4, 8, seed=2)])
    spec = PVQSpec(n, k, 2, candidates=16)
    points = np.array([y for y in itertools.product(range(-k, k + 1), repeat=n) if np.abs(y).sum() == k])
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    scale = np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=1)).astype(np.float16).astype(np.float64)
    levels = mean_cosine(n, k) * gain_levels(n, 8, 2).astype(np.float64)
    groups = x.reshape(-1, 2, n).astype(np.float64)
    products = groups @ units.T
    best, projection = units[products.argmax(-1)], products.max(-1)
    gains = scale[:, None, None] * levels
    nearest = np.abs(gains - projection[..., None]).argmin(-1)
    expected = np.take_along_axis(gains, nearest[..., None], -1) * best
    np.testing.assert_allclose(
        rounded(CacheCode(spec, rotated=False), x) / scale[:, None],
        expected.reshape(x.shape) / scale[:, None],
        atol=1e-5,
    )


@pytest.mark.parametrize("code", [COARSE, FOUR_BITS])
def test_a_rotated_code_is_the_plain_code_of_rotated_vectors(code):
    x, signs = normal(5, 3, 16), random_signs(jax.random.key(0), 16)
    plain = CacheCode(code.spec, rotated=False)
    np.testing.assert_allclose(rotate(rounded(code, x), signs), rounded(plain, rotate(x, signs)), atol=1e-5)


def test_at_the_same_bits_pyramids_are_nearer_than_integers():
    x = normal(4096, 64)

    def noise(code):
        assert code.bits(64) == 3.25
        return 10 * np.log10(np.mean(np.square(rounded(code, x) - x)) / np.mean(np.square(x)))

    pyramid, integers = CacheCode(PVQSpec(16, 23, 3)), CacheCode(ScalarSpec(3, 64, "midtread", clip=True))
    # On Gaussian data 15.7 dB at 3 bits a number (pvq.md 6.4) and about 14 for the best uniform scalar.
    assert -16.2 < noise(pyramid) < -15.3
    assert noise(pyramid) < noise(integers) - 1


OFFSET = jnp.asarray(normal(2, 8, seed=3))


def scores(params, cfg, tokens, cache):
    found = forward(params, cfg, tokens, cache=cache)
    return np.asarray(logits(params, cfg, found.hidden)), found.cache


@functools.partial(jax.jit, static_argnames=("cfg", "code"))
def scores_of_rounded(params, cfg, tokens, code, offset=0.0):
    """Without a cache: every key (but for what all share) and value is rounded by the code before attention."""

    def attention(q, k, v, **options):
        return attend(q, rounded(code, k - offset) + offset, rounded(code, v), **options)

    hidden, _, _ = run_layers(params, cfg, embed(params, cfg, tokens), attention=attention)
    return logits(params, cfg, final_hidden(params, cfg, hidden))


@pytest.mark.parametrize(
    ("case", "code", "offset"),
    [("llama", FINE, None), ("llama", FOUR_BITS, OFFSET), ("gemma3", COARSE, None)],
)
def test_scores_are_those_of_a_model_that_rounds_keys_and_values(case, code, offset):
    _, params, cfg = twin(case)
    tokens = random_tokens((2, 19))
    expected = scores_of_rounded(params, cfg, tokens, code, 0.0 if offset is None else offset)
    everywhere = None if offset is None else jnp.stack([offset] * cfg.num_layers)
    empty = init_cache(cfg, 2, 24, code=code, key_offset=everywhere)
    found, cache = scores(params, cfg, tokens[:, :11], empty)
    pieces = [found]
    for t in range(11, 19):
        found, cache = scores(params, cfg, tokens[:, t : t + 1], cache)
        pieces.append(found)
    # A number that lies between two codes may fall to either in another program.
    off = np.abs(np.concatenate(pieces, axis=1) - expected)
    assert np.median(off) < 1e-4
    assert off.mean() < 0.02 * np.abs(expected).mean()
    original, _ = scores(params, cfg, tokens, init_cache(cfg, 2, 24))
    assert off.mean() < 0.1 * np.abs(original - expected).mean() or code is FINE
    if code is FINE:
        assert np.abs(original - expected).mean() < 0.05 * np.abs(original).mean()


@pytest.mark.slow
def test_generation_takes_the_tokens_of_a_model_that_rounds_keys_and_values():
    _, params, cfg = twin("llama")
    prompt, lengths = random_tokens((2, 9)), np.array([9, 5])
    prompt[1, 5:] = 0
    found = generate(params, cfg, prompt, lengths, jax.random.key(0), max_new=8, cache_code=COARSE)
    for row, length in enumerate(lengths):
        tokens = np.zeros((1, 17), np.int32)
        tokens[0, :length] = prompt[row, :length]
        for step in range(8):
            expected = scores_of_rounded(params, cfg, tokens, COARSE)[0, length + step - 1]
            chosen = int(found.tokens[row, step])
            assert expected[chosen] > expected.max() - 1e-3
            tokens[0, length + step] = chosen
    plain = generate(params, cfg, prompt, lengths, jax.random.key(0), max_new=8)
    assert (found.tokens != plain.tokens).any()


def test_keys_beyond_their_mean_are_kept_better():
    """Of keys with a large bias in common, which attention itself does not see; positions do not turn it here."""
    _, params, cfg = twin("gpt2")
    bias = 30 * normal(*params["layers"]["k_bias"].shape, seed=4)
    params = {**params, "layers": params["layers"] | {"k_bias": jnp.asarray(bias)}}
    tokens = random_tokens((2, 24))
    means = mean_keys(params, cfg, tokens)
    original, plain = scores(params, cfg, tokens, init_cache(cfg, 2, 24))
    np.testing.assert_allclose(means, np.asarray(plain.keys).mean((1, 2)), rtol=1e-4, atol=1e-4)
    off = [
        np.abs(
            scores(params, cfg, tokens, init_cache(cfg, 2, 24, code=FINE, key_offset=offset))[0] - original
        )
        for offset in (None, means)
    ]
    assert off[1].mean() < 0.2 * off[0].mean()


def test_offsets_that_do_not_fit_are_refused():
    _, params, cfg = twin("llama")
    with pytest.raises(InputError, match=r"shape \(2, 8\); it must be \(3, 2, 8\)"):
        init_cache(cfg, 1, 8, code=COARSE, key_offset=OFFSET)
    with pytest.raises(InputError, match="None where there is no code"):
        init_cache(cfg, 1, 8, key_offset=jnp.zeros((3, 2, 8)))
    with pytest.raises(InputError, match="no window"):
        mean_keys(params, cfg, np.zeros((0, 4), np.int32))


def test_parts_of_a_coded_cache_are_parts_of_its_rows():
    _, params, cfg = twin("llama")
    tokens = random_tokens((3, 7))
    _, cache = scores(params, cfg, tokens, init_cache(cfg, 3, 8, code=COARSE))
    rows = cache._replace(keys=cache.keys[:, 1:], values=cache.values[:, 1:], length=cache.length[1:])
    again, _ = scores(params, cfg, tokens[:, :1], cache)
    part, _ = scores(params, cfg, tokens[1:, :1], rows)
    np.testing.assert_allclose(part, again[1:], atol=1e-5)


def test_codes_that_do_not_fit_the_heads_are_refused():
    _, params, cfg = twin("llama")  # heads of 8
    for spec, group in ((PVQSpec(16, 28, 3), 16), (ScalarSpec(4, 5), 5)):
        with pytest.raises(InputError, match=f"groups of {group}; they must divide head_dim, 8"):
            init_cache(cfg, 1, 8, code=CacheCode(spec))
        with pytest.raises(InputError, match="head_dim, 8"):
            generate(
                params,
                cfg,
                np.ones((1, 3), np.int32),
                np.array([3]),
                jax.random.key(0),
                max_new=2,
                cache_code=CacheCode(spec),
            )
