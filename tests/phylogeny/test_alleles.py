"""Alleles and their counts against plain Python."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.phylogeny.alleles import allele_counts, allele_of, encode_alleles, frequencies, resampled_counts

COMPLETIONS = [
    [[" the cat", "the dog", None], ["a", "", " b"]],
    [["dogs", "\n  x"], ["a\n", "bcdef", "bcdez"]],
]


@pytest.mark.parametrize(
    ("text", "stripped", "whole"),
    [
        ("  hello", "hell", "  he"),
        ("\n  x", "  x", "\n  x"),
        ("  \n\n y", " y", "  \n\n"),
        ("", "", ""),
        ("ab\ufffd", "ab", "ab"),
        ("äöüßx", "äöüß", "äöüß"),
    ],
)
def test_spaces_go_first_then_newlines_and_four_characters_stay(text, stripped, whole):
    assert allele_of(text) == stripped
    assert allele_of(text, strip=False) == whole


def test_codes_stand_for_the_alleles_of_each_gene():
    encoded = encode_alleles(COMPLETIONS, ["m", "n"])
    assert encoded.codes.shape == (2, 2, 3) and encoded.largest_vocabulary == 5
    for m, model in enumerate(COMPLETIONS):
        for g, texts in enumerate(model):
            for n, text in enumerate([*texts, *[None] * (3 - len(texts))]):
                code = encoded.codes[m, g, n]
                assert (code == -1) if text is None else encoded.vocabularies[g][code] == allele_of(text)
    assert encoded.vocabularies == (("the ", "dogs", "  x"), ("a", "", "b", "a\n", "bcde"))


def test_counts_and_frequencies_are_those_of_a_dictionary():
    encoded = encode_alleles(COMPLETIONS, ["m", "n"])
    counts = np.asarray(jax.jit(lambda c: allele_counts(c, alleles=6))(encoded.codes))
    shares = np.asarray(frequencies(jnp.asarray(counts)))
    for m, model in enumerate(COMPLETIONS):
        for g, texts in enumerate(model):
            expected = collections.Counter(allele_of(text) for text in texts if text is not None)
            found = dict(zip(encoded.vocabularies[g], counts[m, g], strict=False))
            assert {allele: n for allele, n in found.items() if n} == expected
            np.testing.assert_allclose(shares[m, g], counts[m, g] / expected.total(), rtol=1e-6)


def test_no_probes_have_no_frequencies():
    assert not np.asarray(jax.jit(frequencies)(np.zeros((1, 2, 3), np.float32))).any()


def test_resampled_counts_keep_their_sums_and_their_means():
    counts = jnp.array([[[3.0, 0, 5], [0, 2, 0]]])
    drawn = jax.jit(jax.vmap(lambda key: resampled_counts(key, counts)))(
        jax.random.split(jax.random.key(0), 2000)
    )
    assert (np.asarray(drawn.sum(-1)) == [8, 2]).all() and not np.asarray(drawn[:, 0, 0, 1]).any()
    np.testing.assert_allclose(drawn.mean(0), counts, atol=4 * np.sqrt(8 / 4 / 2000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "completions is empty"),
        (([[]], ["m"]), "completions is empty"),
        ((COMPLETIONS, ["m"]), "names has 1 entries; it must have 2"),
        ((COMPLETIONS, ["m", "m"]), "names holds 'm' more than once"),
        ((COMPLETIONS, ["m", ""]), r"names\[1\] is empty"),
        (([COMPLETIONS[0], [["a"]]], ["m", "n"]), "model 'n' has 1 genes; it must have 2, as 'm' has"),
        (([[["", " ", "x"]]], ["m"]), r"model 'm' has 2 empty alleles among 3 probes, such as \['', ' '\]"),
    ],
)
def test_completions_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        encode_alleles(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: allele_of("x", length=0), "length is 0; it must be at least 1"),
        (
            lambda: encode_alleles(COMPLETIONS, ["m", "n"], most_empty=2),
            r"most_empty is 2; it must be in \[0, 1\]",
        ),
        (
            lambda: allele_counts(np.array([[[0, 3]]]), alleles=3),
            "codes holds 3; it must be below alleles = 3",
        ),
    ],
)
def test_options_out_of_range_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
