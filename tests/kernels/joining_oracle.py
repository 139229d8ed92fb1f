"""Neighbour joining in plain Python, random trees, and splits as sets: what the fast versions are compared with."""

import numpy as np


def plain_neighbor_joining(distances):
    """`(splits, lengths)`: the side without taxon 0 of every edge, and its length. Saitou and Nei, step by step."""
    taxa = len(distances)
    d = {frozenset((i, j)): float(distances[i][j]) for i in range(taxa) for j in range(i)}
    slots = [(i, frozenset([i])) for i in range(taxa)]  # a name, and the taxa below
    edges = {}
    while len(slots) > 3:
        m = len(slots)
        names = [name for name, _ in slots]
        r = {i: sum(d[frozenset((i, k))] for k in names if k != i) for i in names}
        best = None
        for a in range(m):
            for b in range(a + 1, m):
                i, j = names[a], names[b]
                q = (m - 2) * d[frozenset((i, j))] - r[i] - r[j]
                if best is None or q < best[0]:
                    best = (q, a, b)
        _, a, b = best
        (i, below_i), (j, below_j) = slots[a], slots[b]
        between = d[frozenset((i, j))]
        edges[below_i] = between / 2 + (r[i] - r[j]) / (2 * (m - 2))
        edges[below_j] = between - edges[below_i]
        new = ("joined", len(edges))
        for k in names:
            if k not in (i, j):
                d[frozenset((new, k))] = (d[frozenset((i, k))] + d[frozenset((j, k))] - between) / 2
        slots[a] = (new, below_i | below_j)
        del slots[b]
    for a in range(3):
        (i, below), (j, _), (k, _) = slots[a], slots[a - 1], slots[a - 2]
        edges[below] = (d[frozenset((i, j))] + d[frozenset((i, k))] - d[frozenset((j, k))]) / 2
    return {normal_side(below, range(taxa)): length for below, length in edges.items()}


def normal_side(side, taxa):
    return frozenset(side) if min(taxa) not in side else frozenset(taxa) - frozenset(side)


def edges_of(parents, lengths, taxa=None):
    """Length of every split of a tree in arrays; the two edges at a root are added."""
    parents = np.asarray(parents)
    leaves = (len(parents) + 2) // 2 if taxa is None else taxa
    below = [{i} if i < leaves else set() for i in range(len(parents))]
    for node, parent in enumerate(parents):
        if parent >= 0:
            below[parent] |= below[node]
    edges = {}
    for node, parent in enumerate(parents):
        if parent >= 0:
            side = normal_side(below[node], below[-1])
            edges[side] = edges.get(side, 0.0) + float(lengths[node])
    return edges


def random_tree(taxa, rng):
    """Edges of a random unrooted binary tree with positive lengths, and the path lengths between its taxa."""
    ends = [(0, taxa), (1, taxa), (2, taxa)]
    for leaf in range(3, taxa):
        node = taxa + leaf - 2
        a, b = ends.pop(rng.integers(len(ends)))
        ends += [(a, node), (node, b), (leaf, node)]
    lengths = rng.uniform(0.1, 1, len(ends))
    around = [[] for _ in range(2 * taxa - 2)]
    for (a, b), length in zip(ends, lengths, strict=True):
        around[a].append((b, length))
        around[b].append((a, length))
    paths = np.zeros((taxa, taxa))
    edges = {}
    for (a, b), length in zip(ends, lengths, strict=True):
        side, stack = set(), [(b, a)]
        while stack:
            node, before = stack.pop()
            if node < taxa:
                side.add(node)
            stack += [(other, node) for other, _ in around[node] if other != before]
        inside = np.isin(np.arange(taxa), list(side))
        paths += length * (inside[:, None] != inside)
        edges[normal_side(side, range(taxa))] = length
    return edges, paths


def random_distances(taxa, rng, batch=()):
    values = rng.random((*batch, taxa, taxa))
    values = np.triu(values, 1)
    return values + np.swapaxes(values, -1, -2)
