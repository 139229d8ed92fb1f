"""Lattice quantization of language models: Pyramid Vector Quantization, with RTN and GPTQ beside it.

Reference: arXiv:2410.16926. Names are resolved on first use, so that importing this package costs next to nothing.
"""

from jaxlab.lazy import lazy_names

_EXPORTS = {
    "jaxlab.kernels.pyramid_index": ("count", "rank", "rank_tables", "unrank"),
    "jaxlab.kernels.pyramid_search": ("search",),
    "jaxlab.quantization.spec": ("PVQSpec",),
    "jaxlab.quantization.pvq": ("PVQTensor", "block_feedback", "dequantize", "matmul", "quantize"),
    "jaxlab.quantization.gains": ("gain_levels",),
    "jaxlab.quantization.rotation": ("rotate", "unrotate", "fold_rotation"),
    "jaxlab.quantization.scalar": ("ScalarSpec", "ScalarTensor", "dequantize_scalar", "quantize_scalar"),
    "jaxlab.quantization.planner": ("candidates", "nearest_scalar_codes", "plan"),
    "jaxlab.quantization.parts": ("Part", "find_parts"),
    "jaxlab.quantization.sensitivity": ("Sensitivity", "matrix_costs", "token_weights"),
    "jaxlab.quantization.model": ("Scheme", "quantize_layers"),
    "jaxlab.quantization.expansion": ("expand", "expand_params"),
    "jaxlab.quantization.format": ("bits_on_disk", "load_quantized", "save_quantized"),
    "jaxlab.quantization.exact_search": ("search_exact",),
    "jaxlab.quantization.run_formats": ("Rotated", "run_format"),
    "jaxlab.quantization.cache_codes": ("CacheCode", "mean_keys"),
    "jaxlab.quantization.pvq_inputs": ("InputSpec", "quantize_inputs", "with_coded_inputs"),
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
