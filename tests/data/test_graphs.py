"""Graphs of the TU collection against its counts, and damaged folders."""

import contextlib
import shutil
import zipfile

import networkx as nx
import numpy as np
import pytest

from jaxlab.data import graphs, tu_graphs
from jaxlab.errors import InputError, ResourceError
from jaxlab.files import cache_dir


def test_mutag_has_the_collections_counts():
    graphs = tu_graphs("MUTAG")
    assert len(graphs) == 188
    assert np.bincount([graph.label for graph in graphs]).tolist() == [63, 125]
    assert max(graph.vertices for graph in graphs) == 28 and max(len(graph.edges) for graph in graphs) == 33
    assert (
        sum(graph.vertices for graph in graphs) == 3371 and sum(len(graph.edges) for graph in graphs) == 3721
    )
    for graph in graphs:
        assert graph.vertex_labels.shape == (graph.vertices, 1) and graph.vertex_attributes.shape[1] == 0
        own = nx.Graph(graph.edges.tolist())
        assert nx.is_connected(own) and own.number_of_nodes() == graph.vertices
        assert np.all(graph.edges[:, 0] < graph.edges[:, 1])


def test_cuneiform_has_the_collections_counts():
    graphs = tu_graphs("Cuneiform")
    assert len(graphs) == 267 and len({graph.label for graph in graphs}) == 30
    assert sum(graph.vertices for graph in graphs) == 5680
    np.testing.assert_allclose(graphs[0].vertex_attributes[0], [3.65956332, 2.62879721, -13.3789], rtol=1e-8)
    assert graphs[0].vertex_labels[0].tolist() == [0, 0]


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for what, content in files.items():
        (folder / f"{folder.name}_{what}.txt").write_text(content)


def test_folders_are_read_and_damage_is_named(tmp_path):
    folder = tmp_path / "OWN"
    good = {"A": "1, 2\n2, 1\n2, 2\n4, 3\n", "graph_indicator": "1\n1\n2\n2\n2\n", "graph_labels": "7\n-1\n"}
    write(folder, **good)
    first, second = tu_graphs(folder)
    assert (first.vertices, first.edges.tolist(), first.label) == (2, [[0, 1]], 1)
    assert (second.vertices, second.edges.tolist(), second.label) == (3, [[0, 1]], 0)
    for damage, message in (
        ({"A": "1, 9\n"}, "names vertices beyond the 5"),
        ({"A": "2, 3\n"}, "has an edge between two graphs"),
        ({"graph_labels": "7\n"}, "must rise from 1 to the 1 graphs"),
        ({"A": "1, x\n"}, "does not hold rows of numbers"),
        ({"node_labels": "1\n"}, "holds 1 rows; 5 are needed"),
    ):
        write(folder, **good | damage)
        with pytest.raises(InputError, match=message):
            tu_graphs(folder)
    (folder / "OWN_A.txt").unlink()
    with pytest.raises(InputError, match="OWN_A.txt: is missing"):
        tu_graphs(folder)
    with pytest.raises(InputError, match="known are MUTAG, Cuneiform"):
        tu_graphs(tmp_path / "none")


def test_a_damaged_copy_in_the_cache_is_named(tmp_path, monkeypatch):
    tu_graphs("MUTAG")
    files = {file.name: file.read_bytes() for file in (cache_dir("data") / "MUTAG").iterdir()}
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path))
    own = cache_dir("data") / "MUTAG"
    own.mkdir(parents=True)
    for name, content in files.items():
        (own / name).write_bytes(content[:-4] if name == "MUTAG_A.txt" else content)
    with pytest.raises(ResourceError, match="wrong checksum .* delete the folder"):
        tu_graphs("MUTAG")


def test_a_set_that_another_process_fetches_meanwhile_is_taken_as_it_is(tmp_path, monkeypatch):
    known = tu_graphs("MUTAG")
    files = list((cache_dir("data") / "MUTAG").iterdir())
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path))

    @contextlib.contextmanager
    def wheel_while_another_is_faster(*_):
        wheel = tmp_path / "grakel.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for file in files:
                archive.write(file, f"grakel/tests/data/MUTAG/{file.name}")
        (tmp_path / "data" / "MUTAG").mkdir(parents=True)
        for file in files:
            shutil.copy(file, tmp_path / "data" / "MUTAG")
        yield wheel

    monkeypatch.setattr(graphs, "fetched_wheel", wheel_while_another_is_faster)
    assert len(tu_graphs("MUTAG")) == len(known) == 188
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["MUTAG"]
