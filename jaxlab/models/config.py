"""Static description of a transformer: all that shapes its forward pass but the weights."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxlab.errors import InputError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "opt", "gpt2", "gpt_neox", "phi", "bert", "t5")
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")
NORMS = ("rms", "layer")
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
    """Hidden units of the MLP, 0 to `ModelConfig.mlp_size`."""
    num_kv_heads: int
    """Key and value heads, 0 to `ModelConfig.num_kv_heads`, each with as many query heads as in the model."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and flags of a decoder, of the encoder BERT, or of one stack of T5; hashable, static under jit.

    Attributes:
        family: one of `FAMILIES`; names of tensors in files follow from it, the forward pass from the rest.
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides `num_heads`.
        head_dim: width of a head; need not be hidden_size / num_heads.
        mlp_size: hidden units of the MLP.
        max_positions: longest sequence.
        norm: "rms", or "layer" for the LayerNorm of mean and variance, which has biases.
        norm_eps: added to the mean square, or variance, in every norm.
        norm_offset: RMSNorm multiplies by norm_offset + w (Gemma: 1); parameters hold the w of Hugging Face.
        sandwich_norms: normalise each branch's output too, before the residual add (Gemma).
        post_norm: normalise after each residual add instead of before each branch, and not at the end (BERT, OPT
            350M).
        parallel_residual: the MLP reads the same residual stream as attention (GPT-NeoX, Phi).
        shared_norm: with `parallel_residual`, it even reads the same normed one (Phi).
        qk_norm: RMSNorm of every query and key head before the rotation (Qwen3, Gemma 3).
        qkv_bias: biases on q, k, v.
        o_bias: bias on o.
        mlp_bias: biases on gate, up, down.
        head_bias: bias on the scores (Phi).
        gated_mlp: the MLP has a gate; without one its activation acts on what `up` makes.
        activation: of the gate, one of `ACTIVATIONS`; "gelu" is the exact one.
        attention_scale: factor of the scores; None means head_dim ** -0.5.
        embed_scale: factor of the embeddings (Gemma: hidden_size ** 0.5).
        embed_size: width of the embedding where it is projected to `hidden_size` and back (OPT 350M); None means
            `hidden_size`.
        embed_norm: normalise the sum of all embeddings (BERT).
        token_types: kinds of tokens with an embedding of their own (BERT: 2), 0 for none.
        learned_positions: positions have embeddings; there are no rotary ones.
        position_offset: rows of their table before the one of position 0 (OPT: 2).
        rotary_dim: how many of a head's dimensions, the first ones, are rotated, even; None means all, 0 that the
            block knows no positions.
        rope_theta: base of the rotary frequencies.
        rope_theta_local: base in the layers that have a window, where it differs; None means `rope_theta`.
        rope_scaling: stretch of the frequencies (not applied where `rope_theta_local` holds).
        layer_windows: for each layer how many positions, its own included, a query sees; None is all. An
            empty tuple means global attention everywhere.
        causal: a token sees only those before it; False is for encoders.
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
    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    post_norm: bool = False
    parallel_residual: bool = False
    shared_norm: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    gated_mlp: bool = True
    activation: str = "silu"
    attention_scale: float | None = None
    embed_scale: float = 1.0
    embed_size: int | None = None
    embed_norm: bool = False
    token_types: int = 0
    learned_positions: bool = False
    position_offset: int = 0
    rotary_dim: int | None = None
    rope_theta: float = 10_000.0
    rope_theta_local: float | None = None
    rope_scaling: RopeScaling | None = None
    layer_windows: tuple[int | None, ...] = ()
    causal: bool = True
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
        if self.rotary_dim == self.head_dim:
            object.__setattr__(self, "rotary_dim", None)  # so that equal models are equal
        self._check_embeddings()
        if self.norm not in NORMS:
            raise InputError(f"ModelConfig.norm is {self.norm!r}; supported are {', '.join(NORMS)}")
        if self.shared_norm and not self.parallel_residual:
            raise InputError("ModelConfig.shared_norm is True; it needs parallel_residual")
        if self.post_norm and (self.parallel_residual or self.sandwich_norms):
            raise InputError(
                "ModelConfig.post_norm is True; it excludes parallel_residual and sandwich_norms"
            )
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

    @property
    def rotated(self) -> int:
        """Dimensions of a head that are rotated by the position."""
        if self.learned_positions:
            return 0
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def widths(self, layer: int) -> LayerWidths:
        """Hidden units and key-value heads of one layer."""
        if self.layer_widths is None:
            return LayerWidths(self.mlp_size, self.num_kv_heads)
        return self.layer_widths[layer]

    def _check_embeddings(self) -> None:
        if self.rotated % 2:
            name = "head_dim" if self.rotary_dim is None else "rotary_dim"
            raise InputError(f"ModelConfig.{name} is {self.rotated}; rotary positions need an even width")
        if not 0 <= self.rotated <= self.head_dim:
            raise InputError(f"ModelConfig.rotary_dim is {self.rotary_dim}; it must be 0 to {self.head_dim}")
        if self.embed_size is not None and self.embed_size < 1:
            raise InputError(f"ModelConfig.embed_size is {self.embed_size}; it must be at least 1")
        for name in ("token_types", "position_offset"):
            if getattr(self, name) < 0:
                raise InputError(f"ModelConfig.{name} is {getattr(self, name)}; it must be at least 0")

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
