"""Values and gradients of signed measures by multipers and torch, float64; and its optimisation of points.

The functional is the integral of exp(-|x - centre|^2) against all measures asked for, summed. multipers rounds to the
nearest line of a grid; here, as the paper and jaxlab do, grades are rounded up before it sees them.
"""

import sys
import time

import numpy as np
import torch


def main(given: str, written: str) -> None:
    """Reads `task` and its arrays; writes `value`, `gradient` and `seconds`, or what that task says."""
    inputs = dict(np.load(given))
    tasks = {"rips": rips, "graphs": graphs, "images": images, "optimise": optimise}
    np.savez(written, **tasks[str(inputs["task"])](inputs))


def rips(inputs):
    """Function-Rips of clouds [clouds, n, 2] by codensity, in one `degree`: `lines` of distance, all values."""
    import multipers as mp
    from multipers.filtrations import RipsLowerstar
    from multipers.grids import compute_grid

    n, degree = inputs["points"].shape[1], int(inputs["degree"])
    i, j = np.triu_indices(n, 1)

    def loss(points):
        total = 0
        for cloud in points:
            squares = ((cloud[:, None] - cloud) ** 2).sum(-1)
            values = codensity(squares, inputs)
            lengths = torch.cat([squares.new_zeros(1), torch.sqrt(squares[i, j])])
            (scale,) = compute_grid([lengths], strategy="regular_closest", resolution=[int(inputs["lines"])])
            (second,) = compute_grid([values])
            rounded = np.zeros((n, n))
            rounded[i, j] = rounded[j, i] = round_up(lengths[1:], scale)
            tree = RipsLowerstar(
                distance_matrix=rounded, function=values.detach().numpy(), threshold_radius=np.inf
            )
            if degree:
                tree.collapse_edges(-1)
                tree.expansion(degree + 1)
            total = total + integral(mp.signed_measure(tree, degree=degree, grid=[scale, second]), inputs)
        return total

    return timed(loss, inputs["points"], inputs)


def graphs(inputs):
    """H_0 and H_1 of lower-star graphs by `values` [nodes of all graphs, 2], each on its exact grid."""
    import multipers as mp
    from multipers.grids import compute_grid

    sizes = inputs["nodes"].tolist()
    edges = np.split(inputs["edges"], np.cumsum(inputs["edge_counts"])[:-1])

    def loss(values):
        total = 0
        for own, pairs in zip(torch.split(values, sizes), edges, strict=True):
            grid = compute_grid(own.T)
            grades = own.detach().numpy()
            tree = mp.SimplexTreeMulti(num_parameters=2, dtype=np.float64)
            tree.insert_batch(np.arange(len(grades))[None], grades)
            tree.insert_batch(pairs.T, np.maximum(grades[pairs[:, 0]], grades[pairs[:, 1]]))
            total = total + integral(mp.signed_measure(tree, degrees=[0, 1], grid=grid), inputs)
        return total

    return timed(loss, inputs["values"], inputs)


def images(inputs):
    """H_0 and H_1 of images [images, h, w, 2] by vertices, each on `lines` of each channel."""
    import multipers as mp
    from multipers.grids import compute_grid
    from multipers.slicer import from_bitmap

    lines = int(inputs["lines"])

    def loss(pixels):
        total = 0
        for image in pixels:
            grid = compute_grid(image.reshape(-1, 2).T, strategy="regular_closest", resolution=[lines, lines])
            # What multipers.filtrations.Cubical does with a tensor that has a gradient, on this grid.
            coordinates = [
                np.searchsorted(g.detach().numpy(), image[..., k].detach().numpy())
                for k, g in enumerate(grid)
            ]
            slicer = from_bitmap(np.stack(coordinates, -1).astype(np.int32))
            slicer.filtration_grid = grid
            total = total + integral(mp.signed_measure(slicer, degrees=[0, 1]), inputs)
        return total

    return timed(loss, inputs["images"], inputs)


def optimise(inputs):
    """Adam on `points` by the loss of an experiment, "modes" or "circle": `losses`, `points`, and seconds of each step.

    Edges and triangles of a Delaunay triangulation, made anew every step, enter with their longest edge and their
    largest value, so that lengths carry gradients.
    """
    points = torch.tensor(inputs["points"], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([points], lr=float(inputs["rate"]))
    loss_of = {"modes": modes_loss, "circle": density_loss}[str(inputs["experiment"])]
    losses, seconds, host = [], [], []
    for _ in range(int(inputs["steps"])):
        start = time.perf_counter()
        optimizer.zero_grad()
        complex = triangulation(points)
        middle = time.perf_counter()
        loss = loss_of(points, complex, inputs)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
        host.append(middle - start)
        seconds.append(time.perf_counter() - start)
    return {
        "losses": np.array(losses),
        "points": points.detach().numpy(),
        "seconds": np.array(seconds),
        "triangulation_seconds": np.array(host),
    }


def triangulation(points):
    """Edges and triangles, each once."""
    from scipy.spatial import Delaunay

    triangles = np.sort(Delaunay(points.detach().numpy()).simplices, axis=1)
    edges = np.concatenate([triangles[:, :2], triangles[:, 1:], triangles[:, ::2]])
    return np.unique(edges, axis=0), triangles


def delaunay_measure(points, complex, values):
    """Signed measure in degree 1 by edge length and values, on the exact grid."""
    import multipers as mp
    from multipers.grids import compute_grid

    edges, triangles = complex
    lengths = torch.sqrt(((points[edges[:, 0]] - points[edges[:, 1]]) ** 2).sum(-1))
    grid = compute_grid([torch.cat([lengths.new_zeros(1), lengths]), values])
    f = values.detach().numpy()
    number = np.zeros((len(f), len(f)))
    number[edges[:, 0], edges[:, 1]] = lengths.detach().numpy()
    longest = np.maximum.reduce(
        [number[triangles[:, a], triangles[:, b]] for a, b in ((0, 1), (1, 2), (0, 2))]
    )
    tree = mp.SimplexTreeMulti(num_parameters=2, dtype=np.float64)
    tree.insert_batch(np.arange(len(f))[None], np.stack([np.zeros(len(f)), f], 1))
    tree.insert_batch(edges.T, np.stack([number[edges[:, 0], edges[:, 1]], f[edges].max(1)], 1))
    tree.insert_batch(triangles.T, np.stack([longest, f[triangles].max(1)], 1))
    return mp.signed_measure(tree, degree=1, grid=grid)[0]


def modes_loss(points, complex, inputs):
    """sum w r (0.65 - d), d = 1 - sum of Gaussians about `centres`."""
    squares = ((points[:, None] - torch.tensor(inputs["centres"], dtype=torch.float64)) ** 2).sum(-1)
    values = 1 - torch.exp(-squares / 0.17**2).sum(-1)
    atoms, weights = delaunay_measure(points, complex, values)
    return (torch.as_tensor(weights) * atoms[:, 0] * (0.65 - atoms[:, 1])).sum()


def density_loss(points, complex, inputs):
    """(sum of |x|_1 over atoms of weight > 0, less that over those of weight < 0) / their number."""
    values = codensity(((points[:, None] - points) ** 2).sum(-1), inputs)
    atoms, weights = delaunay_measure(points, complex, values)
    return (torch.as_tensor(weights) * atoms.abs().sum(-1)).sum() / max(int(np.count_nonzero(weights)), 1)


def codensity(squares, inputs):
    """-log of the mean of Gaussians at all points."""
    return -torch.log(torch.exp(-squares / (2 * float(inputs["bandwidth"]) ** 2)).mean(-1))


def integral(measures, inputs):
    """Of exp(-|x - centre|^2), against all measures."""
    centre = torch.tensor(inputs["centre"])
    return sum(
        (torch.as_tensor(weights) * torch.exp(-((points - centre) ** 2).sum(-1))).sum()
        for points, weights in measures
        if len(weights)
    )


def round_up(values, lines):
    """Every value moved to the first line at or above it."""
    lines = lines.detach().numpy()
    return lines[np.searchsorted(lines, values.detach().numpy())]


def timed(loss, argument, inputs):
    """Value, gradient, and seconds of both together, but for a first time that does not count."""
    seconds = []
    for _ in range(int(inputs["repetitions"]) + 1):
        start = time.perf_counter()
        variable = torch.tensor(argument, dtype=torch.float64, requires_grad=True)
        value = loss(variable)
        value.backward()
        seconds.append(time.perf_counter() - start)
    return {
        "value": np.array(float(value)),
        "gradient": variable.grad.numpy(),
        "seconds": np.array(seconds[1:]),
        "first": np.array(seconds[0]),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
