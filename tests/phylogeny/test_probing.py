"""Probes against exact probabilities, and independent of how they are batched."""

import dataclasses

import jax
import numpy as np
import pytest
from letter_model import TOKENS, toy_model

from jaxlab.errors import InputError
from jaxlab.phylogeny.alleles import allele_of
from jaxlab.phylogeny.exact import ExactOptions, exact_alleles
from jaxlab.phylogeny.probing import ProbeOptions, encode_genes, probe, write_genes

GENES = ["ab a", "b", "a b ab"]


@pytest.fixture(scope="module")
def model():
    return toy_model()


def test_frequencies_of_probes_are_the_exact_probabilities(model):
    probes = 4000
    options = ProbeOptions(probes=probes, tokens=3)
    found = probe(model, GENES, jax.random.key(0), options=options, rows=3 * probes)
    exact = exact_alleles(model, GENES, options=ExactOptions(tokens=3, threshold=1e-6))
    for texts, probabilities in zip(found, exact.probabilities, strict=True):
        alleles = [allele_of(text) for text in texts]
        assert len(alleles) == probes
        for allele in set(alleles) | set(probabilities):
            chance = probabilities.get(allele, 0)
            error = np.sqrt(chance * (1 - chance) / probes)
            assert abs(alleles.count(allele) / probes - chance) < 5 * error + 1.5e-3


def test_probes_do_not_depend_on_batches(model):
    """Neither on how many rows there are, nor on the genes that come after, nor on padding."""
    options = ProbeOptions(probes=6, tokens=4)
    together = probe(model, GENES, jax.random.key(1), options=options, rows=100)
    done = []
    apart = probe(model, GENES, jax.random.key(1), options=options, rows=12, progress=done.append)
    assert together == apart and done == [2, 3]
    assert probe(model, GENES[:1], jax.random.key(1), options=options, rows=6) == together[:1]
    assert probe(model, GENES, jax.random.key(1), options=options, rows=100, width=20) == together
    assert probe(model, GENES, jax.random.key(2), options=options, rows=100) != together


def test_genes_are_padded_on_the_right(model):
    prompts = encode_genes(model.tokenizer, GENES)
    assert prompts.tokens.shape == (3, 16)
    for row, length, gene in zip(*prompts, GENES, strict=True):
        assert model.tokenizer.decode(row[:length]) == gene and not row[length:].any()
    assert encode_genes(model.tokenizer, GENES, width=17).tokens.shape == (3, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: ProbeOptions(probes=0), "probes is 0; it must be at least 1"),
        (lambda m: ProbeOptions(tokens=0), "tokens is 0; it must be at least 1"),
        (lambda m: ProbeOptions(temperature=0.0), "temperature is 0.0; it must be above 0"),
        (
            lambda m: probe(m, ["a", "b", "a"], jax.random.key(0)),
            r"genes\[2\] is the same as genes\[0\] \('a'\)",
        ),
        (lambda m: probe(m, ["a" * 80], jax.random.key(0)), r"genes\[0\] has 80 tokens; with 5 more"),
    ],
)
def test_what_does_not_fit_is_refused(model, call, message):
    with pytest.raises(InputError, match=message):
        call(model)


def test_models_write_genes_that_do_not_end(model):
    genes = write_genes(model, jax.random.key(3), genes=40, tokens=6)
    assert len(genes) == 40 and len(set(genes)) > 10
    assert genes == write_genes(model, jax.random.key(3), genes=40, tokens=6)
    assert any("\n" in gene for gene in genes)
    # No other token has a newline in it than the one that now ends a text.
    ended = model._replace(cfg=dataclasses.replace(model.cfg, eos_ids=(TOKENS.index("\u010a"),)))
    assert not any("\n" in gene for gene in write_genes(ended, jax.random.key(3), genes=40, tokens=6))


def test_a_model_without_a_first_token_writes_nothing(model):
    mute = model._replace(cfg=dataclasses.replace(model.cfg, eos_ids=()))
    with pytest.raises(InputError, match="no token to begin or to end a text with"):
        write_genes(mute, jax.random.key(0), genes=1)
