"""Exact allele probabilities against the list of all completions of a tiny model, and of real vocabularies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from letter_model import CONFIG, toy_model

from jaxlab.errors import InputError
from jaxlab.models import forward, logits
from jaxlab.phylogeny.alleles import allele_of
from jaxlab.phylogeny.exact import ExactOptions, exact_alleles, exact_table

GENES = ["ab a", "b", "a b ab"]
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model():
    return toy_model()


def listed(model, gene, *, tokens, strip):
    """Probability of every allele, from all sequences of tokens, each read whole and without a cache."""
    prompt = model.tokenizer(gene)["input_ids"]
    every = np.array(list(itertools.product(range(CONFIG.vocab_size), repeat=tokens)))
    rows = jnp.asarray(np.hstack([np.tile(prompt, (len(every), 1)), every[:, :-1]]), jnp.int32)
    scores = jax.jit(lambda t: logits(model.params, CONFIG, forward(model.params, CONFIG, t).hidden))(rows)
    chances = np.asarray(jax.nn.softmax(scores[:, len(prompt) - 1 :] / TEMPERATURE), float)
    steps = np.take_along_axis(chances, every[..., None], axis=-1)[..., 0]
    found = {}
    for sequence, chance in zip(every, steps.prod(1), strict=True):
        written = list(itertools.takewhile(lambda token: token != 0, sequence.tolist()))
        allele = allele_of(model.tokenizer.decode(written, skip_special_tokens=True), strip=strip)
        found[allele] = found.get(allele, 0) + chance
    return found


@pytest.mark.parametrize("strip", [True, False])
def test_probabilities_are_those_of_all_completions_listed(model, strip):
    options = ExactOptions(tokens=3, temperature=TEMPERATURE, threshold=1e-12, strip=strip)
    found = exact_alleles(model, GENES, options=options, block=2, width=30)
    assert max(abs(pruned) for pruned in found.pruned) < 1e-4
    for gene, probabilities in zip(GENES, found.probabilities, strict=True):
        expected = listed(model, gene, tokens=3, strip=strip)
        assert sum(probabilities.values()) == pytest.approx(1)
        for allele in expected | probabilities:
            assert probabilities.get(allele, 0) == pytest.approx(expected.get(allele, 0), abs=2e-5)
    assert any("\u00e9" in allele for allele in found.probabilities[0])


def test_pruned_mass_is_what_is_missing_before_it_is_shared_out(model):
    whole = exact_alleles(model, GENES[:1], options=ExactOptions(tokens=3, threshold=1e-12))
    pruned = exact_alleles(model, GENES[:1], options=ExactOptions(tokens=3, threshold=0.02))
    assert 0.01 < pruned.pruned[0] < 0.9
    left = 1 - pruned.pruned[0]
    assert sum(pruned.probabilities[0].values()) == pytest.approx(1)
    # Whatever is found is a part of the whole, and nothing is found twice.
    for allele, chance in pruned.probabilities[0].items():
        assert chance * left <= whole.probabilities[0][allele] + 1e-5


def test_tables_have_a_column_for_each_allele_of_any_model():
    table = exact_table([[{"a": 0.5, "b": 0.5}, {"x": 1.0}], [{"c": 0.25, "a": 0.75}, {"y": 0.5, "x": 0.5}]])
    assert table.tolist() == [[[0.5, 0.5, 0], [1, 0, 0]], [[0.75, 0, 0.25], [0.5, 0.5, 0]]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: ExactOptions(tokens=0), "tokens is 0; it must be at least 1"),
        (lambda m: ExactOptions(temperature=0.0), "temperature is 0.0; it must be above 0"),
        (lambda m: ExactOptions(threshold=1.0), r"threshold is 1.0; it must be in \(0, 1\)"),
        (lambda m: exact_alleles(m, GENES, block=0), "block is 0; it must be at least 1"),
        (lambda m: exact_alleles(m, ["a" * 80]), r"genes\[0\] has 80 tokens; with 5 more, .* 64 positions"),
        (lambda m: exact_table([]), "models is empty"),
        (lambda m: exact_table([[{}], []]), r"models\[1\] has 0 genes; it must have 1"),
    ],
)
def test_what_does_not_fit_is_refused(model, call, message):
    with pytest.raises(InputError, match=message):
        call(model)
