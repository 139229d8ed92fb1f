"""Removal costs against dense optimal brain surgeon and damage, the example of the specification, and masks by rank."""

import dense_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_oracle import EXAMPLE_A, EXAMPLE_G, EXAMPLE_W, SHAPES, columns_mask, rows_mask
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.pruning.costs import (
    METHODS,
    check_finite,
    column_costs,
    cost_model,
    costs,
    element_costs,
    lowest,
    n_of_m,
    quadratic_loss,
    row_costs,
    wanda_scores,
)
from jaxlab.pruning.inverse import Inverses

DRAWN = {"shape": SHAPES, "seed": st.integers(0, 999)}


def inverses_of(A, G):
    return Inverses(jnp.asarray(np.linalg.inv(A)), jnp.asarray(np.linalg.inv(G)))


def all_costs(W, A, G, inverses):
    """Rows, columns, elements."""
    with jax.enable_x64(True):
        W, A, G = (None if x is None else jnp.asarray(x) for x in (W, A, G))
        rows, columns, _ = jitted(W, A, G, inverses, "rowcol")
        return rows, columns, jitted(W, A, G, inverses, "element").elements


jitted = jax.jit(costs, static_argnums=4)


def one_by_one(W, cost):
    """`cost(mask)` of every row, column and element."""
    elements = [np.arange(W.size).reshape(W.shape) == k for k in range(W.size)]
    return (
        [cost(rows_mask(W.shape, [i])) for i in range(len(W))],
        [cost(columns_mask(W.shape, [j])) for j in range(W.shape[1])],
        np.array([cost(mask) for mask in elements]).reshape(W.shape),
    )


@given(**DRAWN)
def test_with_inverses_equals_dense_optimal_brain_surgeon(shape, seed):
    W, A, G = dense_oracle.problem(*shape, seed)
    with jax.enable_x64(True):
        ours = all_costs(W, A, G, inverses_of(A, G))
    for mine, theirs in zip(ours, one_by_one(W, lambda m: dense_oracle.remove(W, A, G, m)[0]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)


@given(**DRAWN)
def test_without_inverses_equals_dense_damage(shape, seed):
    W, A, G = dense_oracle.problem(*shape, seed)
    for mine, theirs in zip(
        all_costs(W, A, G, None), one_by_one(W, lambda m: dense_oracle.damage(W, A, G, m)), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_the_same_frame_with_other_factors(method):
    W, A, G = dense_oracle.problem(4, 5, 1)
    used_a = {"magnitude": np.eye(5), "l-obd": np.diag(np.diag(A))}.get(method, A)
    used_g = G if method in ("k-obd", "surgeon") else np.eye(4)
    with jax.enable_x64(True):
        model = cost_model(method, jnp.asarray(A), jnp.asarray(G), inverses_of(A, G))
        ours = all_costs(W, *model)
    assert (model.inverses is not None) == METHODS[method].updates
    assert model.A is None or model.A.ndim == (1 if method == "l-obd" else 2)
    oracle = (
        (lambda m: dense_oracle.remove(W, used_a, used_g, m)[0])
        if METHODS[method].updates
        else (lambda m: dense_oracle.damage(W, used_a, used_g, m))
    )
    for mine, theirs in zip(ours, one_by_one(W, oracle), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)


def test_a_method_says_what_it_lacks():
    A, G = jnp.eye(3), jnp.eye(2)
    assert cost_model("magnitude") == (None, None, None)
    for arguments, message in (
        (("l-obd",), "A is None; the method 'l-obd'"),
        (("k-obd", A), "G is None"),
        (("sparsegpt", A), "inverses is None"),
        (("surgeon", A, G, Inverses(A, None)), "inverses.G is None"),
        (("wanda", A), "method is 'wanda'; it must be one of magnitude"),
    ):
        with pytest.raises(InputError, match=message):
            cost_model(*arguments)


def test_example_of_the_specification():
    with jax.enable_x64(True):
        surgeon = all_costs(EXAMPLE_W, EXAMPLE_A, EXAMPLE_G, inverses_of(EXAMPLE_A, EXAMPLE_G))
    rows, columns, elements = surgeon
    np.testing.assert_allclose(rows, [6.538875, 1.578870, 0.484496], atol=5e-7)
    np.testing.assert_allclose(columns, [1.138261, 7.092614, 0.711820, 1.761999], atol=5e-7)
    np.testing.assert_allclose(elements[0], [0.809886, 6.201815, 0.294309, 0.059066], atol=5e-7)
    np.testing.assert_allclose(elements[0, 3] + elements[1, 1], 0.066198, atol=5e-7)
    rows, columns, _ = all_costs(EXAMPLE_W, EXAMPLE_A, EXAMPLE_G, None)
    np.testing.assert_allclose(rows, [7.567, 1.986, 0.53325], rtol=1e-12)
    np.testing.assert_allclose(columns, [1.2145, 7.906, 0.78375, 1.856], rtol=1e-12)


@given(**DRAWN)
def test_permuting_rows_and_columns_permutes_the_costs(shape, seed):
    W, A, G = dense_oracle.problem(*shape, seed)
    rng = np.random.default_rng(seed)
    p, q = rng.permutation(shape[0]), rng.permutation(shape[1])
    with jax.enable_x64(True):
        plain = all_costs(W, A, G, inverses_of(A, G))
        moved = (W[p][:, q], A[q][:, q], G[p][:, p])
        permuted = all_costs(*moved, inverses_of(*moved[1:]))
    for before, after in zip((plain[0][p], plain[1][q], plain[2][p][:, q]), permuted, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-9)


def test_pruned_and_dead_structures_cost_nothing():
    W, A, G = dense_oracle.problem(4, 5, 3)
    W[1], W[:, 2] = 0, 0
    A_inverse, G_inverse = np.linalg.inv(A), np.linalg.inv(G)
    A_inverse[4], A_inverse[:, 4], G_inverse[0], G_inverse[:, 0] = 0, 0, 0, 0
    with jax.enable_x64(True):
        inverses = Inverses(jnp.asarray(A_inverse), jnp.asarray(G_inverse))
    rows, columns, elements = map(np.asarray, all_costs(W, A, G, inverses))
    np.testing.assert_array_equal(rows == 0, [True, True, False, False])
    np.testing.assert_array_equal(columns == 0, [False, False, True, False, True])
    assert not elements[:2].any() and not elements[:, 2::2].any()
    assert (elements[2:, [0, 1, 3]] > 0).all()


@pytest.mark.parametrize("costs_of", [row_costs, column_costs, element_costs])
def test_jit_vmap_and_eager_agree_and_gradients_are_finite(costs_of):
    problems = [dense_oracle.problem(4, 5, seed) for seed in range(3)]
    W, A, G = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*problems, strict=True))
    inverses = Inverses(jnp.linalg.inv(A).at[0, 2].set(0).at[0, :, 2].set(0), jnp.linalg.inv(G))
    eager = jnp.stack([costs_of(W[k], A[k], G[k], Inverses(inverses.A[k], inverses.G[k])) for k in range(3)])
    np.testing.assert_allclose(jax.jit(jax.vmap(costs_of))(W, A, G, inverses), eager, rtol=1e-5)
    gradient = jax.grad(lambda *x: jax.vmap(costs_of)(*x).sum(), argnums=(0, 3))(W, A, G, inverses)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_quadratic_loss_equals_the_dense_one():
    W, A, G = dense_oracle.problem(3, 4, 5)
    with jax.enable_x64(True):
        ours = quadratic_loss(jnp.asarray(W), jnp.asarray(A), jnp.asarray(G))
    np.testing.assert_allclose(ours, dense_oracle.loss(W, A, G), rtol=1e-12)


def test_unknown_structure_is_refused():
    with pytest.raises(
        InputError, match="structure is 'column'; it must be one of rowcol, rows, cols, element"
    ):
        costs(jnp.ones((2, 2)), None, None, None, "column")
    assert costs(jnp.ones((2, 2)), None, None, None, "rows").columns is None
    assert costs(jnp.ones((2, 2)), None, None, None, "cols").rows is None


@given(pattern=st.sampled_from([(1, 1), (1, 4), (2, 4), (4, 8)]), seed=st.integers(0, 999))
def test_n_of_m_takes_the_n_cheapest_of_each_group(pattern, seed):
    n, m = pattern
    rows, groups = 3, 2
    scores = np.random.default_rng(seed).integers(0, 4, (rows, groups * m)).astype(np.float32)  # many ties
    mask, group_costs = n_of_m(jnp.asarray(scores), n, m)
    for i in range(rows):
        for g in range(groups):
            part = scores[i, g * m : (g + 1) * m]
            first = np.argsort(part, kind="stable")[:n]
            np.testing.assert_array_equal(np.flatnonzero(mask[i, g * m : (g + 1) * m]), np.sort(first))
            assert group_costs[i, g] == part[first].sum()


@pytest.mark.parametrize(
    ("n", "m", "message"), [(0, 4, "n is 0"), (5, 4, "n is 5"), (2, 5, "which m = 5 does not")]
)
def test_n_of_m_refuses_what_does_not_fit(n, m, message):
    with pytest.raises(InputError, match=message):
        n_of_m(jnp.ones((2, 8)), n, m)


def test_wanda_prunes_the_lowest_scores_of_every_row():
    W, A, _ = dense_oracle.problem(5, 8, 2)
    scores = np.abs(W) * np.sqrt(np.diag(A))
    with jax.enable_x64(True):
        np.testing.assert_allclose(wanda_scores(jnp.asarray(W), jnp.asarray(A)), scores, rtol=1e-12)
        mask = np.asarray(lowest(wanda_scores(jnp.asarray(W), jnp.asarray(A)), 0.4))
    for i in range(5):
        assert mask[i].sum() == 3
        assert scores[i, mask[i]].max() < scores[i, ~mask[i]].min()
    with pytest.raises(InputError, match=r"share is 1.5"):
        lowest(jnp.asarray(W), 1.5)


def test_costs_that_are_not_finite_are_named():
    good = jnp.ones((2, 3))
    check_finite({"q": good})
    with pytest.raises(InputError, match="a removal cost of up, layer 1, is not finite"):
        check_finite({"q": good, "up": good.at[1, 2].set(jnp.nan)})
