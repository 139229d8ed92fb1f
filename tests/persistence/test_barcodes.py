"""Barcodes against gudhi's, their losses against closed forms and SciPy, and gradients against finite differences."""

import gudhi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from homology_oracle import padded, random_filtration
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from jaxlab import persistence
from jaxlab.errors import InputError
from jaxlab.persistence import losses
from jaxlab.persistence.barcodes import Barcode, barcode, persistence_pairs

pytestmark = pytest.mark.usefixtures("double_precision")

PATH = [6, 4, 3, 4, 5, 4, 3, 2, 3, 4, 5]


def bars_of(filtration, degree, backend="auto"):
    return barcode(filtration, persistence_pairs(filtration, degree=degree, backend=backend), degree=degree)


def listed(found):
    """Bars of positive length, sorted."""
    bars = np.asarray(found.bars)[np.asarray(found.mask)]
    return sorted(map(tuple, bars[bars[:, 1] > bars[:, 0]].tolist()))


def gudhis(filtration, degree):
    tree = gudhi.SimplexTree()
    corners = [np.arange(filtration.complex.sizes[0])[:, None]]
    for faces in filtration.complex.faces[1:]:
        corners.append(np.array([np.unique(corners[-1][own]) for own in np.asarray(faces)]))
    for simplices, grades in zip(corners, filtration.grades, strict=True):
        for simplex, grade in zip(simplices, np.asarray(grades)[:, 0], strict=True):
            tree.insert(simplex.tolist(), float(grade))
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
    return sorted(map(tuple, tree.persistence_intervals_in_dimension(degree).tolist()))


@jax.jit
def all_bars(filtration):
    """By degree and backend."""
    backends = [(degree, "generic") for degree in range(filtration.complex.dimension + 1)]
    return [(degree, bars_of(filtration, degree, backend)) for degree, backend in [(0, "forest"), *backends]]


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_bars_are_gudhis(seed):
    """Of complexes padded to one size."""
    filtration = random_filtration(seed, 1)
    for degree, bars in all_bars(padded(filtration)):
        expected = gudhis(filtration, int(degree)) if degree <= filtration.complex.dimension else []
        assert listed(bars) == expected


def path(values):
    edges = np.stack([np.arange(len(PATH) - 1), np.arange(1, len(PATH))], -1)
    complex = persistence.simplicial_complex(len(PATH), edges)
    return persistence.lower_star(complex, jnp.asarray(values)[:, None])


def test_path_with_known_gradient():
    def loss(values):
        return losses.total_persistence(bars_of(path(values), 0), power=2) / 4

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(PATH, float))
    assert float(value) == 1.0
    assert gradient.tolist() == [0, 0, -1, 0, 1, 0, 0, 0, 0, 0, 0]
    assert listed(bars_of(path(np.asarray(PATH, float)), 0)) == [(2.0, np.inf), (3.0, 5.0)]


def test_relations_on_single_generators_end_them():
    """Two generators at 0 and 1; a relation kills the second at 3, another makes them equal at 2."""
    complex = persistence.cell_complex([np.zeros((2, 0), int), np.array([[1, -1], [0, 1]])])
    grades = (jnp.asarray([[0.0], [1.0]]), jnp.asarray([[3.0], [2.0]]))
    filtration = persistence.Filtration(complex, grades)
    for backend in ("forest", "generic"):
        assert listed(bars_of(filtration, 0, backend)) == [(0.0, 3.0), (1.0, 2.0)]


def test_cells_that_never_enter_open_and_close_nothing():
    complex = persistence.simplicial_complex(3, np.array([[0, 1], [1, 2], [0, 2]]))
    grades = (
        jnp.asarray([[0.0], [1.0], [jnp.inf]]),
        jnp.asarray([[jnp.inf], [jnp.inf], [jnp.inf]]),
    )
    for backend in ("forest", "generic"):
        found = bars_of(persistence.Filtration(complex, grades), 0, backend)
        assert listed(found) == [(0.0, np.inf), (1.0, np.inf)]
    gradient = jax.grad(
        lambda g: losses.total_persistence(bars_of(persistence.Filtration(complex, (g, grades[1])), 0))
    )(grades[0])
    assert np.isfinite(np.asarray(gradient)).all()


def test_batches_are_barcodes_one_by_one():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)))
    complex = persistence.cubical_complex((4, 5))

    def bars(image):
        return bars_of(persistence.lower_star(complex, image.reshape(-1, 1)), 0)

    together = jax.jit(jax.vmap(bars))(images)
    for i, image in enumerate(images):
        cubical = gudhi.CubicalComplex(vertices=np.asarray(image))
        cubical.compute_persistence(homology_coeff_field=2)
        expected = sorted(map(tuple, cubical.persistence_intervals_in_dimension(0).tolist()))
        assert listed(Barcode(together.bars[i], together.mask[i])) == expected


BARS = Barcode(
    jnp.asarray([[0.0, 2.0], [1.0, 4.0], [0.5, jnp.inf], [0.0, 0.0], [2.0, 2.0]]),
    jnp.asarray([True, True, True, False, True]),
)


def test_losses_of_known_bars():
    assert float(losses.total_persistence(BARS)) == 5.0
    assert float(losses.total_persistence(BARS, power=0.5)) == pytest.approx(2**0.5 + 3**0.5)
    assert losses.longest_bars(BARS, count=4).tolist() == [3.0, 2.0, 0.0, 0.0]
    assert losses.longest_bars(BARS, count=7).shape == (7,)
    shares = np.array([0.4, 0.6])
    assert float(losses.persistence_entropy(BARS)) == pytest.approx(-np.sum(shares * np.log(shares)))
    times = jnp.asarray([0.0, 1.0, 1.5, 3.0])
    expected = [[0.0, 1.0, 1.0, 2.5], [0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.5, 0.0]]
    np.testing.assert_allclose(losses.landscape(BARS, times, count=3), expected, atol=1e-12)
    image = losses.persistence_image(BARS, jnp.asarray([0.3]), jnp.asarray([1.7]), bandwidth=0.5)
    gaussian = [
        length * np.exp(-((0.3 - birth) ** 2 + (1.7 - length) ** 2) / (2 * 0.25)) / (2 * np.pi * 0.25)
        for birth, length in ((0, 2), (1, 3))
    ]
    assert float(image[0, 0]) == pytest.approx(sum(gaussian), rel=1e-12)


@settings(max_examples=8)
@given(st.integers(0, 2**31))
def test_squared_distance_is_the_optimal_matchings(seed):
    rng = np.random.default_rng(seed)
    one, other = (np.sort(rng.uniform(size=(count, 2)), axis=1) for count in (4, 3))
    found = losses.squared_distance(Barcode(jnp.asarray(one), jnp.ones(4, bool)), jnp.asarray(other))
    costs = np.zeros((7, 7))
    costs[:4, :3] = ((one[:, None] - other) ** 2).sum(-1)
    costs[:4, 3:] = ((one[:, 1] - one[:, 0]) ** 2 / 2)[:, None]
    costs[4:, :3] = (other[:, 1] - other[:, 0]) ** 2 / 2
    assert float(found) == pytest.approx(costs[linear_sum_assignment(costs)].sum(), rel=1e-10)


def test_gradients_of_losses_are_finite_differences():
    target = jnp.asarray([[0.1, 1.8], [0.9, 1.2]])
    checked = {
        "power": lambda b: losses.total_persistence(b, power=1.7),
        "longest": lambda b: losses.longest_bars(b, count=1)[0],
        "entropy": losses.persistence_entropy,
        "landscape": lambda b: jnp.sum(losses.landscape(b, jnp.asarray([0.9, 1.4]), count=2) ** 2),
        "image": lambda b: jnp.sum(
            losses.persistence_image(b, jnp.linspace(0, 2, 3), jnp.linspace(0, 3, 4), bandwidth=0.7) ** 2
        ),
        "distance": lambda b: losses.squared_distance(b, target),
    }
    direction = np.random.default_rng(0).normal(size=(5, 2)) * np.isfinite(np.asarray(BARS.bars))
    direction[-2:] = 0
    for name, loss in checked.items():
        gradient = np.asarray(jax.jit(jax.grad(lambda bars, f=loss: f(Barcode(bars, BARS.mask))))(BARS.bars))
        assert np.isfinite(gradient).all(), name
        h = 1e-6
        ends = [loss(Barcode(BARS.bars + sign * h * direction, BARS.mask)) for sign in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * h)
        assert float(np.vdot(gradient, direction)) == pytest.approx(slope, rel=1e-6, abs=1e-8), name


def test_wrong_use_is_named():
    filtration = path(np.asarray(PATH, float))
    with pytest.raises(InputError, match="degree is 2, but must be 0 to 1"):
        persistence_pairs(filtration, degree=2)
    with pytest.raises(InputError, match="forests give degree 0"):
        persistence_pairs(filtration, degree=1, backend="forest")
    with pytest.raises(InputError, match="backend is 'gpu'"):
        persistence_pairs(filtration, degree=0, backend="gpu")
    with pytest.raises(InputError, match="has 2 parameters; a barcode needs one"):
        persistence_pairs(random_filtration(0, 2), degree=0)
    with pytest.raises(InputError, match="count is 0"):
        losses.longest_bars(BARS, count=0)
    with pytest.raises(InputError, match="power is 0"):
        losses.total_persistence(BARS, power=0)
    with pytest.raises(InputError, match="target must hold finite bars"):
        losses.squared_distance(BARS, jnp.asarray([[1.0, 0.0]]))
