"""IDX files, Debian packages, and the real Fashion-MNIST."""

import gzip
import io
import os
import shutil
import tarfile

import numpy as np
import pytest

from jaxlab.data import FASHION_CLASSES, fashion_mnist, read_idx
from jaxlab.data import images as module
from jaxlab.errors import InputError, ResourceError

NAMES = tuple(module._SHA256)


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, size in (("train", 5), ("t10k", 3)):
        pixels, classes = rng.integers(0, 256, (size, 4, 6), np.uint8), rng.integers(0, 10, size, np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(classes)))
    return tmp_path


def deb(files, *, compression="xz"):
    """A package as deb(5) describes it."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode=f"w:{compression}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./usr/share/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    out = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{compression}", held.getvalue()),
    ):
        out += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    return out


def test_a_folder_of_idx_files_is_read(folder):
    train, test = fashion_mnist(folder)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(train.pixels, rng.integers(0, 256, (5, 4, 6), np.uint8))
    np.testing.assert_array_equal(train.classes, rng.integers(0, 10, 5, np.uint8))
    assert test.pixels.shape == (3, 4, 6) and test.classes.dtype == np.int32


def test_plain_files_are_read_too(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "x").write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "x"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file of unsigned bytes"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "is not an IDX file of unsigned bytes"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"has 17 bytes; for shape \(2, 3\) it must have 18"),
        (gzip.compress(idx(np.zeros((2, 3), np.uint8)))[:-9], "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(InputError, match=f"broken: {message}"):
        read_idx(tmp_path / "broken")


def test_missing_files_and_labels_that_do_not_fit_are_named(folder):
    (folder / NAMES[1]).write_bytes(gzip.compress(idx(np.zeros(4, np.uint8))))
    with pytest.raises(InputError, match=r"train has images \(5, 4, 6\) and labels \(4,\)"):
        fashion_mnist(folder)
    (folder / NAMES[1]).unlink()
    with pytest.raises(InputError, match=f"{NAMES[1]}: there is no such file; install the Debian package"):
        fashion_mnist(folder)


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_files_of_a_debian_package_are_taken_out(tmp_path, compression):
    (tmp_path / "some.deb").write_bytes(deb({"a/one": b"first", "two": b"second!"}, compression=compression))
    out = tmp_path / "out"
    out.mkdir()
    module.unpack_deb(tmp_path / "some.deb", out, ("one", "two"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"one": b"first", "two": b"second!"}
    with pytest.raises(ResourceError, match="holds no three"):
        module.unpack_deb(tmp_path / "some.deb", out, ("one", "three"))


def test_damaged_packages_are_named(tmp_path):
    whole = deb({"one": bytes(5000)}, compression="gz")
    for cut in (len(whole) - 30, 3):
        (tmp_path / "some.deb").write_bytes(whole[:cut])
        with pytest.raises(ResourceError, match=r"some\.deb"):
            module.unpack_deb(tmp_path / "some.deb", tmp_path, ("one",))


def test_without_package_and_apt_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_INSTALLED", tmp_path / "nowhere")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist()


def test_a_package_that_cannot_be_fetched_leaves_nothing_behind(monkeypatch, tmp_path):
    failing = tmp_path / "apt-get"
    failing.write_text("#!/bin/sh\nexit 100\n")
    failing.chmod(0o755)
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(module, "_INSTALLED", tmp_path / "nowhere")
    with pytest.raises(ResourceError, match="exit status 100"):
        fashion_mnist()
    assert not list((tmp_path / "cache").rglob("*fashion*"))


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="comes as a Debian package")
def test_the_real_images_are_the_published_ones(monkeypatch):
    train, test = fashion_mnist()
    assert train.pixels.shape == (60_000, 28, 28) and test.pixels.shape == (10_000, 28, 28)
    assert (np.bincount(train.classes) == 6000).all() and (np.bincount(test.classes) == 1000).all()
    # The mean and deviation that normalise it everywhere.
    scaled = train.pixels.reshape(-1) / 255
    assert scaled.mean() == pytest.approx(0.2860, abs=5e-5) and scaled.std() == pytest.approx(
        0.3530, abs=5e-5
    )
    assert len(FASHION_CLASSES) == 10 and FASHION_CLASSES[train.classes[0]] == "ankle boot"


def test_a_damaged_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_INSTALLED", tmp_path / "nowhere")
    (tmp_path / "data" / "fashion-mnist").mkdir(parents=True)
    with pytest.raises(ResourceError, match="wrong sha256, expected b0564c.*delete the folder"):
        fashion_mnist()
