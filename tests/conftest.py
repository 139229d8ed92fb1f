"""Shared by all tests: the compilation cache, and the real model that many of them look at."""

import os

import hypothesis
import jax
import pytest

from jaxlab.files import cache_dir

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does
# The same examples on every run, so that a failure is the change's and can be repeated.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")
jax.config.update("jax_compilation_cache_dir", str(cache_dir("xla")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_configure(config):
    """The fast tests wait for compilers more than for results: LLVM, not XLA, leaves its optimisations out."""
    if config.option.markexpr == "not slow":
        quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go():
    """Each program of XLA's CPU backend holds memory maps, of which a process may have only some 65,000."""
    yield
    jax.clear_caches()


@pytest.fixture
def double_precision():
    """float64 within a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct as `(params, cfg, tokenizer)`: fetched once, kept in the user's cache."""
    from jaxlab.models import load

    return load("pkg:smollm2")
