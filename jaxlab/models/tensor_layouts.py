"""How the families of Hugging Face name and lay out the tensors of a checkpoint, and the way between them and leaves.

GPT-2 stores matrices as `[in, out]`. GPT-2 and GPT-NeoX keep q, k and v in one tensor, one after the other or head
by head.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlab.models.config import ModelConfig

Fused = Literal["blocks", "heads"]
Part = tuple[tuple[int, int], ...]
_QKV = ("q", "k", "v")


class Layout(NamedTuple):
    """Names of the tensors of a family."""

    top: dict[str, str]
    """Tensors outside of the layers, by leaf."""
    layer: dict[str, str]
    """Tensors of a layer, by leaf."""
    prefix: str = "model."
    """In front of every name but that of the head."""
    layers: str = "layers"
    """What the number of a layer follows."""
    head: tuple[str, ...] = ("lm_head",)
    """What the head is called, the first in files that we write."""
    transposed: bool = False
    """Matrices of the layers are stored as [in, out]."""
    fused: Fused | None = None
    """q, k and v are one tensor."""


def _affine(**modules: str) -> dict[str, str]:
    """Weights and biases of modules."""
    weights = {leaf: f"{module}.weight" for leaf, module in modules.items()}
    return weights | {f"{leaf}_bias": f"{module}.bias" for leaf, module in modules.items()}


_LLAMA = Layout(
    top={"embed": "embed_tokens.weight", "final_norm": "norm.weight"},
    layer=_affine(
        attn_norm="input_layernorm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.o_proj",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        mlp_norm="post_attention_layernorm",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
    ),
)
_SANDWICH = {
    "post_attn_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}
_LAYOUTS = {
    "opt": Layout(
        prefix="model.decoder.",
        top={
            "embed": "embed_tokens.weight",
            "positions": "embed_positions.weight",
            **_affine(project_in="project_in", project_out="project_out", final_norm="final_layer_norm"),
        },
        layer=_affine(
            attn_norm="self_attn_layer_norm",
            q="self_attn.q_proj",
            k="self_attn.k_proj",
            v="self_attn.v_proj",
            o="self_attn.out_proj",
            mlp_norm="final_layer_norm",
            up="fc1",
            down="fc2",
        ),
    ),
    "gpt2": Layout(
        prefix="transformer.",
        layers="h",
        top={"embed": "wte.weight", "positions": "wpe.weight", **_affine(final_norm="ln_f")},
        layer=_affine(
            **dict.fromkeys(_QKV, "attn.c_attn"),
            attn_norm="ln_1",
            o="attn.c_proj",
            mlp_norm="ln_2",
            up="mlp.c_fc",
            down="mlp.c_proj",
        ),
        transposed=True,
        fused="blocks",
    ),
    "gpt_neox": Layout(
        prefix="gpt_neox.",
        top={"embed": "embed_in.weight", **_affine(final_norm="final_layer_norm")},
        layer=_affine(
            **dict.fromkeys(_QKV, "attention.query_key_value"),
            attn_norm="input_layernorm",
            o="attention.dense",
            mlp_norm="post_attention_layernorm",
            up="mlp.dense_h_to_4h",
            down="mlp.dense_4h_to_h",
        ),
        head=("embed_out", "lm_head"),
        fused="heads",
    ),
    "phi": Layout(
        top={"embed": "embed_tokens.weight", **_affine(final_norm="final_layernorm")},
        layer=_affine(
            attn_norm="input_layernorm",
            q="self_attn.q_proj",
            k="self_attn.k_proj",
            v="self_attn.v_proj",
            o="self_attn.dense",
            up="mlp.fc1",
            down="mlp.fc2",
        ),
    ),
    "bert": Layout(
        prefix="",
        layers="encoder.layer",
        top={
            "embed": "embeddings.word_embeddings.weight",
            "positions": "embeddings.position_embeddings.weight",
            "token_types": "embeddings.token_type_embeddings.weight",
            **_affine(embed_norm="embeddings.LayerNorm"),
        },
        layer=_affine(
            q="attention.self.query",
            k="attention.self.key",
            v="attention.self.value",
            o="attention.output.dense",
            attn_norm="attention.output.LayerNorm",
            up="intermediate.dense",
            down="output.dense",
            mlp_norm="output.LayerNorm",
        ),
    ),
}


def layout_of(cfg: ModelConfig) -> Layout:
    """The layout of the model's family."""
    layout = _LAYOUTS.get(cfg.family, _LLAMA)
    return layout._replace(layer=layout.layer | _SANDWICH) if cfg.sandwich_norms else layout


def tensor_name(cfg: ModelConfig, name: str, layer: int | None, *, prefix: str | None = None) -> str:
    """What the leaf `name` (of layer `layer`, or None) is called in a Hugging Face checkpoint.

    Args:
      cfg: the model.
      name: of the leaf.
      layer: its number.
      prefix: what stands before the names in this file; None is what transformers writes.
    """
    return tensor_names(cfg, name, layer, prefix=prefix)[0]


def tensor_names(cfg: ModelConfig, name: str, layer: int | None, *, prefix: str | None = None) -> list[str]:
    """All that the leaf may be called; arguments as for `tensor_name`, whose answer comes first."""
    layout = layout_of(cfg)
    prefix = layout.prefix if prefix is None else prefix
    if layer is not None:
        return [f"{prefix}{layout.layers}.{layer}.{layout.layer[name]}"]
    if name in ("head", "head_bias"):
        # Beside the model, not inside: "model." -> "", "language_model.model." -> "language_model.".
        ending = "weight" if name == "head" else "bias"
        return [f"{prefix.removesuffix(layout.prefix)}{head}.{ending}" for head in layout.head]
    return [prefix + layout.top[name]]


def stored_shape(cfg: ModelConfig, name: str, layer: int | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor that holds a leaf of the given shape."""
    layout = layout_of(cfg)
    if layer is None:
        return shape
    if layout.fused and _part(name) is not None:
        shape = (3 * shape[0], *shape[1:])
    return shape[::-1] if layout.transposed else shape


def take_leaf(cfg: ModelConfig, name: str, layer: int | None, tensor: np.ndarray) -> np.ndarray:
    """The leaf `name` out of the tensor that holds it."""
    layout, shape = layout_of(cfg), tensor.shape
    if layer is not None:
        shape = shape[::-1] if layout.transposed else shape
        if layout.fused and _part(name) is not None:
            shape = (shape[0] // 3, *shape[1:])
    everything = tuple((0, size) for size in shape)
    return take_part(cfg, name, layer, shape, everything, tensor.__getitem__)


def take_part(
    cfg: ModelConfig,
    name: str,
    layer: int | None,
    shape: tuple[int, ...],
    part: Part,
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> np.ndarray:
    """Part of a leaf, of whose tensor nothing else is read.

    Args:
      cfg: the model.
      name: of the leaf.
      layer: its number, or None.
      shape: of the whole leaf.
      part: first entry, and the one after the last, along each axis of the leaf.
      read: gives a part of the tensor that holds the leaf, in the tensor's own axes.
    """
    layout, third = layout_of(cfg), _part(name)
    (first, last), others = part[0], tuple(slice(*ends) for ends in part[1:])
    if layer is None:
        return read((slice(first, last), *others))
    ranges = [(first, last)]
    if third is not None and layout.fused == "blocks":
        ranges = [(third * shape[0] + first, third * shape[0] + last)]
    elif third is not None and layout.fused == "heads":
        dim = cfg.head_dim
        ranges = []
        for head in range(first // dim, -(-last // dim)):
            # Row r of head h is row (3 h + third) dim + r - h dim of the tensor.
            shift = (2 * head + third) * dim
            ranges.append((max(first, head * dim) + shift, min(last, (head + 1) * dim) + shift))
    pieces = [
        read((*others[::-1], slice(*ends))).T if layout.transposed else read((slice(*ends), *others))
        for ends in ranges
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def make_tensor(cfg: ModelConfig, name: str, layer: int | None, leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor that holds the leaf `name`, or where q, k and v are one tensor all three in this order."""
    layout = layout_of(cfg)
    if layer is None:
        return leaves[0]
    matrix: Any = leaves[0]
    if len(leaves) == 3 and layout.fused == "blocks":
        matrix = np.concatenate(leaves)
    elif len(leaves) == 3:
        heads = [leaf.reshape(-1, 1, cfg.head_dim, *leaf.shape[1:]) for leaf in leaves]
        matrix = np.concatenate(heads, axis=1).reshape(-1, *leaves[0].shape[1:])
    return np.ascontiguousarray(matrix.T if layout.transposed else matrix)


def _part(name: str) -> int | None:
    """Which third of a fused tensor a leaf is."""
    stem = name.removesuffix("_bias")
    return _QKV.index(stem) if stem in _QKV else None
