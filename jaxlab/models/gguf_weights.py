"""From an opened GGUF file to a model: configuration and parameters in the conventions of Hugging Face.

GGUF differs in two places. For the architecture "llama" the converter reorders the rows of q and k, so that
the two coordinates of a rotary pair are neighbours. For Gemma 3 it adds one to the weights of every norm.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.models.assembly import assemble_params, read_leaf, read_stack
from jaxlab.models.config import ModelConfig, RopeScaling
from jaxlab.models.gguf import GGUFFile
from jaxlab.models.linear import LINEARS
from jaxlab.models.packed import PACKED_KINDS, PackedMatrix, pack_blocks
from jaxlab.models.tokenizers import adds_bos
from jaxlab.models.validation import layer_shapes, top_shapes

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")

_TENSORS = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_bias": "attn_output.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "gate_bias": "ffn_gate.bias",
    "up_bias": "ffn_up.bias",
    "down_bias": "ffn_down.bias",
    "post_mlp_norm": "post_ffw_norm.weight",
}

# Implied by the architecture, not written in the file.
_GEMMA3_LOCAL_THETA = 10_000.0
_GEMMA3_GLOBAL_EVERY = 6
_GEMMA3_27B_LAYERS = 62  # the one size whose scores are scaled by hidden_size / num_heads


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The model's configuration.

    Raises:
      InputError: the architecture is not supported, or metadata is missing.
    """
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{file.path}: architecture {architecture!r} is not supported;"
            f" supported are {', '.join(ARCHITECTURES)}"
        )
    experts = metadata.get(f"{architecture}.expert_count", 0)
    if experts:
        raise InputError(
            f"{file.path}: a mixture of {experts} experts is not supported, only dense models are"
        )

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise InputError(f"{file.path}: metadata {architecture}.{key} is missing")
        return value

    def token(name: str) -> int | None:
        return metadata.get(f"tokenizer.ggml.{name}_token_id")

    hidden, heads, layers = get("embedding_length"), get("attention.head_count"), get("block_count")
    head_dim = get("attention.key_length", hidden // heads)
    ends = (token("eos"), token("eot"), token("eom"))

    def has(name: str) -> bool:
        return f"blk.0.{_TENSORS[name]}" in file.tensors

    common = ModelConfig(
        family=architecture,
        vocab_size=_embedding_rows(file),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_size=get("feed_forward_length"),
        max_positions=get("context_length"),
        norm_eps=_shortest(get("attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(get("rope.freq_base", 10_000.0)),
        rope_scaling=_rope_scaling(file, architecture, head_dim),
        qk_norm=has("q_norm"),
        qkv_bias=has("q_bias"),
        o_bias=has("o_bias"),
        mlp_bias=has("gate_bias"),
        tie_embeddings=_TENSORS["head"] not in file.tensors,
        bos_id=token("bos"),
        eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        pad_id=token("padding"),
        add_bos=adds_bos(metadata),
    )
    if architecture != "gemma3":
        return common
    return dataclasses.replace(common, **_gemma3(get("attention.sliding_window"), hidden, heads, layers))


def _gemma3(window: int, hidden: int, heads: int, layers: int) -> dict[str, Any]:
    return {
        "norm_offset": 1.0,
        "sandwich_norms": True,
        "activation": "gelu_tanh",
        "attention_scale": (hidden // heads) ** -0.5 if layers == _GEMMA3_27B_LAYERS else None,
        "embed_scale": hidden**0.5,
        "rope_theta_local": _GEMMA3_LOCAL_THETA,
        "layer_windows": tuple(
            None if (layer + 1) % _GEMMA3_GLOBAL_EVERY == 0 else window for layer in range(layers)
        ),
    }


def params_from_gguf(
    file: GGUFFile, cfg: ModelConfig, *, dtype: Any = jnp.float32, packed: bool = False
) -> dict[str, Any]:
    """The model's parameters in the stacked layout.

    Args:
      file: from `read_gguf`.
      cfg: from `config_from_gguf`.
      dtype: of what is dequantized.
      packed: keep matrices as they are stored (`PackedMatrix`) where that is one of `PACKED_KINDS`, the same in all
        layers; otherwise all are dequantized.

    Raises:
      InputError: a tensor is missing, has another shape than `cfg` says, or holds NaN.
    """
    permuted = {}
    if cfg.family == "llama":
        permuted = {
            "q": cfg.num_heads,
            "q_bias": cfg.num_heads,
            "k": cfg.num_kv_heads,
            "k_bias": cfg.num_kv_heads,
        }

    def read(name: str, layer: int | None, out: np.ndarray) -> str:
        tensor = _tensor(name, layer)
        file.tensor(tensor, out)
        if name in permuted:
            out[:] = _undo_rotary_order(out, permuted[name])
        elif cfg.family == "gemma3" and name.endswith("norm"):
            out -= 1.0
        return tensor

    source = str(file.path)
    if not packed:
        return assemble_params(cfg, read, source=source, dtype=dtype)

    def top(name: str, shape: tuple[int, ...]) -> Any:
        if name in ("embed", "head") and (kind := _common_kind(file, name, [None])):
            return _packed(file, name, [None], shape, kind)
        return read_leaf(read, name, None, shape, source=source, dtype=dtype)

    def stack(name: str, shape: tuple[int, ...]) -> Any:
        layers = list(range(cfg.num_layers))
        if name in LINEARS and (kind := _common_kind(file, name, layers)):
            return _packed(file, name, layers, shape, kind, permuted.get(name))
        return read_stack(read, name, (cfg.num_layers, *shape), source=source, dtype=dtype)

    return {name: top(name, shape) for name, shape in top_shapes(cfg).items()} | {
        "layers": {name: stack(name, shape) for name, shape in layer_shapes(cfg).items()}
    }


def _tensor(name: str, layer: int | None) -> str:
    return _TENSORS[name] if layer is None else f"blk.{layer}.{_TENSORS[name]}"


def _common_kind(file: GGUFFile, name: str, layers: Sequence[int | None]) -> str | None:
    """The format of a matrix in all layers, where it can be kept."""
    infos = [file.tensors.get(_tensor(name, layer)) for layer in layers]
    kinds = {None if info is None else info.kind for info in infos}
    kind = kinds.pop()
    return kind if not kinds and kind in PACKED_KINDS else None


def _packed(
    file: GGUFFile,
    name: str,
    layers: Sequence[int | None],
    shape: tuple[int, ...],
    kind: str,
    permuted_heads: int | None = None,
) -> PackedMatrix:
    """A matrix of all layers, or (`layers` is [None]) one outside of them, as it is stored."""
    parts = []
    for layer in layers:
        tensor = _tensor(name, layer)
        if file.tensors[tensor].shape != shape:
            raise InputError(
                f"{file.path}: tensor {tensor!r} has shape {list(file.tensors[tensor].shape)}, expected {list(shape)}"
            )
        blocks = file.blocks(tensor)
        parts.append(blocks if permuted_heads is None else _undo_rotary_order(blocks, permuted_heads))
    try:
        return pack_blocks(np.stack(parts) if layers != [None] else parts[0], kind)
    except InputError as error:
        raise InputError(f"{file.path}: {name!r}: {error}") from error


def _undo_rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs (0, h, 1, h + 1, ...) back to halves (0, 1, ..., h, h + 1, ...)."""
    pairs = weight.reshape(heads, len(weight) // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _embedding_rows(file: GGUFFile) -> int:
    info = file.tensors.get(_TENSORS["embed"])
    if info is None:
        raise InputError(f"{file.path}: tensor {_TENSORS['embed']!r} is missing")
    return info.shape[0]


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5, where the file's float32 reads 9.99999975e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GGUFFile, architecture: str, head_dim: int) -> RopeScaling | None:
    kind = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling("linear", _shortest(file.metadata[f"{architecture}.rope.scaling.factor"]))
    if kind != "none":
        raise InputError(f"{file.path}: rope scaling {kind!r} is not supported; supported are linear, llama3")
    if "rope_freqs.weight" not in file.tensors:
        return None
    return _llama3_scaling(file, architecture, head_dim)


def _llama3_scaling(file: GGUFFile, architecture: str, head_dim: int) -> RopeScaling | None:
    """Llama 3's stretch, of which the file keeps only the divisor of each rotary frequency.

    All published Llama 3 models share the passage from 8192 / 1 to 8192 / 4; only the factor differs, and it
    is the largest divisor. That the formula then gives the file's divisors is checked.
    """
    divisors = file.tensor("rope_freqs.weight")
    if (divisors == 1.0).all():
        return None
    scaling = RopeScaling("llama3", float(divisors.max()), 1.0, 4.0, 8192)
    theta = file.metadata[f"{architecture}.rope.freq_base"]
    turns = scaling.original_max_positions * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    keep = np.clip(
        (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1
    )
    if not np.allclose(1 / (keep + (1 - keep) / scaling.factor), divisors, rtol=1e-4):
        raise InputError(
            f"{file.path}: rope_freqs.weight is not the rope scaling of Llama 3, the only one supported"
        )
    return scaling
