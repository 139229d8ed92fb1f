"""Fields of a Hugging Face `config.json` over the defaults of transformers, checked as they are read."""

from collections.abc import Mapping
from typing import Any

from jaxlab.errors import InputError
from jaxlab.models.config import RopeScaling

GLOBAL = "full_attention"
"""How a file that gives each kind of layer its own rotary parameters calls the layers without a window."""


class Fields(dict[str, Any]):
    """The fields; `source` names the file in messages."""

    def __init__(self, values: Mapping[str, Any], source: str):
        super().__init__(values)
        self.source = source

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; `default` stands for null."""
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{self.source}: {name} is missing")
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{self.source}: {name} is {value!r}, expected a positive integer")
        return value

    def number(self, name: str) -> float:
        """A number."""
        value = self.get(name)
        if not isinstance(value, int | float):
            raise InputError(f"{self.source}: {name} is {value!r}, expected a number")
        return float(value)

    def choice(self, name: str, meaning: Mapping[str, str]) -> str:
        """What one of the names in `meaning` means."""
        value = self[name]
        if value not in meaning:
            raise InputError(f"{self.source}: {name} is {value!r}; supported are {', '.join(meaning)}")
        return meaning[value]

    def require(self, **wanted: Any) -> None:
        """Refuse a feature that the forward pass does not have: these fields must have these values, or be absent.

        Raises:
          InputError: one has another value.
        """
        for name, value in wanted.items():
            if self.get(name, value) != value:
                raise InputError(f"{self.source}: {name} is {self[name]!r}, which is not supported")


def end_tokens(stated: Any, generation: Mapping[str, Any] | None) -> tuple[int, ...]:
    """End-of-sequence tokens: those of `generation_config.json`, else `stated`, the `eos_token_id` of `config.json`."""
    ends = (generation or {}).get("eos_token_id", stated)
    return () if ends is None else tuple(ends) if isinstance(ends, list | tuple) else (ends,)


def rotary_fields(values: Fields) -> tuple[float, RopeScaling | None, float]:
    """Base and stretch of the rotary frequencies (of the global layers, where layers differ), and which share of a
    head they turn.
    """
    rope = values.get("rope_parameters") or {}
    rope = rope.get(GLOBAL, rope) or {}
    stretch = {**(values.get("rope_scaling") or {}), **rope}
    theta = float(rope.get("rope_theta", values["rope_theta"]))
    kind = stretch.get("rope_type", stretch.get("type", "default"))
    share = stretch.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    share = 1.0 if share is None else float(share)
    if kind == "default":
        return theta, None, share
    try:
        if kind == "linear":
            return theta, RopeScaling("linear", float(stretch["factor"])), share
        if kind == "llama3":
            scaling = RopeScaling(
                "llama3",
                float(stretch["factor"]),
                float(stretch["low_freq_factor"]),
                float(stretch["high_freq_factor"]),
                int(stretch.get("original_max_position_embeddings", values["max_position_embeddings"])),
            )
            return theta, scaling, share
    except KeyError as error:
        raise InputError(f"{values.source}: rope scaling {kind!r} lacks {error}") from error
    raise InputError(f"{values.source}: rope scaling {kind!r} is not supported; supported are linear, llama3")


def rotary_parameters(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The field `rope_parameters` that `rotary_fields` reads."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    rope = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return rope
