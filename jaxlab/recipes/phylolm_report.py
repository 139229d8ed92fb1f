"""What a run of the phylolm recipe says in the end: its table, drawings and files for other programs."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab.files import atomic_file
from jaxlab.phylogeny.exchange import to_nexus, to_phylip, write_matrix
from jaxlab.phylogeny.layout import branch_families, equal_angle_layout, ladder_layout
from jaxlab.phylogeny.newick import to_newick
from jaxlab.phylogeny.scaling import classical_scaling, smacof
from jaxlab.phylogeny.trees import Phylogeny, ladderized, midpoint_rooted
from jaxlab.runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIXED = "0.35"


class Findings(NamedTuple):
    """What a run found; matrices in the order of the names."""

    names: tuple[str, ...]
    families: tuple[str, ...]
    similarity: np.ndarray
    distances: np.ndarray
    errors: np.ndarray
    tree: Phylogeny
    """With supports."""
    consensus: Phylogeny
    ancestors: np.ndarray
    """Row x, column y: x may be an ancestor of y."""
    truth: Phylogeny | None


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end: how sure the tree is, and how true where that is known."""
    rows = []
    for kind in ("exact", "sampled"):
        if f"mean_support_{kind}" not in summary:
            continue
        row = {
            "alleles": kind if kind == "exact" else f"{summary['probes']} probes a gene",
            "mean support": f"{summary[f'mean_support_{kind}']:.3f}",
            "mean error of D": f"{summary[f'mean_error_{kind}']:.3f}",
        }
        if f"rf_{kind}" in summary:
            row |= {
                "Robinson-Foulds to the truth": str(summary[f"rf_{kind}"]),
                "lowest support of a true split": f"{summary[f'lowest_true_support_{kind}']:.3f}",
                "support of the roots' split": f"{summary[f'roots_support_{kind}']:.3f}",
            }
        rows.append(row)
    return rows


def write_files(folder: RunFolder, found: Findings) -> None:
    """Newick, NEXUS, PHYLIP and CSV."""
    trees = {"neighbour_joining": found.tree, "consensus": found.consensus}
    if found.truth is not None:
        trees["truth"] = found.truth
    for name, tree in trees.items():
        with atomic_file(folder.artefact(f"{name}.nwk")) as temporary:
            temporary.write_text(to_newick(tree) + "\n", encoding="utf-8")
    leaves = set(found.tree.taxa)
    same = {name: tree for name, tree in trees.items() if set(tree.taxa) == leaves}
    with atomic_file(folder.artefact("trees.nex")) as temporary:
        temporary.write_text(to_nexus(same), encoding="utf-8")
    with atomic_file(folder.artefact("distances.phy")) as temporary:
        temporary.write_text(to_phylip(found.distances, found.names), encoding="utf-8")
    for name in ("similarity", "distances", "errors"):
        write_matrix(folder.artefact(f"{name}.csv"), getattr(found, name), found.names)
    pairs = [
        {"ancestor": found.names[x], "descendant": found.names[y]} for x, y in np.argwhere(found.ancestors)
    ]
    with atomic_file(folder.artefact("ancestors.json")) as temporary:
        temporary.write_text(json.dumps(pairs, indent=1), encoding="utf-8")


def draw(folder: RunFolder, found: Findings) -> None:
    """Rooted and unrooted tree, heat map of similarity, and scaling to the plane."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys(found.families))
    colours = {name: f"C{i % 10}" for i, name in enumerate(kinds)}
    family_of = dict(zip(found.names, found.families, strict=True))
    many = len(found.names)

    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.26 * many))
    _draw_ladder(axis, ladderized(midpoint_rooted(found.tree)), family_of, colours)
    folder.save_figure("rooted", figure)
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(8, 8))
    _draw_spread(axis, ladderized(found.tree), family_of, colours)
    folder.save_figure("unrooted", figure)
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(2.5 + 0.22 * many, 2 + 0.22 * many))
    _draw_heat(axis, found, kinds, colours)
    figure.colorbar(axis.images[0], ax=axis, fraction=0.04, label="similarity")
    folder.save_figure("similarity", figure)
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(7, 6))
    distances = jnp.asarray(found.distances)
    points = np.asarray(smacof(distances, classical_scaling(distances).points).points)
    for kind in kinds:
        own = [i for i, family in enumerate(found.families) if family == kind]
        axis.scatter(*points[own].T, color=colours[kind], label=kind)
    for name, point in zip(found.names, points, strict=True):
        axis.annotate(name, point, fontsize=6, xytext=(3, 3), textcoords="offset points")
    axis.set(title="distances in the plane (SMACOF)", aspect="equal")
    axis.legend()
    folder.save_figure("scaling", figure)
    plt.close(figure)


def _draw_ladder(axis: "Axes", tree: Phylogeny, family_of: dict[str, str], colours: dict[str, str]) -> None:
    points, families = ladder_layout(tree), branch_families(tree, family_of)
    for node, parent in enumerate(tree.parents[:-1]):
        (x, y), (x0, y0), colour = points[node], points[parent], colours.get(families[node], _MIXED)
        axis.plot([x0, x0, x], [y0, y, y], color=colour, linewidth=1.4)
        if not np.isnan(tree.supports[node]):
            axis.annotate(
                f"{100 * tree.supports[node]:.0f}",
                (x, y),
                fontsize=6,
                xytext=(-2, 2),
                ha="right",
                textcoords="offset points",
            )
    _name_taxa(axis, tree, points, family_of, colours)
    axis.set(xlabel="Nei's distance from the midpoint", yticks=[])
    for side in ("left", "top", "right"):
        axis.spines[side].set_visible(False)


def _draw_spread(axis: "Axes", tree: Phylogeny, family_of: dict[str, str], colours: dict[str, str]) -> None:
    points, families = equal_angle_layout(tree), branch_families(tree, family_of)
    for node, parent in enumerate(tree.parents[:-1]):
        axis.plot(*points[[node, parent]].T, color=colours.get(families[node], _MIXED), linewidth=1.4)
    _name_taxa(axis, tree, points, family_of, colours)
    axis.set_aspect("equal")
    axis.axis("off")


def _name_taxa(
    axis: "Axes", tree: Phylogeny, points: np.ndarray, family_of: dict[str, str], colours: dict[str, str]
) -> None:
    for taxon, name in enumerate(tree.taxa):
        axis.annotate(
            name,
            points[taxon],
            fontsize=8,
            xytext=(4, 0),
            va="center",
            textcoords="offset points",
            color=colours.get(family_of.get(name, ""), _MIXED),
            annotation_clip=False,
        )


def _draw_heat(axis: "Axes", found: Findings, kinds: Sequence[str], colours: dict[str, str]) -> None:
    order = sorted(range(len(found.names)), key=lambda i: kinds.index(found.families[i]))
    from matplotlib.patches import Rectangle

    axis.imshow(found.similarity[np.ix_(order, order)], cmap="gray", vmin=0, vmax=1)
    labels = [found.names[i] for i in order]
    axis.set_xticks(range(len(order)), labels, rotation=90, fontsize=7)
    axis.set_yticks(range(len(order)), labels, fontsize=7)
    start = 0
    for kind in kinds:
        size = found.families.count(kind)
        box = (start - 0.5, start - 0.5)
        axis.add_patch(Rectangle(box, size, size, fill=False, edgecolor=colours[kind], linewidth=2))
        start += size
