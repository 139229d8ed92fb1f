"""Genes are beginnings of texts of the lengths asked for."""

import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.phylogeny.genes import cut_genes, genome_hash, passages, require_genes

TEXTS = [f"text {i} " + "word and more " * 10 for i in range(200)]


def test_genes_begin_different_texts_with_lengths_all_over_the_range():
    genes = cut_genes(TEXTS, np.random.default_rng(0), genes=200)
    assert len({next(t for t in TEXTS if t.startswith(gene)) for gene in genes}) == 200
    lengths = [len(gene) for gene in genes]
    assert min(lengths) >= 20 and max(lengths) <= 99
    # Uniform on 20..99: mean 59.5, deviation 23.1.
    assert abs(np.mean(lengths) - 59.5) < 4 * 23.1 / np.sqrt(200)
    assert cut_genes(TEXTS, np.random.default_rng(0), genes=3) == genes[:3]
    assert cut_genes(TEXTS, np.random.default_rng(1), genes=3) != genes[:3]


def test_short_and_equal_texts_are_left_out():
    texts = ["short", "x" * 100, "x" * 100, " " * 100, "y" * 100]
    genes = cut_genes(texts, np.random.default_rng(0), genes=2, shortest=30, longest=30)
    assert sorted(genes) == ["x" * 30, "y" * 30]
    with pytest.raises(InputError, match="genes is 3; it must be at most 2, as many as differ among 3 texts"):
        cut_genes(texts, np.random.default_rng(0), genes=3, shortest=30, longest=30)


def test_passages_are_whole_paragraphs_of_at_least_the_length():
    text = "\n\n".join(["a" * 30, "b" * 30, "c" * 70, "d" * 5])
    assert passages(text, characters=50) == ["a" * 30 + "\n\n" + "b" * 30, "c" * 70]


def test_hashes_tell_genomes_apart():
    assert genome_hash(["ab", "c"]) == genome_hash(("ab", "c")) != genome_hash(["a", "bc"])
    assert len(genome_hash(["漢\udc80"])) == 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: cut_genes(TEXTS, rng, genes=0), "genes is 0; it must be at least 1"),
        (lambda rng: cut_genes(TEXTS, rng, genes=1, shortest=0), "shortest is 0 and longest 99"),
        (lambda rng: cut_genes(TEXTS, rng, genes=1, shortest=9, longest=8), "shortest is 9 and longest 8"),
        (lambda rng: require_genes([]), "genes is empty"),
        (lambda rng: require_genes(["a", ""]), r"genes\[1\] is empty"),
        (lambda rng: require_genes(["a", "a"]), r"genes\[1\] is the same as genes\[0\]"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(np.random.default_rng(0))
