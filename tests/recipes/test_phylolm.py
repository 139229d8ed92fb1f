"""The phylolm recipe: what it reports and writes, that it goes on where it stopped, and what it refuses."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny
from completion_server import completion_server
from killing import run_until_killed

from jaxlab.errors import InputError, ResourceError
from jaxlab.models import load, save_hf
from jaxlab.phylogeny import from_newick, robinson_foulds
from jaxlab.progress import Progress
from jaxlab.recipes import phylolm, phylolm_answers
from jaxlab.recipes.phylolm_family import FamilyConfig, _directory, make_member, members, true_tree


@pytest.fixture(scope="module")
def family(tmp_path_factory, tiny_model):
    """Two roots whose predictions are sharp, so that few paths are followed."""
    found = []
    for name, factor in (("left", 3.0), ("right", -2.5)):
        model = load(tiny_model)
        params = {**model.params, "embed": model.params["embed"] * factor}
        directory = tmp_path_factory.mktemp("roots") / name
        save_hf(params, tiny.TINY, model.tokenizer, directory)
        found.append(str(directory))
    return tuple(found)


@pytest.fixture(scope="module")
def config(family, tmp_path_factory):
    texts = tmp_path_factory.mktemp("texts") / "genes.jsonl"
    texts.write_text("".join(json.dumps({"gene": f"def f{i}(x, y):\n    ret"}) + "\n" for i in range(6)))
    return phylolm.Config(
        roots=family,
        generations=(1, 1),
        genome=str(texts),
        genes=6,
        steps=2,
        rank=2,
        batch=2,
        context=16,
        pruned=0.1,
        tokens=3,
        threshold=0.02,
        replicates=20,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Made models belong to the test, other files to the user's cache."""
    from jaxlab.files import cache_dir

    own, shared = tmp_path_factory.mktemp("cache"), cache_dir()
    for entry in shared.iterdir():
        if entry.name != "phylogeny":
            (own / entry.name).symlink_to(entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLAB_CACHE", str(own))
        yield own


@pytest.fixture(scope="module")
def finished(config, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "phylolm"
    return out, phylolm.run(config, out=out)


def test_a_made_family_is_reported_beside_its_truth(finished, config):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["models"] == 10 and summary["genes"] == 6 and summary["probes"] == 32
    for kind in ("exact", "sampled"):
        tree = from_newick((out / "neighbour_joining.nwk").read_text())
        truth = from_newick((out / "truth.nwk").read_text())
        assert set(tree.taxa) == set(truth.taxa) and len(tree.taxa) == 8
        if kind == "exact":
            assert summary["rf_exact"] == robinson_foulds(tree, truth)
        assert 0 <= summary[f"lowest_true_support_{kind}"] <= summary[f"mean_true_support_{kind}"] <= 1
    # The two roots have nothing in common, and every model shares the most with its own family.
    assert summary["roots_support_exact"] == 1
    names, similarity = matrix(out / "similarity.csv")
    for i, name in enumerate(names):
        nearest = max((j for j in range(len(names)) if j != i), key=lambda j: similarity[i, j])
        assert names[nearest].split(".")[0] == name.split(".")[0]
    assert phylolm.table(summary)[0]["Robinson-Foulds to the truth"] == str(summary["rf_exact"])


def matrix(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header[1:], np.array([row[1:] for row in rows], float)


def test_files_and_figures_are_there(finished):
    out, _ = finished
    for name in ("rooted", "unrooted", "similarity", "scaling"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    assert (out / "trees.nex").read_text().startswith("#NEXUS")
    assert (out / "distances.phy").read_text().startswith("10\n")
    names, distances = matrix(out / "distances.csv")
    _, similarity = matrix(out / "similarity.csv")
    np.testing.assert_allclose(distances, -np.log(np.clip(similarity, 1e-10, 1)), atol=1e-5)
    assert len(json.loads((out / "genes.json").read_text())) == 6


def test_the_plugins_bias_of_each_model_is_that_of_its_probabilities(finished):
    """Of a model and itself, from its exact probabilities at 6 genes; the estimate is of 32 probes drawn from them."""
    out, summary = finished
    found = json.loads((out / "plugin_self_similarity.json").read_text())
    assert summary["plugin_self_similarity"] == pytest.approx(np.mean(list(found.values())))
    expected = {}
    for folder in (out / "probes").iterdir():
        rows = json.loads(json.loads((folder / "000000.json").read_text())["content"])["answers"]
        own = np.array([sum(chance**2 for chance in row["alleles"].values()) for row in rows])
        expected[folder.name.rpartition("-")[0]] = own.sum() / (own + (1 - own) / 32).sum()
    assert found.keys() == expected.keys()
    differences = np.array([found[name] - expected[name] for name in found])
    # Of one model and 6 genes it is no better than this; the mean over 10 models is.
    assert np.abs(differences).max() < 0.2 and abs(differences.mean()) < 0.04


def test_what_was_asked_is_not_asked_again_and_made_models_are_kept(
    finished, config, cache, tmp_path, monkeypatch
):
    out, summary = finished
    assert len(list((cache / "phylogeny").glob("*/[12]"))) == 4
    again = tmp_path / "again"
    shutil.copytree(out, again, ignore=shutil.ignore_patterns("summary.json"))
    monkeypatch.setattr(phylolm_answers, "make_member", lambda *_: pytest.fail("a model was opened"))
    assert without_seconds(phylolm.run(config, out=again, resume=True)) == without_seconds(summary)


def without_seconds(summary):
    return {key: value for key, value in summary.items() if key != "seconds"}


def test_a_damaged_probe_file_is_named_and_can_be_asked_anew(finished, config, tmp_path):
    out, summary = finished
    again = tmp_path / "again"
    shutil.copytree(out, again, ignore=shutil.ignore_patterns("summary.json"))
    broken = sorted((again / "probes").rglob("*.json"))[3]
    broken.write_text(broken.read_text()[:100])
    with pytest.raises(InputError, match="is damaged") as error:
        phylolm.run(config, out=again, resume=True)
    assert str(broken) in str(error.value)
    broken.unlink()
    assert without_seconds(phylolm.run(config, out=again, resume=True)) == without_seconds(summary)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_figures(finished, config, tmp_path):
    first = sorted((finished[0] / "probes").rglob("*.json"))[0].relative_to(finished[0])
    out = tmp_path / "killed"
    run_until_killed("phylolm", config, out, out / first)
    assert not (out / "summary.json").exists()
    assert without_seconds(phylolm.run(config, out=out, resume=True)) == without_seconds(finished[1])


def test_given_models_are_probed_and_may_write_the_genes(family, finished, cache, tmp_path):
    left = load(family[0])
    near = tmp_path / "near"
    save_hf({**left.params, "embed": 0.9 * left.params["embed"]}, tiny.TINY, left.tokenizer, near)
    trained = sorted((cache / "phylogeny").glob("left-*/[12]"))
    config = phylolm.Config(
        models=(family[0], str(near), *map(str, trained)),
        families=("root", "root", "trained", "trained"),
        genome="models",
        genes=5,
        mode="sampled",
        probes=16,
        tokens=2,
        length=1,
        replicates=20,
    )
    out = tmp_path / "run"
    summary = phylolm.run(config, out=out)
    assert summary["probes"] == 16 and "rf_sampled" not in summary and "mean_support_exact" not in summary
    assert set(from_newick((out / "neighbour_joining.nwk").read_text()).taxa) == {"left", "near", "1", "2"}
    assert len(set(json.loads((out / "genes.json").read_text()))) == 5


def test_a_model_that_cannot_be_read_midway_is_named_and_nothing_is_lost(family, tmp_path, monkeypatch):
    """The third of four models is damaged: what the first two answered is kept, and they are not opened again."""
    models = [tmp_path / name for name in "abcd"]
    for number, directory in enumerate(models):
        shutil.copytree(family[number % 2], directory)
    (weights,) = models[2].glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    genes = tmp_path / "genes.jsonl"
    genes.write_text("".join(json.dumps({"gene": f"gene {g}"}) + "\n" for g in range(4)))
    config = phylolm.Config(
        models=tuple(map(str, models)),
        genome=str(genes),
        genes=4,
        mode="sampled",
        probes=16,
        tokens=2,
        length=1,
    )
    out = tmp_path / "run"
    with pytest.raises((InputError, ResourceError), match=weights.name):
        phylolm.run(config, out=out)
    assert {folder.name[0] for folder in (out / "probes").iterdir()} == {"a", "b"}
    weights.write_bytes(whole)
    opened = []
    monkeypatch.setattr(phylolm_answers, "load", lambda source: opened.append(source[-1]) or load(source))
    summary = phylolm.run(config, out=out, resume=True)
    assert opened == ["c", "d"] and summary["models"] == 4


def test_a_server_that_fails_midway_loses_nothing(tmp_path):
    """Four models of it, of which the second fails at its last genes until the run is resumed."""
    genes = tmp_path / "genes.jsonl"
    genes.write_text("".join(json.dumps({"gene": f"gene {g}"}) + "\n" for g in range(20)))

    def texts(body):
        rng = np.random.default_rng([ord(body["model"]), len(body["prompt"]), int(body["prompt"][5:])])
        return [f" {letter}!" for letter in rng.choice(list("pqr"), body["n"], p=[0.6, 0.2, 0.2])]

    with completion_server() as server:
        server.texts = texts
        config = phylolm.Config(
            models=tuple(f"{server.url}#{name}" for name in "abcd"),
            genome=str(genes),
            genes=20,
            mode="sampled",
            probes=8,
            tries=1,
            replicates=10,
        )
        out = tmp_path / "run"
        server.replies = [200] * 38 + [503]
        with pytest.raises(ResourceError, match="failed 1 times for 'b', at last with HTTP 503.*--resume"):
            phylolm.run(config, out=out)
        assert len(server.requests) == 39 and not (out / "summary.json").exists()
        summary = phylolm.run(config, out=out, resume=True)
        # Of the second model the genes of the unfinished file are asked again, two of them for the second time.
        assert summary["models"] == 4 and len(server.requests) == 39 + 4 + 40
        whole = phylolm.run(config, out=tmp_path / "whole")
    assert without_seconds(summary) == without_seconds(whole)


def test_what_is_done_to_the_last_children_is_what_is_said(family, config, cache):
    made = {one.name: one for one in members(config.family())}
    trained, rounded = (
        make_member(made[f"left.1{end}"], config.family(), Progress(quiet=True)) for end in ("", ".int8")
    )
    pruned, before = (
        make_member(made[f"left.2{end}"], config.family(), Progress(quiet=True)) for end in (".pruned", "")
    )
    for name in ("q", "down"):
        one, other = (np.asarray(model.params["layers"][name], float) for model in (trained, rounded))
        widest = np.abs(one).reshape(-1, 32).max(1)
        # Half a step of 255 levels, and a scale of 16 bits.
        assert (np.abs(one - other).reshape(-1, 32) <= widest[:, None] * (0.5 / 127 + 1e-3)).all() and (
            one != other
        ).any()
        one, other = (np.asarray(model.params["layers"][name]) for model in (before, pruned))
        gone = other == 0
        assert (gone.sum(-1) == 6).all()  # a tenth of 64
        assert (np.sort(np.abs(one), axis=-1)[..., 6:7] >= np.where(gone, np.abs(one), 0)).all()
        np.testing.assert_array_equal(one[~gone], other[~gone])


@pytest.fixture
def gathered(tmp_path):
    """Completions of five models of two families by four probabilities, and their scores."""
    rng = np.random.default_rng(0)
    base = rng.dirichlet(np.full(4, 0.4), (2, 30))
    file, scores = tmp_path / "results.jsonl", tmp_path / "scores.csv"
    with open(file, "w") as lines:
        for m in range(10):
            shares = 0.8 * base[m % 2] + 0.2 * rng.dirichlet(np.ones(4), 30)
            for g in range(30):
                texts = [f" {letter}bcdef" for letter in rng.choice(list("pqrs"), 16, p=shares[g])]
                lines.write(
                    json.dumps({"model": f"{'ab'[m % 2]}-{m}", "gene": f"g{g}", "completions": texts}) + "\n"
                )
    scores.write_text(
        "model,family,arc\n" + "".join(f"{'ab'[m % 2]}-{m},{'uvwx'[m // 3]},{30 + 4 * m}\n" for m in range(9))
    )
    return file, scores


def test_completions_from_elsewhere_are_accepted_and_scores_predicted(gathered, tmp_path):
    file, scores = gathered
    out = tmp_path / "run"
    summary = phylolm.run(phylolm.Config(genomes=str(file), scores=str(scores), replicates=20), out=out)
    assert summary["models"] == 10 and summary["genes"] == 30 and summary["probes"] == 16
    tree = from_newick((out / "neighbour_joining.nwk").read_text())
    assert any(
        {f"a-{m}" for m in range(0, 10, 2)} in (below, set(tree.taxa) - below) for below in taxa_below(tree)
    )
    predicted = json.loads((out / "predictions.json").read_text())["arc"]
    assert predicted["without a score"] == ["b-9"] and len(predicted["ridge"]["predictions"]) == 9
    assert predicted["scores"][:2] == pytest.approx([0.30, 0.34])
    assert -1 <= summary["arc_network_r"] <= 1 and summary["arc_ridge_mae"] >= 0


def taxa_below(tree):
    below = [{name} for name in tree.taxa] + [set() for _ in tree.names[len(tree.taxa) :]]
    for node, parent in enumerate(tree.parents[:-1]):
        below[parent] |= below[node]
    return below


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-30], "line 300 is not JSON"),
        (lambda text: "", "is empty; it must hold at least one line"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "model 'b-9' has no completions of 1 of 30 genes"),
        (
            lambda text: text + '{"model": "c"}\n',
            'line 301 must have the keys "model", "gene" and "completions"',
        ),
        (lambda text: text + "[1]\n", "line 301 must be a JSON object"),
        (lambda text: "\n".join(text.splitlines()[:90]), "there are 3 models; a tree must have at least 4"),
    ],
)
def test_a_file_of_completions_that_is_not_whole_is_refused(gathered, tmp_path, change, message):
    file, _ = gathered
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError, match=message):
        phylolm.run(phylolm.Config(genomes=str(file)), out=tmp_path / "run")


def test_a_score_that_is_no_number_is_refused(gathered, tmp_path):
    file, scores = gathered
    for content, message in (
        (scores.read_text().replace("34", "good"), "arc of 'b-1' is 'good'; it must be a number"),
        ("name,arc\n", 'it must have "model" and at least one benchmark'),
    ):
        scores.write_text(content)
        with pytest.raises(InputError, match=message):
            phylolm.run(
                phylolm.Config(genomes=str(file), scores=str(scores), replicates=5), out=tmp_path / "run"
            )


def test_the_default_family_has_twelve_leaves_and_a_tree_without_doubt():
    config = phylolm.Config().family()
    leaves = {one.name for one in members(config) if one.leaf}
    truth = true_tree(config)
    assert len(leaves) == 12 and set(truth.taxa) == leaves
    # As many splits as a binary tree can have: every one of them is known.
    assert (
        len({frozenset(below) for below in taxa_below(truth) if 2 <= len(below) <= 10}) == 10
    )  # both sides of one
    families = {one.family for one in members(config)}
    assert families == {"smollm2", "gemma3-270m"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genes": 1}, "genes is 1; it must be at least 2"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be > 0"),
        ({"threshold": 1.0}, "threshold is 1.0; it must lie between 0 and 1"),
        ({"second_rate": 1.5}, r"second_rate is 1.5; it must be in \(0, 1\]"),
        ({"pruned": 1.0}, r"pruned is 1.0; it must be in \[0, 1\)"),
        ({"models": ("a",) * 4, "genomes": "x"}, "models and genomes are both given"),
        ({"models": ("a",)}, "models holds 1; a tree must have at least 4"),
        (
            {"models": ("a",) * 4, "families": ("x",)},
            "families holds 1; it must hold one for each of 4 models",
        ),
        ({"models": ("http://h/v1#m",) * 4}, "mode is 'exact', but http://h/v1#m shows no probabilities"),
        ({"models": ("http://h/v1",) * 4, "mode": "sampled"}, "must be http://HOST/v1#MODEL"),
        (
            {"models": ("http://h/v1#m",) * 4, "mode": "sampled", "genome": "models"},
            "genome is 'models', but http://h/v1#m cannot write genes",
        ),
        ({"learning_rate": (1e-3,)}, r"learning_rate is \(0.001,\); it must hold one above 0 for each of"),
        ({"learning_rate": (1e-3, 0.0)}, r"learning_rate is \(0.001, 0.0\); it must hold one above 0"),
        ({"generations": (3, 1)}, r"generations is \(3, 1\); it must hold 1 or 2 for each of"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(phylolm.Config(), **change)


def test_models_that_options_do_not_concern_are_made_once(family, config, cache):
    """The first generation does not depend on how the second learns; the second does."""
    made = {one.name: one for one in members(dataclasses.replace(config, generations=(2, 1)).family())}
    for name, same in (("left.1", True), ("left.11", False)):
        slow, fast = (
            _directory(made[name], dataclasses.replace(config, second_rate=rate).family())
            for rate in (0.3, 0.9)
        )
        assert (slow == fast) is same


def test_family_options_are_checked():
    with pytest.raises(InputError, match="generations is"):
        FamilyConfig(("a",), (), 1, (1.0,), 1.0, 1, 1, 4, 0.1, 0)


@pytest.mark.parametrize(
    ("genome", "content", "message"),
    [
        (
            "nowhere",
            None,
            r"genome is 'nowhere'; it must be one of code, .* models, some of them as in code\+prose, or a file",
        ),
        ("rows.jsonl", '{"gene": "a"}\n{"text": "b"}\n', 'every line must be an object with the key "gene"'),
        ("rows.jsonl", '{"gene": "a"}\n{"gene": "a"}\n', r"genes\[1\] is the same as genes\[0\]"),
    ],
)
def test_a_genome_that_cannot_be_read_is_refused(family, tmp_path, genome, content, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / genome).write_text(content)
    config = phylolm.Config(models=family * 2, genome=genome)
    with pytest.raises(InputError, match=message):
        phylolm.run(config, out=tmp_path / "run")
