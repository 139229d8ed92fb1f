"""Checkpoints as transformers writes them, in several files, of sizes that two devices can share out."""

import torch
import transformers
from jax.tree_util import keystr, tree_leaves_with_path
from toy_tokenizer import toy_tokenizer

_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_NEOX = {name: size for name, size in _LLAMA.items() if name != "num_key_value_heads"}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, _LLAMA),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, _GPT2),
    "gpt_neox": (transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM, _NEOX),
}


def write_checkpoint(path, family, dtype="float32"):
    """A random model of 96 tokens, its tensors in many files; returns it."""
    config_class, model_class, sizes = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(vocab_size=96, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size="20KB")
    toy_tokenizer(96).save_pretrained(path)
    return model


def numbers_a_device(params):
    """Numbers that each of two devices holds: half of every matrix, and all of norms, biases and positions."""
    total = 0
    for path, leaf in tree_leaves_with_path(params):
        name = keystr(path)
        total += leaf.size if any(word in name for word in ("norm", "bias", "positions")) else leaf.size // 2
    return total
