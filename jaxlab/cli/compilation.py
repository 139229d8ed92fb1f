"""Compiled programs kept between calls of the command line."""

import hashlib
import os
import platform
from pathlib import Path

from jaxlab.files import cache_dir

_SHORTEST_KEPT_S = 0.3


def keep_compiled_programs() -> None:
    """Lets jax keep what it compiles in the cache directory, so that a command starts faster the next time.

    `JAX_COMPILATION_CACHE_DIR` has precedence. Programs for one processor may not run on another, so that
    machines that share a home directory do not share them.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_dir("xla", _processor())))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_KEPT_S)


def _processor() -> str:
    """A name for this kind of processor: its architecture and a digest of its features."""
    cpuinfo = Path("/proc/cpuinfo")
    features = platform.processor()
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), features)
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
