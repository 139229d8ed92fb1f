"""The gudhi callback: same integers as elimination, usable under jit and vmap, refused where it cannot run."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clouds import cloud
from homology_oracle import exact_grid, hilbert_functions, random_filtration

from jaxlab.errors import InputError, ResourceError
from jaxlab.persistence import (
    cubical_complex,
    function_rips,
    hilbert_callback,
    hilbert_generic,
    hilbert_rips_callback,
    image_filtration,
    lower_star,
    rips_grid,
    signed_measure,
)


@pytest.mark.parametrize("parameters", [1, 2, 3])
def test_every_degree_equals_elimination(parameters):
    pytest.importorskip("gudhi")
    for seed in range(2):
        filtration = random_filtration(seed, parameters)
        grid = exact_grid(filtration)
        expected, _ = hilbert_functions(filtration, grid)
        for degree in range(filtration.complex.dimension + 1):
            found = jax.jit(lambda f, g, d=degree: hilbert_callback(f, g, degree=d))(filtration, grid)
            assert np.array_equal(found, expected[degree])


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_rips_slices_equal_the_reduction_of_the_whole_complex(degree):
    """Each cut at its own enclosing radius; under vmap as well."""
    pytest.importorskip("gudhi")
    clouds = [cloud(9, seed=s) for s in range(2)]
    distances, values = (jnp.stack(a) for a in zip(*clouds, strict=True))
    grids = [rips_grid(d, v, strategy="quantile", resolution=(15, 5)) for d, v in clouds]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grids)
    found = jax.vmap(lambda d, v, g: hilbert_rips_callback(d, v, g, degree=degree))(
        distances, values, stacked
    )
    for i, (d, v) in enumerate(clouds):
        expected = hilbert_generic(function_rips(d, v, max_dim=3), grids[i], degree=degree)
        assert np.array_equal(found[i], expected)


@pytest.mark.parametrize("construction", ["V", "T"])
def test_one_parameter_bars_of_images_and_complexes_are_gudhis(construction):
    """p = 1: the measure is births minus deaths of gudhi's own cubical complex."""
    gudhi = pytest.importorskip("gudhi")
    image = np.random.default_rng(0).integers(0, 9, (8, 9)).astype(np.float64)
    filtration = image_filtration(jnp.asarray(image[..., None], jnp.float32), construction=construction)
    cells = {"vertices": image} if construction == "V" else {"top_dimensional_cells": image}
    peer = gudhi.CubicalComplex(**cells)
    peer.compute_persistence(homology_coeff_field=2, min_persistence=0)
    grid = exact_grid(filtration)
    for degree in (0, 1):
        expected = np.zeros(len(grid.coords[0]), int)
        for birth, death in peer.persistence_intervals_in_dimension(degree):
            expected[np.asarray(grid.coords[0]) == birth] += 1
            expected[np.asarray(grid.coords[0]) == death] -= 1
        assert np.array_equal(signed_measure(filtration, grid, degree=degree).weights, expected)


def test_it_is_refused_on_several_hosts_without_gudhi_and_for_cubes(monkeypatch):
    filtration = random_filtration(0, 2)
    grid = exact_grid(filtration)
    image = lower_star(cubical_complex((2, 2)), jnp.zeros((4, 2)))
    with pytest.raises(InputError, match="gudhi takes simplicial ones, hilbert_generic any"):
        hilbert_callback(image, exact_grid(image), degree=0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ResourceError, match="uses the gudhi callback, which runs on one host, but there are 2"
    ):
        hilbert_callback(filtration, grid, degree=1)
    distances, values = cloud(4)
    with pytest.raises(ResourceError, match="degree 1 of a Rips complex uses the gudhi callback"):
        hilbert_rips_callback(distances, values, rips_grid(distances, values), degree=1)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "gudhi", None)
    with pytest.raises(ResourceError, match=r"pip install 'jaxlab\[persistence\]'"):
        hilbert_callback(filtration, grid, degree=1)
