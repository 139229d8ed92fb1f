"""Probes on disk: nothing is asked twice, and a file that is not whole is named."""

import json

import pytest

from jaxlab.errors import InputError
from jaxlab.recipes.phylolm_store import ProbeStore

GENES = [f"gene {i}" for i in range(5)]
SETTINGS = {"probes": 2, "temperature": 0.7}


def answers(start, genes):
    return [[f"{start + i} {gene}", "\u6f22 \U0001f600"] for i, gene in enumerate(genes)]


@pytest.fixture
def store(tmp_path):
    return ProbeStore(tmp_path, GENES, SETTINGS, block=2)


def test_answers_are_asked_for_once_and_come_back_as_they_were(store):
    asked, done = [], []

    def ask(start, genes):
        asked.append((start, tuple(genes)))
        return answers(start, genes)

    first = store.collect("org/model", ask, done.append)
    assert first == answers(0, GENES) and done == [2, 2, 1]
    assert asked == [(0, ("gene 0", "gene 1")), (2, ("gene 2", "gene 3")), (4, ("gene 4",))]
    again = ProbeStore(store.folder, GENES, SETTINGS, block=2)
    assert again.collect("org/model", ask) == first and len(asked) == 3


def test_what_was_answered_before_a_failure_is_kept(store):
    def failing(start, genes):
        if start == 2:
            raise RuntimeError("the model is gone")
        return answers(start, genes)

    with pytest.raises(RuntimeError, match="gone"):
        store.collect("m", failing)
    asked = []
    store.collect("m", lambda start, genes: asked.append(start) or answers(start, genes))
    assert asked == [2, 4]


def test_models_of_similar_names_have_their_own_files(store):
    assert len({store.path(name, 0) for name in ("a/b", "a_b", "a b", "A/b")}) == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: "[]", "is damaged"),
        (lambda text: text.replace("gene 1", "gene 7"), "does not fit its checksum"),
    ],
)
def test_a_damaged_file_is_named_and_only_its_genes_are_asked_again(store, damage, message):
    store.collect("m", answers)
    path = store.path("m", 0)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=message) as error:
        store.collect("m", answers)
    assert str(path) in str(error.value) and "--resume" in str(error.value)
    path.unlink()
    asked = []
    store.collect("m", lambda start, genes: asked.append(start) or answers(start, genes))
    assert asked == [0]


def test_probes_of_another_genome_or_other_options_are_refused(store):
    store.collect("m", answers)
    for genes, settings, what in ((GENES[::-1], SETTINGS, "genome"), (GENES, {"probes": 3}, "settings")):
        with pytest.raises(InputError, match=f"holds probes of another {what}"):
            ProbeStore(store.folder, genes, settings, block=2).collect("m", answers)


def test_too_few_answers_are_refused_and_not_kept(store):
    with pytest.raises(InputError, match="model 'm' gave 1 answers to 2 genes"):
        store.collect("m", lambda start, genes: [["x"]])
    assert store.read("m", 0) is None
    assert not list(store.folder.rglob("*.json"))


def test_files_are_json(store):
    store.collect("m", answers)
    content = json.loads(json.loads(store.path("m", 4).read_text())["content"])
    assert content["answers"] == answers(4, GENES[4:])
