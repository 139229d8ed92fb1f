"""Lowering Pallas kernels for accelerators that are not there."""

import contextlib

import jax
import jax.export
from jax.sharding import AbstractDevice, AbstractMesh

_TRITON = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
_GPU = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"))


def holds_kernel(function, *shapes, platform):
    """Whether the program for `platform` ("tpu" or "cuda") calls a compiled Pallas kernel."""
    # jax 0.12 asks for a GPU to compile Triton kernels for; one by name will do.
    here = jax.sharding.use_abstract_mesh(_GPU) if platform == "cuda" else contextlib.nullcontext()
    with here:
        exported = jax.export.export(jax.jit(function), platforms=[platform], disabled_checks=[_TRITON])
        text = exported(*shapes).mlir_module()
    return {"tpu": "tpu_custom_call", "cuda": "xla.gpu.triton"}[platform] in text
