"""T5 and Flan-T5 from Hugging Face directories and back."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.files import atomic_directory
from jaxlab.models.assembly import read_leaf, read_stack
from jaxlab.models.config_fields import Fields, end_tokens
from jaxlab.models.loading import CONFIG, read_json, resolve
from jaxlab.models.safetensors_weights import WEIGHTS, StoredTensors, stored_tensors
from jaxlab.models.saving import checked_dtype, finite_array, write_config_and_tokenizer, write_safetensors
from jaxlab.models.t5 import T5Config, check_t5_params, stack_shapes, stack_top_shapes, t5_top_shapes
from jaxlab.models.tokenizers import tokenizer_from_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32_128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": None,
}
_EMBED, _HEAD = "shared.weight", "lm_head.weight"


class T5Model(NamedTuple):
    """An encoder-decoder: parameters (pytree of jax arrays), static configuration, tokenizer."""

    params: dict[str, Any]
    cfg: T5Config
    tokenizer: "PreTrainedTokenizerFast"


def load_t5(source: str | os.PathLike[str], *, dtype: Any = jnp.float32) -> T5Model:
    """A pretrained encoder-decoder.

    Args:
      source: a Hugging Face directory of `model_type` t5 with safetensors, or `hf:ORG/NAME[@REVISION]`.
      dtype: of the parameters.

    Raises:
      InputError: the directory holds something else, or a file or tensor is missing or damaged.
      ResourceError: it cannot be fetched.
    """
    directory = resolve(source)
    if not directory.is_dir():
        raise InputError(f"{directory}: is not a directory; load_t5 reads Hugging Face directories")
    cfg = t5_config_from_hf(read_json(directory / CONFIG), source=str(directory / CONFIG))
    with stored_tensors(directory) as stored:
        cfg = replace(cfg, tie_embeddings=not _has_own_head(stored, cfg))
        params = _read(stored, cfg, str(directory), dtype)
    return T5Model(params, cfg, tokenizer_from_directory(directory, vocab_size=cfg.vocab_size))


def save_t5(
    params: dict[str, Any],
    cfg: T5Config,
    tokenizer: "PreTrainedTokenizerFast",
    directory: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
) -> None:
    """Saves a model as `AutoModelForSeq2SeqLM` of transformers and `load_t5` read it.

    A directory that is already there is replaced whole, and stays as it is when anything fails.

    Args:
      params: the model; every leaf is written as the dense matrix that it stands for.
      cfg: its configuration.
      tokenizer: saved beside the weights.
      directory: where to.
      dtype: float32, bfloat16 or float16.

    Raises:
      InputError: an unsupported `dtype`, parameters that are not those of `cfg`, or one that holds NaN.
      ResourceError: the disk is full, or the directory cannot be written.
    """
    dtype = checked_dtype(dtype)
    check_t5_params(params, cfg)
    tensors: dict[str, np.ndarray] = {}
    for tensor, stack, name, layer, _ in _tensors(cfg):
        leaf = params[name] if stack is None else params[stack].get(name)
        if layer is not None and stack is not None:
            leaf = jax.tree.map(lambda x, i=layer: x[i], params[stack]["layers"][name])
        tensors[tensor] = finite_array(tensor, leaf, dtype)
    config = t5_config_to_hf(cfg) | {"dtype": dtype.name}
    with atomic_directory(directory) as temporary:
        write_config_and_tokenizer(temporary, config, tokenizer)
        write_safetensors(temporary / WEIGHTS, tensors)


def t5_config_from_hf(config: Mapping[str, Any], *, source: str) -> T5Config:
    """The model that a `config.json` describes.

    Args:
      config: contents of `config.json`.
      source: name of the file, for error messages.

    Raises:
      InputError: another `model_type`, or a field missing, of the wrong type or not supported.
    """
    if config.get("model_type") != "t5":
        raise InputError(
            f"{source}: model_type is {config.get('model_type')!r}; load_t5 reads t5, load the others"
        )
    values = Fields({**_DEFAULTS, **config}, source)
    gate, _, activation = str(values["feed_forward_proj"]).rpartition("-")
    if gate not in ("", "gated"):
        raise InputError(
            f"{source}: feed_forward_proj is {values['feed_forward_proj']!r}; expected gated-ACTIVATION"
        )
    if gate and activation == "gelu":
        activation = "gelu_new"  # what transformers takes "gated-gelu" for
    values["feed_forward_proj"] = activation
    layers, pad = values.size("num_layers"), values["pad_token_id"]
    start = values["decoder_start_token_id"]
    return T5Config(
        vocab_size=values.size("vocab_size"),
        hidden_size=values.size("d_model"),
        num_layers=layers,
        num_decoder_layers=values.size("num_decoder_layers", layers),
        num_heads=values.size("num_heads"),
        head_dim=values.size("d_kv"),
        mlp_size=values.size("d_ff"),
        buckets=values.size("relative_attention_num_buckets"),
        max_distance=values.size("relative_attention_max_distance"),
        norm_eps=values.number("layer_norm_epsilon"),
        gated_mlp=bool(gate),
        activation=values.choice("feed_forward_proj", _ACTIVATIONS),
        tie_embeddings=bool(values["tie_word_embeddings"]),
        scale_outputs=bool(config.get("scale_decoder_outputs", values["tie_word_embeddings"])),
        start_id=pad if start is None else start,
        eos_ids=end_tokens(values["eos_token_id"], None),
        pad_id=pad,
    )


def t5_config_to_hf(cfg: T5Config) -> dict[str, Any]:
    """Contents of the `config.json` that describes `cfg`.

    Raises:
      InputError: transformers cannot express it: for it an untied head and unscaled outputs are one, and "gated-gelu"
        means the approximation by tanh.
    """
    activation = next(hf for hf, ours in _ACTIVATIONS.items() if ours == cfg.activation)
    if cfg.gated_mlp and cfg.activation == "gelu":
        raise InputError("cfg.activation is 'gelu' in a gated MLP, which T5 of transformers cannot express")
    if not cfg.tie_embeddings and cfg.scale_outputs:
        raise InputError(
            "cfg.scale_outputs is True without tied embeddings, which T5 of transformers cannot express"
        )
    if cfg.gated_mlp and cfg.activation == "gelu_tanh":
        activation = "gelu"
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab_size,
        "d_model": cfg.hidden_size,
        "d_kv": cfg.head_dim,
        "d_ff": cfg.mlp_size,
        "num_layers": cfg.num_layers,
        "num_decoder_layers": cfg.num_decoder_layers,
        "num_heads": cfg.num_heads,
        "relative_attention_num_buckets": cfg.buckets,
        "relative_attention_max_distance": cfg.max_distance,
        "layer_norm_epsilon": cfg.norm_eps,
        "feed_forward_proj": f"gated-{activation}" if cfg.gated_mlp else activation,
        # transformers reads from this whether outputs are scaled; whether the head is tied it sees in the weights.
        "tie_word_embeddings": cfg.scale_outputs,
        "scale_decoder_outputs": cfg.scale_outputs,
        "decoder_start_token_id": cfg.start_id,
        "bos_token_id": None,
        "eos_token_id": cfg.eos_ids[0] if len(cfg.eos_ids) == 1 else list(cfg.eos_ids) or None,
        "pad_token_id": cfg.pad_id,
    }


def _tensors(cfg: T5Config) -> Iterator[tuple[str, str | None, str, int | None, tuple[int, ...]]]:
    """Every tensor of a checkpoint: its name there, and stack, name, layer and shape of the leaf that it holds."""
    for name, shape in t5_top_shapes(cfg).items():
        yield {"embed": _EMBED, "head": _HEAD}[name], None, name, None, shape
    for stack, layers in (("encoder", cfg.num_layers), ("decoder", cfg.num_decoder_layers)):
        for name, shape in stack_top_shapes(cfg).items():
            yield _name(cfg, stack, name, None), stack, name, None, shape
        for name, shape in stack_shapes(cfg, stack).items():
            for layer in range(layers):
                yield _name(cfg, stack, name, layer), stack, name, layer, shape


def _name(cfg: T5Config, stack: str, name: str, layer: int | None) -> str:
    """What a leaf of a stack is called."""
    if layer is None:
        top = {
            "final_norm": "final_layer_norm.weight",
            "position_bias": "block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        }
        return f"{stack}.{top[name]}"
    mlp = 1 if stack == "encoder" else 2
    gated = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if cfg.gated_mlp else {"up": "wi", "down": "wo"}
    modules = {name: f"0.SelfAttention.{name}" for name in ("q", "k", "v", "o")}
    modules |= {f"cross_{name}": f"1.EncDecAttention.{name}" for name in ("q", "k", "v", "o")}
    modules |= {ours: f"{mlp}.DenseReluDense.{theirs}" for ours, theirs in gated.items()}
    modules |= {
        "attn_norm": "0.layer_norm",
        "cross_norm": "1.layer_norm",
        "mlp_norm": f"{mlp}.layer_norm",
    }
    return f"{stack}.block.{layer}.layer.{modules[name]}.weight"


def _has_own_head(stored: StoredTensors, cfg: T5Config) -> bool:
    """Whether the file holds a head that is not the embedding; `tie_word_embeddings` does not always say so."""
    if not cfg.tie_embeddings:
        return True
    if _HEAD not in stored:
        return False
    shape = (cfg.vocab_size, cfg.hidden_size)
    return not np.array_equal(stored.get(_HEAD, shape), stored.get(_EMBED, shape))


def _read(stored: StoredTensors, cfg: T5Config, source: str, dtype: Any) -> dict[str, Any]:
    names = {(stack, name, layer): tensor for tensor, stack, name, layer, _ in _tensors(cfg)}

    def reader(stack: str | None) -> Any:
        def read(name: str, layer: int | None, out: np.ndarray) -> str:
            tensor = names[stack, name, layer]
            out[...] = stored.get(tensor, out.shape)
            return tensor

        return read

    params: dict[str, Any] = {
        name: read_leaf(reader(None), name, None, shape, source=source, dtype=dtype)
        for name, shape in t5_top_shapes(cfg).items()
    }
    for stack, layers in (("encoder", cfg.num_layers), ("decoder", cfg.num_decoder_layers)):
        read = reader(stack)
        params[stack] = {
            name: read_leaf(read, name, None, shape, source=source, dtype=dtype)
            for name, shape in stack_top_shapes(cfg).items()
        }
        params[stack]["layers"] = {
            name: read_stack(read, name, (layers, *shape), source=source, dtype=dtype)
            for name, shape in stack_shapes(cfg, stack).items()
        }
    return params
