"""What is pruned, by which method, and how."""

import dataclasses
import re
from typing import Literal

from jaxlab.errors import InputError
from jaxlab.pruning.costs import METHODS
from jaxlab.pruning.factors import Fisher, Products
from jaxlab.pruning.low_rank import LowRank

STRUCTURES = ("rowcol", "rows", "cols", "element", "mlp_units", "kv_groups", "units")
"""And n:m, such as 2:4. "units" is mlp_units and kv_groups together."""
UNITS = {"mlp_units": ("mlp",), "kv_groups": ("kv",), "units": ("mlp", "kv")}


@dataclasses.dataclass(frozen=True)
class SurgeonConfig:
    """How a model is pruned; hashable.

    Raises:
        InputError: a value out of range; the message says which.
    """

    sparsity: float = 0.2
    """Share of the parameters of the blocks' matrices (biases included) that is pruned in the end, in [0, 1)."""
    shots: int = 4
    """Steps, each with its own curvature, >= 1."""
    structure: str = "rowcol"
    """'rowcol', 'rows', 'cols', 'element', 'n:m' (such as 2:4), 'mlp_units', 'kv_groups' or 'units' (both)."""
    method: str = "surgeon"
    """'surgeon', 'k-obd', 'l-obd', 'magnitude', 'sparsegpt' or 'wanda' (the last two for elements and n:m)."""
    damp_a: float = 0.1
    """Share of the mean diagonal that is added to the input factors before they are inverted, > 0."""
    damp_g: float = 0.1
    """The same for the output-gradient factors."""
    damp_factors: tuple[float, ...] = (1.0,)
    """Of several, every shot tries each times `damp_a` and `damp_g`, and keeps what is best on held-out text."""
    joint: Literal["exact", "sum"] = "exact"
    """Rows and columns together: the optimum, or the sum of the two updates as in the authors' code."""
    max_correlate: int = 0
    """Pruned rows (and columns) that are updated together; 0 is all."""
    max_chunk: int = 1
    """Pruned elements that are updated together, at least those of a row; 1 is row by row."""
    add_update: bool = True
    """Each group or chunk starts from what those before it left."""
    update_scale: float = 1.0
    """Multiplies the updates, >= 0."""
    allocation: Literal["global", "uniform"] = "global"
    """Elements and n:m: one threshold for all matrices, or the same share of each (always so for Wanda)."""
    fisher: Fisher = "empirical"
    """Labels of the curvature: the text's own, or ("mc") drawn from the model."""
    draws: int = 1
    """With "mc", labels drawn for every token."""
    half_steps: int = 0
    """0 takes inputs and gradients as independent; an even number finds the nearest Kronecker product of each matrix's
    Fisher information by so many passes over the text."""
    products: Products = "bfloat16"
    """Of the passes that gather curvature and train the correction."""
    fresh: bool = True
    """Each shot takes calibration windows of its own; False: all shots take all of them."""
    low_rank: LowRank | None = None
    """Low-rank first-order correction after every shot; None is none."""

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity is {self.sparsity}; it must be in [0, 1)")
        for name, least in (("shots", 1), ("max_correlate", 0), ("max_chunk", 1), ("draws", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("damp_a", "damp_g"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be > 0")
        if not self.damp_factors or not all(factor > 0 for factor in self.damp_factors):
            raise InputError(f"damp_factors is {self.damp_factors}; it must hold numbers > 0, at least one")
        if self.half_steps < 0 or self.half_steps % 2:
            raise InputError(f"half_steps is {self.half_steps}; it must be 0 or a positive even number")
        if self.half_steps and self.fisher != "empirical":
            raise InputError(
                f"half_steps is {self.half_steps}, which needs fisher 'empirical', not {self.fisher!r}"
            )
        if not self.update_scale >= 0:
            raise InputError(f"update_scale is {self.update_scale}; it must be >= 0")
        for name, known in (("joint", ("exact", "sum")), ("allocation", ("global", "uniform"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.method not in (*METHODS, "wanda"):
            raise InputError(f"method is {self.method!r}; it must be one of {', '.join(METHODS)}, wanda")
        if self.structure not in STRUCTURES and self.n_of_m is None:
            raise InputError(
                f"structure is {self.structure!r}; it must be one of {', '.join(STRUCTURES)}, or n:m such as 2:4 "
                "with 0 < n <= m"
            )
        if self.method in ("sparsegpt", "wanda") and not self.elementwise:
            raise InputError(f"method {self.method!r} prunes elements; structure is {self.structure!r}")
        if self.n_of_m is not None and self.sparsity > self.n_of_m[0] / self.n_of_m[1]:
            n, m = self.n_of_m
            raise InputError(f"sparsity is {self.sparsity}; {n}:{m} pruning reaches at most {n / m:g}")

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(n, m) of an n:m structure, else None."""
        found = re.fullmatch(r"(\d+):(\d+)", self.structure)
        if found is None:
            return None
        n, m = int(found[1]), int(found[2])
        return (n, m) if 0 < n <= m else None

    @property
    def elementwise(self) -> bool:
        """Whether single weights are pruned."""
        return self.structure == "element" or self.n_of_m is not None

    @property
    def needs_factors(self) -> bool:
        """Whether the method looks at curvature."""
        return self.method != "magnitude"

    def target(self, shot: int) -> float:
        """Sparsity after the shots 1 .. `shot`."""
        return self.sparsity * shot / self.shots
