"""Real language models as pure functions over pytrees: Llama, Mistral, Qwen 2, Qwen 3, Gemma 3, OPT, GPT-2, GPT-NeoX
and Phi; the encoder BERT for sentence embeddings; T5 and Flan-T5.

Names are resolved on first use, so that importing this package costs next to nothing.
"""

from jaxlab.lazy import lazy_names

_EXPORTS = {
    "loading": ("Model", "load", "describe", "known_models", "register_format", "Description"),
    "packages": ("DEFAULT_MODEL",),
    "config": ("LayerWidths", "ModelConfig", "RopeScaling"),
    "transformer": ("forward", "logits", "embed", "block", "layer_geometry", "INPUT_SITES", "Forward"),
    "stacking": ("stack_layers", "stack_padded", "unstack_layers"),
    "linear": ("LINEARS", "dense", "register_linear"),  # the function `linear` would hide behind its module
    "adapters": ("LoRA", "init_lora", "merge_lora", "adapters_of", "with_adapters"),
    "gathered": ("Gathered", "gather"),
    "packed": ("PackedMatrix", "pack_matrix", "with_integer_products"),
    "cache": ("Cache", "init_cache"),
    "comparison": ("Comparison", "compare"),
    "logprobs": ("hidden_logprobs", "hidden_loss", "token_kl", "token_logprobs"),
    "continuations": ("ContinuationScores", "score_continuations", "score_targets"),
    "buckets": ("length_bucket",),
    "heads": ("class_scores", "init_head", "state_values"),
    "generation": ("Generation", "generate"),
    "capture": ("second_moments",),
    "perplexity": ("Evaluation", "evaluate", "windows"),
    "sentences": ("embed_sentences", "sentence_embeddings"),
    "t5": (
        "T5Config",
        "encode",
        "encoder_context",
        "decode",
        "output_logits",
        "generate_target",
    ),
    "t5_files": ("T5Model", "load_t5", "save_t5"),
    "saving": ("save_hf", "layout_note"),
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
