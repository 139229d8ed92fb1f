"""Trees with names, lengths and supports: comparing them, their consensus, and where to hang them up.

A tree without a root is written as one whose top node has three children; a top with two children is a root.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.neighbor_joining import JoinedTree, neighbor_joining
from jaxlab.phylogeny.checks import require_names, require_square

_joined = jax.jit(neighbor_joining)


@dataclasses.dataclass(frozen=True)
class Phylogeny:
    """A tree: taxa are the first nodes, a parent has a higher number than its children, the last node is the top."""

    names: tuple[str, ...]
    """Of all nodes; "" for inner nodes without one."""
    parents: Int[np.ndarray, " nodes"]
    """-1 for the top."""
    lengths: Float[np.ndarray, " nodes"]
    """Of the edge to the parent; NaN where unknown, 0 for the top."""
    supports: Float[np.ndarray, " nodes"]
    """Of the same edge, in [0, 1] or as the file has it; NaN for taxa and where unknown."""

    def __post_init__(self) -> None:
        """Refuses arrays that are not such a tree."""
        nodes = len(self.names)
        for name in ("parents", "lengths", "supports"):
            if np.shape(getattr(self, name)) != (nodes,):
                raise InputError(f"{name} has shape {np.shape(getattr(self, name))}; it must be ({nodes},)")
        below = self.parents[:-1]
        if (
            nodes < 2
            or self.parents[-1] != -1
            or not (below > np.arange(nodes - 1)).all()
            or (below >= nodes).any()
        ):
            raise InputError(
                f"parents is {self.parents}; each must be higher than its child, and -1 for the last node alone"
            )
        childless = np.setdiff1d(np.arange(nodes), below)
        if not np.array_equal(childless, np.arange(len(childless))):
            raise InputError(f"parents is {self.parents}; nodes without children must come first")
        require_names(self.taxa)

    @property
    def taxa(self) -> tuple[str, ...]:
        """Names of the leaves."""
        return self.names[: len(self.names) - len(np.unique(self.parents[:-1]))]

    @property
    def children(self) -> list[list[int]]:
        """Children of every node, in the order of the first taxon below each."""
        first = list(range(len(self.names)))
        below: list[list[int]] = [[] for _ in self.names]
        for node, parent in enumerate(self.parents[:-1]):
            first[parent] = min(first[parent], first[node])
            below[parent].append(node)
        return [sorted(nodes, key=first.__getitem__) for nodes in below]


def phylogeny(
    joined: JoinedTree, names: Sequence[str], supports: Float[np.ndarray, " edges"] | None = None
) -> Phylogeny:
    """A tree of `neighbor_joining` with its names. Absent taxa are left out.

    Args:
      joined: one tree of M taxa.
      names: of all M taxa.
      supports: of the edges to inner nodes, as `split_supports` gives them: M - 3 of them.

    Raises:
      InputError: names or supports do not fit.
    """
    parents, lengths = np.asarray(joined.parents), np.asarray(joined.lengths, float)
    taxa = (len(parents) + 2) // 2
    require_names(names, taxa=taxa)
    shares = np.full(len(parents), np.nan)
    if supports is not None:
        if np.shape(supports) != (taxa - 3,):
            raise InputError(f"supports has shape {np.shape(supports)}; it must be ({taxa - 3},)")
        shares[taxa:-1] = supports
    kept = np.flatnonzero((parents >= 0) | (np.arange(len(parents)) == len(parents) - 1))
    number = np.full(len(parents) + 1, -1)  # the last entry is for -1
    number[kept] = np.arange(len(kept))
    labels = (*names, *[""] * (taxa - 2))
    return Phylogeny(tuple(labels[i] for i in kept), number[parents[kept]], lengths[kept], shares[kept])


def neighbor_joining_tree(distances: Float[np.ndarray, "taxa taxa"], names: Sequence[str]) -> Phylogeny:
    """The neighbour-joining tree of a matrix. Reference: Saitou and Nei, 1987; see the kernel for every step.

    Args:
      distances: symmetric and finite, of at least 4 taxa.
      names: of the taxa.

    Raises:
      InputError: a matrix or names that do not fit.
    """
    require_square("distances", distances, smallest=4)
    require_names(names, taxa=np.shape(distances)[0])
    return phylogeny(_joined(np.asarray(distances)), names)


def robinson_foulds(tree: Phylogeny, other: Phylogeny, *, normalised: bool = False) -> float:
    """How many splits only one of two trees has; roots and lengths do not matter. Reference: Robinson and Foulds, 1981.

    Args:
      tree: of at least 4 taxa.
      other: of the same taxa in any order.
      normalised: divides by the number of splits of both, so that 1 means that none is shared; 0 if there is none.

    Raises:
      InputError: the taxa differ or are too few.
    """
    taxa = tree.taxa
    mine, others = ({split for split in _edges(one, taxa) if split.proper} for one in (tree, other))
    apart = len(mine ^ others)
    return apart / max(1, len(mine) + len(others)) if normalised else apart


def with_supports(tree: Phylogeny, replicates: Sequence[Phylogeny]) -> Phylogeny:
    """The tree with the share of other trees that contain each of its splits.

    Args:
      tree: of at least 4 taxa.
      replicates: at least one, of the same taxa in any order.

    Raises:
      InputError: no replicates, or taxa that differ or are too few.
    """
    if not replicates:
        raise InputError("replicates is empty; it must hold at least one tree")
    seen = collections.Counter(split for other in replicates for split in _edges(other, tree.taxa))
    supports = np.full(len(tree.names), np.nan)
    for node, split in enumerate(_splits(tree, tree.taxa)):
        if split.proper:
            supports[node] = seen[split] / len(replicates)
    return dataclasses.replace(tree, supports=supports)


def majority_consensus(trees: Sequence[Phylogeny], *, threshold: float = 0.5) -> Phylogeny:
    """The tree of all splits that more than this share of the trees contain, with their shares as supports.

    Lengths are means over the trees that contain the edge. Reference: Margush and McMorris, "Consensus n-trees", 1981.

    Args:
      trees: at least one, of the same at least 4 taxa.
      threshold: in [0.5, 1); with one below splits could contradict each other.

    Raises:
      InputError: no trees, taxa that differ or are too few, or a threshold out of its range.
    """
    if not trees:
        raise InputError("trees is empty; it must hold at least one")
    if not 0.5 <= threshold < 1:
        raise InputError(f"threshold is {threshold}; it must be in [0.5, 1)")
    names = trees[0].taxa
    found: dict[_Split, list[float]] = collections.defaultdict(list)
    for tree in trees:
        for split, length in _edges(tree, names).items():
            found[split].append(length)
    kept = [
        split for split, lengths in found.items() if split.proper and len(lengths) > threshold * len(trees)
    ]
    first = _Split.of(1, len(names))
    leaves = [first] + [_Split.of(1 << i, len(names)) for i in range(1, len(names))]
    edges = leaves + sorted(kept, key=lambda split: (split.side.bit_count(), split.side))
    top = len(edges)
    parents = [top] * top
    for node, split in enumerate(edges[1:], 1):
        # Below the smallest larger side that holds this one. The first taxon hangs at the top, from all others.
        for above in range(max(node + 1, len(names)), top):
            if split.side & ~edges[above].side == 0:
                parents[node] = above
                break
    supports = [len(found[split]) / len(trees) if split.proper else np.nan for split in edges]
    return Phylogeny(
        names + ("",) * (top + 1 - len(names)),
        np.array([*parents, -1]),
        np.array([float(np.mean(found[split])) for split in edges] + [0.0]),
        np.array([*supports, np.nan]),
    )


def ladderized(tree: Phylogeny) -> Phylogeny:
    """The same tree with the children of every node ordered from the fewest taxa to the most, and numbered so."""
    sizes = [side.bit_count() for side in _sides(tree, tree.taxa)]
    children = [sorted(below, key=lambda node: (sizes[node], node)) for below in tree.children]
    return from_children(tree.names, tree.lengths, tree.supports, children)


def midpoint_rooted(tree: Phylogeny) -> Phylogeny:
    """The tree hung up halfway between the two taxa that are farthest apart; negative lengths count as 0 for that.

    Raises:
      InputError: a length is unknown.
    """
    if np.isnan(tree.lengths).any():
        raise InputError(
            f"length of node {int(np.isnan(tree.lengths).argmax())} is unknown; a midpoint needs all of them"
        )
    start, _ = _farthest(tree, 0)
    far, way = _farthest(tree, start)
    nodes = [(a, True) if tree.parents[a] == b else (b, False) for a, b in itertools.pairwise([far, *way])]
    steps = np.array([max(0.0, tree.lengths[below]) for below, _ in nodes])
    walked = np.cumsum(steps)
    k = int(np.searchsorted(walked, walked[-1] / 2))
    share = (walked[-1] / 2 - walked[k] + steps[k]) / steps[k] if steps[k] else 0.5
    below, upwards = nodes[k]
    return _rooted_at(tree, below, share if upwards else 1 - share)


def outgroup_rooted(tree: Phylogeny, outgroup: Sequence[str]) -> Phylogeny:
    """The tree hung up in the middle of the edge that cuts the outgroup off.

    Args:
      tree: any.
      outgroup: taxa, not all of them.

    Raises:
      InputError: a name is unknown, the outgroup is empty or everyone, or no edge cuts off just these taxa.
    """
    missing = [name for name in outgroup if name not in tree.taxa]
    if missing:
        raise InputError(f"outgroup holds {missing[0]!r}; it must be among the taxa {', '.join(tree.taxa)}")
    if not 0 < len(set(outgroup)) < len(tree.taxa):
        raise InputError(f"outgroup has {len(set(outgroup))} taxa; it must have at least one and not all")
    wanted = _Split.of(sum(1 << tree.taxa.index(name) for name in set(outgroup)), len(tree.taxa))
    for node, split in enumerate(_splits(tree, tree.taxa)):
        if split == wanted:
            return _rooted_at(tree, node, 0.5)
    raise InputError(f"outgroup is {list(outgroup)}; it must be all that one edge of the tree cuts off")


def path_lengths(tree: Phylogeny) -> Float[np.ndarray, "taxa taxa"]:
    """Distance between every two taxa along the tree."""
    nodes, taxa = len(tree.names), len(tree.taxa)
    depth = np.zeros(nodes)
    for node in range(nodes - 2, -1, -1):
        depth[node] = depth[tree.parents[node]] + tree.lengths[node]
    # The deepest common node comes last on the way from the top down.
    common = np.zeros((taxa, taxa))
    sides = _sides(tree, tree.taxa)
    for node in range(nodes - 1, -1, -1):
        below = [i for i in range(taxa) if sides[node] >> i & 1]
        common[np.ix_(below, below)] = depth[node]
    return depth[:taxa, None] + depth[:taxa] - 2 * common


def from_children(
    names: Sequence[str],
    lengths: Sequence[float] | Float[np.ndarray, " nodes"],
    supports: Sequence[float] | Float[np.ndarray, " nodes"],
    children: Sequence[Sequence[int]],
) -> Phylogeny:
    """A tree from lists of children, the last of them the top's, numbered anew so that it is a `Phylogeny`.

    Args:
      names: of the nodes.
      lengths: of the edges to their parents.
      supports: of the same edges.
      children: of every node, in the order in which taxa shall come.
    """
    downwards, stack = [], [len(children) - 1]
    while stack:
        node = stack.pop()
        downwards.append(node)
        stack.extend(children[node])  # the last child comes first, so that the reverse has it last
    upwards = downwards[::-1]
    order = [node for node in upwards if not children[node]] + [node for node in upwards if children[node]]
    number = {node: i for i, node in enumerate(order)}
    parents = np.full(len(order), -1)
    for node in order:
        for child in children[node]:
            parents[number[child]] = number[node]
    return Phylogeny(
        tuple(names[node] for node in order),
        parents,
        np.array([lengths[node] for node in order[:-1]] + [0.0], float),
        np.array([supports[node] for node in order], float),
    )


class _Split(NamedTuple):
    """Two sets of taxa, as the bits of the one without the first taxon."""

    side: int
    taxa: int

    @classmethod
    def of(cls, side: int, taxa: int) -> "_Split":
        return cls((1 << taxa) - 1 & ~side if side & 1 else side, taxa)

    @property
    def proper(self) -> bool:
        """Whether both sides have at least two taxa."""
        return 2 <= self.side.bit_count() <= self.taxa - 2


def _sides(tree: Phylogeny, names: Sequence[str]) -> list[int]:
    """The taxa below every node, as bits in the order of the names."""
    place = {name: i for i, name in enumerate(names)}
    sides = [1 << place[name] for name in tree.taxa] + [0] * (len(tree.names) - len(tree.taxa))
    for node, parent in enumerate(tree.parents[:-1]):
        sides[parent] |= sides[node]
    return sides


def _splits(tree: Phylogeny, names: Sequence[str]) -> list[_Split]:
    """The split of the edge above every node but the top."""
    return [_Split.of(side, len(names)) for side in _sides(tree, names)[:-1]]


def _edges(tree: Phylogeny, names: tuple[str, ...]) -> dict[_Split, float]:
    """Length of each split; the two edges at a root are one."""
    if len(names) < 4:
        raise InputError(f"the tree has {len(names)} taxa; it must have at least 4 to have a split")
    only = sorted(set(tree.taxa) ^ set(names))
    if only:
        raise InputError(f"the trees must have the same taxa; only one of them has {', '.join(only[:5])}")
    edges: dict[_Split, float] = {}
    for split, length in zip(_splits(tree, names), tree.lengths[:-1], strict=True):
        edges[split] = edges.get(split, 0.0) + float(length)
    return edges


def _farthest(tree: Phylogeny, start: int) -> tuple[int, list[int]]:
    """The taxon farthest from a node, and the way back from it."""
    around = _neighbours(tree)
    back, distance, stack = {start: -1}, {start: 0.0}, [start]
    while stack:
        node = stack.pop()
        for other in around[node]:
            if other not in back:
                below = other if tree.parents[other] == node else node
                back[other], distance[other] = node, distance[node] + max(0.0, float(tree.lengths[below]))
                stack.append(other)
    far = max((taxon for taxon in range(len(tree.taxa)) if taxon != start), key=distance.__getitem__)
    way = [back[far]]
    while back[way[-1]] >= 0:
        way.append(back[way[-1]])
    return far, way


def _neighbours(tree: Phylogeny) -> list[list[int]]:
    around = tree.children
    for node, parent in enumerate(tree.parents[:-1]):
        around[node] = [*around[node], int(parent)]
    return around


def _rooted_at(tree: Phylogeny, below: int, share: float) -> Phylogeny:
    """Hung up on the edge above a node, at this share of its length from the node."""
    above, old = int(tree.parents[below]), len(tree.names) - 1
    names, lengths, supports = [*tree.names, ""], [*tree.lengths, 0.0], [*tree.supports, np.nan]
    children = [*tree.children, [below, above]]
    upwards = [below, above]
    while upwards[-1] != old:
        upwards.append(int(tree.parents[upwards[-1]]))
    # The edges from here to the old top turn round, and what they carry goes to their other end.
    for node, parent in itertools.pairwise(upwards):
        children[parent].remove(node)
    for node, parent in reversed(list(itertools.pairwise(upwards[1:]))):
        children[node].append(parent)
        lengths[parent], supports[parent] = lengths[node], supports[node]
    lengths[above], supports[above] = (1 - share) * tree.lengths[below], tree.supports[below]
    lengths[below] = share * tree.lengths[below]
    if len(children[old]) == 1:
        # An old root is no node any more.
        (only,) = children[old]
        siblings = next(nodes for nodes in children if old in nodes)
        siblings[siblings.index(old)] = only
        lengths[only] += lengths[old]
    return from_children(names, lengths, supports, children)
