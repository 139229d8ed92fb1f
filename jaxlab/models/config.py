"""Static description of a decoder-only language model: all that shapes its forward pass but the weights."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxlab.errors import InputError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
ACTIVATIONS = ("silu", "gelu_tanh")
ROPE_SCALINGS = ("llama3", "linear")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to contexts longer than those seen in pretraining.

    Attributes:
        kind: "linear" divides every frequency by `factor`; "llama3" divides only the low ones, with a smooth
            passage between the two wavelength bounds.
        factor: stretch, > 0.
        low_freq_factor: wavelengths above original_max_positions / low_freq_factor are stretched in full.
        high_freq_factor: wavelengths below original_max_positions / high_freq_factor are kept.
        original_max_positions: context length of pretraining (llama3).

    Raises:
        InputError: unknown kind, or a factor out of range.
    """

    kind: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ROPE_SCALINGS:
            raise InputError(f"RopeScaling.kind is {self.kind!r}; supported are {', '.join(ROPE_SCALINGS)}")
        if self.factor <= 0:
            raise InputError(f"RopeScaling.factor is {self.factor}; it must be positive")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                f"RopeScaling needs 0 < low_freq_factor < high_freq_factor, got {self.low_freq_factor} and "
                f"{self.high_freq_factor}"
            )


class LayerWidths(NamedTuple):
    """What is left inside one layer of a model whose whole hidden units or key-value groups were removed."""

    mlp_size: int
    """Hidden units of the gated MLP, 0 to `ModelConfig.mlp_size`."""
    num_kv_heads: int
    """Key and value heads, 0 to `ModelConfig.num_kv_heads`, each with as many query heads as in the model."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and flags of a Llama, Mistral, Qwen2, Qwen3 or Gemma 3 decoder; hashable, static under jit.

    Attributes:
        family: "llama", "mistral", "qwen2", "qwen3" or "gemma3".
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides `num_heads`.
        head_dim: width of a head, even; need not be hidden_size / num_heads.
        mlp_size: width of the gated MLP.
        max_positions: longest sequence.
        norm_eps: added to the mean square in every RMSNorm.
        norm_offset: RMSNorm multiplies by norm_offset + w (Gemma: 1); parameters hold the w of Hugging Face.
        sandwich_norms: normalise each branch's output too, before the residual add (Gemma).
        qk_norm: RMSNorm of every query and key head before the rotation (Qwen3, Gemma 3).
        qkv_bias: biases on q, k, v.
        o_bias: bias on o.
        mlp_bias: biases on gate, up, down.
        activation: of the gate, "silu" or "gelu_tanh".
        attention_scale: factor of the scores; None means head_dim ** -0.5.
        embed_scale: factor of the embeddings (Gemma: hidden_size ** 0.5).
        rope_theta: base of the rotary frequencies.
        rope_theta_local: base in the layers that have a window, where it differs; None means `rope_theta`.
        rope_scaling: stretch of the frequencies (not applied where `rope_theta_local` holds).
        layer_windows: for each layer how many positions, its own included, a query sees; None is all. An
            empty tuple means global attention everywhere.
        layer_widths: for each layer what it has of `mlp_size` and `num_kv_heads`; such layers are a tuple.
            None (also where every layer has all) is the same widths everywhere.
        tie_embeddings: the head is the embedding.
        bos_id: beginning-of-sequence token.
        eos_ids: tokens that end a sequence.
        pad_id: padding token.
        add_bos: the tokenizer puts `bos_id` in front of every text.

    Raises:
        InputError: a value out of range; the message says which.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    max_positions: int
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    attention_scale: float | None = None
    embed_scale: float = 1.0
    rope_theta: float = 10_000.0
    rope_theta_local: float | None = None
    rope_scaling: RopeScaling | None = None
    layer_windows: tuple[int | None, ...] = ()
    layer_widths: tuple[LayerWidths, ...] | None = None
    tie_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    add_bos: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"ModelConfig.family is {self.family!r}; supported are {', '.join(FAMILIES)}")
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"ModelConfig.activation is {self.activation!r}; supported are {', '.join(ACTIVATIONS)}"
            )
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise InputError(f"ModelConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"ModelConfig.num_heads is {self.num_heads}; it must be a multiple of num_kv_heads, "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"ModelConfig.head_dim is {self.head_dim}; rotary positions need an even width")
        if not self.layer_windows:
            object.__setattr__(self, "layer_windows", (None,) * self.num_layers)
        if len(self.layer_windows) != self.num_layers:
            raise InputError(
                f"ModelConfig.layer_windows has {len(self.layer_windows)} entries; "
                f"it needs num_layers, {self.num_layers}"
            )
        if any(window is not None and window < 1 for window in self.layer_windows):
            raise InputError(
                f"ModelConfig.layer_windows is {self.layer_windows}; a window is None or at least 1"
            )
        if self.layer_widths is not None:
            object.__setattr__(self, "layer_widths", self._checked_widths(self.layer_widths))

    def widths(self, layer: int) -> LayerWidths:
        """Hidden units and key-value heads of one layer."""
        if self.layer_widths is None:
            return LayerWidths(self.mlp_size, self.num_kv_heads)
        return self.layer_widths[layer]

    def _checked_widths(self, widths: tuple[LayerWidths, ...]) -> tuple[LayerWidths, ...] | None:
        """The same as a tuple of `LayerWidths`; None if no layer lacks anything, so that equal models are equal."""
        if len(widths) != self.num_layers:
            raise InputError(
                f"ModelConfig.layer_widths has {len(widths)} entries; it needs num_layers, {self.num_layers}"
            )
        full = LayerWidths(self.mlp_size, self.num_kv_heads)
        checked = tuple(LayerWidths(*one) for one in widths)
        for layer, one in enumerate(checked):
            if any(not 0 <= width <= most for width, most in zip(one, full, strict=True)):
                raise InputError(
                    f"ModelConfig.layer_widths[{layer}] is {one}; the widths go from 0 to those of {full}"
                )
        return None if set(checked) == {full} else checked


_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_size",
    "max_positions",
)
