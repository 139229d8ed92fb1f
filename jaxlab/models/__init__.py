"""Real language models as pure functions over pytrees: Llama, Mistral, Qwen 2, Qwen 3 and Gemma 3.

Names are resolved on first use, so that importing this package costs next to nothing.
"""

import importlib
from typing import Any

_EXPORTS = {
    "loading": ("Model", "load", "describe", "known_models", "register_format", "Description"),
    "packages": ("DEFAULT_MODEL",),
    "config": ("LayerWidths", "ModelConfig", "RopeScaling"),
    "transformer": ("forward", "logits", "embed", "block", "layer_geometry", "INPUT_SITES", "Forward"),
    "stacking": ("stack_layers", "unstack_layers"),
    "linear": ("LINEARS", "dense", "register_linear"),  # the function `linear` would hide behind its module
    "adapters": ("LoRA", "init_lora", "merge_lora", "adapters_of", "with_adapters"),
    "gathered": ("Gathered", "gather"),
    "cache": ("Cache", "init_cache"),
    "comparison": ("Comparison", "compare"),
    "logprobs": ("token_kl", "token_logprobs"),
    "generation": ("Generation", "generate"),
    "capture": ("second_moments",),
    "perplexity": ("Evaluation", "evaluate", "windows"),
    "saving": ("save_hf", "layout_note"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
