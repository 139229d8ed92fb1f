"""What `test_sharding.py` runs in a process with 8 virtual CPU devices: prints which results agree, as JSON."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from toy_model import specs, toy, toy_tokens

from jaxlab.files import cache_dir
from jaxlab.parallel import make_mesh, shard_rows
from jaxlab.quantization import PVQSpec, ScalarSpec, Scheme, quantize_layers, quantize_scalar
from jaxlab.quantization.pvq import feedback_factor, quantize_prepared
from jaxlab.quantization.rotation import random_signs

ROWS, COLUMNS, BLOCK = 19, 64, 4  # 19 rows: the last block and the last devices get copies


def same_bytes(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def main():
    jax.config.update("jax_compilation_cache_dir", str(cache_dir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    mesh = make_mesh({"data": 8})
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((ROWS, COLUMNS)), jnp.float32)
    x = rng.standard_normal((256, COLUMNS)) @ rng.standard_normal((COLUMNS, COLUMNS))
    signs = random_signs(jax.random.key(0), COLUMNS)
    factor = feedback_factor(jnp.asarray(x.T @ x / 256, jnp.float32), signs, damping=0.01)

    def pyramid(row_map):
        return quantize_prepared(w, signs, factor, spec=PVQSpec(8, 6, 2), refit=True, row_map=row_map)

    def scalar(row_map):
        return quantize_scalar(w, signs, factor, spec=ScalarSpec(3, 16), row_map=row_map)

    def model(row_map):
        params, cfg = toy()
        scheme = Scheme(specs(ScalarSpec(3, 16), v=ScalarSpec(4, 8, "midrise")), correction=0.5)
        layers = quantize_layers(
            params, cfg, scheme, jax.random.key(1), tokens=jnp.asarray(toy_tokens()), row_map=row_map
        )
        return [layer.tensors for layer in layers]

    agree = {"devices": len(jax.devices())}
    for name, run in {"pyramid": pyramid, "scalar": scalar, "model": model}.items():
        alone, spread = (
            run(functools.cache(lambda f, m=m: shard_rows(f, m, block=BLOCK))) for m in (None, mesh)
        )
        agree[name] = same_bytes(alone, spread)
    print(json.dumps(agree))


if __name__ == "__main__":
    main()
